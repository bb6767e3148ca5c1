"""Scoring of files: what was recognised against what was said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from w2vbert.decoding.alignment import Counts
from w2vbert.decoding.breakdown import Group, by_length, by_speaker, find_confusions, worst_utterances
from w2vbert.decoding.normalization import Normalization
from w2vbert.decoding.scoring import ErrorRate, WerResult, compare_results, score_characters, score_pairs
from w2vbert.decoding.significance import Difference
from w2vbert.errors import UserError
from w2vbert.log import logger
from w2vbert.tasks.scored_texts import Utterance, find_speakers, match_file_names, read_utterances

WORST, CONFUSED = 10, 10
"""Utterances, and errors of each kind, that JSON names."""


@dataclass(frozen=True)
class System:
    """A file of hypotheses and its scores.

    Attributes:
        name: as short as tells it from the others.
        result: over words.
        cer: over characters, white space left out.
        characters: counts of each utterance.
        difference: of the word error rate from that of the first; None for the first.
    """

    name: str
    result: WerResult
    cer: ErrorRate
    characters: list[Counts]
    difference: Difference | None


def score_files(ref: Path, hyp: Path, normalization: Normalization | None = None) -> WerResult:
    """Word error rate of the texts in `hyp` against those in `ref`.

    Formats: see `read_utterances`. The interval draws speakers where `ref` names them, or where the part of the ids
    before the first `-` or `_` does; else it draws utterances.

    Args:
        ref, hyp: files.
        normalization: of both; None: texts are compared as they stand.

    Raises:
        UserError: a file is missing, empty or not in these formats, or the ids of the two differ.
    """
    return _score(read_utterances(ref), hyp, normalization or Normalization())


def score_systems(ref: Path, hyps: Sequence[Path], normalization: Normalization) -> list[System]:
    """Scores several files of hypotheses, and compares each with the first.

    Raises:
        UserError: as `score_files`; the message begins with the file where there are several.
    """
    if len(set(hyps)) < len(hyps):
        raise UserError("a file of hypotheses is given twice")
    refs = read_utterances(ref)
    if not any(normalization(utterance.text) for utterance in refs.values()):
        raise UserError(f"{ref} holds no words, so there is no word error rate")
    systems: list[System] = []
    for name, hyp in zip(_short_names(hyps), hyps, strict=True):
        try:
            result = _score(refs, hyp, normalization)
        except UserError as error:
            raise error if str(hyp) in str(error) else UserError(f"{hyp}: {error}") from error
        cer, characters = score_characters(result)
        difference = compare_results(systems[0].result, result) if systems else None
        systems.append(System(name, result, cer, characters, difference))
    return systems


def describe(systems: Sequence[System], normalization: Normalization) -> dict[str, Any]:
    """The scores for JSON: those of one system at the top, those of several under `systems`."""
    head = {"normalization": normalization.name, "normalization_steps": list(normalization.steps)}
    described = [_describe_system(system) for system in systems]
    return described[0] | head if len(systems) == 1 else head | {"systems": described}


def _describe_system(system: System) -> dict[str, Any]:
    result, characters = system.result, system.cer.counts
    confusions = find_confusions(result, CONFUSED)
    described = result.to_dict() | {
        "name": system.name,
        "cer": system.cer.percent,
        "characters": _counts(characters) | {"interval": list(system.cer.interval)},
        "speakers": [_describe_group(group) for group in by_speaker(result, system.characters)],
        "lengths": [_describe_group(group) for group in by_length(result, system.characters)],
        "worst": [
            {"id": u.id, "words": u.words, "errors": u.errors, "ref": u.ref, "hyp": u.hyp}
            for u in worst_utterances(result, WORST)
        ],
        "confusions": asdict(confusions),
    }
    if system.difference is not None:
        described["difference"] = asdict(system.difference) | {"is_chance": system.difference.is_chance}
    return described


def _describe_group(group: Group) -> dict[str, Any]:
    wer = group.words.percent if group.words.length else None
    cer = group.characters.percent if group.characters.length else None
    return {"name": group.name, "utterances": group.utterances, "wer": wer, "cer": cer} | _counts(group.words, "words")


def _counts(counts: Counts, length: str = "length") -> dict[str, int]:
    return {
        length: counts.length,
        "errors": counts.errors,
        "insertions": counts.insertions,
        "deletions": counts.deletions,
        "substitutions": counts.substitutions,
    }


def _score(refs: dict[str, Utterance], hyp: Path, normalization: Normalization) -> WerResult:
    hyps = match_file_names(refs, read_utterances(hyp))
    failed = sum(utterance.value is not None and utterance.value["text"] is None for utterance in hyps.values())
    if failed:
        logger.warning(f"{hyp}: {failed} of {len(hyps)} utterances have no text (null): their words count as deleted")
    ref_texts = {id: normalization(utterance.text) for id, utterance in refs.items()}
    hyp_texts = {id: normalization(utterance.text) for id, utterance in hyps.items()}
    return score_pairs(ref_texts, hyp_texts, find_speakers(refs.values()))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """File names without suffixes, with as many of the folders above as it takes to tell them apart."""
    parts = [(*path.resolve().parts[1:-1], path.name.split(".")[0].removeprefix("hyps-")) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["_".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name}_{number}" for number, name in enumerate(names, 1)]
