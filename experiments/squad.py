"""Answers to questions as spans of a paragraph (the development set of SQuAD 1.1), from scratch: LSTMs and attention between.

    lm-jax train --config=experiments/squad.py --workdir=runs/squad

Trained on 9,380 questions about 1,827 paragraphs, tested on 1,190 about 240 others of the same articles (those of XQuAD), a
tenth of what SQuAD's training set has. Question and paragraph are one row of words; beside its letters a word has as features
which of them it is of, and whether the other has it too. On 2 CPU cores: F1 55.3, exact match 43.8 in 6 minutes (the sentence that
shares most words with the question: F1 19.3). `:generative` writes the answer instead, given question and paragraph, by an
encoder-decoder. `:smoke` is a tiny version of the first. The data is looked for in ../shared/data, or where LM_JAX_DATA points to.
"""

import dataclasses

import translation
from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.data.pairs import AnswerPairs, PairedText
from lm_jax.data.questions import Questions, SquadFiles
from lm_jax.data.splits import HashSplit
from lm_jax.data.tokenizers import BPE, Words
from lm_jax.evals.generation import GenerationConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.evals.question_answering import QuestionAnsweringConfig
from lm_jax.models.span_reader import SpanReaderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.features import FeaturesConfig
from lm_jax.nn.init import Init
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.spans import SpansConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig


def questions(split: str) -> SquadFiles:
    """A file of the data."""
    return SquadFiles(paths=(f"{folder('squad_dev')}/{split}.json",))


def stack(width: int) -> StackConfig:
    """LSTMs, attention in which the words of the paragraph see the question, and LSTMs again."""
    lstm = BlockConfig(mixer=RecurrentConfig(direction="both", size=width), feed_forward=None, dropout=0.2)
    attention = BlockConfig(mixer=AttentionConfig(num_heads=4, causal=False), feed_forward=None, dropout=0.2)
    return StackConfig(pattern=(lstm, attention, lstm), repeats=1)


def generative() -> Experiment:
    """The encoder-decoder of translation, which reads the question and the first 240 sub-words of question and paragraph."""
    base = translation.get_config("transformer")
    data = PairedText(
        train=AnswerPairs(questions=questions("train")),
        test=AnswerPairs(questions=questions("test")),
        split=HashSplit(validation=0.05),
        tokenizer=BPE(vocab_size=base.model.vocab_size, lowercase=True, leading_space=True),
        length=32,
        memory_length=240,
        batch_size=8,
    )
    test = GenerationConfig(name="test", split="test", metrics=("f1", "exact"), max_tokens=16, batch_size=32)
    return dataclasses.replace(base, data=data, train=TrainConfig(num_steps=2500), evals=(PerplexityConfig(every=500), test))


def get_config(arg: str = "spans") -> Experiment:
    """The run that marks "spans", or the "generative" one; "smoke" shrinks the first to seconds."""
    if arg not in ("spans", "generative", "smoke"):
        raise ValueError(f"{arg!r} is not one of spans, generative, smoke")
    if arg == "generative":
        return generative()
    smoke = arg == "smoke"
    width = 16 if smoke else 96
    return Experiment(
        data=Questions(
            train=questions("train"),
            test=questions("test"),
            split=HashSplit(validation=0.05),
            tokenizer=Words(min_count=5, lowercase=True),
            length=256,
            batch_size=2 if smoke else 16,
        ),
        model=SpanReaderConfig(
            vocab_size=8_000,
            width=width,
            embedding=EmbeddingConfig(dropout=0.3),
            features=FeaturesConfig(buckets=2**10 if smoke else 2**14, dropout=0.3, initial_std=0.05),
            stack=stack(width),
            dropout=0.3,
            init=Init(weights="fan_in", embedding_std=0.05),
        ),
        objective=SpansConfig(),
        optimizer=AdamW(
            learning_rate=2e-3,
            weight_decay=0.1,
            schedule=Schedule(shape="linear", warmup_steps=0 if smoke else 50, final_ratio=0.0),
        ),
        step=StepConfig(ema_decay=0.99),
        train=TrainConfig(num_steps=2 if smoke else 1000),
        checkpoint=CheckpointConfig(every=0),
        evals=(QuestionAnsweringConfig(every=0 if smoke else 450, shown=0), QuestionAnsweringConfig(name="test", split="test")),
        samples=None,
    )
