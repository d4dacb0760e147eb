"""Whisper."""

from typing import Any

from lm_jax.core.errors import ConfigError
from lm_jax.interop.architectures.common import (
    Architecture,
    activation,
    activation_name,
    linear,
    norm_names,
    shortest_pattern,
    under,
)
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name, Names
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.frontend import AudioConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig
from lm_jax.nn.stack import StackConfig

# How files of it train and generate, which changes no logit; nothing computes with scale_embedding either.
_HARMLESS = (
    *("dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "init_std", "apply_spec_augment"),
    *("mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob", "mask_feature_length"),
    *("mask_feature_min_masks", "median_filter_width", "classifier_proj_size", "use_weighted_layer_sum", "suppress_tokens"),
    *(
        "begin_suppress_tokens",
        "forced_decoder_ids",
        "decoder_start_token_id",
        "num_hidden_layers",
        "max_length",
        "scale_embedding",
    ),
)


def _read(knobs: Knobs) -> EncoderDecoderConfig:
    for name in _HARMLESS:
        knobs.take(name, None)
    width, act = knobs.take("d_model"), activation(knobs, "activation_function")
    norm = NormConfig(kind="layer", bias=True, epsilon=1e-5)

    def attention(heads: str, *, causal: bool) -> AttentionConfig:
        return AttentionConfig(num_heads=knobs.take(heads), causal=causal, bias=True, key_bias=False, output_bias=True)

    def stack(side: str) -> StackConfig:
        reads, heads = side == "decoder", f"{side}_attention_heads"
        block = BlockConfig(
            norm=norm,
            mixer=attention(heads, causal=reads),
            cross=attention(heads, causal=False) if reads else None,
            feed_forward=MLPConfig(hidden=knobs.take(f"{side}_ffn_dim"), activation=act, bias=True),
        )
        return StackConfig(**shortest_pattern([block] * knobs.take(f"{side}_layers")), final_norm=norm)

    positions = PositionTableConfig(length=knobs.take("max_target_positions", 448))
    return EncoderDecoderConfig(
        vocab_size=knobs.take("vocab_size"),
        width=width,
        source=AudioConfig(mels=knobs.take("num_mel_bins", 80), length=knobs.take("max_source_positions", 1500), activation="gelu"),
        encoder=stack("encoder"),
        embedding=EmbeddingConfig(positions=positions),
        stack=stack("decoder"),
        head=HeadConfig(tied=knobs.take("tie_word_embeddings", True)),
    )


def _write(model: EncoderDecoderConfig) -> dict[str, Any]:
    if not isinstance(model.source, AudioConfig) or not model.source.positions or model.embedding.positions is None:
        raise ConfigError("the model does not read spectrograms, or has no table of positions")
    fields = {
        "vocab_size": model.vocab_size,
        "d_model": model.width,
        "num_mel_bins": model.source.mels,
        "max_source_positions": model.source.length,
        "max_target_positions": model.embedding.positions.length,
        "activation_function": activation_name(model.stack.layers[0].feed_forward.activation),
        "tie_word_embeddings": model.head.tied,
        "is_encoder_decoder": True,
    }
    for side, stack in (("encoder", model.encoder), ("decoder", model.stack)):
        block = stack.layers[0]
        fields |= {f"{side}_layers": stack.num_layers, f"{side}_attention_heads": block.mixer.num_heads}
        fields[f"{side}_ffn_dim"] = block.feed_forward.hidden
    return fields


def _attention(tensor: str, parameter: str) -> Names:
    return {
        **linear(f"{tensor}.q_proj", f"{parameter}/query", "(N H) D -> D N H"),
        **linear(f"{tensor}.k_proj", f"{parameter}/key", "(K H) D -> D K H"),
        **linear(f"{tensor}.v_proj", f"{parameter}/value", "(K H) D -> D K H"),
        **linear(f"{tensor}.out_proj", f"{parameter}/output", "D (N H) -> N H D"),
        **norm_names(f"{parameter}_norm", f"{tensor}_layer_norm"),
    }


_FEED_FORWARD = {
    **linear("fc1", "feed_forward/up", "F D -> D F"),
    **linear("fc2", "feed_forward/down", "D F -> F D"),
    **norm_names("feed_forward_norm", "final_layer_norm"),
}
_LAYER = _attention("self_attn", "mixer") | _FEED_FORWARD
WHISPER = Architecture(
    model_type="whisper",
    class_name="WhisperForConditionalGeneration",
    config=EncoderDecoderConfig,
    read=_read,
    write=_write,
    outer={
        "source/first": Name("model.encoder.conv1.weight", "D C k -> k C D"),
        "source/first_bias": Name("model.encoder.conv1.bias", "D -> D"),
        "source/second": Name("model.encoder.conv2.weight", "D C k -> k C D"),
        "source/second_bias": Name("model.encoder.conv2.bias", "D -> D"),
        "source/positions": Name("model.encoder.embed_positions.weight", "P D -> P D"),
        **norm_names("encoder/final_norm", "model.encoder.layer_norm"),
        "embedding/table": Name("model.decoder.embed_tokens.weight", "V D -> V D"),
        "embedding/positions/table": Name("model.decoder.embed_positions.weight", "P D -> P D"),
        **norm_names("stack/final_norm", "model.decoder.layer_norm"),
        "head/matrix": Name("proj_out.weight", "V D -> D V"),
    },
    blocks={
        "encoder": under("model.encoder.layers.{i}.", _LAYER),
        "stack": under("model.decoder.layers.{i}.", _LAYER | _attention("encoder_attn", "cross")),
    },
    ignored=("proj_out.weight",),
)
