"""Recorded speech and its transcripts."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from lm_jax.core.config import Config, check_choice, check_positive
from lm_jax.core.errors import ConfigError, DataError
from lm_jax.core.types import Batch
from lm_jax.data.buckets import Buckets, PreparedBuckets
from lm_jax.data.examples import Example
from lm_jax.data.pairs import written
from lm_jax.data.sources import Counts, find_all, find_one, read_text
from lm_jax.data.supervised import ExampleData
from lm_jax.data.tokenizers import Tokenizer, encode_named
from lm_jax.data.wav import read_wav, resample


class Utterance(NamedTuple):
    """What was said (float32 samples from -1 to 1), in words, and in which file."""

    name: str
    samples: np.ndarray
    text: str


@dataclasses.dataclass(kw_only=True)
class NameTranscripts(Config):
    """A file's transcript is what the one group of the regular expression `pattern` finds in its name, spelled as `words` has it
    (pairs of what is found and what was said; what is not among them stands as it is)."""

    pattern: str
    words: tuple[tuple[str, str], ...] = ()

    def validate(self) -> None:
        """Raises `ConfigError` for an expression without its one group."""
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ConfigError(f"pattern={self.pattern!r} is no regular expression: {error}") from error
        if groups != 1:
            raise ConfigError(f"pattern={self.pattern!r} has {groups} groups; put ( ) around the transcript")

    def read(self, paths: Sequence[Path]) -> dict[str, str]:
        """Transcripts by file name. Raises `DataError` for a name in which the pattern finds nothing."""
        words, found = dict(self.words), {}
        for path in paths:
            match = re.search(self.pattern, path.name)
            if match is None or match[1] is None:
                raise DataError(f"transcripts.pattern={self.pattern!r} finds nothing in the name of {path}")
            found[path.name] = words.get(match[1], match[1])
        return found


@dataclasses.dataclass(kw_only=True)
class TableTranscripts(Config):
    """A line of the table at `path` is a file's name (its folder left out), `delimiter`, and what is said in it."""

    path: str
    delimiter: str = "\t"

    def read(self, paths: Sequence[Path]) -> dict[str, str]:
        """Transcripts by file name. Raises `DataError` for a file that is not in the table, or is in it twice."""
        table, found = find_one(self.path), {}
        for line in filter(str.strip, read_text(table, "strict", Counts()).split("\n")):
            place, _, text = line.removesuffix("\r").partition(self.delimiter)
            name = Path(place).name
            if name in found:
                raise DataError(f"{table} has two lines for {name}")
            found[name] = text
        for path in paths:
            if path.name not in found:
                raise DataError(f"{table} has no line for {path.name}, in the folder {path.parent}")
        name, number = Counter(path.name for path in paths).most_common(1)[0]
        if number > 1:
            one, other = [path for path in paths if path.name == name][:2]
            raise DataError(f"{one} and {other} have one name, and {table} a line for it: rename one of them")
        return found


@dataclasses.dataclass(kw_only=True)
class SpeechFiles(Config):
    """WAV files of one utterance each. `paths` are files, folders (all files below) or globs, as for text.

    What to do with a file that is not as it should be, all of it counted:

    | field | of a file | choices |
    |---|---|---|
    | corrupt | that is no WAV file, is cut off or has no samples | "error", "skip" |
    | other_rate | whose samples a second are not `rate` | "error", "resample", "skip" |
    | silent | all samples of which are the same | "error", "skip", "keep" |
    | empty | whose transcript is white space only | "error", "skip" |
    """

    paths: tuple[str, ...]
    transcripts: NameTranscripts | TableTranscripts
    rate: int = 16000
    corrupt: str = "error"
    other_rate: str = "error"
    silent: str = "error"
    empty: str = "error"

    def validate(self) -> None:
        """Raises `ConfigError` for an unknown policy or no path."""
        check_positive(self, "rate")
        check_choice("corrupt", self.corrupt, ("error", "skip"))
        check_choice("other_rate", self.other_rate, ("error", "resample", "skip"))
        check_choice("silent", self.silent, ("error", "skip", "keep"))
        check_choice("empty", self.empty, ("error", "skip"))
        if not self.paths:
            raise ConfigError("paths is empty; name at least one file")

    def read(self, counts: Counts) -> Iterator[Utterance]:
        """Yields the utterances in order of the files. Raises `DataError` for one that its policy calls an error."""
        paths = find_all(self.paths)
        texts = self.transcripts.read(paths)
        for path in paths:
            text = " ".join(texts[path.name].split())
            if not text:
                self._refuse("empty", f"{path} has no transcript: {texts[path.name]!r}", counts)
                continue
            samples = self.sound(path, counts)
            if samples is not None:
                yield Utterance(path.name, samples, text)

    def sound(self, path: Path, counts: Counts) -> np.ndarray | None:
        """The samples of a file, float32 at `rate`; None for one that is to be left out."""
        try:
            sound = read_wav(path)
        except DataError as error:
            return self._refuse("corrupt", str(error), counts)
        counts["files mixed down to one channel"] += sound.channels > 1
        samples, silent = sound.samples, np.ptp(sound.samples) == 0  # what is resampled has ripples at its ends
        if sound.rate != self.rate:
            if self.other_rate != "resample":
                return self._refuse("other_rate", f"{path} has {sound.rate} samples a second, not rate={self.rate}", counts)
            counts["files resampled"] += 1
            samples = resample(samples, sound.rate, self.rate)
        if silent:
            if self.silent != "keep":
                return self._refuse("silent", f"{path} is silent: all its samples are {sound.samples[0]:g}", counts)
            counts["silent files kept"] += 1
        return samples

    def _refuse(self, policy: str, what: str, counts: Counts) -> None:
        if getattr(self, policy) == "error":
            choices = {"other_rate": "'resample' or 'skip'", "silent": "'skip' or 'keep'"}.get(policy, "'skip'")
            raise DataError(f"{what}; mend or remove it, or set {policy}={choices}")
        counts[f"files skipped: {policy}"] += 1


