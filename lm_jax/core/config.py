"""Typed configuration: every component's config is a dataclass that stands beside it.

A config is a tree of `Config` dataclasses whose shape mirrors the module tree. It holds plain values only
(bool, int, float, str, None, tuples of these, other configs), so it can be written as JSON and rebuilt.
"""

import dataclasses
import difflib
import importlib
import re
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from lm_jax.core.errors import ConfigError

_CLASS = "class"


@dataclasses.dataclass(kw_only=True)
class Config:
    """Base of all configs. Subclasses are `@dataclasses.dataclass(kw_only=True)` with typed, defaulted fields."""

    def validate(self) -> None:
        """Raises `ConfigError` where this node's own fields are inconsistent. Children are checked by `validate_tree`."""


def nodes(config: Config, path: str = "config") -> Iterator[tuple[str, Config]]:
    """Yields (path, node) for `config` and every config below it, parents first."""
    yield path, config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        children = enumerate(value) if isinstance(value, tuple) else [(None, value)]
        for index, child in children:
            if isinstance(child, Config):
                suffix = "" if index is None else f"[{index}]"
                yield from nodes(child, f"{path}.{field.name}{suffix}")


def validate_tree(config: Config) -> None:
    """Checks every field's type and every node's own rules; raises one `ConfigError` that lists all problems by path."""
    problems = []
    for path, node in nodes(config):
        hints = typing.get_type_hints(type(node))
        wrong = [f.name for f in dataclasses.fields(node) if not _is_a(getattr(node, f.name), hints[f.name])]
        problems += [f"{path}.{name}={getattr(node, name)!r} is not of type {_show(hints[name])}" for name in wrong]
        if wrong:
            continue
        try:
            node.validate()
        except ConfigError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ConfigError("; ".join(problems))


def _is_a(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_is_a(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_is_a(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_is_a, value, args))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _show(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises `ConfigError` unless `value` is one of `choices`; names the nearest one."""
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}{hint}")


def check_positive(config: Config, *names: str) -> None:
    """Raises `ConfigError` for the first of the fields `names` that is not above 0."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ConfigError(f"{name}={value} must be above 0")


def check_one_group(name: str, pattern: str, what: str) -> None:
    """Raises `ConfigError` where the field `name` is no regular expression with one group; `what` says what that is for."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"{name}={pattern!r} is no regular expression: {error}") from error
    if groups != 1:
        raise ConfigError(f"{name}={pattern!r} has {groups} groups and must have one: {what}")


def to_json(value: Any) -> Any:
    """The config as JSON-ready dicts and lists. A config becomes a dict whose "class" names its class."""
    if isinstance(value, Config):
        kind = type(value)
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_CLASS: f"{kind.__module__}.{kind.__qualname__}", **fields}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{value!r} cannot stand in a config: use bool, int, float, str, None, tuples and configs")


def from_json(value: Any) -> Any:
    """Rebuilds what `to_json` wrote. Raises `ConfigError` for an unknown class or field.

    Only classes inside `lm_jax`, or classes already imported (an experiment's own), are accepted: a record on disk
    never causes other code to be imported.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = _config_class(value[_CLASS])
    known = [f.name for f in dataclasses.fields(kind)]
    for name in value:
        if name != _CLASS and name not in known:
            raise ConfigError(f"{value[_CLASS]} has no field {name!r}{nearest(name, known)}")
    return kind(**{name: from_json(item) for name, item in value.items() if name != _CLASS})


def nearest(name: str, known: list[str]) -> str:
    """A hint that names the known word nearest to `name`, or all known words when none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}"


def _config_class(name: str) -> type[Config]:
    module_name, _, class_name = name.rpartition(".")
    if module_name.split(".")[0] == "lm_jax":
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError:
            module = None
    else:
        module = sys.modules.get(module_name)
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Config)):
        raise ConfigError(f"config class {name!r} is not known; for a class of your own, pass its --config file")
    return kind


def flatten(config: Config) -> dict[str, Any]:
    """Dotted path -> plain value for every leaf, and path -> class name for every node below the root."""
    flat: dict[str, Any] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                visit(f"{path}.{name}" if path else name, item)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                visit(f"{path}[{index}]", item)
        else:
            flat[path] = value

    visit("", to_json(config))
    return flat


def diff(old: Config, new: Config) -> list[str]:
    """One line per differing leaf: `path: old -> new`."""
    a, b = flatten(old), flatten(new)
    missing = "(absent)"
    return [
        f"{path}: {a.get(path, missing)!r} -> {b.get(path, missing)!r}"
        for path in sorted(a.keys() | b.keys())
        if a.get(path, missing) != b.get(path, missing)
    ]
