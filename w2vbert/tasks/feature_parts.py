"""Features in parts of some hundred utterances: each appears whole or not at all, and is kept until all are there.

So a part that has failed is done again alone, and several machines can each make some of them.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from w2vbert.data.features import FeatureConfig, StorageJob, plan_files, store_chunk
from w2vbert.data.parallel import map_in_processes
from w2vbert.files import check_space
from w2vbert.log import logger, progress
from w2vbert.stages import Step, run_step
from w2vbert.tasks.manifests import cuts_file, join_manifests

if TYPE_CHECKING:
    from lhotse import MonoCut

CUTS = "cuts.jsonl.gz"
BYTES_PER_VALUE = 1.2  # of stored features: 1.14 over the synthetic corpus of recipes/mini


@dataclass(frozen=True)
class FeaturePart:
    """Utterances of a split whose features go into one file.

    Attributes:
        split: its name.
        job: utterances and file.
        step: makes a folder with that file and the manifest of its cuts.
    """

    split: str
    job: StorageJob
    step: Step

    @property
    def values(self) -> float:
        """How many numbers its features are."""
        config = self.job.config
        return sum(cut.duration for cut in self.job.cuts) / config.frame_shift_seconds * config.num_mel_bins


def plan_parts(
    whole: Step, splits: Mapping[str, Sequence["MonoCut"]], storage: Path, config: FeatureConfig
) -> list[FeaturePart]:
    """The parts of the cuts of all splits; they do not depend on how many processes or machines make them.

    Args:
        whole: the step that they are parts of.
        splits: name -> cuts.
        storage: where the features will lie in the end.
        config: filterbanks.
    """
    jobs = [(split, job) for split, cuts in splits.items() for job in plan_files(split, cuts, storage, config)]
    return [FeaturePart(split, job, whole.part(job.file.stem)) for split, job in jobs]


def make_missing(parts: Sequence[FeaturePart], out: Path, jobs: int) -> None:
    """Makes those parts that are not finished: never begun, broken off, damaged, or made with other settings.

    Args:
        parts: wanted.
        out: folder of the whole, for messages.
        jobs: number of processes.

    Raises:
        UserError: audio cannot be read, or the disk is too small; parts that are finished stay.
    """
    missing = [part for part in parts if not part.step.is_whole()]
    if len(missing) < len(parts):
        logger.info(f"features: {len(parts) - len(missing)} of {len(parts)} parts are there already")
    if not missing:
        return
    check_space(out, sum(part.values for part in missing) * BYTES_PER_VALUE)
    with progress(total=sum(len(part.job.cuts) for part in missing), desc="features", unit="utterances") as bar:
        for count in map_in_processes(make_part, missing, jobs):
            bar.update(count)


def make_part(part: FeaturePart) -> int:
    """Makes a part; returns how many utterances are in it."""

    def work(folder: Path) -> None:
        from lhotse import CutSet

        CutSet.from_cuts(store_chunk(part.job, folder)).to_file(folder / CUTS)

    run_step(part.step, work, force=True)
    return len(part.job.cuts)


def join_parts(parts: Sequence[FeaturePart], folder: Path, storage: Path) -> None:
    """Puts the files of all parts into `storage`, a new folder, and the manifest of each split into `folder`."""
    if parts:
        storage.mkdir()
    for part in parts:
        _link(part.step.out / part.job.file.name, storage / part.job.file.name)
    for split in dict.fromkeys(part.split for part in parts):
        own = [part.step.out / CUTS for part in parts if part.split == split]
        join_manifests(own, cuts_file(folder, split))


def _link(source: Path, target: Path) -> None:
    """A second name for a file: it stays where it is until all is done, and takes no room twice."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
