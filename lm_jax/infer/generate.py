"""Autoregressive generation with a key-value cache, in one compiled program."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import local_view
from lm_jax.core.param import Params, param_specs
from lm_jax.core.types import Array, Batch
from lm_jax.infer.sampling import SamplingConfig


@functools.partial(jax.jit, static_argnames=("graph", "sampling_fields", "max_tokens", "context", "num_tokens", "bidirectional"))
def _generate(
    params: Params,
    prompts_BP: Array,
    weights_BP: Array,
    key: Array,
    stop_tokens: Array,
    inputs: Batch,
    *,
    graph: nnx.GraphDef,
    sampling_fields: tuple,
    max_tokens: int,
    context: int | None,
    num_tokens: int | None,
    bidirectional: bool,
) -> Array:
    sampling = SamplingConfig(**dict(sampling_fields))

    def local(params: Params, prompts_BP: Array, weights_BP: Array, key: Array, stop_tokens: Array, inputs: Batch) -> Array:
        model = nnx.merge(graph, params)
        B, P = prompts_BP.shape
        more = ({"inputs": inputs} if inputs else {}) | ({"prefix": True} if bidirectional else {})
        cache, prefix = model.init_cache(B, P + max_tokens, context, **more), (weights_BP,) if bidirectional else ()
        logits, cache = model.decode(prompts_BP, cache, weights_BP, *prefix)

        def body(carry):
            i, logits_BV, cache, tokens_BM, done_B = carry
            if num_tokens is not None:
                logits_BV = jnp.where(jnp.arange(logits_BV.shape[1]) < num_tokens, logits_BV, -jnp.inf)
            new_B = jnp.where(done_B, -1, sampling.sample(jax.random.fold_in(key, i), logits_BV))
            tokens_BM = tokens_BM.at[:, i].set(new_B)
            done_B = done_B | jnp.any(new_B[:, None] == stop_tokens[None, :], axis=1)
            logits_BTV, cache = model.decode(jnp.maximum(new_B, 0)[:, None], cache)
            return i + 1, logits_BTV[:, 0], cache, tokens_BM, done_B

        start = (
            jnp.int32(0),
            logits[:, -1],
            cache,
            jnp.full((B, max_tokens), -1, jnp.int32),
            jnp.zeros((B,), bool),
        )
        return jax.lax.while_loop(lambda carry: (carry[0] < max_tokens) & ~jnp.all(carry[4]), body, start)[3]

    # Every device decodes all rows. Gathered weights are the same everywhere, which the types cannot show.
    whole = PartitionSpec()
    on_mesh = local_view(local, (param_specs(graph, params), whole, whole, whole, whole, whole), whole, check=False)
    return on_mesh(params, prompts_BP, weights_BP, key, stop_tokens, inputs)


def generate(
    graph: nnx.GraphDef,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: SamplingConfig,
    seed: int = 0,
    stop_tokens: Sequence[int] = (),
    context: int | None = None,
    num_samples: int = 1,
    num_tokens: int | None = None,
    inputs: Batch | None = None,
    bidirectional: bool = False,
) -> list[list[list[int]]]:
    """Continues every prompt `num_samples` times by up to `max_tokens` tokens.

    Args:
      graph, params: the model, as `core.param.split` gives it. It must have `init_cache` and `decode`.
      prompts: token ids, at least one each; lengths may differ (shorter ones are padded at the left).
      seed: the same seed gives the same tokens.
      stop_tokens: a sample ends after the first of these, which is not returned.
      context: how many tokens back a query sees; set it to the length of the training rows to go beyond that length.
      inputs: what the encoder of an encoder-decoder reads, a row for each prompt; prompts are beginnings of targets then.
      bidirectional: the tokens of a prompt see each other both ways, as the prefixes that a prefix-LM is trained with.
      num_tokens: ids from this one on are never drawn: they pad the vocabulary beyond that of the tokenizer.

    Returns:
      For each prompt, for each sample, the new token ids.

    Raises:
      ConfigError: for an empty prompt, or a length that the model's position table does not have.
    """
    check_request(graph, params, prompts, max_tokens, inputs)
    tokens = _generate(
        params,
        *pad_left([prompt for prompt in prompts for _ in range(num_samples)]),
        jax.random.key(seed),
        np.array(stop_tokens, np.int32),
        {name: np.repeat(np.asarray(value), num_samples, axis=0) for name, value in (inputs or {}).items()},
        graph=graph,
        sampling_fields=tuple(sorted(vars(sampling).items())),
        max_tokens=max_tokens,
        context=context,
        num_tokens=num_tokens,
        bidirectional=bidirectional,
    )
    new = [[int(t) for t in row if t >= 0 and t not in stop_tokens] for row in np.asarray(tokens)]
    return [new[i : i + num_samples] for i in range(0, len(new), num_samples)]


def pad_left(prompts: Sequence[Sequence[int]], multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, P] twice: the prompts, with padding before the short ones, and which are no padding.

    P is a multiple of `multiple`, unless all prompts are one token: for each other P there is another program.
    """
    longest = max(map(len, prompts))
    longest = -(-longest // multiple) * multiple if longest > 1 else 1
    tokens = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    weights = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return np.array(tokens, np.int32), np.array(weights, np.int32)


def check_request(
    graph: nnx.GraphDef, params: Params, prompts: Sequence[Sequence[int]], max_tokens: int, inputs: Batch | None
) -> None:
    """Raises `ConfigError` where the model cannot continue the prompts by `max_tokens` tokens, given these inputs."""
    if inputs and any(len(value) != len(prompts) for value in inputs.values()):
        raise ConfigError(f"{len(prompts)} prompts, but inputs of {[len(value) for value in inputs.values()]} rows")
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise ConfigError("a prompt is empty; give at least one token (the end-of-document token starts a new document)")
    if max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens} must be at least 1")
    config = nnx.merge(graph, params).config
    length, limit = max(map(len, prompts)) + max_tokens, config.max_length()
    if limit is not None and length > limit:
        raise ConfigError(f"prompt and max_tokens need {length} positions, but the model's table has {limit}")
    top = max(max(prompt) for prompt in prompts)
    if top >= config.vocab_size:
        raise ConfigError(f"a prompt holds token {top}, but the model's vocabulary has {config.vocab_size}")
