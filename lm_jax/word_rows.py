"""Embedding tables that begin with the vectors of words: of another run, or of a file."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.core.errors import ConfigError, DataError, StorageError
from lm_jax.core.param import Params
from lm_jax.data.tokenizers import Tokenizer
from lm_jax.parts import replaced
from lm_jax.train.checkpoint import CheckpointConfig, Checkpoints

_TABLES = (("embedding", "table"), ("source", "table"))  # what models read words by


@dataclasses.dataclass(frozen=True)
class WordRows:
    """Rows of the embedding tables of a model.

    Attributes:
      source: where they are from.
      tables: the paths of the tables that begin with them.
      ids: int32 [n], the tokens whose rows they are.
      rows: float32 [n, width].
      num_tokens: how many tokens there are in all.
    """

    source: str
    tables: list[tuple[str, str]]
    ids: np.ndarray
    rows: np.ndarray
    num_tokens: int

    def __str__(self) -> str:
        names = ", ".join("/".join(path) for path in self.tables)
        return f"{names}: {len(self.ids):,} of {self.num_tokens:,} tokens begin with their vectors in {self.source}"

    @property
    def checksum(self) -> int:
        """CRC-32 of which rows there are, and of their numbers."""
        return zlib.crc32(self.rows.tobytes(), zlib.crc32(self.ids.tobytes()))

    def placed(self, like: Params) -> Params:
        """For each table (which of its numbers are given, bool; the numbers, float32), both on the sharding that `like` names."""
        placed: Params = {}
        for part, name in self.tables:
            table = like[part][name]
            given, numbers = np.zeros((table.shape[0], 1), bool), np.zeros(table.shape, np.float32)
            given[self.ids], numbers[self.ids] = True, self.rows
            place = functools.partial(jax.make_array_from_callback, table.shape, table.sharding)
            placed[part] = {name: (place(np.broadcast_to(given, table.shape).__getitem__), place(numbers.__getitem__))}
        return placed


def overlaid(params: Params, placed: Params) -> Params:
    """`params` with what `WordRows.placed` gives in place of their own numbers."""

    def over(part: str, name: str, own: jax.Array) -> jax.Array:
        given, numbers = placed[part][name]
        return jnp.where(given, numbers, own).astype(own.dtype)

    return replaced(
        params, {part: {name: over(part, name, params[part][name]) for name in names} for part, names in placed.items()}
    )


def word_rows(source: str, shapes: Params, tokenizer: Tokenizer) -> WordRows:
    """The rows that the embedding tables of a model begin with.

    A token has the vector of the same text, else of the text without white space around it, else of that in lower case; of several
    texts that are alike but for white space the one that begins a word, and of several tokens of one text the last. Where both
    tokenizers are one, it has the vector of its number. Other tokens keep what was drawn. Vectors are taken as they are, without
    scaling.

    `source` is the directory of a run whose model has an embedding table (word vectors, a language model), or a text file of a word
    and its numbers in each line, set apart by spaces, as word2vec, GloVe and fastText write it (with or without the line of counts
    before).

    Raises `StorageError` for a run without a checkpoint, `DataError` for a file that cannot be read, `ConfigError` where the
    model has no table of this width, or no token of the vocabulary has a vector.
    """
    widths = {path: shapes[path[0]][path[1]].shape[1] for path in _TABLES if path[1] in shapes.get(path[0], {})}
    texts = [_text(tokenizer, token) for token in range(tokenizer.vocab_size)]
    if Path(source).is_file():
        wanted = {form for text in texts for form in _forms(text)}
        words, vectors = _of_file(Path(source), wanted, set(widths.values()))
        same = False
    else:
        theirs, vectors = _of_run(source)
        words = [_text(theirs, token) for token in range(theirs.vocab_size)]
        same = theirs.hash == tokenizer.hash
    tables = [path for path, width in widths.items() if width == vectors.shape[1]]
    if not tables:
        here = {"/".join(path): width for path, width in widths.items()} or "no embedding table"
        raise ConfigError(f"words_from={source} has vectors of {vectors.shape[1]} numbers, and the model has {here}")
    numbers = range(tokenizer.vocab_size) if same else _matched(texts, words)
    found = {token: number for token, number in enumerate(numbers) if number is not None}
    if not found:
        raise ConfigError(f"words_from={source}: none of its words is one of the {tokenizer.vocab_size:,} tokens here")
    return WordRows(source, tables, np.array(list(found), np.int32), vectors[list(found.values())], tokenizer.vocab_size)


def _text(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token within a text, with the space before it; "" for a part of a character."""
    once, twice = tokenizer.decode([token]), tokenizer.decode([token, token])  # the first token of a text may lose its space
    return "" if "\ufffd" in twice else twice[len(once) :]


