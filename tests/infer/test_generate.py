"""Generation against the plain forward pass, and the samplers against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import split
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from tests.models_for_tests import MODELS, VOCAB, gpt2, llama

GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture(scope="module")
def model():
    return llama().build(jax.random.key(0))


def greedy_by_full_forward(forward, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        padded = np.array([tokens + [0] * (16 - len(tokens))], np.int32)  # causal: the rest is unseen
        tokens.append(int(forward({"tokens": padded})[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_repeated_forward_passes(name):
    model = MODELS[name].build(jax.random.key(1))
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6]]  # lengths differ: left padding
    got = generate(*split(model), prompts, max_tokens=6, sampling=GREEDY)
    forward = jax.jit(lambda batch: model.logits(model(batch).hidden))
    assert [samples[0] for samples in got] == [greedy_by_full_forward(forward, p, 6) for p in prompts]


def test_seed_decides_and_samples_differ(model):
    def run(seed):
        hot = SamplingConfig(temperature=20.0)
        return generate(*split(model), [[1, 2]], max_tokens=12, sampling=hot, seed=seed, num_samples=3)

    assert run(0) == run(0) != run(1)
    assert len({tuple(s) for s in run(0)[0]}) == 3


def test_each_sample_stops_after_its_own_stop_token(model):
    def run(*stop):
        hot = SamplingConfig(temperature=20.0)
        return generate(*split(model), [[3, 1, 4]], max_tokens=30, sampling=hot, stop_tokens=stop, num_samples=8)[0]

    free, stop = run(), 7
    cut = run(stop)
    assert any(stop in sample[:-1] for sample in free) and any(stop not in sample for sample in free)
    assert cut == [sample[: [*sample, stop].index(stop)] for sample in free]


def test_tokens_that_pad_the_vocabulary_are_never_drawn(model):
    hot = SamplingConfig(temperature=50.0)
    drawn = [generate(*split(model), [[1]], max_tokens=60, sampling=hot, num_tokens=n)[0][0] for n in (None, 7)]
    assert max(drawn[0]) > 30 and set(drawn[1]) == set(range(7))
    assert generate(*split(model), [[1]], max_tokens=3, sampling=GREEDY, num_tokens=1)[0][0] == [0, 0, 0]


def test_goes_past_the_training_length_with_a_context(model):
    out = generate(*split(model), [[1]], max_tokens=40, sampling=GREEDY, context=8)[0][0]
    assert len(out) == 40
    with pytest.raises(ConfigError, match="need 41 positions, but the model's table has 16"):
        generate(*split(gpt2().build(jax.random.key(0))), [[1]], max_tokens=40, sampling=GREEDY)


def test_bad_prompts_are_named(model):
    with pytest.raises(ConfigError, match="prompt is empty"):
        generate(*split(model), [[]], max_tokens=4, sampling=GREEDY)
    with pytest.raises(ConfigError, match=f"token {VOCAB}"):
        generate(*split(model), [[VOCAB]], max_tokens=4, sampling=GREEDY)


def kept_by_numpy(scores, top_k, top_p):
    """The set of tokens that stay, by sorting."""
    order = np.argsort(-scores)
    if top_k is not None:
        order = order[:top_k]
    if top_p is not None:
        probs = np.exp(scores[order]) / np.exp(scores[order]).sum()
        order = order[: int(np.searchsorted(np.cumsum(probs), top_p)) + 1]
    return set(order.tolist())


@pytest.mark.parametrize(("top_k", "top_p"), [(5, None), (None, 0.6), (7, 0.5), (1, None), (None, 1e-6), (100, 1.0)])
def test_filters_equal_numpy(top_k, top_p):
    scores = np.random.default_rng(0).normal(size=(16, VOCAB)).astype(np.float32) * 2
    left = np.isfinite(np.asarray(SamplingConfig(top_k=top_k, top_p=top_p).filter(jnp.asarray(scores))))
    for row, mask in zip(scores, left, strict=True):
        assert set(np.nonzero(mask)[0].tolist()) == kept_by_numpy(row, top_k, top_p if top_p != 1.0 else None)


def test_frequencies_follow_the_temperature():
    scores = jnp.asarray([[0.0, 1.0, 2.0]])
    draw = jax.vmap(lambda key: SamplingConfig(temperature=2.0).sample(key, scores)[0])
    counts = np.bincount(draw(jax.random.split(jax.random.key(0), 20_000)), minlength=3) / 20_000
    expected = np.exp(np.array([0, 0.5, 1.0])) / np.exp(np.array([0, 0.5, 1.0])).sum()
    np.testing.assert_allclose(counts, expected, atol=0.015)


@pytest.mark.parametrize("bad", [dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5)])
def test_bad_settings_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        validate_tree(SamplingConfig(**bad))
