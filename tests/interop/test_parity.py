"""Every architecture against `transformers`: logits, greedy tokens, and the way back, on random models drawn anew."""

import copy
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.param import split
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.interop.architectures import ARCHITECTURES
from lm_jax.interop.safetensors import Tensors, write
from lm_jax.interop.weights import load, read_model, stored, write_model
from lm_jax.models.decoder import DecoderConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from tests.models_for_tests import logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


DECODERS = [name for name, one in ARCHITECTURES.items() if one.config is DecoderConfig]


def imported(folder):
    architecture, model, _ = read_model(folder)
    graph, shapes = split(jax.eval_shape(model.build, jax.random.key(0)))
    return architecture, model, graph, load(architecture, model, shapes, Tensors(folder))


def theirs(model, tokens, **more):
    with torch.no_grad():
        more = {name: torch.tensor(value, dtype=torch.long) for name, value in more.items()}
        return model(torch.tensor(tokens, dtype=torch.long), **more).logits.numpy()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", DECODERS)
def test_import_and_export(kind, seed, tmp_path):
    from tests.interop.random_models import random_model

    model = random_model(kind, seed)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if seed else "5GB")
    _, config, graph, params = imported(tmp_path / "theirs")
    ours = nnx.merge(graph, params)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, config.vocab_size, (3, 24)).astype(np.int32)
    np.testing.assert_allclose(logits(ours, tokens), theirs(model, tokens), atol=1e-5, rtol=1e-5)

    real = np.ones((3, 24), np.int32)
    real[0, :7] = real[1, 19:] = 0  # left and right padding
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32)
    segments = np.where(np.arange(24) < 9, 1, 2)[None].astype(np.int32)  # a fourth row: the first one as two documents
    within = np.concatenate([np.arange(9), np.arange(15)])[None].astype(np.int32)
    both = {"segments": np.concatenate([real, segments]), "positions": np.concatenate([positions, within])}
    got = logits(ours, np.concatenate([tokens, tokens[:1]]), **both)
    expected = theirs(model, tokens, attention_mask=real, position_ids=positions)
    np.testing.assert_allclose(got[:3][real > 0], expected[real > 0], atol=1e-5, rtol=1e-5)
    alone = [theirs(model, tokens[:1, :9]), theirs(model, tokens[:1, 9:])]
    np.testing.assert_allclose(got[3:], np.concatenate(alone, axis=1), atol=1e-5, rtol=1e-5)

    prompts = [tokens[0, :9].tolist(), tokens[1, :4].tolist()]
    new = generate(graph, params, prompts, max_tokens=8, sampling=SamplingConfig(temperature=0.0))
    for prompt, (ids,) in zip(prompts, new, strict=True):
        for expected_id in ids:
            assert expected_id == int(theirs(model, [prompt])[0, -1].argmax())
            prompt = [*prompt, expected_id]

    back = there_and_back(kind, model, config, params, tmp_path)
    np.testing.assert_allclose(theirs(back, tokens), theirs(model, tokens), atol=1e-6, rtol=1e-6)


def there_and_back(kind, model, config, params, tmp_path):
    """What `transformers` loads from our export of `model`, whose tensors are the same bits."""
    (tmp_path / "ours").mkdir()
    again, fields = write_model(config, kind)
    write(tmp_path / "ours", stored(again, config, params, np.float32), 10_000)
    before, after = Tensors(tmp_path / "theirs"), Tensors(tmp_path / "ours")
    assert set(before) == set(after)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    (tmp_path / "ours" / "config.json").write_text(json.dumps(fields))
    return type(model).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", [name for name in ARCHITECTURES if name not in DECODERS])
