"""The text data of an experiment: corpora, tokenizer and how they become batches."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from lm_jax.core.config import check_positive, nearest
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.types import Batch
from lm_jax.data.base import DataConfig
from lm_jax.data.denoising import EVALUATION, TRAINING, Denoise, Rewrite
from lm_jax.data.loader import EvalBatches, Loader, Source
from lm_jax.data.mixture import Stage, check_stages, check_weights
from lm_jax.data.packing import Packing
from lm_jax.data.store import Corpus, TokenStore, prepare
from lm_jax.data.tokenizers import Tokenizer, TokenizerConfig


@dataclasses.dataclass(kw_only=True)
class TextData(DataConfig):
    """Text corpora, one tokenizer for all, and the rows cut from them.

    Rows come from the corpora in proportion to `weights` (None: to their sizes), from the steps of `stages` on to other
    weights. A corpus that is used up starts its next epoch, in another order. With `document_mask` batches carry
    "segments" and "positions", so that attention stays within a document; packed documents always do.

    With `denoise` rows become examples of another objective than the next word: others in every epoch of training, and always the
    same in evaluation. `length` is that of the text that a row is made of.

    Prepared data is kept in `cache_dir` (None: the environment variable LM_JAX_CACHE, else
    ~/.cache/lm_jax); `num_workers` processes prepare it (None: one per CPU).
    """

    corpora: tuple[Corpus, ...]
    tokenizer: TokenizerConfig
    length: int = 1024
    packing: Packing = dataclasses.field(default_factory=Packing)
    document_mask: bool = False
    weights: tuple[float, ...] | None = None
    stages: tuple[Stage, ...] = ()
    denoise: Denoise | None = None
    cache_dir: str | None = None
    num_workers: int | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range, corpora of one name, bad mixture weights, or rows unfit to be denoised."""
        super().validate()
        if self.denoise is not None:
            self.denoise.check(documents=self.masks_documents())
            self.denoise.row_length(self.length)
        if self.num_workers is not None:
            check_positive(self, "num_workers")
        names = [corpus.name for corpus in self.corpora]
        if not names:
            raise ConfigError("corpora is empty: give at least one")
        if len(set(names)) != len(names):
            raise ConfigError(f"two corpora have one name: {', '.join(names)}")
        if self.weights is not None:
            check_weights(self.weights, names)
        check_stages([Stage(weights=self.weights or (1.0,) * len(names)), *self.stages], names)

    @property
    def inputs(self) -> frozenset[str]:  # type: ignore[override]
        """See `DataConfig`."""
        return Denoise.inputs if self.denoise is None else self.denoise.inputs

    @property
    def targets(self) -> frozenset[str]:  # type: ignore[override]
        """See `DataConfig`."""
        return Denoise.targets if self.denoise is None else self.denoise.targets

    def row_length(self, length: int | None = None) -> int:
        """See `DataConfig.row_length`."""
        length = super().row_length(length)
        return length if self.denoise is None else self.denoise.row_length(length)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `DataConfig.shapes`."""
        rows = super().shapes()
        return rows if self.denoise is None else self.denoise.shapes(rows)

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `DataConfig.prompts`; an encoder reads texts with a span missing at the end."""
        given = None if self.denoise is None else self.denoise.prompts(tokenizer, texts)
        return super().prompts(tokenizer, texts) if given is None else given

    def shown_prompt(self, prompt: str) -> str:
        """See `DataConfig.shown_prompt`."""
        return prompt if self.denoise is None else self.denoise.shown_prompt(prompt)

    def rewrite(self, tokenizer: Tokenizer, length: int, stream: int) -> Rewrite | None:
        """What `denoise` does to rows of `length` tokens, in training or evaluation."""
        if self.denoise is None:
            return None
        return Rewrite(self.denoise, self.denoise.build(tokenizer, length), self.seed, stream)

    def masks_documents(self) -> bool:
        """Whether batches carry "segments" and "positions"."""
        return self.document_mask or self.packing.method == "pack"

    def cache(self) -> Path:
        """The folder of prepared data."""
        return Path(self.cache_dir or os.environ.get("LM_JAX_CACHE") or "~/.cache/lm_jax").expanduser()

    def prepare(self, progress: Callable[..., Any] | None = None) -> "PreparedText":
        """Tokenises what is not in the cache yet, and opens it. Raises `DataError` for bad or missing data."""
        prepared = prepare(self.corpora, self.tokenizer, self.cache(), num_workers=self.num_workers, progress=progress)
        return PreparedText(self, prepared.tokenizer, prepared.corpora, prepared.record)


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """Tokenised corpora, ready to be cut into batches.

    Attributes:
      config: what they were made from.
      tokenizer: the one of all corpora.
      corpora: the token store of each split, by corpus and split.
      record: counts of what was read and left out on the way, JSON-ready.
    """

    config: TextData
    tokenizer: Tokenizer
    corpora: dict[str, dict[str, TokenStore]]
    record: dict[str, Any]

    @property
    def tokens_per_row(self) -> float:
        """See `Prepared.tokens_per_row`."""
        return self.config.row_length()

    @property
    def splits(self) -> list[str]:
        """The splits that at least one corpus has; "train" first where there is one."""
        return list(dict.fromkeys(split for splits in self.corpora.values() for split in splits))

    def sources(self, split: str) -> list[Source]:
        """The split of every corpus that has it. Raises `DataError`, naming those that exist, where none does."""
        found = [Source(name, splits[split]) for name, splits in self.corpora.items() if split in splits]
        if not found:
            raise DataError(f"there is no split {split!r}{nearest(split, self.splits)}")
        return found

    @property
    def vocab_size(self) -> int:
        """See `Prepared.vocab_size`."""
        denoise = self.config.denoise
        return self.tokenizer.vocab_size + (0 if denoise is None else denoise.num_added)

    @property
    def num_outputs(self) -> int:
        """See `Prepared.num_outputs`: the tokens."""
        denoise, size = self.config.denoise, self.tokenizer.vocab_size
        return size if denoise is None else denoise.num_outputs(size)

    def require(self, split: str) -> list[Source]:
        """As `sources`."""
        return self.sources(split)

    def num_bytes(self, split: str) -> int:
        """UTF-8 bytes of the text of the split, in all corpora; 0 where the targets are not just this text."""
        if self.config.denoise is not None:
            return 0
        return sum(source.store.num_bytes for source in self.sources(split))

    def num_tokens(self, corpus: str) -> int:
        """Tokens of all splits of a corpus, end-of-text tokens included."""
        return sum(len(store.tokens) for store in self.corpora[corpus].values())

    def describe(self) -> str:
        """A line per corpus and split: documents, tokens, bytes."""
        lines = [
            f"{name} {split}: {len(store.offsets) - 1:,} documents, {len(store.tokens):,} tokens, "
            f"{store.num_bytes:,} bytes ({store.num_bytes / max(len(store.tokens), 1):.2f} bytes per token)"
            for name, splits in self.corpora.items()
            for split, store in splits.items()
        ]
        added = "" if self.config.denoise is None else f" and {self.config.denoise.num_added:,} for denoising"
        return "\n".join([f"vocabulary of {self.tokenizer.vocab_size:,}{added}", *lines])

    def train_loader(self, rows: slice = slice(None)) -> Loader:
        """Training batches, of which this process takes the given `rows`. Raises `DataError` for too little data."""
        config = self.config
        for name, splits in self.corpora.items():
            if "train" not in splits:
                raise DataError(f"corpus {name!r} has no split 'train'; it has {', '.join(map(repr, splits))}")
        sources = self.sources("train")
        weights = config.weights or tuple(float(len(source.store.tokens)) for source in sources)
        return Loader(
            sources,
            [Stage(weights=weights), *config.stages],
            config.packing,
            length=config.length,
            batch_size=config.batch_size,
            seed=config.seed,
            document_mask=config.document_mask,
            rows=rows,
            rewrite=config.rewrite(self.tokenizer, config.length, TRAINING),
        )

    def eval_batches(
        self,
        split: str,
        batch_size: int | None = None,
        length: int | None = None,
        stride: int | None = None,
        rows: slice = slice(None),
    ) -> EvalBatches:
        """The whole split of all corpora once, in order (see `EvalBatches`); sizes default to those of training.

        Rows are cut from the stream, also where training packs documents.
        """
        length = length or self.config.length
        return EvalBatches(
            self.sources(split),
            length=length,
            batch_size=batch_size or self.config.batch_size,
            stride=stride,
            document_mask=self.config.masks_documents(),
            rows=rows,
            rewrite=self.config.rewrite(self.tokenizer, length, EVALUATION),
        )
