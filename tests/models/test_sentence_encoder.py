"""Vectors of sentences: those of the texts alone, whatever padding stands beside them, pooled from an encoder's hidden states."""

import jax
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.core.param import split
from lm_jax.models.encoder import EncoderConfig
from tests.models.sentences_for_tests import batch_of_pairs, sentence_encoder


@pytest.mark.parametrize("pool", ["mean", "max", "first"])
def test_a_vector_is_the_pool_of_an_encoder_of_the_text_alone(pool):
    """The encoder is the one for masked words, with the same parameters."""
    config, batch = sentence_encoder(pool=pool), batch_of_pairs()
    model = config.build(jax.random.key(0))
    fields = {name: getattr(config, name) for name in ("vocab_size", "width", "embedding", "stack", "init")}
    encoder = EncoderConfig(**fields).build(jax.random.key(0))
    for name in ("embedding", "stack"):  # the encoder can be where it starts from
        jax.tree.map(np.testing.assert_array_equal, split(encoder)[1][name], split(model)[1][name])
    pair = jax.jit(lambda batch: model.pair(batch))(batch)
    how = {"mean": lambda h: h.mean(0), "max": lambda h: h.max(0), "first": lambda h: h[0]}[pool]
    for side, found in enumerate((pair.left, pair.right)):
        for row, vector in enumerate(found):
            tokens = batch["pair_tokens"][row, :, side][batch["pair_segments"][row, :, side] > 0]
            hidden = np.asarray(encoder({"tokens": tokens[None]}).hidden[0], np.float64)
            expected = how(hidden)
            np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-5)
    np.testing.assert_allclose(pair.scale, 20.0, rtol=1e-6)


def test_bad_pools_are_refused():
    with pytest.raises(ConfigError, match="pool='sum'"):
        validate_tree(sentence_encoder(pool="sum"))
