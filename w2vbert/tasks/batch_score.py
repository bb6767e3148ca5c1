"""Recognition of many recordings in parts, here or on a cluster, and its score; it goes on where it was ended."""

import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from w2vbert.config import save_config
from w2vbert.data.audio import find_audio
from w2vbert.data.audio_files import SAMPLING_RATE_HZ
from w2vbert.decoding.scoring import score_pairs, write_scores
from w2vbert.errors import UserError
from w2vbert.files import atomic_file, lock_folder, read_json, real_path, remove_tree, write_json
from w2vbert.log import logger, progress
from w2vbert.machine import usable_cores
from w2vbert.stages import Step, run_step
from w2vbert.tasks.audio_sources import FOREIGN_SUFFIXES, LISTED_SUFFIXES
from w2vbert.tasks.decode import DecodeConfig
from w2vbert.tasks.fusion import LanguageModels
from w2vbert.tasks.merge import check_once, read_part, write_lines
from w2vbert.tasks.parts import LocalQueue, Queue, Work, run_parts
from w2vbert.tasks.results import write_result
from w2vbert.tasks.shards import Shard, shard_of, shard_path
from w2vbert.tasks.slurm import Resources, SlurmQueue
from w2vbert.tasks.text_files import read_lines
from w2vbert.training.checkpoint import read_model_card

NAME = "batch-score"
PLAN = "plan.json"  # how many parts there are; written last, so that where it is all else of the plan is


@dataclass(frozen=True)
class Place:
    """Where parts run.

    Attributes:
        cmd: `local`: processes of this machine; `slurm`: an array of jobs.
        jobs: parts to split into.
        resources: what each job asks for.
    """

    cmd: str
    jobs: int
    resources: Resources

    def __post_init__(self) -> None:
        if self.cmd not in ("local", "slurm"):
            raise UserError(f"--cmd {self.cmd}: choose local or slurm")


@dataclass(frozen=True)
class Utterance:
    """A recording, or a stretch of one.

    Attributes:
        id: of the cut.
        seconds: duration.
        cut: its line in a manifest of cuts.
        text: what was said, if the manifest tells.
        speaker: who said it, if the manifest tells.
    """

    id: str
    seconds: float
    cut: str
    text: str | None
    speaker: str | None


def batch_score(
    model: Path,
    manifest: Path,
    out: Path,
    lms: LanguageModels,
    config: DecodeConfig,
    place: Place,
    force: bool = False,
) -> None:
    """Recognises all recordings of a manifest in parts, joins the texts and scores them where it has references.

    `out` gets `hyps.jsonl`, a line for each cut in the order of the manifest, the logs of the parts, and, with
    references, what `decode --data` leaves. Until it is whole the parts lie in `OUT.parts-HASH` beside it: the same
    call goes on with what is missing there, and with the jobs of an earlier one that are still in the queue.

    Args:
        model: folder of a recogniser.
        manifest: cuts (`.jsonl.gz`) or a folder of audio.
        out: folder to write.
        lms: language models of the search.
        config: of decoding.
        place: where the parts run, and how many there are; when a call goes on, those of the first one.
        force: do it again.

    Raises:
        UserError: an input is not fit for it, there is no Slurm, or a part cannot succeed.
    """
    step = Step(NAME, out, {"decode": config}, {"model": model, "manifest": manifest} | lms.inputs())
    if not force and step.is_done():
        return
    step.check_out()
    history = read_model_card(model, "transducer")["history"]
    final = real_path(out)
    folder = final.with_name(f"{final.name}.parts-{step.fingerprint[:8]}")
    folder.mkdir(parents=True, exist_ok=True)
    hold = lock_folder(folder, out)
    if force:
        (folder / PLAN).unlink(missing_ok=True)
    utterances = read_utterances(manifest)
    shards = make_plan(folder, utterances, config, place.jobs)
    run_plan(folder, utterances, shards, place, _make_command(folder, model, lms, len(shards)))

    def work(target: Path) -> None:
        lines = collect(folder, utterances, shards)
        write_lines(target / "hyps.jsonl", iter(lines))
        save_config(config, target / "config.yaml")
        shutil.copytree(folder / "log", target / "log")
        name = manifest.name.removesuffix(".gz").removesuffix(".jsonl").removeprefix("cuts_")
        write_result(target, model, lms, _score(target, name, utterances, lines, config), history)

    run_step(step, work, force=True)
    os.close(hold)
    remove_tree(folder)


