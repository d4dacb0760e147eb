"""GPT-2."""

from typing import Any

from lm_jax.interop.architectures.common import Architecture, activation, activation_name, norm_names, shortest_pattern, under
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig
from lm_jax.nn.stack import StackConfig


def _read(knobs: Knobs) -> DecoderConfig:
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        knobs.only(name, False)
    knobs.only("scale_attn_weights", True)
    for name in ("n_ctx", *(f"summary_{what}" for what in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"))):
        knobs.take(name, None)
    width = knobs.take("n_embd")
    norm = NormConfig(kind="layer", bias=True, epsilon=knobs.take("layer_norm_epsilon", 1e-5))
    act = activation(knobs, "activation_function")
    block = BlockConfig(
        norm=norm,
        mixer=AttentionConfig(num_heads=knobs.take("n_head"), bias=True, output_bias=True),
        feed_forward=MLPConfig(hidden=knobs.take("n_inner", 4 * width), activation=act, bias=True),
    )
    return DecoderConfig(
        vocab_size=knobs.take("vocab_size"),
        width=width,
        embedding=EmbeddingConfig(positions=PositionTableConfig(length=knobs.take("n_positions"))),
        stack=StackConfig(**shortest_pattern([block] * knobs.take("n_layer")), final_norm=norm),
        head=HeadConfig(tied=knobs.take("tie_word_embeddings", True)),
    )


def _write(model: DecoderConfig) -> dict[str, Any]:
    block = model.stack.pattern[0]
    theirs = {ours: name for name, ours in (("gelu_new", "gelu_tanh"),)}
    act = block.feed_forward.activation
    return {
        "vocab_size": model.vocab_size,
        "n_embd": model.width,
        "n_layer": model.stack.num_layers,
        "n_head": block.mixer.num_heads,
        "n_inner": block.feed_forward.hidden,
        "n_positions": model.max_length(),
        "activation_function": theirs.get(act) or activation_name(act),
        "layer_norm_epsilon": block.norm.epsilon,
        "tie_word_embeddings": model.head.tied,
    }


_LAYER = "transformer.h.{i}"
_QKV = [
    (f"mixer/{name}{suffix}", Name(f"attn.c_attn.{kind}", axes, part=part, along=along))
    for part, name in enumerate(("query", "key", "value"))
    for suffix, kind, axes, along in (("", "weight", "D (N H) -> D N H", 1), ("_bias", "bias", "(N H) -> N H", 0))
]

GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    read=_read,
    write=_write,
    prefix="transformer.",
    ignored=("attn.bias", "attn.masked_bias"),
    outer={
        "embedding/table": Name("transformer.wte.weight", "V D -> V D"),
        "embedding/positions/table": Name("transformer.wpe.weight", "P D -> P D"),
        **norm_names("stack/final_norm", "transformer.ln_f"),
        "head/matrix": Name("lm_head.weight", "V D -> D V"),
    },
    blocks={
        "stack": under(
            f"{_LAYER}.",
            {
                **dict(_QKV),
                "mixer/output": Name("attn.c_proj.weight", "(N H) D -> N H D"),
                "mixer/output_bias": Name("attn.c_proj.bias", "D -> D"),
                "feed_forward/up": Name("mlp.c_fc.weight", "D F -> D F"),
                "feed_forward/up_bias": Name("mlp.c_fc.bias", "F -> F"),
                "feed_forward/down": Name("mlp.c_proj.weight", "F D -> F D"),
                "feed_forward/down_bias": Name("mlp.c_proj.bias", "D -> D"),
                **norm_names("mixer_norm", "ln_1"),
                **norm_names("feed_forward_norm", "ln_2"),
            },
        )
    },
)
