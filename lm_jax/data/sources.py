"""Where text comes from: files of several formats and prepared TFDS datasets, read as documents."""

import collections
import csv
import dataclasses
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_jax.core.config import Config, check_choice
from lm_jax.core.errors import ConfigError, DataError

Counts = collections.Counter  # reason -> how often, filled while documents are read


class Document(NamedTuple):
    """A text and where it came from: the file's name, with ":line" where a file holds several."""

    name: str
    text: str


@dataclasses.dataclass(kw_only=True)
class Source(Config):
    """Base of the sources."""

    def documents(self, counts: Counts) -> Iterator[Document]:
        """Yields the documents in a fixed order; those of white space only are dropped.

        `counts` learns what was changed or left out, by reason. Raises `DataError` for what cannot be read, naming the file and the
        place in it.
        """
        for file in self.by_file(counts):
            for document in file:
                if document.text.strip():
                    yield document
                else:
                    counts["documents dropped: white space only"] += 1

    def by_file(self, counts: Counts) -> Iterator[Iterator[Document]]:
        """The documents of each file, those of white space only as well."""
        raise NotImplementedError(f"{type(self).__name__} is no source; use TextFiles, JsonLines, Table or TfdsDataset")

    def files(self) -> list[Path]:
        """The files that hold the text."""
        raise NotImplementedError


@dataclasses.dataclass(kw_only=True)
class FileSource(Source):
    """Base of the sources that are files. `paths` are files, folders (all files below) or globs; .gz is read through.

    A relative path is looked for in the current directory, then in the one that the environment variable LM_JAX_DATA names.
    `encoding_errors` is "strict" (invalid UTF-8 is an error) or "replace" (U+FFFD stands for it, and it is counted).
    """

    paths: tuple[str, ...]
    encoding_errors: str = "strict"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown policy or no path."""
        check_choice("encoding_errors", self.encoding_errors, ("strict", "replace"))
        if not self.paths:
            raise ConfigError("paths is empty; name at least one file")

    def files(self) -> list[Path]:
        """See `find_all`."""
        return find_all(self.paths)

    def by_file(self, counts: Counts) -> Iterator[Iterator[Document]]:
        """See `Source.by_file`."""
        for path in self.files():
            yield self.parse(path, read_text(path, self.encoding_errors, counts))

    def parse(self, path: Path, text: str) -> Iterator[Document]:
        """The documents of one file."""
        raise NotImplementedError


def find(pattern: str) -> list[Path]:
    """The files that `pattern` (a file, folder or glob) names. Raises `DataError`, saying where it looked."""
    if not pattern.strip():
        raise DataError("a path is empty; name a file, a folder or a pattern")
    roots = [""] + [root for root in [os.environ.get("LM_JAX_DATA")] if root]
    tried = [os.path.join(root, os.path.expanduser(pattern)) for root in roots]
    for place in tried:
        matches = [Path(place)] if os.path.exists(place) else [Path(p) for p in glob.glob(place, recursive=True)]
        files = [f for m in matches for f in (m.rglob("*") if m.is_dir() else [m]) if f.is_file()]
        if files:
            return sorted(set(files))
    raise DataError(
        f"no file at {' or '.join(os.path.abspath(place) for place in tried)}; set the source's paths "
        "(of running text: --config.data.corpora[0].source.paths=...) or the environment variable LM_JAX_DATA to where the text is"
    )


def find_all(patterns: Sequence[str]) -> list[Path]:
    """The files that patterns name, each pattern's in order of name; what several name stands with the first. Raises `DataError` as
    `find`."""
    found: dict[Path, Path] = {}
    for path in (path for pattern in patterns for path in find(pattern)):
        found.setdefault(path.resolve(), path)
    return list(found.values())


def find_one(path: str) -> Path:
    """The file that `path` names. Raises `DataError` where there is none, or several."""
    files = find(path)
    if len(files) > 1:
        raise DataError(f"{path} names {len(files):,} files ({files[0]}, {files[1]}, ...), and one is read; name it")
    return files[0]


def csv_rows(rows: Any, path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a reader of the module csv, with the numbers of their lines. Raises `DataError` for what is no row."""
    csv.field_size_limit(2**31 - 1)  # a cell may be a document; the module's limit is one of the process
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        number = getattr(rows, "reader", rows).line_num  # a DictReader counts the rows that came through
        raise DataError(f"{path}:{number} is no row of a table: {error} (is a quote not closed?)") from error


