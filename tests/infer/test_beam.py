"""Beam search against a search of all continuations, and against greedy generation."""

import itertools

import jax
import numpy as np
import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, same_everywhere, use_mesh
from lm_jax.infer.beam import beam_search
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from tests.evals.test_perplexity import bigram_model
from tests.models_for_tests import llama, logits

EOS, LENGTH = 0, 3
PROMPTS = [[5, 1], [3]]


@pytest.fixture(scope="module")
def small():
    """A model of 5 tokens, of which all continuations of 3 can be tried."""
    return llama(vocab_size=5).build(jax.random.key(3))


def all_endings(model, prompt, penalty):
    """(worth, tokens) of every continuation of at most LENGTH tokens that ends with EOS, the best first."""
    bodies = [body for size in range(LENGTH) for body in itertools.product(range(1, 5), repeat=size)]
    tokens = np.zeros((len(bodies), 2 + LENGTH), np.int32)  # causal: what pads a row at its end is unseen
    for row, body in zip(tokens, bodies, strict=True):
        row[: len(prompt) + len(body)] = [*prompt, *body]
    scores = logits(model, tokens).astype(np.float64)
    table = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    found = []
    for row, body in zip(table, bodies, strict=True):
        score = sum(row[len(prompt) - 1 + i, token] for i, token in enumerate((*body, EOS)))
        found.append((score / (len(body) + 1) ** penalty, list(body)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all(small, penalty):
    prompts = [[4, 1], [3]]
    got = beam_search(*split(small), prompts, beam=5**2, max_tokens=LENGTH, eos=EOS, length_penalty=penalty)
    for prompt, results in zip(prompts, got, strict=True):
        best = all_endings(small, prompt, penalty)
        assert results[0][1] == best[0][1] and results[0][0] == pytest.approx(best[0][0], abs=1e-5)
        assert [round(score, 4) for score, _ in results[:5]] == [round(score, 4) for score, _ in best[:5]]


def test_a_row_does_not_depend_on_the_others_of_its_batch():
    """Some are done long before others, which go on."""
    differ = 0
    for seed in range(4):
        parts = split(llama(vocab_size=5).build(jax.random.key(seed)))
        prompts = np.random.default_rng(seed).integers(1, 5, (8, 2)).tolist()
        search = {"beam": 2, "max_tokens": 12, "eos": EOS}
        together = beam_search(*parts, prompts, **search)
        for prompt, row in zip(prompts, together, strict=True):
            (alone,) = beam_search(*parts, [prompt], **search)
            assert alone[0][1] == row[0][1]
            np.testing.assert_allclose([worth for worth, _ in alone], [worth for worth, _ in row], atol=1e-5)
        differ += len({len(row[0][1]) for row in together}) > 1
    assert differ


def test_one_beam_is_greedy():
    model = llama().build(jax.random.key(1))
    parts, greedy = split(model), SamplingConfig(temperature=0.0)
    ids = generate(*parts, PROMPTS, max_tokens=8, sampling=greedy, stop_tokens=(EOS,), num_tokens=30)
    got = beam_search(*parts, PROMPTS, beam=1, max_tokens=8, eos=EOS, num_tokens=30)
    assert [results[0][1] for results in got] == [samples[0] for samples in ids]


def test_one_beam_ends_where_the_end_is_the_likeliest():
    """Though a longer text would be worth more for each of its tokens: -0.30 instead of -0.40."""
    graph, params, table = bigram_model()
    table[:] = -30.0
    for before, after in {5: {1: 0.9, 2: 0.1}, 1: {EOS: 0.5, 2: 0.45, 3: 0.05}, 2: {EOS: 0.99, 3: 0.01}}.items():
        for token, p in after.items():
            table[before, token] = np.log(p)
    params["head"] = table.astype(np.float32)
    ((found,),) = beam_search(graph, params, [[5]], beam=1, max_tokens=8, eos=EOS)
    assert found[1] == [1] and found[0] == pytest.approx((np.log(0.9) + np.log(0.5)) / 2, abs=1e-5)
    wide = beam_search(graph, params, [[5]], beam=2, max_tokens=8, eos=EOS)[0]
    assert wide[0][1] == [1, 2]


def test_an_encoder_decoder_on_a_mesh_finds_the_same():
    block = llama().stack.pattern[0]
    model = EncoderDecoderConfig(vocab_size=32, width=16, init=llama().init)
    for stack in (model.encoder, model.stack):
        stack.repeats = 2
        for part in stack.pattern:
            part.mixer.num_heads, part.feed_forward = 2, block.feed_forward
            if part.cross is not None:
                part.cross.num_heads = 2
    inputs = {"memory_tokens": np.array([[7, 8, 9], [4, 5, 0]], np.int32), "memory_segments": np.array([[1, 1, 1], [1, 1, 0]])}
    inputs["memory_segments"] = inputs["memory_segments"].astype(np.int32)
    search = {"beam": 3, "max_tokens": 5, "eos": EOS, "inputs": inputs}
    alone = beam_search(*split(model.build(jax.random.key(2))), [[EOS], [EOS]], **search)
    # What is padding in a source changes nothing, and a row does not see the other.
    single = {"memory_tokens": inputs["memory_tokens"][1:, :2], "memory_segments": inputs["memory_segments"][1:, :2]}
    assert beam_search(*split(model.build(jax.random.key(2))), [[EOS]], **(search | {"inputs": single}))[0][0][1] == alone[1][0][1]
    with use_mesh(MeshShape(dp=2, fsdp=2, tp=2).build(), Layout()):
        parts = split(jax.jit(model.build)(jax.random.key(2)))
        with same_everywhere():
            spread = beam_search(*parts, [[EOS], [EOS]], **search)
    for one, other in zip(alone, spread, strict=True):
        assert [tokens for _, tokens in one] == [tokens for _, tokens in other]
        np.testing.assert_allclose([score for score, _ in one], [score for score, _ in other], rtol=1e-4)


def test_what_cannot_be_searched_is_refused(small):
    for change, message in (
        ({"beam": 0}, "beam=0 must be at least 1"),
        ({"length_penalty": -1.0}, r"length_penalty=-1.0 not negative"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            beam_search(*split(small), [[1]], **({"beam": 2, "max_tokens": 2, "eos": EOS} | change))


def test_scores_that_are_no_numbers_are_named(small):
    graph, params = split(small)
    with pytest.raises(ConfigError, match="the model's scores are no numbers"):
        beam_search(graph, jax.tree.map(lambda x: x * np.nan, params), [[4, 1]], beam=2, max_tokens=LENGTH, eos=EOS)
