"""Python source, byte-level BPE: completion of the next line, and with `:fim` of what is missing in the middle.

    lm-jax train --config=experiments/code.py --workdir=runs/code

1,738 files (9.9 MB) of two public repositories; 91 files are held out. "exact" is the share of 200 held-out lines that the model
completes exactly from what stands before them. `:smoke` is a tiny version for tests. The peer in bits per byte is
`lm-jax ngram --config=experiments/code.py --order=5`. The data is looked for in ../shared/data, or where LM_JAX_DATA points to.
"""

import dataclasses

import novels
from shared_data import folder

from lm_jax.config import Experiment, SamplesConfig
from lm_jax.data.sources import JsonLines
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import BPE
from lm_jax.evals.next_line import NextLineConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.sampling import SamplingConfig


def get_config(arg: str = "") -> Experiment:
    """The run; `arg` "smoke" shrinks it to seconds."""
    smoke, files = arg == "smoke", folder("python_code")
    base = novels.get_config("smoke" if smoke else "")
    train, validation = (JsonLines(paths=(f"{files}/{split}.jsonl.gz",)) for split in ("train", "valid"))
    return dataclasses.replace(
        base,
        data=TextData(
            corpora=(Corpus(name="python", source=train, validation=validation),),
            tokenizer=BPE(vocab_size=4096),
            length=base.data.length,
            batch_size=8,
        ),
        evals=() if smoke else (PerplexityConfig(batch_size=16), NextLineConfig(name="lines")),
        samples=None
        if smoke
        else SamplesConfig(prompts=("def fibonacci(n: int) -> int:\n",), num_samples=2, sampling=SamplingConfig(temperature=0.2)),
    )
