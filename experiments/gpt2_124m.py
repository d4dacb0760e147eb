"""GPT-2 124M (Radford et al. 2019): 12 layers of width 768, learned positions, rows of 1,024 tokens, 0.5M tokens a step.

    lm-jax train --config=experiments/gpt2_124m.py --workdir=runs/gpt2 \\
        --config.data.corpora[0].source.paths="('corpus/*.jsonl.gz',)"

For one or more GPUs of 40 GB or more: bfloat16, fully sharded over all devices (`mesh.fsdp=-1`), 16 micro-batches, loss in 8
chunks. Text: JSON lines with a "text" field, tokenised with the GPT-2 tokenizer (a tokenizer.json beside the corpus). Not run
here to convergence (no GPU was lent); the published model reaches about 3.1 nats a token on OpenWebText. `:smoke` is a tiny
version for tests.
"""

import dataclasses

from lm_jax.config import Experiment, SamplesConfig
from lm_jax.core.config import check_choice
from lm_jax.core.mesh import MeshShape
from lm_jax.data.packing import Packing
from lm_jax.data.sources import JsonLines
from lm_jax.data.splits import HashSplit
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import TokenizerFile
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.models.decoder import DecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.embedding import EmbeddingConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.moe import MoEConfig
from lm_jax.nn.norm import NormConfig
from lm_jax.nn.positions import PositionTableConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.objectives.lm import LMConfig
from lm_jax.optim.adamw import AdamW
from lm_jax.optim.schedules import Schedule
from lm_jax.train.checkpoint import CheckpointConfig
from lm_jax.train.step import StepConfig
from lm_jax.train.trainer import TrainConfig

NUM_DEVICES = 8  # what the sharding check in the tests runs on


def get_config(arg: str = "") -> Experiment:
    """The run; `arg` "smoke" shrinks it to seconds."""
    check_choice("variant", arg, ("", "smoke"))
    norm = NormConfig(kind="layer", bias=True, epsilon=1e-5)
    block = BlockConfig(
        norm=norm,
        mixer=AttentionConfig(num_heads=12, bias=True, output_bias=True),
        feed_forward=MLPConfig(hidden=3072, bias=True),
    )
    corpus = Corpus(
        name="text",
        source=JsonLines(paths=("corpus/*.jsonl.gz",)),
        split=HashSplit(validation=0.001),
    )
    experiment = Experiment(
        data=TextData(
            corpora=(corpus,),
            tokenizer=TokenizerFile(path="corpus/tokenizer.json"),
            packing=Packing(method="pack"),
            length=1024,
            batch_size=512,
        ),
        model=DecoderConfig(
            vocab_size=50304,  # 50,257 tokens, padded to a multiple of 128
            width=768,
            embedding=EmbeddingConfig(positions=PositionTableConfig(length=1024)),
            stack=StackConfig(pattern=(block,), repeats=12, final_norm=norm),
            dtype="bfloat16",
        ),
        objective=LMConfig(chunks=8),
        optimizer=AdamW(learning_rate=6e-4, schedule=Schedule(shape="cosine", warmup_steps=700, final_ratio=0.1)),
        step=StepConfig(accumulate=16),
        train=TrainConfig(num_steps=19_073),  # 10B tokens
        mesh=MeshShape(dp=1, fsdp=-1),
        checkpoint=CheckpointConfig(every=1000, keep_latest=2),
        evals=(PerplexityConfig(every=1000, chunks=8),),
        samples=SamplesConfig(every=1000),
    )
    return smoke(experiment) if arg == "smoke" else experiment


def smoke(experiment: Experiment) -> Experiment:
    """The same model family and layout, small enough for a test on CPU."""
    experiment.model.width, experiment.model.vocab_size = 32, 300
    experiment.model.stack.repeats, experiment.model.stack.rounds = 2, 1
    for block in experiment.model.stack.pattern:
        block.mixer.num_heads, block.mixer.head_dim = 4, None
        if isinstance(block.feed_forward, MoEConfig):
            block.feed_forward.num_experts, block.feed_forward.router.top_k, block.feed_forward.expert.hidden = 8, 2, 32
        else:
            block.feed_forward.hidden = 64
        if block.mixer.num_kv_heads is not None:
            block.mixer.num_kv_heads = 2
    if experiment.model.embedding.positions is not None:
        experiment.model.embedding.positions.length = 64
    experiment.data.length, experiment.data.batch_size = 64, 8
    experiment.step.accumulate = 1
    experiment.optimizer.schedule.warmup_steps = 1
    experiment.train.num_steps = 2
    experiment.mesh = MeshShape()
    return dataclasses.replace(experiment, evals=(), samples=None, checkpoint=CheckpointConfig(every=0))
