"""The optimizers in float64 NumPy, one array at a time, from the papers' equations; groups are spelt out by path."""

import numpy as np

DECAYED = {
    "embedding/table",
    "stack/block0/mixer/query",
    "stack/block0/mixer/output",
    "stack/block0/experts/up",
    "projection",
    "head",
}
# Leading batch dimensions, and the matrix behind them, of what Muon updates.
MATRICES = {
    "stack/block0/mixer/query": ((8,), (16, 32)),
    "stack/block0/mixer/output": ((8,), (32, 16)),
    "stack/block0/experts/up": ((8, 2), (16, 40)),
    "projection": ((), (16, 40)),
}


def adamw(p, grads, rates, decay, b1=0.9, b2=0.95, eps=1e-8, nesterov=False):
    """Decoupled decay first, then the step, in the order of torch.optim.AdamW's documentation."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        shrunk = p - rate * decay * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        p = shrunk - rate * m_hat / (np.sqrt(v / (1 - b2**t)) + eps)
    return p


def adagrad(p, grads, rates, decay, initial=0.0, eps=1e-20):
    s = np.full_like(p, initial)
    for g, rate in zip(grads, rates, strict=True):
        s = s + g**2
        p = p - rate * (g / np.sqrt(s + eps) + decay * p)
    return p


def sgd(p, grads, rates, decay, momentum=0.0, nesterov=False):
    m = np.zeros_like(p)
    for g, rate in zip(grads, rates, strict=True):
        m = momentum * m + g
        p = p - rate * ((momentum * m + g if nesterov else m) + decay * p)
    return p


def lion(p, grads, rates, decay, b1=0.9, b2=0.99):
    m = np.zeros_like(p)
    for g, rate in zip(grads, rates, strict=True):
        p = p - rate * (np.sign(b1 * m + (1 - b1) * g) + decay * p)
        m = b2 * m + (1 - b2) * g
    return p


def newton_schulz(x, steps=5):
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def muon(p, grads, rates, decay, batch, matrix, beta=0.95, nesterov=True, scale="shape"):
    shape, rows, columns = p.shape, *matrix
    factor = np.sqrt(max(1, columns / rows)) if scale == "shape" else 0.2 * np.sqrt(max(rows, columns))
    m = np.zeros_like(p)
    for g, rate in zip(grads, rates, strict=True):
        m = beta * m + (1 - beta) * g
        ahead = beta * m + (1 - beta) * g if nesterov else m
        each = [newton_schulz(x) for x in ahead.reshape(-1, rows, columns)]
        p = p - rate * (factor * np.stack(each).reshape(shape) + decay * p)
    return p


def adafactor(p, grads, rates, decay, factored, momentum=None, scale_by_parameter=True):
    """One parameter of one layer; `factored` says whether it is kept as rows and columns, and then it is a matrix."""
    rows = columns = full = average = 0.0
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        b = 1 - t**-0.8
        square = g**2 + 1e-30
        if factored:
            rows = b * rows + (1 - b) * square.sum(1)
            columns = b * columns + (1 - b) * square.sum(0)
            v = np.outer(rows, columns) / rows.sum()
        else:
            v = full = b * full + (1 - b) * square
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)))
        if scale_by_parameter:
            u = u * max(1e-3, np.sqrt(np.mean(p**2)))
        if momentum is not None:
            u = average = momentum * average + (1 - momentum) * u
        p = p - rate * (u + decay * p)
    return p
