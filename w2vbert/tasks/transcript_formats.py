"""What was recognised in a recording, and its forms in the formats that others read."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.words import Word

Format = Literal["jsonl", "ctm", "srt", "txt", "lhotse"]
CAPTION_CHARACTERS = 84  # of a subtitle: two lines of 42
CAPTION_SECONDS = 6.0
CAPTION_PAUSE_SECONDS = 0.7  # begins a new subtitle


@dataclass(frozen=True)
class Candidate:
    """One text of an n-best list.

    Attributes:
        text: its words.
        hypothesis: tokens and scores.
    """

    text: str
    hypothesis: Hypothesis


@dataclass(frozen=True)
class Segment:
    """What was recognised in a piece of a recording.

    Attributes:
        start, end: seconds from the begin of the recording.
        text: the best text.
        words: with their times in the recording.
        confidence: of the best text, 0 to 1.
        nbest: best first.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...]
    confidence: float
    nbest: tuple[Candidate, ...]


@dataclass(frozen=True)
class Transcript:
    """What was recognised in a recording.

    Attributes:
        id: as the recording was given: path, `-`, or Lhotse's id.
        name: without folders, suffix and white space; no other recording of the run has it.
        recording_id, offset_seconds, channel: what times in Lhotse's manifests refer to.
        seconds: length of what was decoded.
        text: words; None where the recording could not be decoded.
        confidence: 0 to 1; 0 without words.
        segments: pieces, in order of time.
        error: why it could not be decoded.
    """

    id: str
    name: str
    recording_id: str
    offset_seconds: float
    channel: int
    seconds: float
    text: str | None
    confidence: float
    segments: tuple[Segment, ...]
    error: str | None = None

    @property
    def words(self) -> list[Word]:
        """All words, in order of time."""
        return [word for segment in self.segments for word in segment.words]


def describe_nbest(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """An n-best list for JSON, as `w2vbert tune-fusion` reads it."""
    return [
        {
            "text": candidate.text,
            "score": round(candidate.hypothesis.score, 4),
            "model_score": round(candidate.hypothesis.model_score, 4),
            "tokens": len(candidate.hypothesis.tokens),
            "scores": {name: round(value, 4) for name, value in candidate.hypothesis.scores.items()},
        }
        for candidate in candidates
    ]


def describe_words(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Words for JSON."""
    return [
        {
            "word": word.text,
            "start": round(word.start, 3),
            "end": round(word.end, 3),
            "confidence": round(word.confidence, 4),
        }
        for word in words
    ]


def describe(transcript: Transcript) -> dict[str, Any]:
    """A transcript for JSON. Pieces are there where there are several; n-best lists where more than one text is."""
    line: dict[str, Any] = {
        "id": transcript.id,
        "text": transcript.text,
        "confidence": round(transcript.confidence, 4),
    }
    if transcript.error is not None:
        return line | {"error": transcript.error}
    line |= {"seconds": round(transcript.seconds, 3), "words": describe_words(transcript.words)}
    if len(transcript.segments) == 1:
        return line | _nbest_of(transcript.segments[0])
    if transcript.segments:
        line["segments"] = [
            {
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "text": segment.text,
                "confidence": round(segment.confidence, 4),
            }
            | _nbest_of(segment)
            for segment in transcript.segments
        ]
    return line


def _nbest_of(segment: Segment) -> dict[str, Any]:
    return {"nbest": describe_nbest(segment.nbest)} if len(segment.nbest) > 1 else {}


def format_jsonl(transcript: Transcript) -> str:
    """One line of JSON."""
    return json.dumps(describe(transcript), ensure_ascii=False) + "\n"


def format_ctm(transcript: Transcript) -> str:
    """Lines `NAME CHANNEL START LENGTH WORD CONFIDENCE` as NIST's tools read them; a comment for what failed."""
    if transcript.error is not None:
        return f";; {transcript.name}: {' '.join(transcript.error.split())}\n"
    return "".join(
        f"{transcript.name} {transcript.channel + 1} {word.start:.2f} {word.end - word.start:.2f} {word.text} "
        f"{word.confidence:.3f}\n"
        for word in transcript.words
    )


def format_txt(transcript: Transcript) -> str:
    """Kaldi's line `NAME TEXT`."""
    return f"{transcript.name} {transcript.text or ''}".rstrip() + "\n"


def format_srt(transcript: Transcript) -> str:
    """Subtitles: words that follow one another closely, up to two lines of them."""
    captions: list[list[Word]] = []
    for word in transcript.words:
        caption = captions[-1] if captions else []
        length = sum(len(other.text) + 1 for other in caption) + len(word.text)
        if (
            not caption
            or word.start - caption[-1].end > CAPTION_PAUSE_SECONDS
            or word.end - caption[0].start > CAPTION_SECONDS
            or length > CAPTION_CHARACTERS
        ):
            captions.append([])
        captions[-1].append(word)
    return "".join(
        f"{number}\n{_clock(words[0].start)} --> {_clock(words[-1].end)}\n{' '.join(w.text for w in words)}\n\n"
        for number, words in enumerate(captions, 1)
    )


def _clock(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d},{milliseconds % 1000:03d}"


def format_lhotse(transcript: Transcript) -> str:
    """Lines of Lhotse's supervisions, one for each piece, with the words' times as alignment."""
    lines = []
    for number, segment in enumerate(transcript.segments):
        supervision: dict[str, Any] = {
            "id": transcript.id if len(transcript.segments) == 1 else f"{transcript.id}-{number:05d}",
            "recording_id": transcript.recording_id,
            "start": round(transcript.offset_seconds + segment.start, 8),
            "duration": round(segment.end - segment.start, 8),
            "channel": transcript.channel,
            "text": segment.text,
            "custom": {"confidence": round(segment.confidence, 4)},
            "alignment": {"word": [_align(word, transcript.offset_seconds) for word in segment.words]},
        }
        lines.append(json.dumps(supervision, ensure_ascii=False) + "\n")
    return "".join(lines)


def _align(word: Word, offset_seconds: float) -> list[Any]:
    """Lhotse's AlignmentItem: symbol, start, duration, score."""
    start, duration = offset_seconds + word.start, word.end - word.start
    return [word.text, round(start, 4), round(duration, 4), round(word.confidence, 4)]


FORMATTERS: dict[Format, Callable[[Transcript], str]] = {
    "jsonl": format_jsonl,
    "ctm": format_ctm,
    "srt": format_srt,
    "txt": format_txt,
    "lhotse": format_lhotse,
}
