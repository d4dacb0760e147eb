"""Questions and contexts: answers lead from characters to words and back, and windows lose none."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.questions import END, START, Questions, SquadFiles
from lm_jax.data.tokenizers import BPE, Bytes, Words, word_places
from lm_jax.data.tokenizers.words import WordTokenizer
from lm_jax.data.words import feature_hash

CONTEXT = "In 1990s Paris, the Tour-Eiffel (324 m) was\nrepainted. It shone."


def squad(folder, rows, name="train.json"):
    """A file of (context, question, answers as text or (text, start))."""
    paragraphs = []
    for number, (context, question, answers) in enumerate(rows):
        found = [a if isinstance(a, tuple) else (a, context.index(a)) for a in answers]
        answers = [{"text": text, "answer_start": start} for text, start in found]
        paragraphs.append({"context": context, "qas": [{"id": f"q{number}", "question": question, "answers": answers}]})
    (folder / name).write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    return SquadFiles(paths=(str(folder / name),))


def data(folder, rows, **more):
    fields = {"train": squad(folder, rows), "tokenizer": Words(min_count=1), "length": 40, "question_length": 12, "batch_size": 1}
    return Questions(**(fields | more))


def spans(prepared, number):
    """The texts between each start and each end of an example that are an answer's, by the places of its words."""
    arrays, place = prepared.examples["train"][number].arrays, prepared.places["train"][number]
    heads = arrays["weights"] > 0
    assert heads.sum() == len(place.characters) and not arrays["targets"][~heads].any()
    targets = arrays["targets"][heads]
    context = prepared.questions["train"][place.question].context
    firsts, lasts = (place.characters[(targets & bit) > 0] for bit in (START, END))
    return {context[a:b] for (a, _), (_, b) in [(x, y) for x in firsts.tolist() for y in lasts.tolist()] if a < b}


def test_an_example_is_question_and_context(tmp_path):
    rows = [(CONTEXT, "How tall is the Tour?", ["324 m", "324 m", "Paris", "1990"])]
    prepared = data(tmp_path, rows).prepare()
    (example,), tokenizer = prepared.examples["train"], prepared.tokenizer
    ids = example.arrays["tokens"]
    assert ids[6] == tokenizer.eos and tokenizer.decode(ids[:6]) == "How tall is the Tour ?"
    assert tokenizer.decode(ids[7:12]) == "In 1990s Paris , the" and len(ids) == 7 + len(word_places(CONTEXT)) == 7 + 18
    assert {"324 m", "Paris", "1990s"} <= spans(prepared, 0)
    assert prepared.record["answers that begin or end within a word"] == 1  # 1990 of 1990s
    assert example.arrays["targets"].tolist().count(0) == len(ids) - 4  # In 1990s Paris and m: start, both, ...
    features = example.arrays["features"]
    assert feature_hash("of the question, which the other has: True") in features[4]  # Tour
    assert feature_hash("of the question, which the other has: False") in features[1]  # tall
    assert feature_hash("of the context, which the other has: True") in features[12]
    assert not features[6].any()
    batch = prepared.train_loader()(0)
    assert batch["features"].shape == (1, 40, 13) and batch["weights"].sum() == 18


TEXT = st.lists(st.text("ab1é.", min_size=1, max_size=6), min_size=1, max_size=30).map(" ".join)


@settings(max_examples=80, deadline=None)
@given(TEXT, st.data(), st.sampled_from([Words(min_count=1), Bytes(), BPE(vocab_size=260)]), st.integers(2, 40))
def test_whole_words_come_back_exactly(tmp_path_factory, context, draw, tokenizer, stride):
    """An answer of whole words is a span of every window that has it, and each word of the context is in a window."""
    places = word_places(context)
    first = draw.draw(st.integers(0, len(places) - 1))
    last = draw.draw(st.integers(first, min(first + 2, len(places) - 1)))
    start, end = places[first][0], places[last][1]
    rows = [(context, "a1?", [(context[start:end], start)])]
    more = {"tokenizer": tokenizer, "length": 14, "question_length": 8, "stride": stride}
    prepared = data(tmp_path_factory.mktemp("squad"), rows, **more).prepare()
    assert not prepared.record.get("answers that begin or end within a word", 0)
    seen = set()
    for number, (example, place) in enumerate(zip(prepared.examples["train"], prepared.places["train"], strict=True)):
        inside = {tuple(ends) for ends in place.characters.tolist()}
        seen |= inside
        here = {places[first], places[last]} <= inside
        assert spans(prepared, number) == ({context[start:end]} if here else set())
        assert example.length() <= 14
    assert seen == set(places)


