"""Configs as records: JSON and back, differences, types."""

import dataclasses
import json

import pytest

from lm_jax.core.config import Config, diff, from_json, nodes, to_json, validate_tree
from lm_jax.core.errors import ConfigError
from tests.models_for_tests import MODELS, llama


@pytest.mark.parametrize("name", MODELS)
def test_json_rebuilds_the_same_config(name):
    config = MODELS[name]
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config and diff(config, again) == []
    assert [path for path, _ in nodes(again)] == [path for path, _ in nodes(config)]


def test_diff_names_every_leaf_that_differs():
    other = llama(width=64)
    other.stack.pattern[0].mixer.rotary = None
    lines = diff(llama(), other)
    assert "width: 32 -> 64" in lines
    assert "stack.pattern[0].mixer.rotary: '(absent)' -> None" in lines


def test_a_record_cannot_import_code():
    for name in (
        "os.path.join",
        "subprocess.Popen",
        "lm_jax.core.config.to_json",
        "lm_jax.nothing.Here",
        "antigravity.X",
    ):
        with pytest.raises(ConfigError, match="is not known"):
            from_json({"class": name})


def test_unknown_fields_name_the_nearest():
    record = to_json(llama())
    record["widht"] = 3
    with pytest.raises(ConfigError, match="'widht'; did you mean 'width'"):
        from_json(record)


@dataclasses.dataclass(kw_only=True)
class Typed(Config):
    count: int = 1
    rate: float = 0.5
    name: str | None = None
    pair: tuple[float, float] = (0.9, 0.99)
    flag: bool = False


@pytest.mark.parametrize(
    "wrong", [dict(count=1.5), dict(count=True), dict(rate="x"), dict(name=3), dict(pair=(1.0,)), dict(flag=1)]
)
def test_wrong_types_are_named_with_their_path(wrong):
    with pytest.raises(ConfigError, match=rf"config\.{next(iter(wrong))}=.* is not of type"):
        validate_tree(Typed(**wrong))


def test_right_types_pass():
    validate_tree(Typed(count=2, rate=1, name="a", pair=(1, 2.0)))


def test_all_problems_are_listed_at_once():
    config = llama(dtype="f32")
    config.stack.pattern[0].placement = "middle"
    with pytest.raises(ConfigError) as error:
        validate_tree(config)
    assert "dtype" in str(error.value) and "config.stack.pattern[0]: placement='middle'" in str(error.value)
