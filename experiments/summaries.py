"""Headlines of news from their text (Reuters-21578), by a Transformer from scratch.

    lm-jax train --config=experiments/summaries.py --workdir=runs/summaries

12,258 articles, of which the model reads the first 120 sub-words; 5,174 for the test. `:reuters` (default) is an encoder-decoder,
`:prompted` a decoder that goes on from the text, `:smoke` a tiny version for tests. The peer, `benchmarks/lead.py`, takes the first
sentence. The data is looked for in ../shared/data, or where LM_JAX_DATA points to.
"""

import dataclasses

import translation
from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.data.pairs import PairData, PairedText, Pairs, PromptedText
from lm_jax.data.sources import JsonLines
from lm_jax.data.splits import HashSplit
from lm_jax.data.tokenizers import BPE
from lm_jax.evals.generation import GenerationConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.models.decoder import DecoderConfig
from lm_jax.train.trainer import TrainConfig

VOCABULARY = 6000


def articles(split: str) -> Pairs:
    """Bodies and titles."""
    file = f"{folder('reuters_headlines')}/{split}.jsonl.gz"
    body, title = (JsonLines(paths=(file,), fields=(field,)) for field in ("body", "title"))
    return Pairs(source=body, target=title)


def data(prompted: bool, smoke: bool) -> PairData:
    """The articles for a decoder, or for an encoder-decoder."""
    fields = {
        "train": articles("train"),
        "test": articles("test"),
        "split": HashSplit(validation=0.05),
        "tokenizer": BPE(vocab_size=500 if smoke else VOCABULARY, lowercase=True, leading_space=True),
        "batch_size": 4 if smoke else 16,
    }
    if prompted:
        return PromptedText(length=256, between="\n= ", **fields)
    return PairedText(length=32, memory_length=120, **fields)


def get_config(arg: str = "reuters") -> Experiment:
    """The run of a kind of model; "smoke" shrinks it to seconds."""
    smoke, prompted = arg == "smoke", arg == "prompted"
    base = translation.get_config("smoke" if smoke else "transformer")
    model = base.model
    if prompted:
        stack = dataclasses.replace(model.stack, pattern=(dataclasses.replace(model.stack.pattern[0], cross=None),))
        kept = {name: getattr(model, name) for name in ("vocab_size", "width", "embedding", "head", "init")}
        model = DecoderConfig(stack=stack, **kept)
    evals = (
        PerplexityConfig(every=500, batch_size=32),
        GenerationConfig(name="test", split="test", metrics=("rouge",), beam=4, max_tokens=24, limit=1000),
    )
    return dataclasses.replace(
        base,
        data=data(prompted, smoke),
        model=model,
        train=TrainConfig(num_steps=2 if smoke else 2500),
        evals=() if smoke else evals,
    )
