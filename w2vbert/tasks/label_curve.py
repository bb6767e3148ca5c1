"""How far the figures of labels tell right from wrong, where it is known what was said."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from w2vbert.files import atomic_file
from w2vbert.tasks.labels import Label, count_edits

STEPS = 20  # of a curve
TENTHS = 10

ORDERS: dict[str, Callable[[Label], float]] = {
    "confidence": lambda label: -label.confidence,
    "lm_score": lambda label: -(label.lm_score or 0.0),
    "lm_difference": lambda label: label.lm_difference or 0.0,
}
"""Best labels first, by the names of the figures."""


def measure_filter(labels: Sequence[Label], references: Mapping[str, str], kept: set[str] | None) -> dict[str, Any]:
    """Numbers for JSON about labels whose references are known.

    `curves` holds, for each figure by which labels can be sorted, what is kept and how wrong it is if the best 5, 10
    ... 100 % of the audio are kept. `tenths` are ten parts of like amounts of audio by falling confidence: a
    confidence that can be trusted has a rising WER there.

    Args:
        labels: of a set.
        references: what was said, by id; labels without one are left out.
        kept: ids that a filter has kept; None: there was none.

    Returns:
        `utterances`, `hours`, `wer` (percent; None where there is no word), `curves` and `tenths`; with a filter
        `kept_hours`, `kept_wer` and `dropped_wer`.
    """
    known = [label for label in labels if label.id in references]
    counts = count_edits([references[label.id] for label in known], [label.text for label in known])
    errors = {label.id: (count.errors, count.length) for label, count in zip(known, counts, strict=True)}
    measured: dict[str, Any] = {"utterances": len(known), "hours": _hours(known), "wer": _wer(known, errors)}
    if kept is not None:
        inside = [label for label in known if label.id in kept]
        outside = [label for label in known if label.id not in kept]
        measured |= {"kept_hours": _hours(inside), "kept_wer": _wer(inside, errors)}
        measured["dropped_wer"] = _wer(outside, errors)
    has_lm = any(label.lm_score is not None for label in known)
    names = [name for name in ORDERS if name == "confidence" or has_lm]
    measured["curves"] = {name: _curve(known, ORDERS[name], errors) for name in names}
    measured["tenths"] = _tenths(known, errors)
    return measured


def draw_filter(sets: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Draws what `measure_filter` found: for each set a row with the WER of what is kept, and the confidence's worth.

    Args:
        sets: measured, by the name to show.
        target: PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6 * len(sets)), layout="constrained")
    for (left, right), (name, measured) in zip(figure.subplots(len(sets), 2, squeeze=False), sets.items(), strict=True):
        for order, points in measured["curves"].items():
            shown = [(point["hours"], point["wer"]) for point in points if point["wer"] is not None]
            left.plot(*zip(*shown, strict=True), ".-", label=f"best by {order}") if shown else None
        if measured.get("kept_wer") is not None:
            left.plot(measured["kept_hours"], measured["kept_wer"], "k*", markersize=11, label="kept by the filter")
        left.set(xlabel="hours kept", ylabel="WER of what is kept (%)", title=name)
        left.set_ylim(bottom=0.0)
        tenths = [tenth for tenth in measured["tenths"] if tenth["wer"] is not None]
        right.plot([0, 100], [0, 100], color="0.7", linewidth=1, label="calibrated")
        right.plot([100 * t["confidence"] for t in tenths], [100 - t["wer"] for t in tenths], "o-", label="tenths")
        right.set(xlabel="confidence, mean of a tenth (%)", ylabel="100 - WER (%)", title=name)
        for axes in (left, right):
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(fontsize=7)
    with atomic_file(target) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _curve(
    labels: Sequence[Label], order: Callable[[Label], float], errors: Mapping[str, tuple[int, int]]
) -> list[dict[str, float | None]]:
    """Hours, WER and least good figure of the best part, for each share of the audio."""
    ranked = sorted(labels, key=lambda label: (order(label), label.id))
    seconds = list(accumulate(label.seconds for label in ranked))
    points: list[dict[str, float | None]] = []
    for step in range(1, STEPS + 1):
        allowed = seconds[-1] * step / STEPS if seconds else 0.0
        best = ranked[: 1 + sum(before < allowed - 1e-9 for before in seconds[:-1])]
        points.append({"share": step / STEPS, "hours": _hours(best), "wer": _wer(best, errors)})
    return points


def _tenths(labels: Sequence[Label], errors: Mapping[str, tuple[int, int]]) -> list[dict[str, float | None]]:
    """Mean confidence and WER of ten parts of like amounts of audio, the most confident first."""
    whole = sum(label.seconds for label in labels)
    parts: list[list[Label]] = [[] for _ in range(TENTHS)]
    before = 0.0
    for label in sorted(labels, key=lambda label: (-label.confidence, label.id)):
        parts[min(int(TENTHS * before / whole), TENTHS - 1)].append(label)
        before += label.seconds
    return [
        {"confidence": sum(x.confidence for x in part) / len(part), "hours": _hours(part), "wer": _wer(part, errors)}
        for part in parts
        if part
    ]


def _hours(labels: Sequence[Label]) -> float:
    return sum(label.seconds for label in labels) / 3600


def _wer(labels: Sequence[Label], errors: Mapping[str, tuple[int, int]]) -> float | None:
    words = sum(errors[label.id][1] for label in labels)
    return 100.0 * sum(errors[label.id][0] for label in labels) / words if words else None
