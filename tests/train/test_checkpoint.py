"""Checkpoints: bit-exact, verified, committed whole or not at all."""

import math
import os
import random
import shutil
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, StorageError
from lm_jax.core.mesh import MeshShape
from lm_jax.train import manifest
from lm_jax.train.checkpoint import CheckpointConfig, Checkpoints, room
from lm_jax.train.lock import RunLock


class State(NamedTuple):
    step: Any
    params: Any
    opt: Any
    ema: Any


def make_state(step: int, scale: float = 1.0) -> State:
    key = jax.random.key(step)
    params = {
        "w": scale * jax.random.normal(key, (16, 8)),
        "block": {"b": jax.random.normal(key, (8,), jnp.bfloat16), "n": {}},
        "ids": jnp.arange(5, dtype=jnp.int32) + step,
    }
    floats = {"w": params["w"], "block": {"b": params["block"]["b"].astype(jnp.float32)}}
    return State(jnp.int32(step), params, optax.adam(1e-3).init(floats), None)


def shapes(state: State) -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def saved(folder, steps=(1, 2), score=lambda step: abs(step - 3.0), **config) -> Checkpoints:
    """Checkpoints of `steps`, committed."""
    checkpoints = Checkpoints(folder, CheckpointConfig(**{"keep_latest": 10, **config}))
    for step in steps:
        checkpoints.save(step, make_state(step), {"note": step}, {"validation/loss": score(step)})
    checkpoints.wait()
    return checkpoints


def test_round_trip_is_exact_and_copies_before_returning(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        state = make_state(7)
        expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
        checkpoints.save(7, state, {"a": "ü"}, {})
        overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
        for _ in range(3):
            state = overwrite(state)
        checkpoints.wait()
        step, got = checkpoints.restore(like=shapes(expected))
        assert step == 7 and checkpoints.record(7) == {"a": "ü"} and isinstance(got, State)
        assert_same(got, expected)
        whole = checkpoints.restore()[1]
        np.testing.assert_array_equal(whole["params"]["w"], expected.params["w"])
        part = checkpoints.restore(like={"params": shapes(expected).params}, partial=True)[1]
        assert_same(part["params"], expected.params)


def test_restores_onto_any_mesh(tmp_path):
    one, eight = MeshShape(dp=1).build(jax.devices()[:1]), MeshShape(dp=1, fsdp=8).build()
    two = MeshShape(dp=1, fsdp=2).build()
    spec = PartitionSpec("fsdp")

    def on(mesh, state):
        def place(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec if x.ndim == 2 else PartitionSpec()))

        return jax.tree.map(place, state)

    expected = make_state(1)
    with Checkpoints(tmp_path, CheckpointConfig(keep_latest=9)) as checkpoints:
        state = expected
        for step, mesh in enumerate((one, eight, two, one), start=1):
            checkpoints.save(step, state, {}, {})
            checkpoints.wait()
            _, state = checkpoints.restore(step, like=on(mesh, state))
            assert_same(state, expected)
            assert len(state.params["w"].sharding.device_set) == mesh.size


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts the bytes that Linux reads")
@pytest.mark.parametrize("sizes", [dict(dp=8), dict(dp=1, fsdp=8), dict(dp=2, fsdp=2, tp=2)], ids=str)
def test_a_restore_reads_every_byte_once_after_checking_it(tmp_path, sizes):
    def num_read() -> int:
        with open("/proc/self/io") as file:
            return int(file.readline().split()[1])

    mesh = MeshShape(**sizes).build()
    parts = PartitionSpec(None, "fsdp", "tp")
    like = jax.ShapeDtypeStruct((8, 2048, 2048), jnp.float32, sharding=NamedSharding(mesh, parts))
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, {"w": jax.random.normal(jax.random.key(0), like.shape)}, {}, {})
        checkpoints.wait()
        pieces = checkpoints._checkpointer.metadata(tmp_path / "0000000001" / "state").item_metadata.tree["w"].storage.chunk_shape
        assert np.prod(pieces) * 4 <= 2**24  # of which a process that holds a part reads those that it needs
        stored = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        before = num_read()
        checkpoints.restore(like={"w": like})
        assert 1.9 * stored < num_read() - before < 2.3 * stored


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_falls_back(folder, what: str) -> None:
    named = []
    with Checkpoints(folder, CheckpointConfig(), on_corrupt=lambda *a: named.append(a), read_only=True) as checkpoints:
        step, state = checkpoints.restore(like=shapes(make_state(1)))
        assert step == 1, what
        assert_same(state, make_state(1))
    assert named and named[0][0] == 2, what


