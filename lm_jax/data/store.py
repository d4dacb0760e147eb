"""Tokenised corpora in a cache: made once, whole or not at all, and mapped into memory."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.core.config import Config, to_json
from lm_jax.core.errors import DataError, StorageError
from lm_jax.core.files import fsync_dir, sha256, write_json
from lm_jax.data.sources import Counts, Document, Source, find, find_one
from lm_jax.data.splits import SPLITS, Split
from lm_jax.data.tokenizers import Tokenizer, TokenizerConfig
from lm_jax.data.workers import encode

FORMAT = 2  # raised whenever the same sources would give other stores than before


@dataclasses.dataclass(kw_only=True)
class Corpus(Config):
    """A named text. `split` says what of `source` is held out; `validation` and `test` are sources of their own."""

    name: str
    source: Source
    split: Split = dataclasses.field(default_factory=Split)
    validation: Source | None = None
    test: Source | None = None

    def documents(self, counts: dict[str, Counts]) -> Iterator[tuple[str, Document]]:
        """Yields (split, document). `counts` learns by source ("train", "validation", "test") what was left out."""
        yield from self.split.assign(self.source.documents(counts["train"]))
        for name, source in (("validation", self.validation), ("test", self.test)):
            if source is not None:
                yield from ((name, document) for document in source.documents(counts[name]))

    def files(self) -> dict[str, list[Path]]:
        """The files of each of its sources, and of its split rule."""
        sources = {"source": self.source, "validation": self.validation, "test": self.test}
        found = {name: source.files() for name, source in sources.items() if source is not None}
        listed = getattr(self.split, "path", None)
        return found | ({"split": [find_one(listed)]} if listed else {})


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """One split of a corpus as a stream of tokens, each document followed by `eos`.

    Attributes:
      tokens: uint16 or uint32 [n], mapped from disk.
      offsets: int64 [documents + 1]: where each document starts; the last one is n.
      num_bytes: UTF-8 bytes of the text.
      document_names: a name for each document.
      fingerprint: SHA-256 of the tokens and offsets.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    eos: int
    num_bytes: int
    document_names: Sequence[str]
    fingerprint: str

    def names(self, index: int) -> str:
        """The name of document `index`."""
        return self.document_names[index]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` gives: the tokenizer, the store of each split by corpus and split, and the counts of what was read."""

    tokenizer: Tokenizer
    corpora: dict[str, dict[str, TokenStore]]
    record: dict[str, Any]


def prepare(
    corpora: Sequence[Corpus],
    tokenizer_config: TokenizerConfig,
    cache_dir: Path,
    *,
    num_workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Prepared:
    """Opens the tokenised corpora, after making them when the cache lacks them.

    The cache entry is named by the contents of all source files, the splits, the tokenizer and its settings. It appears by
    one rename when it is whole: a killed `prepare` leaves nothing that is believed later. A second process waits for the
    first. Raises `DataError` for bad or missing text, `StorageError` for a cache that cannot be written.
    """
    say = progress or (lambda message: None)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        key = _key(corpora, tokenizer_config, cache_dir)
        with _locked(cache_dir / f"{key}.lock"):
            folder = cache_dir / key
            if not (folder / "record.json").is_file():
                for stale in cache_dir.glob(f".tmp-{key}*"):
                    shutil.rmtree(stale)
                temporary = cache_dir / f".tmp-{key}"
                temporary.mkdir()
                _make(temporary, corpora, tokenizer_config, num_workers or os.cpu_count() or 1, say)
                if folder.exists():
                    shutil.rmtree(folder)
                temporary.rename(folder)
                fsync_dir(cache_dir)
            return _open(folder)
    except OSError as error:
        raise StorageError(f"the data cache {cache_dir} cannot be used: {error}; set data.cache_dir or LM_JAX_CACHE") from error


def _key(corpora: Sequence[Corpus], tokenizer: TokenizerConfig, cache_dir: Path) -> str:
    hashes = _FileHashes(cache_dir / "sources.json")
    parts: list[Any] = [FORMAT, _without_paths(to_json(tokenizer))]
    parts += [[hashes.of(path) for name in tokenizer.files() for path in find(name)]]
    for corpus in corpora:
        contents = {role: [[path.name, hashes.of(path)] for path in files] for role, files in corpus.files().items()}
        parts += [_without_paths(to_json(corpus)), contents]
    hashes.save()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _without_paths(record: Any) -> Any:
    """Where files lie does not change what they hold."""
    if isinstance(record, dict):
        return {k: _without_paths(v) for k, v in record.items() if k not in ("paths", "path", "folder")}
    return record


class _FileHashes:
    """SHA-256 of files, remembered by size and time of change: an unchanged terabyte is not read again at every start."""

    def __init__(self, path: Path):
        self._path = path
        self._known: dict[str, list] = {}
        if path.is_file():
            with contextlib.suppress(json.JSONDecodeError):
                self._known = json.loads(path.read_text())

    def of(self, path: Path) -> str:
        """The file's SHA-256."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        name = str(path.resolve())
        if self._known.get(name, [None])[0] != stamp:
            self._known[name] = [stamp, sha256(path)]
        return self._known[name][1]

    def save(self) -> None:
        """Writes what is known."""
        write_json(self._path, self._known)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path, corpora: Sequence[Corpus], config: TokenizerConfig, num_workers: int, say: Callable[[str], None]) -> None:
    from lm_jax.data import blocks  # seconds of import, only when something is made

    say(f"preparing {', '.join(corpus.name for corpus in corpora)}")
    training = (d.text for corpus in corpora for split, d in corpus.documents(_new_counts()) if split == "train")
    tokenizer = config.train(training)
    say(f"tokenizer of {tokenizer.vocab_size:,} tokens; tokenising with {num_workers} processes")
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    record: dict[str, Any] = {"format": FORMAT, "dtype": np.dtype(dtype).name, "corpora": {}}
    for number, corpus in enumerate(corpora):
        counts = _new_counts()
        parts: dict[str, list[Document]] = {}
        for split, document in corpus.documents(counts):
            parts.setdefault(split, []).append(document)
        if not parts.get("train"):
            raise DataError(f"corpus {corpus.name!r} has no training text: {', '.join(map(str, corpus.files()['source'][:3]))}")
        encoded = {s: encode(tokenizer, parts[s], num_workers) for s in SPLITS if s in parts}
        blocks.write(folder / f"corpus{number}", {s: _pieces(parts[s], encoded[s]) for s in encoded}, dtype)
        entry = {s: _describe(parts[s], encoded[s], dtype) for s in encoded}
        left_out = {source: dict(reasons) for source, reasons in counts.items() if reasons}
        record["corpora"][corpus.name] = {"rule": to_json(corpus.split), "splits": entry, "left_out": left_out}
        for split, facts in entry.items():
            say(f"{corpus.name} {split}: {facts['documents']:,} documents, {facts['tokens']:,} tokens, {facts['bytes']:,} bytes")
    write_json(folder / "tokenizer.json", tokenizer.to_json())
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    write_json(folder / "record.json", record | {"tokenizer_hash": tokenizer.hash})


def _new_counts() -> dict[str, Counts]:
    return {split: Counts() for split in SPLITS}


def _pieces(documents: Iterable[Document], encoded: Iterable[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    return ((document.name, tokens) for document, tokens in zip(documents, encoded, strict=True))


def _describe(documents: list[Document], encoded: list[np.ndarray], dtype: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    for tokens in encoded:
        digest.update(tokens.astype(dtype))
    digest.update(np.array([len(tokens) for tokens in encoded], np.int64))
    return {
        "documents": len(documents),
        "bytes": sum(len(document.text.encode()) for document in documents),
        "characters": sum(len(document.text) for document in documents),
        "tokens": sum(map(len, encoded)),
        "sha256": digest.hexdigest(),
    }


def _open(folder: Path) -> Prepared:
    record = json.loads((folder / "record.json").read_text())
    tokenizer = Tokenizer.from_json(json.loads((folder / "tokenizer.json").read_text()))
    stores: dict[str, dict[str, TokenStore]] = {}
    for number, (corpus, entry) in enumerate(record["corpora"].items()):
        stores[corpus] = {
            split: _view(folder / f"corpus{number}", split, facts, record["dtype"], tokenizer.eos)
            for split, facts in entry["splits"].items()
        }
    return Prepared(tokenizer, stores, record)


def _view(folder: Path, split: str, facts: dict[str, Any], dtype: str, eos: int) -> TokenStore:
    """A split as flat arrays mapped from disk. The files are decoded from the ArrayRecord store when they are missing."""
    view = folder / "view" / split
    size = np.dtype(dtype).itemsize * facts["tokens"]
    if not view.is_dir() or (view / "tokens").stat().st_size != size:
        _decode(folder, split, facts, dtype)
    return TokenStore(
        tokens=np.memmap(view / "tokens", dtype, "r", shape=(facts["tokens"],)),
        offsets=np.fromfile(view / "offsets", np.int64),
        eos=eos,
        num_bytes=facts["bytes"],
        document_names=json.loads((view / "names.json").read_text()),
        fingerprint=facts["sha256"],
    )


def _decode(folder: Path, split: str, facts: dict[str, Any], dtype: str) -> None:
    """Writes the flat view of a split. Raises `StorageError` when the store is not what was recorded."""
    from lm_jax.data import blocks

    temporary = folder / "view" / f".{split}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    names: list[str] = []
    lengths: list[int] = []
    digest = hashlib.sha256()
    with open(temporary / "tokens", "wb") as file:
        for block_names, block_lengths, tokens in blocks.read(folder, split):
            file.write(np.ascontiguousarray(tokens, dtype))
            digest.update(np.ascontiguousarray(tokens, dtype))
            for name, length in zip(block_names, block_lengths.tolist(), strict=True):
                if name is None:
                    lengths[-1] += length
                else:
                    names.append(name)
                    lengths.append(length)
    digest.update(np.array(lengths, np.int64))
    if digest.hexdigest() != facts["sha256"]:
        raise StorageError(f"{folder} ({split}) is corrupt: its tokens do not match their SHA-256; delete it, it is made again")
    np.cumsum([0, *lengths], dtype=np.int64).tofile(temporary / "offsets")
    write_json(temporary / "names.json", names)
    final = folder / "view" / split
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
