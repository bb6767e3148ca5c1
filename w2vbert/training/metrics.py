"""What a run tells: JSON lines, TensorBoard, and a picture of the curves."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2vbert.files import atomic_file, naming

METRICS_FILE = "metrics.jsonl"
TIMINGS = ("hours_per_hour", "data_wait_share")
"""Metrics that differ between equal runs."""

FLUSH_SECONDS = 60.0
"""Longest time that TensorBoard waits for events."""


@dataclass(frozen=True)
class Panel:
    """One panel of the picture.

    Attributes:
        title: what it shows, with its unit.
        keys: metrics drawn into it.
        log: logarithmic axis.
    """

    title: str
    keys: Sequence[str]
    log: bool = False


class MetricsWriter:
    """Appends metrics of a run to `metrics.jsonl` and to TensorBoard files under `tensorboard/`."""

    def __init__(self, run: Path, step: int) -> None:
        """Opens the files of `run`; lines of steps after `step`, which a resumed run does again, are dropped."""
        self.path = run / METRICS_FILE
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        with atomic_file(self.path) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _EventFile(run / "tensorboard", step + 1)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes metrics of the steps up to `step`; `split` is train or dev.

        Raises:
            UserError: the disk is full.
        """
        with naming(self.path):
            self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                self._board.add(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Closes both; what a full disk does not take, `write` has told."""
        for file in (self._file, self._board):
            with suppress(OSError):
                file.close()


class _EventFile:
    """TensorBoard's events of one start of a run.

    The writer of tensorboardX itself would not do: its thread ends silently on a full disk, and then its queue fills
    up and stops the training.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """Opens a new file in `folder`, and lets TensorBoard forget what earlier ones say of `first_step` and later."""
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(str(folder / name))
        self._flushed_at = time.monotonic()
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, tag: str, value: float, step: int) -> None:
        """Adds a point to a curve."""
        from tensorboardX.proto.summary_pb2 import Summary

        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))

    def close(self) -> None:
        """Writes what is left."""
        self._records.close()

    def _write(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._flushed_at = time.monotonic()
            self._records.flush()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics; a line cut off by a crash is left out."""
    path = run / METRICS_FILE
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def draw_curves(run: Path, panels: Sequence[Panel], target: Path) -> None:
    """Draws the metrics of a run over its steps as a PNG, one panel beside the other."""
    from matplotlib.figure import Figure

    lines = read_metrics(run)
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, key in enumerate(panel.keys):
            for split, style in (("train", "-"), ("dev", "o--")):
                points = [(m["step"], m[key]) for m in lines if m["split"] == split and m.get(key) is not None]
                if points:
                    label = key if split == "train" else f"{key}, dev"
                    steps, values = zip(*points, strict=True)
                    axes.plot(steps, values, style, color=f"C{number}", label=label, markersize=3, linewidth=1.2)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("step")
        if panel.log and any(line.get_ydata().max() > 0 for line in axes.lines):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7, framealpha=0.5)
    with atomic_file(target) as aside:
        figure.savefig(aside, format="png", dpi=110)


def draw_runs(runs: Mapping[str, Path], keys: Sequence[str], target: Path) -> None:
    """Draws metrics of several runs over their steps as a PNG, one panel for each metric and one colour for each run.

    Args:
        runs: folders by the names to show.
        keys: metrics.
        target: PNG file.
    """
    from matplotlib.figure import Figure

    columns = min(len(keys), 3)
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for number, (name, run) in enumerate(runs.items()):
        lines = read_metrics(run)
        for axes, key in zip(panels, keys, strict=False):
            for split, style in (("train", "-"), ("dev", "o--")):
                points = [(m["step"], m[key]) for m in lines if m["split"] == split and m.get(key) is not None]
                if points:
                    label = name if split == "train" else f"{name}, dev"
                    axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label, markersize=3)
    for axes, key in zip(panels, keys, strict=False):
        axes.set(title=key, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, framealpha=0.5)
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    with atomic_file(target) as aside:
        figure.savefig(aside, format="png", dpi=110)
