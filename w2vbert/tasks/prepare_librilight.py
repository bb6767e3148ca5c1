"""Manifests of Libri-Light: its long unlabelled recordings cut into pieces, in parts that can be done again alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2vbert.config import to_dict
from w2vbert.data.audio_files import SAMPLING_RATE_HZ
from w2vbert.data.corpora import LABELLED_SPLITS, UNLABELLED, CorpusConfig, Split, check_subsets, read_split
from w2vbert.data.librilight import ENERGY, PUBLISHED, WHOLE, LongRecording, cut_recording, list_recordings
from w2vbert.data.parallel import map_in_processes
from w2vbert.data.segments import CutConfig
from w2vbert.errors import UserError
from w2vbert.files import read_json, real_path, write_json
from w2vbert.log import logger, progress
from w2vbert.stages import Step, run_step
from w2vbert.tasks.manifests import SHOWN_IDS, find_warnings, join_manifests, summarise, write_report, write_split

FILES_OF_A_PART = 100
"""Recordings that are cut in one part: about 30 h, or half a minute of one core."""

BESIDE = ("LibriSpeech", "librispeech_finetuning")
"""Folders of the corpus where subsets are looked for that are not in the corpus itself."""

_TEN_MINUTES = tuple(f"librispeech_finetuning/1h/{fold}/{kind}" for fold in range(6) for kind in ("clean", "other"))
LIMITED = {
    "10min": _TEN_MINUTES[:2],
    "1h": _TEN_MINUTES,
    "10h": (*_TEN_MINUTES, "librispeech_finetuning/9h/clean", "librispeech_finetuning/9h/other"),
}
"""Libri-Light's limited labels, by the names that its users have for them."""


@dataclass(frozen=True)
class PartJob:
    """Some recordings, and the folder for their manifests."""

    recordings: tuple[LongRecording, ...]
    folder: Path
    config: CutConfig


def prepare_librilight(
    corpus: Path,
    out: Path,
    splits: Mapping[str, Sequence[str]],
    config: CutConfig,
    jobs: int = 1,
    force: bool = False,
) -> bool:
    """Write Lhotse manifests and a report; False if up to date.

    `out` gets what `prepare corpus` leaves; the unlabelled split has no supervisions apart from its cuts. While it is
    made, finished parts stand in `OUT.parts`.

    Args:
        corpus: folder that holds small, medium or large, and librispeech_finetuning and LibriSpeech for the labels.
        splits: train, dev, test, unlabelled -> names of subsets; 10min, 1h and 10h are Libri-Light's labelled ones.
        config: how the unlabelled recordings are cut.
        jobs: number of processes.

    Raises:
        UserError: a folder is missing or empty, or parts have failed.
    """
    corpus = real_path(corpus)
    named = {split: _expand(corpus, names) for split, names in splits.items() if names}
    labels = {split: subsets for split, subsets in named.items() if split in LABELLED_SPLITS}
    limits = CorpusConfig(corpus, labels) if labels else None
    if limits is not None:
        check_subsets(limits)
    subsets = named.get(UNLABELLED, ())
    recordings = [recording for subset in subsets for recording in list_recordings(corpus, subset)]
    step = Step(
        "prepare librilight",
        out,
        {"corpus": corpus, "splits": named, "cut": to_dict(config)},
        {subset: corpus / subset for names in named.values() for subset in names},
    )

    def work(folder: Path) -> None:
        labelled = [read_split(limits, split, jobs) for split in labels] if limits is not None else []
        for split in labelled:
            write_split(split, folder)
        summary = {split.name: summarise(split, labels[split.name]) for split in labelled}
        warnings = find_warnings(labelled)
        if recordings:
            summary[UNLABELLED], speakers = write_unlabelled(recordings, folder, step.parts, config, jobs)
            summary[UNLABELLED]["subsets"] = list(subsets)
            warnings += find_shared(speakers, labelled)
        write_report(folder, corpus, summary, warnings)

    with step.keeping_parts():
        return run_step(step, work, force)


def write_unlabelled(
    recordings: Sequence[LongRecording], folder: Path, parts: Path, config: CutConfig, jobs: int
) -> tuple[dict[str, Any], set[str]]:
    """Writes the manifests of the unlabelled split into `folder`; row of the report, and speakers.

    Args:
        parts: folder for what is finished while the rest is not.

    Raises:
        UserError: parts have failed, or nothing is left.
    """
    reports = cut_in_parts(recordings, parts, config, jobs)
    for kind in ("recordings", "cuts"):
        join_manifests([path / f"{kind}.jsonl.gz" for path, _ in reports], folder / f"{kind}_{UNLABELLED}.jsonl.gz")
    row = _summarise([report for _, report in reports])
    return row, {speaker for _, report in reports for speaker in report["speakers"]}


