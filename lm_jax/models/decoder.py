"""The decoder-only language model: GPT-2, Llama, Qwen, Gemma are values of its config."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather
from lm_jax.core.types import Array, Batch
from lm_jax.models.base import Output
from lm_jax.models.multi_token import MultiTokenConfig
from lm_jax.models.text import TextConfig, TextModel, output_of, place_of
from lm_jax.nn.place import Cache, CacheInfo, Place
from lm_jax.nn.stack import StackConfig


class DecodeState(NamedTuple):
    """The state of cached decoding."""

    caches: tuple[Cache, ...]
    info: CacheInfo


@dataclasses.dataclass(kw_only=True)
class DecoderConfig(TextConfig):
    """A model of the next token; with `multi_token` also of tokens after it. See `TextConfig`."""

    targets: ClassVar[frozenset[str]] = frozenset({"next words"})
    generates: ClassVar[bool] = True

    multi_token: MultiTokenConfig | None = None

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown dtype, heads that do not divide the width, or layers that see the next token."""
        super().validate()
        self.stack.check_causal()
        if self.multi_token is not None:
            self.multi_token.block.mixer.check(self.width)

    def build(self, key: Array) -> "Decoder":
        """The model with parameters drawn from `key`."""
        return Decoder(self, nnx.Rngs(params=key))

    @property
    def reuses_head(self) -> bool:
        """See `TextConfig.reuses_head`; `multi_token` uses it for every token ahead."""
        return super().reuses_head or self.multi_token is not None

    def flops_per_token(self, length: int, *, causal: bool) -> float:
        """As `TextConfig.flops_per_token`."""
        flops = super().flops_per_token(length, causal=causal)
        if self.multi_token is not None:
            head = self.multi_token.depth * self.head.flops_per_token(self.width, self.vocab_size)
            flops += 3 * (self.multi_token.flops_per_token(self.width, length, causal=causal) + head)
        return flops


class Decoder(TextModel):
    """See `DecoderConfig`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        more, num_layers = config.multi_token, config.stack.num_layers
        self.multi_token = None if more is None else more.build(rngs, config.width, config.init, num_layers)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Output:
        """See `TextModel.__call__`; `further` are the hidden states of the modules of `multi_token`."""
        place, further = place_of(batch), ()
        x_BTD, aux = self._hidden(batch, place, key)
        if self.multi_token is not None:
            dtype = jnp.dtype(self.config.dtype)
            embed = lambda ids: self.embedding(ids, place.positions_BT, dtype, None)  # noqa: E731
            key = None if key is None else jax.random.fold_in(key, 2)  # split(key) are fold_in(key, 0) and (key, 1)
            further, more = self.multi_token(x_BTD, batch["tokens"], embed, place, key)
            aux = aux + more
        return output_of(x_BTD, aux, batch, further)

    def init_cache(self, batch_size: int, length: int, context: int | None = None, *, prefix: bool = False) -> DecodeState:
        """An empty cache for `batch_size` rows of up to `length` tokens.

        With `context`, a query sees at most that many tokens back: generation can run past the length the model was
        trained at, as a sliding window. With `prefix`, tokens that `decode` is told to be a prefix see each other both ways.
        Raises `ConfigError` for a model that is not causal.
        """
        caches = self.stack.init_caches(batch_size, length, self.config.width, jnp.dtype(self.config.dtype))
        return DecodeState(caches, empty_slots(self.config.stack, batch_size, length, context, prefix=prefix))

    def decode(
        self, tokens_BT: Array, state: DecodeState, weights_BT: Array | None = None, prefix_BT: Array | None = None
    ) -> tuple[Array, DecodeState]:
        """float32 logits [B, T, V] of the next T tokens of each row, and the state with them added.

        `weights_BT` is 0 at padding (which must stand at the left of a row), 1 elsewhere; None: no padding. `prefix_BT` is 1 at
        tokens of a prefix; None: nowhere.
        """
        caches, info = state
        place, info = next_place(tokens_BT, info, weights_BT, prefix_BT)
        x_BTD = self.embedding(tokens_BT, place.positions_BT, jnp.dtype(self.config.dtype), None)
        x_BTD, caches, _ = self.stack(x_BTD, place, caches=caches, info=info)
        state = DecodeState(caches, info._replace(index=info.index + tokens_BT.shape[1]))
        return all_gather(self.logits(x_BTD), "vocab", 2), state

    def take_rows(self, state: DecodeState, rows_B: Array) -> DecodeState:
        """The state of the rows of these numbers, in their order; a row may come more than once."""
        first, info = len(self.config.stack.prelude), state.info
        take = lambda axis: lambda x: jnp.take(x, rows_B, axis=axis)  # noqa: E731
        caches = [jax.tree.map(take(0 if i < first else 1), cache) for i, cache in enumerate(state.caches)]
        by_row = {name: value for name, value in info._asdict().items() if name.endswith("_BS") and value is not None}
        return DecodeState(tuple(caches), info._replace(**jax.tree.map(take(0), by_row)))


def empty_slots(stack: StackConfig, batch_size: int, length: int, context: int | None, *, prefix: bool = False) -> CacheInfo:
    """What is known of an empty cache; see `Decoder.init_cache`."""
    for block in stack.layers:
        if not getattr(block.mixer, "causal", True):
            raise ConfigError("mixer.causal=False: this model reads whole texts, and cannot write one token after another")
    segments = jnp.zeros((batch_size, length), jnp.int32)
    return CacheInfo(jnp.int32(0), segments, jnp.int32(length if context is None else context), segments if prefix else None)


def next_place(
    tokens_BT: Array, info: CacheInfo, weights_BT: Array | None, prefix_BT: Array | None = None
) -> tuple[Place, CacheInfo]:
    """Where the next tokens of each row stand, and what is known of the slots with theirs; see `Decoder.decode`."""
    new = jnp.ones(tokens_BT.shape, jnp.int32) if weights_BT is None else (weights_BT > 0).astype(jnp.int32)
    add = lambda slots, x: jax.lax.dynamic_update_slice_in_dim(slots, x, info.index, axis=1)  # noqa: E731
    seen_B1 = jnp.sum(info.segments_BS, axis=1, keepdims=True)
    positions = jnp.maximum(seen_B1 + jnp.cumsum(new, axis=1) - 1, 0)
    prefix = info.prefix_BS
    if prefix_BT is not None:
        assert prefix is not None, "init_cache(prefix=True) is for decoding with a prefix"
        prefix = add(prefix, prefix_BT.astype(jnp.int32))
    return Place(positions, new), info._replace(segments_BS=add(info.segments_BS, new), prefix_BS=prefix)
