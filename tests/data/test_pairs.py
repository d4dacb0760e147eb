"""Pairs of texts: what stands beside what, how examples are made, and what is refused."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest

from lm_jax.core.errors import DataError
from lm_jax.data.pairs import AnswerPairs, PairedText, Pairs, PromptedText
from lm_jax.data.questions import SquadFiles
from lm_jax.data.sources import Table, TextFiles
from lm_jax.data.tokenizers import Bytes, Words

EOS = 256


def pairs(folder, source="ab\ncde\n", target="X\nYZ\n", **how) -> Pairs:
    for name, text in (("s", source), ("t", target)):
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    source, target = (TextFiles(paths=(str(folder / f"{name}.gz"),), document="line") for name in "st")
    return Pairs(source=source, target=target, **how)


def test_examples_say_what_is_read_and_written(tmp_path):
    data = PairedText(train=pairs(tmp_path), tokenizer=Bytes(), length=8, memory_length=8, batch_size=1).prepare()
    first, second = data.require("train")
    assert first.arrays["memory_tokens"].tolist() == [*b"ab", EOS]
    assert second.arrays["tokens"].tolist() == [EOS, *b"YZ"] and second.arrays["targets"].tolist() == [*b"YZ", EOS]
    assert data.references("train") == [["X"], ["YZ"]] and data.sources("train") == ["ab", "cde"] and data.num_bytes("train") == 3
    batch = next(iter(data.eval_batches("train")))  # both in one row, the second pair in segment 2 on either side or the other way
    for side in ("", "memory_"):
        assert sorted(set(batch[f"{side}segments"][0]) - {0}) == [1, 2]
    segments = batch["segments"][0]
    for number in (1, 2):
        read = bytes(batch["memory_tokens"][0][batch["memory_segments"][0] == number][:-1].tolist()).decode()
        written = bytes(batch["targets"][0][segments == number][:-1].tolist()).decode()
        assert (read, written) in {("ab", "X"), ("cde", "YZ")}


@pytest.mark.parametrize("form", [{"memory_length": 8}, {}])
def test_only_what_is_predicted_counts_as_bytes(form, tmp_path):
    kind = PairedText if form else PromptedText
    read = pairs(tmp_path, source="a\nb", target="Xé\nYZWVUTSR")
    data = kind(train=read, tokenizer=Bytes(), length=7, batch_size=1, **form).prepare()
    seen = 7 if form else 7 - len("b\n")  # the prompt takes a part of the row
    assert data.num_bytes("train") == len("Xé".encode()) + seen


def test_bytes_of_cut_targets_are_their_share_of_the_text(tmp_path):
    read = pairs(tmp_path, source="a\nb\n", target="Xéé\nsome words here again\n")
    for tokenizer, length, expected in (
        (Bytes(), 2, [2, 2]),  # a byte a token, though the second is but half of a character
        (Words(min_count=9), 2, [5, round(2 / 4 * 21)]),  # all are unknown, and as long as they are
    ):
        data = PairedText(train=read, tokenizer=tokenizer, length=length, memory_length=4, batch_size=1).prepare()
        assert data.num_bytes("train") == sum(expected)


def test_what_is_longer_than_a_row_is_cut_and_counted(tmp_path):
    config = PairedText(train=pairs(tmp_path), tokenizer=Bytes(), length=2, memory_length=3, batch_size=1)
    data = config.prepare()
    assert [e.length("memory_") for e in data.require("train")] == [3, 3] and [e.length() for e in data.require("train")] == [2, 2]
    assert data.record["sources cut to a row"] == 1 and data.record["targets cut to a row"] == 1


def test_prompts_are_the_sources_of_examples_padded(tmp_path):
    config = PairedText(train=pairs(tmp_path), tokenizer=Bytes(), length=8, memory_length=24, batch_size=1)
    begin, inputs = config.prompts(Bytes().train(()), ["ab", "c" * 30])
    assert begin == [[EOS], [EOS]] and inputs["memory_tokens"].shape == (2, 24)
    assert inputs["memory_tokens"][0][:4].tolist() == [*b"ab", EOS, 0]
    assert inputs["memory_segments"].sum(axis=1).tolist() == [3, 24] and inputs["memory_tokens"][1][-1] == EOS


def test_columns_of_a_table(tmp_path):
    (tmp_path / "t.csv").write_text('question,answer\nwhy?,"so, that"\nhow?,thus\n')
    columns = (Table(paths=(str(tmp_path / "t.csv"),), columns=(name,)) for name in ("question", "answer"))
    assert [(p.source, p.target) for p in Pairs(source=next(columns), target=next(columns)).read(Counter())] == [
        ("why?", "so, that"),
        ("how?", "thus"),
    ]


def test_what_is_no_pair_is_an_error_or_counted(tmp_path):
    for empty in ("error", "drop"):
        with pytest.raises(DataError, match=r"^4 of .*s.gz and 3 of .*t.gz are no pairs; align the files$"):
            list(pairs(tmp_path, source="a\n\nb\nc\n", target="x\ny\nz\n", empty=empty).read(Counter()))
    with pytest.raises(DataError, match=r"s.gz:1 is white space only, and what stands beside it is not \(1 such"):
        list(pairs(tmp_path, source="  \nb\n", target="x\ny\n").read(Counter()))
    counts = Counter()
    assert [p.target for p in pairs(tmp_path, source="  \nb\n", target="x\ny\n", empty="drop").read(counts)] == ["y"]
    assert counts["pairs dropped: a side is empty"] == 1
    with pytest.raises(DataError, match=r"PairedText.train has nothing to train on"):
        PairedText(train=pairs(tmp_path, "\n", "\n"), tokenizer=Bytes()).prepare()


def test_files_of_one_name_are_paired_by_their_order(tmp_path):
    names = {"s": [], "t": []}
    for folder, texts in (("one", ("a\n", "x\n")), ("blank", ("\n", "\n")), ("two", ("b\nc\n", "y\nz\n"))):
        (tmp_path / folder).mkdir()
        for side, text in zip(names, texts, strict=True):
            (tmp_path / folder / f"{side}.txt").write_text(text)
            names[side].append(str(tmp_path / folder / f"{side}.txt"))
    source, target = (TextFiles(paths=tuple(files), document="line") for files in names.values())
    assert [pair[1:3] for pair in Pairs(source=source, target=target).read(Counter())] == [("a", "x"), ("b", "y"), ("c", "z")]
    with pytest.raises(DataError, match=r"3 files of sources .* and 2 of targets"):
        list(Pairs(source=source, target=TextFiles(paths=tuple(names["t"][1:]), document="line")).read(Counter()))


def test_batches_are_a_function_of_the_step(tmp_path):
    text = "\n".join("ab" * (1 + i % 3) for i in range(40))
    config = PairedText(train=pairs(tmp_path, text, text.upper()), tokenizer=Bytes(), length=16, memory_length=16, batch_size=4)
    one, other = config.prepare().train_loader(), config.prepare().train_loader()
    for step in (3, 0):
        for name, value in one(step).items():
            np.testing.assert_array_equal(value, other(step)[name])


def test_a_prompt_has_no_weight_and_its_answer_all(tmp_path):
    config = PromptedText(train=pairs(tmp_path), tokenizer=Bytes(), length=16, batch_size=1, before="Q:", between="A:")
    data = config.prepare()
    first = data.require("train")[0].arrays
    document = [EOS, *b"Q:abA:X", EOS]
    assert first["tokens"].tolist() == document[:-1] and first["targets"].tolist() == document[1:]
    assert bytes(first["targets"][first["weights"] > 0].tolist()[:-1]) == b"X" and first["targets"][-1] == EOS
    assert config.prompts(data.tokenizer, ["ab"]) == ([[EOS, *b"Q:abA:"]], {})


def test_a_template_without_room_for_a_source_is_named(tmp_path):
    config = PromptedText(train=pairs(tmp_path), tokenizer=Bytes(), length=16, batch_size=1, before="Who? ", between="A:")
    with pytest.raises(DataError, match="before='Who\\? ' and between='A:', 7 tokens, leave no room for a source in half a row"):
        config.prepare()


def test_a_long_prompt_leaves_half_a_row(tmp_path):
    config = PromptedText(train=pairs(tmp_path, "a" * 50 + "\nb", "X" * 50 + "\nY"), tokenizer=Bytes(), length=16, batch_size=1)
    data = config.prepare()
    long = data.require("train")[0].arrays
    assert long["tokens"].tolist() == [EOS, *b"aaaaaa\n", *b"XXXXXXXX"] and long["weights"].sum() == 9
    assert long["tokens"].tolist()[:8] == config.prompts(data.tokenizer, ["a" * 50])[0][0]
    assert data.record["sources cut to half a row"] == 1 and data.record["targets cut to a row"] == 1


@pytest.mark.parametrize("kind", [PairedText, PromptedText])
def test_shapes_are_those_of_batches(tmp_path, kind):
    config = kind(train=pairs(tmp_path), tokenizer=Bytes(), length=16, batch_size=1)
    batch = config.prepare().train_loader()(0)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {n: (x.shape, x.dtype) for n, x in config.shapes().items()}


def test_questions_are_answered_in_words_and_every_answer_is_right(tmp_path):
    answers = [{"text": text, "answer_start": "It was Paul, or was it Ann?".index(text)} for text in ("Paul", "Paul", "Ann")]
    rows = [{"id": "q1", "question": "Who?", "answers": answers}]
    squad = {"data": [{"paragraphs": [{"context": "It was Paul, or was it Ann?", "qas": rows}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    source = AnswerPairs(questions=SquadFiles(paths=(str(tmp_path / "squad.json"),)), between=" | ")
    data = PairedText(train=source, tokenizer=Bytes(), length=16, memory_length=64, batch_size=1).prepare()
    assert data.sources("train") == ["Who? | It was Paul, or was it Ann?"] and data.references("train") == [["Paul", "Ann"]]
    assert data.require("train")[0].arrays["targets"].tolist() == [*b"Paul", EOS]
