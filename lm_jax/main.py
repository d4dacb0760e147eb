"""The command line: `lm-jax COMMAND ...`. Commands import what they need when they run, so that --help is immediate."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lm_jax import __version__
from lm_jax.core.errors import ConfigError, UserError

CONFIG_HELP = "--config=experiments/NAME.py[:arg] and overrides --config.field=value"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0 done, 2 config, 65 data, 70 not finite, 74 storage, 75 start me again."""
    parser, commands = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    command: Callable = commands[options.command]
    configs = [a for a in rest if a.startswith(("--config", "--noconfig"))]
    unknown = [a for a in rest if a not in configs]
    if unknown:
        parser.error(f"unknown argument {unknown[0]!r}; lm-jax {options.command} --help lists what there is")
    try:
        return command(options, configs) or 0
    except UserError as error:
        print(f"lm-jax: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Callable]]:
    parser = argparse.ArgumentParser(prog="lm-jax", description="Pretrain, evaluate and sample language models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands: dict[str, Callable] = {}
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, run: Callable, text: str, *, config: bool = False, workdir: bool = False):
        epilog = CONFIG_HELP if config else None
        sub = subparsers.add_parser(name, help=text, description=text, epilog=epilog, allow_abbrev=False)
        if workdir:
            sub.add_argument("--workdir", type=Path, required=True, help="the run's directory")
        commands[name] = run
        return sub

    add("train", _train, "train, or continue a run (which needs no --config)", config=True, workdir=True)
    sub = add("eval", _eval, "evaluate a checkpoint on the run's evals", workdir=True)
    sub.add_argument("--step", type=int, help="which checkpoint; the newest good one by default")
    sub.add_argument("--split", help="the split to read instead of the evals of the run's config")
    sub.add_argument("--stride", type=int, help="a sliding window that moves by so many tokens")
    sub = add("generate", _generate, "continue a prompt", workdir=True)
    sub.add_argument("--step", type=int, help="which checkpoint; the newest good one by default")
    sub.add_argument("--prompt", action="append", help="text to continue; may be repeated; empty: a new document")
    sub.add_argument("--num_samples", type=int, default=1)
    sub.add_argument("--max_tokens", type=int, default=200)
    sub.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    sub.add_argument("--top_k", type=int)
    sub.add_argument("--top_p", type=float)
    sub.add_argument("--seed", type=int, default=0)
    add("prepare", _prepare, "tokenise the data of an experiment into the cache", config=True)
    sub = add("data", _data, "audit every token, or show the documents of a step", config=True)
    sub.add_argument("what", choices=("audit", "show"))
    sub.add_argument("--step", type=int, default=0, help="for show: which step's batch")
    sub = add("ngram", _ngram, "count and score an n-gram model of an experiment's text", config=True)
    sub.add_argument("--order", type=int, default=5, help="tokens of the longest n-grams")
    sub.add_argument("--split", default="validation", help="the split to score")
    sub = add("import", _import, "make a run from a directory of Hugging Face", config=True, workdir=True)
    sub.add_argument("--from", dest="folder", type=Path, required=True, help="holds config.json and safetensors")
    sub.add_argument("--tokenizer", type=Path, help="a tokenizer.json or SentencePiece model; by default that of the directory")
    sub = add("export", _export, "write a checkpoint as a directory that transformers loads", workdir=True)
    sub.add_argument("--to", dest="folder", type=Path, required=True, help="the directory to make")
    sub.add_argument("--step", type=int, help="which checkpoint; the newest good one by default")
    sub.add_argument("--architecture", help="such as llama; by default the one it came from, or the first that can say the model")
    sub.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    sub.add_argument("--shard_size", type=float, default=5.0, help="GB a file at most")
    add("report", _report, "write the run's report.html", workdir=True)
    add("doctor", _doctor, "print versions and devices, and what is wrong with the installation")
    sub = add("plan", _plan, "what an experiment needs on a mesh, without the devices", config=True)
    sub.add_argument("--devices", type=int, default=8, help="how many")
    sub.add_argument("--chip", help="of which kind, such as H200 or 'TPU v5p'")
    sub = add("verify", _verify, "prove a property of an experiment by running it", config=True)
    sub.add_argument("what", choices=("resume", "mesh"))
    sub.add_argument("--steps", type=int, default=30, help="for resume: how many steps to train")
    sub.add_argument("--kills", type=int, default=1, help="for resume: how often to kill the run")
    sub.add_argument("--seed", type=int, default=0, help="for resume: decides when")
    sub.add_argument("--devices", type=int, default=8, help="for mesh, on a CPU: how many devices to pretend")
    return parser, commands


def _train(options: argparse.Namespace, configs: list[str]) -> int:
    from lm_jax.config import load_experiment
    from lm_jax.train.rundir import read_config
    from lm_jax.train.trainer import NotFiniteError

    if configs or not (options.workdir / "config.json").is_file():
        experiment = load_experiment(configs)
    else:
        experiment = read_config(options.workdir)
    _quiet()
    import jax

    from lm_jax import run
    from lm_jax.core import distributed

    distributed.join()
    try:
        code = run.train(experiment, options.workdir)
    except NotFiniteError as error:
        print(f"lm-jax: {error}", file=sys.stderr)
        return 70
    except Exception as error:
        if jax.process_count() == 1:
            raise
        distributed.leave(error)
    if jax.process_index() == 0:
        print(f"run page: {(options.workdir / 'report.html').resolve()}")
    return code


def _eval(options: argparse.Namespace, configs: list[str]) -> int:
    _no_config(configs)
    _quiet()
    from lm_jax.trained import evaluate

    for name, scores in evaluate(options.workdir, options.step, options.split, options.stride):
        print(name, " ".join(f"{key}={value:.6g}" for key, value in scores.items()))
    return 0


def _generate(options: argparse.Namespace, configs: list[str]) -> int:
    _no_config(configs)
    _quiet()
    from lm_jax.core.config import validate_tree
    from lm_jax.infer.sampling import SamplingConfig
    from lm_jax.trained import continuations, load

    sampling = SamplingConfig(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    validate_tree(sampling)
    if options.num_samples < 1:
        raise ConfigError(f"--num_samples={options.num_samples} must be at least 1")
    trained = load(options.workdir, options.step)
    prompts = options.prompt or [""]
    texts = continuations(
        trained.experiment,
        trained.graph,
        trained.params,
        trained.tokenizer,
        prompts,
        max_tokens=options.max_tokens,
        sampling=sampling,
        num_samples=options.num_samples,
        seed=options.seed,
    )
    for prompt, samples in zip(prompts, texts, strict=True):
        for text in samples:
            print(f"{trained.experiment.data.shown_prompt(prompt)}{text}\n{'-' * 40}")
    return 0


def _prepare(options: argparse.Namespace, configs: list[str]) -> int:
    from lm_jax.config import load_experiment

    data = load_experiment(configs).data.prepare()
    print(data.describe())
    return 0


def _data(options: argparse.Namespace, configs: list[str]) -> int:
    from lm_jax.config import load_experiment
    from lm_jax.data.audit import audit, show
    from lm_jax.data.text import PreparedText

    if options.step < 0:
        raise ConfigError(f"--step={options.step} must not be negative; the first step's batch is 0")
    data = load_experiment(configs).data.prepare()
    if not isinstance(data, PreparedText):
        raise ConfigError("data audit and data show are for corpora of running text (TextData)")
    for line in audit(data) if options.what == "audit" else show(data, options.step):
        print(line)
    return 0


def _ngram(options: argparse.Namespace, configs: list[str]) -> int:
    _quiet()
    from lm_jax.config import load_experiment
    from lm_jax.counting import ngram
    from lm_jax.models.ngram import NGramConfig

    for line in ngram(load_experiment(configs), NGramConfig(order=options.order), options.split):
        print(line, flush=True)
    return 0


def _import(options: argparse.Namespace, configs: list[str]) -> int:
    _quiet()
    from lm_jax.config import load_experiment
    from lm_jax.exchange import import_run

    like = load_experiment(configs) if configs else None
    print(import_run(options.folder, options.workdir, like, options.tokenizer))
    return 0


def _export(options: argparse.Namespace, configs: list[str]) -> int:
    _no_config(configs)
    _quiet()
    from lm_jax.exchange import export_run

    size = int(options.shard_size * 1e9)
    chosen = {"step": options.step, "architecture": options.architecture, "dtype": options.dtype, "shard_bytes": size}
    print(export_run(options.workdir, options.folder, **chosen))
    return 0


def _report(options: argparse.Namespace, configs: list[str]) -> int:
    from lm_jax.study.report import write_report

    _no_config(configs)
    print(f"run page: {write_report(options.workdir).resolve()}")
    return 0


def _doctor(options: argparse.Namespace, configs: list[str]) -> int:
    from lm_jax.doctor import diagnose

    _no_config(configs)
    lines, healthy = diagnose()
    print("\n".join(lines))
    return 0 if healthy else 1


def _plan(options: argparse.Namespace, configs: list[str]) -> int:
    from lm_jax.config import load_experiment
    from lm_jax.dry_run import plan

    print("\n".join(plan(load_experiment(configs), options.devices, options.chip)))
    return 0


def _verify(options: argparse.Namespace, configs: list[str]) -> int:
    if options.what == "mesh":
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(options.devices))
        from lm_jax.config import load_experiment
        from lm_jax.verify_mesh import verify_mesh

        return verify_mesh(load_experiment(configs))
    from lm_jax.verify import verify_resume

    if options.steps < 1 or options.kills < 0:
        raise ConfigError(f"--steps={options.steps} must be at least 1 and --kills={options.kills} not negative")
    return verify_resume(configs, options.steps, options.kills, options.seed)


def _no_config(configs: list[str]) -> None:
    if configs:
        raise ConfigError(f"unexpected {configs[0]}: this command reads the config of the run in --workdir")


def _quiet() -> None:
    """Keeps XLA's messages below errors off the terminal (unless the user asked for them), and the tracebacks that Orbax logs of
    failures which we report in one line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
