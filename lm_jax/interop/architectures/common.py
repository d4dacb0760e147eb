"""What the architectures share: how one is described, and knobs and names that are the same in many."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_jax.core.errors import ConfigError, DataError
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import Name, Names
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.rope_scaling import LinearRope, Llama3Rope, LongRope, RopeScaling, YarnRope

FULL, SLIDING = "full_attention", "sliding_attention"

# Activations by the names of Hugging Face; the first one of each is written.
ACTIVATIONS = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu_squared",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of Hugging Face `transformers`: its config.json as a `DecoderConfig` and back, its tensors as parameters.

    Attributes:
      model_type, class_name: as config.json has them.
      config: the class of the model.
      read: raises `DataError` for values that it cannot have.
      write: the inverse, for models of this architecture; others are found by reading it again.
      outer, blocks: names of tensors; see `names.pieces`.
      prefix: of the tensors' names, which files of the bare model lack.
      ignored: tensors that may stand in a file and hold nothing of their own.
      older: ends of names as they are in older files, by what they are in newer ones.
      further_layers: layers beyond those of config.json may stand in a file and are not read.
    """

    model_type: str
    class_name: str
    config: type = DecoderConfig
    read: Callable[[Knobs], Any]
    write: Callable[[Any], dict[str, Any]]
    outer: Names
    blocks: Mapping[str, Names] | Callable[[Any], Mapping[str, Names]]  # a function of the model where they depend on it
    prefix: str = "model."
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    older: Mapping[str, str] = dataclasses.field(default_factory=dict)
    further_layers: bool = False

    def names(self, model: Any) -> tuple[Names, Mapping[str, Names]]:
        """(outer, blocks) of a model."""
        return self.outer, self.blocks(model) if callable(self.blocks) else self.blocks


def linear(tensor: str, parameter: str, axes: str) -> Names:
    """The names of a projection's matrix and bias; `axes` are those of the matrix, output first in the file."""
    out = axes.split("->")[0].strip()
    out = out[: out.index(")") + 1] if out.startswith("(") else out.split()[0]
    bias = f"{out} -> {out.strip('()')}"
    return {parameter: Name(f"{tensor}.weight", axes), f"{parameter}_bias": Name(f"{tensor}.bias", bias)}


def norm_names(ours: str, theirs: str) -> Names:
    """The names of a norm's scale and bias."""
    return {f"{ours}/scale": Name(f"{theirs}.weight", "D -> D"), f"{ours}/bias": Name(f"{theirs}.bias", "D -> D")}


def under(prefix: str, tensors: Names) -> Names:
    """The names with a prefix, such as "model.layers.{i}."."""
    return {path: dataclasses.replace(name, tensor=prefix + name.tensor) for path, name in tensors.items()}


def layers(tensors: Names) -> dict[str, Names]:
    """The names within layer {i} of a Llama-style file, as `Architecture.blocks`."""
    return {"stack": under("model.layers.{i}.", tensors)}


ATTENTION = {
    **linear("self_attn.q_proj", "mixer/query", "(N H) D -> D N H"),
    **linear("self_attn.k_proj", "mixer/key", "(K H) D -> D K H"),
    **linear("self_attn.v_proj", "mixer/value", "(K H) D -> D K H"),
    **linear("self_attn.o_proj", "mixer/output", "D (N H) -> N H D"),
    "mixer/query_norm/scale": Name("self_attn.q_norm.weight", "H -> H"),
    "mixer/key_norm/scale": Name("self_attn.k_norm.weight", "H -> H"),
}
GATED = {
    **linear("mlp.up_proj", "feed_forward/up", "F D -> D F"),
    **linear("mlp.down_proj", "feed_forward/down", "D F -> F D"),
    **linear("mlp.gate_proj", "feed_forward/gate", "F D -> D F"),
}
PRE_NORMS = {
    "mixer_norm/scale": Name("input_layernorm.weight", "D -> D"),
    "feed_forward_norm/scale": Name("post_attention_layernorm.weight", "D -> D"),
}
OUTER = {
    "embedding/table": Name("model.embed_tokens.weight", "V D -> V D"),
    "stack/final_norm/scale": Name("model.norm.weight", "D -> D"),
    "head/matrix": Name("lm_head.weight", "V D -> D V"),
}


