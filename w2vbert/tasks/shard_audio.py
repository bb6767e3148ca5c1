"""Shards of audio from the manifests of a corpus: a folder of data that trainings read in order."""

import gzip
import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from w2vbert.config import save_config, to_dict
from w2vbert.data.corpora import SPLITS
from w2vbert.data.datasets import shards_file
from w2vbert.data.features import FEATURES_FILE, FeatureConfig
from w2vbert.data.parallel import map_in_processes
from w2vbert.data.shards import ShardConfig, ShardJob, assign_shards, write_shard
from w2vbert.errors import UserError
from w2vbert.files import check_space, real_path, write_json
from w2vbert.log import logger, progress
from w2vbert.stages import Step, run_step
from w2vbert.tasks.manifests import cuts_file

AUDIO = "audio"
BYTES_PER_SECOND = 20_000
"""Of FLAC at 16 kHz: 18 000 over LibriSpeech."""


@dataclass(frozen=True)
class _Lines:
    """Cuts of a manifest as lines of a plain file: where each begins, and how long its audio is."""

    file: Path
    offsets: list[int]
    seconds: list[float]


def shard_audio(manifests: Path, out: Path, config: ShardConfig, jobs: int = 1, force: bool = False) -> bool:
    """Write the audio of all splits in `manifests` into shards; False if up to date.

    `out` is a folder for trainings like that of `features`: `cuts_{split}.jsonl.gz`, `features.yaml`, and the shards
    under `audio/{split}/`, in Lhotse's Shar layout. Cuts are read line by line, whatever their number.

    Raises:
        UserError: there are no manifests, their audio cannot be read, or the disk is too small.
    """
    splits = [split for split in SPLITS if cuts_file(manifests, split).is_file()]
    if not splits:
        raise UserError(f"{manifests} has no cuts_*.jsonl.gz: give the folder that `w2vbert prepare` wrote")
    final = real_path(out)
    step = Step("shards", out, {"shards": to_dict(config), "out": str(final)}, {"manifests": manifests})

    def work(folder: Path) -> None:
        save_config(_filterbanks(config), folder / FEATURES_FILE)
        for split in splits:
            lines = _read_lines(cuts_file(manifests, split), folder / f"{split}.lines")
            check_space(out, sum(lines.seconds) * BYTES_PER_SECOND)
            _write_split(split, lines, folder, final, config, jobs)
            lines.file.unlink()

    return run_step(step, work, force)


def _filterbanks(config: ShardConfig) -> FeatureConfig:
    return FeatureConfig(**{field.name: getattr(config, field.name) for field in fields(FeatureConfig)})


def _read_lines(manifest: Path, plain: Path) -> _Lines:
    """Unpacks a manifest.

    Raises:
        UserError: it is damaged, or empty.
    """
    lines = _Lines(plain, [], [])
    try:
        with gzip.open(manifest, "rb") as source, plain.open("wb") as target:
            for line in source:
                lines.offsets.append(target.tell())
                lines.seconds.append(json.loads(line)["duration"])
                target.write(line)
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise UserError(f"{manifest} is damaged ({error}): prepare the corpus again") from error
    if not lines.offsets:
        raise UserError(f"{manifest} is empty: prepare the corpus again")
    return lines


def _write_split(split: str, lines: _Lines, folder: Path, final: Path, config: ShardConfig, jobs: int) -> None:
    """Writes the shards of a split, and its manifest: those of its shards one after the other."""
    shards = assign_shards(lines.seconds, config.hours, config.seed)
    target = folder / AUDIO / split
    target.mkdir(parents=True)
    place = f"{config.location.rstrip('/')}/{split}" if config.location else str(final / AUDIO / split)
    config_file, filterbanks = final / FEATURES_FILE, _filterbanks(config)

    def jobs_of_split() -> Iterator[ShardJob]:
        for number, members in enumerate(shards):
            name = f"{number:06d}"
            offsets = tuple(lines.offsets[i] for i in members)
            tar = f"{place}/recording.{name}.tar"
            yield ShardJob(lines.file, offsets, target, name, filterbanks, config_file, tar)

    counts = []
    with progress(total=len(lines.offsets), desc=f"shards of {split}", unit="utterances") as bar:
        for count in map_in_processes(write_shard, list(jobs_of_split()), jobs):
            counts.append(count)
            bar.update(count)
    with cuts_file(folder, split).open("wb") as manifest:  # gzip files behind one another are a gzip file
        for number in range(len(counts)):
            with (target / f"cuts.{number:06d}.jsonl.gz").open("rb") as part:
                shutil.copyfileobj(part, manifest)
    write_json(shards_file(cuts_file(folder, split)), counts)
    logger.info(f"{split}: {len(counts)} shards, {sum(lines.seconds) / 3600:.1f} h")
