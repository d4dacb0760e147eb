"""Every backend that runs here against the reference, over the whole truth table of what an attention may be asked for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.core.local import local_view, token_index
from lm_jax.core.mesh import MeshShape
from lm_jax.core.sharding import Layout, shard_batch, spec, use_mesh
from lm_jax.nn.attend import BACKENDS, Case, attend, choose
from lm_jax.nn.kernels.spec import AttentionSpec, Tokens

B, T, N, H = 2, 16, 4, 8
TRUTH = [
    dict(zip(("causal", "window", "segments", "soft_cap", "sinks", "kv_heads"), row, strict=True))
    for row in itertools.product((True, False), (None, 5), (False, True), (None, 1.5), (False, True), (1, 4))
]
SEGMENTS = np.array([[1] * 5 + [2] * 9 + [0] * 2, [1] * 2 + [2] * 3 + [3] * 11], np.int32)


def arrays(kv_heads, lengthen=1):
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.normal(size=(B, T * lengthen, heads, H)).astype(np.float32) for heads in (N, kv_heads, kv_heads, N))
    return {"q": q, "k": k, "v": v, "dy": dy}, rng.normal(size=N).astype(np.float32)


def run(implementation, row, mesh=None, lengthen=1):
    """(y, gradients of q, k, v and sinks), rows in their own order; of rows `lengthen` times as long."""
    data, sinks = arrays(row["kv_heads"], lengthen)
    all_segments = np.repeat(SEGMENTS, lengthen, axis=1)
    fields = {name: row[name] for name in ("causal", "window", "segments", "soft_cap", "sinks")}
    what = AttentionSpec(scale=0.5, **fields)
    sinks = sinks if row["sinks"] else None

    def local(data, segments, sinks):
        tokens = Tokens(token_index(data["q"].shape[1]), segments if row["segments"] else None)

        def loss(q, k, v, sinks):
            y = attend(implementation, what, q, k, v, tokens, tokens, sinks)
            return jnp.vdot(y, data["dy"]), y

        grads, y = jax.grad(loss, (0, 1, 2, 3), has_aux=True)(data["q"], data["k"], data["v"], sinks)
        return {"y": y, "q": grads[0], "k": grads[1], "v": grads[2]}, grads[3]

    if mesh is None:
        return local(data, all_segments, sinks)  # not compiled as a whole: the rows of the table share most operations
    layout = Layout()
    with use_mesh(mesh, layout):
        tokens, heads = spec("batch", "sequence", None, None), spec(None)
        index = np.broadcast_to(np.arange(T * lengthen), (B, T * lengthen))
        placed = shard_batch(data | {"index": index, "segments": all_segments}, mesh, layout)
        order = np.asarray(placed.pop("index"))[0]
        segments = placed.pop("segments")
        on_mesh = local_view(local, (tokens, spec("batch", "sequence"), heads), (tokens, heads))
        results, dsinks = jax.jit(on_mesh)(placed, segments, sinks)
    return jax.tree.map(lambda x: np.asarray(x)[:, np.argsort(order)], results), dsinks


@pytest.mark.parametrize("row", TRUTH, ids=lambda row: "-".join(map(str, row.values())))
def test_backends_equal_the_reference(row):
    expected = run("reference", row)
    what = AttentionSpec(scale=0.5, **{name: row[name] for name in ("causal", "window", "segments", "soft_cap", "sinks")})
    for name, backend in BACKENDS.items():
        if backend.refuses(Case(what, jnp.dtype("float32"), H, H, T, T, 1, "cpu")) is None:
            compare(run(name, row), expected)


@pytest.mark.parametrize(
    ("name", "row"),
    [*(("ring", row) for row in TRUTH[::3]), *(("reference", row) for row in TRUTH[::13])],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_split_sequence_equals_one_device(row, name):
    compare(run(name, row, MeshShape(dp=2, cp=4).build()), run("reference", row))


@pytest.mark.parametrize("row", TRUTH, ids=lambda row: "-".join(map(str, row.values())))
def test_the_tpu_kernel_interpreted_equals_the_reference(row, monkeypatch):
    monkeypatch.setitem(BACKENDS, "splash", BACKENDS["splash"]._replace(refuses=lambda case: None))
    compare(run("splash", row, lengthen=16), run("reference", row, lengthen=16))


@pytest.mark.parametrize("row", TRUTH[::21], ids=lambda row: "-".join(map(str, row.values())))
def test_the_tpu_kernel_in_a_local_view_equals_the_reference(row, monkeypatch):
    monkeypatch.setitem(BACKENDS, "splash", BACKENDS["splash"]._replace(refuses=lambda case: None))
    compare(run("splash", row, MeshShape(dp=2).build(), lengthen=16), run("reference", row, lengthen=16))


def compare(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def case(**fields):
    defaults = dict(spec=AttentionSpec(scale=1.0), dtype=jnp.dtype("bfloat16"), head_dim=64, value_dim=64, queries=256, keys=256)
    defaults |= dict(sequence=1, platform="gpu")
    return Case(**(defaults | fields))


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("cudnn", dict(platform="cpu"), "needs an NVIDIA GPU, and this is a cpu"),
        ("cudnn", dict(dtype=jnp.dtype("float32")), "needs bfloat16"),
        ("cudnn", dict(head_dim=256), "at most 128, not 256"),
        ("cudnn", dict(queries=197), "odd number of tokens: 197 queries, 256 keys"),
        ("cudnn", dict(keys=197), "odd number of tokens: 256 queries, 197 keys"),
        ("cudnn", dict(spec=AttentionSpec(scale=1.0, causal=False, window=64)), "windows look back only"),
        ("cudnn", dict(spec=AttentionSpec(scale=1.0, prefix=True, window=64)), "windows look back only"),
        ("cudnn", dict(spec=AttentionSpec(scale=1.0, soft_cap=30.0)), "neither soft-cap nor sinks"),
        ("xla", dict(spec=AttentionSpec(scale=1.0, sinks=True)), "neither soft-cap nor sinks"),
        ("xla", dict(sequence=4), "cannot split the sequence"),
        ("ring", dict(spec=AttentionSpec(scale=1.0, causal=False, cross=True)), "do not travel"),
        ("splash", dict(), "needs a TPU, and this is a gpu"),
        ("splash", dict(platform="tpu", queries=100), "multiple of 128 tokens, not 100 and 256"),
        ("splash", dict(platform="tpu", sequence=2), "cannot split the sequence"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(name, fields, problem):
    with pytest.raises(ConfigError, match=problem):
        choose(name, case(**fields))


def test_auto_says_what_runs_and_why():
    assert choose("auto", case())[0] == choose("auto", case(spec=AttentionSpec(scale=1.0, window=64)))[0] == "cudnn"
    assert choose("auto", case(platform="cpu")) == ("reference", "not cudnn: it needs an NVIDIA GPU, and this is a cpu")
    assert choose("auto", case(platform="tpu")) == ("splash", "fastest on this tpu")
    assert choose("auto", case(sequence=4)) == ("ring", "the sequence is split 4 ways")
    assert choose("auto", case(sequence=4, spec=AttentionSpec(scale=1.0, causal=False, cross=True)))[0] == "reference"


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_alibi_and_a_bias_add_up(implementation):
    """As one bias that is the sum of both, with the slopes of Press et al.: 1/4, 1/16, 1/64, 1/256 for 4 heads."""
    data, _ = arrays(4)
    bias = np.random.default_rng(1).normal(size=(N, T, T)).astype(np.float32)
    distance = np.arange(T)[None, :] - np.arange(T)[:, None]
    summed = bias + 4.0 ** -np.arange(1, 5)[:, None, None] * distance
    tokens = Tokens(jnp.arange(T), None)
    attention = lambda bias, **more: attend(  # noqa: E731
        implementation, AttentionSpec(scale=0.5, bias=True, **more), data["q"], data["k"], data["v"], tokens, tokens, None, bias
    )
    compare(attention(jnp.array(bias), alibi=4), attention(jnp.array(summed, jnp.float32)))
