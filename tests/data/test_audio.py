"""Speech data: transcripts, splits, and every policy for files that are not as they should be."""

import dataclasses

import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.audio import NameTranscripts, SpeechData, SpeechFiles, TableTranscripts
from lm_jax.data.sources import Counts
from lm_jax.data.splits import NamedSplit
from lm_jax.data.tokenizers import Characters
from tests.data.test_wav import write_wav

RNG = np.random.default_rng(0)
BY_NAME = NameTranscripts(pattern=r"^(\w)_", words=(("1", "one"), ("2", "two")))


def noise(number):
    return RNG.uniform(-0.5, 0.5, number)


def recordings(folder, takes=4):
    for digit in (1, 2):
        for take in range(takes):
            write_wav(folder / f"{digit}_ann_{take}.wav", noise(30 + 10 * take))
    return SpeechFiles(paths=(f"{folder}/*.wav",), transcripts=BY_NAME, rate=8000)


def speech(files, **more):
    split = NamedSplit(pattern=r"_(\d+)\.wav$", validation=("1",), test=("0",))
    return SpeechData(**({"train": files, "split": split, "tokenizer": Characters(), "length": 5, "samples": (40, 80)} | more))


def test_batches_hold_sound_and_transcript(tmp_path):
    config = speech(recordings(tmp_path), batch_size=2)
    validate_tree(config)
    data = config.prepare()
    assert data.references("test") == ["one", "two"] and data.references("validation") == ["one", "two"]
    assert [u.name for u in data.utterances["train"]] == ["1_ann_2.wav", "1_ann_3.wav", "2_ann_2.wav", "2_ann_3.wav"]
    assert data.vocab_size == 6 and data.num_bytes("train") == 12  # e n o t w, and the end
    assert "train: 4 utterances" in data.describe()
    batch = data.train_loader()(0)
    assert batch["waves"].shape == (2, 80) and batch["tokens"].shape == (2, 5)
    ((numbers, batch),) = data.numbered_batches("test")
    assert numbers == [0, 1] and batch["waves"].shape == (2, 40) and batch["samples"].tolist() == [30, 30]
    eos = data.tokenizer.eos
    for row, word in enumerate(("one", "two")):
        ids = data.tokenizer.encode(word).tolist()
        assert batch["tokens"][row].tolist() == [eos, *ids, 0] and batch["targets"][row].tolist() == [*ids, eos, 0]
        assert batch["weights"][row].tolist() == [1, 1, 1, 1, 0]
        file = np.round(data.utterances["test"][row].samples * 2**15)
        np.testing.assert_array_equal(np.round(batch["waves"][row, :30] * 2**15), file)
    with pytest.raises(DataError, match="there is no split 'tset'; did you mean 'test'"):
        data.references("tset")


def test_a_path_is_a_prompt(tmp_path):
    config = speech(recordings(tmp_path))
    data = config.prepare()
    prompts, inputs = config.prompts(data.tokenizer, [str(tmp_path / "1_ann_0.wav"), str(tmp_path / "2_ann_3.wav")])
    assert prompts == [[0], [0]] and inputs["samples"].tolist() == [30, 60] and inputs["waves"].shape == (2, 60)
    assert inputs["waves"][0, :30].any() and not inputs["waves"][0, 30:].any()


def test_transcripts_from_a_table(tmp_path):
    table = tmp_path / "words.tsv"
    files = dataclasses.replace(recordings(tmp_path, takes=1), transcripts=TableTranscripts(path=str(table)))
    table.write_text('clips/1_ann_0.wav\tsaid "one"\r\n\n2_ann_0.wav\t two\tor  three\n')
    assert [u.text for u in files.read(counts())] == ['said "one"', "two or three"]
    table.write_text("1_ann_0.wav\tone\n")
    with pytest.raises(DataError, match=r"words.tsv has no line for 2_ann_0.wav"):
        list(files.read(counts()))
    table.write_text("1_ann_0.wav\tone\n2_ann_0.wav\ttwo\nx/1_ann_0.wav\tone\n")
    with pytest.raises(DataError, match=r"words.tsv has two lines for 1_ann_0.wav"):
        list(files.read(counts()))


def counts() -> Counts:

    return Counts()


def bad_files(folder):
    """One of each: what names the policy, the file and the message."""
    (folder / "1_corrupt_3.wav").write_bytes(b"RIFF what is this")
    write_wav(folder / "1_other_rate_3.wav", noise(100), rate=16000)
    write_wav(folder / "1_silent_3.wav", np.full(40, 0.25))
    write_wav(folder / "__empty_3.wav", noise(40))
    return {
        "corrupt": "1_corrupt_3.wav cannot be read as a WAV file",
        "other_rate": "1_other_rate_3.wav has 16000 samples a second, not rate=8000",
        "silent": "1_silent_3.wav is silent: all its samples are 0.25",
        "empty": "__empty_3.wav has no transcript",
    }