def read_utterances(manifest: Path) -> list[Utterance]:
    """The recordings of a manifest of cuts, or of a folder of audio, in order.

    Raises:
        UserError: it is neither, is empty or damaged, or an id stands twice.
    """
    found = list(_read_folder(manifest) if manifest.is_dir() else _read_manifest(manifest))
    if not found:
        raise UserError(f"{manifest} holds no recording")
    check_once([(manifest, utterance.id) for utterance in found])
    return found


def make_plan(folder: Path, utterances: Sequence[Utterance], config: DecodeConfig, jobs: int) -> list[Shard]:
    """Splits recordings into parts of about the same duration, or finds the plan of an earlier call.

    The parts of a list that is sorted by duration, every n-th each, differ by less than its longest recording.
    """
    if (folder / PLAN).is_file():
        count = read_json(folder / PLAN)["parts"]
        if count != jobs:
            logger.info(f"{NAME}: goes on with the {count} parts of an earlier call")
        return [Shard(index, count) for index in range(1, count + 1)]
    count = min(jobs, len(utterances))
    shards = [Shard(index, count) for index in range(1, count + 1)]
    for path in folder.glob("hyps.*"):
        path.unlink()
    for shard, own in _split(utterances, shards).items():
        with atomic_file(_cuts_file(folder, shard)) as aside, gzip.open(aside, "wt", encoding="utf-8") as file:
            file.writelines(utterance.cut + "\n" for utterance in own)
    save_config(config, folder / "config.yaml")
    write_json(folder / PLAN, {"parts": count, "utterances": len(utterances)})
    return shards


def run_plan(
    folder: Path, utterances: Sequence[Utterance], shards: Sequence[Shard], place: Place, command: tuple[str, ...]
) -> None:
    """Runs the parts that are not finished yet, under one progress bar of utterances."""
    ids = {s.index: [utterance.id for utterance in own] for s, own in _split(utterances, shards).items()}
    left = [shard for shard in shards if not is_whole(_hyps_file(folder, shard), ids[shard.index])]
    initial = len(utterances) - sum(len(ids[shard.index]) for shard in left)
    if not left:
        return
    queue = _make_queue(Work(NAME, command, folder / "log", len(shards)), place, len(left))
    queue.work.folder.mkdir(exist_ok=True)
    with progress(total=len(utterances), desc=NAME, unit="utterances", initial=initial) as bar:

        def done(part: int) -> bool:
            if not is_whole(_hyps_file(folder, shards[part - 1]), ids[part]):
                return False
            bar.update(len(ids[part]))
            return True

        run_parts(queue, [shard.index for shard in left], done)


def _make_queue(work: Work, place: Place, left: int) -> Queue:
    """Where `left` parts run; those that run at once on this machine share out its cores."""
    if place.cmd == "slurm":
        return SlurmQueue(work, place.resources)
    at_once = 1 if place.resources.gpus else min(left, usable_cores())
    if at_once > 1 and "OMP_NUM_THREADS" not in os.environ:
        work = replace(work, command=("env", f"OMP_NUM_THREADS={usable_cores() // at_once}", *work.command))
    return LocalQueue(work, at_once)


def is_whole(hyps: Path, ids: Sequence[str]) -> bool:
    """Whether a part has written each of its ids once."""
    return hyps.is_file() and sorted(line["id"] for line in read_part(hyps)) == sorted(ids)


