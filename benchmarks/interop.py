"""What importing a model of Hugging Face takes: the peak of memory over the model's bytes, and its speed over a plain copy.

    python -m benchmarks.interop [--layers=16] [--devices=8]

Writes a random Llama (1.2 billion parameters with 16 layers, float32) to a temporary directory, then, each
in a process of its own: a copy of the files, the import onto pretended CPU devices, the export. Needs five times the model on disk.
"""

import argparse
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("make", "import", "export")


def main() -> None:
    """Prints a line per part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.part is not None:
        part(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for name in PARTS:
            if name == "import":
                start = time.perf_counter()
                shutil.copytree(f"{folder}/theirs", f"{folder}/copy")
                os.sync()
                copy = time.perf_counter() - start
                shutil.rmtree(f"{folder}/copy")
                drop_cache(Path(folder, "theirs"))
            command = [sys.executable, "-m", "benchmarks.interop", f"--part={name}", f"--folder={folder}"]
            command += [f"--layers={options.layers}", f"--devices={options.devices}"]
            results[name] = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            )
        size = results["make"]["bytes"]
        print(f"{size / 1e9:.2f} GB of weights; a plain copy takes {copy:.1f} s")
        for name in ("import", "export"):
            r = results[name]
            grown, speed = (r["peak"] - r["before"]) / size, copy / r["seconds"]
            print(f"{name}: {r['seconds']:.1f} s, {speed:.2f} of the copy's speed; memory grew by {grown:.2f} of the weights")


def drop_cache(folder: Path) -> None:
    """Makes the files be read from the disk again, as far as the system does it."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def part(options: argparse.Namespace) -> None:
    """One part, in this process; prints its result as JSON."""
    os.environ["JAX_NUM_CPU_DEVICES"] = str(options.devices)
    import jax
    import numpy as np

    from lm_jax import exchange
    from lm_jax.core.param import split
    from lm_jax.interop.architectures import ARCHITECTURES
    from lm_jax.interop.knobs import Knobs
    from lm_jax.interop.safetensors import write
    from lm_jax.interop.weights import stored

    theirs, run, ours = (options.folder / name for name in ("theirs", "run", "ours"))
    if options.part == "make":
        fields = {"vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": options.layers}
        fields |= {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "tie_word_embeddings": True}
        fields |= {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
        architecture = ARCHITECTURES["llama"]
        model = architecture.read(Knobs(fields))
        _, shapes = split(jax.eval_shape(model.build, jax.random.key(0)))
        theirs.mkdir()
        (theirs / "config.json").write_text(json.dumps(fields))
        vocab = {"<s>": 1, "</s>": 2, "<unk>": 0}
        added = [{"id": i, "content": t, "special": True, **FLAGS} for t, i in vocab.items()]
        tokenizer = {"version": "1.0", "added_tokens": added, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}}
        (theirs / "tokenizer.json").write_text(json.dumps(tokenizer))
        rng, nothing = np.random.default_rng(0), jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
        draw = lambda tensor: 0.02 * rng.standard_normal(tensor.shape, np.float32)  # noqa: E731
        tensors = (t._replace(read=functools.partial(draw, t)) for t in stored(architecture, model, nothing, np.float32))
        files = write(theirs, tensors, 2 * 10**9)
        print(json.dumps({"bytes": sum(path.stat().st_size for path in files)}))
        return
    before, start = _peak(), time.perf_counter()
    if options.part == "import":
        exchange.import_run(theirs, run)
    else:
        exchange.export_run(run, ours, step=None, architecture=None, dtype="float32", shard_bytes=2 * 10**9)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "before": before, "peak": _peak()}))


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