def cut_in_parts(
    recordings: Sequence[LongRecording], parts: Path, config: CutConfig, jobs: int
) -> list[tuple[Path, dict[str, Any]]]:
    """Cuts recordings part by part, those parts left out that an earlier call has finished.

    Returns:
        Folder and report of each part, in order.

    Raises:
        UserError: parts have failed; the others stay.
    """
    starts = range(0, len(recordings), FILES_OF_A_PART)
    groups = [tuple(recordings[start : start + FILES_OF_A_PART]) for start in starts]
    work = [
        PartJob(group, parts / f"{number}-of-{len(groups)}", config) for number, group in enumerate(groups, start=1)
    ]
    done = map_in_processes(cut_part, work, jobs)
    problems = [problem for problem in progress(done, total=len(work), desc="cutting", unit="parts") if problem]
    if problems:
        raise UserError(
            f"{len(problems)} of {len(work)} parts have failed; the others are kept in {parts}, "
            f"and the same command goes on from there. The first: {problems[0]}"
        )
    reports = [(job.folder, read_json(job.folder / "report.json")) for job in work]
    if not any(report["pieces"] for _, report in reports):
        reasons = ", ".join(sorted({reason for _, report in reports for reason in report["dropped"]}))
        raise UserError(f"no piece of speech is left in {UNLABELLED} ({reasons})")
    return reports


def cut_part(job: PartJob) -> str | None:
    """Writes recordings, cuts and report of a part, unless they are there; what went wrong, or None."""
    files = [(str(source.path), *_signature(source.path)) for source in job.recordings]
    step = Step("cut", job.folder, {"files": files, "cut": to_dict(job.config)}, {})
    try:
        run_step(step, lambda folder: _write_part(job, folder))
    except (UserError, OSError) as error:
        return str(error)
    return None


def _signature(path: Path) -> tuple[int, int, int, int]:
    """Size and time of change of a recording and of its JSON."""
    known = path.with_suffix(".json")
    stats = [path.stat(), *([known.stat()] if known.is_file() else [])]
    numbers = [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]
    return (*numbers, 0, 0)[:4]  # type: ignore[return-value]


def _write_part(job: PartJob, folder: Path) -> None:
    from lhotse import CutSet, RecordingSet

    report: dict[str, Any] = {"recordings": 0, "recorded_seconds": 0.0, "pieces": 0, "seconds": 0.0, "resampled": 0}
    report |= {PUBLISHED: 0, ENERGY: 0, WHOLE: 0}
    dropped: dict[str, list[str]] = {}
    speakers: set[str] = set()
    with (
        RecordingSet.open_writer(folder / "recordings.jsonl.gz") as recordings,
        CutSet.open_writer(folder / "cuts.jsonl.gz") as cuts,
    ):
        for source in job.recordings:
            result = cut_recording(source, job.config)
            if result.problem is not None:
                dropped.setdefault(result.problem, []).append(source.id)
                continue
            speakers.add(result.speaker)
            recordings.write(result.recording())
            for cut in result.cuts():
                cuts.write(cut)
            report["recordings"] += 1
            report["recorded_seconds"] += result.check.samples / result.check.sampling_rate_hz
            report["pieces"] += len(result.pieces)
            report["seconds"] += sum(end - start for start, end in result.pieces)
            report["resampled"] += result.check.sampling_rate_hz != SAMPLING_RATE_HZ
            report[result.found_by] += 1
    write_json(folder / "report.json", report | {"speakers": sorted(speakers), "dropped": dropped})


def _expand(corpus: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Subset folders, relative to the corpus, of the names that a user gives."""
    folders: list[str] = []
    for name in names:
        if name in LIMITED and not (corpus / name).is_dir():
            folders += LIMITED[name]
        else:
            places = [name, *(f"{folder}/{name}" for folder in BESIDE)]
            folders.append(next((place for place in places if (corpus / place).is_dir()), name))
    return tuple(folders)


def _summarise(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    totals = {
        name: sum(report[name] for report in reports) for name in reports[0] if name not in ("speakers", "dropped")
    }
    dropped: dict[str, list[str]] = {}
    for report in reports:
        for reason, ids in report["dropped"].items():
            dropped.setdefault(reason, []).extend(ids)
    logger.info(
        "%s: %d recordings of %.2f h, %d cut by published segments, %d by energy, %d in one piece; %d pieces of %.2f h",
        UNLABELLED,
        totals["recordings"],
        totals["recorded_seconds"] / 3600,
        totals[PUBLISHED],
        totals[ENERGY],
        totals[WHOLE],
        totals["pieces"],
        totals["seconds"] / 3600,
    )
    return {
        "subsets": [],
        "utterances": totals["pieces"],
        "hours": round(totals["seconds"] / 3600, 4),
        "speakers": len({speaker for report in reports for speaker in report["speakers"]}),
        "words": 0,
        "distinct_words": 0,
        "resampled": totals["resampled"],
        "clipped": [],
        "recordings": totals["recordings"],
        "recorded_hours": round(totals["recorded_seconds"] / 3600, 4),
        "cut_by": {name: totals[name] for name in (PUBLISHED, ENERGY, WHOLE)},
        "dropped": {reason: sorted(ids) for reason, ids in sorted(dropped.items())},
    }


def find_shared(unlabelled: set[str], labelled: Sequence[Split]) -> list[str]:
    """A line for each of dev and test that shares speakers with the unlabelled recordings."""
    shared = {
        split.name: sorted(unlabelled & {str(said.speaker) for said in split.supervisions})
        for split in labelled
        if split.name != "train"
    }
    return [
        f"{len(ids)} speakers are in both {name} and {UNLABELLED}: {', '.join(ids[:SHOWN_IDS])}"
        for name, ids in shared.items()
        if ids
    ]