def collect(folder: Path, utterances: Sequence[Utterance], shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """The lines of all parts, one for each utterance, in the order of the utterances."""
    found = {line["id"]: line for shard in shards for line in read_part(_hyps_file(folder, shard))}
    assert found.keys() == {utterance.id for utterance in utterances}
    return [found[utterance.id] for utterance in utterances]


def _score(
    folder: Path, name: str, utterances: Sequence[Utterance], lines: Sequence[Mapping[str, Any]], config: DecodeConfig
) -> dict[str, Any]:
    """Scores of those with references, by name of the set; none without any."""
    failed = sum(line["text"] is None for line in lines)
    if failed:
        logger.warning(f"{NAME}: {failed} of {len(lines)} recordings could not be decoded")
    spoken = [utterance for utterance in utterances if utterance.text is not None]
    if not any(utterance.text for utterance in spoken):
        logger.info(f"{NAME}: {len(lines)} recordings, no references to score against")
        return {}
    if len(spoken) < len(utterances):
        logger.warning(f"{NAME}: {len(spoken)} of {len(utterances)} recordings have references, only these are scored")
    hyps = {line["id"]: line["text"] or "" for line in lines}
    speakers = {utterance.id: utterance.speaker for utterance in spoken if utterance.speaker is not None}
    result = score_pairs(
        {utterance.id: utterance.text or "" for utterance in spoken},
        {utterance.id: hyps[utterance.id] for utterance in spoken},
        speakers if len(speakers) == len(spoken) else None,
    )
    write_scores(folder, name, result, config.search.method)
    logger.info(f"{name}: {result.summary()}")
    return {name: result.to_dict()}


def _read_manifest(manifest: Path) -> Iterator[Utterance]:
    for number, line in read_lines(manifest):
        try:
            cut = json.loads(line)
            spoken = cut.get("supervisions") or []
            texts = [s["text"] for s in spoken if s.get("text") is not None]
            cut["recording"]["sources"]  # noqa: B018  (a cut without recording, or no cut)
            yield Utterance(
                str(cut["id"]),
                float(cut["duration"]),
                line,
                " ".join(texts) if texts else None,
                spoken[0].get("speaker") if spoken else None,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{manifest}:{number}: no cut with a recording (see lhotse, MonoCut)") from error


def _read_folder(folder: Path) -> Iterator[Utterance]:
    """Cuts of the audio files under a folder, by the durations that their headers tell."""
    import soundfile
    from lhotse import AudioSource, Recording

    for path in find_audio([folder], LISTED_SUFFIXES):
        if path.suffix.lower() in FOREIGN_SUFFIXES:
            raise UserError(f"{path} cannot be read: convert it to FLAC or WAV, or take it out of the folder")
        try:
            info = soundfile.info(path)
            channels, rate_hz, samples = info.channels, info.samplerate, info.frames
        except (soundfile.SoundFileError, OSError, TypeError):
            samples = 0
        if samples == 0:  # the part that decodes it says why
            logger.warning(f"{path} cannot be read or holds no samples: its text will be null")
            channels, rate_hz, samples = 1, SAMPLING_RATE_HZ, SAMPLING_RATE_HZ
        source = AudioSource("file", list(range(channels)), str(path.absolute()))
        cut = Recording(str(path), [source], rate_hz, samples, samples / rate_hz).to_cut()
        yield Utterance(str(path), cut.duration, json.dumps(cut.to_dict() | {"id": str(path)}), None, None)


def _split(utterances: Sequence[Utterance], shards: Sequence[Shard]) -> dict[Shard, list[Utterance]]:
    ordered = sorted(utterances, key=lambda utterance: (-utterance.seconds, utterance.id))
    return {shard: list(shard_of(ordered, shard)) for shard in shards}


def _cuts_file(folder: Path, shard: Shard) -> Path:
    return folder / f"cuts.{shard}.jsonl.gz"


def _hyps_file(folder: Path, shard: Shard) -> Path:
    return shard_path(folder / "hyps.jsonl", shard)


def _make_command(folder: Path, model: Path, lms: LanguageModels, count: int) -> tuple[str, ...]:
    command = [sys.executable, "-m", "w2vbert", "decode", "--model", str(model.absolute())]
    command += [f"{folder}/cuts.{{part}}-of-{count}.jsonl.gz", "-o", f"{folder}/hyps.{{part}}-of-{count}.jsonl"]
    command += ["--config", str(folder / "config.yaml")]
    for lm in lms.folders:
        command += ["--lm", str(lm.absolute())]
    return tuple(command if lms.lodr is None else [*command, "--lodr", str(lms.lodr.absolute())])
