"""Beam search: the likeliest continuation that a bounded search finds, in one compiled program."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import local_view
from lm_jax.core.param import Params, param_specs
from lm_jax.core.types import Array, Batch
from lm_jax.infer.generate import check_request, pad_left
from lm_jax.models.decoder import DecodeState


class _Search(NamedTuple):
    """K hypotheses of each row are alive, K have ended. Scores are sums of log-probabilities; of ended ones, penalised.

    Of a row that is done nothing changes any more, whatever the others of its batch need.
    """

    step: Array  # int32 []
    logits_BKV: Array  # of the token after each that is alive
    state: DecodeState  # of B x K rows
    alive_BK: Array  # float32
    tokens_BKM: Array
    ended_BK: Array  # float32
    results_BKM: Array  # -1 after the end
    done_B: Array  # bool


@functools.partial(jax.jit, static_argnames=("graph", "beam", "max_tokens", "eos", "num_tokens", "context"))
def _beam_search(
    params: Params,
    prompts_BP: Array,
    weights_BP: Array,
    penalty: Array,
    inputs: Batch,
    *,
    graph: nnx.GraphDef,
    beam: int,
    max_tokens: int,
    eos: int,
    num_tokens: int | None,
    context: int | None,
) -> tuple[Array, Array]:
    K, M = beam, max_tokens

    def local(params: Params, prompts_BP: Array, weights_BP: Array, penalty: Array, inputs: Batch) -> tuple[Array, Array]:
        model = nnx.merge(graph, params)
        B, P = prompts_BP.shape

        def decode(tokens_BT: Array, state: DecodeState, *weights: Array) -> tuple[Array, DecodeState]:
            logits, state = model.decode(tokens_BT, state, *weights)
            return logits[:, -1], state

        def body(search: _Search) -> _Search:
            i, V = search.step, search.logits_BKV.shape[-1]
            logits = search.logits_BKV
            if num_tokens is not None:
                logits = jnp.where(jnp.arange(V) < num_tokens, logits, -jnp.inf)
            scores = (search.alive_BK[:, :, None] + jax.nn.log_softmax(logits)).reshape(B, K * V)
            # Of K hypotheses at most K end here, so that twice as many candidates hold K that go on.
            scores_BN, best_BN = jax.lax.top_k(scores, 2 * K)
            from_BN, new_BN = best_BN // V, (best_BN % V).astype(jnp.int32)
            tokens_BNM, ends_BN = jnp.take_along_axis(search.tokens_BKM, from_BN[:, :, None], axis=1), new_BN == eos
            likely = jnp.arange(2 * K)[None, :] < K
            worth_BN = jnp.where(ends_BN & likely, scores_BN / (i + 1).astype(jnp.float32) ** penalty, -jnp.inf)
            alive_BK, at_BK = jax.lax.top_k(jnp.where(ends_BN, -jnp.inf, scores_BN), K)
            new_BK = jnp.take_along_axis(new_BN, at_BK, axis=1)
            tokens = jnp.take_along_axis(tokens_BNM, at_BK[:, :, None], axis=1).at[:, :, i].set(new_BK)
            rows = jnp.arange(B)[:, None] * K + jnp.take_along_axis(from_BN, at_BK, axis=1)
            logits, state = decode(new_BK.reshape(-1, 1), model.take_rows(search.state, rows.reshape(-1)))
            # The most that an alive one can be worth if it ends with the next token.
            hope_B = alive_BK[:, 0] / (i + 2).astype(jnp.float32) ** penalty
            ended = _ended(search, worth_BN, tokens_BNM, hope_B)
            return _Search(i + 1, logits.reshape(B, K, V), state, alive_BK, tokens, *ended)

        def goes_on(search: _Search) -> Array:
            return (search.step < M) & ~jnp.all(search.done_B)

        more = {"inputs": inputs} if inputs else {}
        logits, state = decode(prompts_BP, model.init_cache(B, P + M, context, **more), weights_BP)
        search = _first(logits, model.take_rows(state, jnp.repeat(jnp.arange(B), K)), K, M)
        search = jax.lax.while_loop(goes_on, body, search)
        # A row of which nothing has ended gives what is alive.
        alive = search.alive_BK / jnp.float32(M) ** penalty
        alive = jnp.where(jnp.isneginf(search.ended_BK[:, :1]), alive, -jnp.inf)
        return _best(K, (search.ended_BK, alive), (search.results_BKM, search.tokens_BKM))

    whole = PartitionSpec()
    on_mesh = local_view(local, (param_specs(graph, params), whole, whole, whole, whole), whole, check=False)
    return on_mesh(params, prompts_BP, weights_BP, penalty, inputs)


def _first(logits_BV: Array, state: DecodeState, number: int, length: int) -> _Search:
    """The search before its first step: after the prompts, `number` times each, for up to `length` tokens."""
    B, none = len(logits_BV), jnp.full((len(logits_BV), number, length), -1, jnp.int32)
    return _Search(
        jnp.int32(0),
        jnp.repeat(logits_BV[:, None], number, axis=1),
        state,
        jnp.broadcast_to(jnp.where(jnp.arange(number) == 0, 0.0, -jnp.inf), (B, number)),  # at first all are the same
        none,
        jnp.full((B, number), -jnp.inf),
        none,
        jnp.zeros(B, bool),
    )


def _ended(search: _Search, worth_BN: Array, tokens_BNM: Array, hope_B: Array) -> tuple[Array, Array, Array]:
    """The "ended_BK", "results_BKM" and "done_B" after hypotheses of this worth ended, where alive ones may reach `hope_B`."""
    worth_BN = jnp.where(search.done_B[:, None], -jnp.inf, worth_BN)
    ended_BK, results_BKM = _best(search.ended_BK.shape[1], (search.ended_BK, worth_BN), (search.results_BKM, tokens_BNM))
    greedy = ended_BK.shape[1] == 1  # what ended first is the likeliest of every step, whatever a longer one is worth
    done_B = search.done_B | (jnp.isfinite(ended_BK[:, -1]) & (greedy | (hope_B <= ended_BK[:, -1])))
    return ended_BK, results_BKM, done_B


def _best(number: int, scores: tuple[Array, Array], tokens: tuple[Array, Array]) -> tuple[Array, Array]:
    """The `number` best of two sets of hypotheses, [B, N] scores and [B, N, M] tokens each."""
    best, at = jax.lax.top_k(jnp.concatenate(scores, axis=1), number)
    return best, jnp.take_along_axis(jnp.concatenate(tokens, axis=1), at[:, :, None], axis=1)


def beam_search(
    graph: nnx.GraphDef,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    beam: int,
    max_tokens: int,
    eos: int,
    length_penalty: float = 1.0,
    context: int | None = None,
    num_tokens: int | None = None,
    inputs: Batch | None = None,
) -> list[list[tuple[float, list[int]]]]:
    """Continues every prompt until `eos`, by at most `max_tokens` tokens, `eos` included.

    Of each prompt `beam` hypotheses are extended at once; one ends when `eos` is among the `beam` likeliest next tokens of all.
    It is worth its log-probability (nats, of `eos` too) divided by its length to the power of `length_penalty` (0: not at all; 1:
    a mean). A row is done when `beam` have ended and none that is alive, were it to end with the next token, could be worth more
    than the worst of them, the heuristic of the `transformers` library; so a row does not depend on the others. One beam is greedy
    generation.

    Other arguments as in `generate`.

    Returns:
      For each prompt up to `beam` pairs (worth, new tokens without `eos`), the best first. Where none has ended they are cut off.

    Raises:
      ConfigError: as `generate`, for a beam below 1 or a negative penalty, or a model whose scores are no numbers.
    """
    check_request(graph, params, prompts, max_tokens, inputs)
    if beam < 1 or length_penalty < 0:
        raise ConfigError(f"beam={beam} must be at least 1, length_penalty={length_penalty} not negative")
    scores, tokens = _beam_search(
        params,
        *pad_left(prompts, multiple=16),
        np.float32(length_penalty),
        inputs or {},
        graph=graph,
        beam=beam,
        max_tokens=max_tokens,
        eos=eos,
        num_tokens=num_tokens,
        context=context,
    )
    results = zip(np.asarray(scores), np.asarray(tokens), strict=True)
    found = [[(float(s), t[t >= 0].tolist()) for s, t in zip(*row, strict=True) if np.isfinite(s)] for row in results]
    if not all(found):
        raise ConfigError("no text can be searched: the model's scores are no numbers; take an earlier checkpoint")
    return found
