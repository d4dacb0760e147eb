"""ViT and CLIP."""

from collections.abc import Mapping
from typing import Any

from lm_jax.core.errors import ConfigError, DataError
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
from lm_jax.models.image_encoder import ImageEncoderConfig
from lm_jax.models.two_tower import TwoTowerConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.frontend import PatchesConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig
from lm_jax.nn.stack import StackConfig


def _block(knobs: Knobs, norm: NormConfig, *, causal: bool = False, bias: bool = True) -> BlockConfig:
    attention = AttentionConfig(num_heads=knobs.take("num_attention_heads"), causal=causal, bias=bias, output_bias=True)
    feed_forward = MLPConfig(hidden=knobs.take("intermediate_size"), activation=activation(knobs), bias=True)
    return BlockConfig(norm=norm, mixer=attention, feed_forward=feed_forward)


def _patches(knobs: Knobs, **more: Any) -> PatchesConfig:
    size, patch = knobs.take("image_size"), knobs.take("patch_size")
    height, width = size if isinstance(size, list) else (size, size)
    if isinstance(patch, list):
        if patch[0] != patch[1]:
            raise DataError(f"config.json: patch_size={patch} is not supported; patches are squares")
        patch = patch[0]
    return PatchesConfig(height=height, image_width=width, patch=patch, channels=knobs.take("num_channels", 3), **more)


def _written(stack: StackConfig) -> dict[str, Any]:
    block = stack.layers[0]
    return {
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": block.mixer.num_heads,
        "intermediate_size": block.feed_forward.hidden,
        "hidden_act": activation_name(block.feed_forward.activation),
        "layer_norm_eps": block.norm.epsilon,
    }


def _written_patches(config: PatchesConfig) -> dict[str, Any]:
    size = config.height if config.height == config.image_width else [config.height, config.image_width]
    return {"image_size": size, "patch_size": config.patch, "num_channels": config.channels}


def _read_vit(knobs: Knobs) -> ImageEncoderConfig:
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "encoder_stride", "pooler_act", "pooler_output_size"):
        knobs.take(name, None)
    norm = NormConfig(kind="layer", bias=True, epsilon=knobs.take("layer_norm_eps", 1e-12))
    block = _block(knobs, norm, bias=knobs.take("qkv_bias", True))
    labels = knobs.values.get("id2label") or {}
    return ImageEncoderConfig(
        width=knobs.take("hidden_size"),
        patches=_patches(knobs),
        stack=StackConfig(**shortest_pattern([block] * knobs.take("num_hidden_layers")), final_norm=norm),
        labels=len(labels) or knobs.values.get("num_labels") or 2,
    )


def _write_vit(model: ImageEncoderConfig) -> dict[str, Any]:
    fields = {"hidden_size": model.width, "qkv_bias": model.stack.layers[0].mixer.bias}
    names = [f"LABEL_{i}" for i in range(model.labels)]
    labels = {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {name: i for i, name in enumerate(names)}}
    return fields | _written(model.stack) | _written_patches(model.patches) | labels


_VIT_LAYER = {
    **linear("attention.attention.query", "mixer/query", "(N H) D -> D N H"),
    **linear("attention.attention.key", "mixer/key", "(K H) D -> D K H"),
    **linear("attention.attention.value", "mixer/value", "(K H) D -> D K H"),
    **linear("attention.output.dense", "mixer/output", "D (N H) -> N H D"),
    **norm_names("mixer_norm", "layernorm_before"),
    **norm_names("feed_forward_norm", "layernorm_after"),
    **linear("intermediate.dense", "feed_forward/up", "F D -> D F"),
    **linear("output.dense", "feed_forward/down", "D F -> F D"),
}
VIT = Architecture(
    model_type="vit",
    class_name="ViTForImageClassification",
    config=ImageEncoderConfig,
    read=_read_vit,
    write=_write_vit,
    prefix="vit.",
    outer={
        "patches/matrix": Name("vit.embeddings.patch_embeddings.projection.weight", "D C h w -> h w C D"),
        "patches/bias": Name("vit.embeddings.patch_embeddings.projection.bias", "D -> D"),
        "patches/class_token": Name("vit.embeddings.cls_token", "1 1 D -> D"),
        "patches/positions": Name("vit.embeddings.position_embeddings", "1 P D -> P D"),
        **norm_names("stack/final_norm", "vit.layernorm"),
        "labels": Name("classifier.weight", "C D -> D C"),
        "labels_bias": Name("classifier.bias", "C -> C"),
    },
    blocks={"stack": under("vit.encoder.layer.{i}.", _VIT_LAYER)},
    ignored=("vit.pooler.dense.weight", "vit.pooler.dense.bias"),
)


