"""Emoji and their Unicode names, from scratch: which name belongs to which picture.

    lm-jax train --config=experiments/emoji.py:contrastive --workdir=runs/emoji

`contrastive` compares both by the softmax loss (CLIP), `sigmoid` by the sigmoid loss (SigLIP), `coca` compares them and writes the
names in the same step. 10 % of the 3,519 pictures are held out by name. On 2 CPU cores `contrastive` and `coca` take 2 minutes
each; the name of 77 % and 76 % of the held-out pictures is among the nearest 10 of 359, and `contrastive` puts 45 % of
those of seven classes into theirs (zero-shot; the largest class has 27 %). `:smoke` is a tiny version of `coca`. The
data is looked for in ../shared/data, or where LM_JAX_DATA points to; needs the extra `images`.
"""

import math

from shared_data import folder

from lm_jax.config import Experiment
from lm_jax.core.config import check_choice
from lm_jax.data.image_table import ImageTable
from lm_jax.data.images import ImageCaptions, ImageTextPairs
from lm_jax.data.pixels import Augment, PixelsConfig
from lm_jax.data.splits import HashSplit
from lm_jax.data.tokenizers import Words
from lm_jax.evals.retrieval import RetrievalConfig
from lm_jax.evals.zero_shot import ZeroShotConfig
from lm_jax.models.coca import CoCaConfig
from lm_jax.models.image_encoder import ImageEncoderConfig
from lm_jax.models.two_tower import TwoTowerConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.frontend import PatchesConfig
from lm_jax.nn.init import Init
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.positions import RotaryConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.coca import ContrastiveCaptioningConfig
from lm_jax.objectives.contrastive import ContrastiveConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig

VOCAB = 1_400  # words of the names, all of them
CLASSES = ("man", "woman", "person", "face", "heart", "hand", "arrow")


def layers(width: int, repeats: int, *, causal: bool, rotary: bool, cross: bool = False) -> StackConfig:
    """`repeats` layers; images have positions of their own, texts rotary ones."""
    mixer = AttentionConfig(num_heads=4, rotary=RotaryConfig() if rotary else None, causal=causal)
    reads = AttentionConfig(num_heads=4, causal=False) if cross else None
    block = BlockConfig(mixer=mixer, cross=reads, feed_forward=MLPConfig(hidden=4 * width), dropout=0.1)
    return StackConfig(pattern=(block,), repeats=repeats)


def model(arg: str, width: int, depth: int) -> TwoTowerConfig | CoCaConfig:
    """Patches of 12 pixels: 36 of a picture."""
    init, embedding = Init(weights="fan_in", embedding_std=0.05), EmbeddingConfig(dropout=0.1)
    patches = PatchesConfig(height=72, image_width=72, patch=12, class_token=False)
    encoder = layers(width, depth, causal=False, rotary=False)
    if arg == "coca":
        return CoCaConfig(
            vocab_size=VOCAB,
            width=width,
            source=patches,
            encoder=encoder,
            embedding=embedding,
            text=layers(width, 2, causal=True, rotary=True),
            stack=layers(width, 1, causal=True, rotary=True, cross=True),
            pool=AttentionConfig(num_heads=4, causal=False),
            projection=width,
            init=init,
        )
    sigmoid = arg == "sigmoid"
    return TwoTowerConfig(
        image=ImageEncoderConfig(width=width, patches=patches, stack=encoder, pool="mean", init=init),
        vocab_size=VOCAB,
        width=width,
        embedding=embedding,
        text=layers(width, 2, causal=False, rotary=True),
        pool_token=0,  # the end of the text
        projection=width,
        log_scale=math.log(10.0 if sigmoid else 1 / 0.07),
        bias=-10.0 if sigmoid else None,
        init=init,
    )


OBJECTIVES = {
    "contrastive": ContrastiveConfig(),
    "sigmoid": ContrastiveConfig(kind="sigmoid"),
    "coca": ContrastiveCaptioningConfig(),
}


def get_config(arg: str = "contrastive") -> Experiment:
    """The run of an objective; "smoke" shrinks `coca` to seconds."""
    smoke, arg = arg == "smoke", "coca" if arg == "smoke" else arg or "contrastive"
    check_choice("emoji", arg, tuple(OBJECTIVES))
    kind = ImageCaptions if arg == "coca" else ImageTextPairs
    retrieval = RetrievalConfig(every=0 if smoke else 100, batch_size=16 if smoke else 128, show=4 if smoke else 12)
    return Experiment(
        data=kind(
            train=ImageTable(path=f"{folder('emoji')}/captions.tsv", folder="png", image="file"),
            split=HashSplit(validation=0.1),
            tokenizer=Words(lowercase=True, min_count=1),
            pixels=PixelsConfig(height=72, width=72),
            augment=Augment(min_area=0.7),
            length=20,
            batch_size=8 if smoke else 128,
        ),
        model=model(arg, *((16, 1) if smoke else (128, 4))),
        objective=OBJECTIVES[arg],
        optimizer=AdamW(
            learning_rate=1e-3,
            weight_decay=0.1,
            schedule=Schedule(shape="cosine", warmup_steps=0 if smoke else 50, final_ratio=0.0),
        ),
        step=StepConfig(ema_decay=None if smoke else 0.99),
        train=TrainConfig(num_steps=2 if smoke else 300),
        checkpoint=CheckpointConfig(every=0),
        evals=(retrieval, ZeroShotConfig(classes=CLASSES, batch_size=16 if smoke else 128)),
        samples=None,
    )
