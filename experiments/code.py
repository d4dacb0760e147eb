"""Python source, byte-level BPE: completion of the next line, and with `:fim` of what is missing in the middle.

    lm-jax train --config=experiments/code.py --workdir=runs/code
    lm-jax train --config=experiments/code.py:fim --workdir=runs/code_fim

1,738 files (9.9 MB) of two public repositories; 91 files are held out. `:stdlib` reads the standard library of the Python that runs
it instead (14 MB), of which a twentieth of the files is held out. "exact" is the share of 200 held-out lines that the model
completes exactly from what stands before them. With `:fim` half of the files are cut in three and their middle moved to the end
(at most one in a row; arXiv:2207.14255), so that "validation" is the loss of such rows, of their sentinels too, and there are no
bits per byte; "holes" is the share of the same lines that are exact where what stands after them is given too. `:smoke` is a tiny
version for tests.

The peers are 5-grams: `lm-jax ngram --config=experiments/code.py --order=5 --split=validation` in bits per byte, `python -m
benchmarks.next_line_peer` in lines. On 2 CPU cores: 1.39 bits per byte (5-grams 1.53), 6 % of the lines, in 9 minutes. The data is
looked for in ../shared/data, or where LM_JAX_DATA points to.
"""

import dataclasses
import sys
import sysconfig
from pathlib import Path

import novels
from shared_data import folder

from lm_jax.config import Experiment, SamplesConfig
from lm_jax.core.config import check_choice
from lm_jax.data.prefixes import FillInTheMiddle
from lm_jax.data.sources import JsonLines, TextFiles
from lm_jax.data.splits import HashSplit
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import BPE
from lm_jax.evals.next_line import NextLineConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.sampling import SamplingConfig

VOCAB = 4096


def public() -> Corpus:
    """Files of two repositories."""
    train, validation = (JsonLines(paths=(f"{folder('python_code')}/{split}.jsonl.gz",)) for split in ("train", "valid"))
    return Corpus(name="python", source=train, validation=validation)


def standard_library() -> Corpus:
    """The modules of the running Python, without tables of characters and its help texts."""
    root, tables = Path(sysconfig.get_paths()["stdlib"]), {"encodings", "pydoc_data"}
    packages = sorted(name for name in sys.stdlib_module_names - tables if (root / name).is_dir())
    paths = (f"{root}/*.py", *(f"{root}/{name}/**/*.py" for name in packages))
    return Corpus(name="stdlib", source=TextFiles(paths=paths), split=HashSplit(validation=0.05))


def get_config(arg: str = "") -> Experiment:
    """The run; `arg` "fim" learns to fill in the middle, "stdlib" reads other files, and "smoke" shrinks it to seconds."""
    check_choice("variant", arg, ("", "fim", "stdlib", "smoke"))
    smoke = arg == "smoke"
    denoise = FillInTheMiddle() if arg == "fim" else None
    prompts = ("def fibonacci(n: int) -> int:\n",) + (() if denoise is None else ("def double(x):\n    <FILL>\n    return y\n",))
    fills = () if denoise is None else (NextLineConfig(name="holes", fill=True),)
    num_added = 0 if denoise is None else denoise.num_added
    base = novels.get_config("smoke" if smoke else "transformer")
    return dataclasses.replace(
        base,
        data=TextData(
            corpora=(standard_library() if arg == "stdlib" else public(),),
            tokenizer=BPE(vocab_size=VOCAB),
            length=base.data.length - num_added,  # the sentinels fill the row up
            batch_size=8,
            denoise=denoise,
        ),
        model=dataclasses.replace(base.model, vocab_size=VOCAB + num_added),
        evals=(NextLineConfig(name="lines", limit=2, max_tokens=4),)
        if smoke
        else (PerplexityConfig(batch_size=16), NextLineConfig(name="lines"), *fills),
        samples=None if smoke else SamplesConfig(prompts=prompts, num_samples=2, sampling=SamplingConfig(temperature=0.2)),
    )
