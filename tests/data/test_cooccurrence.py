"""Counts of pairs of words: against loops, and as a pure function of the step."""

import collections
import itertools

import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.cooccurrence import Cooccurrences
from lm_jax.data.sources import TextFiles
from lm_jax.data.store import Corpus
from lm_jax.data.tokenizers import Words


def config(folder, **more):
    return Cooccurrences(
        corpora=(Corpus(name="words", source=TextFiles(paths=(f"{folder}/*.txt",))),),
        tokenizer=Words(min_count=2, lowercase=True),
        cache_dir=str(folder / "cache"),
        num_workers=1,
        **({"length": 4, "batch_size": 3, "window": 3} | more),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three documents of few words, with signs, and words that occur once."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    for number in range(3):
        words = [f"w{rank}" for rank in rng.integers(0, 9, 40 + number)]
        words[5] = f"once{number}"
        (folder / f"{number}.txt").write_text(" , ".join(words[:20]) + " " + "\n".join(words[20:]))
    return folder


def by_loops(folder, window):
    """{(word, context): count} from the texts themselves, in float64."""
    texts = [path.read_text().replace(",", " ").split() for path in sorted(folder.glob("*.txt"))]
    known = {word for word, count in collections.Counter(itertools.chain(*texts)).items() if count > 1}
    counts = collections.Counter()
    for text in ([word for word in text if word in known] for text in texts):
        for i, word in enumerate(text):
            for j in range(max(0, i - window), min(len(text), i + window + 1)):
                if i != j:
                    counts[word, text[j]] += 1 / abs(i - j)
    return counts


@pytest.mark.parametrize("window", [1, 3])
def test_an_epoch_has_every_pair_once_with_its_count(folder, window):
    expected = by_loops(folder, window)
    data = config(folder, window=window, length=1, batch_size=len(expected)).prepare()
    loader, decode = data.train_loader(), data.tokenizer.decode
    for epoch in (0, 1):
        batch = loader(epoch)
        columns = (batch[name].ravel().tolist() for name in ("tokens", "contexts", "counts"))
        found = {(decode([a]), decode([b])): count for a, b, count in zip(*columns, strict=True)}
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, rel=1e-5)
    assert not np.array_equal(loader(0)["tokens"], loader(1)["tokens"])


def test_a_batch_is_a_function_of_the_step_and_processes_share_it(folder):
    data = config(folder).prepare()
    loader, again = data.train_loader(), data.train_loader()
    later = [again(step) for step in (9, 3)]
    halves = [data.train_loader(rows)(3) for rows in (slice(0, 1), slice(1, 3))]
    shapes = config(folder).shapes()
    for name, value in loader(3).items():
        assert (value.shape, value.dtype) == (shapes[name].shape, shapes[name].dtype)
        np.testing.assert_array_equal(value, later[1][name])
        np.testing.assert_array_equal(value, np.concatenate([half[name] for half in halves]))
    assert loader.documents(3) == [["pairs of all 3 documents"]] * 3
    other = config(folder, seed=1).prepare().train_loader()
    assert other.fingerprint != loader.fingerprint and not np.array_equal(other(3)["tokens"], loader(3)["tokens"])


def test_bad_input_is_named(folder):
    with pytest.raises(ConfigError, match="window=0"):
        validate_tree(config(folder, window=0))
    with pytest.raises(DataError, match="fewer than one batch of batch_size=9999 rows of length=4"):
        config(folder, batch_size=9999).prepare().train_loader()
    with pytest.raises(ConfigError, match="not evaluated on batches"):
        config(folder).prepare().eval_batches("train")
