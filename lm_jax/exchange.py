"""`lm-jax import` and `lm-jax export`: directories of Hugging Face as runs, and back."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from lm_jax.config import Experiment
from lm_jax.core.config import to_json, validate_tree
from lm_jax.core.errors import ConfigError, DataError, StorageError
from lm_jax.core.files import write_json
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import Params, split
from lm_jax.core.sharding import use_mesh
from lm_jax.data.sources import TextFiles
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import (
    HuggingFaceTokenizer,
    SentencePiece,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizerConfig,
    TokenizerFile,
)
from lm_jax.interop.safetensors import Tensors, write
from lm_jax.interop.weights import load, read_model, stored, write_model
from lm_jax.models.decoder import DecoderConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.parts import build
from lm_jax.train.checkpoint import Checkpoints, room
from lm_jax.train.lock import RunLock
from lm_jax.train.logging import MetricsLog
from lm_jax.train.rundir import claim_config, versions
from lm_jax.trained import load as load_run

KEPT = "huggingface"  # the folder of a run that holds the files beside the weights, for the way back
FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt"),
)
# What an imported run reads when the import names no experiment: text that its user puts there.
TEXT, LENGTH = "text", 1024
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Of logits, relative to their largest, that storing weights in fewer bits may change.
TOLERANCES = {"float32": 0.0, "bfloat16": 5e-2, "float16": 1e-2}


def import_run(folder: Path, workdir: Path, like: Experiment | None = None, tokenizer: Path | None = None) -> str:
    """Makes a run in `workdir` from a directory of Hugging Face. Returns a line that says what it is.

    The run has the data, optimizer, mesh and all else of `like`, and model and tokenizer of the directory; without it AdamW
    and the text files that are put into `workdir`/text. Its checkpoint of step 0 holds the weights, read straight onto the mesh.

    Args:
      tokenizer: a tokenizer.json or SentencePiece model elsewhere; None: that of the directory.

    Raises `DataError` for a directory that cannot be read as it is (see `interop`), `StorageError` where `workdir` holds a run.
    """
    architecture, model, fields = read_model(folder)
    if not isinstance(model, DecoderConfig):
        raise DataError(
            f"{folder} holds a {architecture.model_type}, and runs train decoders; "
            "read it in Python: lm_jax.interop.weights.read_model and load (docs/interop.md)"
        )
    tensors = Tensors(folder)
    if (workdir / "config.json").exists():
        raise StorageError(f"{workdir} holds a run already; take another --workdir")
    kept = workdir / KEPT
    config = _tokenizer(folder, kept, fields, tokenizer)
    experiment = _experiment(workdir, model, fields, config) if like is None else _replaced(like, model, config)
    mesh = experiment.mesh.build()
    with use_mesh(mesh, experiment.layout):
        parts = build(experiment)
        params = load(architecture, model, parts.shapes, tensors, mesh)
        kept.mkdir(parents=True, exist_ok=True)
        for path, name in _companions(folder, tokenizer):
            shutil.copyfile(path, kept / name)
        trained = config.train(())
        if trained.vocab_size > model.vocab_size:
            shutil.rmtree(kept)
            raise DataError(f"the tokenizer has {trained.vocab_size} tokens, but the embedding of {folder} {model.vocab_size}")
        with RunLock(workdir, enabled=jax.process_index() == 0):
            claim_config(workdir, experiment)
            software = versions()
            write_json(workdir / "versions.json", software)
            message = f"{parts.num_params:,} parameters of {architecture.model_type} from {folder}"
            with MetricsLog(workdir, 0, experiment.train.num_steps, enabled=jax.process_index() == 0) as log:
                log.event(0, "start", message, num_params=parts.num_params)
            _save(workdir, experiment, params, trained, software, dict(mesh.shape))
    return message


def _save(workdir: Path, experiment: Experiment, params: Params, tokenizer: Tokenizer, software: Any, mesh: Any) -> None:
    record = {"config": to_json(experiment), "tokenizer": tokenizer.to_json(), "data": None, "versions": software, "mesh": mesh}
    with Checkpoints(workdir / "checkpoints", experiment.checkpoint, memory_gb=room(params)) as checkpoints:
        checkpoints.save(0, {"params": params}, record | {"progress": {}, "holds": ["params"]}, {})


def _replaced(like: Experiment, model: DecoderConfig, tokenizer: TokenizerConfig) -> Experiment:
    theirs = like.model.stack
    stack = dataclasses.replace(model.stack, remat=theirs.remat, unroll=theirs.unroll)
    model = dataclasses.replace(model, stack=stack, dtype=like.model.dtype)
    experiment = dataclasses.replace(like, model=model, data=dataclasses.replace(like.data, tokenizer=tokenizer))
    validate_tree(experiment)
    return experiment


def _experiment(workdir: Path, model: DecoderConfig, fields: dict[str, Any], tokenizer: TokenizerConfig) -> Experiment:
    corpus = Corpus(name="text", source=TextFiles(paths=(f"{workdir.resolve() / TEXT}/*.txt",)))
    length = min(fields.get("max_position_embeddings") or fields.get("n_positions") or LENGTH, LENGTH)
    data = TextData(corpora=(corpus,), tokenizer=tokenizer, length=length)
    mesh = MeshShape(dp=1, fsdp=-1)
    return Experiment(data=data, model=model, optimizer=AdamW(), mesh=mesh, samples=None)


def _companions(folder: Path, tokenizer: Path | None) -> list[tuple[Path, str]]:
    """The files beside the weights, and their names in the run."""
    found = {name: folder / name for name in FILES if (folder / name).is_file()}
    if tokenizer is not None:
        found = {name: path for name, path in found.items() if not name.startswith("tokenizer.")}
        found[_standard_name(tokenizer)] = tokenizer
    return [(path, name) for name, path in found.items()]


def _standard_name(tokenizer: Path) -> str:
    return "tokenizer.json" if tokenizer.suffix == ".json" else "tokenizer.model"


def _tokenizer(folder: Path, kept: Path, fields: dict[str, Any], given: Path | None) -> TokenizerConfig:
    """The tokenizer as it will lie in the run. Documents are set apart by the token that the model expects at their start."""
    places = [given] if given is not None else [folder / "tokenizer.json", folder / "tokenizer.model"]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise DataError(f"there is no tokenizer at {' or '.join(map(str, places))}; name one with --tokenizer=FILE")
    settings, target = _json(folder / "tokenizer_config.json"), str(kept.resolve() / _standard_name(path))
    if path.suffix != ".json":
        starts = settings.get("add_bos_token", fields.get("bos_token_id") is not None)
        return SentencePiece(path=target, end="bos" if starts else "eos")
    return TokenizerFile(path=target, eos=_boundary(_json(path), settings, fields, path))


def _boundary(model: dict[str, Any], settings: dict[str, Any], fields: dict[str, Any], path: Path) -> str:
    """The token that sets documents apart: that of their beginning where the tokenizer adds one, else that of their end."""
    names = {number: token for token, number in dict(model["model"].get("vocab") or {}).items()} if "model" in model else {}
    names |= {token["id"]: token["content"] for token in model.get("added_tokens", [])}
    adds_one = "SpecialToken" in json.dumps(model.get("post_processor"))
    for kind in ("bos", "eos") if settings.get("add_bos_token", adds_one) else ("eos", "bos"):
        token = settings.get(f"{kind}_token")
        number = fields.get(f"{kind}_token_id")
        token = token["content"] if isinstance(token, dict) else token
        token = token or names.get(number[0] if isinstance(number, list) else number)
        if token:
            return token
    raise DataError(f"{path} has no token that starts or ends a document: neither tokenizer_config.json nor config.json names one")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def export_run(workdir: Path, folder: Path, *, step: int | None, architecture: str | None, dtype: str, shard_bytes: int) -> str:
    """Writes a checkpoint of a run as a directory that `transformers` loads with `from_pretrained`. Returns a line about it.

    The directory is read again, and its logits compared with the run's, before it gets its name. Raises `ConfigError` where
    no architecture of Hugging Face can say the model, `StorageError` where `folder` exists or the logits differ.
    """
    if dtype not in DTYPES or shard_bytes < 1:
        raise ConfigError(f"--dtype={dtype} must be one of {', '.join(DTYPES)}, and --shard_size above 0")
    if folder.exists():
        raise StorageError(f"{folder} exists; take another --to")
    trained = load_run(workdir, step)
    model = trained.experiment.model
    kept = workdir / KEPT
    chosen, fields = write_model(model, architecture or _json(kept / "config.json").get("model_type"))
    before = {"max_position_embeddings": trained.experiment.data.length} | _json(kept / "config.json")
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    fields |= {name: before[name] for name in names if name in before}
    logits, number = _logits(model, trained.graph, trained.params), trained.step
    temporary = folder.parent / f".tmp-{folder.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_json(temporary / "config.json", fields | {"dtype": dtype, "torch_dtype": dtype})
        write(temporary, stored(chosen, model, trained.params, DTYPES[dtype]), shard_bytes)
        said = _write_companions(kept, temporary, trained.tokenizer)
    except OSError as error:
        raise StorageError(f"{temporary} cannot be written: {error.strerror}") from error
    del trained  # so that only one of the two models is in memory
    worst = _difference(_logits(model, *_read_again(temporary)), logits)
    if not worst <= TOLERANCES[dtype]:
        raise StorageError(f"{temporary} gives other logits than the run, by {worst:.1e} of the largest; nothing was exported")
    temporary.rename(folder)
    return f"{folder}: {chosen.class_name} of step {number} in {dtype}, logits within {worst:.0e} of the run's; {said}"


def _write_companions(kept: Path, folder: Path, tokenizer: Tokenizer) -> str:
    if kept.is_dir():
        paths = [path for path in kept.iterdir() if path.name != "config.json"]
        for path in paths:
            shutil.copyfile(path, folder / path.name)
        return f"with {', '.join(sorted(path.name for path in paths))}"
    record = tokenizer.to_json()
    if isinstance(tokenizer, HuggingFaceTokenizer):
        write_json(folder / "tokenizer.json", record["model"])
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": record["eos"], "bos_token": record["eos"]}
        write_json(folder / "tokenizer_config.json", settings)
        return "with tokenizer.json"
    if isinstance(tokenizer, SentencePieceTokenizer):
        (folder / "tokenizer.model").write_bytes(bytes.fromhex(record["model"]))
        return "with tokenizer.model"
    return f"without a tokenizer: Hugging Face has none of {record['kind']}"


def _read_again(folder: Path) -> tuple[nnx.GraphDef, Params]:
    architecture, model, _ = read_model(folder)
    graph, shapes = split(jax.eval_shape(model.build, jax.random.key(0)))
    return graph, load(architecture, model, shapes, Tensors(folder))


def _logits(model: DecoderConfig, graph: nnx.GraphDef, params: Params) -> np.ndarray:
    """Of a row of tokens, the same for every model of this size."""
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (1, min(model.max_length() or 64, 64)))

    @functools.partial(jax.jit, static_argnames="graph")
    def compute(params: Params, graph: nnx.GraphDef) -> jax.Array:
        model = nnx.merge(graph, params)
        return model.logits(model({"tokens": tokens.astype(np.int32)}).hidden)

    return np.asarray(compute(params, graph), np.float64)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest, over the largest logit."""
    return float(np.abs(a - b).max() / np.abs(b).max())
