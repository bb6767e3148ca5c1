"""The transcript of a recording out of what was recognised in its pieces."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.joining import join_windows, put_in_order
from w2vbert.decoding.words import Word, find_words
from w2vbert.tasks.audio_sources import Source
from w2vbert.tasks.recognize import Recognition
from w2vbert.tasks.transcript_formats import Candidate, Segment, Transcript


@dataclass(frozen=True)
class Heard:
    """A piece of a recording, ready to be decoded.

    Attributes:
        start: seconds from the begin of the recording.
        seconds: its length.
        overlaps: whether its begin is the end of the piece before it.
        features: (T, F), normalised.
    """

    start: float
    seconds: float
    overlaps: bool
    features: Tensor


class TranscriptBuilder:
    """Takes the pieces of recordings in order, and gives each recording's transcript at its end.

    Args:
        tokenizer: of the model that recognises them.
        frame_seconds: from one of its encoder frames to the next.
    """

    def __init__(self, tokenizer: Tokenizer, frame_seconds: float) -> None:
        self._tokenizer, self._frame_seconds = tokenizer, frame_seconds
        self._segments: list[Segment] = []
        self._log_prob, self._tokens = 0.0, 0  # of the best texts of the recording's pieces
        self._names: dict[str, int] = {}

    def add(self, heard: Heard, recognition: Recognition) -> None:
        """Takes the next piece."""
        best = recognition.hypotheses[0]
        self._log_prob += sum(best.token_log_probs)
        self._tokens += len(best.tokens)
        end = heard.start + heard.seconds
        words = [
            replace(word, start=min(heard.start + word.start, end), end=min(heard.start + word.end, end))
            for word in find_words(best, self._tokenizer.pieces(best.tokens), self._frame_seconds)
        ]
        segment = Segment(
            heard.start, end, recognition.text, tuple(words), recognition.confidence, self._candidates(recognition)
        )
        if heard.overlaps and self._segments:
            self._segments[-1], segment = _join(self._segments[-1], segment)
        self._segments.append(segment)

    def _candidates(self, recognition: Recognition) -> tuple[Candidate, ...]:
        decode = self._tokenizer.decode
        return tuple(Candidate(decode(list(other.tokens)), other) for other in recognition.hypotheses)

    def finish(self, source: Source, seconds: float, error: str | None) -> Transcript:
        """The transcript of the recording whose pieces have come since the last one was finished."""
        segments: list[Segment] = [] if error is not None else self._segments
        confidence = math.exp(self._log_prob / self._tokens) if segments and self._tokens else 0.0
        self._segments, self._log_prob, self._tokens = [], 0.0, 0
        return Transcript(
            id=source.id,
            name=self._unique(source.name),
            recording_id=source.recording_id,
            offset_seconds=source.offset_seconds,
            channel=source.channel or 0,
            seconds=seconds,
            text=None if error is not None else " ".join(segment.text for segment in segments if segment.text),
            confidence=confidence,
            segments=tuple(_order_times(segments)),
            error=error,
        )

    def _unique(self, name: str) -> str:
        """A name without white space and slashes that no other recording has: the second `a` becomes `a-2`."""
        name = "_".join(name.replace("/", "_").split()) or "_"
        number = self._names[name] = self._names.get(name, 0) + 1
        if number == 1:
            return name
        return self._unique(f"{name}-{number}")


def _join(earlier: Segment, later: Segment) -> tuple[Segment, Segment]:
    """Two segments that overlap, each with its own part of the words."""
    before, after = join_windows(earlier.words, later.words, later.start, earlier.end)
    change = after[0].start if after else earlier.end
    return _shorten(earlier, earlier.start, change, before), _shorten(later, change, later.end, after)


def _shorten(segment: Segment, start: float, end: float, words: Sequence[Word]) -> Segment:
    if len(words) == len(segment.words):
        return replace(segment, start=start, end=end)
    return replace(segment, start=start, end=end, words=tuple(words), text=" ".join(word.text for word in words))


def _order_times(segments: Sequence[Segment]) -> list[Segment]:
    """The same segments with words that never go back in time."""
    ordered, last = [], 0.0
    for segment in segments:
        words = put_in_order(segment.words, last)
        last = words[-1].end if words else last
        ordered.append(replace(segment, words=tuple(words)))
    return ordered
