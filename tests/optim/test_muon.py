import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm_jax.optim.muon import JORDAN, POLAR_EXPRESS, Muon, orthogonalise
from tests.optim.reference import newton_schulz


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 24, 64), (2, 3, 64, 24), (16, 48)])
@pytest.mark.parametrize("dtype,slack", [("float32", 0.0), ("bfloat16", 0.03)])
def test_singular_values_end_in_the_band(shape, dtype, slack):
    """Jordan's coefficients bring singular values above about 0.01 of the norm into [0.68, 1.21]."""
    u, s, v = np.linalg.svd(random(*shape), full_matrices=False)
    s = np.linspace(1.0, 0.05, s.shape[-1], dtype=np.float32) * np.ones_like(s)
    y = orthogonalise(jnp.asarray((u * s[..., None, :]) @ v), JORDAN, dtype)
    assert y.dtype == jnp.float32
    values = np.linalg.svd(np.asarray(y), compute_uv=False)
    assert values.min() > 0.68 - slack and values.max() < 1.21 + slack
    if dtype == "float32":  # the singular vectors stay what they were
        np.testing.assert_allclose(np.asarray(y) @ np.swapaxes(v, -1, -2), u * values_in_order(y, u, v), atol=1e-4)


def test_polar_express_holds_a_narrower_band_in_four_steps():
    values = np.geomspace(0.005, 1.0, 100_000)
    for a, b, c in POLAR_EXPRESS:
        values = a * values + b * values**3 + c * values**5
    assert len(POLAR_EXPRESS) == 4 and values.min() > 0.91 and values.max() < 1.09


def values_in_order(y, u, v):
    return np.einsum("...ri,...rc,...ic->...i", u, np.asarray(y), v)[..., None, :]


@pytest.mark.parametrize("shape", [(20, 20), (12, 30), (30, 12)])
def test_equals_the_iteration_in_float64_and_in_optax(shape):
    x = random(*shape)
    y = orthogonalise(jnp.asarray(x))
    np.testing.assert_allclose(y, newton_schulz(x.astype(np.float64)), atol=1e-5)
    peer = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=optax.contrib.MuonDimensionNumbers())
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = peer.update(jnp.asarray(x), peer.init(jnp.asarray(x)))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_of_zero_is_zero():
    np.testing.assert_array_equal(orthogonalise(jnp.zeros((4, 6))), np.zeros((4, 6)))


def one_update(axes: tuple[str, ...], grad: np.ndarray) -> np.ndarray:
    optimizer = Muon(weight_decay=0.0).build({"w": axes}, 10)
    params = {"w": jnp.zeros(grad.shape)}
    return np.asarray(optimizer.update({"w": grad}, optimizer.init(params), params, jnp.int32(0))[0]["w"])


def test_heads_are_merged_and_layers_are_separate():
    grad = random(3, 16, 4, 8)
    whole = one_update(("layers", "embed", "heads", "head_dim"), grad)
    flat = np.stack([one_update(("embed", "mlp"), g.reshape(16, 32)) for g in grad])
    np.testing.assert_allclose(whole, flat.reshape(grad.shape), atol=1e-6)
    back = one_update(("layers", "kv_heads", "head_dim", "embed"), grad.reshape(3, 4, 8, 16))
    flat = np.stack([one_update(("mlp", "embed"), g.reshape(32, 16)) for g in grad])
    np.testing.assert_allclose(back, flat.reshape(3, 4, 8, 16), atol=1e-6)


def test_wide_and_tall_updates_have_the_stated_size():
    """rms of a (semi-)orthogonal r x c matrix is 1 / sqrt(max(r, c)); "shape" favours many outputs."""
    rate = 0.02
    for shape, scale in [((64, 256), 2.0), ((256, 64), 1.0)]:
        rms = np.sqrt(np.mean(np.square(one_update(("embed", "mlp"), random(*shape))))) / rate
        assert 0.7 < rms / (scale / np.sqrt(256)) < 1.2


def test_a_tree_without_matrices_or_without_anything_else():
    for axes, shape in [(("embed",), (4,)), (("embed", "mlp"), (4, 6))]:
        assert np.all(one_update(axes, random(*shape)) != 0)


def test_coefficients_are_those_of_the_config():
    x = random(8, 8)
    optimizer = Muon(weight_decay=0.0, newton_schulz=((1.5, -0.5, 0.0),) * 12, learning_rate=1.0)
    optimizer = optimizer.build({"w": ("embed", "mlp")}, 10)
    params = {"w": jnp.zeros((8, 8))}
    new, _ = jax.jit(optimizer.update)({"w": x}, optimizer.init(params), params, jnp.int32(0))
    u, s, v = np.linalg.svd(x)
    assert s.min() / np.linalg.norm(x) > 0.01  # the cubic iteration converges to 1 exactly, slowly from small values
    np.testing.assert_allclose(new["w"], -(u @ v), atol=0.05)
