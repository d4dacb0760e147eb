"""The store of record: tokenised documents as a TFDS ArrayRecord dataset, written and read without TensorFlow."""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

BLOCK_TOKENS = 1 << 20

# Pieces of documents: (name, or None where the piece continues the document before it; tokens [n])
Pieces = Iterable[tuple[str | None, np.ndarray]]


class _TokenBlocks(tfds.core.GeneratorBasedBuilder):
    """Records of up to BLOCK_TOKENS tokens: the pieces' tokens one after the other, their lengths, their names as JSON."""

    VERSION = tfds.core.Version("1.0.0")
    name = "token_blocks"

    def __init__(self, splits: dict[str, Pieces], dtype: Any, **kwargs: Any):
        self._splits, self._dtype = splits, dtype
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "tokens": tfds.features.Tensor(shape=(None,), dtype=self._dtype, encoding=tfds.features.Encoding.BYTES),
                "lengths": tfds.features.Tensor(shape=(None,), dtype=np.int64),
                "names": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(pieces) for split, pieces in self._splits.items()}

    def _generate_examples(self, pieces: Pieces) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, block in enumerate(_group(pieces)):
            tokens = np.concatenate([piece for _, piece in block]).astype(self._dtype)
            lengths = np.array([len(piece) for _, piece in block], np.int64)
            names = json.dumps([name for name, _ in block], ensure_ascii=False)
            yield number, {"tokens": tokens, "lengths": lengths, "names": names}


def _group(pieces: Pieces) -> Iterator[list[tuple[str | None, np.ndarray]]]:
    """Pieces in lists of at most BLOCK_TOKENS tokens; a longer piece is cut."""
    block: list[tuple[str | None, np.ndarray]] = []
    room = BLOCK_TOKENS
    for name, tokens in pieces:
        while len(tokens) or name is not None:
            if room == 0:
                yield block
                block, room = [], BLOCK_TOKENS
            part, tokens = tokens[:room], tokens[room:]
            block.append((name, part))
            room -= len(part)
            name = None
    if block:
        yield block


def write(folder: Path, splits: dict[str, Pieces], dtype: Any) -> None:
    """Writes the splits below `folder`. The same pieces give the same bytes."""
    tfds.disable_progress_bar()
    builder = _TokenBlocks(splits, dtype, data_dir=str(folder), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it downloads
        builder.download_and_prepare()


def read(folder: Path, split: str) -> Iterator[tuple[list[str | None], np.ndarray, np.ndarray]]:
    """Yields (names, lengths, tokens) of each record of a split, in order."""
    builder = tfds.builder_from_directory(str(folder / "token_blocks" / "1.0.0"))
    for row in builder.as_data_source(split=split):
        yield json.loads(row["names"]), row["lengths"], row["tokens"]
