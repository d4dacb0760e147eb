"""Every experiment: its config round-trips, and one train step type-checks on a mesh of its size without any device."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lm_jax import parts
from lm_jax.config import Experiment, load_experiment
from lm_jax.core.config import from_json, to_json, validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.sharding import batch_specs, use_mesh
from lm_jax.train.step import train_step

FOLDER = Path(__file__).parents[1] / "experiments"
VARIANTS = {
    "chat": ["scratch"],
    "classification": ["trec", "subj", "thucnews"],
    "code": ["fim", "stdlib"],
    "denoising": ["ul2", "prefix"],
    "emoji": ["sigmoid", "coca"],
    "flickr8k": ["caption"],
    "masked_lm": ["finetune", "scratch"],
    "novels": ["lstm", "gru"],
    "speech_digits": ["seq2seq"],
    "squad": ["generative"],
    "summaries": ["prompted", "bbc"],
    "translation": ["original", "luong", "bahdanau", "gru"],
    "wikitext2": ["transformer"],
    "word_vectors": ["cbow", "glove"],
}  # beside what an experiment is by default
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "def get_config" in path.read_text())


def module(name: str):
    sys.path.insert(0, str(FOLDER))
    try:
        source = importlib.util.spec_from_file_location(f"experiment_{name}", FOLDER / f"{name}.py")
        loaded = importlib.util.module_from_spec(source)
        source.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(FOLDER))
    return loaded


def abstract_step(experiment: Experiment, num_devices: int):
    """(state before, state after, metrics) of one step on an abstract mesh: types only, no arrays."""
    mesh = experiment.mesh.abstract(num_devices)
    parts.check_mesh(experiment, mesh)
    with use_mesh(mesh, experiment.layout):
        built = parts.build(experiment)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(lambda key: parts.initial_state(experiment, built, key), key)
        shapes = experiment.data.shapes()
        batch = {
            name: jax.ShapeDtypeStruct(shapes[name].shape, shapes[name].dtype, sharding=NamedSharding(mesh, where))
            for name, where in batch_specs(shapes).items()
        }

        def step(state, batch, key):
            objective = experiment.objective.build()
            return train_step(
                state,
                batch,
                key,
                graph=built.graph,
                objective=objective,
                optimizer=built.optimizer,
                config=experiment.step,
            )

        after, metrics, _ = jax.eval_shape(step, state, batch, key)
    return mesh, state, after, metrics


def placed():
    """(name, argument, number of devices) of every experiment, on every number of chips that it has a layout for."""
    for name in NAMES:
        loaded = module(name)
        layouts = getattr(loaded, "LAYOUTS", None)
        if layouts is None:
            yield name, "", getattr(loaded, "NUM_DEVICES", 1)
            yield from ((name, variant, 1) for variant in VARIANTS.get(name, ()))
        else:
            yield from ((name, str(number), number) for number in layouts)


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_that_does_not_exist_is_refused(name):
    with pytest.raises((ConfigError, ValueError), match="smokes"):
        module(name).get_config("smokes")


@pytest.mark.parametrize(("name", "arg", "num_devices"), list(placed()))
def test_a_step_checks_on_an_abstract_mesh_and_keeps_every_sharding(name, arg, num_devices):
    loaded = module(name)
    experiment = loaded.get_config(arg) if arg else loaded.get_config()
    validate_tree(experiment)
    mesh, before, after, metrics = abstract_step(experiment, num_devices)
    assert mesh.size == num_devices and metrics["loss"].shape == ()
    total, local, least = 0, 0, 0.0
    for (path, x), y in zip(jax.tree.leaves_with_path(before.params), jax.tree.leaves(after.params), strict=True):
        assert (x.shape, x.dtype, x.sharding.spec) == (y.shape, y.dtype, y.sharding.spec)
        total += x.size
        local += int(np.prod(NamedSharding(mesh, x.sharding.spec).shard_shape(x.shape)))
        axes = ("fsdp", "ep", "tp", "pp") if path[0].key == "stack" else ("fsdp", "ep", "tp")
        least += x.size / np.prod([mesh.shape[axis] for axis in axes])
    assert least <= local <= 1.01 * least + 10_000
    print(f"{name}: {total:,} parameters, {16 * local / 2**30:.2f} GiB of state a device on {num_devices}")


def test_unknown_numbers_of_chips_are_refused():
    with pytest.raises(ConfigError, match="no layout '100'; it has 8, 256, 4096"):
        load_experiment([f"--config={FOLDER}/mixtral_8x7b.py:100"])


SIZES = {"gpt2_124m": 124.5e6, "llama_1b": 1.236e9, "llama_8b": 8.03e9, "llama_405b": 405.9e9, "mixtral_8x7b": 46.7e9}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    assert parts.build(module(name).get_config()).num_params == pytest.approx(SIZES[name], rel=0.003)


def test_quickstart_stays_within_its_parameter_budget():
    assert parts.build(module("shakespeare").get_config()).num_params <= 830_000


@pytest.mark.parametrize("name", NAMES)
def test_the_record_rebuilds_the_config(name):
    config = load_experiment([f"--config={FOLDER}/{name}.py:smoke", "--config.train.num_steps=3"])
    assert config.train.num_steps == 3
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("sizes", "change", "message"),
    [
        (dict(dp=1, tp=3), {}, r"heads=4 is not divisible by the 3 devices of tp=3; 3 or 6 is"),
        (dict(dp=5), {}, r"batch_size / step.accumulate: batch=12 is not divisible by the 5 devices of dp=5; 10 or 15 is"),
        (dict(dp=4), {"step.accumulate": "2"}, r"batch=6 is not divisible by the 4"),
        (dict(dp=1, cp=4), {"data.length": "60"}, r"data.length=60 is not divisible by 8: 4 devices of the sequence"),
        (
            dict(dp=1),
            {"model.stack.pattern[0].mixer.implementation": "cudnn"},
            r"'cudnn' cannot compute this: it needs an NVIDIA GPU",
        ),
        (dict(dp=1, pp=3), {}, r"layers=4 is not divisible by the 3 devices of pp=3; 3 or 6 is"),
        (dict(dp=1, pp=4), {"layout.micro_batches": "2"}, "4 stages with 2 micro-batches of 12 rows: there must be as many"),
        (
            dict(dp=1, pp=2),
            {"layout.micro_batches": "5"},
            r"micro_batches=5 does not divide the 12 rows of a pipeline",
        ),
        (dict(dp=2, pp=2), {"layout.micro_batches": "3", "model.stack.rounds": "2"}, "3 micro-batches must be a multiple of the 2"),
        (dict(dp=1, cp=2, tp=2), {"objective.chunks": "16"}, r"data.length=64 is not divisible by 128: .* 16 chunks"),
    ],
)
def test_what_does_not_fit_a_mesh_is_named(sizes, change, message):
    arguments = [f"--config.{name}={value}" for name, value in change.items()]
    experiment = load_experiment([f"--config={FOLDER}/shakespeare.py", *arguments])
    with pytest.raises(ConfigError, match=message):
        parts.check_mesh(experiment, MeshShape(**sizes).abstract(8))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("speech_digits:ctc", "model.source.log_mel.rate=16000", r"the data has 8000 samples a second, .* is of 16000"),
        ("speech_digits:seq2seq", "model.source.log_mel.rate=16000", r"the data has 8000 samples a second, .* is of 16000"),
        ("translation:original", "data.memory_length=256", "data.memory_length=256 exceeds the position table of 128"),
        ("translation", "evals[1].length_penalty=-1.0", "length_penalty=-1.0 must not be negative"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_config(name, change, message):
    file, _, variant = name.partition(":")
    with pytest.raises(ConfigError, match=message):
        load_experiment([f"--config={FOLDER / file}.py:{variant}", f"--config.{change}"])
