"""English novels by byte-pair encoding: 84 books to train on, 4 to validate, 4 to test (splits.json of the data).

    lm-jax train --config=experiments/novels.py --workdir=runs/novels

The text is looked for in ../shared/data/novels (from the checkout), or where LM_JAX_DATA points to a folder that holds
novels/. On 2 CPU cores: 9 minutes, test 2.19 bits per byte. `:lstm` (2.15) and `:gru` (2.14) are recurrent, for as many minutes
(`python -m benchmarks.equal_time` draws all of them and n-grams against time), `:smoke` is a tiny version for tests.
"""

from shared_data import folder

from lm_jax.config import Experiment, SamplesConfig
from lm_jax.data.sources import TextFiles
from lm_jax.data.splits import ListedSplit
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import BPE
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.optim.muon import Muon
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.trainer import TrainConfig

RECURRENT = {"lstm": 600, "gru": 750}  # steps that take about as long as the Transformer's


def pattern(kind: str, smoke: bool) -> tuple[BlockConfig, ...]:
    """The blocks of a Transformer, an LSTM or a GRU."""
    if kind in RECURRENT:
        return (BlockConfig(mixer=RecurrentConfig(cell=kind, size=16 if smoke else 512, unroll=4), feed_forward=None),)
    return (
        BlockConfig(
            mixer=AttentionConfig(num_heads=4, rotary=RotaryConfig(), qk_norm=NormConfig()),
            feed_forward=MLPConfig(hidden=32 if smoke else 704, activation="silu", gated=True),
        ),
    )


def get_config(arg: str = "transformer") -> Experiment:
    """The run of a kind of model: "transformer", "lstm" or "gru"; "smoke" shrinks the first to seconds."""
    if arg not in ("transformer", "smoke", *RECURRENT):
        raise ValueError(f"{arg!r} is not one of transformer, lstm, gru, smoke")
    smoke, recurrent = arg == "smoke", arg in RECURRENT
    books, vocab_size, width = folder("novels"), 4096, 16 if smoke else 256
    # A state begins at 0 with every row: it is read in long ones.
    rows = {"batch_size": 4, "length": 1024} if recurrent else {"batch_size": 16}
    corpus = Corpus(
        name="novels",
        source=TextFiles(paths=(f"{books}/books/*.txt.gz",)),
        split=ListedSplit(path=f"{books}/splits.json"),
    )
    return Experiment(
        data=TextData(
            corpora=(corpus,),
            tokenizer=BPE(vocab_size=vocab_size),
            length=16 if smoke else 128 if recurrent else 256,
            batch_size=32 if recurrent else 8,
        ),
        model=DecoderConfig(
            vocab_size=vocab_size,
            width=width,
            stack=StackConfig(pattern=pattern(arg, smoke), repeats=2 if smoke or recurrent else 4, unroll=4),
            head=HeadConfig(soft_cap=15.0),
            init=Init(weights="fan_in", outputs="zeros", embedding_std=0.02),
        ),
        optimizer=Muon(
            learning_rate=0.02,
            adam_learning_rate=6e-3,
            weight_decay=0.0,
            schedule=Schedule(shape="linear", warmup_steps=0 if smoke else 50, decay_fraction=0.6, final_ratio=0.0),
        ),
        train=TrainConfig(num_steps=2 if smoke else RECURRENT.get(arg, 900)),
        checkpoint=CheckpointConfig(every=0 if smoke else 300),
        evals=() if smoke else (PerplexityConfig(**rows), PerplexityConfig(name="test", split="test", **rows)),
        samples=None
        if smoke
        else SamplesConfig(prompts=("It was a dark night, and",), num_samples=2, sampling=SamplingConfig(temperature=0.8)),
    )
