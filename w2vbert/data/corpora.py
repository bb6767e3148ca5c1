"""Corpora in LibriSpeech's layout: which utterances they hold, which of them can be used, and their Lhotse manifests.

    SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTTERANCE.flac
    SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt        lines "SPEAKER-CHAPTER-UTTERANCE TEXT"; none if unlabelled

Unlabelled recordings begin shortly before their first speech and end shortly after the last: what is learned from
silence is that it is easy to predict, and codes collapse over it (docs/collapse.md).

Lhotse's own `prepare_librispeech` stops at an empty transcript or a damaged file and passes over audio without text, so
the lister is ours; on a sound corpus both give the same manifests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from w2vbert.data.audio_files import AUDIO_SUFFIXES, SAMPLING_RATE_HZ, AudioCheck, check_audio, check_extent
from w2vbert.data.parallel import map_in_processes
from w2vbert.data.segments import Span
from w2vbert.errors import UserError
from w2vbert.files import list_files
from w2vbert.log import progress

if TYPE_CHECKING:  # lhotse takes seconds to import: not before a step knows that it has work to do
    from lhotse import MonoCut, Recording, SupervisionSegment

LABELLED_SPLITS = ("train", "dev", "test")
UNLABELLED = "unlabelled"
SPLITS = (*LABELLED_SPLITS, UNLABELLED)
ROUNDING_SECONDS = 0.05  # times in a `segments` file have two digits or fewer


@dataclass(frozen=True)
class CorpusConfig:
    """Which subsets make up each split, and which utterances are dropped."""

    corpus: Path
    splits: dict[str, tuple[str, ...]]  # split -> names of subset folders
    min_seconds: float = 0.1  # about the receptive field of one encoder frame
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        for split, subsets in self.splits.items():
            if split not in SPLITS:
                raise UserError(f"unknown split {split} (allowed: {', '.join(SPLITS)})")
            if not subsets or len(set(subsets)) < len(subsets):
                raise UserError(f"{split} needs at least one subset and each only once, got {','.join(subsets)!r}")
        if not self.splits:
            raise UserError(f"name the subsets of at least one split ({', '.join(SPLITS)})")


@dataclass(frozen=True)
class Utterance:
    """An audio file of a corpus, or a part of one, not looked into yet."""

    id: str
    path: Path
    speaker: str
    text: str | None  # None: unlabelled
    span: Span | None = None  # begin and end in the file; None: all of it


@dataclass(frozen=True)
class Split:
    """Manifests of one split and what was left out of it."""

    name: str
    recordings: list[Recording]
    supervisions: list[SupervisionSegment]
    dropped: dict[str, list[str]] = field(default_factory=dict)  # reason -> utterance ids
    resampled: list[str] = field(default_factory=list)  # ids of utterances with another sampling rate
    clipped: list[str] = field(default_factory=list)  # ids of those that were to end after their recording

    def cuts(self) -> Iterator[MonoCut]:
        """One cut for each utterance, with the utterance's id."""
        from lhotse import MonoCut

        for recording, supervision in zip(self.recordings, self.supervisions, strict=True):
            yield MonoCut(
                id=supervision.id,
                start=supervision.start,
                duration=supervision.duration,
                channel=0,
                recording=recording,
                supervisions=[supervision.with_offset(-supervision.start)],
            )


def check_subsets(config: CorpusConfig) -> None:
    """Refuse, before anything is read, a corpus that cannot be what the user means.

    Raises:
        UserError: no such corpus or subset, or an unlabelled subset in train, dev or test.
    """
    if not config.corpus.is_dir():
        raise UserError(f"there is no corpus folder {config.corpus}")
    if not is_unicode(str(config.corpus)):
        raise UserError(f"the name of {config.corpus} is not UTF-8: rename it")
    there = sorted(path.name for path in config.corpus.iterdir() if path.is_dir() and not path.name.startswith("."))
    for split, subsets in config.splits.items():
        for subset in subsets:
            if not (config.corpus / subset).is_dir():
                names = ", ".join(there) or "none"
                raise UserError(f"there is no subset {subset} in {config.corpus} (there are: {names})")
            folder = config.corpus / subset
            if split in LABELLED_SPLITS and not any(path.name.endswith(".trans.txt") for path in list_files(folder)):
                raise UserError(
                    f"{split}: {folder} has no transcripts (*.trans.txt): name a labelled subset, "
                    "or use this one with --unlabelled"
                )


