"""Text encoders with a masked-LM head: BERT, RoBERTa, ModernBERT."""

from typing import Any

from lm_jax.core.errors import ConfigError
from lm_jax.interop.architectures.common import (
    FULL,
    SLIDING,
    Architecture,
    activation,
    activation_name,
    each_layer,
    linear,
    norm_names,
    rotary,
    shortest_pattern,
    under,
    write_rotary,
)
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name
from lm_jax.models.encoder import EncoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.head import HeadConfig, TransformConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig
from lm_jax.nn.stack import StackConfig


def _read_bert(knobs: Knobs, transform: str | None, offset: int) -> EncoderConfig:
    knobs.only("position_embedding_type", "absolute")
    for name in ("is_decoder", "add_cross_attention"):
        knobs.only(name, False)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        knobs.take(name, None)
    norm = NormConfig(kind="layer", bias=True, epsilon=knobs.take("layer_norm_eps", 1e-12))
    act = activation(knobs)
    block = BlockConfig(
        norm=norm,
        placement="post",
        mixer=AttentionConfig(num_heads=knobs.take("num_attention_heads"), causal=False, bias=True, output_bias=True),
        feed_forward=MLPConfig(hidden=knobs.take("intermediate_size"), activation=act, bias=True),
    )
    positions = PositionTableConfig(length=knobs.take("max_position_embeddings"), offset=offset)
    return EncoderConfig(
        vocab_size=knobs.take("vocab_size"),
        width=knobs.take("hidden_size"),
        embedding=EmbeddingConfig(positions=positions, token_types=knobs.take("type_vocab_size", 2), norm=norm),
        stack=StackConfig(**shortest_pattern([block] * knobs.take("num_hidden_layers")), final_norm=None),
        head=HeadConfig(
            tied=knobs.take("tie_word_embeddings", True),
            bias=True,
            transform=TransformConfig(activation=transform or act, norm=norm),
        ),
    )


def _write_bert(model: EncoderConfig) -> dict[str, Any]:
    block = model.stack.layers[0]
    if model.embedding.positions is None:
        raise ConfigError("the model has no table of positions")
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.stack.num_layers,
        "num_attention_heads": block.mixer.num_heads,
        "intermediate_size": block.feed_forward.hidden,
        "hidden_act": activation_name(block.feed_forward.activation),
        "max_position_embeddings": model.embedding.positions.length,
        "type_vocab_size": model.embedding.token_types,
        "layer_norm_eps": block.norm.epsilon,
        "tie_word_embeddings": model.head.tied,
    }


