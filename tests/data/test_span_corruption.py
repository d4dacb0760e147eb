"""Span corruption and UL2: against T5's own construction in loops, and back to the text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.data.span_corruption import UL2, SpanCorruption
from lm_jax.data.tokenizers import Characters
from tests.data.denoised_rows import VOCAB, Numbers, draws, rows, stream_rows
from tests.data.token_stores import EOS

STREAM = rows(packed=False)


def spans_of(memory, sentinel):
    """What stands between the sentinels of a memory."""
    parts = [[]]
    for token in memory:
        if token >= sentinel:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


@settings(max_examples=80, deadline=None)
@given(batch=STREAM, rate=st.floats(0.01, 0.9), mean_span=st.none() | st.floats(1, 20), seed=st.integers(0, 9))
def test_the_text_comes_back(batch, rate, mean_span, seed):
    config, T = SpanCorruption(rate=rate, mean_span=mean_span), batch["targets"].shape[1]
    denoiser = config.build(Numbers(), T)
    made = denoiser(batch, draws(batch, seed))
    np.testing.assert_array_equal(denoiser.invert(made), batch["targets"])
    noise, num_spans = config.sizes(T)
    assert made["targets"].shape == made["tokens"].shape == made["weights"].shape == (len(batch["targets"]), config.row_length(T))
    assert made["memory_tokens"].shape == made["memory_segments"].shape == (len(batch["targets"]), config.memory_length(T))
    for row, text in enumerate(batch["targets"].tolist()):
        memory, targets = made["memory_tokens"][row].tolist(), made["targets"][row].tolist()
        assert made["tokens"][row].tolist() == [EOS, *targets[:-1]] and targets[-1] == EOS
        assert [t for t in memory if t >= VOCAB] == [t for t in targets if t >= VOCAB] == [VOCAB + i for i in range(num_spans)]
        kept, cut = spans_of(memory, VOCAB), spans_of(targets[:-1], VOCAB)
        assert cut[0] == [] and all(cut[1:]) and all(kept[:-1]) and sum(map(len, cut)) == noise
        assert [t for i in range(num_spans) for t in kept[i] + cut[i + 1]] + kept[-1] == text
        # Padding of the text is hidden from the encoder and has no weight.
        real, segments, weights = (batch["weights"][row] > 0).tolist(), [], []
        at = 0
        for left, missing in zip(kept, [*cut[1:], []], strict=True):
            segments += real[at : at + len(left)]
            at += len(left)
            if missing:
                segments.append(real[at])
                weights += [real[at], *real[at : at + len(missing)]]
                at += len(missing)
        assert made["memory_segments"][row].tolist() == segments
        assert made["weights"][row].tolist() == [*weights, weights[-1]]


def test_spans_are_where_t5_puts_them_on_average():
    """T5's random_spans_noise_mask in loops: both kinds of spans are random partitions, the first is kept."""
    batch, rng = stream_rows(3000, 40), np.random.default_rng(5)
    denoiser = SpanCorruption(rate=0.3, mean_span=3.0).build(Numbers(), 40)
    cut = denoiser._cut(draws(batch))[0]

    def partition(total, parts):
        first = np.arange(total - 1) < parts - 1
        rng.shuffle(first)
        return np.bincount(np.cumsum(np.concatenate([[0], first])), minlength=parts)

    expected = np.zeros(40)
    for _ in range(3000):
        lengths = np.stack([partition(28, 4), partition(12, 4)], axis=1).reshape(-1)
        expected += np.repeat([0, 1] * 4, lengths)
    assert (cut.sum(axis=1) == 12).all()
    np.testing.assert_allclose(cut.mean(axis=0), expected / 3000, atol=0.04)


def test_one_span_at_the_end_is_a_prefix_lm():
    batch = stream_rows(3, 20)
    made = SpanCorruption(rate=0.25, mean_span=None).build(Numbers(), 20)(batch, draws(batch))
    sentinel = np.full((3, 1), VOCAB)
    np.testing.assert_array_equal(made["memory_tokens"], np.concatenate([batch["targets"][:, :15], sentinel], axis=1))
    np.testing.assert_array_equal(made["targets"][:, :-1], np.concatenate([sentinel, batch["targets"][:, 15:]], axis=1))


@settings(max_examples=40, deadline=None)
@given(batch=rows(packed=False, longest=80), seed=st.integers(0, 9))
def test_the_text_comes_back_from_a_mixture(batch, seed):
    config, T = UL2(), batch["targets"].shape[1]
    denoiser = config.build(Numbers(), T)
    made = denoiser(batch, draws(batch, seed))
    np.testing.assert_array_equal(denoiser.invert(made), batch["targets"])
    which = denoiser.which(draws(batch, seed))
    for row, number in enumerate(which.tolist()):
        part = config.denoisers[number]
        one = part.build(Numbers(), T)(
            {name: value[row : row + 1] for name, value in batch.items()}, draws({"targets": [0]}, seed, first=row)
        )
        memory, length = one["memory_tokens"].shape[1], one["tokens"].shape[1]
        mode = VOCAB + 100 + "RSX".index(part.mode)
        assert made["memory_tokens"][row].tolist() == [
            mode,
            *one["memory_tokens"][0],
            *[mode] * (config.memory_length(T) - 1 - memory),
        ]
        assert made["memory_segments"][row, 0] == 1 and not made["memory_segments"][row, 1 + memory :].any()
        np.testing.assert_array_equal(made["targets"][row, :length], one["targets"][0])
        assert not made["weights"][row, length:].any()


def test_a_mixture_draws_its_denoisers_alike():
    batch = stream_rows(7000, 12)
    which = UL2().build(Numbers(), 12).which(draws(batch))
    np.testing.assert_allclose(np.bincount(which) / 7000, 1 / 7, atol=0.015)
    assert [denoiser.mode for denoiser in UL2().denoisers] == list("RRSXXXX")


@pytest.mark.parametrize("config", [SpanCorruption(), UL2()])
def test_a_prompt_is_a_text_whose_end_is_missing(config):
    tokenizer = Characters().train(["abcde"])
    ids, batch = config.prompts(tokenizer, ["abc", "d"])
    sentinel = tokenizer.vocab_size
    assert ids == [[tokenizer.eos, sentinel]] * 2
    first = [] if isinstance(config, SpanCorruption) else [config.mode_token("S", sentinel)]
    expected = [[*first, *tokenizer.encode(text).tolist(), sentinel] for text in ("abc", "d")]
    real = batch["memory_segments"].sum(axis=1)
    assert [row[:n].tolist() for row, n in zip(batch["memory_tokens"], real, strict=True)] == expected


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: validate_tree(SpanCorruption(rate=0.0)), "rate=0.0 must be between 0 and 1"),
        (lambda: validate_tree(SpanCorruption(mean_span=0.5)), "mean_span=0.5 at least 1"),
        (lambda: validate_tree(UL2(denoisers=())), "denoisers is empty"),
        (lambda: SpanCorruption().row_length(1), "length=1 has no span"),
        (lambda: SpanCorruption(sentinels=5).row_length(512), "26 spans in a row of length=512 need as many sentinels, not 5"),
        (lambda: UL2().check(documents=True), "takes a row for one text"),
    ],
)
def test_mistakes_are_named(act, message):
    with pytest.raises(ConfigError, match=message):
        act()
