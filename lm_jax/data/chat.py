"""Conversations: whose turn it is, and the answers that a model learns to give."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lm_jax.core.config import check_one_group
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.types import Batch
from lm_jax.data.examples import Example
from lm_jax.data.sources import Counts, FileSource, json_objects, read_text
from lm_jax.data.supervised import ExampleData, PreparedExamples
from lm_jax.data.tokenizers import Tokenizer, encode_named


class Turn(NamedTuple):
    """What one side says."""

    role: str
    text: str


class Conversation(NamedTuple):
    """Turns in order."""

    name: str  # the file and its line, set apart by ":"
    turns: tuple[Turn, ...]


@dataclasses.dataclass(kw_only=True)
class Messages(FileSource):
    """One JSON object a line, whose `field` is a list of {"role": ..., "content": ...}, the form that most chat data has."""

    field: str = "messages"

    def read(self, counts: Counts) -> Iterator[Conversation]:
        """Yields the conversations in order. Raises `DataError` with file and line for what is no list of such objects."""
        for name, where, row in _rows(self, counts):
            turns = row.get(self.field)
            good = isinstance(turns, list) and all(
                isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
                for turn in turns
            )
            if not good or not turns:
                raise DataError(f"{where}: {self.field!r} is no list of objects with the texts role and content: {str(row)[:60]}")
            yield Conversation(name, tuple(Turn(turn["role"], turn["content"]) for turn in turns))


@dataclasses.dataclass(kw_only=True)
class Dialogues(FileSource):
    """One JSON object a line, whose `field` is a text of lines that each begin with a speaker (DialogSum: "#Person1#: Hello").

    `speaker` is a regular expression of that beginning, whose one group tells speakers apart. The first to speak is "user", the
    second "assistant"; a conversation of one, or of more than two, is left out (counted). Lines on end of one speaker are one turn.
    """

    field: str = "dialogue"
    speaker: str = r"#(\w+)#:"

    def validate(self) -> None:
        """Raises `ConfigError` for an expression without one group."""
        super().validate()
        check_one_group("speaker", self.speaker, "it tells speakers apart")

    def read(self, counts: Counts) -> Iterator[Conversation]:
        """Yields the conversations in order. Raises `DataError` with file and line where a turn has no speaker."""
        for name, where, row in _rows(self, counts):
            text = row.get(self.field)
            if not isinstance(text, str):
                raise DataError(f"{where} has no text {self.field!r}; its fields are {', '.join(row)}")
            turns: list[Turn] = []
            for line in filter(None, map(str.strip, text.split("\n"))):
                who = re.match(self.speaker, line)
                if who is None:
                    raise DataError(f"{where}: a line of {self.field!r} begins with no speaker={self.speaker!r}: {line[:60]!r}")
                said = line[who.end() :].strip()
                if turns and turns[-1].role == who[1]:
                    turns[-1] = Turn(who[1], f"{turns[-1].text} {said}")
                else:
                    turns.append(Turn(who[1], said))
            speakers = list(dict.fromkeys(turn.role for turn in turns))
            if len(speakers) != 2:
                counts["conversations dropped: not of two"] += 1
                continue
            roles = dict(zip(speakers, ("user", "assistant"), strict=True))
            yield Conversation(name, tuple(Turn(roles[turn.role], turn.text) for turn in turns))


def _rows(source: FileSource, counts: Counts) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, file and line, object) of each line that is not blank."""
    for path in source.files():
        for number, row in json_objects(path, read_text(path, source.encoding_errors, counts)):
            yield f"{path.name}:{number}", f"{path}:{number}", row


