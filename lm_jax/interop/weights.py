"""Weights of Hugging Face files as parameters on any mesh, and back, a piece at a time."""

import concurrent.futures
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lm_jax.core.config import diff
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.param import Params
from lm_jax.interop.architectures import ARCHITECTURES, Architecture
from lm_jax.interop.knobs import Knobs
from lm_jax.interop.names import ModelConfig, Piece, copy, pieces, stored_shape
from lm_jax.interop.safetensors import Tensor, Tensors
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.init import Init
from lm_jax.nn.latent_attention import LatentAttentionConfig
from lm_jax.nn.stack import StackConfig

_THREADS = 2  # that copy tensors at once: memory is as busy as it gets, and each has a tensor of the files in memory


def read_model(folder: Path) -> tuple[Architecture, ModelConfig, dict[str, Any]]:
    """(architecture, model, the fields) of a directory's config.json.

    Raises `DataError` for a file that is no JSON object, an architecture that is not known (the known ones are listed), and a
    knob that lm_jax does not have.
    """
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text())
        kind = fields.get("model_type")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is no JSON object: {error}") from error
    if kind not in ARCHITECTURES:
        raise DataError(f"{path}: model_type={kind!r} is not known; these are: {', '.join(ARCHITECTURES)}")
    knobs = Knobs(fields)
    model = ARCHITECTURES[kind].read(knobs)
    knobs.finish()
    return ARCHITECTURES[kind], model, fields


def write_model(model: ModelConfig, model_type: str | None = None) -> tuple[Architecture, dict[str, Any]]:
    """(architecture, fields of config.json) of a model: of `model_type`, or of the first architecture that can say it.

    Raises `ConfigError`, with what differs, where it (or none) can.
    """
    if model_type is not None and model_type not in ARCHITECTURES:
        raise ConfigError(f"architecture {model_type!r} is not known; these are: {', '.join(ARCHITECTURES)}")
    problems = []
    known = [architecture for architecture in ARCHITECTURES.values() if isinstance(model, architecture.config)]
    for architecture in known if model_type is None else [ARCHITECTURES[model_type]]:
        try:
            fields = architecture.write(model)
            knobs = Knobs(fields)
            again = architecture.read(knobs)
            knobs.finish()
        except (AttributeError, KeyError, TypeError, DataError, ConfigError) as error:
            problems.append(f"{architecture.model_type}: {error}")
            continue
        differing = diff(_essence(again), _essence(model))
        if not differing:
            tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))  # else those of the class's defaults
            kind = {"model_type": architecture.model_type, "architectures": [architecture.class_name]}
            return architecture, tokens | fields | kind
        problems.append(f"{architecture.model_type}: {'; '.join(differing[:3])}")
    raise ConfigError("config.json of Hugging Face cannot describe this model: " + " | ".join(problems))


def _essence(part: Any, width: int | None = None) -> Any:
    """The model, or a part of it, without what changes no logit at evaluation, written in one way."""
    if isinstance(part, tuple):
        return tuple(_essence(item, width) for item in part)
    if isinstance(part, Init) or not dataclasses.is_dataclass(part):
        return Init() if isinstance(part, Init) else part
    width = getattr(part, "width", width)
    part = dataclasses.replace(part, **{name: _essence(value, width) for name, value in vars(part).items()})
    for name, plain in _CHANGES_NOTHING.items():
        if hasattr(part, name):
            setattr(part, name, plain)
    if isinstance(part, AttentionConfig):
        part.head_dim, part.num_kv_heads = part.size(width), part.num_kv_heads or part.num_heads
        part.key_bias = part.bias if part.key_bias is None else part.key_bias
    if isinstance(part, AttentionConfig | LatentAttentionConfig):
        part.scale = round(part.scale or part.sizes(width)[0] ** -0.5, 9)
    if isinstance(part, StackConfig):
        part.prelude, part.pattern, part.repeats = (), part.layers, 1
    return part


_LAYER = r"\.layers\.(\d+)\."  # of a tensor's name
_CHANGES_NOTHING = {
    "dropout": 0.0,
    "dtype": "float32",
    "implementation": "auto",
    "load_balance": 0.0,
    "z_loss": 0.0,
    "balance_over": "batch",
    "capacity_factor": None,
    "room": None,
    "rounds": 1,
    "unroll": 1,
    "remat": "none",
    "vocab_multiple": 1,
    "multi_token": None,
}


