"""The token cache: what goes in comes out, whole or not at all."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from lm_jax.core.errors import DataError, StorageError
from lm_jax.data import blocks
from lm_jax.data.audit import audit
from lm_jax.data.sources import TextFiles
from lm_jax.data.splits import HashSplit, TailFraction
from lm_jax.data.store import Corpus, prepare
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import BPE, Bytes, Characters, Words


def corpus(folder, texts, name="c", split=None, document="file"):
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:03d}.txt").write_text(text, encoding="utf8")
    return Corpus(
        name=name,
        source=TextFiles(paths=(str(folder),), document=document),
        split=split or TailFraction(validation=0.2),
    )


TEXTS = ["alpha beta gamma " * 9, "静夜思 " * 30, "x"]


def test_tokens_offsets_names_and_bytes(tmp_path):
    prepared = prepare([corpus(tmp_path / "t", TEXTS)], Bytes(), tmp_path / "cache")
    stores, eos = prepared.corpora["c"], prepared.tokenizer.eos
    expected = {"train": [], "validation": []}
    for text in TEXTS:
        cut = int(len(text) * 0.8)
        for split, part in (("train", text[:cut]), ("validation", text[cut:])):
            expected[split] += [part] if part else []
    for split, parts in expected.items():
        store = stores[split]
        assert store.offsets[-1] == len(store.tokens) and store.num_bytes == sum(len(p.encode()) for p in parts)
        for i, part in enumerate(parts):
            document = store.tokens[store.offsets[i] : store.offsets[i + 1]].tolist()
            assert document == [*part.encode(), eos]
    assert [stores["train"].names(i) for i in range(2)] == ["000.txt", "001.txt"]
    facts = prepared.record["corpora"]["c"]["splits"]["train"]
    assert facts["documents"] == 2 and facts["tokens"] == len(stores["train"].tokens)


def test_the_second_time_nothing_is_made_and_a_change_is_seen(tmp_path, monkeypatch):
    source = corpus(tmp_path / "t", TEXTS[:2])
    first = prepare([source], Characters(), tmp_path / "cache")
    monkeypatch.setattr(blocks, "write", lambda *a: pytest.fail("made again"))
    again = prepare([source], Characters(), tmp_path / "cache")
    assert again.corpora["c"]["train"].fingerprint == first.corpora["c"]["train"].fingerprint
    monkeypatch.undo()
    (tmp_path / "t" / "000.txt").write_text("other text altogether")
    changed = prepare([source], Characters(), tmp_path / "cache")
    assert changed.corpora["c"]["train"].fingerprint != first.corpora["c"]["train"].fingerprint
    assert prepare([source], Bytes(), tmp_path / "cache").tokenizer.vocab_size == 257


def test_a_file_that_moves_from_one_split_to_another_is_seen(tmp_path):
    files = [str(file) for file in corpus(tmp_path / "t", TEXTS).source.files()]
    source = lambda *which: TextFiles(paths=tuple(files[i] for i in which))  # noqa: E731
    first = Corpus(name="c", source=source(0, 1), validation=source(2))
    second = Corpus(name="c", source=source(0), validation=source(1, 2))
    for given, numbers in ((first, (2, 1)), (second, (1, 2))):
        stores = prepare([given], Bytes(), tmp_path / "cache").corpora["c"]
        assert (len(stores["train"].offsets) - 1, len(stores["validation"].offsets) - 1) == numbers


def test_documents_longer_than_a_record_come_back_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_TOKENS", 100)
    texts = ["a" * 350, "b", "c" * 99, "d" * 200]
    prepared = prepare([corpus(tmp_path / "t", texts, split=HashSplit(validation=0.0))], Bytes(), tmp_path / "cache")
    store = prepared.corpora["c"]["train"]
    assert np.diff(store.offsets).tolist() == [len(t) + 1 for t in texts]
    assert bytes(t for t in store.tokens.tolist() if t < 256).decode() == "".join(texts)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_store(tmp_path, monkeypatch):
    from lm_jax.data import workers

    monkeypatch.setattr(workers, "_SMALL", 0)
    monkeypatch.setattr(workers, "_CHUNK", 200)
    source = corpus(tmp_path / "t", [f"document {i} " * 20 for i in range(40)], split=HashSplit(validation=0.1))
    marks = {
        n: prepare([source], Words(min_count=1), tmp_path / f"cache{n}", num_workers=n).corpora["c"]["train"].fingerprint
        for n in (1, 2, 3)
    }
    assert len(set(marks.values())) == 1


def test_one_tokenizer_for_several_corpora(tmp_path):
    a, b = corpus(tmp_path / "a", ["abab" * 20], "a"), corpus(tmp_path / "b", ["cdcd" * 20], "b")
    prepared = prepare([a, b], Characters(), tmp_path / "cache")
    assert prepared.tokenizer.vocab_size == 5 and prepared.corpora.keys() == {"a", "b"}
    data = TextData(corpora=(a, b), tokenizer=Characters(), length=8, batch_size=4, cache_dir=str(tmp_path / "cache"))
    assert any("read" in line for line in audit(data.prepare()))
    assert data.prepare().train_loader()(0)["tokens"].shape == (4, 8)


def test_a_damaged_view_is_made_again_and_a_damaged_store_is_named(tmp_path):
    source = corpus(tmp_path / "t", TEXTS)
    expected = np.array(prepare([source], Bytes(), tmp_path / "cache").corpora["c"]["train"].tokens)
    (view,) = (tmp_path / "cache").glob("*/corpus0/view/train/tokens")
    view.write_bytes(b"short")
    np.testing.assert_array_equal(prepare([source], Bytes(), tmp_path / "cache").corpora["c"]["train"].tokens, expected)
    view.unlink()
    view.write_bytes(b"x")
    (shard,) = (tmp_path / "cache").glob("*/corpus0/token_blocks/1.0.0/*train*")
    data = bytearray(shard.read_bytes())
    used = max(i for i, byte in enumerate(data[: 1 << 16]) if byte)
    for i in range(used // 4, used // 2):
        data[i] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(Exception) as error:
        prepare([source], Bytes(), tmp_path / "cache")
    assert isinstance(error.value, StorageError) or "record" in str(error.value).lower() or "hash" in str(error.value).lower()


def test_empty_and_unknown_text_is_named(tmp_path):
    with pytest.raises(DataError, match="corpus 'c' has no training text"):
        prepare([corpus(tmp_path / "t", ["  \n"])], Bytes(), tmp_path / "cache")
    source = corpus(tmp_path / "u", ["aaaaaaaaab"])
    with pytest.raises(DataError, match=r"000.txt: character 'b' at 1 is not in the vocabulary"):
        prepare([source], Characters(), tmp_path / "cache")


@pytest.mark.slow
def test_a_killed_prepare_leaves_nothing_that_is_believed(tmp_path):
    source = corpus(tmp_path / "t", ["some words to learn from " * 3000 for _ in range(30)])
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from tests.data.test_store import *
        source = Corpus(name="c", source=TextFiles(paths=({str(tmp_path / "t")!r},)), split=TailFraction(validation=0.2))
        prepare([source], BPE(vocab_size=400), Path({str(tmp_path / "cache")!r}))
        print("made")
        """
    )
    killed = 0
    for wait in (0.05, 0.15, 0.3, 0.5):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
        while not (tmp_path / "cache").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -9
    assert killed >= 2
    prepared = prepare([source], BPE(vocab_size=400), tmp_path / "cache")
    fresh = prepare([source], BPE(vocab_size=400), tmp_path / "other")
    assert prepared.corpora["c"]["train"].fingerprint == fresh.corpora["c"]["train"].fingerprint
    assert not list((tmp_path / "cache").glob(".tmp-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="cache"):
        prepare([corpus(tmp_path / "t", TEXTS)], Bytes(), tmp_path / "cache")
