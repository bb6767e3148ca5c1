"""A picture of WER against the hours of audio that went into the models before their last training."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from w2vbert.files import atomic_file

LIKE = 1.05
"""Hours that differ by no more than this factor stand for the same length of pre-training."""


def earlier_hours(result: dict[str, Any]) -> float:
    """Hours of audio seen, repetitions counted, in all trainings behind a result but the last."""
    return sum(cost["audio_hours"] for cost in list(result["history"].values())[:-1])


def group_alike(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Points (hours, WER) in groups of like hours, in rising order: seeds of a run do not see quite as much audio."""
    groups: list[list[tuple[float, float]]] = []
    for point in sorted(points):
        if groups and point[0] <= LIKE * groups[-1][0][0]:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def draw_wer_curve(results: Sequence[dict[str, Any]], target: Path) -> None:
    """Draws a point for each result, and a line through the means of those with like hours, for each scored set.

    Args:
        results: contents of `wer.json`, all of the same sets.
        target: PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for number, split in enumerate(results[0]["splits"]):
        groups = group_alike([(earlier_hours(result), result["splits"][split]["wer"]) for result in results])
        for hours, rates in (zip(*group, strict=True) for group in groups):
            axes.plot(hours, rates, ".", color=f"C{number}", alpha=0.5)
        means = [(mean(hours for hours, _ in group), mean(rate for _, rate in group)) for group in groups]
        axes.plot(*zip(*means, strict=True), "o-", color=f"C{number}", label=f"{split}, mean")
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(left=-0.1)
    axes.set_xticks([hours for hours, _ in means], [f"{hours:.3g}" for hours, _ in means])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("hours of audio seen in pre-training")
    axes.set_ylabel("WER (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(target) as aside:
        figure.savefig(aside, format="png", dpi=120)
