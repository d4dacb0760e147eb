"""A stack of layers: a pattern of blocks, repeated. Repeats are scanned, so compile time does not grow with depth."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import overlap, part, ways
from lm_jax.core.param import gathered, stacked
from lm_jax.core.sharding import current_layout, use_layout
from lm_jax.core.types import Array, Aux
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.init import Init
from lm_jax.nn.kernels.spec import ATTENTION
from lm_jax.nn.linear import PROJECTION
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.pipeline import Schedule, pipeline
from lm_jax.nn.place import Cache, CacheInfo, Place
from lm_jax.nn.relative_bias import RelativeBiasConfig
from lm_jax.nn.watch import watched


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
    """`prelude`, `pattern` of blocks times `repeats`, then `final_norm`.

    `prelude` are blocks before the repeated ones, each with a program of its own (the dense layers of DeepSeek-V3; what remains
    where a pattern does not divide the depth). They are not part of a pipeline. `relative_bias` is added to the scores of
    all layers of self-attention.

    `unroll` repeats are compiled as straight code inside the scan: faster on CPU, longer to compile.
    `remat` says what of a repeat is kept for the backward pass; the rest is computed again (Chen et al. 2016, arXiv:1604.06174):

    | remat | kept | |
    |---|---|---|
    | "none" | everything | fastest where it fits |
    | "matmuls" | the results of projections, and attention | norms and activations are computed again: little time |
    | "offload" | the same, in the host's memory | moves instead of computing; not on every backend |
    | "attention" | the results of attention | projections are computed again, attention is not |
    | "full" | only the input of the repeat | least memory, a third more FLOPs |

    On a mesh that splits layers (`nn/pipeline.py`) each device has `rounds` pieces of the stack. More rounds shorten the bubble,
    and move the activations as many times. The parameters are stored by rounds, on any mesh.
    """

    prelude: tuple[BlockConfig, ...] = ()
    pattern: tuple[BlockConfig, ...] = dataclasses.field(default_factory=lambda: (BlockConfig(),))
    repeats: int = 12
    rounds: int = 1
    final_norm: NormConfig | None = dataclasses.field(default_factory=NormConfig)
    relative_bias: RelativeBiasConfig | None = None
    unroll: int = 1
    remat: str = "none"

    def validate(self) -> None:
        """Raises `ConfigError` for an empty stack or an unknown policy."""
        check_positive(self, "repeats", "rounds", "unroll")
        check_choice("remat", self.remat, tuple(REMAT))
        if not self.pattern:
            raise ConfigError("pattern is empty; give at least one block")
        if self.repeats % self.rounds:
            raise ConfigError(f"repeats={self.repeats} is not divisible by rounds={self.rounds}")

    @property
    def num_layers(self) -> int:
        """Blocks in the stack."""
        return len(self.prelude) + len(self.pattern) * self.repeats

    @property
    def layers(self) -> tuple[BlockConfig, ...]:
        """The blocks of all layers, in order."""
        return self.prelude + self.pattern * self.repeats

    def check(self, width: int) -> None:
        """Raises `ConfigError` where a block does not fit a model of `width`."""
        for block in self.prelude + self.pattern:
            block.mixer.check(width)
            if block.cross is not None:
                block.cross.check(width)
        heads = sorted(self.attention_heads())
        if self.relative_bias is not None and len(heads) != 1:
            raise ConfigError(
                f"relative_bias has one number for each head of all attention, and the layers have {heads} heads; "
                "give all of them as many, or leave it out"
            )

    def attention_heads(self) -> set[int]:
        """The numbers of heads that layers of self-attention have."""
        return {block.mixer.num_heads for block in self.layers if hasattr(block.mixer, "alibi")}

    def check_causal(self) -> None:
        """Raises `ConfigError` where a token sees those after it: a model of the next token would see what it predicts."""
        for block in self.layers:
            if not getattr(block.mixer, "causal", True):
                raise ConfigError("mixer: it reads both ways, so that a token would see the next one, which it is to predict")

    def schedule(self, num_rows: int, stages: int, micro_batches: int | None) -> Schedule:
        """That of a pipeline of `stages` devices through which `num_rows` rows pass; `micro_batches` as in `Layout`.

        Raises `ConfigError` where the rows do not split into as many, or where these are too few.
        """
        number = micro_batches or num_rows
        if num_rows % number:
            near = [n for n in range(1, num_rows + 1) if num_rows % n == 0]
            raise ConfigError(f"layout.micro_batches={number} does not divide the {num_rows} rows of a pipeline; {near} do")
        if number < stages:
            raise ConfigError(
                f"a pipeline of {stages} stages with {number} micro-batches of {num_rows} rows: there must be as many as stages,"
                " better 4 times as many; raise layout.micro_batches or the batch size, or lower mesh.pp"
            )
        if self.rounds > 1 and number % stages:
            raise ConfigError(f"rounds={self.rounds}: the {number} micro-batches must be a multiple of the {stages} stages")
        return Schedule(stages, self.rounds, number)

    def build(self, rngs: nnx.Rngs, width: int, init: Init) -> "Stack":
        """The stack for inputs of `width`."""
        return Stack(self, rngs, width, init)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Forward matrix-product FLOPs per token at rows of `length`."""
        return sum(block.flops_per_token(width, length, causal=causal) for block in self.layers)


