"""Mixtures of experts after Mixtral: Mixtral, Qwen3-MoE, OLMoE."""

from typing import Any

from lm_jax.core.errors import ConfigError
from lm_jax.interop.architectures.common import (
    ATTENTION,
    GATED,
    OUTER,
    PRE_NORMS,
    Architecture,
    activation,
    activation_name,
    each_layer,
    layers,
)
from lm_jax.interop.architectures.llama import (
    WHOLE_QK_NORMS,
    read_attention,
    read_decoder,
    read_mlp,
    without,
    write_decoder,
    write_qwen,
)
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.router import RouterConfig


def read_mixture(knobs: Knobs, hidden: str, *, renormalize: bool) -> MoEConfig:
    """Dropless; `hidden` is the knob of the width of experts."""
    return MoEConfig(
        num_experts=_num_experts(knobs),
        expert=MLPConfig(hidden=knobs.take(hidden), activation=activation(knobs), gated=True),
        router=RouterConfig(top_k=knobs.take("num_experts_per_tok"), renormalize=renormalize),
    )


def _num_experts(knobs: Knobs) -> int:
    """Older files of some architectures write it under the one name, newer ones under the other."""
    return knobs.take("num_experts", None) or knobs.take("num_local_experts")


def mixture_of(model: DecoderConfig) -> MoEConfig:
    """That of the first layer that has one. Raises `ConfigError` where none has."""
    for block in each_layer(model):
        if isinstance(block.feed_forward, MoEConfig):
            return block.feed_forward
    raise ConfigError("the model has no mixture of experts")


def _mixtral(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    mixture = read_mixture(knobs, "intermediate_size", renormalize=True)
    return BlockConfig(norm=norm, mixer=read_attention(knobs, i), feed_forward=mixture)


def _write_mixtral(model: DecoderConfig) -> dict[str, Any]:
    mixture = mixture_of(model)
    return without(write_decoder(model), "layer_types") | {
        "intermediate_size": mixture.expert.hidden,
        "hidden_act": activation_name(mixture.expert.activation),
        "num_local_experts": mixture.num_experts,
        "num_experts_per_tok": mixture.router.top_k,
    }


def _qwen3_moe(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    dense, step = knobs.take("mlp_only_layers", []), knobs.take("decoder_sparse_step", 1)
    sparse = i not in dense and (i + 1) % step == 0
    renormalize = bool(knobs.take("norm_topk_prob", False))
    mixture = read_mixture(knobs, "moe_intermediate_size", renormalize=renormalize)
    mlp = read_mlp(knobs)
    return BlockConfig(norm=norm, mixer=read_attention(knobs, i, qk_norm=norm), feed_forward=mixture if sparse else mlp)


def _write_qwen3_moe(model: DecoderConfig) -> dict[str, Any]:
    mixture, blocks = mixture_of(model), each_layer(model)
    dense = [i for i, block in enumerate(blocks) if isinstance(block.feed_forward, MLPConfig)]
    hidden = blocks[dense[0]].feed_forward.hidden if dense else mixture.expert.hidden
    return without(write_qwen(model), "layer_types") | {
        "intermediate_size": hidden,
        "hidden_act": activation_name(mixture.expert.activation),
        "moe_intermediate_size": mixture.expert.hidden,
        "num_experts": mixture.num_experts,
        "num_experts_per_tok": mixture.router.top_k,
        "norm_topk_prob": mixture.router.renormalize,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
    }


def _olmoe(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    mixer = read_attention(knobs, i, qk_norm=norm, qk_norm_whole=True, clip=knobs.take("clip_qkv", None))
    renormalize = bool(knobs.take("norm_topk_prob", False))
    mixture = read_mixture(knobs, "intermediate_size", renormalize=renormalize)
    return BlockConfig(norm=norm, mixer=mixer, feed_forward=mixture)


def _write_olmoe(model: DecoderConfig) -> dict[str, Any]:
    fields = without(_write_qwen3_moe(model), "moe_intermediate_size", "mlp_only_layers", "decoder_sparse_step", "head_dim")
    mixer = model.stack.pattern[0].mixer
    return without(fields, "sliding_window", "use_sliding_window") | {"clip_qkv": mixer.clip}


def _experts(router: str, experts: str, gate: str, up: str, down: str) -> dict[str, Name]:
    return {
        "mixture/router/matrix": Name(f"{router}.weight", "E D -> D E"),
        "mixture/gate": Name(f"{experts}.{gate}.weight", "F D -> D F"),
        "mixture/up": Name(f"{experts}.{up}.weight", "F D -> D F"),
        "mixture/down": Name(f"{experts}.{down}.weight", "D F -> F D"),
    }


QWEN_EXPERTS = _experts("mlp.gate", "mlp.experts.{e}", "gate_proj", "up_proj", "down_proj")

MIXTRAL = Architecture(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    read=lambda knobs: read_decoder(knobs, _mixtral, norm=NormConfig(epsilon=1e-5), tied=False),
    write=_write_mixtral,
    outer=OUTER,
    blocks=layers(ATTENTION | PRE_NORMS | _experts("block_sparse_moe.gate", "block_sparse_moe.experts.{e}", "w1", "w3", "w2")),
)
QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    read=lambda knobs: read_decoder(knobs, _qwen3_moe, norm=NormConfig(), tied=False),
    write=_write_qwen3_moe,
    outer=OUTER,
    blocks=layers(ATTENTION | PRE_NORMS | GATED | QWEN_EXPERTS),
)
OLMOE = Architecture(
    model_type="olmoe",
    class_name="OlmoeForCausalLM",
    read=lambda knobs: read_decoder(knobs, _olmoe, norm=NormConfig(epsilon=1e-5), tied=False),
    write=_write_olmoe,
    outer=OUTER,
    blocks=layers(ATTENTION | WHOLE_QK_NORMS | PRE_NORMS | QWEN_EXPERTS),
)