def _bert_names(prefix: str, transform: str, norm: str, bias: str, decoder: str) -> dict[str, Any]:
    embeddings = f"{prefix}.embeddings"
    outer = {
        "embedding/table": Name(f"{embeddings}.word_embeddings.weight", "V D -> V D"),
        "embedding/positions/table": Name(f"{embeddings}.position_embeddings.weight", "P D -> P D"),
        "embedding/token_types": Name(f"{embeddings}.token_type_embeddings.weight", "P D -> P D"),
        **norm_names("embedding/norm", f"{embeddings}.LayerNorm"),
        "head/transform/matrix": Name(f"{transform}.weight", "E D -> D E"),
        "head/transform/bias": Name(f"{transform}.bias", "E -> E"),
        **norm_names("head/transform/norm", norm),
        "head/bias": Name(bias, "V -> V"),
        "head/matrix": Name(f"{decoder}.weight", "V D -> D V"),
    }
    block = {
        **linear("attention.self.query", "mixer/query", "(N H) D -> D N H"),
        **linear("attention.self.key", "mixer/key", "(K H) D -> D K H"),
        **linear("attention.self.value", "mixer/value", "(K H) D -> D K H"),
        **linear("attention.output.dense", "mixer/output", "D (N H) -> N H D"),
        **norm_names("mixer_post_norm", "attention.output.LayerNorm"),
        **linear("intermediate.dense", "feed_forward/up", "F D -> D F"),
        **linear("output.dense", "feed_forward/down", "D F -> F D"),
        **norm_names("feed_forward_post_norm", "output.LayerNorm"),
    }
    ignored = ("position_ids", "pooler.dense.weight", "pooler.dense.bias", f"{decoder}.bias", f"{decoder}.weight")
    return {
        "config": EncoderConfig,
        "prefix": f"{prefix}.",
        "outer": outer,
        "blocks": {"stack": under(f"{prefix}.encoder.layer.{{i}}.", block)},
        "ignored": (*ignored, "cls.seq_relationship.weight", "cls.seq_relationship.bias"),
        "older": {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"},
    }


BERT = Architecture(
    model_type="bert",
    class_name="BertForMaskedLM",
    read=lambda knobs: _read_bert(knobs, None, 0),
    write=_write_bert,
    **_bert_names(
        "bert",
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
        "cls.predictions.decoder",
    ),
)


def _read_roberta(knobs: Knobs) -> EncoderConfig:
    return _read_bert(knobs, "gelu", knobs.values.get("pad_token_id", 1) + 1)


def _write_roberta(model: EncoderConfig) -> dict[str, Any]:
    fields = _write_bert(model)
    return fields | {"pad_token_id": model.embedding.positions.offset - 1}


ROBERTA = Architecture(
    model_type="roberta",
    class_name="RobertaForMaskedLM",
    read=_read_roberta,
    write=_write_roberta,
    **_bert_names("roberta", "lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder"),
)


def _read_modernbert(knobs: Knobs) -> EncoderConfig:
    knobs.only("sparse_prediction", False)
    for name in ("embedding_dropout", "mlp_dropout", "classifier_dropout", "classifier_pooling", "cls_token_id", "sep_token_id"):
        knobs.take(name, None)
    for name in ("deterministic_flash_attn", "initializer_cutoff_factor", "sparse_pred_ignore_index", "reference_compile"):
        knobs.take(name, None)
    for name in ("layer_norm_eps", "position_embedding_type"):  # said by others too
        knobs.take(name, None)
    norm = NormConfig(kind="layer", epsilon=knobs.take("norm_eps", 1e-5), bias=knobs.take("norm_bias", False))
    count, bias = knobs.take("num_hidden_layers"), knobs.take("attention_bias", False)
    every = knobs.take("global_attn_every_n_layers", 3)
    kinds = knobs.take("layer_types", None) or [SLIDING if i % every else FULL for i in range(count)]
    bases = {
        FULL: knobs.take("global_rope_theta", 160_000.0),
        SLIDING: knobs.take("local_rope_theta", 10_000.0),
    }
    blocks = []
    for i, kind in enumerate(kinds):
        mixer = AttentionConfig(
            num_heads=knobs.take("num_attention_heads"),
            causal=False,
            window=knobs.take("local_attention", 128) // 2 + 1 if kind == SLIDING else None,
            rotary=rotary(knobs, kind, bases[kind]),
            bias=bias,
            output_bias=bias,
        )
        feed_forward = MLPConfig(
            hidden=knobs.take("intermediate_size"),
            activation=activation(knobs, "hidden_activation"),
            gated=True,
            bias=knobs.take("mlp_bias", False),
        )
        blocks.append(BlockConfig(norm=norm, mixer=mixer, feed_forward=feed_forward, mixer_norm=i > 0))
    transform = TransformConfig(
        activation=activation(knobs, "classifier_activation"), bias=knobs.take("classifier_bias", False), norm=norm
    )
    return EncoderConfig(
        vocab_size=knobs.take("vocab_size"),
        width=knobs.take("hidden_size"),
        embedding=EmbeddingConfig(norm=norm),
        stack=StackConfig(**shortest_pattern(blocks), final_norm=norm),
        head=HeadConfig(tied=knobs.take("tie_word_embeddings", True), bias=knobs.take("decoder_bias", True), transform=transform),
    )


def _write_modernbert(model: EncoderConfig) -> dict[str, Any]:
    blocks = each_layer(model)
    kinds = {SLIDING if block.mixer.window else FULL: block.mixer for block in blocks}
    window = next((block.mixer.window for block in blocks if block.mixer.window), 65)
    block, transform = blocks[0], model.head.transform
    if transform is None:
        raise ConfigError("the head has no transform")
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": block.mixer.num_heads,
        "intermediate_size": block.feed_forward.hidden,
        "hidden_activation": activation_name(block.feed_forward.activation),
        "layer_types": [SLIDING if block.mixer.window else FULL for block in blocks],
        "local_attention": 2 * (window - 1),
        "rope_parameters": {kind: write_rotary(mixer.rotary) for kind, mixer in kinds.items()},
        "attention_bias": block.mixer.bias,
        "mlp_bias": block.feed_forward.bias,
        "norm_eps": block.norm.epsilon,
        "norm_bias": block.norm.bias,
        "classifier_activation": activation_name(transform.activation),
        "classifier_bias": transform.bias,
        "decoder_bias": model.head.bias,
        "tie_word_embeddings": model.head.tied,
    }


_MODERN = {
    **{
        f"mixer/{name}{suffix}": Name(f"attn.Wqkv.{kind}", axes, part=part)
        for part, (name, one) in enumerate((("query", "N"), ("key", "K"), ("value", "K")))
        for suffix, kind, axes in (("", "weight", f"({one} H) D -> D {one} H"), ("_bias", "bias", f"({one} H) -> {one} H"))
    },
    **linear("attn.Wo", "mixer/output", "D (N H) -> N H D"),
    **norm_names("mixer_norm", "attn_norm"),
    **norm_names("feed_forward_norm", "mlp_norm"),
    **{
        f"feed_forward/{name}{suffix}": Name(f"mlp.Wi.{kind}", axes, part=part)
        for part, name in enumerate(("gate", "up"))
        for suffix, kind, axes in (("", "weight", "F D -> D F"), ("_bias", "bias", "F -> F"))
    },
    **linear("mlp.Wo", "feed_forward/down", "D F -> F D"),
}
MODERNBERT = Architecture(
    model_type="modernbert",
    class_name="ModernBertForMaskedLM",
    config=EncoderConfig,
    read=_read_modernbert,
    write=_write_modernbert,
    outer={
        "embedding/table": Name("model.embeddings.tok_embeddings.weight", "V D -> V D"),
        **norm_names("embedding/norm", "model.embeddings.norm"),
        **norm_names("stack/final_norm", "model.final_norm"),
        "head/transform/matrix": Name("head.dense.weight", "E D -> D E"),
        "head/transform/bias": Name("head.dense.bias", "E -> E"),
        **norm_names("head/transform/norm", "head.norm"),
        "head/matrix": Name("decoder.weight", "V D -> D V"),
        "head/bias": Name("decoder.bias", "V -> V"),
    },
    blocks={"stack": under("model.layers.{i}.", _MODERN)},
    ignored=("rotary_emb.inv_freq", "decoder.weight"),
)