def read_split(config: CorpusConfig, split: str, jobs: int) -> Split:
    """List one split, decode all its audio, and keep what can be used.

    Args:
        jobs: number of processes that decode.

    Raises:
        UserError: a folder without audio, or nothing left.
    """
    dropped: dict[str, list[str]] = {}
    candidates: dict[str, Utterance] = {}
    for subset in config.splits[split]:
        for utterance in list_utterances(config.corpus / subset, split in LABELLED_SPLITS, dropped):
            if utterance.id in candidates:
                dropped.setdefault("id is there twice", []).append(utterance.id)
            else:
                candidates[utterance.id] = utterance
    utterances = [candidates[key] for key in sorted(candidates)]
    return keep_usable(split, utterances, dropped, config, jobs)


def keep_usable(
    split: str, utterances: Sequence[Utterance], dropped: dict[str, list[str]], limits: CorpusConfig, jobs: int
) -> Split:
    """Decode all audio of a split, and keep what can be used.

    Args:
        dropped: reason -> ids of what was left out before.
        limits: shortest and longest utterance.
        jobs: number of processes that decode.

    Raises:
        UserError: nothing is left.
    """
    files = list(dict.fromkeys(u.path for u in utterances))  # utterances may be parts of the same file
    decoded = map_in_processes(check_extent if split == UNLABELLED else check_audio, files, jobs)
    checks = dict(zip(files, progress(decoded, total=len(files), desc=f"checking {split}", unit="files"), strict=True))
    recordings, supervisions, resampled, clipped = [], [], [], []
    for utterance in utterances:
        check = checks[utterance.path]
        span = _clip_span(utterance, check)
        problem = check.problem or _check_span(span, limits)
        if problem is not None:
            dropped.setdefault(problem, []).append(utterance.id)
            continue
        if check.sampling_rate_hz != SAMPLING_RATE_HZ:
            resampled.append(utterance.id)
        if utterance.span and span[1] + ROUNDING_SECONDS < utterance.span[1] < math.inf:
            clipped.append(utterance.id)
        recordings.append(make_recording(utterance, check))
        is_whole = utterance.span is None and check.extent is None
        supervisions.append(_make_supervision(utterance, recordings[-1], None if is_whole else span))
    if not recordings:
        reasons = ", ".join(f"{reason}: {len(ids)}" for reason, ids in sorted(dropped.items()))
        raise UserError(f"no utterance is left in {split} ({','.join(limits.splits[split])}): {reasons}")
    return Split(split, recordings, supervisions, dropped, resampled, clipped)