@dataclasses.dataclass(kw_only=True)
class SpeechData(ExampleData):
    """Utterances and their transcripts, one to a row; see `ExampleData`.

    In a batch "waves" are padded to the least of the numbers of `samples` that holds them: utterances of about the same length are
    batched together, and a train step compiles once for each number. "samples" [B] says how many are no padding. A transcript
    begins and ends with the end-of-document token, as a text that a model writes: "tokens", "targets" and "weights" [B, length].

    `long`: an utterance of more samples, or a transcript of more tokens, is an "error", or left out ("skip", counted): a part of it
    would teach nothing right.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"tokens", "waves"})
    targets: ClassVar[frozenset[str]] = frozenset({"next words", "transcripts"})

    train: SpeechFiles
    validation: SpeechFiles | None = None
    test: SpeechFiles | None = None
    samples: tuple[int, ...] = (480_000,)
    long: str = "error"

    def validate(self) -> None:
        """Raises `ConfigError` for sizes out of range or order, an unknown policy, or splits of different rates."""
        super().validate()
        check_choice("long", self.long, ("error", "skip"))
        if not self.samples or min(self.samples) < 1 or tuple(sorted(set(self.samples))) != self.samples:
            raise ConfigError(f"samples={self.samples} must be positive numbers in ascending order")
        rates = {files.rate for files in (self.train, self.validation, self.test) if files is not None}
        if len(rates) > 1:
            raise ConfigError(f"train, validation and test have different rates: {sorted(rates)}")

    @property
    def sampling_rate(self) -> int:
        """See `DataConfig.sampling_rate`."""
        return self.train.rate

    def masks_documents(self) -> bool:
        """See `ExampleData.masks_documents`: there is one utterance in a row."""
        return False

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """See `ExampleData.shapes`: those of the longest utterances."""
        waves = jax.ShapeDtypeStruct((self.batch_size, self.samples[-1]), np.float32)
        return super().shapes() | {"waves": waves, "samples": jax.ShapeDtypeStruct((self.batch_size,), np.int32)}

    def prompts(self, tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], Batch]:
        """See `DataConfig.prompts`: each text is the path of a WAV file, of which a model writes the transcript."""
        sounds = [self.train.sound(find_one(text), Counts()) for text in texts]
        if any(sound is None for sound in sounds):
            raise DataError(f"{[text for text, sound in zip(texts, sounds, strict=True) if sound is None]} cannot be transcribed")
        size = max(max(map(len, sounds)), self.samples[0])
        waves = np.stack([np.pad(sound, (0, size - len(sound))) for sound in sounds])
        return [[tokenizer.eos] for _ in texts], {"waves": waves, "samples": np.array([len(s) for s in sounds], np.int32)}

    def make(self, items: dict[str, list[Utterance]], counts: Counts) -> "PreparedSpeech":
        """See `ExampleData.make`."""
        tokenizer = self.tokenizer.train(utterance.text for utterance in items["train"])
        kept = {split: list(self._fitting(utterances, tokenizer, counts)) for split, utterances in items.items()}
        if not kept["train"]:
            raise DataError("no utterance of train is short enough")
        examples = {split: [example for _, example in pairs] for split, pairs in kept.items() if pairs}
        utterances = {split: [utterance for utterance, _ in pairs] for split, pairs in kept.items() if pairs}
        return PreparedSpeech(config=self, tokenizer=tokenizer, examples=examples, utterances=utterances)

    def _fitting(
        self, utterances: Iterable[Utterance], tokenizer: Tokenizer, counts: Counts
    ) -> Iterator[tuple[Utterance, Example]]:
        for utterance in utterances:
            (ids,) = encode_named(tokenizer, [(utterance.name, utterance.text)])
            sizes = (len(utterance.samples), self.samples[-1], "samples"), (len(ids) + 1, self.length, "length")
            over = [f"{size} > {name} {most}" for size, most, name in sizes if size > most]
            if over and self.long == "error":
                raise DataError(f"{utterance.name} does not fit a row: {', '.join(over)}; raise that, or set long='skip'")
            if over:
                counts["utterances skipped: too long"] += 1
                continue
            sound = {"waves": utterance.samples, "samples": np.int32(len(utterance.samples))}
            yield utterance, Example(utterance.name, sound | written(ids, tokenizer.eos, self.length))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSpeech(PreparedBuckets):
    """See `PreparedBuckets`. `utterances` are those of the examples, by split."""

    config: SpeechData
    utterances: dict[str, list[Utterance]]

    def sizes(self, split: str) -> str:
        """See `PreparedSplits.sizes`."""
        found = self.utterances[split]
        minutes = sum(len(utterance.samples) for utterance in found) / self.config.train.rate / 60
        return f"{len(found):,} utterances, {minutes:,.1f} minutes"

    def buckets(self, split: str, length: int | None = None) -> Buckets:
        """See `PreparedBuckets.buckets`."""
        lengths = dict.fromkeys(("tokens", "targets", "weights"), length or self.config.length)
        return Buckets(self.require(split), self.config.samples, lengths)

    def num_bytes(self, split: str) -> int:
        """See `PreparedExamples.num_bytes`."""
        return sum(len(utterance.text.encode()) for utterance in self.utterances[split])

    def references(self, split: str) -> list[str]:
        """What was said, in the order of the examples of a split."""
        self.require(split)
        return [utterance.text for utterance in self.utterances[split]]
