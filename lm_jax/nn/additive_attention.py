"""Attention to a memory whose scores are those of a small network, as decoders of LSTMs had it before the Transformer."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.local import all_gather, part
from lm_jax.core.param import param, weight
from lm_jax.core.types import Array, Mean
from lm_jax.nn.attention import KeyValues
from lm_jax.nn.init import Init
from lm_jax.nn.kernels.spec import MASKED
from lm_jax.nn.linear import project
from lm_jax.nn.place import Place


@dataclasses.dataclass(kw_only=True)
class AdditiveAttentionConfig(Config):
    """score(q, k) = v . tanh(W q + U k), for vectors of `size` numbers (None: the width) (Bahdanau et al. 2014,
    arXiv:1409.0473, appendix A.1.2). The weighted sum of the memory is projected to the width.

    One head; every device computes it whole. Memory is needed for [B, T, S, size] numbers at once: it is for short rows.
    """

    size: int | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for a size below 1."""
        if self.size is not None:
            check_positive(self, "size")

    def check(self, width: int) -> None:
        """Every width does."""

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "AdditiveAttention":
        """The layer for inputs of `width`, in a stack of `num_layers`."""
        return AdditiveAttention(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """FLOPs of products in one forward pass, a mean over the tokens of a row that attends to as many."""
        size = self.size or width
        return 2 * width * (2 * size + width) + 2 * length * (size + width)


class AdditiveAttention(nnx.Module):
    """See `AdditiveAttentionConfig`."""

    def __init__(self, config: AdditiveAttentionConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        D, A = width, config.size or width
        self.query = param(rngs, init.linear(D), (D, A), ("embed", "inner"))
        self.key = param(rngs, init.linear(D), (D, A), ("embed", "inner"))
        self.score = param(rngs, init.linear(A), (A,), ("inner",))
        self.output = param(rngs, init.output(D, num_layers), (D, D), ("inner", "embed"))

    def remember(self, memory_BSD: Array) -> KeyValues:
        """Keys [B, S, 1, A] and values [B, S, 1, D] of a memory, for `read`."""
        return KeyValues(project("BSD,DA->BSA", memory_BSD, self.key)[:, :, None], memory_BSD[:, :, None])

    def read(self, x_BTD: Array, place: Place, memory: KeyValues, segments_BS: Array) -> Array:
        """[B, T, D] to [B, T, D]: attention to a memory, of which each token sees its own segment."""
        weights_BTS = self._weights(x_BTD, place, memory, segments_BS).astype(x_BTD.dtype)
        y_BTD = jnp.einsum("BTS,BSD->BTD", weights_BTS, memory.values[:, :, 0])
        return part(project("BTD,DE->BTE", y_BTD, self.output), "residual", 1)

    def weights(self, x_BTD: Array, place: Place, memory: KeyValues, segments_BS: Array) -> Mean:
        """float32 [B, T, S]: the weights that `read` gives to the tokens of the memory."""
        return Mean(self._weights(x_BTD, place, memory, segments_BS), jnp.float32(1))

    def _weights(self, x_BTD: Array, place: Place, memory: KeyValues, segments_BS: Array) -> Array:
        q_BTA, k_BSA = project("BTD,DA->BTA", all_gather(x_BTD, "residual", 1), self.query), memory.keys[:, :, 0]
        hidden_BTSA = jnp.tanh(q_BTA[:, :, None, :] + k_BSA[:, None, :, :])
        score = weight(self.score, hidden_BTSA)
        scores_BTS = jnp.einsum("BTSA,A->BTS", hidden_BTSA, score, preferred_element_type=jnp.float32)
        segments_BT = place.segments_BT
        if segments_BT is None:
            segments_BT = jnp.ones(q_BTA.shape[:2], jnp.int32)
        seen_BTS = segments_BT[:, :, None] == segments_BS[:, None, :]
        return jax.nn.softmax(jnp.where(seen_BTS, scores_BTS, MASKED), axis=-1)
