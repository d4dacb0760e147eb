"""Spoken digits, written out in letters: by connectionist temporal classification, and by an encoder-decoder.

    lm-jax train --config=experiments/speech_digits.py:ctc --workdir=runs/speech_ctc
    lm-jax train --config=experiments/speech_digits.py:seq2seq --workdir=runs/speech_seq2seq

Of 2,500 recordings ({digit}_{speaker}_{take}.wav, 5 speakers, 50 takes) takes 0 to 4 are the test split, 5 to 7 are for validation.
The data is looked for in ../shared/data, or where LM_JAX_DATA points to. `:smoke` is a tiny version of `ctc`.

Word error rate on the test split, seed 0, 2 CPU cores shared with other jobs: ctc 0.8 % in 377 s, seq2seq 0.4 % in 370 s.
"""

from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.data.audio import NameTranscripts, SpeechData, SpeechFiles
from lm_jax.data.splits import NamedSplit
from lm_jax.data.tokenizers import Characters
from lm_jax.evals.transcription import TranscriptionConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.models.speech_encoder import SpeechEncoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.frontend import AudioConfig
from lm_jax.nn.init import Init
from lm_jax.nn.log_mel import LogMelConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.spec_augment import SpecAugmentConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.ctc import CTCConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATE = 8000
NUM_STEPS = {"ctc": 3000, "seq2seq": 2000}
VOCAB = 16  # the 15 letters of these words, and the end of a document


def data() -> SpeechData:
    """The recordings."""
    words = tuple((str(digit), word) for digit, word in enumerate(WORDS))
    files = SpeechFiles(
        paths=(f"{folder('speech_digits')}/*.wav",),
        transcripts=NameTranscripts(pattern=r"^(\d)_", words=words),
        rate=RATE,
    )
    split = NamedSplit(pattern=r"_(\d+)\.wav$", validation=("5", "6", "7"), test=("0", "1", "2", "3", "4"))
    return SpeechData(train=files, split=split, tokenizer=Characters(), length=8, samples=(5600, 18400), batch_size=16)


def source() -> AudioConfig:
    """40 bins every 10 ms, heard in pairs: a position is 20 ms."""
    spectrogram = LogMelConfig(rate=RATE, window=200, hop=80, fft=256, mels=40, low=60.0, pad="zeros")
    augment = SpecAugmentConfig(frequency_masks=2, frequency_width=6, time_masks=2, time_width=6, time_share=0.2)
    return AudioConfig(mels=40, length=115, positions=False, log_mel=spectrogram, augment=augment)


def block(*, causal: bool, cross: bool = False) -> BlockConfig:
    """A layer of width 96."""
    return BlockConfig(
        mixer=AttentionConfig(num_heads=4, rotary=RotaryConfig(), causal=causal),
        cross=AttentionConfig(num_heads=4, causal=False) if cross else None,
        feed_forward=MLPConfig(hidden=256, activation="silu", gated=True),
        dropout=0.1,
    )


def get_config(arg: str = "ctc") -> Experiment:
    """The run of a kind of model; "smoke" shrinks it to seconds."""
    smoke = arg == "smoke"
    kind = "ctc" if smoke or not arg else arg
    if kind not in NUM_STEPS:
        raise ValueError(f"{kind!r} is not one of ctc, seq2seq, smoke")
    init = Init(weights="fan_in", embedding_std=0.05)
    encoder = StackConfig(pattern=(block(causal=False),), repeats=1 if smoke else 3)
    if kind == "ctc":
        model = SpeechEncoderConfig(vocab_size=VOCAB, width=96, source=source(), encoder=encoder, init=init)
    else:
        model = EncoderDecoderConfig(
            vocab_size=VOCAB,
            width=96,
            source=source(),
            encoder=encoder,
            embedding=EmbeddingConfig(dropout=0.1),
            stack=StackConfig(pattern=(block(causal=True, cross=True),), repeats=1),
            init=init,
        )
    validation = TranscriptionConfig(every=1000, batch_size=32, shown=0)
    test = TranscriptionConfig(name="test", split="test", batch_size=32)
    return Experiment(
        data=data(),
        model=model,
        objective=CTCConfig() if kind == "ctc" else LMConfig(label_smoothing=0.1),
        optimizer=AdamW(
            learning_rate=2e-3,
            weight_decay=0.1,
            schedule=Schedule(shape="linear", warmup_steps=0 if smoke else 100, final_ratio=0.0),
        ),
        step=StepConfig(ema_decay=0.99),
        train=TrainConfig(num_steps=2 if smoke else NUM_STEPS[kind]),
        checkpoint=CheckpointConfig(every=0),
        evals=(test,) if smoke else (validation, test),
        samples=None,
    )
