"""T5 (1.0 and 1.1)."""

import dataclasses
from typing import Any

from lm_jax.core.errors import ConfigError, DataError
from lm_jax.interop.architectures.common import ACTIVATIONS, Architecture, activation_name, shortest_pattern, under
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name, Names
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.relative_bias import RelativeBiasConfig
from lm_jax.nn.stack import StackConfig


def _read(knobs: Knobs) -> EncoderDecoderConfig:
    for name in ("dropout_rate", "classifier_dropout", "initializer_factor", "dense_act_fn", "is_gated_act", "n_positions"):
        knobs.take(name, None)
    knobs.take("decoder_start_token_id", None)
    knobs.only("is_decoder", False)
    act = knobs.take("feed_forward_proj", "relu")
    gated, act = act.startswith("gated-"), act.removeprefix("gated-")
    act = "gelu_new" if gated and act == "gelu" else act  # what T5 1.1 means by it
    if act not in ACTIVATIONS:
        raise DataError(f"config.json: feed_forward_proj of {act!r} is not supported; it may be {', '.join(ACTIVATIONS)}")
    width, heads, size = knobs.take("d_model"), knobs.take("num_heads"), knobs.take("d_kv")
    norm = NormConfig(epsilon=knobs.take("layer_norm_epsilon", 1e-6))
    attention = AttentionConfig(num_heads=heads, head_dim=size, scale=1.0)
    feed_forward = MLPConfig(hidden=knobs.take("d_ff"), activation=ACTIVATIONS[act], gated=gated)
    block = BlockConfig(norm=norm, mixer=dataclasses.replace(attention, causal=False), feed_forward=feed_forward)
    reading = BlockConfig(norm=norm, mixer=attention, cross=attention, feed_forward=feed_forward)
    layers = knobs.take("num_layers")
    bias = RelativeBiasConfig(
        buckets=knobs.take("relative_attention_num_buckets", 32), distance=knobs.take("relative_attention_max_distance", 128)
    )
    tied = knobs.take("tie_word_embeddings", True)
    scaled = knobs.take("scale_decoder_outputs", tied)
    below = dataclasses.replace(bias, both_ways=True)
    return EncoderDecoderConfig(
        vocab_size=knobs.take("vocab_size"),
        width=width,
        encoder=StackConfig(**shortest_pattern([block] * layers), final_norm=norm, relative_bias=below),
        stack=StackConfig(
            **shortest_pattern([reading] * knobs.take("num_decoder_layers", layers)), final_norm=norm, relative_bias=bias
        ),
        head=HeadConfig(tied=tied, scale=width**-0.5 if scaled else 1.0),
    )


def _write(model: EncoderDecoderConfig) -> dict[str, Any]:
    block, bias = model.encoder.layers[0], model.stack.relative_bias
    if bias is None:
        raise ConfigError("the model has no relative bias")
    act = activation_name(block.feed_forward.activation)
    scaled = model.head.scale != 1.0
    act = {"gelu_pytorch_tanh": "gelu_new"}.get(act, act)
    return {
        "vocab_size": model.vocab_size,
        "d_model": model.width,
        "d_kv": block.mixer.size(model.width),
        "d_ff": block.feed_forward.hidden,
        "num_layers": model.encoder.num_layers,
        "num_decoder_layers": model.stack.num_layers,
        "num_heads": block.mixer.num_heads,
        "relative_attention_num_buckets": bias.buckets,
        "relative_attention_max_distance": bias.distance,
        "layer_norm_epsilon": block.norm.epsilon,
        "feed_forward_proj": f"gated-{act}" if block.feed_forward.gated else act,
        "tie_word_embeddings": model.head.tied,
        # Files that do not say it mean: as tied.
        **({} if scaled == model.head.tied else {"scale_decoder_outputs": scaled}),
        "is_encoder_decoder": True,
    }


def _attention(tensor: str, parameter: str) -> Names:
    return {
        f"{parameter}/query": Name(f"{tensor}.q.weight", "(N H) D -> D N H"),
        f"{parameter}/key": Name(f"{tensor}.k.weight", "(K H) D -> D K H"),
        f"{parameter}/value": Name(f"{tensor}.v.weight", "(K H) D -> D K H"),
        f"{parameter}/output": Name(f"{tensor}.o.weight", "D (N H) -> N H D"),
    }


def _feed_forward(layer: int, gated: bool) -> Names:
    tensor = f"layer.{layer}.DenseReluDense"
    gate = {"feed_forward/gate": Name(f"{tensor}.wi_0.weight", "F D -> D F")} if gated else {}
    return gate | {
        "feed_forward/up": Name(f"{tensor}.wi_1.weight" if gated else f"{tensor}.wi.weight", "F D -> D F"),
        "feed_forward/down": Name(f"{tensor}.wo.weight", "D F -> F D"),
        "feed_forward_norm/scale": Name(f"layer.{layer}.layer_norm.weight", "D -> D"),
    }


def _blocks(model: EncoderDecoderConfig) -> dict[str, Names]:
    gated = model.encoder.layers[0].feed_forward.gated
    own = _attention("layer.0.SelfAttention", "mixer") | {"mixer_norm/scale": Name("layer.0.layer_norm.weight", "D -> D")}
    cross = _attention("layer.1.EncDecAttention", "cross") | {"cross_norm/scale": Name("layer.1.layer_norm.weight", "D -> D")}
    return {
        "encoder": under("encoder.block.{i}.", own | _feed_forward(1, gated)),
        "stack": under("decoder.block.{i}.", own | cross | _feed_forward(2, gated)),
    }


_BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
T5 = Architecture(
    model_type="t5",
    class_name="T5ForConditionalGeneration",
    config=EncoderDecoderConfig,
    read=_read,
    write=_write,
    prefix="",
    outer={
        "embedding/table": Name("shared.weight", "V D -> V D"),
        "encoder/relative_bias/table": Name(f"encoder.{_BIAS}", "R N -> R N"),
        "stack/relative_bias/table": Name(f"decoder.{_BIAS}", "R N -> R N"),
        "encoder/final_norm/scale": Name("encoder.final_layer_norm.weight", "D -> D"),
        "stack/final_norm/scale": Name("decoder.final_layer_norm.weight", "D -> D"),
        "head/matrix": Name("lm_head.weight", "V D -> D V"),
    },
    blocks=_blocks,
    # Copies of shared.weight, and a table of cross attention that early files have and nothing uses.
    ignored=("coder.embed_tokens.weight", "EncDecAttention.relative_attention_bias.weight"),
)