@dataclasses.dataclass(kw_only=True)
class Chat(ExampleData):
    """Conversations for a model of the next word, which learns the answers of one side; see `ExampleData`.

    A conversation is a document: each turn is what the `template` has for its role, a space (where that is not empty), its text,
    and the end-of-document token, at which a model that has answered stops. Only the turns of `answers`, with their ends, have
    weight. What is longer than a row is cut at its end (counted); a conversation without an answer, or whose answers are all cut
    off, is left out (counted). A prompt is a turn of `asks`, to which `replies` answers.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"next words"})

    train: Messages | Dialogues
    validation: Messages | Dialogues | None = None
    test: Messages | Dialogues | None = None
    template: tuple[tuple[str, str], ...] = (("system", ""), ("user", "\nUser:"), ("assistant", "\nAssistant:"))
    answers: tuple[str, ...] = ("assistant",)
    asks: str = "user"
    replies: str = "assistant"

    def validate(self) -> None:
        """Raises `ConfigError` for a template that has a role twice, or answers that it does not have."""
        super().validate()
        roles = [role for role, _ in self.template]
        if len(set(roles)) != len(roles):
            raise ConfigError(f"template has a role twice: {', '.join(roles)}")
        if not self.answers:
            raise ConfigError("answers is empty: name the roles that are learned")
        for name, chosen in (("answers", self.answers), ("asks", (self.asks,)), ("replies", (self.replies,))):
            for role in chosen:
                if role not in roles:
                    raise ConfigError(f"{name}={role!r} is no role of the template: {', '.join(roles)}")

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `DataConfig.prompts`: conversations whose first turn is the text, up to where the answer begins."""
        answer = tokenizer.encode(dict(self.template)[self.replies]).tolist()
        asked = (self._tokens((Turn(self.asks, text),), tokenizer, "the prompt")[0].tolist() for text in texts)
        return [[tokenizer.eos, *tokens, *answer] for tokens in asked], {}

    def shown_prompt(self, prompt: str) -> str:
        """See `DataConfig.shown_prompt`: with what stands before the answer."""
        return prompt + dict(self.template)[self.replies]

    def make(self, items: dict[str, list[Conversation]], counts: Counts) -> "PreparedChat":
        """See `ExampleData.make`."""
        words = dict(self.template)
        for conversation in (conversation for split in items.values() for conversation in split):
            if unknown := {turn.role for turn in conversation.turns} - words.keys():
                known = ", ".join(words)
                raise DataError(f"{conversation.name}: the template has no role {sorted(unknown)[0]!r}; it has {known}")
        said = (words[turn.role] + _spaced(words[turn.role], turn.text) for chat in items["train"] for turn in chat.turns)
        tokenizer = self.tokenizer.train(said)
        examples = {}
        for split, conversations in items.items():
            made = [(chat, self._arrays(chat, tokenizer, counts)) for chat in conversations]
            examples[split] = [Example(chat.name, arrays) for chat, arrays in made if arrays is not None]
            if not examples[split]:
                raise DataError(f"no conversation of {split} has an answer that begins within length={self.length} tokens")
        return PreparedChat(config=self, tokenizer=tokenizer, examples=examples, conversations=items)

    def _tokens(self, turns: Sequence[Turn], tokenizer: Tokenizer, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of turns, and which of them have weight."""
        words = dict(self.template)
        before = tokenizer.encode_batch([words[turn.role] for turn in turns])
        texts = encode_named(tokenizer, [(name, _spaced(words[turn.role], turn.text)) for turn in turns])
        tokens, weights = [], []
        for turn, head, text in zip(turns, before, texts, strict=True):
            tokens += [head, text, [tokenizer.eos]]
            weights += [np.zeros(len(head)), np.full(len(text) + 1, float(turn.role in self.answers))]
        return np.concatenate(tokens).astype(np.int32), np.concatenate(weights).astype(np.float32)

    def _arrays(self, chat: Conversation, tokenizer: Tokenizer, counts: Counts) -> dict[str, np.ndarray] | None:
        """The example of a conversation; None without any weight."""
        targets, weights = self._tokens(chat.turns, tokenizer, chat.name)
        counts["conversations cut to a row"] += len(targets) > self.length
        targets, weights = targets[: self.length], weights[: self.length]
        if not weights.any():
            counts["conversations dropped: no answer"] += 1
            return None
        return {"tokens": np.append(tokenizer.eos, targets[:-1]).astype(np.int32), "targets": targets, "weights": weights}


def _spaced(head: str, text: str) -> str:
    """The text after what stands before it. The space goes with the text, whose first word tokenizers then know best."""
    return f" {text}" if head else text


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedChat(PreparedExamples):
    """See `PreparedExamples`. `conversations` are those of each split."""

    config: Chat
    conversations: dict[str, list[Conversation]]

    def sources(self, split: str) -> list[str]:
        """What is asked first in each conversation in which that is answered at once, in order."""
        return [asked for asked, _ in self._firsts(split)]

    def references(self, split: str) -> list[list[str]]:
        """How it is answered."""
        return [[answer] for _, answer in self._firsts(split)]

    def _firsts(self, split: str) -> Iterator[tuple[str, str]]:
        self.require(split)
        for chat in self.conversations[split]:
            if [turn.role for turn in chat.turns[:2]] == [self.config.asks, self.config.replies]:
                yield chat.turns[0].text, chat.turns[1].text