def test_every_policy(tmp_path):
    files = recordings(tmp_path)
    messages = bad_files(tmp_path)
    files.transcripts = dataclasses.replace(BY_NAME, words=(*BY_NAME.words, ("_", " ")))
    skip = dict.fromkeys(messages, "skip")
    for policy, message in messages.items():
        refusing = speech(dataclasses.replace(files, **(skip | {policy: "error"})))
        with pytest.raises(DataError, match=rf"{message}.*; mend or remove it, or set {policy}='"):
            refusing.prepare()
    skipped = speech(dataclasses.replace(files, **skip)).prepare()
    assert skipped.record == {f"files skipped: {policy}": 1 for policy in messages} | {"files mixed down to one channel": 0}
    assert len(skipped.utterances["train"]) == 4
    assert "files skipped: corrupt: 1" in skipped.describe()
    kept = speech(dataclasses.replace(files, **(skip | {"other_rate": "resample", "silent": "keep"}))).prepare()
    assert kept.record["files resampled"] == kept.record["silent files kept"] == 1
    assert {u.name: len(u.samples) for u in kept.utterances["train"]}["1_other_rate_3.wav"] == 50


def test_what_is_too_long_is_refused_or_left_out(tmp_path):
    files = recordings(tmp_path)
    with pytest.raises(DataError, match=r"1_ann_3.wav does not fit a row: 60 > samples 50; raise that, or set long='skip'"):
        speech(files, samples=(40, 50)).prepare()
    with pytest.raises(DataError, match=r"1_ann_\d.wav does not fit a row: 4 > length 3"):
        speech(files, length=3).prepare()
    left = speech(files, samples=(40, 50), long="skip").prepare()
    assert left.record["utterances skipped: too long"] == 2 and len(left.utterances["train"]) == 2
    with pytest.raises(DataError, match="no utterance of train is short enough"):
        speech(files, length=3, long="skip").prepare()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": (80, 40)}, "ascending"),
        ({"long": "cut"}, "long='cut'"),
        ({"split": NamedSplit(pattern=r"_\d")}, "0 groups"),
        ({"split": NamedSplit(pattern="(")}, "no regular expression"),
        ({"split": NamedSplit(pattern="(.)", validation=("1",), test=("1",))}, "both validation and test"),
        ({"test": SpeechFiles(paths=("x",), transcripts=BY_NAME, rate=16000)}, r"different rates: \[8000, 16000\]"),
    ],
)
def test_bad_values_are_named(change, message):
    files = SpeechFiles(paths=("x",), transcripts=BY_NAME, rate=8000)
    with pytest.raises(ConfigError, match=message):
        validate_tree(speech(files, **change))


def test_names_without_transcript_or_split_are_named(tmp_path):
    files = recordings(tmp_path)
    write_wav(tmp_path / "strange.wav", noise(30))
    with pytest.raises(DataError, match=r"finds nothing in the name of .*strange.wav"):
        speech(files).prepare()
    files.transcripts = NameTranscripts(pattern="(bye)?.wav")
    with pytest.raises(DataError, match=r"transcripts.pattern='\(bye\)\?.wav' finds nothing in the name of"):
        speech(files).prepare()
    files.transcripts = NameTranscripts(pattern="^(.)")
    with pytest.raises(DataError, match=r"split.pattern=.* finds nothing in the name 'strange.wav'"):
        speech(files).prepare()


def test_silence_is_silent_at_any_rate(tmp_path):
    write_wav(tmp_path / "1_a_0.wav", np.full(400, 0.25), rate=16000)
    files = SpeechFiles(paths=(f"{tmp_path}/*.wav",), transcripts=BY_NAME, rate=8000, other_rate="resample")
    with pytest.raises(DataError, match=r"1_a_0.wav is silent: all its samples are 0.25"):
        list(files.read(counts()))


def test_a_line_of_a_table_is_of_one_recording(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_wav(tmp_path / folder / "1.wav", noise(30))
    (tmp_path / "words.tsv").write_text("a/1.wav\thello\n")
    table = TableTranscripts(path=str(tmp_path / "words.tsv"))
    with pytest.raises(DataError, match=r"a/1.wav and .*b/1.wav have one name, and .*words.tsv a line for it"):
        list(SpeechFiles(paths=(f"{tmp_path}/**/*.wav",), transcripts=table, rate=8000).read(counts()))