def _read_clip(knobs: Knobs) -> TwoTowerConfig:
    for name in ("logit_scale_init_value", "initializer_factor", "text_config_dict", "vision_config_dict"):
        knobs.take(name, None)
    size = knobs.take("projection_dim", 512)
    text, vision = Knobs(knobs.take("text_config")), Knobs(knobs.take("vision_config"))
    for part in (text, vision):
        for name in ("projection_dim", "initializer_factor", "dropout"):  # of the whole model, or of training
            part.take(name, None)
    norm = NormConfig(kind="layer", bias=True, epsilon=vision.take("layer_norm_eps", 1e-5))
    own = NormConfig(kind="layer", bias=True, epsilon=text.take("layer_norm_eps", 1e-5))
    seen, read = _block(vision, norm), _block(text, own, causal=True)
    image = ImageEncoderConfig(
        width=vision.take("hidden_size"),
        patches=_patches(vision, bias=False, norm=norm),
        stack=StackConfig(**shortest_pattern([seen] * vision.take("num_hidden_layers")), final_norm=None),
    )
    end = text.values.get("eos_token_id", 49407)
    positions = PositionTableConfig(length=text.values.get("max_position_embeddings", 77))
    config = TwoTowerConfig(
        image=image,
        pool_norm=norm,
        vocab_size=text.take("vocab_size"),
        width=text.take("hidden_size"),
        embedding=EmbeddingConfig(positions=positions),
        text=StackConfig(**shortest_pattern([read] * text.take("num_hidden_layers")), final_norm=own),
        pool_token=None if end == 2 else end,  # early files say 2 and mean the highest id
        projection=size,
    )
    text.finish()
    vision.finish()
    return config


def _write_clip(model: TwoTowerConfig) -> dict[str, Any]:
    if model.embedding.positions is None:
        raise ConfigError("the text encoder has no table of positions")
    text = _written(model.text) | {
        "hidden_size": model.width,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.embedding.positions.length,
        "projection_dim": model.projection,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": 2 if model.pool_token is None else model.pool_token,
    }
    vision = _written(model.image.stack) | _written_patches(model.image.patches)
    vision |= {"hidden_size": model.image.width, "projection_dim": model.projection}
    return {"projection_dim": model.projection, "text_config": text, "vision_config": vision}


_CLIP_LAYER: Mapping[str, Name] = {
    **linear("self_attn.q_proj", "mixer/query", "(N H) D -> D N H"),
    **linear("self_attn.k_proj", "mixer/key", "(K H) D -> D K H"),
    **linear("self_attn.v_proj", "mixer/value", "(K H) D -> D K H"),
    **linear("self_attn.out_proj", "mixer/output", "D (N H) -> N H D"),
    **norm_names("mixer_norm", "layer_norm1"),
    **norm_names("feed_forward_norm", "layer_norm2"),
    **linear("mlp.fc1", "feed_forward/up", "F D -> D F"),
    **linear("mlp.fc2", "feed_forward/down", "D F -> F D"),
}


def _clip_outer() -> Names:
    vision, text = "vision_model", "text_model"
    return {
        "image/patches/matrix": Name(f"{vision}.embeddings.patch_embedding.weight", "D C h w -> h w C D"),
        "image/patches/class_token": Name(f"{vision}.embeddings.class_embedding", "D -> D"),
        "image/patches/positions": Name(f"{vision}.embeddings.position_embedding.weight", "P D -> P D"),
        **norm_names("image/patches/norm", f"{vision}.pre_layrnorm"),
        **norm_names("image_norm", f"{vision}.post_layernorm"),
        "image_projection": Name("visual_projection.weight", "E D -> D E"),
        "embedding/table": Name(f"{text}.embeddings.token_embedding.weight", "V D -> V D"),
        "embedding/positions/table": Name(f"{text}.embeddings.position_embedding.weight", "P D -> P D"),
        **norm_names("text/final_norm", f"{text}.final_layer_norm"),
        "text_projection": Name("text_projection.weight", "E D -> D E"),
        "log_scale": Name("logit_scale", "->"),
    }


CLIP = Architecture(
    model_type="clip",
    class_name="CLIPModel",
    config=TwoTowerConfig,
    read=_read_clip,
    write=_write_clip,
    prefix="",
    outer=_clip_outer(),
    blocks={
        "image/stack": under("vision_model.encoder.layers.{i}.", _CLIP_LAYER),
        "text": under("text_model.encoder.layers.{i}.", _CLIP_LAYER),
    },
    ignored=("position_ids",),
)
