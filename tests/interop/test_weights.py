"""Directories of Hugging Face against what `transformers` computed from them, on one device and on meshes; bad ones are refused."""

import json
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.mesh import MeshShape
from lm_jax.core.param import split
from lm_jax.core.sharding import Layout, use_mesh
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.interop.architectures import ARCHITECTURES
from lm_jax.interop.safetensors import INDEX, Tensors, write
from lm_jax.interop.weights import load, read_model, stored, write_model
from lm_jax.models.decoder import DecoderConfig
from tests.models_for_tests import gpt2, llama, logits, moe

FIXTURES = Path(__file__).parents[1] / "fixtures" / "huggingface"


def read(folder):
    architecture, model, _ = read_model(folder)
    graph, shapes = split(jax.eval_shape(model.build, jax.random.key(0)))
    return model, graph, load(architecture, model, shapes, Tensors(folder))


@pytest.mark.parametrize("name", [name for name, one in ARCHITECTURES.items() if one.config is not DecoderConfig])
def test_encoders_equal_transformers(name):
    _, graph, params = read(FIXTURES / name)
    batch = dict(np.load(FIXTURES / name / "expected.npz"))
    expected, real = batch.pop("scores"), batch.get("segments", np.ones(())) > 0

    def compute(batch):
        model = nnx.merge(graph, params)
        output = model(batch)
        return output.similarities() if name == "clip" else model.logits(output.hidden)

    got = np.asarray(jax.jit(compute)(batch))
    np.testing.assert_allclose(got[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, one in ARCHITECTURES.items() if one.config is DecoderConfig])
def test_every_decoder_equals_transformers(name):
    _, graph, params = read(FIXTURES / name)
    expected = np.load(FIXTURES / name / "expected.npz")
    got = logits(nnx.merge(graph, params), expected["tokens"])
    np.testing.assert_allclose(got, expected["logits"], atol=1e-5, rtol=1e-5)
    greedy = generate(graph, params, expected["tokens"].tolist(), max_tokens=8, sampling=SamplingConfig(temperature=0.0))
    assert [ids for (ids,) in greedy] == expected["greedy"].tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_way_back_is_the_same_bits(name, tmp_path):
    model, _, params = read(FIXTURES / name)
    architecture, fields = write_model(model, name)
    files = write(tmp_path, stored(architecture, model, params, np.float32), 8_000)
    assert len(files) > 1 and (tmp_path / INDEX).is_file()
    before, after = Tensors(FIXTURES / name), Tensors(tmp_path)
    largest = max(8_000, *(before[tensor].nbytes for tensor in before))
    assert all(path.stat().st_size < largest + 8_000 for path in files)
    assert set(before) == set(after)
    for tensor in before:
        np.testing.assert_array_equal(before[tensor], after[tensor], err_msg=tensor)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_model(tmp_path)[1] == model


@pytest.mark.parametrize(
    ("name", "sizes"), [("qwen3_moe", dict(fsdp=2, ep=2)), ("phi3", dict(fsdp=4)), ("llama", dict(pp=2, fsdp=2))], ids=str
)
def test_shards_of_a_mesh_are_read_by_themselves(name, sizes):
    architecture, model, _ = read_model(FIXTURES / name)
    mesh, tensors = MeshShape(**(dict(dp=1) | sizes)).build(), Tensors(FIXTURES / name)
    _, _, whole = read(FIXTURES / name)
    with use_mesh(mesh, Layout()):
        _, shapes = split(jax.eval_shape(model.build, jax.random.key(0)))
        params = load(architecture, model, shapes, tensors, mesh)

    def same(x, shape, y):
        assert x.sharding.spec == shape.sharding.spec
        np.testing.assert_array_equal(np.asarray(x), y)

    jax.tree.map(same, params, shapes, whole)


def test_a_model_of_ours_finds_its_architecture():
    assert write_model(gpt2())[0].model_type == "gpt2"
    assert write_model(llama())[0].model_type == "qwen3"
    with pytest.raises(ConfigError, match=r"cannot describe this model: .*llama: .*qk_norm"):
        write_model(llama(), "llama")
    with pytest.raises(ConfigError, match="cannot describe this model"):
        write_model(moe())
    with pytest.raises(ConfigError, match=r"architecture 'lama' is not known; these are: gpt2, llama"):
        write_model(llama(), "lama")


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FIXTURES / "llama", tmp_path / "x")
    return tmp_path / "x"


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mamba"}, r"model_type='mamba' is not known; these are: gpt2, llama, .*clip"),
        ({"hidden_act": "mish"}, r"hidden_act='mish' is not supported; it may be silu"),
        ({"attn_temperature": 2.0}, r"attn_temperature=2.0 is a knob that lm_jax does not have"),
        ({"hidden_size": None}, r"config.json lacks 'hidden_size'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, r"rope_type='dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, r"of type 'linear' lacks 'factor'"),
        ({"rope_parameters": {"rope_type": "default", "spin": 2}}, r"has \{'spin': 2\}"),
        (
            {"num_hidden_layers": 9},
            r"not those of config.json \(llama\): model.layers.\d.* is missing; .* and \d+ more",
        ),
        ({"num_hidden_layers": 1}, r"model.layers.1.\S+ \(.*\) is too many"),
        ({"intermediate_size": 10}, r"mlp.up_proj.weight is \(\d+, \d+\), not \(10, \d+\)"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(DataError, match=message):
        read(folder)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def long_header(path):
    path.write_bytes(struct.pack("<Q", 10**12) + path.read_bytes()[8:])


def pickled(path):
    path.rename(path.with_name("pytorch_model.bin"))


def index(name):
    def make(path):
        path.rename(path.with_name("a.safetensors"))
        path.with_name(INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name, "lm_head.weight": "a.safetensors"}}))

    return make


def integers(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"F32"', b'"I32"', 1))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (cut, r"model.safetensors is not a whole safetensors file"),
        (long_header, r"model.safetensors is not a whole safetensors file: .*[Hh]eader"),
        (pickled, r"holds pytorch_model.bin, a pickle, .*save_pretrained"),
        (lambda path: path.unlink(), r"holds neither model.safetensors nor"),
        (index("../secret.safetensors"), r"names '../secret.safetensors': only files of the directory itself"),
        (index("/etc/passwd"), r"only files of the directory itself"),
        (index("b.safetensors"), r"names 'b.safetensors', which is not there"),
        (integers, r"is of I32; weights of F64, F32, F16, BF16 can be read"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(folder, break_it, message):
    break_it(folder / "model.safetensors")
    with pytest.raises(DataError, match=message):
        read(folder)


def test_files_of_a_bare_model_lack_the_prefix(tmp_path):
    tensors, folder = Tensors(FIXTURES / "gpt2"), tmp_path / "x"
    folder.mkdir()
    shutil.copyfile(FIXTURES / "gpt2" / "config.json", folder / "config.json")
    from safetensors.numpy import save_file

    save_file({name.removeprefix("transformer."): np.array(tensors[name]) for name in tensors}, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read(folder)[2], read(FIXTURES / "gpt2")[2])
