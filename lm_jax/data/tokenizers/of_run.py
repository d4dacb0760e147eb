"""The tokenizer of another run."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from lm_jax.core.errors import DataError
from lm_jax.data.tokenizers.base import Tokenizer, TokenizerConfig


@dataclasses.dataclass(kw_only=True)
class RunTokenizer(TokenizerConfig):
    """The tokenizer of another run, whatever its kind; `path` is that run's directory."""

    path: str

    def train(self, documents: Iterable[str]) -> Tokenizer:
        """See `TokenizerConfig.train`. Raises `DataError` where there is no run with a checkpoint."""
        return Tokenizer.from_json(json.loads(Path(*self.files()).read_text())["tokenizer"])

    def files(self) -> list[str]:
        """See `TokenizerConfig.files`: the record of the newest checkpoint."""
        found = sorted(Path(self.path).glob("checkpoints/[0-9]*/record.json"))
        if not found:
            raise DataError(
                f"{self.path} holds no run with a checkpoint, of which to take the tokenizer; train it first, or "
                "name another: --config.data.tokenizer.path=..."
            )
        return [str(found[-1])]