def test_no_flipped_bit_is_restored(tmp_path):
    saved(tmp_path / "good").close()
    files = files_of(tmp_path / "good" / "0000000002")
    rng = random.Random(0)
    with Checkpoints(tmp_path / "good", CheckpointConfig(), read_only=True) as checkpoints:
        for _ in range(200):
            path = rng.choice(files)
            data = path.read_bytes()
            bit = rng.randrange(len(data) * 8)
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            problems = checkpoints.verify(2)
            assert problems and path.name in problems[0], (path, bit)
            path.write_bytes(data)
        assert not checkpoints.verify(2)
    files[0].write_bytes(b"x" + files[0].read_bytes()[1:])
    assert_falls_back(tmp_path / "good", str(files[0]))


@pytest.mark.parametrize("damage", ["delete", "truncate", "empty", "extend", "swap", "link"])
def test_every_damaged_file_is_named_and_the_step_before_is_used(tmp_path, damage):
    saved(tmp_path / "good").close()
    other = tmp_path / "good" / "0000000001"
    for path in files_of(tmp_path / "good" / "0000000002"):
        data = path.read_bytes()
        twin = other / path.relative_to(tmp_path / "good" / "0000000002")
        path.unlink()
        if damage == "truncate":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "extend":
            path.write_bytes(data + b"\0")
        elif damage == "swap":
            path.write_bytes(twin.read_bytes() if twin.exists() else b"?")
        elif damage == "link":
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
        with Checkpoints(tmp_path / "good", CheckpointConfig(), read_only=True) as checkpoints:
            problems = checkpoints.verify(2)
        same = damage == "swap" and twin.exists() and twin.read_bytes() == data
        assert same or any(path.name in problem for problem in problems), (damage, path)
        path.unlink(missing_ok=True)
        path.write_bytes(data)
    files_of(tmp_path / "good" / "0000000002")[-1].unlink()
    assert_falls_back(tmp_path / "good", damage)


def test_processes_share_the_hashing(tmp_path):
    with saved(tmp_path):
        path = tmp_path / "0000000002"
        for file in files_of(path):
            if file.name != manifest.NAME and file.stat().st_size:
                file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
        whole = manifest.check(path, 2, hashes=True)
        shares = [manifest.check(path, 2, hashes=True, share=(i, 3)) for i in range(3)]
    assert len(whole) > 3 and all(shares) and sorted(name for share in shares for name in share) == sorted(whole)


def test_junk_is_ignored_and_the_folder_can_move(tmp_path):
    saved(tmp_path / "a").close()
    (tmp_path / "a" / "0000000009").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "0000000010").write_text("x")
    (tmp_path / "a" / "0000000011").symlink_to(tmp_path / "a" / "0000000002")
    (tmp_path / "a" / ".tmp-0000000012").mkdir()
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    shutil.rmtree(tmp_path / "a")
    with Checkpoints(tmp_path / "b", CheckpointConfig()) as checkpoints:
        assert checkpoints.latest() == 2
        assert checkpoints.restore(like=shapes(make_state(2)))[0] == 2
    assert not (tmp_path / "b" / ".tmp-0000000012").exists()


def test_other_formats_and_missing_steps_are_named(tmp_path):
    checkpoints = saved(tmp_path)
    with pytest.raises(StorageError, match=r"step 5 cannot be used: MANIFEST.json is missing; there are \[1, 2\]"):
        checkpoints.restore(5)
    folder = tmp_path / "0000000002"
    facts = manifest.read(folder)
    (folder / manifest.NAME).unlink()
    manifest.write(folder, {**{k: v for k, v in facts.items() if k not in ("files", "format")}, "format": 99})
    assert checkpoints.verify(2)[0].startswith("MANIFEST.json has format 99")
    shutil.rmtree(tmp_path / "0000000001")
    with pytest.raises(StorageError, match="no good checkpoint"):
        checkpoints.restore()


def test_a_bounded_checkpointer_moves_the_same_bits(tmp_path):
    """The bound is above the largest shard, which a smaller one would refuse."""
    sharding = NamedSharding(MeshShape(dp=1, fsdp=8).build(), PartitionSpec("fsdp"))
    large = jax.ShapeDtypeStruct((8, 10**9), jnp.float32, sharding=sharding)
    assert room({"a": large, "b": jnp.zeros(3)}) == 5 and room({"b": jnp.zeros(3)}) == 1
    state = {"a": jax.device_put(np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32), sharding)}
    with Checkpoints(tmp_path, CheckpointConfig(), memory_gb=room(state)) as checkpoints:
        checkpoints.save(1, state, {}, {})
        checkpoints.wait()
        _, restored = checkpoints.restore(
            like=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        )
    np.testing.assert_array_equal(restored["a"], state["a"])


