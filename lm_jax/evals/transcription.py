"""Word and character error rates of what a model hears, over a whole split, every utterance exactly once."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from lm_jax.core.config import check_positive
from lm_jax.core.errors import ConfigError
from lm_jax.core.local import all_gather, local_view
from lm_jax.core.param import Params, param_specs
from lm_jax.core.png import png_url
from lm_jax.core.sharding import batch_specs, same_everywhere
from lm_jax.core.types import Array, Batch
from lm_jax.evals.base import EvalConfig, Shown
from lm_jax.infer.beam import beam_search
from lm_jax.infer.ctc import best_path, prefix_beam_search
from lm_jax.infer.generate import generate
from lm_jax.infer.sampling import SamplingConfig
from lm_jax.models.speech_encoder import SpeechEncoder


@dataclasses.dataclass(kw_only=True)
class TranscriptionConfig(EvalConfig):
    """Yields "word_error_rate", "character_error_rate", "utterance_error_rate" (the share that is not right to the last character)
    and "num_utterances".

    Error rates are insertions, deletions and substitutions over the words (or characters) that were said, over the whole split:
    they can exceed 1. Words are what white space sets apart. The likeliest transcript is searched with as large a `beam`; 1 is the
    best path of connectionist temporal classification, or the likeliest token after each. The first `shown` utterances of the split
    are shown beside their spectrograms (low frequencies at the bottom).
    """

    targets: ClassVar[frozenset[str]] = frozenset({"transcripts", "next words"})
    reads: ClassVar[tuple[str, ...]] = ("utterances", "references")
    reads_batches: ClassVar[bool] = True

    beam: int = 1
    shown: int = 4

    def validate(self) -> None:
        """Raises `ConfigError` for sizes below 1."""
        super().validate()
        check_positive(self, "beam")
        if self.shown < 0:
            raise ConfigError(f"shown={self.shown} must not be negative")

    def scores(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[str, float] | Shown]:
        """See `EvalConfig.scores`. Raises `ConfigError` for a model that hears nothing."""
        references = data.references(self.split)
        heard: dict[int, str] = {}
        batches = self._by_frames if isinstance(nnx.merge(graph, params), SpeechEncoder) else self._by_writing
        for numbers, texts in batches(graph, params, data, put, rows):
            heard |= {number: text for number, text in zip(numbers, texts, strict=True) if number >= 0}
        texts = [heard[number].strip() for number in range(len(references))]
        yield from error_rates(references, texts)
        shown = data.utterances[self.split][: self.shown]
        pictures = spectrograms(graph, params, [utterance.samples for utterance in shown])
        for utterance, text, picture in zip(shown, texts, pictures, strict=False):
            yield Shown(utterance.name, text, {"reference": utterance.text, "image": png_url(picture)})

    def _by_frames(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[list[int], list[str]]]:
        blank = nnx.merge(graph, params).config.blank
        decode = lambda ids: data.tokenizer.decode(np.array(ids, np.int32))  # noqa: E731
        for numbers, batch in data.numbered_batches(self.split, self.batch_size, self.length, rows):
            found = _scored(params, put(batch), graph=graph, num_tokens=data.tokenizer.vocab_size)
            best_BS, log_probs_BSV, heard_BS = jax.device_get(found)
            if self.beam == 1:
                yield numbers, [decode(row[row >= 0]) for row in best_BS]
                continue
            known = zip(log_probs_BSV, heard_BS > 0, strict=True)
            searched = (prefix_beam_search(scores[here], beam=self.beam, blank=blank) for scores, here in known)
            yield numbers, [decode(candidates[0][1]) for candidates in searched]

    def _by_writing(
        self, graph: nnx.GraphDef, params: Params, data: Any, put: Callable[[Batch], Batch], rows: slice
    ) -> Iterator[tuple[list[int], list[str]]]:
        """Every device writes all rows of a batch."""
        eos, most, limit = data.tokenizer.eos, self.length or data.config.length, nnx.merge(graph, params).config.max_length()
        most = most if limit is None else min(most, limit - 1)
        search = {"max_tokens": most, "num_tokens": data.tokenizer.vocab_size}
        for numbers, batch in data.numbered_batches(self.split, self.batch_size, self.length):
            inputs, starts = {name: batch[name] for name in ("waves", "samples")}, [[eos]] * len(numbers)
            with same_everywhere():
                if self.beam == 1:
                    sampling = SamplingConfig(temperature=0.0)
                    found = generate(graph, params, starts, sampling=sampling, stop_tokens=(eos,), inputs=inputs, **search)
                    best = [samples[0] for samples in found]
                else:
                    found = beam_search(graph, params, starts, beam=self.beam, eos=eos, inputs=inputs, **search)
                    best = [candidates[0][1] for candidates in found]
            yield numbers, [data.tokenizer.decode(np.array(ids, np.int32)) for ids in best]


@functools.partial(jax.jit, static_argnames=("graph", "num_tokens"))
def _scored(params: Params, batch: Batch, *, graph: nnx.GraphDef, num_tokens: int) -> tuple[Array, Array, Array]:
    """Of all rows, on every device: the best path [B, S], log-probabilities of the first `num_tokens` tokens (others pad the
    vocabulary beyond that of the tokenizer) [B, S, V], and where there is no padding [B, S]."""

    def local(params: Params, batch: Batch) -> tuple[Array, Array, Array]:
        model = nnx.merge(graph, params)
        output, heard_BS = model.hear(batch)
        logits_BSV = all_gather(model.logits(output.hidden), "vocab", 2)[:, :, :num_tokens]
        found = best_path(logits_BSV, heard_BS, model.config.blank), jax.nn.log_softmax(logits_BSV), heard_BS
        return jax.tree.map(lambda x: all_gather(x, "batch", 0), found)

    # Gathered values are the same on every device, which the types cannot show.
    shards = param_specs(graph, params)
    return local_view(local, (shards, batch_specs(batch)), PartitionSpec(), check=False)(params, batch)


def error_rates(references: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yields the scores of texts against what was said. Raises `ConfigError` where nothing was said."""
    if not any(reference.split() for reference in references):
        raise ConfigError("the split holds no transcript to compare with")
    pairs = list(zip(references, texts, strict=True))
    for name, units in (("word_error_rate", str.split), ("character_error_rate", list)):
        errors = sum(edit_distance(units(reference), units(text)) for reference, text in pairs)
        yield name, errors / sum(len(units(reference)) for reference in references)
    yield "utterance_error_rate", sum(reference != text for reference, text in pairs) / len(pairs)
    yield "num_utterances", float(len(pairs))


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The least number of insertions, deletions and substitutions that make `b` of `a` (Levenshtein 1966)."""
    places = np.arange(len(b) + 1)
    row = places
    for item in a:
        other = np.array([item != x for x in b], np.int64)
        best = np.minimum(row[1:] + 1, row[:-1] + other)
        # Insertions go along the row: entry j is the least over i <= j of entry i + (j - i).
        row = np.minimum.accumulate(np.concatenate([[row[0] + 1], best]) - places) + places
    return int(row[-1])


def spectrograms(graph: nnx.GraphDef, params: Params, sounds: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields, of each waveform, uint8 [M, T]: what the model's convolutions read, low frequencies at the bottom, from black (the
    least) to white (the most)."""
    if not sounds:
        return
    samples = np.array([len(sound) for sound in sounds], np.int32)
    waves = np.zeros((len(sounds), samples.max()), np.float32)
    for row, sound in enumerate(sounds):
        waves[row, : len(sound)] = sound
    read = nnx.merge(graph, params).source.spectrogram
    mels_BTM, frames_B, _ = jax.device_get(jax.jit(read)({"waves": waves, "samples": samples}))
    for mels_TM, frames in zip(mels_BTM, frames_B, strict=True):
        picture = mels_TM[:frames].T[::-1]
        yield np.uint8(255 * (picture - picture.min()) / max(np.ptp(picture), 1e-9))