def activation(knobs: Knobs, name: str = "hidden_act") -> str:
    """The activation by our name."""
    value = knobs.take(name)
    if value not in ACTIVATIONS:
        raise DataError(f"config.json: {name}={value!r} is not supported; it may be {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def activation_name(value: str) -> str:
    """The activation by the name of Hugging Face."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == value)


def shortest_pattern(blocks: Sequence[BlockConfig]) -> dict[str, Any]:
    """{"prelude", "pattern", "repeats"} of a stack of these layers, with as few blocks in prelude and pattern as there can be."""
    count, kinds = len(blocks), [next(i for i, other in enumerate(blocks) if other == block) for block in blocks]

    def repeats(first: int, period: int) -> bool:
        return (count - first) % period == 0 and all(kinds[i] == kinds[i + period] for i in range(first, count - period))

    choices = [(first, period) for first in range(count) for period in range(1, count - first + 1) if repeats(first, period)]
    first, period = min(choices, key=lambda choice: (sum(choice), choice[0]))
    pattern = tuple(blocks[first : first + period])
    return {"prelude": tuple(blocks[:first]), "pattern": pattern, "repeats": (count - first) // period}


def each_layer(model: DecoderConfig) -> list[BlockConfig]:
    """The blocks of all layers, in order."""
    return list(model.stack.layers)


def rotary(knobs: Knobs, layer_type: str = FULL, default_base: float = 10_000.0) -> RotaryConfig:
    """Of `rope_parameters`, which may differ between layer types, or in older files of `rope_theta` and `rope_scaling`."""
    found = knobs.take("rope_parameters", None)
    if found is None:
        found = {"rope_theta": knobs.take("rope_theta", default_base), **(knobs.take("rope_scaling", None) or {})}
    found = dict(found.get(layer_type, {}) if FULL in found or SLIDING in found else found)
    fraction = found.pop("partial_rotary_factor", knobs.take("partial_rotary_factor", 1.0))
    base, kind = found.pop("rope_theta", default_base), found.pop("rope_type", found.pop("type", "default"))
    found.pop("type", None)
    scaling = _scaling(kind, found, knobs)
    if found:
        raise DataError(f"config.json: rope_parameters of type {kind!r} has {found}, which lm_jax does not have")
    return RotaryConfig(base=base, fraction=fraction, scaling=scaling)


def _scaling(kind: str, found: dict[str, Any], knobs: Knobs) -> RopeScaling | None:
    take = found.pop
    try:
        if kind == "default":
            return None
        if kind == "linear":
            return LinearRope(factor=take("factor"))
        if kind == "llama3":
            low, high, length = take("low_freq_factor"), take("high_freq_factor"), take("original_max_position_embeddings")
            return Llama3Rope(factor=take("factor"), low=low, high=high, length=length)
        if kind == "yarn":
            length = take("original_max_position_embeddings", None) or knobs.take("max_position_embeddings")
            config = YarnRope(factor=take("factor"), length=length, truncate=take("truncate", True))
            config.fast, config.slow = take("beta_fast", None) or 32.0, take("beta_slow", None) or 1.0
            amplitude, scales = take("attention_factor", None), (take("mscale", None), take("mscale_all_dim", None))
            if amplitude is None and all(scales):
                own, of_all = (0.1 * scale * math.log(config.factor) + 1.0 for scale in scales)
                amplitude = own / of_all
            if amplitude is not None and not math.isclose(amplitude, config.amplitude):
                config.attention = amplitude
            return config
        if kind in ("longrope", "su"):
            lengths = [take("original_max_position_embeddings", None), knobs.take("original_max_position_embeddings", None)]
            whole = knobs.take("max_position_embeddings")
            length = next((length for length in lengths if length is not None), whole)
            config = LongRope(short=tuple(take("short_factor")), long=tuple(take("long_factor")), length=length)
            config.factor, amplitude = take("factor", None) or whole / length, take("attention_factor", None)
            if amplitude is not None and not math.isclose(amplitude, config.amplitude):
                config.attention = amplitude
            return config
    except KeyError as error:
        raise DataError(f"config.json: rope_parameters of type {kind!r} lacks {error}") from error
    raise DataError(f"config.json: rope_type={kind!r} is not supported; it may be default, linear, llama3, yarn or longrope")


def write_rotary(config: RotaryConfig) -> dict[str, Any]:
    """`rope_parameters`. Raises `ConfigError` for what it cannot say."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": config.base}
    if config.fraction != 1.0:
        found["partial_rotary_factor"] = config.fraction
    match config.scaling:
        case None:
            return found
        case LinearRope(factor=factor):
            return found | {"rope_type": "linear", "factor": factor}
        case Llama3Rope(factor=factor, low=low, high=high, length=length):
            found |= {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            return found | {"original_max_position_embeddings": length}
        case YarnRope() as yarn:
            found |= {"rope_type": "yarn", "factor": yarn.factor, "beta_fast": yarn.fast, "beta_slow": yarn.slow}
            found |= {"truncate": yarn.truncate, "attention_factor": yarn.amplitude}
            return found | {"original_max_position_embeddings": yarn.length}
        case LongRope() as long:
            found |= {"rope_type": "longrope", "short_factor": list(long.short), "long_factor": list(long.long)}
            found |= {"factor": long.factor, "attention_factor": long.amplitude}
            return found | {"original_max_position_embeddings": long.length}
    raise ConfigError(f"config.json has no rope_type for {config.scaling}")
