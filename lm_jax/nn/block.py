"""One layer of a stack: a mixer, attention to a memory and a feed-forward layer around the residual stream."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice
from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array, Aux
from lm_jax.nn.additive_attention import AdditiveAttentionConfig
from lm_jax.nn.attention import AttentionConfig, KeyValues
from lm_jax.nn.dropout import dropout
from lm_jax.nn.gated_delta import GatedDeltaConfig
from lm_jax.nn.init import Init
from lm_jax.nn.latent_attention import LatentAttentionConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.place import Cache, CacheInfo, Place
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.rglru import RGLRUConfig
from lm_jax.nn.watch import CROSS, watched

Mixer = AttentionConfig | LatentAttentionConfig | RecurrentConfig | RGLRUConfig | GatedDeltaConfig


class WithMemory(NamedTuple):
    """The cache of a block that attends to a memory."""

    own: Any  # that of the mixer
    memory: KeyValues


@dataclasses.dataclass(kw_only=True)
class BlockConfig(Config):
    """`x = x + f(x)` for f the mixer, then with `cross` attention to a memory, then the feed-forward layer (None: there is none).

    `placement` says where the norms stand:

    "pre": x + f(norm(x)) (GPT-2, Llama); "post": norm(x + f(x)) (Vaswani et al. 2017);
    "sandwich": x + norm(f(norm(x))) (Gemma 2, arXiv:2408.00118); "branch": x + norm(f(x)) (OLMo 2, arXiv:2501.00656);
    "none": x + f(x), without norms. With `residual=False` f(x) alone takes the place of the sum (LSTMs of old).

    With `parallel` both layers read the same x: x + mixer(norm(x)) + feed_forward(norm(x)), each with its own norm (GPT-NeoX,
    arXiv:2204.06745), or with `shared_norm` one for both (GPT-J, Phi). `residual_scale` multiplies what is added (Granite, muP
    in depth: arXiv:2310.02244). `mixer_norm=False` leaves out the norm before the mixer (the first layer of ModernBERT,
    arXiv:2412.13663, whose input is normed already).
    """

    mixer: Mixer = dataclasses.field(default_factory=AttentionConfig)
    cross: AttentionConfig | AdditiveAttentionConfig | None = None
    feed_forward: MLPConfig | MoEConfig | None = dataclasses.field(default_factory=MLPConfig)
    norm: NormConfig = dataclasses.field(default_factory=NormConfig)
    placement: str = "pre"
    parallel: bool = False
    shared_norm: bool = False
    mixer_norm: bool = True
    residual: bool = True
    residual_scale: float = 1.0
    dropout: float = 0.0

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown placement or a dropout rate outside [0, 1)."""
        check_choice("placement", self.placement, ("pre", "post", "sandwich", "branch", "none"))
        if not self.residual and (self.parallel or self.residual_scale != 1.0):
            raise ConfigError("residual=False leaves nothing for parallel=True or residual_scale")
        if self.parallel and self.feed_forward is None:
            raise ConfigError("parallel=True is for a mixer beside a feed-forward layer, and feed_forward is None")
        if self.parallel and self.placement == "post":
            raise ConfigError("parallel=True has no placement='post': there is one sum; take 'pre', 'sandwich' or 'branch'")
        if self.shared_norm and not (self.parallel and self.placement == "pre"):
            raise ConfigError("shared_norm=True is for parallel=True with placement='pre'")
        if not self.mixer_norm and (self.placement not in ("pre", "sandwich") or self.shared_norm):
            raise ConfigError("mixer_norm=False is for placement='pre' or 'sandwich', without shared_norm")
        if self.cross is not None and self.parallel:
            raise ConfigError("parallel=True has no cross attention")
        cross = self.cross
        if isinstance(cross, AttentionConfig) and (cross.rotary or cross.window or cross.chunk or cross.alibi):
            raise ConfigError("cross attention has no positions: leave rotary, window, chunk and alibi out")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "Block":
        """One layer of a stack of `num_layers` of `width`."""
        return Block(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Forward matrix-product FLOPs per token at rows of `length`."""
        cross = 0.0 if self.cross is None else self.cross.flops_per_token(width, length, causal=False)
        feed_forward = 0.0 if self.feed_forward is None else self.feed_forward.flops_per_token(width)
        return self.mixer.flops_per_token(width, length, causal=causal) + cross + feed_forward

    def empty_cache(self, width: int, batch_size: int, length: int, dtype: jnp.dtype) -> Cache:
        """For `batch_size` rows of up to `length` tokens; without a memory yet."""
        return self.mixer.empty_cache(width, batch_size, length, dtype)


class Block(nnx.Module):
    """See `BlockConfig`."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        self.mixer = config.mixer.build(rngs, width, init, num_layers)
        last = config.feed_forward
        self.feed_forward = None if last is None else last.build(rngs, width, init, num_layers)
        before, after = config.placement in ("pre", "sandwich"), config.placement in ("post", "sandwich", "branch")
        self.mixer_norm = config.norm.build(rngs, width) if before and config.mixer_norm else None
        self.mixer_post_norm = config.norm.build(rngs, width) if after else None
        self.feed_forward_norm = config.norm.build(rngs, width) if before and last and not config.shared_norm else None
        self.feed_forward_post_norm = config.norm.build(rngs, width) if after and last else None
        self.cross = None if config.cross is None else config.cross.build(rngs, width, init, num_layers)
        self.cross_norm = config.norm.build(rngs, width) if self.cross is not None and before else None
        self.cross_post_norm = config.norm.build(rngs, width) if self.cross is not None and after else None

    def __call__(
        self, x_BTD: Array, place: Place, cache: Cache | None, info: CacheInfo | None, key: Array | None
    ) -> tuple[Array, Cache | None, Aux]:
        """[B, T, D] to [B, T, D]; `key` None means evaluation (no dropout)."""
        rate, keys = self.config.dropout, (None, None) if key is None else jax.random.split(key)
        own, memory = cache if isinstance(cache, WithMemory) else (cache, None)
        before_BTD = x_BTD
        h_BTD = normed_BTD = x_BTD if self.mixer_norm is None else self.mixer_norm(x_BTD)
        h_BTD, own = self.mixer(h_BTD, place, own, info)
        x_BTD = self._add(x_BTD, dropout(h_BTD, rate, keys[0], place.rows_B), self.mixer_post_norm)
        looked = Aux.none()
        if self.cross is not None:
            h_BTD, looked = self._cross(x_BTD, place, memory, info)
            x_BTD = self._add(x_BTD, dropout(h_BTD, rate, _third(key), place.rows_B), self.cross_post_norm)
        cache = own if memory is None else WithMemory(own, memory)
        if self.feed_forward is None:
            return x_BTD, cache, looked
        h_BTD = before_BTD if self.config.parallel else x_BTD
        if self.config.shared_norm:
            h_BTD = normed_BTD
        elif self.feed_forward_norm is not None:
            h_BTD = self.feed_forward_norm(h_BTD)
        h_BTD, aux = self.feed_forward(h_BTD, place)
        h_BTD = dropout(h_BTD, rate, keys[1], place.rows_B)
        return self._add(x_BTD, h_BTD, self.feed_forward_post_norm), cache, looked + aux

    def remember(self, cache: Cache, memory_BSD: Array) -> Cache:
        """The cache, with the memory's keys and values where the block attends to them."""
        return cache if self.cross is None else WithMemory(cache, self.cross.remember(memory_BSD))

    def _cross(self, x_BTD: Array, place: Place, memory: KeyValues | None, info: CacheInfo | None) -> tuple[Array, Aux]:
        x_BTD = x_BTD if self.cross_norm is None else self.cross_norm(x_BTD)
        if memory is not None and info is not None and info.memory_BS is not None:
            segments_BS = info.memory_BS
        elif place.memory is not None:
            memory, segments_BS = self.cross.remember(place.memory.x_BSD), place.memory.segments_BS
        else:
            raise ConfigError("a block attends to a memory, and there is none: it is for the decoder of an encoder-decoder")
        seen = {CROSS: self.cross.weights(x_BTD, place, memory, segments_BS)} if watched() else {}
        return self.cross.read(x_BTD, place, memory, segments_BS), Aux.none()._replace(metrics=seen)

    def _add(self, x: Array, branch: Array, norm: nnx.Module | None) -> Array:
        if norm is not None and self.config.placement != "post":
            branch = norm(branch)
        if self.config.residual_scale != 1.0:
            branch = branch * jnp.asarray(self.config.residual_scale, branch.dtype)
        x = x + branch if self.config.residual else branch
        return norm(x) if norm is not None and self.config.placement == "post" else x


def _third(key: Array | None) -> Array | None:
    """A key beside the two that `split` gives."""
    return None if key is None else jax.random.fold_in(key, 2)