def _forms(text: str) -> list[str]:
    """What a token may be found by, the best first."""
    word = text.strip()
    return [text, word, word.lower()] if word else []


def _matched(texts: Sequence[str], words: Sequence[str]) -> list[int | None]:
    """For each text the number of the word that it has the vector of."""
    by_text = {text: number for number, text in enumerate(words)}
    within = {text.strip(): number for text, number in by_text.items() if not text.startswith(" ")}
    by_word = within | {text.strip(): number for text, number in by_text.items() if text.startswith(" ")} | by_text
    return [next((by_word[form] for form in _forms(text) if form in by_word), None) for text in texts]


def _of_run(source: str) -> tuple[Tokenizer, np.ndarray]:
    with Checkpoints(Path(source) / "checkpoints", CheckpointConfig(), read_only=True) as checkpoints:
        if checkpoints.latest() is None:
            raise StorageError(f"words_from={source} is no file, and holds no checkpoint; train that run first, or name another")
        step = checkpoints.good()
        tokenizer = Tokenizer.from_json(checkpoints.record(step)["tokenizer"])
        contents = checkpoints.contents(step)
        name = next((name for name in ("ema", "params") if f"{name}/embedding/table" in contents), None)
        if name is None:
            raise ConfigError(f"words_from={source}: its model has no embedding table")
        saved = contents[f"{name}/embedding/table"]
        like: dict[str, Any] = {name: {"embedding": {"table": jax.ShapeDtypeStruct(saved.shape, saved.dtype)}}}
        table = checkpoints.read(step, like, partial=True)[name]["embedding"]["table"]
    return tokenizer, np.asarray(table, np.float32)


def _of_file(path: Path, wanted: set[str], widths: set[int]) -> tuple[list[str], np.ndarray]:
    """The wanted words of a file and their vectors [n, width]; only the first word where its width is none of `widths`."""
    words, rows, width = [], [], None
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip(" \r\n").split(" ")
                if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                    width = int(fields[1])
                    continue
                width = len(fields) - 1 if width is None else width
                word, values = " ".join(fields[:-width]), fields[-width:]
                if not word or len(values) != width:
                    raise DataError(f"{path}:{number} is no word and {width or 'some'} numbers, set apart by spaces: {line[:60]!r}")
                if width not in widths:
                    return [word], np.zeros((1, width), np.float32)
                if word in wanted:
                    words.append(word)
                    rows.append(_numbers(values, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no text file of vectors: {error}") from error
    if width is None:
        raise DataError(f"{path} has no vectors")
    return words, np.array(rows, np.float32).reshape(-1, width)


def _numbers(values: list[str], where: str) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # found below
            row = np.array(values, np.float32)
    except ValueError as error:
        raise DataError(f"{where}: {error}; expected a word and {len(values)} numbers, set apart by spaces") from error
    if not np.isfinite(row).all():
        raise DataError(f"{where} holds a number that float32 cannot: {values[int(np.argmin(np.isfinite(row)))]}")
    return row
