"""Decoding: of plain audio to text, and of a data set's splits to scores."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from w2vbert.config import load_config, save_config
from w2vbert.data.audio import cut_at_quiet, find_audio, read_audio
from w2vbert.data.batches import FRAMES_PER_SECOND, collate
from w2vbert.data.corpora import MAX_AMPLITUDE
from w2vbert.data.datasets import MIN_FRAMES, SpeechDataset
from w2vbert.data.features import FEATURES_FILE, FeatureConfig, features_of_waveform, normalize
from w2vbert.data.loaders import group_by_seconds, in_order
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.scorers import WeightedScorer
from w2vbert.decoding.scoring import score_pairs, write_scores
from w2vbert.decoding.search import SearchConfig
from w2vbert.errors import UserError
from w2vbert.files import atomic_file, check_writable, write_json
from w2vbert.log import logger, progress
from w2vbert.models.transducer import Transducer
from w2vbert.stages import Step, run_step
from w2vbert.tasks.fusion import FusionConfig, load_scorers
from w2vbert.tasks.recognize import Recognition, check_features, load_transducer, recognize
from w2vbert.training.checkpoint import read_model_card

ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
"""What would break a line `FILE<tab>TEXT` in a file name, and how it is shown."""

READ_AHEAD_SECONDS = 1200.0
"""Audio that is read before it is sorted into batches: bounds memory, however much there is to decode."""


@dataclass(frozen=True)
class DecodeConfig:
    """Decoding.

    Attributes:
        search: greedy or beam.
        fusion: weights of the language models.
        batch_seconds: most audio in a batch, padding counted.
        max_seconds: longer recordings are cut at quiet places (files) or left out (splits); at least 1.
    """

    search: SearchConfig = field(default_factory=SearchConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    batch_seconds: float = 120.0
    max_seconds: float = 32.0

    def __post_init__(self) -> None:
        if self.batch_seconds < 1.0 or self.max_seconds < 1.0:
            raise ValueError("batch_seconds and max_seconds must be at least 1")


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording that is decoded in one go.

    Attributes:
        file: index of the recording among the inputs.
        features: (T, F), normalised; None where the recording could not be used.
    """

    file: int
    features: Tensor | None


