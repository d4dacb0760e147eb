"""A stack of layers: a pattern of blocks, repeated. Repeats are scanned, so compile time does not grow with depth."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import stacked
from lm_jax.core.types import Array, Aux
from lm_jax.nn.attention import Cache, CacheInfo, Place
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.init import Init
from lm_jax.nn.kernels.spec import ATTENTION
from lm_jax.nn.linear import PROJECTION
from lm_jax.nn.norm import NormConfig


def _keep(*names: str) -> Callable[[Callable], Callable]:
    """Rematerialisation that keeps the values of these `checkpoint_name`s."""
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    return functools.partial(jax.checkpoint, prevent_cse=False, policy=policy)


def _offload(repeat: Callable) -> Callable:
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[PROJECTION, ATTENTION],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(repeat, prevent_cse=False, policy=policy)


REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda repeat: repeat,
    "matmuls": _keep(PROJECTION, ATTENTION),
    "offload": _offload,
    "attention": _keep(ATTENTION),
    "full": _keep(),
}


@dataclasses.dataclass(kw_only=True)
class StackConfig(Config):
    """`pattern` of blocks times `repeats`, then `final_norm`.

    `unroll` repeats are compiled as straight code inside the scan: faster on CPU, longer to compile.
    `remat` says what of a repeat is kept for the backward pass; the rest is computed again (Chen et al. 2016, arXiv:1604.06174):

    | remat | kept | |
    |---|---|---|
    | "none" | everything | fastest where it fits |
    | "matmuls" | the results of projections, and attention | norms and activations are computed again: little time |
    | "offload" | the same, in the host's memory | moves instead of computing; not on every backend |
    | "attention" | the results of attention | projections are computed again, attention is not |
    | "full" | only the input of the repeat | least memory, a third more FLOPs |
    """

    pattern: tuple[BlockConfig, ...] = dataclasses.field(default_factory=lambda: (BlockConfig(),))
    repeats: int = 12
    final_norm: NormConfig | None = dataclasses.field(default_factory=NormConfig)
    unroll: int = 1
    remat: str = "none"

    def validate(self) -> None:
        """Raises `ConfigError` for an empty stack or an unknown policy."""
        check_positive(self, "repeats", "unroll")
        check_choice("remat", self.remat, tuple(REMAT))
        if not self.pattern:
            raise ConfigError("pattern is empty; give at least one block")

    @property
    def num_layers(self) -> int:
        """Blocks in the stack."""
        return len(self.pattern) * self.repeats

    def build(self, rngs: nnx.Rngs, width: int, init: Init) -> "Stack":
        """The stack for inputs of `width`."""
        return Stack(self, rngs, width, init)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Forward matrix-product FLOPs per token at rows of `length`."""
        return self.repeats * sum(b.flops_per_token(width, length, causal=causal) for b in self.pattern)


class Stack(nnx.Module):
    """See `StackConfig`. Block i of the pattern is `block<i>`, its parameters stacked over the repeats."""

    def __init__(self, config: StackConfig, rngs: nnx.Rngs, width: int, init: Init):
        self.config = config
        for i, block in enumerate(config.pattern):
            make = lambda rngs, block=block: block.build(rngs, width, init, config.num_layers)  # noqa: E731
            setattr(self, f"block{i}", stacked(make, rngs, config.repeats))
        self.final_norm = None if config.final_norm is None else config.final_norm.build(rngs, width)

    def __call__(
        self,
        x_BTD: Array,
        place: Place,
        *,
        key: Array | None = None,
        caches: tuple[Cache, ...] | None = None,
        info: CacheInfo | None = None,
    ) -> tuple[Array, tuple[Cache, ...] | None, Aux]:
        """[B, T, D] to [B, T, D]; with `caches` (one per block of the pattern, [repeats, ...]) also the new ones.

        The last result is the layers' `Aux`, added up.
        """
        config = self.config
        blocks = tuple(getattr(self, f"block{i}") for i in range(len(config.pattern)))
        keys = None if key is None else jax.random.split(key, config.num_layers).reshape(config.repeats, -1)

        def repeat(x, xs):
            blocks, caches, keys = xs
            new, total = [], Aux.none()
            for i, block in enumerate(blocks):
                cache = None if caches is None else caches[i]
                x, cache, aux = block(x, place, cache, info, None if keys is None else keys[i])
                new.append(cache)
                total = total + aux
            return x, (None if caches is None else tuple(new), total)

        body = REMAT[config.remat](repeat)
        x_BTD, (caches, aux) = jax.lax.scan(body, x_BTD, (blocks, caches, keys), unroll=min(config.unroll, config.repeats))
        aux = jax.tree.map(lambda x: jnp.sum(x, axis=0), aux)
        return (x_BTD if self.final_norm is None else self.final_norm(x_BTD)), caches, aux

    def init_caches(self, batch_size: int, length: int, width: int, dtype: jnp.dtype) -> tuple[Cache, ...]:
        """Empty caches for `batch_size` rows of up to `length` tokens."""

        def empty(block: BlockConfig) -> Cache:
            shape = (self.config.repeats, batch_size, length, block.mixer.cached_heads(), block.mixer.size(width))
            return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

        return tuple(empty(block) for block in self.config.pattern)