def read_text(path: Path, errors: str, counts: Counts) -> str:
    """The file's text, decompressed where its name ends in .gz. Raises `DataError` with the byte offset of invalid UTF-8."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise DataError(
                f"{path} is not valid UTF-8 at byte {error.start} ({data[error.start : error.start + 4].hex(' ')}); "
                "convert it, or for running text set the source's encoding_errors='replace'"
            ) from error
        text = data.decode("utf-8-sig", "replace")
        counts["invalid bytes replaced"] += text.count("\ufffd")
        return text


@dataclasses.dataclass(kw_only=True)
class TextFiles(FileSource):
    """Plain text. A document is a "file", a "line", or a "paragraph" (set off by blank lines)."""

    document: str = "file"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown kind of document."""
        super().validate()
        check_choice("document", self.document, ("file", "line", "paragraph"))

    def parse(self, path: Path, text: str) -> Iterator[Document]:
        """See `FileSource.parse`."""
        if self.document == "file":
            yield Document(path.name, text)
            return
        separator = "\n" if self.document == "line" else "\n\n"  # not splitlines(): U+2028 may stand inside a line
        for number, part in enumerate(text.replace("\r\n", "\n").removesuffix("\n").split(separator), start=1):
            yield Document(f"{path.name}:{number}", part.strip("\n"))


@dataclasses.dataclass(kw_only=True)
class JsonLines(FileSource):
    """One JSON object a line; a document is the texts of `fields`, joined by `separator`."""

    fields: tuple[str, ...] = ("text",)
    separator: str = "\n"

    def parse(self, path: Path, text: str) -> Iterator[Document]:
        """See `FileSource.parse`."""
        for number, row in json_objects(path, text):
            yield Document(f"{path.name}:{number}", _join(row, self.fields, self.separator, f"{path}:{number}"))


def json_objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON object of each line that is not blank, with the number of the line. Raises `DataError` for a line that is none."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number} is not valid JSON: {error}") from error
        if "\\ud" in line.lower() and (place := half_character(row)):
            raise DataError(f"{path}:{number} holds half of a character, {place}, which is no text; mend that line")
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number} is a JSON {type(row).__name__}, not an object with fields")
        yield number, row


@dataclasses.dataclass(kw_only=True)
class Table(FileSource):
    """CSV or TSV; a document is the texts of `columns`, joined by `separator`.

    Columns are named as in the first line, or numbered from 0 ("0", "1", ...) where there is no `header`. With `quoted` a
    cell may stand in double quotes, as in CSV.
    """

    columns: tuple[str, ...] = ("text",)
    separator: str = "\n"
    delimiter: str = ","
    header: bool = True
    quoted: bool = True

    def parse(self, path: Path, text: str) -> Iterator[Document]:
        """See `FileSource.parse`."""
        quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, quoting=quoting, strict=True)
        names: list[str] | None = None
        for line, row in csv_rows(rows, path):
            if self.header and names is None:
                names = row
            elif row:
                keys = names or list(map(str, range(len(row))))
                where = f"{path}:{line}"
                if len(row) != len(keys):
                    raise DataError(
                        f"{where} has {len(row)} cells, and the first line {len(keys)}: {self.delimiter.join(row)[:60]!r}"
                    )
                fields = dict(zip(keys, row, strict=True))
                yield Document(f"{path.name}:{line}", _join(fields, self.columns, self.separator, where))


@dataclasses.dataclass(kw_only=True)
class TfdsDataset(Source):
    """A prepared TensorFlow Datasets dataset, in a random-access format (array_record), read without TensorFlow.

    `folder` is the dataset's version folder, as `tfds build` leaves it; `split` in TFDS's notation ("train[:10%]").
    """

    folder: str
    split: str = "train"
    field: str = "text"

    def files(self) -> list[Path]:
        """The files of the dataset."""
        return find(self.folder)

    def by_file(self, counts: Counts) -> Iterator[Iterator[Document]]:
        """See `Source.by_file`; the examples are taken as of one file."""
        yield self._examples()

    def _examples(self) -> Iterator[Document]:
        import tensorflow_datasets as tfds

        folder = os.path.commonpath([path.parent for path in self.files()])
        try:
            source = tfds.builder_from_directory(folder).as_data_source(split=self.split)
        except Exception as error:
            raise DataError(f"{folder} cannot be read as a TFDS dataset, split {self.split!r}: {error}") from error
        for number, row in enumerate(source):
            yield Document(f"{self.split}:{number}", _join(row, (self.field,), "", f"{folder} example {number}"))


def half_character(value: Any) -> str | None:
    """A lone surrogate in JSON, as it is written there; None where there is none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(error.object[error.start]):x}"
    return None


def _join(row: dict[str, Any], fields: tuple[str, ...], separator: str, where: str) -> str:
    values = []
    for field in fields:
        if field not in row:
            raise DataError(f"{where} has no field {field!r}; it has {', '.join(map(repr, row))}")
        value = row[field]
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        if not isinstance(value, str):
            raise DataError(f"{where}: field {field!r} is a {type(value).__name__}, not text")
        values.append(value)
    return separator.join(values)
