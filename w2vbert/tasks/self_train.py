"""Pseudo-labels for self-training (noisy student: Xie et al. 2020; Park et al. 2020, arXiv 2005.09629)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from w2vbert.config import load_config, save_config
from w2vbert.data.batches import FRAMES_PER_SECOND
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.loaders import in_order
from w2vbert.decoding.search import SearchConfig
from w2vbert.errors import UserError
from w2vbert.files import write_json
from w2vbert.log import logger, progress
from w2vbert.stages import Step, run_step
from w2vbert.tasks.fusion import FusionConfig, load_scorers
from w2vbert.tasks.recognize import Recognition, check_features, load_transducer, recognize
from w2vbert.training.checkpoint import read_model_card


@dataclass(frozen=True)
class PseudoLabelConfig:
    """What the teacher does, and which of its labels are kept.

    Attributes:
        search: the teacher's search.
        fusion: weights of the language models.
        keep_share: share of the labelled audio that is kept, the most confident first.
        min_confidence: labels under this confidence (0 to 1) are dropped whatever `keep_share` says.
        min_words: shorter labels are dropped: noise and silence often become one word, or none.
        max_words_per_second: labels with more are dropped.
        batch_seconds: most audio in a batch, padding counted.
        max_seconds: longer utterances are left out.
    """

    search: SearchConfig = field(default_factory=lambda: SearchConfig(method="beam"))
    fusion: FusionConfig = field(default_factory=FusionConfig)
    keep_share: float = 0.9
    min_confidence: float = 0.0
    min_words: int = 1
    max_words_per_second: float = 8.0
    batch_seconds: float = 120.0
    max_seconds: float = 32.0

    def __post_init__(self) -> None:
        if not 0.0 < self.keep_share <= 1.0 or not 0.0 <= self.min_confidence <= 1.0:
            raise ValueError("keep_share must lie in (0, 1] and min_confidence in [0, 1]")
        if self.batch_seconds < 0.5 or self.max_seconds <= 0.0:
            raise ValueError("batch_seconds must be at least 0.5 and max_seconds above 0")


def pseudo_label(
    data: Path,
    out: Path,
    model: Path,
    lm: Path | None,
    config_path: Path | None,
    overrides: Sequence[str],
    force: bool,
) -> None:
    """Labels the unlabelled split of `data`, drops the doubtful, and writes `cuts_pseudo.jsonl.gz` and `report.json`.

    Raises:
        UserError: model, language model, data or config are not fit for it, or no label is left.
    """
    config = load_config(PseudoLabelConfig, config_path, overrides)
    step = Step("pseudo-label", out, config, {"data": data, "model": model, "lm": lm})

    def work(folder: Path) -> None:
        transducer, tokenizer = load_transducer(model)
        scorers = load_scorers([lm] if lm else [], None, config.fusion, config.search, tokenizer, transducer)
        dataset = SpeechDataset([data / "cuts_unlabelled.jsonl.gz"], config.max_seconds)
        check_features(model, data)
        batches = progress(list(in_order(dataset, config.batch_seconds)), desc="pseudo-label", unit="batches")
        found = [r for batch in recognize(transducer, tokenizer, batches, config.search, scorers) for r in batch]
        kept, report = filter_labels(found, dataset, config)
        if not kept:
            raise UserError(f"{model} labelled none of {len(found)} utterances well enough: {report['dropped']}")
        _write_cuts(folder / "cuts_pseudo.jsonl.gz", data / "cuts_unlabelled.jsonl.gz", kept)
        save_config(config, folder / "config.yaml")
        write_json(folder / "report.json", report | {"history": read_model_card(model, "transducer")["history"]})
        hours, dropped = report["kept_hours"], report["dropped"]
        logger.info(f"kept {len(kept)} of {len(found)} labels, {hours:.2f} h; dropped {dropped}")

    run_step(step, work, force)


def filter_labels(
    found: Sequence[Recognition], dataset: SpeechDataset, config: PseudoLabelConfig
) -> tuple[dict[str, Recognition], dict[str, Any]]:
    """The labels to train on, by cut id, and a report with counts of what was dropped and why."""
    seconds = {id: frames / FRAMES_PER_SECOND for id, frames in zip(dataset.ids, dataset.frames, strict=True)}
    dropped = {"too few words": 0, "too many words a second": 0, "confidence": 0}
    sound = []
    for recognition in found:
        words = len(recognition.text.split())
        if words < config.min_words:
            dropped["too few words"] += 1
        elif words > config.max_words_per_second * seconds[recognition.id]:
            dropped["too many words a second"] += 1
        else:
            sound.append(recognition)
    sound.sort(key=lambda r: (-r.confidence, r.id))
    allowed = config.keep_share * sum(seconds[r.id] for r in sound)
    kept: dict[str, Recognition] = {}
    hours = 0.0
    for recognition in sound:
        if recognition.confidence < config.min_confidence or hours * 3600 >= allowed:
            break
        kept[recognition.id] = recognition
        hours += seconds[recognition.id] / 3600
    dropped["confidence"] = len(sound) - len(kept)
    threshold = min((r.confidence for r in kept.values()), default=None)
    report = {"labelled": len(found), "kept": len(kept), "kept_hours": hours, "dropped": dropped}
    return kept, report | {"confidence_threshold": threshold}


def _write_cuts(target: Path, source: Path, labels: dict[str, Recognition]) -> None:
    from lhotse import CutSet, SupervisionSegment

    labelled = []
    for cut in CutSet.from_jsonl_lazy(source):
        if cut.id in labels:
            bare = SupervisionSegment(cut.id, cut.recording_id, start=0.0, duration=cut.duration)
            supervision = replace(cut.supervisions[0] if cut.supervisions else bare, text=labels[cut.id].text)
            labelled.append(replace(cut, supervisions=[supervision]))
    CutSet.from_cuts(labelled).to_file(target)
