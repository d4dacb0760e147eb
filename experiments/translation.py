"""Translation of image captions, English to German (Multi30k), by a Transformer from scratch or by LSTMs with attention.

    lm-jax train --config=experiments/translation.py --workdir=runs/translation

29,000 pairs of sentences, one table of sub-words for both languages. `:transformer` (default) has norms before the layers and
rotary positions; `:original` is that of Vaswani et al. 2017 (sinusoids, norms after); `:luong` and `:bahdanau` are encoders of
LSTMs in both directions and decoders of LSTMs that attend to them, by products or by a small network (arXiv:1508.04025,
arXiv:1409.0473), `:gru` is `:bahdanau` of GRUs; what is attended to joins the residual stream after each layer, where these papers
feed it to the recurrence.

On 2 CPU cores `:transformer` reaches BLEU 38.9 on test_2016_flickr in 37 minutes, `:luong` 38.0 in 19, `:bahdanau` 38.3 in 34
(beside other jobs). `:smoke` and `:smoke_gru` are tiny versions for tests. The data is looked for in ../shared/data, or where
LM_JAX_DATA points to.
"""

from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.core.config import check_choice
from lm_jax.data.pairs import PairedText, Pairs
from lm_jax.data.sources import TextFiles
from lm_jax.data.tokenizers import BPE
from lm_jax.evals.generation import GenerationConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.additive_attention import AdditiveAttentionConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig, RotaryConfig
from lm_jax.nn.recurrent import RecurrentConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.muon import Muon
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig

RECURRENT = ("luong", "bahdanau", "gru")
LENGTH = 128  # tokens of a row, which holds several pairs


def pairs(split: str) -> Pairs:
    """The aligned files of a split."""
    english, german = (TextFiles(paths=(f"{folder('multi30k')}/{split}.{side}.gz",), document="line") for side in ("en", "de"))
    return Pairs(source=english, target=german)


def stacks(kind: str, layers: int) -> tuple[EmbeddingConfig, StackConfig, StackConfig]:
    """Embedding, encoder and decoder."""
    positions, norm, rotary, placement = None, NormConfig(), RotaryConfig(), "pre"
    mlp = MLPConfig(hidden=256, activation="silu", gated=True)
    if kind == "original":
        norm, rotary, placement = NormConfig(kind="layer", bias=True), None, "post"
        positions, mlp = PositionTableConfig(kind="sinusoidal", length=LENGTH), MLPConfig(hidden=512, activation="relu", bias=True)
    recurrent = kind in RECURRENT
    rate = 0.2 if recurrent else 0.1  # Transformers have more layers
    common = {"norm": norm, "placement": placement, "feed_forward": mlp, "dropout": rate}
    attention = AttentionConfig(num_heads=4, rotary=rotary, causal=False)
    encoder = BlockConfig(mixer=attention, **common)
    decoder = BlockConfig(mixer=AttentionConfig(num_heads=4, rotary=rotary), cross=AttentionConfig(num_heads=4), **common)
    if recurrent:
        cross = AttentionConfig(num_heads=1) if kind == "luong" else AdditiveAttentionConfig()
        layers, common["feed_forward"] = min(layers, 2), None
        cell = "gru" if kind == "gru" else "lstm"
        encoder = BlockConfig(mixer=RecurrentConfig(cell=cell, direction="both"), **common)
        decoder = BlockConfig(mixer=RecurrentConfig(cell=cell), cross=cross, **common)
    last = norm if placement == "pre" else None
    embedding = EmbeddingConfig(positions=positions, scale=1.0 if placement == "pre" else 128**0.5, dropout=rate)
    return embedding, *(StackConfig(pattern=(block,), repeats=layers, final_norm=last, unroll=4) for block in (encoder, decoder))


def get_config(arg: str = "transformer") -> Experiment:
    """The run of a kind of model; "smoke" shrinks it to seconds."""
    arg = arg or "transformer"
    check_choice("variant", arg, ("transformer", "original", *RECURRENT, "smoke", "smoke_gru"))
    smoke = arg.startswith("smoke")
    kind = {"smoke": "transformer", "smoke_gru": "gru"}.get(arg, arg)
    recurrent = kind in RECURRENT
    embedding, encoder, decoder = stacks(kind, 1 if smoke else 4)
    return Experiment(
        data=PairedText(
            train=pairs("val" if smoke else "train"),
            validation=pairs("val"),
            test=pairs("test_2016_flickr"),
            tokenizer=BPE(vocab_size=500 if smoke else 6000, lowercase=True, leading_space=True),
            length=LENGTH,
            memory_length=LENGTH,
            batch_size=4 if smoke else 8,
        ),
        model=EncoderDecoderConfig(
            vocab_size=500 if smoke else 6000,
            width=128,
            embedding=embedding,
            encoder=encoder,
            stack=decoder,
            head=HeadConfig(tied=True),
            init=Init(weights="fan_in", outputs="same" if recurrent or kind == "original" else "zeros", embedding_std=0.02),
        ),
        objective=LMConfig(label_smoothing=0.1),
        optimizer=Muon(
            learning_rate=0.02,
            adam_learning_rate=3e-3,
            weight_decay=0.0,
            schedule=Schedule(
                shape="linear", warmup_steps=0 if smoke else 100, decay_fraction=0.7 if recurrent else 1.0, final_ratio=0.0
            ),
        ),
        step=StepConfig(ema_decay=0.995),
        train=TrainConfig(num_steps=2 if smoke else 5000 if recurrent else 8000),
        checkpoint=CheckpointConfig(every=0),
        evals=(GenerationConfig(name="test", split="test", metrics=("bleu",), beam=2, limit=4, max_tokens=8),)
        if smoke
        else (
            PerplexityConfig(every=1000, batch_size=32),
            GenerationConfig(name="validation_texts", every=1000, limit=200, metrics=("bleu",), beam=1),
            GenerationConfig(name="test", split="test", metrics=("bleu", "chrf"), beam=5),
        ),
        samples=None,
    )
