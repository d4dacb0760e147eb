"""Headlines of news from their text (Reuters-21578), and extracts of BBC news, from scratch.

    lm-jax train --config=experiments/summaries.py --workdir=runs/summaries

`:reuters` (default): 12,258 articles, of which an encoder-decoder reads the first 120 sub-words; 5,174 for the test. `:prompted` is
a decoder that goes on from the text. `:bbc`: 1,673 articles whose summaries are some of their sentences, 210 for the test; an LSTM
in both directions marks which ones. The peer of all, `benchmarks/lead.py`, takes the beginning of an article. `:smoke` and
`:smoke_bbc` are tiny versions for tests. The data is looked for in ../shared/data, or where LM_JAX_DATA points to.

ROUGE-L on 2 CPU cores, seed 0: extracts 43.7 after 4 minutes, as many first sentences 39.7; headlines 14.5 after 8.5 minutes
(many are headlines of other articles), the first sentence 21.6.
"""

import dataclasses

import translation
from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.core.config import check_choice
from lm_jax.data.extracts import ExtractedSentences
from lm_jax.data.pairs import PairData, PairedText, Pairs, PromptedText
from lm_jax.data.sources import JsonLines
from lm_jax.data.splits import HashSplit
from lm_jax.data.tokenizers import BPE
from lm_jax.evals.extraction import ExtractionConfig
from lm_jax.evals.generation import GenerationConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.models.decoder import DecoderConfig
from lm_jax.models.tagger import TaggerConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.init import Init
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig

VOCABULARY = 6000


def news(name: str, split: str, text: str, short: str) -> Pairs:
    """Articles of shared data and what they come down to, by the names of their fields."""
    file = f"{folder(name)}/{split}.jsonl.gz"
    source, target = (JsonLines(paths=(file,), fields=(field,)) for field in (text, short))
    return Pairs(source=source, target=target)


def articles(split: str) -> Pairs:
    """Bodies and titles."""
    return news("reuters_headlines", split, "body", "title")


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


def extracts(smoke: bool) -> Experiment:
    """The run of `:bbc`."""
    width = 16 if smoke else 128
    block = BlockConfig(mixer=RecurrentConfig(direction="both", size=width), feed_forward=None, dropout=0.3)
    split = lambda name: news("bbc_summary", name, "document", "summary")  # noqa: E731
    return Experiment(
        data=ExtractedSentences(
            train=split("valid" if smoke else "train"),
            validation=split("valid"),
            test=split("test"),
            tokenizer=BPE(vocab_size=500 if smoke else VOCABULARY, lowercase=True, leading_space=True),
            length=256 if smoke else 1024,
            batch_size=4,
        ),
        model=TaggerConfig(
            vocab_size=500 if smoke else VOCABULARY,
            classes=2,
            width=width,
            embedding=EmbeddingConfig(dropout=0.3),
            stack=StackConfig(pattern=(block,), repeats=1 if smoke else 2),
            features=None,
            dropout=0.3,
            init=Init(weights="fan_in", embedding_std=0.05),
        ),
        optimizer=AdamW(
            learning_rate=2e-3,
            weight_decay=0.1,
            schedule=Schedule(shape="linear", warmup_steps=0 if smoke else 20, final_ratio=0.0),
        ),
        step=StepConfig(ema_decay=0.99),
        train=TrainConfig(num_steps=2 if smoke else 600),
        checkpoint=CheckpointConfig(every=0),
        evals=(ExtractionConfig(every=0 if smoke else 100),) + (() if smoke else (ExtractionConfig(name="test", split="test"),)),
        samples=None,
    )


def get_config(arg: str = "reuters") -> Experiment:
    """The run of a kind of model; "smoke" and "smoke_bbc" shrink them to seconds."""
    check_choice("summaries", arg or "reuters", ("reuters", "prompted", "bbc", "smoke", "smoke_bbc"))
    if arg in ("bbc", "smoke_bbc"):
        return extracts(smoke=arg != "bbc")
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
        evals=(dataclasses.replace(evals[1], limit=4, max_tokens=4),) if smoke else evals,
    )
