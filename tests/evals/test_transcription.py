"""Error rates against jiwer, and evaluations of both kinds of models, on a mesh and on one device."""

import base64
import collections
import dataclasses
import random

import jax
import numpy as np
import pytest

from lm_jax import run
from lm_jax.config import Experiment
from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, shard_batch, use_mesh
from lm_jax.data.audio import NameTranscripts, SpeechData, SpeechFiles
from lm_jax.data.splits import NamedSplit
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.base import Shown
from lm_jax.evals.transcription import TranscriptionConfig, edit_distance, error_rates
from lm_jax.objectives.ctc import CTCConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.trainer import TrainConfig
from lm_jax.trained import evaluate
from tests.core.test_png import read
from tests.data.test_wav import write_wav
from tests.models.test_speech_encoder import encoder, writer
from tests.runs import evals

KEY = jax.random.key(0)


def sentences(seed, number):
    r = random.Random(seed)
    return [" ".join(r.choices(["a", "bb", "abc", "cab", "b"], k=r.randint(1, 6))) for _ in range(number)]


def test_distances_are_those_of_a_table():
    r = random.Random(0)
    for _ in range(60):
        a, b = ("".join(r.choices("abc", k=r.randint(0, 7))) for _ in range(2))
        table = {}
        for i in range(len(a) + 1):
            for j in range(len(b) + 1):
                ways = [table[i - 1, j] + 1] if i else []
                ways += [table[i, j - 1] + 1] if j else []
                ways += [table[i - 1, j - 1] + (a[i - 1] != b[j - 1])] if i and j else []
                table[i, j] = min(ways, default=0)
        assert edit_distance(a, b) == table[len(a), len(b)]


def test_rates_are_those_of_jiwer():
    jiwer = pytest.importorskip("jiwer")
    references, texts = sentences(1, 50), [*sentences(2, 48), "", "a bb"]
    found = dict(error_rates(references, texts))
    assert found["word_error_rate"] == pytest.approx(jiwer.wer(references, texts))
    assert found["character_error_rate"] == pytest.approx(jiwer.cer(references, texts))
    wrong = sum(a != b for a, b in zip(references, texts, strict=True)) / 50
    assert found["utterance_error_rate"] == wrong and found["num_utterances"] == 50
    with pytest.raises(ConfigError, match="no transcript"):
        dict(error_rates([], []))


TONES = {"a": 500, "b": 1000, "c": 1700, "d": 2700, "e": 3500}


def tones(folder, number, seed=0):
    """Recordings of words of 1 to 3 letters, each letter a tone of 10 ms, with pauses between and noise."""
    rng, r = np.random.default_rng(seed), random.Random(seed)
    for i in range(number):
        word = "".join(r.choices("abcde", k=r.randint(1, 3)))
        pieces = [np.zeros(40)]
        for letter in word:
            t = np.arange(r.randint(70, 90)) / 8000
            pieces += [0.5 * np.sin(2 * np.pi * TONES[letter] * t + r.random()), np.zeros(r.randint(20, 40))]
        x = np.concatenate(pieces)
        write_wav(folder / f"{word}_{i}.wav", np.clip(x + 0.01 * rng.normal(size=len(x)), -1, 1))
    files = SpeechFiles(paths=(f"{folder}/*.wav",), transcripts=NameTranscripts(pattern="^([a-e]+)_"), rate=8000)
    split = NamedSplit(pattern=r"(\d)\.wav$", validation=("0",))
    return SpeechData(train=files, split=split, tokenizer=Characters(), length=8, samples=(480,), batch_size=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tones(tmp_path_factory.mktemp("tones"), 110).prepare()


def same(batch):
    return batch


@pytest.mark.parametrize(("kind", "beam"), [("ctc", 1), ("ctc", 4), ("seq2seq", 1)])
def test_a_split_is_scored_once_on_any_mesh(data, kind, beam):
    model = encoder() if kind == "ctc" else writer()
    model.source.augment = None
    config = TranscriptionConfig(beam=beam, batch_size=8, shown=2)
    found = list(config.scores(*split(model.build(KEY)), data, same, slice(None)))
    scores, shown = dict(x for x in found if not isinstance(x, Shown)), [x for x in found if isinstance(x, Shown)]
    assert scores["num_utterances"] == len(data.references("validation")) == 11
    assert [x.fields["reference"] for x in shown] == data.references("validation")[:2]
    assert shown[0].prompt == data.utterances["validation"][0].name
    picture = read(base64.b64decode(shown[0].fields["image"].split(",")[1]))
    assert picture.shape[0] == 12 and picture.min() == 0 and picture.max() == 255
    mesh, layout = MeshShape(dp=1, fsdp=2, cp=2, tp=2).build(), Layout()
    with use_mesh(mesh, layout):
        graph, params = split(jax.jit(model.build)(KEY))
        again = list(config.scores(graph, params, data, lambda batch: shard_batch(batch, mesh, layout, 8), slice(None)))
    assert again == found


def test_blanks_at_the_ends_do_not_count(data, monkeypatch):
    """As in jiwer."""
    right = list(enumerate(f" {text} " for text in data.references("validation")))
    monkeypatch.setattr(TranscriptionConfig, "_by_frames", lambda *_: [tuple(zip(*right, strict=True))])
    scores = TranscriptionConfig(shown=0).scores(*split(encoder().build(KEY)), data, same, slice(None))
    assert {name: value for name, value in scores if name.endswith("rate")} == dict.fromkeys(
        ("word_error_rate", "character_error_rate", "utterance_error_rate"), 0.0
    )


def test_a_blank_that_transcripts_hold_is_refused(data):
    with pytest.raises(ConfigError, match=r"model.blank=1 may stand in transcripts; set --config.model.blank=0"):
        encoder(blank=1).check_end(data.tokenizer.eos, data.tokenizer.vocab_size)
    encoder(blank=data.tokenizer.eos).check_end(data.tokenizer.eos, data.tokenizer.vocab_size)


@pytest.mark.slow
def test_tones_are_learned(tmp_path):
    (tmp_path / "wav").mkdir()
    model = encoder(width=32)
    model.source.augment = None
    config = Experiment(
        data=dataclasses.replace(tones(tmp_path / "wav", 400), batch_size=16),
        model=model,
        objective=CTCConfig(),
        optimizer=AdamW(learning_rate=3e-3),
        train=TrainConfig(num_steps=250, log_every=50),
        checkpoint=CheckpointConfig(every=0),
        evals=(TranscriptionConfig(batch_size=16),),
        samples=None,
    )
    validate_tree(config)
    assert run.train(config, tmp_path / "run") == 0
    row = evals(tmp_path / "run")[250]
    assert row["word_error_rate"] < 0.15 and row["character_error_rate"] < 0.08
    ((_, scores),) = evaluate(tmp_path / "run")
    assert scores == {name: row[name] for name in scores}
    assert "data:image/png;base64," in (tmp_path / "run" / "report.html").read_text()
    words = collections.Counter(path.name.split("_")[0] for path in (tmp_path / "wav").glob("*.wav"))
    assert len(words) > 50  # it is no choice among few
