"""A picture of WER against the hours of audio that went into the models before their last training."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from w2vbert.files import atomic_file


def earlier_hours(result: dict[str, Any]) -> float:
    """Hours of audio seen, repetitions counted, in all trainings behind a result but the last."""
    return sum(cost["audio_hours"] for cost in list(result["history"].values())[:-1])


def draw_wer_curve(results: Sequence[dict[str, Any]], target: Path) -> None:
    """Draws a point for each result, and a line through the means of those with equal hours, for each scored set.

    Args:
        results: contents of `wer.json`, all of the same sets.
        target: PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for number, split in enumerate(results[0]["splits"]):
        groups: dict[float, list[float]] = defaultdict(list)
        for result in results:
            groups[round(earlier_hours(result), 1)].append(result["splits"][split]["wer"])
        for hours, rates in groups.items():
            axes.plot([hours] * len(rates), rates, ".", color=f"C{number}", alpha=0.5)
        hours_seen = sorted(groups)
        means = [sum(groups[hours]) / len(groups[hours]) for hours in hours_seen]
        axes.plot(hours_seen, means, "o-", color=f"C{number}", label=f"{split}, mean")
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(left=-0.1)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("hours of audio seen in pre-training")
    axes.set_ylabel("WER (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(target) as aside:
        figure.savefig(aside, format="png", dpi=120)