def decode_splits(
    model: Path,
    data: Path,
    splits: Sequence[str],
    out: Path,
    lm: Path | None,
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
    step = Step("decode", out, {"decode": config, "splits": list(splits)}, {"model": model, "data": data, "lm": lm})

    def work(folder: Path) -> None:
        transducer, tokenizer = load_transducer(model)
        scorers = load_scorers([lm] if lm else [], None, config.fusion, config.search, tokenizer, transducer)
        datasets = {split: _load_split(data, split, config.max_seconds) for split in splits}
        check_features(model, data)
        save_config(config, folder / "config.yaml")
        results: dict[str, Any] = {}
        for split, dataset in datasets.items():
            batches = progress(list(in_order(dataset, config.batch_seconds)), desc=f"decode {split}", unit="batches")
            found = [r for batch in recognize(transducer, tokenizer, batches, config.search, scorers) for r in batch]
            results[split] = _score_split(folder, split, dataset, found, config)
        history = read_model_card(model, "transducer")["history"]
        summary = {"model": str(model), "lm": lm and str(lm), "splits": results, "history": history}
        write_json(folder / "wer.json", summary)

    run_step(step, work, force)


def _load_split(data: Path, split: str, max_seconds: float) -> SpeechDataset:
    dataset = SpeechDataset([data / f"cuts_{split}.jsonl.gz"], max_seconds)
    if not any(dataset.texts):
        raise UserError(f"the {split} split of {data} has no transcripts to score against")
    return dataset


def _score_split(
    folder: Path, split: str, dataset: SpeechDataset, found: Sequence[Recognition], config: DecodeConfig
) -> dict[str, Any]:
    by_id = {r.id: r for r in found}
    references = dict(zip(dataset.ids, dataset.texts, strict=True))
    speakers = dict(zip(dataset.ids, dataset.speakers, strict=True))
    result = score_pairs(references, {r.id: r.text for r in found}, speakers)
    write_scores(folder, split, result, config.search.method)
    _write_jsonl(folder / f"hyps-{split}.jsonl", (_describe(by_id[id], id) for id in dataset.ids))
    logger.info(f"{split}: {result.summary()}")
    return result.to_dict()


def _describe(recognition: Recognition, id: str) -> dict[str, Any]:
    return {"id": id, "text": recognition.text, "confidence": round(recognition.confidence, 4)}


def _write_jsonl(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with atomic_file(path) as aside:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # file names need not be UTF-8


def decode_files(
    model: Path,
    inputs: Sequence[Path],
    lm: Path | None,
    output: Path | None,
    config_path: Path | None,
    overrides: Sequence[str],
) -> None:
    """Recognises audio files and prints `FILE<tab>TEXT` in the order of the inputs; JSON lines go to `output`.

    A tab or the like in a file's name is printed as in C.

    A file that cannot be decoded is named, counted and passed over. Manifests of cuts (`*.jsonl.gz`) stand for the
    recordings of their cuts.

    Raises:
        UserError: model, language model or config are not fit for it, an input is missing, or no file could be used.
    """
    config = load_config(DecodeConfig, config_path, overrides)
    if output is not None:
        _check_output(output)
    transducer, tokenizer = load_transducer(model)
    features = load_config(FeatureConfig, model / FEATURES_FILE)
    scorers = load_scorers([lm] if lm else [], None, config.fusion, config.search, tokenizer, transducer)
    sources = list(_find_sources(inputs))
    lines: list[dict[str, Any]] = []
    pieces = _read_pieces(progress(sources, desc="decode", unit="files"), features, config.max_seconds)
    for stretch in _stretches(pieces):
        for file, results in _decode_stretch(stretch, transducer, tokenizer, config, scorers):
            name = sources[file][0]
            if results is None:
                lines.append({"id": name, "text": None, "confidence": 0.0})
                continue
            text = " ".join(r.text for r in results if r.text)
            _print_line(f"{name.translate(ESCAPES)}\t{text}")
            confidence = min((r.confidence for r in results if r.text), default=0.0)
            lines.append({"id": name, "text": text, "confidence": round(confidence, 4)})
    failures = sum(line["text"] is None for line in lines)
    if failures == len(sources):
        raise UserError(f"none of {failures} recordings could be decoded")
    if output is not None:
        _write_jsonl(output, lines)
    if failures:
        logger.warning(f"{failures} of {len(sources)} recordings could not be decoded")


def _check_output(output: Path) -> None:
    """Refuses what cannot be written, or holds anything but earlier JSON lines, before the work is done."""
    check_writable(output)
    if output.is_dir():
        raise UserError(f"{output} is a folder, but a file of JSON lines is to be written there")
    if not output.is_file():
        return
    with output.open("rb") as file:
        begin = file.read(8)
    if begin and not begin.startswith(b'{"id": '):
        raise UserError(f"{output} exists and was not written by `w2vbert decode`: name another file")


def _print_line(line: str) -> None:
    """Prints; where nobody listens any more (`| head`), what is left goes nowhere, and the work goes on."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _find_sources(inputs: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """(name, file or cut) of every recording."""
    for path in inputs:
        if path.name.endswith((".jsonl.gz", ".jsonl")):
            yield from ((cut.id, cut) for cut in _read_manifest(path))
        else:
            yield from ((str(file), file) for file in find_audio([path]))


def _read_manifest(path: Path) -> list[Any]:
    from lhotse import CutSet
    from lhotse.cut import Cut

    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        cuts = list(CutSet.from_jsonl_lazy(path))
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no manifest of cuts, or a damaged one") from error
    if not cuts or not all(isinstance(cut, Cut) and cut.has_recording for cut in cuts):
        raise UserError(f"{path} is no manifest of cuts with recordings")
    return cuts


def _read_pieces(sources: Iterable[tuple[str, Any]], features: FeatureConfig, max_seconds: float) -> Iterator[Piece]:
    rate_hz = features.sampling_rate_hz
    shortest = round(MIN_FRAMES * features.frame_shift_seconds * rate_hz)
    for index, (name, source) in enumerate(sources):
        try:
            recording = read_audio(source, rate_hz) if isinstance(source, Path) else _read_cut(source, rate_hz)
            if len(recording) < shortest:
                raise UserError(f"{name} is shorter than {shortest / rate_hz:g} s")
        except UserError as error:
            logger.warning(f"skipped: {error}")
            yield Piece(index, None)
            continue
        for samples in cut_at_quiet(recording, rate_hz, max_seconds):
            if len(samples) >= shortest:  # what a cut leaves at the end may be shorter, and holds no word
                yield Piece(index, normalize(features_of_waveform(samples, features)))


def _read_cut(cut: Any, rate_hz: int) -> Tensor:
    """Samples (N,) of a cut at `rate_hz`, the mean of its channels."""
    import torch
    from lhotse.audio.backend import LibsndfileBackend, audio_backend
    from lhotse.audio.utils import AudioLoadingError, DurationMismatchError

    for source in cut.recording.sources:
        if source.type == "file" and not Path(source.source).is_file():
            raise UserError(f"{cut.id} cannot be read: {source.source} does not exist")
    try:
        with audio_backend(LibsndfileBackend()):  # ffmpeg, where it is installed, returns wrong samples without a word
            samples = torch.from_numpy(cut.resample(rate_hz).load_audio()).mean(0)  # (N,)
    except (AudioLoadingError, DurationMismatchError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{cut.id} cannot be read: {' '.join(str(error).split())}") from error
    if not bool(samples.isfinite().all()):
        raise UserError(f"{cut.id} holds samples that are not finite")
    if float(samples.abs().max()) > MAX_AMPLITUDE:
        raise UserError(f"{cut.id} holds samples up to {float(samples.abs().max()):.3g}: audio lies within -1 and 1")
    return samples


def _stretches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Runs of whole recordings of about READ_AHEAD_SECONDS."""
    stretch: list[Piece] = []
    seconds = 0.0
    for piece in pieces:
        if seconds > READ_AHEAD_SECONDS and piece.file != stretch[-1].file:
            yield stretch
            stretch, seconds = [], 0.0
        stretch.append(piece)
        seconds += 0.0 if piece.features is None else len(piece.features) / FRAMES_PER_SECOND
    if stretch:
        yield stretch


def _decode_stretch(
    stretch: Sequence[Piece],
    model: Transducer,
    tokenizer: Tokenizer,
    config: DecodeConfig,
    scorers: Sequence[WeightedScorer],
) -> Iterator[tuple[int, list[Recognition] | None]]:
    """Results of each recording, in order; None where one could not be read. Decodes in batches of similar lengths."""
    features = {index: piece.features for index, piece in enumerate(stretch) if piece.features is not None}
    order = sorted(features, key=lambda index: -len(features[index]))
    frames = [0 if piece.features is None else len(piece.features) for piece in stretch]
    groups = group_by_seconds(order, frames, config.batch_seconds)
    batches = (collate([str(i) for i in group], [features[i] for i in group], None) for group in groups)
    found = {int(r.id): r for rs in recognize(model, tokenizer, batches, config.search, scorers) for r in rs}
    by_file: dict[int, list[int]] = {}
    for index, piece in enumerate(stretch):
        by_file.setdefault(piece.file, []).append(index)
    for file, own in by_file.items():
        yield file, [found[index] for index in own] if all(index in found for index in own) else None