class Stack(nnx.Module):
    """See `StackConfig`. Block i of the prelude is `prelude<i>`; of the pattern `block<i>`, its parameters stacked over repeats."""

    def __init__(self, config: StackConfig, rngs: nnx.Rngs, width: int, init: Init):
        self.config = config
        for i, block in enumerate(config.prelude):
            setattr(self, f"prelude{i}", block.build(rngs, width, init, config.num_layers))
        for i, block in enumerate(config.pattern):
            make = lambda rngs, block=block: block.build(rngs, width, init, config.num_layers)  # noqa: E731
            setattr(self, f"block{i}", stacked(make, rngs, config.repeats, config.rounds))
        self.final_norm = None if config.final_norm is None else config.final_norm.build(rngs, width)
        bias = config.relative_bias
        self.relative_bias = None if bias is None else bias.build(rngs, min(config.attention_heads()), init)

    def __call__(
        self,
        x_BTD: Array,
        place: Place,
        *,
        key: Array | None = None,
        caches: tuple[Cache, ...] | None = None,
        info: CacheInfo | None = None,
        at_once: bool = False,
    ) -> tuple[Array, tuple[Cache, ...] | None, Aux]:
        """[B, T, D] to [B, T, D]; with `caches` (those of the prelude, then one per block of the pattern, [repeats, ...]) also
        the new ones. Rows pass a pipeline as one micro-batch with `caches`, or `at_once`: any number of them.

        The last result is the layers' `Aux`, added up.
        """
        config, schedule = self.config, self._schedule(x_BTD.shape[0], at_once=at_once or caches is not None)
        first = len(config.prelude)
        blocks = tuple(getattr(self, f"block{i}") for i in range(len(config.pattern)))
        keys = None if key is None else jax.random.split(key, config.num_layers)
        if self.relative_bias is not None:
            place = place._replace(bias_NTS=self.relative_bias(place.positions_BT.shape[1], info))
        x_BTD, before, total = self._prelude(x_BTD, place, None if caches is None else caches[:first], keys, info)
        keys = None if keys is None else keys[first:].reshape(config.repeats, -1)
        caches = None if caches is None else caches[first:]
        if schedule is None:
            if config.rounds > 1:
                blocks = jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), blocks)
            x_BTD, caches, aux = self._repeats(x_BTD, place, blocks, caches, keys, info)
        else:
            x_BTD, caches, aux = self._pipeline(schedule, x_BTD, place, blocks, caches, keys, info)
        caches = None if caches is None else before + caches
        return (x_BTD if self.final_norm is None else self.final_norm(x_BTD)), caches, total + aux

    def _prelude(
        self, x_BTD: Array, place: Place, caches: tuple[Cache, ...] | None, keys: Array | None, info: CacheInfo | None
    ) -> tuple[Array, tuple[Cache, ...], Aux]:
        new, total = [], Aux.none()
        for i in range(len(self.config.prelude)):
            block, cache = getattr(self, f"prelude{i}"), None if caches is None else caches[i]
            run = REMAT[self.config.remat](lambda block, x, cache, key: block(x, place, cache, info, key))
            x_BTD, cache, aux = run(block, x_BTD, cache, None if keys is None else keys[i])
            new.append(cache)
            total = total + aux
        return x_BTD, tuple(new), total

    def _repeats(
        self,
        x_BTD: Array,
        place: Place,
        blocks: tuple[nnx.Module, ...],
        caches: tuple[Cache, ...] | None,
        keys: Array | None,
        info: CacheInfo | None,
    ) -> tuple[Array, tuple[Cache, ...] | None, Aux]:
        """The output of repeats, one after another, whose parameters, caches and keys lead with as many values."""

        def repeat(x, xs):
            blocks, caches, keys = xs
            new, total = [], Aux.none()
            for i, block in enumerate(blocks):
                cache = None if caches is None else caches[i]
                x, cache, aux = block(x, place, cache, info, None if keys is None else keys[i])
                new.append(cache)
                total = total + aux
            return x, (None if caches is None else tuple(new), total)

        body = REMAT[self.config.remat](repeat)
        xs = (blocks, caches, keys)
        unroll = min(self.config.unroll, len(jax.tree.leaves(xs)[0]))
        x_BTD, (caches, aux) = jax.lax.scan(body, x_BTD, xs, unroll=unroll)
        return x_BTD, caches, jax.tree.map(lambda x: jnp.sum(x, axis=0), aux)

    def _schedule(self, num_rows: int, *, at_once: bool) -> Schedule | None:
        """That of a pipeline over the devices that the layers are split over; None where they are not."""
        stages, layout = ways("layers"), current_layout()
        if stages == 1 or layout is None:
            return None
        if at_once:
            return Schedule(stages, self.config.rounds, 1)
        return self.config.schedule(num_rows * overlap("layers", "batch"), stages, layout.micro_batches)

    def _pipeline(
        self,
        schedule: Schedule,
        x_BTD: Array,
        place: Place,
        blocks: tuple[nnx.Module, ...],
        caches: tuple[Cache, ...] | None,
        keys: Array | None,
        info: CacheInfo | None,
    ) -> tuple[Array, tuple[Cache, ...] | None, Aux]:
        """As `_repeats`, with the layers of this device only. Within, the axis of the pipeline splits layers and no rows."""
        rounds, layout = schedule.rounds, current_layout()
        assert layout is not None
        if watched():
            raise ConfigError("attention cannot be watched where layers are split over a pipeline")
        inside = dataclasses.replace(layout, batch=tuple(axis for axis in layout.batch if axis not in layout.layers))
        if layout.gather_once:
            blocks = jax.tree.map(lambda p: gathered(p, x_BTD), blocks, is_leaf=lambda x: isinstance(x, nnx.Param))
        if rounds == 1:
            blocks = jax.tree.map(lambda w: w[None], blocks)
        if keys is not None:
            keys = part(keys.reshape(rounds, -1, keys.shape[-1]), "layers", 1)
        if caches is not None:
            caches = jax.tree.map(lambda x: x.reshape(rounds, -1, *x.shape[1:]), caches)

        def stage(x_BTD: Array, place: Place, number: Array, caches: Any) -> tuple[Array, Any, Aux]:
            own = jax.tree.map(lambda x: x[number], (blocks, caches, keys))
            with use_layout(inside):
                x_BTD, new, aux = self._repeats(x_BTD, place, *own, info)
            return x_BTD, jax.tree.map(lambda x, y: x.at[number].set(y), caches, new), aux

        x_BTD, caches, aux = pipeline(stage, x_BTD, place, caches, schedule)
        return x_BTD, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), caches), aux

    def init_caches(self, batch_size: int, length: int, width: int, dtype: jnp.dtype) -> tuple[Cache, ...]:
        """Empty caches for `batch_size` rows of up to `length` tokens: of the prelude, then of the pattern, [repeats, ...]."""
        config, repeats = self.config, self.config.repeats // ways("layers")
        empty = lambda block: block.empty_cache(width, batch_size, length, dtype)  # noqa: E731
        repeat = lambda x: jnp.zeros((repeats, *x.shape), x.dtype)  # noqa: E731
        return (*map(empty, config.prelude), *(jax.tree.map(repeat, empty(block)) for block in config.pattern))

    def remember(self, caches: tuple[Cache, ...], memory_BSD: Array) -> tuple[Cache, ...]:
        """The caches, with the keys and values of a memory, computed once for all steps of decoding."""
        first, new = len(self.config.prelude), []
        for i, cache in enumerate(caches):
            if i < first:
                new.append(getattr(self, f"prelude{i}").remember(cache, memory_BSD))
                continue
            blocks = getattr(self, f"block{i - first}")
            if self.config.rounds > 1:
                blocks = jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), blocks)
            new.append(jax.lax.map(lambda xs: xs[0].remember(xs[1], memory_BSD), (blocks, cache)))
        return tuple(new)
