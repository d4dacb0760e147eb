"""Names of people, places and organisations in English sentences (WikiANN): LSTMs in both directions over words and their letters.

    lm-jax train --config=experiments/ner.py --workdir=runs/ner

A word is its vector (of words that occur five times or more) and those of its beginnings and ends of 1 to 4 characters, its
lower-case form and its shape: most names of the test are words that training never had. The tags of a sentence are the best valid
sequence (without that, 68.1 % on the validation split instead of 73.6 %). The data is looked for in ../shared/data, or where
LM_JAX_DATA points to. `:smoke` is a tiny version.

Test F1 of spans 74.0 % (seed 0, last step), after 2.5 minutes on 2 CPU cores. Beside it a conditional random field of hand-made
features (`python -m benchmarks.ner_peer`): 72.5 %, after 8 minutes of one core.
"""

from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.core.config import check_choice
from lm_jax.data.tagged import TaggedLines, TaggedText
from lm_jax.data.tokenizers import Words
from lm_jax.evals.tagging import TaggingConfig
from lm_jax.models.tagger import TaggerConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.features import FeaturesConfig
from lm_jax.nn.init import Init
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig


def sentences(split: str) -> TaggedLines:
    """A file of WikiANN."""
    return TaggedLines(paths=(f"{folder('ner')}/wikiann_en_{split}.txt",), word="en:(.+)")


def get_config(arg: str = "") -> Experiment:
    """The run; "smoke" shrinks it to seconds."""
    check_choice("variant", arg, ("", "smoke"))
    smoke = arg == "smoke"
    width = 16 if smoke else 128
    layer = BlockConfig(mixer=RecurrentConfig(direction="both", size=width), feed_forward=None, dropout=0.3)
    return Experiment(
        data=TaggedText(
            train=sentences("train"),
            validation=sentences("dev"),
            test=sentences("test"),
            tokenizer=Words(split="whitespace", min_count=5),
            length=128,
            batch_size=4 if smoke else 16,
        ),
        model=TaggerConfig(
            vocab_size=4_000,
            classes=7,
            width=width,
            embedding=EmbeddingConfig(dropout=0.5),
            features=FeaturesConfig(buckets=2**10 if smoke else 2**15, dropout=0.4),
            stack=StackConfig(pattern=(layer,), repeats=1),
            dropout=0.5,
            init=Init(weights="fan_in", embedding_std=0.05),
        ),
        optimizer=AdamW(
            learning_rate=2e-3,
            weight_decay=0.1,
            schedule=Schedule(shape="linear", warmup_steps=0 if smoke else 20, final_ratio=0.0),
        ),
        step=StepConfig(ema_decay=0.99),
        train=TrainConfig(num_steps=2 if smoke else 640),
        checkpoint=CheckpointConfig(every=0),
        evals=(
            TaggingConfig(every=0 if smoke else 160, decoding="viterbi", shown=0),
            TaggingConfig(name="test", split="test", decoding="viterbi"),
        ),
        samples=None,
    )
