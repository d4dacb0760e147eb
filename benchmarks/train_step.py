"""Training speed on the CPU beside PyTorch eager, both in this process, taking turns.

    python -m benchmarks.train_step [--rounds=7] [--only=small/classic]

The whole step is timed, as training runs it: forward, backward, clipping, fused AdamW, and the metrics of the log. float32,
random tokens. Prints tokens per second (median over rounds) and the ratio of lm_jax to PyTorch. Needs torch.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch

from benchmarks import torch_gpt
from lm_jax.core.param import logical_axes, split
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig, RotaryConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.train.step import StepConfig, init_state, train_step

SIZES = {
    "small": (12, {"vocab": 66, "width": 128, "heads": 4, "layers": 4, "length": 64}),
    "large": (16, {"vocab": 66, "width": 384, "heads": 6, "layers": 6, "length": 256}),
}
Step = Callable[[np.ndarray, np.ndarray], float]


def model(vocab: int, width: int, heads: int, layers: int, length: int, hidden: int, modern: bool) -> DecoderConfig:
    """The model of `torch_gpt.GPT` with the same arguments."""
    norm = NormConfig() if modern else NormConfig(kind="layer", bias=True, epsilon=1e-5)
    block = BlockConfig(
        norm=norm,
        mixer=AttentionConfig(
            num_heads=heads,
            rotary=RotaryConfig() if modern else None,
            qk_norm=NormConfig() if modern else None,
            bias=not modern,
            output_bias=not modern,
        ),
        feed_forward=MLPConfig(hidden=hidden, gated=modern, activation="silu" if modern else "gelu_tanh", bias=not modern),
    )
    return DecoderConfig(
        vocab_size=vocab,
        width=width,
        embedding=EmbeddingConfig(positions=None if modern else PositionTableConfig(length=length)),
        stack=StackConfig(pattern=(block,), repeats=layers, unroll=layers, final_norm=norm),
    )


def jax_step(shape: dict, modern: bool) -> Step:
    """A function (tokens, targets) -> loss that trains one step of lm_jax."""
    built = jax.jit(model(**shape, modern=modern).build)(jax.random.key(0))
    graph, params = split(built)
    config = StepConfig(clip_norm=1.0)
    optimizer = AdamW(learning_rate=1e-3, b2=0.99, weight_decay=0.1).build(logical_axes(built), 10_000)
    run = functools.partial(train_step, graph=graph, objective=LMConfig().build(), optimizer=optimizer, config=config)
    compiled = jax.jit(run, donate_argnums=0)
    state = init_state(params, optimizer, config)
    key = jax.random.key(1)

    def step(tokens: np.ndarray, targets: np.ndarray) -> float:
        nonlocal state
        batch = {"tokens": tokens, "targets": targets, "weights": np.ones(tokens.shape, np.float32)}
        state, metrics, _ = compiled(state, batch, key)
        return float(metrics["loss"])

    return step


def torch_step(shape: dict, modern: bool) -> Step:
    """The same in PyTorch."""
    step = torch_gpt.make_step(shape, modern)
    return lambda tokens, targets: step(torch.from_numpy(tokens).long(), torch.from_numpy(targets).long())


def measure(steps: dict[str, Step], batch_size: int, length: int, rounds: int, seconds: float) -> dict[str, float]:
    """Tokens per second of each, the median over rounds in which they take turns of about `seconds`."""
    tokens = np.random.default_rng(0).integers(0, 66, (batch_size, length + 1)).astype(np.int32)
    x, y = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    for step in steps.values():
        for _ in range(3):
            step(x, y)
    start = time.perf_counter()
    steps["torch"](x, y)
    count = max(1, round(seconds / (time.perf_counter() - start)))
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(count):
                step(x, y)
            speeds[name].append(count * batch_size * length / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def main() -> None:
    """Prints a line for each size and family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    parser.add_argument("--only", default="", help="such as small/classic")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads; tokens per second")
    for size, (batch_size, shape) in SIZES.items():
        for family in ("classic", "modern"):
            if options.only not in f"{size}/{family}":
                continue
            modern = family == "modern"
            full = shape | {"hidden": shape["width"] * 8 // 3 // 8 * 8 if modern else 4 * shape["width"]}
            steps = {"torch": torch_step(full, modern), "lm_jax": jax_step(full, modern)}
            speed = measure(steps, batch_size, shape["length"], options.rounds, options.seconds)
            ratio = speed["lm_jax"] / speed["torch"]
            print(f"{size}/{family}: torch {speed['torch']:,.0f}  lm_jax {speed['lm_jax']:,.0f}  ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
