"""Self-training over generations: a teacher labels, a student learns from its labels and becomes the next teacher.

Noisy student training (Xie et al. 2020; Park et al. 2020, arXiv 2005.09629) as Zhang et al. 2020 (arXiv 2010.10504)
use it: the teacher labels with a language model, each student starts from the pre-trained model.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from w2vbert.config import load_config
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.errors import UserError
from w2vbert.files import PARTIAL, read_json, real_path, write_json
from w2vbert.log import logger, setup_logging
from w2vbert.stages import STAMP, Step
from w2vbert.tasks.encoders import read_encoder_config
from w2vbert.tasks.finetune import SCRATCH, FinetuneConfig, Sources, train_transducer
from w2vbert.tasks.fusion import LanguageModels
from w2vbert.tasks.labels import LABELS_FILE, read_label_file, write_label_file
from w2vbert.tasks.pseudo_labels import (
    REPORT_FILE,
    Labelling,
    PseudoLabelConfig,
    find_rates,
    run_together,
    write_labels,
)
from w2vbert.tasks.recognize import check_features
from w2vbert.training.checkpoint import read_model_card
from w2vbert.training.distributed import World, join_world
from w2vbert.training.interruption import StopRequest

BEST = "best"
"""Link to the folder of the model that is best on dev."""


@dataclass(frozen=True)
class SelfTrainConfig:
    """Self-training.

    Attributes:
        generations: students at most.
        min_gain: a student takes its teacher's place if it lowers the WER on dev by more than this, in percent points.
        labels: the teacher's search, and the filter of its labels.
        student: training of a student.
    """

    generations: int = 3
    min_gain: float = 0.0
    labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    student: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        if self.generations < 1 or self.min_gain < 0.0:
            raise ValueError("generations must be at least 1 and min_gain at least 0")


@dataclass(frozen=True)
class Generation:
    """A model and how good it is.

    Attributes:
        number: 0 for the first teacher.
        model: its folder.
        wer: on dev, with the teacher's search, percent.
        kept_hours: of pseudo-labels that it learned from.
    """

    number: int
    model: Path
    wer: float
    kept_hours: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What came of self-training.

    Attributes:
        best: the last generation that was better than its teacher; the first teacher if none was.
        generations: all of them, in order.
        ending: why there are no more.
    """

    best: Generation
    generations: list[Generation]
    ending: str


def self_train(
    sources: Sources,
    out: Path,
    teacher: Path,
    lms: LanguageModels,
    config_path: Path | None,
    overrides: Sequence[str],
    force: bool,
    max_hours: float | None = None,
) -> None:
    """Trains students until one is no better than its teacher on dev, or `generations` are over.

    `out` gets `gen0/dev` (the teacher's labels of dev), `gen1/labels`, `gen1/model`, `gen1/dev`, and so on; the link
    `best` to the model of the best generation, which is the teacher's own if no student was better; and `report.json`.
    Each of the folders has a stamp: what is finished is not done again.

    Raises:
        UserError: models, data or config are not fit for it.
        Unfinished: `max_hours` are over, or a signal came.
    """
    config = load_config(SelfTrainConfig, config_path, overrides)
    inputs = sources.inputs() | {"model": teacher} | lms.inputs()
    step = Step("self-train", out, config, inputs)
    world = join_world()
    if world.is_first:
        _begin(step)
    _check_sources(sources, teacher)
    outcome = _Generations(config, sources, lms, out, force, max_hours).run(teacher, world)
    if world.is_first:
        _finish(step, outcome)
    world.wait()


