"""Questions whose answer is a span of a text that comes with them."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from lm_jax.core.config import check_choice, check_positive
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.data.examples import Example
from lm_jax.data.sources import Counts, FileSource, half_character, read_text
from lm_jax.data.supervised import ExampleData, PreparedExamples
from lm_jax.data.tokenizers import encode_named, word_places
from lm_jax.data.words import aligned, feature_hash, word_features

START, END = 1, 2  # what a target says of a word of the context: an answer starts there, ends there, or both


class Question(NamedTuple):
    """A question, the text that holds its answer, and the answers that people gave, each with its first character in the text."""

    name: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclasses.dataclass(kw_only=True)
class SquadFiles(FileSource):
    """Questions in the JSON of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250).

    What is done with an answer that is not where it says it is (`misplaced`): "error"; "repair" moves it to the nearest place where
    it stands (counted), or leaves it out; "skip" leaves it out. So are questions that have no answer left. Both are counted.
    """

    misplaced: str = "error"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown policy."""
        super().validate()
        check_choice("misplaced", self.misplaced, ("error", "repair", "skip"))

    def read(self, counts: Counts) -> Iterator[Question]:
        """Yields the questions in order. Raises `DataError` for other JSON, half of a character, or an answer that is misplaced."""
        for path in self.files():
            text = read_text(path, self.encoding_errors, counts)
            try:
                paragraphs = [paragraph for article in json.loads(text)["data"] for paragraph in article["paragraphs"]]
                for paragraph in paragraphs:
                    for row in paragraph["qas"]:
                        answers = tuple((answer["text"], answer["answer_start"]) for answer in row["answers"])
                        found = Question(f"{path.name}:{row['id']}", row["question"], paragraph["context"], answers)
                        if (found := self._checked(found, counts)).answers:
                            yield found
            except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
                raise DataError(f"{path} is not in the JSON of SQuAD: {type(error).__name__} {error}") from error

    def _checked(self, question: Question, counts: Counts) -> Question:
        """The question with the answers that stand in its context."""
        if not question.answers or not question.question.strip():
            raise DataError(f"{question.name} has no question or no answer; every question needs both")
        if place := half_character(question):
            raise DataError(f"{question.name} holds half of a character, {place}, which is no text; mend it")
        answers = [(text, self._start(question, text, start, counts)) for text, start in question.answers]
        kept = tuple((text, start) for text, start in answers if start is not None)
        counts["questions left out: no answer in the text"] += not kept
        return question._replace(answers=kept)

    def _start(self, question: Question, text: str, start: int, counts: Counts) -> int | None:
        """Where the answer stands; None where it is left out."""
        there = question.context[max(start, 0) :][: len(text)]
        if text.strip() and start >= 0 and there == text:
            return start
        if self.misplaced == "error":
            raise DataError(
                f"{question.name}: the answer {text!r} does not stand at character {start}, where {there!r} is; mend it, or set "
                "misplaced='repair' or 'skip'"
            )
        found = [match.start() for match in re.finditer(f"(?={re.escape(text)})", question.context)] if text.strip() else []
        if self.misplaced == "skip" or not found:
            counts["answers left out: misplaced"] += 1
            return None
        counts["answers repaired: misplaced"] += 1
        return min(found, key=lambda place: abs(place - start))


