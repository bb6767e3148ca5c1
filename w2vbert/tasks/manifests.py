"""What stage 1 leaves: Lhotse manifests of the splits, and a report on what is in them and what was dropped."""

import gzip
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from w2vbert.data.corpora import UNLABELLED, Split, shared_speakers, shared_utterances
from w2vbert.files import write_json
from w2vbert.log import logger

SHOWN_IDS = 20  # of each reason in report.txt; report.json has them all


def cuts_file(folder: Path, split: str) -> Path:
    """The manifest of a split's cuts."""
    return folder / f"cuts_{split}.jsonl.gz"


def write_split(split: Split, folder: Path) -> None:
    """Writes `{recordings,supervisions,cuts}_{split}.jsonl.gz`."""
    from lhotse import CutSet, RecordingSet, SupervisionSet

    RecordingSet.from_recordings(split.recordings).to_file(folder / f"recordings_{split.name}.jsonl.gz")
    SupervisionSet.from_segments(split.supervisions).to_file(folder / f"supervisions_{split.name}.jsonl.gz")
    CutSet.from_cuts(split.cuts()).to_file(cuts_file(folder, split.name))


def join_manifests(sources: Sequence[Path], target: Path) -> None:
    """One compressed file of several, such as parts have left: gzip reads them as one. Sources may be missing."""
    with target.open("wb") as joined:
        for source in sources:
            if source.is_file():  # a part without any usable recording has written nothing
                with source.open("rb") as part:
                    shutil.copyfileobj(part, joined)
        if not joined.tell():
            joined.write(gzip.compress(b""))


def write_report(folder: Path, corpus: Path, summary: Mapping[str, Mapping[str, Any]], warnings: Sequence[str]) -> None:
    """Writes `report.json` and `report.txt`, and logs table and warnings.

    Args:
        summary: of each split, as `summarise` gives it.
        warnings: one line each.
    """
    write_json(folder / "report.json", {"corpus": str(corpus), "splits": summary, "warnings": warnings})
    table = _format_table(summary)
    report = "\n".join([*table, "", *_format_dropped(summary), *warnings]) + "\n"
    (folder / "report.txt").write_text(report, encoding="utf-8", errors="backslashreplace")  # ids are file names
    for line in table:
        logger.info("%s", line)
    for warning in warnings:
        logger.warning("%s", warning)


def find_warnings(splits: Sequence[Split]) -> list[str]:
    """What makes scores doubtful, or words differ that are the same; one line each."""
    shared = {"speakers": shared_speakers(splits), "utterances": shared_utterances(splits)}
    warnings = [
        f"{len(ids)} {kind} are in both {a} and {b}: {', '.join(ids[:SHOWN_IDS])}"
        for kind, pairs in shared.items()
        for a, b, ids in pairs
    ]
    texts = [s.text for split in splits for s in split.supervisions if s.text]
    small = sum(text != text.upper() for text in texts)
    if small and any(text != text.lower() for text in texts):
        warnings.append(
            f"{small} of {len(texts)} transcripts have small letters, and there are capitals, too: words are compared "
            "as they stand, so write all in one case"
        )
    return warnings


def summarise(split: Split, subsets: Sequence[str]) -> dict[str, Any]:
    """What is in a split that was made of `subsets`, and what was left out."""
    words = [word for s in split.supervisions for word in (s.text or "").split()]
    row = {
        "subsets": list(subsets),
        "utterances": len(split.recordings),
        "hours": round(sum(s.duration for s in split.supervisions) / 3600, 4),
        "speakers": len({s.speaker for s in split.supervisions}),
        "words": len(words),
        "distinct_words": len(set(words)),
        "resampled": len(split.resampled),
        "clipped": sorted(split.clipped),
        "dropped": {reason: sorted(ids) for reason, ids in sorted(split.dropped.items())},
    }
    if split.name == UNLABELLED:
        row["recorded_hours"] = round(sum(recording.duration for recording in split.recordings) / 3600, 4)
    return row


def _format_table(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [f"{'split':<11}{'utterances':>11}{'hours':>8}{'speakers':>9}{'words':>8}{'distinct':>9}  dropped"]
    for name, row in summary.items():
        dropped = ", ".join(f"{len(ids)} {reason}" for reason, ids in row["dropped"].items()) or "0"
        resampled = f" ({row['resampled']} resampled to 16 kHz)" if row["resampled"] else ""
        recorded = f" (of {row['recorded_hours']:.2f} h recorded)" if "recorded_hours" in row else ""
        clipped = f" ({len(row['clipped'])} cut short by the end of their recording)" if row["clipped"] else ""
        lines.append(
            f"{name:<11}{row['utterances']:>11}{row['hours']:>8.2f}{row['speakers']:>9}{row['words']:>8}"
            f"{row['distinct_words']:>9}  {dropped}{resampled}{recorded}{clipped}"
        )
    return lines


def _format_dropped(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, row in summary.items():
        for reason, ids in row["dropped"].items():
            more = f" and {len(ids) - SHOWN_IDS} more (see report.json)" if len(ids) > SHOWN_IDS else ""
            lines.append(f"{name}: {reason}: {', '.join(ids[:SHOWN_IDS])}{more}")
    return lines
