"""DeepSeek-V3: latent attention, many small experts chosen by group, a shared expert. Its multi-token modules are not read."""

import math
from collections.abc import Mapping
from typing import Any

from lm_jax.core.errors import DataError
from lm_jax.interop.architectures.common import (
    GATED,
    OUTER,
    PRE_NORMS,
    Architecture,
    activation_name,
    each_layer,
    layers,
    linear,
    rotary,
    write_rotary,
)
from lm_jax.interop.architectures.llama import read_decoder, read_mlp
from lm_jax.interop.architectures.mixtral import QWEN_EXPERTS, mixture_of
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name, Names
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.latent_attention import LatentAttentionConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.rope_scaling import YarnRope
from lm_jax.nn.router import RouterConfig


def _read_attention(knobs: Knobs) -> LatentAttentionConfig:
    rope = knobs.take("rope_parameters", None) or knobs.take("rope_scaling", None) or {}
    positions = rotary(knobs)
    positions.interleaved = bool(knobs.take("rope_interleave", True))
    config = LatentAttentionConfig(
        num_heads=knobs.take("num_attention_heads"),
        query_rank=knobs.take("q_lora_rank", None),
        rank=knobs.take("kv_lora_rank"),
        head_dim=knobs.take("qk_nope_head_dim"),
        turned_dim=knobs.take("qk_rope_head_dim"),
        value_dim=knobs.take("v_head_dim"),
        rotary=positions,
        bias=bool(knobs.take("attention_bias", False)),
    )
    for name in ("num_key_value_heads", "qk_head_dim", "head_dim"):  # said by others too
        knobs.take(name, None)
    if positions.scaling is not None and rope.get("mscale_all_dim"):
        grown = 0.1 * rope["mscale_all_dim"] * math.log(rope["factor"]) + 1.0
        config.scale = config.sizes(0)[0] ** -0.5 * grown**2
    return config


def _read(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    knobs.only("scoring_func", "sigmoid")
    knobs.only("topk_method", "noaux_tc")
    knobs.only("moe_layer_freq", 1)
    for name in ("num_nextn_predict_layers", "ep_size", "seq_aux", "aux_loss_alpha", "n_shared_experts"):
        knobs.take(name, None)
    mlp, hidden, shared = read_mlp(knobs), knobs.take("moe_intermediate_size"), knobs.take("n_shared_experts", 1)
    if shared < 1:
        raise DataError(f"config.json: n_shared_experts={shared} is not supported; it may be 1 or more")
    expert = MLPConfig(hidden=hidden, activation=mlp.activation, gated=True)
    router = RouterConfig(
        top_k=knobs.take("num_experts_per_tok"),
        scores="sigmoid",
        renormalize=bool(knobs.take("norm_topk_prob", True)),
        scale=knobs.take("routed_scaling_factor", 1.0),
        groups=knobs.take("n_group", 1),
        top_groups=knobs.take("topk_group", 1),
        balance_bias=True,
    )
    mixture = MoEConfig(
        num_experts=knobs.take("n_routed_experts"),
        expert=expert,
        router=router,
        shared=MLPConfig(hidden=hidden * shared, activation=mlp.activation, gated=True),
    )
    dense = i < knobs.take("first_k_dense_replace", 0)
    return BlockConfig(norm=norm, mixer=_read_attention(knobs), feed_forward=mlp if dense else mixture)


def _write(model: DecoderConfig) -> dict[str, Any]:
    blocks, mixture = each_layer(model), mixture_of(model)
    mixer, dense = blocks[0].mixer, [isinstance(block.feed_forward, MLPConfig) for block in blocks]
    first = dense.index(False)
    positions, scaling = write_rotary(mixer.rotary), mixer.rotary.scaling
    if isinstance(scaling, YarnRope) and mixer.scale is not None:
        grown = math.sqrt(mixer.scale / mixer.sizes(0)[0] ** -0.5)
        positions["mscale_all_dim"] = round((grown - 1.0) / (0.1 * math.log(scaling.factor)), 9)
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_heads,
        "q_lora_rank": mixer.query_rank,
        "kv_lora_rank": mixer.rank,
        "qk_nope_head_dim": mixer.head_dim,
        "qk_rope_head_dim": mixer.turned_dim,
        "v_head_dim": mixer.value_dim,
        "attention_bias": mixer.bias,
        "rope_parameters": positions,
        "rope_interleave": mixer.rotary.interleaved,
        "rms_norm_eps": blocks[0].norm.epsilon,
        "tie_word_embeddings": model.head.tied,
        "intermediate_size": blocks[0].feed_forward.hidden if first else mixture.expert.hidden,
        "hidden_act": activation_name(mixture.expert.activation),
        "first_k_dense_replace": first,
        "moe_intermediate_size": mixture.expert.hidden,
        "n_shared_experts": mixture.shared.hidden // mixture.expert.hidden,
        "n_routed_experts": mixture.num_experts,
        "num_experts_per_tok": mixture.router.top_k,
        "norm_topk_prob": mixture.router.renormalize,
        "routed_scaling_factor": mixture.router.scale,
        "n_group": mixture.router.groups,
        "topk_group": mixture.router.top_groups,
        "num_nextn_predict_layers": 0,
    }


_LATENT = {
    **linear("self_attn.q_a_proj", "mixer/query_latent", "R D -> D R"),
    "mixer/query_norm/scale": Name("self_attn.q_a_layernorm.weight", "R -> R"),
    "mixer/query": Name("self_attn.q_b_proj.weight", "(N H) R -> R N H"),
    **linear("self_attn.kv_a_proj_with_mqa", "mixer/latent", "R D -> D R"),
    "mixer/latent_norm/scale": Name("self_attn.kv_a_layernorm.weight", "R -> R"),
    "mixer/expand": Name("self_attn.kv_b_proj.weight", "(N H) R -> R N H"),
    **linear("self_attn.o_proj", "mixer/output", "D (N H) -> N H D"),
}
_EXPERTS = QWEN_EXPERTS | {
    "mixture/router/balance": Name("mlp.gate.e_score_correction_bias", "E -> E"),
    "mixture/shared/gate": Name("mlp.shared_experts.gate_proj.weight", "F D -> D F"),
    "mixture/shared/up": Name("mlp.shared_experts.up_proj.weight", "F D -> D F"),
    "mixture/shared/down": Name("mlp.shared_experts.down_proj.weight", "D F -> F D"),
}


def _blocks(model: DecoderConfig) -> Mapping[str, Names]:
    names = _LATENT | PRE_NORMS | GATED | _EXPERTS
    if model.stack.layers[0].mixer.query_rank is None:
        names["mixer/query"] = Name("self_attn.q_proj.weight", "(N H) R -> R N H")
    return layers(names)


DEEPSEEK_V3 = Architecture(
    model_type="deepseek_v3",
    class_name="DeepseekV3ForCausalLM",
    read=lambda knobs: read_decoder(knobs, _read, norm=NormConfig(), tied=False),
    write=_write,
    outer=OUTER,
    blocks=_blocks,
    further_layers=True,
)
