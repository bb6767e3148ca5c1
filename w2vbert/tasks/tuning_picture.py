"""A picture of word error rate over the weights of language models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2vbert.decoding.tuning import Floats, NbestTable

MAP_POINTS, LINE_POINTS = 41, 101
LABELS = {"length_bonus": "length bonus (nats a label)"}
LINE, BEST = "#2a78d6", "#d03b3b"


def draw_tuning(
    table: NbestTable, best: Floats, bounds: Sequence[tuple[float, float]], target: Path, words: int
) -> None:
    """Draws the WER over the first weight and each other, and over each weight alone; the rest are at their best.

    Args:
        table: n-best lists.
        best: (F,), the weights that were chosen.
        bounds: what was searched, for each weight.
        target: PNG file.
        words: of the references.
    """
    from matplotlib.figure import Figure

    count = len(best)
    figure = Figure(figsize=(4.2 * count, 7.2), layout="constrained")
    figure.suptitle(f"WER of {len(table.scores)} n-best lists; red: the weights that were chosen")
    axes: Any = figure.subplots(2, count, squeeze=False)
    for index in range(count):
        if index < count - 1:
            _draw_map(figure, axes[0][index], table, best, bounds, (0, index + 1), words)
        else:
            axes[0][index].set_axis_off()
        _draw_line(axes[1][index], table, best, bounds, index, words)
    figure.savefig(target, format="png", dpi=110)


def _draw_map(
    figure: Any,
    axes: Any,
    table: NbestTable,
    best: Floats,
    bounds: Sequence[tuple[float, float]],
    pair: tuple[int, int],
    words: int,
) -> None:
    across, up = (np.linspace(*bounds[index], MAP_POINTS) for index in pair)
    weights = np.tile(best, (MAP_POINTS * MAP_POINTS, 1))
    weights[:, pair[0]], weights[:, pair[1]] = np.tile(across, MAP_POINTS), np.repeat(up, MAP_POINTS)
    rates = 100 * table.count_errors(weights).reshape(MAP_POINTS, MAP_POINTS) / words
    most = float(np.percentile(rates, 75))  # what is far worse would take all the colours
    mesh = axes.pcolormesh(across, up, np.minimum(rates, most), cmap="Blues", shading="nearest")
    axes.plot(best[pair[0]], best[pair[1]], "o", color=BEST, markeredgecolor="white", markersize=9, clip_on=False)
    figure.colorbar(mesh, ax=axes, label="WER (%)", extend="max" if rates.max() > most else "neither")
    axes.set_xlabel(_label(table, pair[0]))
    axes.set_ylabel(_label(table, pair[1]))


def _draw_line(
    axes: Any, table: NbestTable, best: Floats, bounds: Sequence[tuple[float, float]], index: int, words: int
) -> None:
    values = np.linspace(*bounds[index], LINE_POINTS)
    weights = np.tile(best, (LINE_POINTS, 1))
    weights[:, index] = values
    rates = 100 * table.count_errors(weights) / words
    lowest = 100 * int(table.count_errors(best[None])[0]) / words
    axes.plot(values, rates, color=LINE, linewidth=2)
    axes.plot(best[index], lowest, "o", color=BEST, markersize=8)
    axes.annotate(
        f"{best[index]:g}: {lowest:.2f} %", (best[index], lowest), (0, -16), textcoords="offset points", ha="center"
    )
    span = max(float(rates.max()) - lowest, 1e-3)
    axes.set_ylim(lowest - 0.15 * span, lowest + 1.1 * span)
    axes.set_xlabel(_label(table, index))
    axes.set_ylabel("WER (%)")
    axes.grid(alpha=0.3)


def _label(table: NbestTable, index: int) -> str:
    name = table.names[index]
    return LABELS.get(name, f"weight of {name}")