class _Generations:
    """The steps of self-training in a folder."""

    def __init__(
        self,
        config: SelfTrainConfig,
        sources: Sources,
        lms: LanguageModels,
        out: Path,
        force: bool,
        max_hours: float | None,
    ) -> None:
        self.config = config
        self.sources = sources
        self.lms = lms
        self.out = out
        self.force = force
        self.threads = torch.get_num_threads()
        self.end = None if max_hours is None else time.monotonic() + 3600 * max_hours

    def run(self, teacher: Path, world: World) -> Outcome:
        """All generations, until one is no better."""
        found = [Generation(0, teacher, self._dev_wer(0, teacher))]
        for number in range(1, self.config.generations + 1):
            best = found[-1]  # each has been better than the one before
            labels = self._label(best, number)
            kept_hours = read_json(labels / REPORT_FILE)["kept_hours"]
            if not kept_hours:
                return Outcome(best, found, f"no label of generation {number} is good enough to learn from")
            model = self.out / f"gen{number}" / "model"
            student = replace(self.sources, pseudo=labels)
            train_transducer(self.config.student, student, model, self.force, self._hours_left())
            setup_logging()  # the training's log is closed
            torch.set_num_threads(self.threads)  # sums, so labels, may depend on it
            world.wait()  # for the first process, which writes the model
            new = Generation(number, model, self._dev_wer(number, model), kept_hours)
            found.append(new)
            wers = f"{new.wer:.2f} % WER on dev, its teacher {best.wer:.2f} %"
            if not new.wer < best.wer - self.config.min_gain:
                return Outcome(best, found, f"generation {number} has {wers}: it is not taken")
            logger.info(f"generation {number} has {wers}")
        return Outcome(found[-1], found, f"generation {self.config.generations} is the last one asked for")

    def _hours_left(self) -> float | None:
        return None if self.end is None else max((self.end - time.monotonic()) / 3600, 0.0)

    def _labelling(self, model: Path) -> Labelling:
        return Labelling(self.sources.data, model, self.lms, self.config.labels)

    def _dev_wer(self, number: int, model: Path) -> float:
        """WER of a model on dev, by the search that labels."""
        labelling = self._labelling(model)
        config = self.config.labels
        searched = {key: getattr(config, key) for key in ("search", "fusion", "batch_seconds", "max_seconds")}
        step = Step("label dev", self._dev(number), searched, labelling.inputs())

        def work(world: World) -> Callable[[Path], None]:
            found = labelling.label(labelling.load(), "dev", world)

            def write(folder: Path) -> None:
                write_label_file(folder / LABELS_FILE, found)
                write_json(folder / REPORT_FILE, labelling.score_dev(found).to_dict())

            return write

        self._run(step, work)
        return float(read_json(step.out / REPORT_FILE)["wer"])

    def _label(self, teacher: Generation, number: int) -> Path:
        """The folder of labels for a student."""
        labelling = self._labelling(teacher.model)
        dev = self._dev(teacher.number)
        folder = self.out / f"gen{number}" / "labels"
        step = Step("pseudo-label", folder, self.config.labels, labelling.inputs() | {"dev": dev})

        def work(world: World) -> Callable[[Path], None]:
            loaded = labelling.load()
            rates = find_rates(labelling, loaded)
            found = labelling.label(loaded, "unlabelled", world)

            def write(folder: Path) -> None:
                write_labels(labelling, found, read_label_file(dev / LABELS_FILE), rates, folder)

            return write

        self._run(step, work)
        return step.out

    def _dev(self, number: int) -> Path:
        return self.out / f"gen{number}" / "dev"

    def _run(self, step: Step, work: Callable[[World], Callable[[Path], None]]) -> None:
        run_together(step, work, self.force, StopRequest(self._hours_left()))


def _begin(step: Step) -> None:
    """Refuses an `out` that holds anything but self-training.

    Raises:
        UserError: it does.
    """
    out = step.out
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_file() or STAMP in names or any(not _is_own(name) for name in names):
        step.check_out()
    if (out / BEST).exists() and not (out / BEST).is_symlink():
        raise UserError(f"{out / BEST} is in the way of the link to the best model: name another folder")


def _check_sources(sources: Sources, teacher: Path) -> None:
    """Refuses what the first student would stumble over, before hours of labelling.

    Raises:
        UserError: a folder is missing, or holds something else.
    """
    read_model_card(teacher, "transducer")
    Tokenizer.load(sources.tokenizer)
    if sources.init != SCRATCH:
        read_encoder_config(Path(sources.init))
        check_features(Path(sources.init), sources.data)


def _is_own(name: str) -> bool:
    return name in (BEST, REPORT_FILE) or re.fullmatch(r"gen\d+|\..*", name) is not None


def _finish(step: Step, outcome: Outcome) -> None:
    """Names the best generation, by a link and in a report."""
    out, best = step.out, outcome.best
    logger.info(f"self-training: {outcome.ending}")
    logger.info(f"{out / BEST}: generation {best.number}, {best.wer:.2f} % WER on dev ({best.model})")
    report = {"best": best.number, "ending": outcome.ending, "generations": outcome.generations}
    target = os.path.relpath(real_path(best.model), real_path(out))
    same = (out / BEST).is_symlink() and os.readlink(out / BEST) == target
    if step.is_done() and same:
        return
    out.mkdir(parents=True, exist_ok=True)
    aside = out / f"{PARTIAL}{BEST}"
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    os.replace(aside, out / BEST)
    write_json(out / REPORT_FILE, report)
    step.finish()
