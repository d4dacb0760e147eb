"""Words of Wikipedia (WikiText-2, Merity et al. 2016, arXiv:1609.07843): 2.1M words, 33,278 of them different.

    lm-jax train --config=experiments/wikitext2.py:lstm --workdir=runs/wikitext2

`:lstm` has two layers of width 200, as the smallest word language model of GluonNLP, whose published test perplexity is 102.3 after
40 epochs (here: 105.5 after 11.8 epochs, about 41 minutes on 2 CPU cores); `:transformer` is a Transformer of about as much work
for a word: 147.9 after 2.9 epochs, 16 minutes.

A word is what stands between spaces, a line end is one too; "perplexity" of the test, of all words, is the figure to compare (the
training loss scores a part of them). The text is looked for in ../shared/data/wikitext2, or where LM_JAX_DATA points to. `:smoke`
is a tiny version for tests.
"""

from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.data.packing import Packing
from lm_jax.data.sources import TextFiles
from lm_jax.data.splits import NamedSplit
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import Words
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.sampled_softmax import SampledSoftmaxConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.muon import Muon
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.trainer import TrainConfig

WIDTH = 200


def block(kind: str) -> BlockConfig:
    """A layer of the model."""
    if kind == "transformer":
        mixer = AttentionConfig(num_heads=4, rotary=RotaryConfig())
        return BlockConfig(mixer=mixer, feed_forward=MLPConfig(hidden=4 * WIDTH), dropout=0.2)
    return BlockConfig(mixer=RecurrentConfig(output=False, unroll=4), feed_forward=None, dropout=0.2)


def get_config(arg: str = "lstm") -> Experiment:
    """The run of a kind of model; "smoke" shrinks the LSTM to seconds."""
    if arg not in ("lstm", "transformer", "smoke"):
        raise ValueError(f"{arg!r} is not one of lstm, transformer, smoke")
    smoke = arg == "smoke"
    corpus = Corpus(
        name="wikitext2",
        source=TextFiles(paths=(f"{folder('wikitext2')}/*.txt",)),
        split=NamedSplit(pattern=r"(\w+)\.txt", validation=("valid",), test=("test",)),
    )
    # A state begins at 0 with every row, so that it is read in long ones; a Transformer knows positions as far as it was trained.
    rows = {"batch_size": 16, "stride": 64} if arg == "transformer" else {"batch_size": 4, "length": 1024, "chunks": 8}
    test, every = PerplexityConfig(name="test", split="test", **rows), 1500 if arg == "transformer" else 4000
    schedule = Schedule(shape="linear", warmup_steps=0 if smoke else 100, final_ratio=0.0)
    if arg == "transformer":
        optimizer = AdamW(learning_rate=3e-3, weight_decay=0.02, schedule=schedule)
    else:  # the decay takes most of what Adam would learn of words that are rare
        adam = {"adam_learning_rate": 6e-3, "adam_b1": 0.5, "adam_b2": 0.999}
        optimizer = Muon(learning_rate=0.02, weight_decay=0.4, schedule=schedule, **adam)
    return Experiment(
        data=TextData(
            corpora=(corpus,),
            tokenizer=Words(min_count=1, split="lines"),
            packing=Packing(shift=True),
            length=16 if smoke else 128 if arg == "transformer" else 64,
            batch_size=8 if smoke else 16,
        ),
        model=DecoderConfig(
            vocab_size=33_280,
            width=8 if smoke else WIDTH,
            embedding=EmbeddingConfig(dropout=0.2),
            stack=StackConfig(pattern=(block(arg),), repeats=2),
            init=Init(weights="fan_in", embedding_std=0.05),
        ),
        objective=SampledSoftmaxConfig(common=8 if smoke else 2048, samples=8 if smoke else 2048),
        optimizer=optimizer,
        train=TrainConfig(num_steps=2 if smoke else 3000 if arg == "transformer" else 24_000),
        checkpoint=CheckpointConfig(every=0 if smoke else every),
        evals=() if smoke else (PerplexityConfig(every=every, **rows), test),
        samples=None,
    )
