"""CoCa: what its parts see, and cached decoding against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError
from lm_jax.models.coca import last_token
from tests.models.images_for_tests import batch_for, coca


def test_the_last_token_is_the_last_that_is_no_padding():
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    segments = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)
    np.testing.assert_array_equal(last_token(jnp.asarray(x), jnp.asarray(segments)), [x[0, 2], x[1, 3]])
    np.testing.assert_array_equal(last_token(jnp.asarray(x), None), x[:, 3])


@pytest.mark.slow
def test_texts_do_not_see_images_and_captions_do():
    config = coca()
    model, batch = config.build(jax.random.key(0)), batch_for(config)
    both = jax.jit(lambda batch: model.both(batch))
    pair, output = both(batch)
    others, seen = both(batch | {"images": np.roll(batch["images"], 1, axis=0)})
    np.testing.assert_allclose(others.left, np.roll(pair.left, 1, axis=0), atol=1e-6)
    np.testing.assert_allclose(others.right, pair.right, atol=1e-6)
    assert np.abs(seen.hidden - output.hidden).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(pair.left, axis=1), 1, atol=1e-5)
    padded = np.where(batch["segments"] == 0, 7, batch["tokens"])
    np.testing.assert_allclose(both(batch | {"tokens": padded})[0].right, pair.right, atol=1e-6)


@pytest.mark.slow
def test_cached_decoding_is_the_whole_forward_pass():
    config = coca()
    model, batch = config.build(jax.random.key(0)), batch_for(config)
    tokens, images = batch["tokens"][:3, :9], batch["images"][:3]
    whole = jax.jit(lambda batch: model.logits(model(batch).hidden))({"tokens": tokens, "images": images})
    state = model.init_cache(3, 9, inputs={"images": images})
    decode = jax.jit(model.decode)
    first, state = decode(tokens[:, :4], state)
    np.testing.assert_allclose(first, whole[:, :4], atol=2e-4)
    for t in range(4, 9):
        logits, state = decode(tokens[:, t : t + 1], state)
        np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=2e-4)
    turned = model.take_rows(state, jnp.array([2, 2, 0]))
    assert turned.info.memory_BS.shape == (3, 6) and jax.tree.leaves(turned.caches)[0].shape[1] == 3


def test_texts_that_see_what_is_to_come_are_refused():
    with pytest.raises(ConfigError, match="a token would see the next one, which it is to predict"):
        validate_tree(coca(text=coca().encoder))
