"""Decoding of a data set's splits to scores, and the settings that it shares with the decoding of plain audio."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2vbert.config import load_config, save_config
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.loaders import in_order
from w2vbert.data.pieces import CuttingConfig
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.config import SearchConfig
from w2vbert.decoding.scoring import score_pairs, write_scores
from w2vbert.decoding.words import find_words
from w2vbert.errors import UserError
from w2vbert.files import atomic_file
from w2vbert.log import logger, progress
from w2vbert.stages import Step, run_step
from w2vbert.tasks.fusion import FusionConfig, LanguageModels, load_scorers
from w2vbert.tasks.recognize import Recognition, check_features, encoder_frame_seconds, load_transducer, recognize
from w2vbert.tasks.results import write_result
from w2vbert.tasks.transcript_formats import Candidate, describe_nbest, describe_words
from w2vbert.training.checkpoint import read_model_card


@dataclass(frozen=True)
class DecodeConfig:
    """Decoding.

    Attributes:
        search: greedy or beam.
        fusion: weights of the language models.
        batch_seconds: most audio in a batch, padding counted.
        max_seconds: longer recordings are cut (files) or left out (splits); at least 1.
        cutting: where longer recordings are cut (files).
    """

    search: SearchConfig = field(default_factory=SearchConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    batch_seconds: float = 120.0
    max_seconds: float = 32.0
    cutting: CuttingConfig = field(default_factory=CuttingConfig)

    def __post_init__(self) -> None:
        if self.batch_seconds < 1.0 or self.max_seconds < 1.0:
            raise ValueError("batch_seconds and max_seconds must be at least 1")


def decode_splits(
    model: Path,
    data: Path,
    splits: Sequence[str],
    out: Path,
    lms: LanguageModels,
    config_path: Path | None,
    overrides: Sequence[str],
    force: bool,
) -> None:
    """Decodes and scores splits of a folder of features.

    Leaves `recogs-`, `errs-` and `wer-summary-SET.txt`, `hyps-SET.jsonl` and `wer.json` in `out`.

    Raises:
        UserError: model, language model, data or config are not fit for it.
    """
    config = load_config(DecodeConfig, config_path, overrides)
    step = Step(
        "decode", out, {"decode": config, "splits": list(splits)}, {"model": model, "data": data} | lms.inputs()
    )

    def work(folder: Path) -> None:
        transducer, tokenizer = load_transducer(model)
        scorers = load_scorers(lms.folders, lms.lodr, config.fusion, config.search, tokenizer, transducer)
        datasets = {split: _load_split(data, split, config.max_seconds) for split in splits}
        check_features(model, data)
        save_config(config, folder / "config.yaml")
        results: dict[str, Any] = {}
        for split, dataset in datasets.items():
            batches = progress(list(in_order(dataset, config.batch_seconds)), desc=f"decode {split}", unit="batches")
            found = [r for batch in recognize(transducer, tokenizer, batches, config.search, scorers) for r in batch]
            results[split] = _score_split(folder, split, dataset, found, config.search.method)
            _write_hyps(folder / f"hyps-{split}.jsonl", dataset, found, tokenizer, encoder_frame_seconds(transducer))
        write_result(folder, model, lms, results, read_model_card(model, "transducer")["history"])

    run_step(step, work, force)


def _load_split(data: Path, split: str, max_seconds: float) -> SpeechDataset:
    dataset = SpeechDataset([data / f"cuts_{split}.jsonl.gz"], max_seconds)
    if not any(dataset.texts):
        raise UserError(f"the {split} split of {data} has no transcripts to score against")
    return dataset


def _score_split(
    folder: Path, split: str, dataset: SpeechDataset, found: Sequence[Recognition], method: str
) -> dict[str, Any]:
    references = dict(zip(dataset.ids, dataset.texts, strict=True))
    speakers = dict(zip(dataset.ids, dataset.speakers, strict=True))
    result = score_pairs(references, {r.id: r.text for r in found}, speakers)
    write_scores(folder, split, result, method)
    logger.info(f"{split}: {result.summary()}")
    return result.to_dict()


def _write_hyps(
    path: Path, dataset: SpeechDataset, found: Sequence[Recognition], tokenizer: Tokenizer, frame_seconds: float
) -> None:
    by_id = {r.id: r for r in found}
    lines = (_describe(by_id[id], tokenizer, frame_seconds) for id in dataset.ids)
    with atomic_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _describe(recognition: Recognition, tokenizer: Tokenizer, frame_seconds: float) -> dict[str, Any]:
    """An utterance's line for JSON, as `w2vbert decode` of audio writes it; the n-best list where one was asked for."""
    best = recognition.hypotheses[0]
    words = find_words(best, tokenizer.pieces(best.tokens), frame_seconds)
    line: dict[str, Any] = {"id": recognition.id, "text": recognition.text}
    line |= {"confidence": round(recognition.confidence, 4), "words": describe_words(words)}
    if len(recognition.hypotheses) > 1:
        texts = [Candidate(tokenizer.decode(list(other.tokens)), other) for other in recognition.hypotheses]
        line["nbest"] = describe_nbest(texts)
    return line
