"""Llama and the dense decoders that differ from it in a few knobs: Mistral, Qwen2, Qwen3, SmolLM3, OLMo 2, Phi-3."""

import dataclasses
from collections.abc import Callable
from typing import Any

from lm_jax.interop.architectures.common import (
    ATTENTION,
    FULL,
    GATED,
    OUTER,
    PRE_NORMS,
    SLIDING,
    Architecture,
    activation,
    activation_name,
    each_layer,
    layers,
    rotary,
    shortest_pattern,
    write_rotary,
)
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.stack import StackConfig


def read_decoder(
    knobs: Knobs, layer: Callable[[Knobs, int, NormConfig], BlockConfig], *, norm: NormConfig, tied: bool, **model: Any
) -> DecoderConfig:
    """A model whose layer i is `layer(knobs, i, norm)`."""
    norm = dataclasses.replace(norm, epsilon=knobs.take("rms_norm_eps", norm.epsilon))
    blocks = [layer(knobs, i, norm) for i in range(knobs.take("num_hidden_layers"))]
    return DecoderConfig(
        vocab_size=knobs.take("vocab_size"),
        width=knobs.take("hidden_size"),
        stack=StackConfig(**shortest_pattern(blocks), final_norm=norm),
        **{"embedding": EmbeddingConfig(), "head": HeadConfig(tied=knobs.take("tie_word_embeddings", tied))} | model,
    )


def read_attention(knobs: Knobs, i: int, **more: Any) -> AttentionConfig:
    """The attention of layer i, with the knobs that most architectures have; `more` are its other fields."""
    heads = knobs.take("num_attention_heads")
    bias = bool(knobs.take("attention_bias", False))
    fields = {
        "num_heads": heads,
        "num_kv_heads": knobs.take("num_key_value_heads", heads),
        "head_dim": knobs.take("head_dim", None) or knobs.take("hidden_size") // heads,
        "rotary": rotary(knobs),
        "bias": bias,
        "output_bias": bias,
        "window": read_window(knobs, i),
    }
    return AttentionConfig(**fields | more)


def read_window(knobs: Knobs, i: int) -> int | None:
    """Of layer i: `sliding_window`, in the layers that `layer_types` (or `max_window_layers`) names where it is given."""
    window, kinds = knobs.take("sliding_window", None), knobs.take("layer_types", None)
    first = knobs.take("max_window_layers", None)
    if knobs.take("use_sliding_window", window is not None) is False or window is None:
        return None
    if kinds is not None:
        return window if kinds[i] == SLIDING else None
    return window if first is None or i >= first else None


def read_mlp(knobs: Knobs, act: str = "hidden_act") -> MLPConfig:
    """A gated feed-forward layer."""
    bias = bool(knobs.take("mlp_bias", False))
    return MLPConfig(hidden=knobs.take("intermediate_size"), activation=activation(knobs, act), gated=True, bias=bias)


def write_decoder(model: DecoderConfig) -> dict[str, Any]:
    """The knobs that most architectures have, of a model whose layers differ in their windows and positions only."""
    blocks = each_layer(model)
    mixer, windows = blocks[0].mixer, [block.mixer.window for block in blocks]
    norm, rotaries = blocks[0].norm, [block.mixer.rotary for block in blocks if block.mixer.rotary is not None]
    fields = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads or mixer.num_heads,
        "head_dim": mixer.size(model.width),
        "rms_norm_eps": norm.epsilon,
        "tie_word_embeddings": model.head.tied,
        "sliding_window": next((window for window in windows if window is not None), None),
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }
    if isinstance(blocks[0].feed_forward, MLPConfig):
        fields["intermediate_size"] = blocks[0].feed_forward.hidden
        fields["hidden_act"] = activation_name(blocks[0].feed_forward.activation)
    if rotaries:
        fields["rope_parameters"] = write_rotary(rotaries[0])
    return fields


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    """The fields but for those."""
    return {name: value for name, value in fields.items() if name not in names}


