"""Weights of language models, chosen on stored n-best lists of a dev set."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from w2vbert.decoding.normalization import Normalization
from w2vbert.decoding.scoring import WerResult, check_ids, compare_results, score_pairs
from w2vbert.decoding.significance import Difference
from w2vbert.decoding.tuning import Floats, NbestTable, Tuning, tune
from w2vbert.errors import UserError
from w2vbert.files import atomic_dir, check_writable, write_json
from w2vbert.log import logger
from w2vbert.stages import Step
from w2vbert.tasks.fusion import FusionConfig
from w2vbert.tasks.nbest_lists import LENGTH_BONUS, Entry, make_table, read_lists
from w2vbert.tasks.scored_texts import find_speakers, match_file_names, read_utterances
from w2vbert.tasks.text_table import align_columns
from w2vbert.tasks.tuning_picture import draw_tuning

BONUS_RANGE, WEIGHT_RANGE = (-1.0, 5.0), (0.0, 1.0)
"""Where to look for the length bonus (nats a label) and for the weight of each language model."""
FEW_TEXTS = 4
"""A median of fewer texts in a list leaves little to choose from."""
MANY_LAST = 0.1
"""Share of lists whose last text is chosen from which a longer list might have had a better one."""


@dataclass(frozen=True)
class Row:
    """One choice from the lists and its errors."""

    name: str
    weights: dict[str, float] | None
    """None where the choice does not come from weights."""
    result: WerResult


@dataclass(frozen=True)
class Outcome:
    """What tuning has found.

    Attributes:
        tuning: the best weights.
        rows: the model alone, what the decoding had chosen, the best weights, the best that lists allow.
        difference: of the best weights from the model alone.
        warnings: why the weights may not be the best.
    """

    tuning: Tuning
    rows: tuple[Row, ...]
    difference: Difference
    warnings: tuple[str, ...]
    normalization: Normalization
    names: tuple[str, ...]
    median_texts: float

    @property
    def weights(self) -> dict[str, float]:
        """Name -> value, as in a config."""
        return dict(zip(self.names, self.tuning.weights.tolist(), strict=True))


def tune_fusion(
    ref: Path, nbest: Path, out: Path, ranges: Mapping[str, tuple[float, float]], normalization: Normalization
) -> Outcome:
    """Chooses the weights of language models and the length bonus with the fewest word errors on n-best lists.

    Writes `decode.yaml` for `w2vbert decode --config`, `tuning.txt`, `tuning.json` and `wer.png` into `out`, which
    appears whole or not at all.

    Args:
        ref: true texts, in a format of `read_utterances`.
        nbest: JSON lines of `w2vbert decode` with n-best lists.
        out: folder to write.
        ranges: lowest and highest value of a weight, by its name in the config.
        normalization: of references and hypotheses.

    Raises:
        UserError: the files do not fit, hold no lists with scores, or `out` cannot be written.
    """
    step = Step(
        "tune-fusion", out, {"ranges": ranges, "normalization": normalization.name}, {"ref": ref, "nbest": nbest}
    )
    check_writable(out)
    step.check_out()
    utterances = read_utterances(ref)
    refs = {id: normalization(utterance.text) for id, utterance in utterances.items()}
    hypotheses = match_file_names(refs, read_utterances(nbest))
    check_ids(refs, hypotheses)
    lists = read_lists(nbest, hypotheses)
    table = make_table(refs, lists, normalization)
    _check_names(table.names, ranges, nbest)
    bounds = [ranges.get(name, BONUS_RANGE if name == LENGTH_BONUS else WEIGHT_RANGE) for name in table.names]
    found = tune(table, bounds)
    decoded = {id: normalization(hypothesis.text) for id, hypothesis in hypotheses.items()}
    rows = _make_rows(table, found, refs, lists, decoded, find_speakers(utterances.values()), normalization)
    lengths = [len(entries) for entries in lists.values()]
    outcome = Outcome(
        tuning=found,
        rows=rows,
        difference=compare_results(rows[0].result, rows[2].result),
        warnings=tuple(_find_doubts(table, found, bounds, lengths)),
        normalization=normalization,
        names=table.names,
        median_texts=float(np.median(lengths)),
    )
    for warning in outcome.warnings:
        logger.warning(warning)
    with atomic_dir(out) as folder:
        _write(folder, outcome)
        draw_tuning(table, found.weights, bounds, folder / "wer.png", rows[0].result.words)
        step.finish(folder)
    return outcome


def render(outcome: Outcome) -> str:
    """The table, and how to use the weights."""
    best, difference = outcome.rows[2].result, outcome.difference
    head = ["", *outcome.names, "WER", "95 % interval", "ins", "del", "sub"]
    rows = [head]
    for row in outcome.rows:
        weights = ["" if row.weights is None else f"{row.weights[name]:g}" for name in outcome.names]
        low, high = row.result.interval
        counts = [row.result.insertions, row.result.deletions, row.result.substitutions]
        rows.append([row.name, *weights, f"{row.result.wer:.2f}", f"{low:.2f} to {high:.2f}", *map(str, counts)])
    if difference.interval is None:
        verdict = ""
    else:
        low, high = difference.interval
        verdict = f" (95 % interval {low:+.2f} to {high:+.2f}{', may be chance' if difference.is_chance else ''})"
    return "\n".join(
        [
            f"normalization: {outcome.normalization.describe()}",
            f"{len(best.utterances)} utterances, {best.words} words, lists of {outcome.median_texts:g} texts (median); "
            f"{outcome.tuning.tried} choices of weights tried",
            "",
            *align_columns(rows),
            "",
            f"tuned less model alone: {difference.percent:+.2f}{verdict}. The weights were chosen on these very "
            "utterances: report the error rate of another set.",
            *(f"warning: {warning}" for warning in outcome.warnings),
            "",
        ]
    )


def config_of(outcome: Outcome) -> dict[str, Any]:
    """Settings for `w2vbert decode --config`."""
    weights = outcome.weights
    bonus = weights.pop(LENGTH_BONUS)
    return {"search": {"method": "beam", LENGTH_BONUS: bonus}, "fusion": weights}


def _check_names(names: Sequence[str], ranges: Mapping[str, object], nbest: Path) -> None:
    known = {field.name for field in fields(FusionConfig)} | {LENGTH_BONUS}
    for name in names:
        if name not in known:
            raise UserError(f"{nbest} holds scores of {name}, which no weight of `w2vbert decode` belongs to")
    for name in ranges:
        if name not in names:
            raise UserError(f"--range {name}: {nbest} has no such scores; there are {', '.join(names)}")


def _make_rows(
    table: NbestTable,
    tuning: Tuning,
    refs: Mapping[str, str],
    lists: Mapping[str, Sequence[Entry]],
    decoded: Mapping[str, str],
    speakers: Mapping[str, str] | None,
    normalization: Normalization,
) -> tuple[Row, ...]:
    def pick(places: Sequence[int]) -> WerResult:
        texts = {id: normalization(lists[id][place].text) for id, place in zip(refs, places, strict=True)}
        return score_pairs(refs, texts, speakers)

    def weigh(name: str, weights: Floats) -> Row:
        named = dict(zip(table.names, weights.tolist(), strict=True))
        return Row(name, named, pick(table.choose(weights[None])[0].tolist()))

    oracle = np.where(np.isneginf(table.scores), np.iinfo(np.int64).max, table.errors).argmin(1)
    return (
        weigh("model alone", np.zeros(len(table.names))),
        Row("as decoded", None, score_pairs(refs, decoded, speakers)),
        weigh("tuned", tuning.weights),
        Row("best of each list", None, pick(oracle.tolist())),
    )


def _find_doubts(
    table: NbestTable, tuning: Tuning, bounds: Sequence[tuple[float, float]], lengths: Sequence[int]
) -> list[str]:
    doubts = []
    for name, (low, high), value in zip(table.names, bounds, tuning.weights.tolist(), strict=True):
        if name not in tuning.border:
            continue
        is_low, width = value < (low + high) / 2, high - low
        if is_low and low == 0.0:
            doubts.append(f"the best weight of {name} is {value:g}: on these lists it hardly helps")
        else:
            wider = f"{low - width:g}:{high:g}" if is_low else f"{low:g}:{high + width:g}"
            doubts.append(f"{name} {value:g} lies on the border of what was searched: try --range {name}={wider}")
    if np.median(lengths) < FEW_TEXTS:
        doubts.append(
            f"half of the lists hold fewer than {FEW_TEXTS} texts, which leaves little to choose: decode with a higher "
            "search.beam_size and search.nbest"
        )
    chosen, texts = table.choose(tuning.weights[None])[0], np.array(lengths)
    share = float(((chosen == texts - 1) & (texts >= FEW_TEXTS)).sum() / max(1, (texts >= FEW_TEXTS).sum()))
    if share > MANY_LAST:
        doubts.append(
            f"in {100 * share:.0f} % of the lists the last text is chosen, so longer ones would hold better texts: "
            "decode with these weights and a higher search.beam_size and search.nbest, and tune again"
        )
    return doubts


def _write(folder: Path, outcome: Outcome) -> None:
    import yaml

    text = io.StringIO()
    text.write("# Made by `w2vbert tune-fusion`; for `w2vbert decode --config`.\n")
    yaml.safe_dump(config_of(outcome), text, sort_keys=False)
    (folder / "decode.yaml").write_text(text.getvalue(), encoding="utf-8")
    (folder / "tuning.txt").write_text(render(outcome), encoding="utf-8")
    rows = [{"name": row.name, "weights": row.weights} | row.result.to_dict() for row in outcome.rows]
    described = {
        "weights": outcome.weights,
        "difference": asdict(outcome.difference),
        "normalization": outcome.normalization.name,
        "tried": outcome.tuning.tried,
        "warnings": outcome.warnings,
        "rows": rows,
    }
    write_json(folder / "tuning.json", described)