def list_utterances(folder: Path, labelled: bool, dropped: dict[str, list[str]]) -> Iterator[Utterance]:
    """The audio files under a subset folder; with `labelled` only those with a transcript.

    Args:
        dropped: reason -> ids; what is left out is added here.

    Raises:
        UserError: there is no audio file.
    """
    paths = [path for path in list_files(folder) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not paths:
        raise UserError(f"there is no audio in {folder} ({', '.join('*' + suffix for suffix in AUDIO_SUFFIXES)})")
    transcripts = read_transcripts(folder) if labelled else {}
    seen: set[str] = set()
    for path in paths:
        parts = path.relative_to(folder).with_suffix("").parts
        speaker = parts[0]
        # LibriSpeech's file names are unique; those of other corpora (Libri-Light's books) only with their folders.
        utterance_id = path.stem if path.stem.startswith(f"{speaker}-") else "-".join(parts)
        texts = transcripts.get(utterance_id, ())
        problem = _check_transcripts(texts) if labelled else None
        if utterance_id in seen:
            problem = "id is there twice"
        if not is_unicode(str(path)):
            problem = "name that is not UTF-8"
        seen.add(utterance_id)
        if problem is not None:
            dropped.setdefault(problem, []).append(utterance_id)
        else:
            yield Utterance(utterance_id, path, speaker, texts[0] if labelled else None)
    speakers = {path.relative_to(folder).parts[0] for path in paths}
    silent = [
        path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in speakers
    ]
    for reason, names in (("transcript without audio", transcripts.keys() - seen), ("speaker without audio", silent)):
        if names:
            dropped.setdefault(reason, []).extend(sorted(names))


def is_unicode(text: str) -> bool:
    """Whether a text, or a path, can be written into a manifest."""
    return text == text.encode("utf-8", errors="replace").decode("utf-8")


def _check_transcripts(texts: Sequence[str]) -> str | None:
    """What is wrong with the transcripts of an utterance; None if they are one."""
    if not texts:
        return "no transcript"
    if len(texts) > 1:
        return "two different transcripts"
    return None if texts[0] else "empty transcript"


def read_transcripts(folder: Path) -> dict[str, tuple[str, ...]]:
    """Utterance id -> its different texts (one, if all is well), of all `*.trans.txt` under a folder.

    Raises:
        UserError: a file is not UTF-8.
    """
    transcripts: dict[str, tuple[str, ...]] = {}
    for path in list_files(folder):
        if not path.name.endswith(".trans.txt"):
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text") from error
        for line in lines:
            words = line.split()
            if words:
                utterance_id, text = words[0], " ".join(words[1:])
                transcripts[utterance_id] = tuple(dict.fromkeys((*transcripts.get(utterance_id, ()), text)))
    return transcripts


def shared_speakers(splits: Sequence[Split]) -> list[tuple[str, str, list[str]]]:
    """Pairs of splits that share speakers, with these; train and unlabelled may."""
    return _find_shared(splits, lambda split: {str(x.speaker) for x in split.supervisions})


def shared_utterances(splits: Sequence[Split]) -> list[tuple[str, str, list[str]]]:
    """Pairs of splits that share utterances (by id), with these; train and unlabelled may."""
    return _find_shared(splits, lambda split: {x.id for x in split.supervisions})


def _find_shared(splits: Sequence[Split], content: Callable[[Split], set[str]]) -> list[tuple[str, str, list[str]]]:
    contents = {split.name: content(split) for split in splits}
    names = list(contents)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if {a, b} != {"train", "unlabelled"}]
    return [(a, b, sorted(contents[a] & contents[b])) for a, b in pairs if contents[a] & contents[b]]


def _clip_span(utterance: Utterance, check: AudioCheck) -> Span:
    """Begin and end of an utterance in its file."""
    seconds = check.samples / max(check.sampling_rate_hz, 1)
    begin, end = utterance.span or check.extent or (0.0, seconds)
    return begin, min(end, seconds)


def _check_span(span: Span, config: CorpusConfig) -> str | None:
    seconds = span[1] - span[0]
    if span[0] > 0.0 and seconds <= 0.0:
        return "beyond the end of its recording"
    if seconds < config.min_seconds:
        return f"shorter than {config.min_seconds:g} s"
    return f"longer than {config.max_seconds:g} s" if seconds > config.max_seconds else None


def make_recording(utterance: Utterance, check: AudioCheck) -> Recording:
    """Lhotse's recording of a file, at 16 kHz when it is loaded."""
    from lhotse import AudioSource, Recording

    recording = Recording(
        id=utterance.id,
        sources=[AudioSource(type="file", channels=[0], source=str(utterance.path))],
        sampling_rate=check.sampling_rate_hz,
        num_samples=check.samples,
        duration=check.samples / check.sampling_rate_hz,
    )
    return recording.resample(SAMPLING_RATE_HZ) if check.sampling_rate_hz != SAMPLING_RATE_HZ else recording


def _make_supervision(utterance: Utterance, recording: Recording, span: Span | None) -> SupervisionSegment:
    from lhotse import SupervisionSegment

    start, end = span or (0.0, recording.duration)
    return SupervisionSegment(
        id=utterance.id,
        recording_id=recording.id,
        start=start,
        duration=round(min(end, recording.duration) - start, 8),
        channel=0,
        language="English",
        speaker=utterance.speaker,
        text=utterance.text,
    )
