"""Models of speech: padding, dropout, and an encoder-decoder that hears."""

import dataclasses

import jax
import numpy as np
import pytest

from lm_jax.config import Experiment
from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.data.audio import NameTranscripts, SpeechData, SpeechFiles
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.transcription import TranscriptionConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.models.speech_encoder import SpeechEncoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.frontend import AudioConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.log_mel import LogMelConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.spec_augment import SpecAugmentConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.ctc import CTCConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.adamw import AdamW
from tests.models_for_tests import LOUD

KEY, BLANK, VOCAB = jax.random.key(0), 0, 6
SPECTROGRAM = LogMelConfig(rate=8000, window=50, hop=20, fft=64, mels=12, pad="zeros", normalise="bins")
AUGMENT = SpecAugmentConfig(frequency_masks=1, frequency_width=3, time_masks=1, time_width=3)


def source():
    return AudioConfig(mels=12, length=20, log_mel=dataclasses.replace(SPECTROGRAM), augment=dataclasses.replace(AUGMENT))


def layers(mixer, **more):
    return StackConfig(pattern=(BlockConfig(mixer=mixer, feed_forward=MLPConfig(hidden=24), dropout=0.1, **more),), repeats=1)


def encoder(mixer=None, **more):
    mixer = mixer or AttentionConfig(num_heads=2, rotary=RotaryConfig(), causal=False)
    fields = {"vocab_size": VOCAB, "width": 16, "source": source(), "encoder": layers(mixer), "init": dataclasses.replace(LOUD)}
    return SpeechEncoderConfig(**(fields | more))


def writer():
    """An encoder-decoder."""
    decoder = layers(AttentionConfig(num_heads=2, rotary=RotaryConfig()), cross=AttentionConfig(num_heads=2, causal=False))
    fields = {"vocab_size": VOCAB, "width": 16, "source": source(), "encoder": encoder().encoder, "stack": decoder}
    return EncoderDecoderConfig(**fields, init=dataclasses.replace(LOUD))


def spoken():
    """8 rows: of the second the sound is too short for its transcript, the last is padding."""
    rng = np.random.default_rng(0)
    samples = np.array([400, 100, 240, 360, 400, 300, 280, 0], np.int32)
    waves = rng.normal(size=(8, 400)).astype(np.float32) * (np.arange(400)[None] < samples[:, None])
    lengths = np.array([3, 4, 1, 3, 2, 3, 2, -1])  # of the transcripts, without their end
    targets = rng.integers(1, VOCAB, (8, 8)).astype(np.int32) * (np.arange(8)[None] < lengths[:, None])
    weights = (np.arange(8)[None] <= lengths[:, None]).astype(np.float32)
    tokens = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return {"waves": waves, "samples": samples, "tokens": tokens, "targets": targets, "weights": weights}


MIXERS = {"attention": None, "lstm": RecurrentConfig(direction="both", size=8)}


@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_nothing(mixer):
    model, batch = encoder(MIXERS[mixer]).build(KEY), spoken()
    score = jax.jit(lambda batch: model.logits(model(batch).hidden))
    together = np.asarray(score(batch))
    assert together.shape == (8, 10, VOCAB) and np.isfinite(together).all()
    for row in (1, 3):
        size = batch["samples"][row]
        alone = np.asarray(score({"waves": batch["waves"][row : row + 1, :size], "samples": batch["samples"][row : row + 1]}))
        assert alone.shape[1] == -(-size // 40)
        np.testing.assert_allclose(together[row, : alone.shape[1]], alone[0], atol=2e-4)


def test_an_encoder_decoder_sees_no_padding():
    model, batch = writer().build(KEY), spoken()
    score = jax.jit(lambda batch: model.logits(model(batch).hidden))
    together, more = np.asarray(score(batch)), batch | {"waves": np.pad(batch["waves"], ((0, 0), (0, 400)))}
    np.testing.assert_allclose(np.asarray(score(more))[:7], together[:7], atol=2e-4)
    louder = batch | {"waves": batch["waves"].copy()}
    louder["waves"][0, 390] += 5  # what is heard does matter
    assert np.abs(np.asarray(score(louder))[0] - together[0]).max() > 1e-3


def test_a_key_means_training():
    model, batch = encoder(dropout=0.5).build(KEY), spoken()
    run = jax.jit(lambda batch, key: model(batch, key=key).hidden)
    still, moved = np.asarray(run(batch, None)), np.asarray(run(batch, KEY))
    np.testing.assert_array_equal(run(batch, KEY), moved)
    assert np.abs(still - moved)[:7].max() > 0.1 and np.isfinite(moved).all()


def test_bad_values_are_named():
    for more, message in (
        ({"head": HeadConfig()}, "head.tied=True must be False"),
        ({"blank": VOCAB}, f"blank={VOCAB} is not in the vocabulary"),
        ({"dropout": 1.0}, r"dropout=1.0 in \[0, 1\)"),
        ({"encoder": layers(AttentionConfig(num_heads=2), cross=AttentionConfig(num_heads=2))}, "nothing to attend to"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(encoder(**more))


def test_a_run_is_of_parts_that_fit():
    files = SpeechFiles(paths=("x",), transcripts=NameTranscripts(pattern="(.)"), rate=8000)
    fields = {
        "data": SpeechData(train=files, tokenizer=Characters(), length=8, samples=(400,)),
        "model": encoder(),
        "objective": CTCConfig(),
        "optimizer": AdamW(),
        "evals": (TranscriptionConfig(),),
        "samples": None,
    }
    validate_tree(Experiment(**fields))
    validate_tree(Experiment(**(fields | {"model": writer(), "objective": LMConfig()})))
    for more, message in (
        ({"objective": LMConfig()}, "a SpeechEncoderConfig predicts transcripts"),
        ({"model": writer()}, "a CTCConfig is for transcripts"),
        (
            {"model": encoder(source=AudioConfig(mels=12, length=20))},
            "reads mels, and a SpeechData has tokens, waves",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(Experiment(**(fields | more)))