def _llama(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    return BlockConfig(norm=norm, mixer=read_attention(knobs, i, window=None), feed_forward=read_mlp(knobs))


def _write_llama(model: DecoderConfig) -> dict[str, Any]:
    block = model.stack.pattern[0]
    bias = {"attention_bias": block.mixer.bias, "mlp_bias": getattr(block.feed_forward, "bias", False)}
    return without(write_decoder(model), "sliding_window", "layer_types") | bias


def _mistral(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    return BlockConfig(norm=norm, mixer=read_attention(knobs, i, bias=False, output_bias=False), feed_forward=read_mlp(knobs))


def _qwen2(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    return BlockConfig(norm=norm, mixer=read_attention(knobs, i, bias=True, output_bias=False), feed_forward=read_mlp(knobs))


def _qwen3(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    return BlockConfig(norm=norm, mixer=read_attention(knobs, i, qk_norm=norm), feed_forward=read_mlp(knobs))


def write_qwen(model: DecoderConfig) -> dict[str, Any]:
    """As `write_decoder`, with the knobs of Qwen."""
    fields, mixer = write_decoder(model), model.stack.pattern[0].mixer
    return fields | {"use_sliding_window": fields["sliding_window"] is not None, "attention_bias": mixer.output_bias}


def _smollm3(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    interval = knobs.take("no_rope_layer_interval", 4)
    turned = knobs.take("no_rope_layers", None)
    turns = (i + 1) % interval != 0 if turned is None else bool(turned[i])
    mixer = read_attention(knobs, i, **({} if turns else {"rotary": None}))
    return BlockConfig(norm=norm, mixer=mixer, feed_forward=read_mlp(knobs))


def _write_smollm3(model: DecoderConfig) -> dict[str, Any]:
    turned = [int(block.mixer.rotary is not None) for block in each_layer(model)]
    bias = {"mlp_bias": getattr(model.stack.pattern[0].feed_forward, "bias", False)}
    return without(write_qwen(model), "head_dim") | bias | {"no_rope_layers": turned}


def _olmo2(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    mixer = read_attention(knobs, i, qk_norm=norm, qk_norm_whole=True)
    return BlockConfig(norm=norm, mixer=mixer, feed_forward=read_mlp(knobs), placement="branch")


def _olmo3(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    kinds, count = knobs.take("layer_types", None), knobs.take("num_hidden_layers")
    kind = (kinds or [SLIDING if (i + 1) % 4 else FULL for i in range(count)])[i]
    block, positions = _olmo2(knobs, i, norm), rotary(knobs, kind, 500_000.0)
    if kind == SLIDING and "rope_parameters" not in knobs.values:
        positions.scaling = None  # older files mean the full layers only
    window = knobs.take("sliding_window", 4096) if kind == SLIDING else None
    block.mixer = dataclasses.replace(block.mixer, rotary=positions, window=window)
    return block


def _write_olmo3(model: DecoderConfig) -> dict[str, Any]:
    kinds = {SLIDING if block.mixer.window else FULL: block.mixer.rotary for block in each_layer(model)}
    unused = () if SLIDING in kinds else ("sliding_window",)  # the class takes no null
    fields = without(write_qwen(model), "use_sliding_window", "head_dim", *unused)
    return fields | {"rope_parameters": {kind: write_rotary(positions) for kind, positions in kinds.items()}}


def _phi3(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    knobs.take("original_max_position_embeddings", None)
    return BlockConfig(norm=norm, mixer=read_attention(knobs, i, bias=False, output_bias=False), feed_forward=read_mlp(knobs))


def _reader(layer: Callable, *, tied: bool = False, epsilon: float = 1e-6) -> Callable[[Knobs], DecoderConfig]:
    return lambda knobs: read_decoder(knobs, layer, norm=NormConfig(epsilon=epsilon), tied=tied)


NAMES = {"outer": OUTER, "blocks": layers(ATTENTION | GATED | PRE_NORMS)}
WHOLE_QK_NORMS = {
    "mixer/query_norm/scale": Name("self_attn.q_norm.weight", "(N H) -> N H"),
    "mixer/key_norm/scale": Name("self_attn.k_norm.weight", "(K H) -> K H"),
}
_BRANCH_NORMS = {
    "mixer_post_norm/scale": Name("post_attention_layernorm.weight", "D -> D"),
    "feed_forward_post_norm/scale": Name("post_feedforward_layernorm.weight", "D -> D"),
}
_FUSED = {
    "mixer/query": Name("self_attn.qkv_proj.weight", "(N H) D -> D N H", part=0),
    "mixer/key": Name("self_attn.qkv_proj.weight", "(K H) D -> D K H", part=1),
    "mixer/value": Name("self_attn.qkv_proj.weight", "(K H) D -> D K H", part=2),
    "feed_forward/gate": Name("mlp.gate_up_proj.weight", "F D -> D F", part=0),
    "feed_forward/up": Name("mlp.gate_up_proj.weight", "F D -> D F", part=1),
}

LLAMA = Architecture(model_type="llama", class_name="LlamaForCausalLM", read=_reader(_llama), write=_write_llama, **NAMES)
MISTRAL = Architecture(
    model_type="mistral",
    class_name="MistralForCausalLM",
    read=_reader(_mistral),
    write=lambda model: without(write_decoder(model), "layer_types"),
    **NAMES,
)
QWEN2 = Architecture(
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    read=_reader(_qwen2),
    write=lambda model: without(write_qwen(model), "head_dim", "attention_bias"),
    **NAMES,
)
QWEN3 = Architecture(model_type="qwen3", class_name="Qwen3ForCausalLM", read=_reader(_qwen3), write=write_qwen, **NAMES)
SMOLLM3 = Architecture(
    model_type="smollm3", class_name="SmolLM3ForCausalLM", read=_reader(_smollm3, tied=True), write=_write_smollm3, **NAMES
)
OLMO2 = Architecture(
    model_type="olmo2",
    class_name="Olmo2ForCausalLM",
    read=_reader(_olmo2, epsilon=1e-5),
    write=lambda model: without(write_qwen(model), "layer_types", "sliding_window", "use_sliding_window", "head_dim"),
    outer=OUTER,
    blocks=layers(ATTENTION | WHOLE_QK_NORMS | GATED | _BRANCH_NORMS),
)
OLMO3 = Architecture(
    model_type="olmo3",
    class_name="Olmo3ForCausalLM",
    read=_reader(_olmo3, epsilon=1e-5),
    write=_write_olmo3,
    outer=OUTER,
    blocks=OLMO2.blocks,
)
PHI3 = Architecture(
    model_type="phi3",
    class_name="Phi3ForCausalLM",
    read=_reader(_phi3, epsilon=1e-5),
    write=lambda model: without(write_decoder(model), "layer_types", "head_dim"),
    outer=OUTER,
    blocks=layers(ATTENTION | GATED | PRE_NORMS | _FUSED),
)
