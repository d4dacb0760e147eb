"""Connectionist temporal classification against PyTorch, and a model of it on a mesh against one device."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.objectives.ctc import CTCConfig, ctc_loss
from lm_jax.train.step import gradients
from tests.models.test_speech_encoder import BLANK, encoder, spoken

KEY = jax.random.key(0)
HEARD = np.array([9, 6, 3, 8, 5, 4], np.int32)
LABELS = np.array([[1, 3, 3, 2], [4, 1, 0, 0], [3, 3, 0, 0], [2, 0, 0, 0], [4, 4, 4, 4], [1, 2, 3, 0]], np.int32)
LENGTHS = np.array([4, 2, 2, 1, 4, 0])  # the last but one needs 7 positions and has 5; of the last nothing is known


def test_it_is_that_of_torch():
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(6, 9, 5)).astype(np.float32)
    heard = (np.arange(9)[None] < HEARD[:, None]).astype(np.int32)
    present = np.arange(4)[None] < LENGTHS[:, None]

    def total(logits):
        nats, possible = ctc_loss(logits, heard, LABELS, present, 0)
        return jnp.sum(nats), (nats, possible)

    (_, (nats, possible)), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    assert possible.tolist() == [True, True, True, True, False, True]
    known = [0, 1, 2, 3]
    theirs = torch.tensor(logits[known], dtype=torch.float64, requires_grad=True)
    log_probs = torch.log_softmax(theirs, -1).transpose(0, 1)
    sizes = torch.tensor(HEARD[known]), torch.tensor(LENGTHS[known])
    expected = torch.nn.functional.ctc_loss(log_probs, torch.tensor(LABELS[known]), *sizes, blank=0, reduction="none")
    expected.sum().backward()
    np.testing.assert_allclose(nats[jnp.array(known)], expected.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(grad[jnp.array(known)], theirs.grad.numpy(), atol=1e-5)
    assert not nats[4:].any() and not grad[4:].any()


@pytest.fixture(scope="module")
def alone():
    """Gradients and terms on one device."""
    graph, params = split(encoder().build(KEY))
    step = jax.jit(lambda params, data: gradients(params, data, KEY, graph=graph, objective=CTCConfig().build()))
    return step(params, spoken())


def test_terms_count_labels_and_what_cannot_be_spelled(alone):
    batch, (_, terms) = spoken(), alone
    model = encoder().build(KEY)
    output, heard = jax.jit(lambda batch: model.hear(batch, key=KEY))(batch)
    logits = np.asarray(model.logits(output.hidden), np.float64)
    labels = [row[row != BLANK].tolist() for row in batch["targets"]]
    total, count, impossible, spoken_rows = 0.0, 0, 0, 0
    for row, own in enumerate(labels):
        positions = int(heard[row].sum())
        spoken_rows += bool(own)
        if len(own) + sum(a == b for a, b in itertools.pairwise(own)) > positions:
            impossible += 1
        elif own:
            total += nats_by_hand(logits[row, :positions], own)
            count += len(own)
    assert impossible == 1 and spoken_rows == 7
    np.testing.assert_allclose(terms["loss"].count, count)
    np.testing.assert_allclose(terms["loss"].sum, total, rtol=2e-4)
    assert float(terms["impossible"].value) == pytest.approx(1 / 7)


def test_what_cannot_be_spelled_is_said_of_the_first_batch():
    (line,) = CTCConfig().remarks({"loss": 0.0, "impossible": 1 / 7})
    assert line.startswith("14% of the first utterances have fewer positions than their labels need")
    assert not list(CTCConfig().remarks({"loss": 1.0, "impossible": 0.0}))


def nats_by_hand(logits, labels):
    """The forward algorithm (Graves et al. 2006, eq. 6 to 8) in float64."""
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    states = [BLANK]
    for label in labels:
        states += [label, BLANK]
    alpha = np.zeros(len(states))
    alpha[:2] = probs[0, states[:2]]
    for p in probs[1:]:
        new = np.zeros_like(alpha)
        for s, state in enumerate(states):
            new[s] = alpha[s] + (alpha[s - 1] if s else 0)
            if s > 1 and state not in (BLANK, states[s - 2]):
                new[s] += alpha[s - 2]
        alpha = new * p[states]
    return -np.log(alpha[-2:].sum())


def test_a_mesh_of_all_kinds_equals_one_device(alone):
    grads, terms = alone
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, sharded = split(jax.jit(encoder().build)(KEY))
        step = jax.jit(lambda params, data: gradients(params, data, KEY, graph=graph, objective=CTCConfig().build()))
        mesh_grads, mesh_terms = step(sharded, shard_batch(spoken(), mesh, layout))
    for name, term in terms.items():
        np.testing.assert_allclose(mesh_terms[name], term, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), mesh_grads, grads)


def test_chunks_are_refused():
    with pytest.raises(ConfigError, match="chunks=2: an utterance is scored as a whole"):
        validate_tree(dataclasses.replace(CTCConfig(), chunks=2))
