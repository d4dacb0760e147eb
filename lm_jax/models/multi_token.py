"""Predicting tokens after the next one."""

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx

from lm_jax.core.config import Config, check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import ahead
from lm_jax.core.param import param
from lm_jax.core.types import Array, Aux
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.init import Init
from lm_jax.nn.linear import project
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.place import Place


@dataclasses.dataclass(kw_only=True)
class MultiTokenConfig(Config):
    """`depth` modules in a row, the k-th of which predicts token t + k + 1 at position t (DeepSeek-V3, arXiv:2412.19437, 2.2).

    Each joins the hidden state of the one before (of the stack at first) with the embedding of token t + k, and runs one `block`;
    embedding and head are those of the model. Generation does not use them.
    """

    depth: int = 1
    block: BlockConfig = dataclasses.field(default_factory=BlockConfig)
    norm: NormConfig = dataclasses.field(default_factory=NormConfig)

    def validate(self) -> None:
        """Raises `ConfigError` for no module, or one that attends to a memory."""
        check_positive(self, "depth")
        if self.block.cross is not None:
            raise ConfigError("multi_token.block has no memory to attend to; leave cross out")
        if not getattr(self.block.mixer, "causal", True):
            raise ConfigError("multi_token.block.mixer reads both ways, so that a token would see those that it is to predict")

    def build(self, rngs: nnx.Rngs, width: int, init: Init, num_layers: int) -> "MultiToken":
        """The modules on top of a stack of `num_layers` of `width`."""
        return MultiToken(self, rngs, width, init, num_layers)

    def flops_per_token(self, width: int, length: int, *, causal: bool) -> float:
        """Forward matrix-product FLOPs per token at rows of `length`, without those of the head."""
        return self.depth * (4 * width**2 + self.block.flops_per_token(width, length, causal=causal))


class MultiToken(nnx.Module):
    """See `MultiTokenConfig`. Module k is `module<k>`."""

    def __init__(self, config: MultiTokenConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.config = config
        for k in range(config.depth):
            setattr(self, f"module{k}", OneMore(config, rngs, width, init, num_layers))

    def __call__(
        self, x_BTD: Array, tokens_BT: Array, embed: Callable[[Array], Array], place: Place, key: Array | None
    ) -> tuple[tuple[Array, ...], Aux]:
        """The hidden states [B, T, D] of each module, from those of the stack; `embed` gives the vectors of tokens."""
        further, total = [], Aux.none()
        for k in range(self.config.depth):
            key = None if key is None else jax.random.fold_in(key, k)
            x_BTD, aux = getattr(self, f"module{k}")(x_BTD, embed(ahead(tokens_BT, k + 1)), place, key)
            further.append(x_BTD)
            total = total + aux
        return tuple(further), total


class OneMore(nnx.Module):
    """One module."""

    def __init__(self, config: MultiTokenConfig, rngs: nnx.Rngs, width: int, init: Init, num_layers: int):
        self.hidden_norm = config.norm.build(rngs, width)
        self.embedding_norm = config.norm.build(rngs, width)
        self.from_hidden = param(rngs, init.linear(2 * width), (width, width), ("embed", "inner"))
        self.from_embedding = param(rngs, init.linear(2 * width), (width, width), ("embed", "inner"))
        self.block = config.block.build(rngs, width, init, num_layers)
        self.final_norm = config.norm.build(rngs, width)

    def __call__(self, x_BTD: Array, e_BTD: Array, place: Place, key: Array | None) -> tuple[Array, Aux]:
        """[B, T, D] to [B, T, D], with the embeddings `e_BTD` of tokens further ahead."""
        x_BTD = project("BTD,DE->BTE", self.hidden_norm(x_BTD), self.from_hidden)
        x_BTD = x_BTD + project("BTD,DE->BTE", self.embedding_norm(e_BTD), self.from_embedding)
        x_BTD, _, aux = self.block(x_BTD, place, None, None, key)
        return self.final_norm(x_BTD), aux
