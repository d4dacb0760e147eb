"""The output projection to the vocabulary."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.local import all_gather, index
from lm_jax.core.param import param, weight
from lm_jax.core.sharding import whole_rows
from lm_jax.core.types import Array
from lm_jax.nn.embedding import look_up, soft_cap
from lm_jax.nn.init import Init, zeros
from lm_jax.nn.kernels.spec import MASKED
from lm_jax.nn.linear import merged, project
from lm_jax.nn.mlp import ACTIVATIONS
from lm_jax.nn.norm import NormConfig


@dataclasses.dataclass(kw_only=True)
class TransformConfig(Config):
    """norm(act(x W + b)), of the width of the model: what stands before the projection in BERT (arXiv:1810.04805)."""

    activation: str = "gelu"
    bias: bool = True
    norm: NormConfig | None = dataclasses.field(default_factory=NormConfig)

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown activation."""
        check_choice("activation", self.activation, tuple(ACTIVATIONS))

    def build(self, rngs: nnx.Rngs, width: int, init: Init) -> "Transform":
        """The layer for inputs of `width`."""
        return Transform(self, rngs, width, init)


class Transform(nnx.Module):
    """See `TransformConfig`."""

    def __init__(self, config: TransformConfig, rngs: nnx.Rngs, width: int, init: Init):
        self.config = config
        self.matrix = param(rngs, init.linear(width), (width, width), ("embed", "inner"))
        self.bias = param(rngs, zeros, (width,), ("inner",)) if config.bias else None
        self.norm = None if config.norm is None else config.norm.build(rngs, width)

    def __call__(self, x_BTD: Array) -> Array:
        """[B, T, D] to [B, T, D] in the dtype of `x_BTD`."""
        y_BTD = project("BTD,DE->BTE", x_BTD, self.matrix)
        if self.bias is not None:
            y_BTD = y_BTD + weight(self.bias, y_BTD)[None, None, :]
        y_BTD = ACTIVATIONS[self.config.activation](y_BTD)
        return y_BTD if self.norm is None else self.norm(y_BTD)


@dataclasses.dataclass(kw_only=True)
class HeadConfig(Config):
    """The projection: tied to the embedding (Press and Wolf 2017, arXiv:1608.05859) or its own.

    Hidden states pass through `transform` first, and are multiplied by `scale` (T5 with a tied head: width ** -0.5). `soft_cap`:
    logits pass through cap * tanh(logit / cap) (Gemma 2, arXiv:2408.00118).
    """

    tied: bool = True
    bias: bool = False
    scale: float = 1.0
    soft_cap: float | None = None
    transform: TransformConfig | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for a non-positive cap or scale."""
        check_positive(self, "scale")
        if self.soft_cap is not None:
            check_positive(self, "soft_cap")

    def flops_per_token(self, width: int, vocab_size: int) -> int:
        """Matrix-product FLOPs of one forward pass over one token."""
        return 2 * width * vocab_size + (0 if self.transform is None else 2 * width**2)

    def build(self, rngs: nnx.Rngs, table_size: int, width: int, init: Init) -> "Head":
        """The layer for a vocabulary of `table_size`."""
        return Head(self, rngs, table_size, width, init)


class Head(nnx.Module):
    """See `HeadConfig`."""

    def __init__(self, config: HeadConfig, rngs: nnx.Rngs, table_size: int, width: int, init: Init):
        self.config, self.table_size = config, table_size
        self.matrix = None if config.tied else param(rngs, init.linear(width), (width, table_size), ("embed", "vocab"))
        self.bias = param(rngs, zeros, (table_size,), ("vocab",)) if config.bias else None
        self.transform = None if config.transform is None else config.transform.build(rngs, width, init)

    def __call__(self, hidden_BTD: Array, table: nnx.Param | None, vocab_size: int) -> Array:
        """float32 [B, T, V] of hidden states [B, T, D] and the embedding's `table`; ids from `vocab_size` on score nothing.

        The table is read where the head is tied. In a local view V is this device's part of the vocabulary.
        """
        hidden_BTD = all_gather(self._transformed(hidden_BTD), "residual", 1)
        if self.matrix is None:
            y_NV = project("ND,VD->NV", merged(hidden_BTD), table, jnp.float32)
        else:
            y_NV = project("ND,DV->NV", merged(hidden_BTD), self.matrix, jnp.float32)
        if self.bias is not None:
            y_NV = y_NV + weight(self.bias, y_NV)[None, :]
        y_NV = soft_cap(y_NV, self.config.soft_cap)
        if vocab_size != self.table_size:
            own = y_NV.shape[1]
            ids_V = index("vocab") * own + jnp.arange(own)
            y_NV = jnp.where(ids_V < vocab_size, y_NV, MASKED)
        return y_NV.reshape(*hidden_BTD.shape[:2], -1)

    def logits_of(self, hidden_BTD: Array, table: nnx.Param | None, ids: Array) -> Array:
        """float32 logits of a few ids only: [B, T, S] of ids [S], or [B, T] of an id for each token [B, T].

        In a local view ids are of whole rows, and T are this device's tokens of the residual stream.
        """
        hidden_BTD, dtype = self._transformed(hidden_BTD), hidden_BTD.dtype
        rows = table if self.matrix is None else self.matrix.copy(self.matrix[...].T, axes=self.matrix.axes[::-1])
        bias = None if self.bias is None else self.bias.copy(self.bias[...][:, None], axes=(*self.bias.axes, None))
        if ids.ndim == 1:
            with whole_rows():
                rows_SD = look_up(rows, ids[None, :], dtype)[0]
                own = 0.0 if bias is None else look_up(bias, ids[None, :], jnp.float32)[:, :, 0]
            y_NS = jnp.einsum("ND,SD->NS", merged(hidden_BTD), rows_SD, preferred_element_type=jnp.float32)
            return soft_cap(y_NS + own, self.config.soft_cap).reshape(*hidden_BTD.shape[:2], len(ids))
        rows_BTD = look_up(rows, ids, dtype)
        own = 0.0 if bias is None else look_up(bias, ids, jnp.float32)[:, :, 0]
        y_BT = jnp.einsum("BTD,BTD->BT", hidden_BTD, rows_BTD, preferred_element_type=jnp.float32)
        return soft_cap(y_BT + own, self.config.soft_cap)

    def _transformed(self, hidden_BTD: Array) -> Array:
        if self.transform is not None:
            hidden_BTD = self.transform(hidden_BTD)
        if self.config.scale == 1.0:
            return hidden_BTD
        return hidden_BTD * jnp.asarray(self.config.scale, hidden_BTD.dtype)
