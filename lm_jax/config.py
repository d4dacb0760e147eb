"""The config of a whole run, and reading it from an experiment file and the command line."""

import dataclasses
import importlib.util
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from lm_jax.core.config import Config, check_positive, nearest, validate_tree
from lm_jax.core.errors import ConfigError, UserError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.sharding import Layout
from lm_jax.data.base import DataConfig
from lm_jax.evals.base import EvalConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.base import ModelConfig
from lm_jax.objectives.base import ObjectiveConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.base import OptimizerConfig
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig


@dataclasses.dataclass(kw_only=True)
class SamplesConfig(Config):
    """Text generated during training: `num_samples` continuations of every prompt each `every` steps and at the end.

    An empty prompt starts a new document; an encoder-decoder reads the prompts and writes what they lead to. `max_tokens` may
    exceed the training length where the model has no position table: attention then slides over the last `data.length` tokens.
    """

    every: int = 0
    prompts: tuple[str, ...] = ("",)
    num_samples: int = 1
    max_tokens: int = 200
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range, or without a prompt."""
        check_positive(self, "num_samples", "max_tokens")
        if not self.prompts:
            raise ConfigError("prompts is empty; ('',) starts a new document, samples=None draws no samples")


@dataclasses.dataclass(kw_only=True)
class Experiment(Config):
    """Everything that defines a run. It is written to the run's directory and rebuilds the run.

    With `start_from`, the directory of another run, the first parameters are those of its newest good checkpoint, as far as they
    have the same path and shape (see `transfer`). With `words_from`, the directory of a run or a file of word vectors, embedding
    tables begin with the vectors of the same words there, whatever the tokenizer (see `word_rows`).
    """

    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig = dataclasses.field(default_factory=LMConfig)
    optimizer: OptimizerConfig
    step: StepConfig = dataclasses.field(default_factory=StepConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    layout: Layout = dataclasses.field(default_factory=Layout)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evals: tuple[EvalConfig, ...] = dataclasses.field(default_factory=lambda: (PerplexityConfig(),))
    samples: SamplesConfig | None = dataclasses.field(default_factory=SamplesConfig)
    start_from: str | None = None
    words_from: str | None = None

    def validate(self) -> None:
        """Raises `ConfigError` where components do not fit each other."""
        self._check_family()
        self.objective.check(self.model)
        self.model.check_data(self.data.shapes(), self.data.sampling_rate)
        data, limit = self.data, self.model.max_length()
        evals = {f"evals {e.name!r} length": data.row_length(e.length) for e in self.evals}
        lengths = {"data.length": data.row_length()} | evals
        for name, length in lengths.items():
            if limit is not None and length > limit:
                raise ConfigError(f"{name}={length} exceeds the model's position table of {limit}")
        if data.batch_size % self.step.accumulate:
            raise ConfigError(f"data.batch_size={data.batch_size} is not divisible by step.accumulate={self.step.accumulate}")
        if data.row_length() % self.objective.chunks:
            raise ConfigError(f"data.length={data.row_length()} is not divisible by objective.chunks={self.objective.chunks}")
        for e in self.evals:
            try:
                e.check_rows(data.row_length(e.length))
            except ConfigError as error:
                raise ConfigError(f"evals {e.name!r}: {error}") from error
        names = [e.name for e in self.evals]
        if len(set(names)) != len(names):
            raise ConfigError(f"two evals have one name: {names}")
        early_stop, checkpoint = self.train.early_stop, self.checkpoint
        followed = {} if early_stop is None else {"train.early_stop.metric": early_stop.metric}
        followed |= {"checkpoint.best_metric": checkpoint.best_metric} if checkpoint.keep_best else {}
        for field, metric in followed.items():
            name = metric.split("/")[0]
            if name not in names:
                raise ConfigError(f"{field}={metric!r} names no eval{nearest(name, names)}")
            if not self.evals[names.index(name)].every:
                raise ConfigError(f"evals {name!r}: every=0, only at the end, is too late for {field}; give it a number of steps")

    def _check_family(self) -> None:
        model = self.model
        parts = {"data": self.data, "objective": self.objective} | {f"evals {e.name!r}": e for e in self.evals}
        for name, part in parts.items():
            if not part.targets & model.targets:
                raise ConfigError(
                    f"{name} does not fit the model: a {type(part).__name__} is for {_listed(part.targets)}, "
                    f"and a {type(model).__name__} predicts {_listed(model.targets)}"
                )
        missing = model.inputs - self.data.inputs
        if missing:
            raise ConfigError(
                f"data does not fit the model: a {type(model).__name__} reads {_listed(missing)}, "
                f"and a {type(self.data).__name__} has {_listed(self.data.inputs)}"
            )
        unread = self.data.inputs - model.inputs - self.data.optional
        if unread:
            raise ConfigError(
                f"data does not fit the model: a {type(self.data).__name__} gives {_listed(unread)} to go by, "
                f"and a {type(model).__name__} does not read it"
            )
        if self.samples is not None and not model.generates:
            raise ConfigError(f"samples: a {type(model).__name__} writes no text from a prompt; set samples=None")


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def load_experiment(arguments: Sequence[str]) -> Experiment:
    """The experiment that `--config=file.py[:arg]` and overrides `--config.a.b=value` describe, validated.

    The file defines `get_config(arg="") -> Experiment`. Raises `ConfigError` for a file that is not there, a field that does
    not exist (naming the nearest), a value of the wrong type, and everything that validation finds.
    """
    files = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
    if len(files) != 1:
        raise ConfigError("give one --config=experiments/NAME.py (and overrides --config.field=value)")
    config = _run_file(*files[0].split(":", 1))
    if not isinstance(config, Experiment):
        raise ConfigError(f"get_config of {files[0]} returned {type(config).__name__}; it must return an Experiment")
    overrides, to_none = [], []
    for argument in arguments:
        if argument.startswith("--config="):
            continue
        fields, value = _split_override(argument)
        hint = _field_type(config, fields)
        if value in ("None", "none") and type(None) in typing.get_args(hint):
            to_none.append(fields)
        else:
            overrides.append(argument)
    config = _override(config, overrides)
    for fields in to_none:
        setattr(_walk(config, fields[:-1]), fields[-1], None)
    validate_tree(config)
    return config


def _run_file(name: str, arg: str | None = None) -> Any:
    """What `get_config` of the file returns; any error in it becomes one line that names the file's own line."""
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"--config: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # an experiment may import the one beside it
    try:
        spec.loader.exec_module(module)
        return module.get_config() if arg is None else module.get_config(arg)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(_blame(path, error)) from error