def load(architecture: Architecture, model: ModelConfig, shapes: Params, tensors: Tensors, mesh: Mesh | None = None) -> Params:
    """The parameters of `shapes`, read from the tensors: with their shardings on `mesh`, or on one device without.

    Every device's shard is read by itself: beyond the shards, only pages of the files are in memory. Raises `DataError` for
    a tensor that is missing, too many or of another shape, before anything is allocated.
    """
    flat = _flatten(shapes)
    groups = list(pieces(model, {path: x.shape for path, x in flat.items()}, *architecture.names(model)))
    names = _actual_names(architecture, groups, tensors)
    _check(architecture, groups, names, tensors)
    by_path: dict[str, list[tuple[Piece, str]]] = {}
    for group in groups:
        for piece in group:
            by_path.setdefault("/".join(piece.path), []).append((piece, names[piece.tensor]))
    loaded = {path: _array(x, by_path[path], tensors, mesh) for path, x in flat.items()}
    return _unflatten(loaded)


def _array(like: Any, parts: list[tuple[Piece, str]], tensors: Tensors, mesh: Mesh | None) -> jax.Array:
    def shard(index: tuple[slice, ...]) -> np.ndarray:
        bounds = [range(*cut.indices(size)) for cut, size in zip(index, like.shape, strict=True)]
        values = np.zeros([len(bound) for bound in bounds], like.dtype)

        def place(piece: Piece, tensor: str) -> None:
            at = tuple(i - bound.start for i, bound in zip(piece.index, bounds, strict=False))
            part = piece.name.load(piece.of(tensors[tensor]), piece.shape)[index[len(at) :]]
            copy(values[(*at, *map(slice, part.shape), ...)], part)

        inside = [part for part in parts if all(i in bound for i, bound in zip(part[0].index, bounds, strict=False))]
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(place, *zip(*inside, strict=True)) if inside else ())
        return values

    if mesh is None:
        return jax.numpy.asarray(shard((slice(None),) * len(like.shape)))
    return jax.make_array_from_callback(like.shape, NamedSharding(mesh, like.sharding.spec), shard)


def _actual_names(architecture: Architecture, groups: list[list[Piece]], tensors: Tensors) -> dict[str, str]:
    """Files of a bare model (without a head) leave out the prefix of the names, older files have other ends."""
    wanted = [group[0].tensor for group in groups]
    bare = not any(name.startswith(architecture.prefix) for name in tensors)
    actual = {name: name.removeprefix(architecture.prefix) if bare else name for name in wanted}
    for newer, older in architecture.older.items():
        for name, found in actual.items():
            if found not in tensors and found.endswith(newer):
                actual[name] = found.removesuffix(newer) + older
    return actual


def _check(architecture: Architecture, groups: list[list[Piece]], names: dict[str, str], tensors: Tensors) -> None:
    problems = []
    for group in groups:
        name, shape = names[group[0].tensor], stored_shape(group)
        if name not in tensors:
            problems.append(f"{name} {shape} is missing")
        elif tensors.shape(name) != shape:
            problems.append(f"{name} is {tensors.shape(name)}, not {shape}")
    # A tied head may be stored beside the embedding that it is.
    known = {*names.values(), "lm_head.weight"}
    layers = len(re.findall(_LAYER, " ".join(known))) and 1 + max(int(n) for name in known for n in re.findall(_LAYER, name))
    for name in tensors:
        further = architecture.further_layers and any(int(n) >= layers for n in re.findall(_LAYER, name))
        if name not in known and not name.endswith(architecture.ignored) and not further:
            problems.append(f"{name} {tensors.shape(name)} is too many")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(f"the tensors are not those of config.json ({architecture.model_type}): {'; '.join(problems[:5])}{more}")


def stored(architecture: Architecture, model: ModelConfig, params: Params, dtype: Any) -> Iterator[Tensor]:
    """The tensors of a model in `dtype`, in the order of its layers; each is taken from the devices when it is read."""
    flat = _flatten(params)
    groups = pieces(model, {path: x.shape for path, x in flat.items()}, *architecture.names(model))

    def read(group: list[Piece]) -> np.ndarray:
        values = np.empty(stored_shape(group), dtype)
        for piece in group:
            part = np.asarray(flat["/".join(piece.path)][piece.index])[(*map(slice, piece.shape), ...)]
            copy(piece.of(values), piece.name.store(part))
        return values

    for group in groups:
        yield Tensor(group[0].tensor, stored_shape(group), dtype, lambda group=group: read(group))


def _flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _unflatten(flat: dict[str, Any]) -> Params:
    tree: Params = {}
    for path, value in flat.items():
        *above, name = path.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[name] = value
    return tree
