"""What is missing from a page of a novel: span corruption (T5), the mixture of denoisers of UL2, or the rest of a page (prefix-LM).

    lm-jax train --config=experiments/denoising.py:span --workdir=runs/span

`:span` (default, arXiv:1910.10683) and `:ul2` (arXiv:2205.05131) are encoder-decoders with relative biases for positions, and
`:prefix` is the decoder of experiments/novels.py, whose tokens of the first part of a row see each other both ways. Text, sub-words
and optimizer are those of novels.py too. "validation" is the loss of what is missing, sentinels included: the variants miss
different parts, so that their figures do not compare. The text is looked for in ../shared/data, or where LM_JAX_DATA points to.
`:smoke` is a tiny version of `:span` for tests.
"""

import dataclasses

import novels

from lm_jax.config import Experiment, SamplesConfig
from lm_jax.core.config import check_choice
from lm_jax.data.denoising import Denoise
from lm_jax.data.prefixes import PrefixLM
from lm_jax.data.span_corruption import UL2, SpanCorruption
from lm_jax.evals.perplexity import PerplexityConfig
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.attention import AttentionConfig
from lm_jax.nn.block import BlockConfig
from lm_jax.nn.head import HeadConfig
from lm_jax.nn.mlp import MLPConfig
from lm_jax.nn.relative_bias import RelativeBiasConfig
from lm_jax.nn.stack import StackConfig
from lm_jax.train.trainer import TrainConfig

DENOISERS: dict[str, Denoise] = {"span": SpanCorruption(), "ul2": UL2(), "prefix": PrefixLM(), "smoke": SpanCorruption()}


def layers(repeats: int, hidden: int, *, causal: bool) -> StackConfig:
    """The encoder, or the decoder where `causal`."""
    block = BlockConfig(
        mixer=AttentionConfig(num_heads=4, causal=causal),
        cross=AttentionConfig(num_heads=4) if causal else None,
        feed_forward=MLPConfig(hidden=hidden, activation="gelu", gated=True),
    )
    return StackConfig(pattern=(block,), repeats=repeats, relative_bias=RelativeBiasConfig(), unroll=repeats)


def get_config(arg: str = "span") -> Experiment:
    """The run of a kind of denoising; "smoke" shrinks the first to seconds."""
    arg = arg or "span"
    check_choice("variant", arg, tuple(DENOISERS))
    smoke, denoise = arg == "smoke", DENOISERS[arg]
    base = novels.get_config("smoke" if smoke else "transformer")
    vocab_size = base.model.vocab_size + denoise.num_added
    model = dataclasses.replace(base.model, vocab_size=vocab_size)
    if arg != "prefix":
        repeats, hidden = (1, 32) if smoke else (3, 512)
        model = EncoderDecoderConfig(
            vocab_size=vocab_size,
            width=base.model.width,
            encoder=layers(repeats, hidden, causal=False),
            stack=layers(repeats, hidden, causal=True),
            head=HeadConfig(tied=True, soft_cap=15.0),
            init=base.model.init,
        )
    # A sample goes on with the prompt; the prefix-LM reads it both ways.
    samples = SamplesConfig(prompts=("It was a dark night, and",), num_samples=2, sampling=SamplingConfig(temperature=0.8))
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, denoise=denoise),
        model=model,
        train=TrainConfig(num_steps=2 if smoke else 900),
        evals=() if smoke else (PerplexityConfig(batch_size=16),),
        samples=None if smoke else samples,
    )