def test_long_questions_and_contexts_are_counted(tmp_path):
    rows = [("one two three four five six seven eight nine", "who is it that asks so long ?", ["two"])]
    prepared = data(tmp_path, rows, length=10, question_length=4, stride=3).prepare()
    texts = [prepared.tokenizer.decode(e.arrays["tokens"]) for e in prepared.examples["train"]]
    end = "who is it that <|endoftext|> "
    assert texts == [end + "one two three four five", end + "four five six seven eight", end + "seven eight nine"]
    for what, number in (("questions cut", 1), ("contexts cut into several windows", 1), ("windows without a whole answer", 2)):
        assert prepared.record[what] == number


def test_a_word_longer_than_a_row_is_cut(tmp_path):
    prepared = data(tmp_path, [("a longerthanarow b", "a?", ["b"])], tokenizer=Bytes(), length=14, question_length=8).prepare()
    assert max(e.length() for e in prepared.examples["train"]) == 14 and prepared.record["words cut to a window"] == 1
    assert [bytes(e.arrays["tokens"][3:].tolist()) for e in prepared.examples["train"]] == [b"a", b"longerthana", b"b"]


def test_bad_input_is_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"train.json:q0: the answer 'Paris' does not stand at character 3, where '1990s' is"):
        data(tmp_path, [(CONTEXT, "Where?", [("Paris", 3)])]).prepare()
    with pytest.raises(DataError, match=r"train.json:q0 has no question or no answer"):
        data(tmp_path, [(CONTEXT, "Where?", [])]).prepare()
    for text in ("{}", "[1]", "{", '{"data": [{"paragraphs": [{"qas": [{}]}]}]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad.json is not in the JSON of SQuAD"):
            list(SquadFiles(paths=(str(tmp_path / "bad.json"),)).read(collections.Counter()))
    monkeypatch.setattr(WordTokenizer, "encode", lambda self, text: np.zeros(int(text != "shone"), np.int32))
    with pytest.raises(DataError, match=r"train.json:q0: the tokenizer makes no token of the word 'shone'"):
        data(tmp_path, [(CONTEXT, "Where?", ["Paris"])]).prepare()
    with pytest.raises(ConfigError, match="question_length=39 leaves no room for a context in length=40"):
        validate_tree(data(tmp_path, [(CONTEXT, "Where?", ["Paris"])], question_length=39))


def test_words_of_a_text():
    assert [CONTEXT[slice(*ends)] for ends in word_places(CONTEXT)][:9] == "In 1990s Paris , the Tour - Eiffel (".split()
    assert np.array(word_places("a\nb")).tolist() == [[0, 1], [2, 3]]


def test_misplaced_answers_are_moved_or_left_out_and_counted(tmp_path):
    context = "Paris is Paris."
    rows = [(context, "Where?", [("Paris", 7), ("is", 6)]), (context, "Who?", [("Rome", 0)])]
    read = lambda policy, counts: [q.answers for q in dataclasses.replace(squad(tmp_path, rows), misplaced=policy).read(counts)]  # noqa: E731
    counts = collections.Counter()
    assert read("repair", counts) == [(("Paris", 9), ("is", 6))]
    left_out = "questions left out: no answer in the text"
    assert +counts == {"answers repaired: misplaced": 1, "answers left out: misplaced": 1, left_out: 1}
    counts = collections.Counter()
    assert read("skip", counts) == [(("is", 6),)]
    assert +counts == {"answers left out: misplaced": 2, left_out: 1}
    with pytest.raises(DataError, match=r"where 's Par' is; mend it, or set misplaced='repair' or 'skip'"):
        read("error", counts)
    with pytest.raises(ConfigError, match="misplaced='drop'"):
        validate_tree(SquadFiles(paths=("x",), misplaced="drop"))
    with pytest.raises(DataError, match=r"train.json:q0 holds half of a character, \\ud83d"):
        data(tmp_path, [("Paris \ud83d", "Where?", ["Paris"])]).prepare()