def _blame(path: Path, error: Exception) -> str:
    """Where in the experiment an error arose, what it was, and the nearest field where an unknown one was set."""
    frames = list(traceback.walk_tb(error.__traceback__))
    lines = [line for frame, line in frames if Path(frame.f_code.co_filename).parent.resolve() == path.parent.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 1
    text = f"{path}:{line}: {type(error).__name__}: {str(error) or 'no message'}"
    unknown = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'.*", str(error))
    known = frames[-1][0].f_globals.get(unknown[1]) if unknown else None
    if unknown and dataclasses.is_dataclass(known):
        text += nearest(unknown[2], [field.name for field in dataclasses.fields(known)])
    return text


def _override(config: Experiment, overrides: Sequence[str]) -> Experiment:
    """The config with fields set, each value read as the type of the one that it replaces."""
    values = flags.FlagValues()
    arguments = ["lm-jax", *overrides]
    try:
        config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
        return values.config
    except (flags.Error, ValueError) as error:
        raise ConfigError(str(error).replace("flag ", "")) from error


def _split_override(argument: str) -> tuple[list[str], str | None]:
    match = re.fullmatch(r"--(?:no)?config\.([^=]+)(?:=(.*))?", argument, flags=re.DOTALL)
    if not match:
        raise ConfigError(f"unknown argument {argument!r}; overrides are written --config.field=value")
    return match[1].split("."), match[2]


def _field_type(config: Any, fields: list[str]) -> Any:
    """The declared type of a field; raises `ConfigError` at the first step of the path that does not exist."""
    holder = _walk(config, fields[:-1])
    name = fields[-1].split("[")[0]
    _check_field(holder, name, fields)
    return typing.get_type_hints(type(holder))[name] if "[" not in fields[-1] else types.NoneType


def _walk(config: Any, fields: list[str]) -> Any:
    for part in fields:
        name, *indices = re.split(r"\[|\]", part)
        _check_field(config, name, fields)
        config = getattr(config, name)
        for index in filter(None, indices):
            if not index.isdigit() or not isinstance(config, tuple) or int(index) >= len(config):
                raise ConfigError(f"--config.{'.'.join(fields)}: [{index}] is not an index of {config!r}")
            config = config[int(index)]
    return config


def _check_field(holder: Any, name: str, fields: list[str]) -> None:
    if not dataclasses.is_dataclass(holder):
        raise ConfigError(f"--config.{'.'.join(fields)}: {holder!r} has no fields; set it in the experiment file")
    known = [field.name for field in dataclasses.fields(holder)]
    if name not in known:
        raise ConfigError(f"--config.{'.'.join(fields)}: {type(holder).__name__} has no field {name!r}{nearest(name, known)}")
