"""Accounts for every token of every corpus, and shows what stands in the batch of a step.

The account is made from the rows themselves: the spans of all rows of an epoch are laid on the stream, and each token
that no row holds must be one that a setting leaves out. Nothing is taken from the arithmetic that made the rows.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from lm_jax.core.errors import DataError
from lm_jax.data.loader import EvalBatches, Loader, Source
from lm_jax.data.packing import Packing, Spans, cut_at_documents
from lm_jax.data.text import PreparedText

_BLOCK = 65_536  # rows looked at together


@dataclasses.dataclass(frozen=True)
class Account:
    """Where the tokens of one split of one corpus go in one epoch.

    Attributes:
      num_tokens: read from the source, end-of-text tokens included.
      used: trained on, or evaluated, once.
      left_out: tokens that are not, by reason.
      padding: places in rows that hold no token, over `num_rows` rows.
    """

    corpus: str
    split: str
    num_documents: int
    num_tokens: int
    used: int
    left_out: dict[str, int]
    padding: int
    num_rows: int

    def __str__(self) -> str:
        verb = "trained on" if self.split == "train" else "evaluated"
        parts = [f"{self.used:,} {verb}"] + [f"{count:,} {why}" for why, count in self.left_out.items()]
        full = self.used / (self.used + self.padding)
        return (
            f"{self.corpus} {self.split}: {self.num_documents:,} documents, {self.num_tokens:,} tokens = "
            f"{' + '.join(parts)}; {self.num_rows:,} rows, {full:.2%} full, padding {self.padding:,}"
        )


def audit(prepared: PreparedText, *, epoch: int = 0) -> list[str]:
    """One printable line per corpus and split, and one per corpus in total, with what was left out before tokenising.

    Raises `DataError` naming the tokens where one is in no row and no setting explains it, or in more than one row.
    """
    lines, totals = [], {}
    loader = prepared.train_loader()
    for number, source in enumerate(loader.sources):
        account = audit_train(loader, number, prepared.config.packing, epoch)
        totals[source.name] = {"trained on": account.used} | account.left_out
        lines.append(str(account))
    for split in prepared.splits:
        if split == "train":
            continue
        batches = prepared.eval_batches(split)
        for account in audit_eval(batches, split):
            totals[account.corpus][f"held out ({split})"] = account.used
            lines.append(str(account))
    for name, total in totals.items():
        parts = " + ".join(f"{count:,} {why}" for why, count in total.items())
        lines.append(f"{name}: read {prepared.num_tokens(name):,} tokens = {parts}")
        if sum(total.values()) != prepared.num_tokens(name):
            raise DataError(f"{lines[-1]}, but these are {sum(total.values()):,}: some tokens are not accounted for")
        for source, reasons in prepared.record["corpora"][name]["left_out"].items():
            lines += [f"{name}: while reading the {source} source, {count:,} {reason}" for reason, count in reasons.items()]
    return lines


def audit_train(loader: Loader, number: int, packing: Packing, epoch: int = 0) -> Account:
    """The account of the training split of corpus `number` in `epoch`, from all its rows in the order of training."""
    source = loader.sources[number]
    num_rows = loader.num_rows[source.name]
    parts = []
    for first in range(epoch * num_rows, (epoch + 1) * num_rows, _BLOCK):
        spans = loader.row_spans(number, np.arange(first, min(first + _BLOCK, (epoch + 1) * num_rows)))
        parts.append((spans.start, spans.length))
    start, length = map(np.concatenate, zip(*parts, strict=True))
    left_out = _left_out(source, "train", start, length, packing, loader.length)
    used = int(length.sum())
    return _account(source, "train", used, left_out, num_rows * loader.length - used, num_rows)


def audit_eval(batches: EvalBatches, split: str) -> Iterator[Account]:
    """Yields the account of each corpus of the whole `batches`."""
    parts = []
    for number in range(len(batches)):
        spans, context = batches.spans(number)
        column = np.cumsum(spans.length) - spans.length - spans.row * batches.length
        known = np.clip(context[spans.row] - column, 0, spans.length)  # what the window before had already
        row = spans.row + number * batches.batch_size
        parts.append((row, spans.source, spans.start + known, spans.length - known, known))
    row, corpus, start, length, known = map(np.concatenate, zip(*parts, strict=True))
    for number, source in enumerate(batches.sources):
        here = corpus == number
        _left_out(source, split, start[here], length[here], None, batches.length)
        num_rows, used = len(np.unique(row[here])), int(length[here].sum())
        padding = num_rows * batches.length - used - int(known[here].sum())
        yield _account(source, split, used, {}, padding, num_rows)


def _account(source: Source, split: str, used: int, left_out: dict[str, int], padding: int, num_rows: int) -> Account:
    store = source.store
    return Account(source.name, split, len(store.offsets) - 1, len(store.tokens), used, left_out, padding, num_rows)


def _left_out(
    source: Source,
    split: str,
    start: np.ndarray,
    length: np.ndarray,
    packing: Packing | None,
    row_length: int,
) -> dict[str, int]:
    """How many tokens the spans leave out, by reason; raises `DataError` for an overlap or a gap without a reason."""
    where = f"corpus {source.name!r}, split {split!r}"
    num_tokens = len(source.store.tokens)
    order = np.argsort(start, kind="stable")
    order = order[length[order] > 0]
    start, end = start[order], (start + length)[order]
    starts, ends = np.append(start, num_tokens), np.insert(end, 0, 0)
    twice = np.flatnonzero(starts < ends)
    if twice.size:
        low, high = starts[twice[0]], ends[twice[0]]
        raise DataError(f"{where}: tokens {low} to {high - 1} of the stream are in more than one row, or outside it")
    gap = np.flatnonzero(starts > ends)
    zero = np.zeros_like(gap)
    gaps, documents = cut_at_documents(Spans(gap, zero, ends[gap], starts[gap] - ends[gap]), [source.store.offsets])
    reasons = _reasons(gaps, documents, source.store.offsets, packing, row_length)
    left_out: dict[str, int] = {}
    for reason, low, size, document in zip(reasons, gaps.start, gaps.length, documents, strict=True):
        if reason is None:
            raise DataError(
                f"{where}: tokens {low} to {low + size - 1} of the stream, of document "
                f"{source.store.names(int(document))!r}, are in no row, and no setting explains it"
            )
        left_out[reason] = left_out.get(reason, 0) + int(size)
    return left_out


def _reasons(gaps: Spans, documents: np.ndarray, offsets: np.ndarray, packing: Packing | None, row_length: int) -> list[str | None]:
    """The setting that explains each gap; every gap lies in one document."""
    begin, end = offsets[documents], offsets[documents + 1]
    to_its_end = gaps.start + gaps.length == end
    reasons = np.full(len(documents), None, object)
    if packing is None:
        return reasons.tolist()
    if packing.method == "stream" and packing.tail == "drop" and gaps.length.sum() == offsets[-1] % row_length:
        reasons[:] = "dropped (incomplete last row)"
    if packing.method == "pack" and packing.long == "crop":
        reasons[to_its_end & (gaps.start - begin == row_length)] = "cropped (document longer than a row)"
    if packing.method == "pack" and packing.long == "drop":
        whole = to_its_end & (gaps.start == begin) & (end - begin > row_length)
        reasons[whole] = "dropped (document longer than a row)"
    return reasons.tolist()


def show(prepared: PreparedText, step: int) -> list[str]:
    """Printable lines: the documents in each row of global batch `step`, and their text, control characters escaped."""
    loader = prepared.train_loader()
    batch = loader(step)
    lines = [f"step {step}: {loader.batch_size} rows of {loader.length} tokens"]
    for row, cuts in enumerate(loader.documents(step)):
        used = sum(cut.end - cut.start for cut in cuts)
        lines.append(f"row {row}" + (f" ({loader.length - used} padding)" if used < loader.length else ""))
        first = 0
        for cut in cuts:
            tokens = batch["targets"][row, first : first + cut.end - cut.start]
            first += len(tokens)
            text = escape(prepared.tokenizer.decode(tokens.tolist()))
            lines.append(f"  {escape(str(cut))}: {text}")
    return lines


def escape(text: str) -> str:
    """`text` with backslashes and all that is not printable (control characters, line breaks) as Python escapes."""
    return "".join(c.encode("unicode_escape").decode() if c == "\\" or not c.isprintable() else c for c in text)
