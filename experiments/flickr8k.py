"""Photographs of Flickr8k (96 x 96 pixels) and their captions, from scratch: which belong together, or captions written by a model.

    lm-jax train --config=experiments/flickr8k.py:contrastive --workdir=runs/flickr8k_contrastive
    lm-jax train --config=experiments/flickr8k.py:caption --workdir=runs/flickr8k_caption

Trained on the 6,000 photographs of the official training split with 5 captions each; the scores are on the 1,000 of the development
split. `:contrastive` finds one of the captions of 10.5 % of the images among the 10 nearest of 5,000, 10.5 times chance, after 6
minutes on 2 CPU cores; the captions of `:caption` reach BLEU-4 9.8 in 9 minutes.
`:smoke` is a tiny version of `caption`. The data is looked for in ../shared/data, or where LM_JAX_DATA
points to; needs the extras `images` and `metrics`.
"""

from emoji import layers
from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.core.config import check_choice
from lm_jax.data.image_table import ImageTable
from lm_jax.data.images import ImageCaptions, ImageTextPairs
from lm_jax.data.pixels import Augment, PixelsConfig
from lm_jax.data.tokenizers import Words
from lm_jax.evals.captions import CaptionsConfig
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.evals.retrieval import RetrievalConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.models.image_encoder import ImageEncoderConfig
from lm_jax.models.two_tower import TwoTowerConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.frontend import PatchesConfig
from lm_jax.nn.init import Init
from lm_jax.objectives.contrastive import ContrastiveConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig

VOCAB = 2_700  # words that occur at least 5 times


def split(name: str) -> ImageTable:
    """The photographs of an official split."""
    return ImageTable(path=f"{folder('flickr8k')}/{name}.jsonl", caption="captions")


def model(arg: str, width: int, depth: int) -> TwoTowerConfig | EncoderDecoderConfig:
    """Patches of 16 pixels: 36 of a photograph."""
    init, embedding = Init(weights="fan_in", embedding_std=0.05), EmbeddingConfig(dropout=0.1)
    patches = PatchesConfig(height=96, image_width=96, patch=16, class_token=False)
    encoder = layers(width, depth, causal=False, rotary=False)
    if arg == "caption":
        return EncoderDecoderConfig(
            vocab_size=VOCAB,
            width=width,
            source=patches,
            encoder=encoder,
            embedding=embedding,
            stack=layers(width, 2, causal=True, rotary=True, cross=True),
            init=init,
        )
    return TwoTowerConfig(
        image=ImageEncoderConfig(width=width, patches=patches, stack=encoder, pool="mean", init=init),
        vocab_size=VOCAB,
        width=width,
        embedding=embedding,
        text=layers(width, 2, causal=False, rotary=True),
        pool_token=0,  # the end of the text
        projection=width,
        init=init,
    )


def get_config(arg: str = "contrastive") -> Experiment:
    """The run of a task; "smoke" shrinks `caption` to seconds."""
    smoke, arg = arg == "smoke", "caption" if arg == "smoke" else arg or "contrastive"
    check_choice("flickr8k", arg, ("contrastive", "caption"))
    captions = arg == "caption"
    written = CaptionsConfig(name="captions", batch_size=4 if smoke else 100, limit=4 if smoke else None, show=4 if smoke else 16)
    evals = (PerplexityConfig(every=200, batch_size=250), written) if captions else (RetrievalConfig(every=200, batch_size=250),)
    kind = ImageCaptions if captions else ImageTextPairs
    return Experiment(
        data=kind(
            train=split("dev" if smoke else "train"),
            validation=split("dev"),
            tokenizer=Words(lowercase=True, min_count=5),
            pixels=PixelsConfig(height=96, width=96),
            augment=Augment(min_area=0.5, flip=True),
            length=24,
            batch_size=8 if smoke else 128,
        ),
        model=model(arg, *((16, 1) if smoke else (128, 4))),
        objective=LMConfig(label_smoothing=0.1) if captions else ContrastiveConfig(),
        optimizer=AdamW(
            learning_rate=1e-3,
            weight_decay=0.1,
            schedule=Schedule(shape="cosine", warmup_steps=0 if smoke else 50, final_ratio=0.0),
        ),
        step=StepConfig(ema_decay=None if smoke else 0.99),
        train=TrainConfig(num_steps=2 if smoke else 800),
        checkpoint=CheckpointConfig(every=0),
        evals=(written,) if smoke else evals,
        samples=None,
    )
