"""Completion of lines: which lines are read, and that a model which knows the text completes them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lm_jax.core.errors import ConfigError
from lm_jax.core.param import split
from lm_jax.data.prefixes import FillInTheMiddle, PrefixLM
from lm_jax.data.sources import TextFiles
from lm_jax.data.splits import ListedSplit
from lm_jax.data.store import Corpus
from lm_jax.data.text import TextData
from lm_jax.data.tokenizers import Characters
from lm_jax.evals import next_line
from lm_jax.evals.base import Shown
from lm_jax.evals.next_line import NextLineConfig
from lm_jax.models.encoder_decoder import EncoderDecoderConfig
from lm_jax.nn.head import HeadConfig
from tests.models_for_tests import gpt2, llama

TEXT = "abc\n  abc\n\nab c\nc\n"


def prepared(tmp_path, held_out=TEXT):
    for name, text in (("a", "ab c\n" * 20), ("b", held_out)):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "splits.json").write_text('{"train": ["a.txt"], "validation": ["b.txt"]}')
    source, splits = TextFiles(paths=(f"{tmp_path}/*.txt",)), ListedSplit(path=f"{tmp_path}/splits.json")
    corpus = Corpus(name="x", source=source, split=splits)
    return TextData(corpora=(corpus,), tokenizer=Characters(), length=16, cache_dir=str(tmp_path / "c"), num_workers=1).prepare()


@pytest.fixture
def data(tmp_path):
    return prepared(tmp_path)


def test_lines_are_those_after_the_first_that_are_not_blank(data, tmp_path):
    lines = NextLineConfig().lines(data)
    assert [line.line for line in lines] == ["  abc", "ab c", "c"]
    assert all(TEXT.startswith(line.before + line.line + "\n") and line.before.endswith("\n") for line in lines)
    assert [line.line for line in NextLineConfig(limit=2).lines(data)] == ["  abc", "c"]
    with pytest.raises(ConfigError, match="the split 'validation' has no line after the first of a document"):
        NextLineConfig().lines(prepared(tmp_path, "abc"))


def test_what_is_written_up_to_the_line_end_is_compared(data, monkeypatch):
    """`generate` is replaced by one that knows the text of the split, but for one line."""
    whole, asked = data.tokenizer.encode(TEXT).tolist(), []

    def knows(graph, params, prompts, *, max_tokens, **more):
        asked.extend(prompts)
        found = []
        for prompt in prompts:
            tail = prompt[1:] if prompt[0] == data.tokenizer.eos else prompt
            at = next(i for i in range(len(whole)) if whole[i : i + len(tail)] == tail) + len(tail)
            text = data.tokenizer.decode(whole[at : at + max_tokens])
            found.append([data.tokenizer.encode("cab\n" if text.strip().startswith("ab c") else text).tolist()])
        return found

    monkeypatch.setattr(next_line, "generate", knows)
    config = NextLineConfig(batch_size=2, max_tokens=6, show=1, length=32)
    scores = list(config.scores(None, None, data, None, slice(None)))
    assert dict(item for item in scores if not isinstance(item, Shown)) == {"exact": 2 / 3, "num_lines": 3.0}
    (shown,) = [item for item in scores if isinstance(item, Shown)]
    assert (shown.prompt, shown.text, shown.fields["reference"], shown.fields["exact"]) == ("abc\n", "  abc", "  abc", True)
    assert all(len(prompt) <= 16 and data.tokenizer.decode(prompt[-1:]) != "\n" for prompt in asked)


def test_a_model_completes_lines_by_its_likeliest_tokens(data):
    """Written again by whole forward passes, without a cache."""
    config = NextLineConfig(batch_size=2, max_tokens=4, show=3)
    model, tokenizer = llama(vocab_size=8, head=HeadConfig(tied=False)).build(jax.random.key(0)), data.tokenizer
    wanted = []
    for line in config.lines(data):
        tokens = [tokenizer.eos, *tokenizer.encode(line.before.rstrip("\n")).tolist()][-8:]
        new = []
        while len(new) < 4 and new[-1:] != [tokenizer.eos]:
            batch = {"tokens": jnp.array([tokens + new])}
            new.append(int(jnp.argmax(model.logits(model(batch).hidden)[0, -1, : tokenizer.vocab_size])))
        wanted.append(next((x for x in tokenizer.decode([t for t in new if t != tokenizer.eos]).split("\n") if x.strip()), ""))
    items = list(config.scores(*split(model), data, None, slice(None)))
    assert [item.text for item in items if isinstance(item, Shown)] == wanted
    assert len(set(wanted)) > 1, wanted
    right = sum(text.rstrip() == line.line.rstrip() for text, line in zip(wanted, config.lines(data), strict=True))
    assert dict(item for item in items if not isinstance(item, Shown)) == {"exact": right / 3, "num_lines": 3.0}


def test_the_prompt_of_a_prefix_lm_is_seen_both_ways(data, monkeypatch):
    seen = []
    monkeypatch.setattr(next_line, "generate", lambda *_, bidirectional, **more: seen.append(bidirectional) or [[[]]] * 3)
    prefixed = dataclasses.replace(data, config=dataclasses.replace(data.config, denoise=PrefixLM()))
    for prepared_data in (data, prefixed):
        list(NextLineConfig(batch_size=3, show=0).scores(None, None, prepared_data, None, slice(None)))
    assert seen == [False, True]


def test_a_hole_is_given_with_what_stands_after_it(data, monkeypatch):
    denoise, asked = FillInTheMiddle(), []

    def knows(graph, params, prompts, **more):
        asked.extend(prompts)
        return [[data.tokenizer.encode("\nab c\nc").tolist()] for _ in prompts]

    monkeypatch.setattr(next_line, "generate", knows)
    filler = dataclasses.replace(data, config=dataclasses.replace(data.config, denoise=denoise))
    config = NextLineConfig(batch_size=3, show=0, fill=True, length=64)
    scores = dict(config.scores(None, None, filler, None, slice(None)))
    assert scores == {"exact": 1 / 3, "num_lines": 3.0}
    texts = ["abc<FILL>\n\nab c\nc\n", "abc\n  abc<FILL>\nc\n", "abc\n  abc\n\nab c<FILL>\n"]
    assert asked == denoise.prompts(data.tokenizer, texts)[0]
    near = dataclasses.replace(config, length=8).prompt(filler, config.lines(data)[1])  # two tokens on each side
    assert near == denoise.prompts(data.tokenizer, ["bc<FILL>\nc"])[0][0]
    with pytest.raises(ConfigError, match=r"fill=True: holes are filled by what data\.denoise"):
        config.check(llama(vocab_size=16), data)


def test_a_model_that_cannot_complete_lines_is_named(data):
    NextLineConfig(max_tokens=8).check(gpt2(length=16), data)
    with pytest.raises(ConfigError, match="show=-1 must not be negative"):
        NextLineConfig(show=-1).validate()
    with pytest.raises(ConfigError, match="max_tokens=9 after 8 tokens, half a row, exceed the position table of 16"):
        NextLineConfig(max_tokens=9).check(gpt2(length=16), data)
    with pytest.raises(ConfigError, match="reads their text alone, not memory_tokens, tokens"):
        NextLineConfig().check(EncoderDecoderConfig(vocab_size=8), data)
