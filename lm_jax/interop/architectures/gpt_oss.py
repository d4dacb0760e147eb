"""gpt-oss: attention with sinks, experts with biases and a clamped gate."""

from typing import Any

from lm_jax.interop.architectures.common import ATTENTION, OUTER, PRE_NORMS, Architecture, layers
from lm_jax.interop.architectures.llama import read_attention, read_decoder, write_decoder
from lm_jax.interop.architectures.mixtral import mixture_of
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.router import RouterConfig


def _read(knobs: Knobs, i: int, norm: NormConfig) -> BlockConfig:
    for name in ("hidden_act", "experts_per_token", "initial_context_length"):  # said by others too
        knobs.take(name, None)
    knobs.only("swiglu_alpha", 1.702)
    limit = knobs.take("swiglu_limit", 7.0)
    expert = MLPConfig(
        hidden=knobs.take("intermediate_size"), activation="gelu_quick", gated=True, bias=True, limit=limit, shift=1.0
    )
    mixture = MoEConfig(
        num_experts=knobs.take("num_local_experts"),
        expert=expert,
        router=RouterConfig(top_k=knobs.take("num_experts_per_tok"), bias=True),
    )
    return BlockConfig(norm=norm, mixer=read_attention(knobs, i, sinks=True), feed_forward=mixture)


def _write(model: DecoderConfig) -> dict[str, Any]:
    mixture = mixture_of(model)
    return write_decoder(model) | {
        "attention_bias": model.stack.layers[0].mixer.bias,
        "intermediate_size": mixture.expert.hidden,
        "swiglu_limit": mixture.expert.limit,
        "num_local_experts": mixture.num_experts,
        "num_experts_per_tok": mixture.router.top_k,
    }


_EXPERTS = "mlp.experts"
GPT_OSS = Architecture(
    model_type="gpt_oss",
    class_name="GptOssForCausalLM",
    read=lambda knobs: read_decoder(knobs, _read, norm=NormConfig(epsilon=1e-5), tied=False),
    write=_write,
    outer=OUTER,
    blocks=layers(
        ATTENTION
        | PRE_NORMS
        | {
            "mixer/sinks": Name("self_attn.sinks", "N -> N"),
            "mixture/router/matrix": Name("mlp.router.weight", "E D -> D E"),
            "mixture/router/bias": Name("mlp.router.bias", "E -> E"),
            "mixture/gate": Name(f"{_EXPERTS}.gate_up_proj", "E D F -> E D F", part=0, along=2, interleaved=True),
            "mixture/up": Name(f"{_EXPERTS}.gate_up_proj", "E D F -> E D F", part=1, along=2, interleaved=True),
            "mixture/gate_bias": Name(f"{_EXPERTS}.gate_up_proj_bias", "E F -> E F", part=0, along=1, interleaved=True),
            "mixture/up_bias": Name(f"{_EXPERTS}.gate_up_proj_bias", "E F -> E F", part=1, along=1, interleaved=True),
            "mixture/down": Name(f"{_EXPERTS}.down_proj", "E F D -> E F D"),
            "mixture/down_bias": Name(f"{_EXPERTS}.down_proj_bias", "E D -> E D"),
        }
    ),
)
