"""Libri-Light's layout: long recordings, each beside what is known of it, and how they are cut into pieces.

    SUBSET/SPEAKER/BOOK/FILE.flac
    SUBSET/SPEAKER/BOOK/FILE.json        {"speaker": "960", "voice_activity": [[0.4, 12.3], ...], ...}

Lhotse's `prepare_librilight` reads the same files, but all of small, medium and large at once, keeps everything in
memory, takes the header's word for the length, and makes one segment of each stretch of speech, so the lister is ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from w2vbert.data.audio_files import AUDIO_SUFFIXES, SAMPLING_RATE_HZ, AudioCheck, check_audio
from w2vbert.data.corpora import Utterance, make_recording
from w2vbert.data.segments import CutConfig, EnergyMeter, Span, cut_at_silences, find_extent, find_speech
from w2vbert.errors import UserError
from w2vbert.files import list_files

if TYPE_CHECKING:
    from lhotse import MonoCut, Recording

PUBLISHED = "published segments"
ENERGY = "energy"
WHOLE = "in one piece"


@dataclass(frozen=True)
class LongRecording:
    """A file of a corpus, not looked into yet.

    Attributes:
        path: the audio.
        id: SUBSET-SPEAKER-BOOK-FILE.
        speaker: name of the speaker's folder; what the JSON tells goes before it.
    """

    path: Path
    id: str
    speaker: str


@dataclass(frozen=True)
class CutRecording:
    """A recording and its pieces.

    Attributes:
        source: the file.
        check: what decoding it has shown.
        speaker: who speaks.
        pieces: none if it cannot be used.
        found_by: `PUBLISHED` or `ENERGY`, what told where speech is; or `WHOLE`.
        problem: why it cannot be used; None if it can.
    """

    source: LongRecording
    check: AudioCheck
    speaker: str
    pieces: tuple[Span, ...]
    found_by: str
    problem: str | None

    def recording(self) -> Recording:
        """Lhotse's recording of the whole file."""
        return make_recording(Utterance(self.source.id, self.source.path, self.speaker, None), self.check)

    def cuts(self) -> Iterator[MonoCut]:
        """A cut for each piece, ID-0000, ID-0001 and so on, on whole samples of 16 kHz."""
        from lhotse import MonoCut, SupervisionSegment

        recording = self.recording()
        for number, (start, end) in enumerate(self.pieces):
            first, last = round(start * SAMPLING_RATE_HZ), min(round(end * SAMPLING_RATE_HZ), recording.num_samples)
            name, seconds = f"{recording.id}-{number:04d}", (last - first) / SAMPLING_RATE_HZ
            said = SupervisionSegment(
                id=name,
                recording_id=recording.id,
                start=0.0,
                duration=seconds,
                language="English",
                speaker=self.speaker,
            )
            yield MonoCut(
                id=name,
                start=first / SAMPLING_RATE_HZ,
                duration=seconds,
                channel=0,
                recording=recording,
                supervisions=[said],
            )


def list_recordings(corpus: Path, subset: str) -> list[LongRecording]:
    """The long recordings of a subset folder, sorted.

    Raises:
        UserError: there is no such folder, or no audio in it.
    """
    folder = corpus / subset
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in corpus.iterdir() if path.is_dir())) or "none"
        raise UserError(f"there is no subset {subset} in {corpus} (there are: {there})")
    found = []
    for path in list_files(folder):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            parts = path.relative_to(folder).with_suffix("").parts
            found.append(LongRecording(path, "-".join((*Path(subset).parts, *parts)), parts[0]))
    if not found:
        raise UserError(f"there is no audio in {folder} ({', '.join('*' + suffix for suffix in AUDIO_SUFFIXES)})")
    return found


def cut_recording(source: LongRecording, config: CutConfig) -> CutRecording:
    """Decodes a whole file, and cuts it at the pauses that its JSON tells, or else at those that its energy shows.

    Without JSON, what is short enough for a piece stays whole, but for silence at its ends.
    """
    meter = EnergyMeter()
    check = check_audio(source.path, meter.add)
    speaker, speech = read_metadata(source.path.with_suffix(".json"))
    speaker = speaker or source.speaker
    if check.problem is not None:
        return CutRecording(source, check, speaker, (), WHOLE, check.problem)
    energies = meter.energies()
    pieces: tuple[Span, ...] = ()
    seconds = check.samples / check.sampling_rate_hz
    if not speech and seconds <= config.max_seconds:
        found_by, extent = WHOLE, find_extent(energies, seconds)
        if extent is not None and seconds >= config.min_seconds:
            pieces = (extent,)
    else:
        found_by = PUBLISHED if speech else ENERGY
        pieces = tuple(cut_at_silences(speech or find_speech(energies), seconds, energies, config))
    problem = None if pieces else f"no speech of {config.min_seconds:g} s"
    return CutRecording(source, check, speaker, pieces, found_by, problem)


def read_metadata(path: Path) -> tuple[str | None, Sequence[Span]]:
    """Speaker and spans of speech of a recording's JSON; None and nothing where they are missing or make no sense."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        speaker = str(known["speaker"]) if known.get("speaker") is not None else None
        spans = [(float(start), float(end)) for start, end in known.get("voice_activity") or []]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None, []
    return speaker, [(start, end) for start, end in spans if 0.0 <= start < end]
