"""Conversations: what has weight, what a prompt is, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest

from lm_jax.core.config import validate_tree
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.chat import Chat, Conversation, Dialogues, Messages, Turn
from lm_jax.data.tokenizers import BPE, Bytes

EOS = 256
TEMPLATE = (("user", "u:"), ("assistant", "a:"))


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return (str(path),)


def messages(folder, *chats):
    """Chats given as "ua" strings of (role letter, text)."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    rows = [{"messages": [{"role": roles[who], "content": text} for who, text in chat]} for chat in chats]
    return Messages(paths=write(folder / "chat.jsonl", *rows))


def chat(folder, *chats, **more):
    fields = {"tokenizer": Bytes(), "length": 64, "batch_size": 1, "template": TEMPLATE}
    return Chat(train=messages(folder, *chats), **(fields | more))


def test_only_answers_and_their_ends_have_weight(tmp_path):
    data = chat(tmp_path, [("u", "hi"), ("a", "yes"), ("u", "b"), ("a", "no")]).prepare()
    (example,) = data.require("train")
    text = [*b"u: hi", EOS, *b"a: yes", EOS, *b"u: b", EOS, *b"a: no", EOS]
    assert example.arrays["targets"].tolist() == text and example.arrays["tokens"].tolist() == [EOS, *text[:-1]]
    learned = example.arrays["targets"][example.arrays["weights"] > 0].tolist()
    assert learned == [*b" yes", EOS, *b" no", EOS] and set(example.arrays["weights"].tolist()) == {0.0, 1.0}
    assert next(iter(data.eval_batches("train")))["targets"].shape == (1, 64)


def test_a_prompt_is_an_example_up_to_its_first_answer(tmp_path):
    config = chat(tmp_path, [("u", "hello"), ("a", "yes")])
    data = config.prepare()
    ((prompt,), inputs) = config.prompts(data.tokenizer, ["hello"])
    whole = data.require("train")[0].arrays["tokens"].tolist()
    assert whole[: len(prompt)] == prompt and bytes(whole[len(prompt) :]) == b" yes" and inputs == {}
    assert config.shown_prompt("hello") == "helloa:"


def test_what_is_asked_first_and_how_it_is_answered(tmp_path):
    chats = [("u", "hello"), ("a", "yes"), ("u", "b")], [("a", "first"), ("u", "c"), ("a", "no")], [("u", "d"), ("a", "e")]
    data = chat(tmp_path, *chats).prepare()
    assert data.sources("train") == ["hello", "d"] and data.references("train") == [["yes"], ["e"]]
    other = chat(tmp_path, *chats, asks="assistant", replies="user", answers=("user",))
    assert other.prepare().sources("train") == ["first"]
    assert bytes(other.prompts(Bytes().train(()), ["x"])[0][0][-2:]) == b"u:"


def test_a_turn_is_encoded_as_the_tokenizer_was_trained(tmp_path):
    """What stands before a text does not change how its first word is cut."""
    template = (("user", "\nUser:"), ("assistant", "\nAssistant:"))
    chats = [[("u", "hello there"), ("a", "hello there")]] * 8
    data = chat(tmp_path, *chats, template=template, tokenizer=BPE(vocab_size=290, leading_space=False)).prepare()
    targets, text = data.require("train")[0].arrays["targets"].tolist(), "\nUser: hello there"
    end = targets.index(data.tokenizer.eos)
    assert targets[:end] == data.tokenizer.encode(text).tolist()


def test_long_ones_are_cut_and_those_without_an_answer_left_out_and_counted(tmp_path):
    chats = [("u", "hi"), ("a", "a long answer")], [("u", "a long question"), ("a", "no")], [("u", "alone")]
    data = chat(tmp_path, *chats, length=10).prepare()
    (example,) = data.require("train")
    assert example.arrays["targets"].tolist() == [*b"u: hi", EOS, *b"a: a"]
    assert data.record["conversations cut to a row"] == 2 and data.record["conversations dropped: no answer"] == 2
    with pytest.raises(DataError, match="no conversation of train has an answer that begins within length=2 tokens"):
        chat(tmp_path, *chats, length=2).prepare()


def test_other_sides_may_be_learned(tmp_path):
    data = chat(tmp_path, [("u", "hi"), ("a", "yes")], answers=("user", "assistant")).prepare()
    arrays = data.require("train")[0].arrays
    assert bytes(arrays["targets"][(arrays["weights"] > 0) & (arrays["targets"] != EOS)].tolist()) == b" hi yes"


def test_dialogues_have_two_speakers(tmp_path):
    texts = "#P1#: Hello. \n#P2#: Oh,\n#P2#:  you!\n\n#P1#: Yes: me", "#P1#: alone", "#A#: a\n#B#: b\n#C#: c"
    source, counts = Dialogues(paths=write(tmp_path / "d.jsonl", *({"dialogue": text} for text in texts))), Counter()
    expected = Turn("user", "Hello."), Turn("assistant", "Oh, you!"), Turn("user", "Yes: me")
    assert list(source.read(counts)) == [Conversation("d.jsonl:1", expected)]
    assert counts["conversations dropped: not of two"] == 2


def test_bad_input_is_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    for source, text, message in (
        (Messages, "{", r"bad.jsonl:1 is not valid JSON"),
        (Messages, "[]", r"bad.jsonl:1 is a JSON list"),
        (Messages, '\n{"messages": []}', r"bad.jsonl:2: 'messages' is no list of objects"),
        (Messages, '{"messages": [{"role": "user"}]}', r"bad.jsonl:1: 'messages' is no list of objects"),
        (Dialogues, '{"text": ""}', r"bad.jsonl:1 has no text 'dialogue'; its fields are text"),
        (Dialogues, '{"dialogue": "hello"}', r"bad.jsonl:1: a line of 'dialogue' begins with no speaker.*'hello'"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            list(source(paths=(str(path),)).read(Counter()))
    with pytest.raises(DataError, match=r"chat.jsonl:1: the template has no role 'system'; it has user, assistant"):
        chat(tmp_path, [("s", "be kind"), ("a", "yes")]).prepare()
    for more, message in (
        ({"template": (*TEMPLATE, ("user", ""))}, "template has a role twice: user, assistant, user"),
        ({"answers": ("bot",)}, "answers='bot' is no role of the template: user, assistant"),
        ({"answers": ()}, "answers is empty"),
        ({"replies": "bot"}, "replies='bot' is no role of the template"),
        ({"asks": "bot"}, "asks='bot' is no role of the template"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_tree(chat(tmp_path, [("a", "")], **more))
    for speaker, message in (("(", "is no regular expression"), ("A:", "has 0 groups")):
        with pytest.raises(ConfigError, match=message):
            validate_tree(Dialogues(paths=("x",), speaker=speaker))


def test_batches_hold_what_shapes_say(tmp_path):
    config = chat(tmp_path, [("u", "hi"), ("a", "yes")])
    batch = config.prepare().train_loader()(0)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (tuple(x.shape), np.dtype(x.dtype)) for name, x in config.shapes().items()
    }