def test_encoders_there_and_back(kind, seed, tmp_path):
    from tests.interop.random_models import inputs, random_model

    model = random_model(kind, seed)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if seed else "5GB")
    _, config, graph, params = imported(tmp_path / "theirs")
    batch, more = inputs(kind, model.config, seed)
    real = batch.get("segments", np.ones(1)) > 0

    def scores(model):
        with torch.no_grad():
            output = model(**more)
        return (output.logits_per_image if kind == "clip" else output.logits).numpy()

    got = np.asarray(jax.jit(lambda batch: outputs(nnx.merge(graph, params), batch))(batch))
    where = real if real.size > 1 else slice(None)
    np.testing.assert_allclose(got[where], scores(model)[where], atol=1e-5, rtol=1e-5)

    if isinstance(config, EncoderDecoderConfig):
        read = {name: value for name, value in batch.items() if name in ("mels", "memory_tokens", "memory_segments")}
        new = generate(graph, params, [[1], [1], [1]], max_tokens=6, sampling=SamplingConfig(temperature=0.0), inputs=read)
        for row, (ids,) in enumerate(new):
            prompt = [1]
            for expected_id in ids:
                mine = {name: value[row : row + 1] for name, value in more.items()} | {"decoder_input_ids": torch.tensor([prompt])}
                with torch.no_grad():
                    assert expected_id == int(model(**mine).logits[0, -1].argmax())
                prompt.append(expected_id)

    back = there_and_back(kind, model, config, params, tmp_path)
    np.testing.assert_allclose(scores(back)[where], scores(model)[where], atol=1e-6, rtol=1e-6)


def outputs(model, batch):
    """What the model says of a batch: logits, or for two towers the similarities of all images with all texts."""
    output = model(batch)
    return output.similarities() if hasattr(output, "similarities") else model.logits(output.hidden)


def knobs_of(config, prefix=()):
    """(path, value) of every number, choice and switch of a config that says what is computed."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from knobs_of(value, (*prefix, field.name))
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for i, part in enumerate(value):
                yield from knobs_of(part, (*prefix, field.name, i))
        elif isinstance(value, int | float | str):
            yield (*prefix, field.name), value


def with_knob(config, path, value):
    changed = copy.deepcopy(config)
    *above, last = path
    part = changed
    for name in above:
        part = part[name] if isinstance(name, int) else getattr(part, name)
    setattr(part, last, value)
    return changed


# What says how to draw, train, run or store, and no logit.
SILENT = {"dropout", "std", "embedding_std", "weights", "outputs", "dtype", "implementation", "unroll", "remat", "rounds"}
SILENT |= {"load_balance", "z_loss", "balance_over", "vocab_multiple", "num_kv_heads"}


@pytest.mark.parametrize("kind", [*DECODERS, "bert", "roberta", "modernbert"])
def test_swapping_any_two_knobs_is_seen(kind, tmp_path):
    """Every pair of knobs of one part, of one type and unequal, exchanged: the weights no longer fit, or the logits differ."""
    from tests.interop.random_models import inputs, random_model

    model = random_model(kind, 1)
    model.save_pretrained(tmp_path)
    architecture, config, _, _ = imported(tmp_path)
    tensors, (batch, _) = Tensors(tmp_path), inputs("modernbert", model.config, 0)

    def scores(config):
        graph, shapes = split(jax.eval_shape(config.build, jax.random.key(0)))
        params = load(architecture, config, shapes, tensors)
        return np.asarray(jax.jit(lambda batch: outputs(nnx.merge(graph, params), batch))(batch))

    right, tried, real = scores(config), 0, batch["segments"] > 0
    for (path, a), (other, b) in itertools.combinations(knobs_of(config), 2):
        same_part = path[:-1] == other[:-1] and not {path[-1], other[-1]} & SILENT
        if not same_part or type(a) is not type(b) or a == b:
            continue
        try:
            wrong = with_knob(with_knob(config, path, b), other, a)
            validate_tree(wrong)
            got = scores(wrong)
        except (ConfigError, DataError):
            tried += 1
            continue
        tried += 1
        assert got.shape != right.shape or np.abs(got - right)[real].max() > 1e-4, (path, a, other, b)
    assert tried > 5