def test_a_state_that_is_not_finite_is_refused(tmp_path):
    checkpoints = saved(tmp_path)
    with pytest.raises(StorageError, match="step 3 was not saved: params/w is not finite; the last good checkpoint is step 2"):
        checkpoints.save(3, make_state(3, scale=np.nan), {}, {})
    assert checkpoints.steps() == [1, 2]


def test_another_model_is_named(tmp_path):
    checkpoints = saved(tmp_path)
    like = shapes(make_state(2))
    like.params["w"] = jax.ShapeDtypeStruct((16, 9), jnp.float32)
    like.params["ids"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    like.params["new"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    with pytest.raises(StorageError) as error:
        checkpoints.restore(like=like)
    assert "params/ids is int32[5] in the checkpoint, float32[5] here" in str(error.value)
    assert "params/w is float32[16, 8] in the checkpoint, float32[16, 9] here" in str(error.value)
    assert "params/new is not in the checkpoint" in str(error.value)


def test_keeps_latest_best_and_multiples(tmp_path):
    checkpoints = saved(tmp_path, range(1, 10), keep_latest=2, keep_best=2, keep_every=5)
    assert checkpoints.steps() == [2, 3, 5, 8, 9]  # best at |step - 3|: 3, and 2 before 4
    checkpoints = saved(tmp_path / "max", range(1, 10), keep_latest=1, keep_best=1, best_mode="max")
    assert checkpoints.steps() == [9]
    for mode in ("min", "max"):  # what is no number is never the best
        some = lambda step: 0.5 if step == 2 else math.nan  # noqa: E731
        assert saved(tmp_path / f"nan_{mode}", range(1, 5), some, keep_latest=1, keep_best=1, best_mode=mode).steps() == [2, 4]
    with pytest.raises(ConfigError, match="did you mean 'max'"):
        validate_tree(CheckpointConfig(best_mode="maxx"))


def test_a_failed_save_is_reported_at_the_next_poll(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path)
    monkeypatch.setenv("LM_JAX_FAULT", "checkpoint.recorded:enospc")
    checkpoints.save(3, make_state(3), {}, {})
    message = "step 3 could not be saved in .*No space left on device; the last good checkpoint is step 2"
    with pytest.raises(StorageError, match=message):
        checkpoints.wait()
    monkeypatch.delenv("LM_JAX_FAULT")
    assert checkpoints.restore(like=shapes(make_state(2)))[0] == 2
    checkpoints.save(4, make_state(4), {}, {})
    checkpoints.close()
    assert checkpoints.steps() == [1, 2, 4]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        big = {"x": jax.random.normal(jax.random.key(0), (30_000,))}
        checkpoints = Checkpoints(tmp_path / "c", CheckpointConfig(keep_latest=9))
        checkpoints.save(1, big, {}, {})
        checkpoints.wait()
        with pytest.raises(StorageError, match="the last good checkpoint is step"):
            for step in range(2, 9):
                checkpoints.save(step, big, {}, {})
                checkpoints.wait()
        step, state = checkpoints.restore()
        np.testing.assert_array_equal(state["x"], big["x"])
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


FAULTS = ("written", "recorded", "manifest", "renamed", "pruned")


@pytest.mark.slow
@pytest.mark.parametrize("point", FAULTS)
def test_a_kill_at_any_point_of_a_save_leaves_a_good_checkpoint(tmp_path, point):
    saved(tmp_path, (1, 2)).close()
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from tests.train.test_checkpoint import *
        checkpoints = Checkpoints(Path({str(tmp_path)!r}), CheckpointConfig(keep_latest=2))
        checkpoints.save(3, make_state(3), {{}}, {{}})
        checkpoints.wait()
        """
    )
    env = {**os.environ, "LM_JAX_FAULT": f"checkpoint.{point}:kill"}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == -9, result.stderr
    with Checkpoints(tmp_path, CheckpointConfig(keep_latest=2)) as checkpoints:
        step, state = checkpoints.restore(like=shapes(make_state(1)))
        assert step == (3 if point in ("renamed", "pruned") else 2)
        assert_same(state, make_state(step))
        checkpoints.save(4, make_state(4), {}, {})
        checkpoints.wait()
        assert checkpoints.latest() == 4
        assert not list(tmp_path.glob(".t*"))


def test_a_second_run_is_refused_by_name_and_a_dead_holder_is_not_waited_for(tmp_path):
    hold = (
        "from pathlib import Path; from lm_jax.train.lock import RunLock\n"
        f"with RunLock(Path({str(tmp_path)!r})): print('held', flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StorageError, match=rf'in use by another run \(.*"pid": {holder.pid}'):
        RunLock(tmp_path).__enter__()
    holder.kill()
    holder.communicate()
    with RunLock(tmp_path):
        pass
