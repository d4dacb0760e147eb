"""Transcripts from the scores of connectionist temporal classification."""

import collections

import jax.numpy as jnp
import numpy as np

from lm_jax.core.errors import ConfigError
from lm_jax.core.types import Array


def best_path(logits_BSV: Array, heard_BS: Array, blank: int) -> Array:
    """int32 [B, S]: the likeliest token of each position where it begins a label, -1 elsewhere (Graves et al. 2006, section 3.2).

    A token that repeats the one before it, a blank, and padding (where `heard_BS` is 0) begin none.
    """
    best_BS = jnp.argmax(logits_BSV, axis=2).astype(jnp.int32)
    before_BS = jnp.pad(best_BS[:, :-1], ((0, 0), (1, 0)), constant_values=blank)
    return jnp.where((best_BS != before_BS) & (best_BS != blank) & (heard_BS > 0), best_BS, -1)


def prefix_beam_search(log_probs_SV: np.ndarray, *, beam: int, blank: int) -> list[tuple[float, list[int]]]:
    """Transcripts by the probability of all their alignments, which a bounded search finds (Hannun et al. 2014, arXiv:1408.2873,
    algorithm 1, without a language model).

    Args:
      log_probs_SV: natural logarithms, of the positions that are no padding.
      beam: how many transcripts are kept from position to position; with all of them, the result is exact.

    Returns:
      At most `beam` pairs (log-probability, tokens), the best first.

    Raises:
      ConfigError: for a beam below 1.
    """
    if beam < 1:
        raise ConfigError(f"beam={beam} must be at least 1")
    # Of each prefix, the log-probability of its alignments that end with a blank, and of those that end with its last token.
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}
    for scores_V in np.asarray(log_probs_SV, np.float64):
        new: dict[tuple[int, ...], list[float]] = collections.defaultdict(lambda: [-np.inf, -np.inf])
        for prefix, (of_blank, of_token) in kept.items():
            either = np.logaddexp(of_blank, of_token)
            same = new[prefix]
            same[0] = np.logaddexp(same[0], either + scores_V[blank])
            if prefix:
                same[1] = np.logaddexp(same[1], of_token + scores_V[prefix[-1]])
            for token, score in enumerate(scores_V.tolist()):
                if token != blank:
                    longer = new[*prefix, token]
                    # The token before, repeated, is another one only after a blank.
                    longer[1] = np.logaddexp(longer[1], (of_blank if prefix and token == prefix[-1] else either) + score)
        possible = [(prefix, (a, b)) for prefix, (a, b) in new.items() if max(a, b) > -np.inf]
        kept = dict(sorted(possible, key=lambda item: -np.logaddexp(*item[1]))[:beam])
    return [(float(np.logaddexp(*ends)), list(prefix)) for prefix, ends in kept.items()]
