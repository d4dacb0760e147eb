"""Tables of image files and their captions."""

import csv
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lm_jax.core.config import Config, check_choice
from lm_jax.core.errors import DataError
from lm_jax.data.sources import Counts, csv_rows, find_one, json_objects, read_text


class Listed(NamedTuple):
    """An image file and its captions."""

    name: str  # as in the table
    path: Path
    captions: tuple[str, ...]


@dataclasses.dataclass(kw_only=True)
class ImageTable(Config):
    """A table of image files and captions: .tsv or .csv with a first line of names, or .jsonl; .gz is read through.

    In a row `image` is the file, below `folder`, which is below that of the table, and `caption` its caption, or in .jsonl the
    list of its captions. Rows of one image add up. An image whose captions are all blank is an "error", or is left out with
    `uncaptioned="drop"` (counted).
    """

    path: str
    folder: str = ""
    image: str = "image"
    caption: str = "caption"
    uncaptioned: str = "error"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown policy."""
        check_choice("uncaptioned", self.uncaptioned, ("error", "drop"))

    def read(self, counts: Counts) -> list[Listed]:
        """The images in the order of their first rows. Raises `DataError`, with the line, for a row that is no such thing."""
        table = find_one(self.path)
        folder = table.parent / self.folder
        found: dict[str, list[str]] = {}
        for line, row in _rows(table, read_text(table, "strict", counts)):
            if None in row:
                raise DataError(f"{table}:{line} has {len(row[None])} cells more than the first line: {row[None]}")
            name, captions = row.get(self.image), row.get(self.caption)
            captions = [captions] if isinstance(captions, str) else captions
            if not isinstance(name, str) or not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
                raise DataError(
                    f"{table}:{line}: {self.image!r} must be a file and {self.caption!r} its caption or captions; "
                    f"found {name!r} and {captions!r} among {', '.join(map(str, row))}"
                )
            kept = [caption.strip() for caption in captions if caption.strip()]
            found.setdefault(name, []).extend(kept)
            counts["captions dropped: blank"] += len(captions) - len(kept)
        listed = [Listed(name, folder / name, tuple(captions)) for name, captions in found.items()]
        without = [image.name for image in listed if not image.captions]
        if without and self.uncaptioned == "error":
            raise DataError(
                f"{table}: {without[0]} has no caption ({len(without):,} such images); leave them out with uncaptioned='drop'"
            )
        counts["images dropped: no caption"] += len(without)
        return [image for image in listed if image.captions]


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the line, row by column)."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("tsv", "csv"):
        delimiter, quoting = ("\t", csv.QUOTE_NONE) if kind == "tsv" else (",", csv.QUOTE_MINIMAL)
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        yield from csv_rows(rows, path)
    elif kind == "jsonl":
        yield from json_objects(path, text)
    else:
        raise DataError(f"{path} is no table: its name must end in .tsv, .csv or .jsonl (or these and .gz)")
