"""Gemma 1, 2 and 3 (text)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from lm_jax.interop.architectures.common import (
    ATTENTION,
    FULL,
    GATED,
    OUTER,
    SLIDING,
    Architecture,
    each_layer,
    layers,
    rotary,
    write_rotary,
)
from lm_jax.interop.architectures.llama import NAMES, read_attention, read_decoder, read_mlp, without, write_decoder
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig

_GEMMA_NORM = NormConfig(zero_centered=True)


def _gemma(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    return BlockConfig(norm=norm, mixer=read_attention(knobs, i), feed_forward=_gemma_mlp(knobs))


def _gemma_mlp(knobs: Knobs) -> MLPConfig:
    knobs.take("hidden_act", None)  # Gemma computes by the other one where both are there
    return read_mlp(knobs, "hidden_activation" if knobs.take("hidden_activation", None) else "hidden_act")


def _gemma2(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    scale, cap = knobs.take("query_pre_attn_scalar") ** -0.5, knobs.take("attn_logit_softcapping", None)
    mixer = read_attention(knobs, i, scale=scale, soft_cap=cap)
    return BlockConfig(norm=norm, mixer=mixer, feed_forward=_gemma_mlp(knobs), placement="sandwich")


def _gemma3(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    kinds = knobs.take("layer_types")
    knobs.take("_sliding_window_pattern", None)
    block = _gemma2(knobs, i, norm)
    block.mixer = dataclasses.replace(block.mixer, qk_norm=norm, rotary=rotary(knobs, kinds[i]))
    return block


def _gemma_reader(layer: Callable) -> Callable[[Knobs], DecoderConfig]:
    def read(knobs: Knobs) -> DecoderConfig:
        head = HeadConfig(tied=knobs.take("tie_word_embeddings", True), soft_cap=knobs.take("final_logit_softcapping", None))
        embedding = EmbeddingConfig(scale=math.sqrt(knobs.take("hidden_size")))
        knobs.only("use_bidirectional_attention", False)
        return read_decoder(knobs, layer, norm=_GEMMA_NORM, tied=True, head=head, embedding=embedding)

    return read


def _write_gemma(model: DecoderConfig) -> dict[str, Any]:
    fields = without(write_decoder(model), "layer_types", "sliding_window")
    act = {"hidden_activation": fields["hidden_act"], "attention_bias": model.stack.pattern[0].mixer.bias}
    return fields | act


def _write_gemma2(model: DecoderConfig) -> dict[str, Any]:
    mixer, fields = model.stack.pattern[0].mixer, write_decoder(model)
    scalar = (mixer.scale or mixer.size(model.width) ** -0.5) ** -2
    unused = ("sliding_window",) if fields["sliding_window"] is None else ()  # the class takes no null
    return without(fields, "hidden_act", *unused) | {
        "hidden_activation": fields["hidden_act"],
        "attention_bias": mixer.bias,
        "query_pre_attn_scalar": round(scalar),
        "attn_logit_softcapping": mixer.soft_cap,
        "final_logit_softcapping": model.head.soft_cap,
    }


def _write_gemma3(model: DecoderConfig) -> dict[str, Any]:
    kinds = {SLIDING if block.mixer.window else FULL: block.mixer.rotary for block in each_layer(model)}
    return _write_gemma2(model) | {"rope_parameters": {kind: write_rotary(value) for kind, value in kinds.items()}}


_SANDWICH = {
    "mixer_norm/scale": Name("input_layernorm.weight", "D -> D"),
    "mixer_post_norm/scale": Name("post_attention_layernorm.weight", "D -> D"),
    "feed_forward_norm/scale": Name("pre_feedforward_layernorm.weight", "D -> D"),
    "feed_forward_post_norm/scale": Name("post_feedforward_layernorm.weight", "D -> D"),
}
_GEMMA_NAMES = {"outer": OUTER, "blocks": layers(ATTENTION | GATED | _SANDWICH)}
GEMMA = Architecture(model_type="gemma", class_name="GemmaForCausalLM", read=_gemma_reader(_gemma), write=_write_gemma, **NAMES)
GEMMA2 = Architecture(
    model_type="gemma2", class_name="Gemma2ForCausalLM", read=_gemma_reader(_gemma2), write=_write_gemma2, **_GEMMA_NAMES
)
GEMMA3 = Architecture(
    model_type="gemma3_text", class_name="Gemma3ForCausalLM", read=_gemma_reader(_gemma3), write=_write_gemma3, **_GEMMA_NAMES
)
