"""What every model says of itself."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.types import Array, Mean
from lm_jax.nn.stack import StackConfig


class Output(NamedTuple):
    """What a model returns: the last hidden states, the auxiliary loss of a token (a mean), and metrics of its layers."""

    hidden: Array  # [B, T, D]
    loss: Array  # float32 []; 0 in a dense model
    metrics: dict[str, Mean]
    further: tuple[Array, ...] = ()  # [B, T, D] each: from which `logits` scores the second, third, ... token after a position


@dataclasses.dataclass(kw_only=True)
class ModelConfig(Config):
    """Base of all models.

    `dtype` is that of activations and matrix products ("float32" or "bfloat16"); parameters, softmax, norm statistics, logits
    and loss are float32. `inputs` are the arrays of a batch that the model reads, `targets` what it can be trained to predict, in
    the words of `core.types.Batch`.
    """

    inputs: ClassVar[frozenset[str]]
    targets: ClassVar[frozenset[str]]

    generates: ClassVar[bool] = False  # whether it writes text, given a prompt

    vocab_size: int = 50257
    dtype: str = "float32"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown dtype or an empty vocabulary."""
        check_positive(self, "vocab_size")
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))

    @property
    def num_outputs(self) -> int | None:
        """How many targets it chooses from; None where it does not choose from a fixed set."""
        raise NotImplementedError

    def stacks(self) -> dict[str, tuple[int, StackConfig]]:
        """The width and the layers of the stacks of the model, by the path of their parameters."""
        raise NotImplementedError

    def max_length(self) -> int | None:
        """The longest row of tokens that the model can read: that of its position table; None without one."""
        raise NotImplementedError

    def check_data(self, shapes: dict[str, jax.ShapeDtypeStruct], rate: int | None) -> None:
        """Raises `ConfigError` where what an encoder reads is not as the model takes it.

        `shapes` are of the arrays of a batch, `rate` is the samples a second of its sound (None: there is none).
        """

    def check_end(self, eos: int, num_tokens: int) -> None:
        """Raises `ConfigError` where the model takes another token than `eos`, of the tokenizer's `num_tokens`, for the end of a
        document."""

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """Matrix-product FLOPs of one training step per token: forward and twice that backward.

        Attention counts the full square (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, appendix B) or with `causal` only
        what a causal mask leaves. Recomputation (remat) is not counted: these are model, not hardware FLOPs.
        """
        raise NotImplementedError

    def build(self, key: Array) -> nnx.Module:
        """The model with parameters drawn from `key`."""
        raise NotImplementedError