class Place(NamedTuple):
    """What an example is of: a question, and the characters [words, 2] (first, end) of the words of the context that are in it."""

    question: int
    characters: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Questions(ExampleData):
    """Questions with their contexts; see `ExampleData`.

    An example is the question (its first words, `question_length` tokens at most), an end-of-document token and the context, which
    is cut into windows that begin every `stride` words where it is longer than a row (counted). Each word is cut into tokens on
    its own. In a batch "weights" is 1 at the first token of every word of the context, and "targets" there the sum of `START` and
    `END` for the answers that are whole in the window; an answer that begins or ends within a word has all of it (counted).
    "features" [B, T, 2 * affixes + 5] are those of a word's letters (`word_features`), whether it is of question or context, and
    whether the other of these has it too.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "features"})
    optional: ClassVar[frozenset[str]] = ExampleData.optional | {"features"}
    targets: ClassVar[frozenset[str]] = frozenset({"spans"})

    train: SquadFiles
    validation: SquadFiles | None = None
    test: SquadFiles | None = None
    question_length: int = 40
    stride: int = 128
    affixes: int = 4

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range, or a question that leaves no room for the context."""
        super().validate()
        check_positive(self, "question_length", "stride", "affixes")
        if self.question_length + 2 > self.length:
            raise ConfigError(f"question_length={self.question_length} leaves no room for a context in length={self.length}")

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `ExampleData.shapes`."""
        features = (self.batch_size, self.length, 2 * self.affixes + 5)
        return super().shapes() | {"features": jax.ShapeDtypeStruct(features, np.int32)}

    def make(self, items: dict[str, list[Question]], counts: Counts) -> "PreparedQuestions":
        """See `ExampleData.make`."""
        contexts = dict.fromkeys(question.context for question in items["train"])
        tokenizer = self.tokenizer.train([*contexts, *(question.question for question in items["train"])])
        words = {word for found in items.values() for q in found for text in (q.question, q.context) for word in _words(text)}
        tokens = dict(zip(words, encode_named(tokenizer, [(f"the word {word!r}", word) for word in words]), strict=True))
        made = {
            split: [pair for i, q in enumerate(found) for pair in self._examples(q, i, tokens, tokenizer.eos, counts)]
            for split, found in items.items()
        }
        return PreparedQuestions(
            config=self,
            tokenizer=tokenizer,
            examples={split: [example for example, _ in pairs] for split, pairs in made.items()},
            questions=items,
            places={split: [place for _, place in pairs] for split, pairs in made.items()},
        )

    def _examples(
        self, question: Question, number: int, tokens: dict[str, np.ndarray], eos: int, counts: Counts
    ) -> Iterator[tuple[Example, Place]]:
        asked, words = _words(question.question), _words(question.context)
        for word in (*asked, *words):
            if not len(tokens[word]):
                raise DataError(f"{question.name}: the tokenizer makes no token of the word {word!r}; leave it out")
        characters = np.array(word_places(question.context)).reshape(-1, 2)
        answers = _answers(question, characters, counts)
        begin = self._features("question", asked, words)
        middle = np.zeros((1, begin.shape[1]), np.int32)
        body = self._features("context", words, asked)
        ids = [tokens[word] for word in asked]
        kept = int(np.searchsorted(np.cumsum([len(part) for part in ids]), self.question_length, side="right"))
        counts["questions cut"] += kept < len(asked)
        head = [*ids[:kept], np.array([eos])]
        room = self.length - sum(map(len, head))
        context = [tokens[word][:room] for word in words]
        counts["words cut to a window"] += sum(len(tokens[word]) > room for word in words)
        windows = self._windows([len(part) for part in context], room)
        counts["contexts cut into several windows"] += len(windows) > 1
        for window in windows:
            targets = np.zeros(len(head) + window.stop - window.start, np.int32)
            for first, last in answers:
                if window.start <= first and last < window.stop:
                    targets[len(head) + first - window.start] |= START
                    targets[len(head) + last - window.start] |= END
            counts["windows without a whole answer"] += not targets.any()
            arrays = aligned(
                [*head, *context[window]],
                targets,
                np.concatenate([begin[:kept], middle, body[window]]),
                weights=np.arange(len(targets)) >= len(head),
            )
            yield Example(question.name, arrays), Place(number, characters[window])

    def _windows(self, sizes: list[int], room: int) -> list[slice]:
        """The words of each window, at most `room` tokens; together they have all words of `sizes` tokens (none above `room`)."""
        ends = np.cumsum([0, *sizes])
        first, windows = 0, []
        while True:
            last = int(np.searchsorted(ends, ends[first] + room, side="right")) - 1
            windows.append(slice(first, last))
            if last >= len(sizes):
                return windows
            first = min(first + self.stride, last)

    def _features(self, part: str, words: list[str], others: list[str]) -> np.ndarray:
        """int32 [words, 2 * affixes + 5] of the words of a part, given those of the other."""
        exact, stems = {word.lower() for word in others}, {_stem(word) for word in others}
        rows = [
            [
                *word_features(word, self.affixes),
                feature_hash(f"of the {part}"),
                feature_hash(f"of the {part}, which the other has: {word.lower() in exact}"),
                feature_hash(f"of the {part}, whose stem the other has: {_stem(word) in stems}"),
            ]
            for word in words
        ]
        return np.array(rows, np.int32).reshape(-1, 2 * self.affixes + 5)


def _words(text: str) -> list[str]:
    return [text[first:end] for first, end in word_places(text)]


def _stem(word: str) -> str:
    """A word without its case, and without what an inflection may change."""
    return word.lower()[: max(4, len(word) - 3)]


def _answers(question: Question, characters: np.ndarray, counts: Counts) -> set[tuple[int, int]]:
    """The first and the last word of each answer, of the words at `characters` [words, 2]."""
    found = set()
    for text, start in question.answers:
        end = start + len(text)
        inside = np.flatnonzero((characters[:, 0] < end) & (characters[:, 1] > start))
        if not len(inside):
            counts["answers without a word"] += 1
            continue
        ends = int(characters[inside[0], 0]), int(characters[inside[-1], 1])
        counts["answers that begin or end within a word"] += ends != (start, end)
        found.add((int(inside[0]), int(inside[-1])))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedQuestions(PreparedExamples):
    """See `PreparedExamples`. `questions` are those of each split, `places` what its examples are of.

    The words of an example are, in order, its tokens that have a weight.
    """

    questions: dict[str, list[Question]]
    places: dict[str, list[Place]]
