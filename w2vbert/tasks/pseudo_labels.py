"""Pseudo-labels for self-training (noisy student: Xie et al. 2020; Park et al. 2020, arXiv 2005.09629)."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from w2vbert.config import load_config, save_config
from w2vbert.data.batches import FRAMES_PER_SECOND
from w2vbert.data.datasets import SpeechDataset, check_manifest
from w2vbert.data.manifest_files import read_cuts
from w2vbert.decoding.scoring import WerResult, score_pairs
from w2vbert.decoding.search import SearchConfig
from w2vbert.errors import Unfinished, UserError
from w2vbert.files import atomic_dir, write_json
from w2vbert.log import logger
from w2vbert.stages import Step
from w2vbert.tasks.fusion import FusionConfig, LanguageModels, load_scorers
from w2vbert.tasks.label_curve import draw_filter, measure_filter
from w2vbert.tasks.label_filter import UNLIKE_DEV, Bounds, FilterConfig, Filtered, filter_labels, find_bounds
from w2vbert.tasks.labels import (
    LABELS_FILE,
    Label,
    Teacher,
    group_utterances,
    label_groups,
    read_label_file,
    write_label_file,
)
from w2vbert.tasks.recognize import check_features, load_transducer
from w2vbert.tasks.references import find_references
from w2vbert.tasks.shards import Shard, shard_of
from w2vbert.training.checkpoint import read_model_card
from w2vbert.training.distributed import World, join_world
from w2vbert.training.interruption import Interrupted, StopRequest

REPORT_FILE = "report.json"
CUTS_FILE = "cuts_pseudo.jsonl.gz"

Known = Mapping[str, Mapping[str, Label]]
"""Labels by split and id."""

NOTHING: Known = MappingProxyType({})


@dataclass(frozen=True)
class PseudoLabelConfig(FilterConfig):
    """What the teacher does; which of its labels are kept, the keys of `FilterConfig` say.

    Attributes:
        search: the teacher's search.
        fusion: weights of the language models.
        batch_seconds: most audio in a batch, padding counted.
        max_seconds: longer utterances are left out.
    """

    search: SearchConfig = field(default_factory=lambda: SearchConfig(method="beam"))
    fusion: FusionConfig = field(default_factory=FusionConfig)
    batch_seconds: float = 120.0
    max_seconds: float = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_seconds < 0.5 or self.max_seconds <= 0.0:
            raise ValueError("batch_seconds must be at least 0.5 and max_seconds above 0")


@dataclass(frozen=True)
class Labelling:
    """A teacher's work on a data set.

    Attributes:
        data: folder of features.
        model: the teacher's folder.
        lms: language models of its search.
        config: search and filter.
    """

    data: Path
    model: Path
    lms: LanguageModels
    config: PseudoLabelConfig

    def inputs(self) -> dict[str, Path | None]:
        """For the stamp of a step."""
        return {"data": self.data, "model": self.model} | self.lms.inputs()

    def load(self) -> Teacher:
        """The teacher.

        Raises:
            UserError: model, language models or data are not fit for one another.
        """
        check_manifest(self.data / "cuts_unlabelled.jsonl.gz")
        for split, key in (("train", "rate_quantile"), ("dev", "dev_quantile")):
            if getattr(self.config, key) and not (self.data / f"cuts_{split}.jsonl.gz").is_file():
                raise UserError(f"{self.data} has no {split} split to compare labels with: add one, or --set {key}=0")
        transducer, tokenizer = load_transducer(self.model)
        search = self.config.search
        scorers = load_scorers(self.lms.folders, self.lms.lodr, self.config.fusion, search, tokenizer, transducer)
        check_features(self.model, self.data)
        return Teacher(transducer, tokenizer, search, scorers)

    def open(self, split: str) -> SpeechDataset:
        """The utterances of a split."""
        return SpeechDataset([self.data / f"cuts_{split}.jsonl.gz"], self.config.max_seconds)

    @property
    def splits(self) -> list[str]:
        """Those that the teacher labels: dev if labels are compared with its."""
        return ["dev", "unlabelled"] if self.config.dev_quantile else ["unlabelled"]

    def label(
        self, teacher: Teacher, split: str, world: World, shard: Shard | None = None, known: Known = NOTHING
    ) -> list[Label]:
        """The teacher's labels of a split, in its order.

        Args:
            teacher: loaded.
            split: its name.
            world: processes that share the work.
            shard: which of the batches; None: all.
            known: labels that are there already, by split and id.
        """
        dataset = self.open(split)
        groups = group_utterances(dataset, self.config.batch_seconds)
        labels = dict(known.get(split, {}))
        if labels:
            logger.info(f"{len(labels)} of {len(dataset)} utterances of {split} have been labelled in parts")
        own = shard_of(groups, shard) if shard is not None else groups
        left = [group for group in own if not all(dataset.ids[index] in labels for index in group)]
        labels |= label_groups(teacher, dataset, left, world, split)
        return [labels[id] for id in dataset.ids if id in labels]

    def score_dev(self, labels: Sequence[Label]) -> WerResult:
        """WER of labels of the dev split.

        Raises:
            UserError: it has no transcripts.
        """
        dev = self.open("dev")
        if not any(dev.texts):
            raise UserError(f"{self.data}/cuts_dev.jsonl.gz has no transcripts: labels are compared with those of dev")
        texts = {label.id: label.text for label in labels}
        return score_pairs(
            dict(zip(dev.ids, dev.texts, strict=True)), texts, dict(zip(dev.ids, dev.speakers, strict=True))
        )


def pseudo_label(
    data: Path,
    out: Path,
    model: Path,
    lms: LanguageModels,
    config_path: Path | None,
    overrides: Sequence[str],
    force: bool,
    shard: Shard | None = None,
) -> None:
    """Labels the unlabelled split of `data` and drops the doubtful; see `write_labels` for what it leaves.

    Args:
        shard: label these batches only, into `OUT.parts`, for a call without it that labels the rest and filters.

    Raises:
        UserError: model, language model, data or config are not fit for it, or no label is left.
    """
    config = load_config(PseudoLabelConfig, config_path, overrides)
    labelling = Labelling(data, model, lms, config)
    step = Step("pseudo-label", out, config, labelling.inputs())

    def work(world: World) -> Callable[[Path], None]:
        teacher = labelling.load()
        rates = find_rates(labelling, teacher)
        known = read_parts(step)
        found = {split: labelling.label(teacher, split, world, known=known) for split in labelling.splits}
        labels = found["unlabelled"]

        def write(folder: Path) -> None:
            filtered = write_labels(labelling, labels, found.get("dev", []), rates, folder)
            if not filtered.kept:
                counts = filtered.report(labels)["dropped"]
                raise UserError(f"{model} labelled none of {len(labels)} utterances well enough: {counts}")

        return write

    if shard is not None:
        label_part(labelling, step, shard, force)
        return
    with step.keeping_parts():
        run_together(step, work, force, StopRequest(None))


def label_part(labelling: Labelling, whole: Step, shard: Shard, force: bool) -> None:
    """Labels every n-th batch of each split into a folder of `whole.parts`, unless `whole` is done."""
    if not force and whole.is_done():
        return
    whole.check_out()

    def work(world: World) -> Callable[[Path], None]:
        teacher = labelling.load()
        found = {split: labelling.label(teacher, split, world, shard) for split in labelling.splits}

        def write(folder: Path) -> None:
            for split, labels in found.items():
                write_label_file(folder / f"{split}.jsonl", labels)

        return write

    run_together(whole.part(str(shard)), work, force, StopRequest(None))


def read_parts(whole: Step) -> Known:
    """What `label_part` has left; parts that are damaged or were made with other settings do not count."""
    found: dict[str, dict[str, Label]] = {}
    for folder in sorted(whole.parts.glob("*-of-*")):
        if not whole.part(folder.name).is_whole():
            logger.warning(f"{folder} is damaged, or was made with other settings or inputs: it is not used")
            continue
        for file in sorted(folder.glob("*.jsonl")):
            found.setdefault(file.stem, {}).update((label.id, label) for label in read_label_file(file))
    return found


def run_together(step: Step, work: Callable[[World], Callable[[Path], None]], force: bool, stop: StopRequest) -> None:
    """A step whose work several processes share and whose folder the first of them writes; nothing if it is done.

    Args:
        step: the step.
        work: what all do; returns what fills the folder, which the first one calls.
        force: do it again even if it is done.
        stop: signals, which end the work, and a time limit, which is asked for before it begins.

    Raises:
        Unfinished: told to stop; nothing of this step is kept.
        UserError: the same, but by SIGUSR1, which comes before a job's time is over: a second start would end alike.
    """
    world = join_world()
    (done,) = world.from_first([world.is_first and not force and step.is_done()])
    if done:
        return
    if world.is_first:
        step.check_out()
    (told,) = world.sum([stop.is_set()])
    if told:
        raise Unfinished(f"{step.out}: {step.name} is not begun ({stop.reason}): start it again to go on")
    with _ending_in_one_line(step, stop):
        write = work(world)
        if world.is_first:
            with atomic_dir(step.out) as folder:
                write(folder)
                step.finish(folder)
    world.wait()


@contextmanager
def _ending_in_one_line(step: Step, stop: StopRequest) -> Iterator[None]:
    try:
        with stop, stop.breaking_off(f"{step.name} {step.out}"):
            yield
    except Interrupted as error:
        if stop.reason.startswith(signal.SIGUSR1.name):  # the time of a job is over, and would be again
            raise UserError(
                f"{step.out}: {step.name} stopped ({error}), and nothing of it is kept: give it more time, or label in "
                f"parts first (w2vbert pseudo-label --shard I/N)"
            ) from error
        raise Unfinished(f"{step.out}: {step.name} stopped ({error}): start it again, and it begins anew") from error


def find_rates(labelling: Labelling, teacher: Teacher) -> list[float]:
    """Pieces a second of each transcript of the train split; [] where the config does not ask for them.

    Raises:
        UserError: it has no transcripts.
    """
    if not labelling.config.rate_quantile:
        return []
    train = labelling.open("train")
    spoken = zip(train.texts, train.frames, strict=True)
    encode = teacher.tokenizer.encode
    rates = [len(encode(text)) / (frames / FRAMES_PER_SECOND) for text, frames in spoken if text]
    if not rates:
        raise UserError(f"the train split of {labelling.data} has no transcripts: --set rate_quantile=0")
    return rates


def write_labels(
    labelling: Labelling, labels: Sequence[Label], dev: Sequence[Label], rates: Sequence[float], folder: Path
) -> Filtered:
    """Filters labels and writes what a student and a person need.

    `cuts_pseudo.jsonl.gz` holds the cuts with the labels that are kept, unless there are none, `labels.jsonl` all
    labels with their figures and why they are dropped, `report.json` counts, bounds and `measure_filter`'s numbers
    for dev and, where its transcripts are known, the unlabelled speech; `filter.png` shows these.

    Args:
        labelling: where all this comes from.
        labels: of the unlabelled split.
        dev: of the dev split; may be empty if the config does not compare with it.
        rates: see `find_rates`.
        folder: where to write.
    """
    config = labelling.config
    bounds = find_bounds(config, rates, dev)
    filtered = filter_labels(labels, bounds, config)
    kept = {label.id: label for label in filtered.kept}
    manifest = labelling.data / "cuts_unlabelled.jsonl.gz"
    measured = _measure(labelling, labels, dev, bounds, set(kept))
    if kept:
        _write_cuts(folder / CUTS_FILE, manifest, kept)
    if measured:
        draw_filter(measured, folder / "filter.png")
    write_label_file(folder / LABELS_FILE, labels, filtered.dropped)
    save_config(config, folder / "config.yaml")
    history = read_model_card(labelling.model, "transducer")["history"]
    report = filtered.report(labels) | {"bounds": bounds, "measured": measured, "history": history}
    write_json(folder / REPORT_FILE, report)
    _log(filtered, labels, measured, config)
    return filtered


def _measure(
    labelling: Labelling, labels: Sequence[Label], dev: Sequence[Label], bounds: Bounds, kept: set[str]
) -> dict[str, dict[str, Any]]:
    """Numbers for each set whose transcripts are known."""
    measured = {}
    if dev:
        spoken = labelling.open("dev")
        alone = replace(labelling.config, min_passing_share=0.0, keep_share=1.0)
        good = {label.id for label in filter_labels(dev, bounds, alone).kept}
        measured["dev"] = measure_filter(dev, dict(zip(spoken.ids, spoken.texts, strict=True)), good)
    references = find_references(labelling.data / "cuts_unlabelled.jsonl.gz")
    if any(label.id in references for label in labels):
        measured["unlabelled"] = measure_filter(labels, references, kept)
    return measured


def _log(
    filtered: Filtered, labels: Sequence[Label], measured: Mapping[str, Mapping[str, Any]], config: FilterConfig
) -> None:
    report = filtered.report(labels)
    if UNLIKE_DEV in filtered.dropped.values() or (not filtered.kept and filtered.passing_share is not None):
        share = f"{100 * (filtered.passing_share or 0.0):.1f} % of the unlabelled audio"
        logger.warning(
            f"{share} has labels as good as those of dev (at least {100 * config.min_passing_share:g} % are needed): "
            "it is speech of another kind than the teacher knows, and nothing of it is kept"
        )
        return
    hours = f"{report['kept_hours']:.2f} of {report['labelled_hours']:.2f} h"
    logger.info(f"kept {report['kept']} of {report['labelled']} labels, {hours}; dropped {report['dropped']}")
    wer = measured.get("unlabelled", {})
    if wer.get("kept_wer") is not None:
        logger.info(f"by its transcripts: WER {wer['wer']:.1f} % of all labels, {wer['kept_wer']:.1f} % of those kept")


def _write_cuts(target: Path, source: Path, labels: Mapping[str, Label]) -> None:
    from lhotse import CutSet, SupervisionSegment

    labelled = []
    for cut in read_cuts(source):
        if cut.id in labels:
            bare = SupervisionSegment(cut.id, cut.recording_id, start=0.0, duration=cut.duration)
            supervision = replace(cut.supervisions[0] if cut.supervisions else bare, text=labels[cut.id].text)
            labelled.append(replace(cut, supervisions=[supervision]))
    CutSet.from_cuts(labelled).to_file(target)
