"""One layer of a stack: a mixer and a feed-forward layer around the residual stream."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array, Aux
from lm_jax.nn.attention import AttentionConfig, Cache, CacheInfo, Place
from lm_jax.nn.dropout import dropout
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.norm import NormConfig


@dataclasses.dataclass(kw_only=True)
class BlockConfig(Config):
    """`x = x + f(x)` for f the mixer, then the feed-forward layer. `placement` says where the norms stand:

    "pre": x + f(norm(x)) (GPT-2, Llama); "post": norm(x + f(x)) (Vaswani et al. 2017);
    "sandwich": x + norm(f(norm(x))) (Gemma 2, arXiv:2408.00118); "branch": x + norm(f(x)) (OLMo 2, arXiv:2501.00656).

    With `parallel` both layers read the same x: x + mixer(norm(x)) + feed_forward(norm(x)), each with its own norm (GPT-NeoX,
    arXiv:2204.06745), or with `shared_norm` one for both (GPT-J, Phi). `residual_scale` multiplies what is added (Granite, muP
    in depth: arXiv:2310.02244).
    """

    mixer: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    feed_forward: MLPConfig | MoEConfig = dataclasses.field(default_factory=MLPConfig)
    norm: NormConfig = dataclasses.field(default_factory=NormConfig)
    placement: str = "pre"
    parallel: bool = False
    shared_norm: bool = False
    residual_scale: float = 1.0
    dropout: float = 0.0

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown placement or a dropout rate outside [0, 1)."""
        check_choice("placement", self.placement, ("pre", "post", "sandwich", "branch"))
        if self.parallel and self.placement == "post":
            raise ConfigError("parallel=True has no placement='post': there is one sum; take 'pre', 'sandwich' or 'branch'")
        if self.shared_norm and not (self.parallel and self.placement == "pre"):
            raise ConfigError("shared_norm=True is for parallel=True with placement='pre'")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "Block":
        """One layer of a stack of `num_layers` of `width`."""
        return Block(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Forward matrix-product FLOPs per token at rows of `length`."""
        return self.mixer.flops_per_token(width, length, causal=causal) + self.feed_forward.flops_per_token(width)


class Block(nnx.Module):
    """See `BlockConfig`."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        self.mixer = config.mixer.build(rngs, width, init, num_layers)
        self.feed_forward = config.feed_forward.build(rngs, width, init, num_layers)
        before, after = config.placement in ("pre", "sandwich"), config.placement != "pre"
        self.mixer_norm = config.norm.build(rngs, width) if before else None
        self.mixer_post_norm = config.norm.build(rngs, width) if after else None
        self.feed_forward_norm = config.norm.build(rngs, width) if before and not config.shared_norm else None
        self.feed_forward_post_norm = config.norm.build(rngs, width) if after else None

    def __call__(
        self, x_BTD: Array, place: Place, cache: Cache | None, info: CacheInfo | None, key: Array | None
    ) -> tuple[Array, Cache | None, Aux]:
        """[B, T, D] to [B, T, D]; `key` None means evaluation (no dropout)."""
        rate, keys = self.config.dropout, (None, None) if key is None else jax.random.split(key)
        before_BTD = x_BTD
        h_BTD = normed_BTD = x_BTD if self.mixer_norm is None else self.mixer_norm(x_BTD)
        h_BTD, cache = self.mixer(h_BTD, place, cache, info)
        x_BTD = self._add(x_BTD, dropout(h_BTD, rate, keys[0], place.rows_B), self.mixer_post_norm)
        h_BTD = before_BTD if self.config.parallel else x_BTD
        if self.config.shared_norm:
            h_BTD = normed_BTD
        elif self.feed_forward_norm is not None:
            h_BTD = self.feed_forward_norm(h_BTD)
        h_BTD, aux = self.feed_forward(h_BTD, place)
        h_BTD = dropout(h_BTD, rate, keys[1], place.rows_B)
        return self._add(x_BTD, h_BTD, self.feed_forward_post_norm), cache, aux

    def _add(self, x: Array, branch: Array, norm: nnx.Module | None) -> Array:
        if norm is not None and self.config.placement != "post":
            branch = norm(branch)
        if self.config.residual_scale != 1.0:
            branch = branch * jnp.asarray(self.config.residual_scale, branch.dtype)
        x = x + branch
        return norm(x) if norm is not None and self.config.placement == "post" else x
