"""Curves of several runs over one another."""

from collections.abc import Sequence
from pathlib import Path

from w2vbert.errors import UserError
from w2vbert.files import check_writable
from w2vbert.log import logger
from w2vbert.training.metrics import METRICS_FILE, TIMINGS, draw_runs, read_metrics

MOST_PANELS = 6


def plot_runs(runs: Sequence[Path], out: Path, metrics: Sequence[str]) -> None:
    """Draws a panel for each metric, with a line for each run; what was validated has points.

    Args:
        runs: folders of trainings, finished or not.
        out: PNG file.
        metrics: names as in `metrics.jsonl`; none: those that all runs have validated, the first `MOST_PANELS`.

    Raises:
        UserError: a folder is no run, no run has a metric, or `out` is no PNG.
    """
    if out.suffix != ".png" or out.is_dir() or (out.is_file() and not out.read_bytes().startswith(b"\x89PNG")):
        raise UserError(f"{out} must be a PNG file: name one that ends with .png")
    check_writable(out)
    lines = {run: read_metrics(run) for run in runs}
    for run, found in lines.items():
        if not found:
            raise UserError(f"{run} has no {METRICS_FILE}: is it the folder of a training that has begun?")
    known = {name for found in lines.values() for line in found for name in line} - {"step", "split"}
    for name in metrics:
        if name not in known:
            raise UserError(f"no run has the metric {name}; there are {', '.join(sorted(known))}")
    if not metrics:
        ordered = [name for line in lines[runs[0]] if line["split"] == "dev" for name in line if name in known]
        of_all = [
            name for name in dict.fromkeys(ordered) if all(_has_validated(found, name) for found in lines.values())
        ]
        metrics = [name for name in of_all if name not in TIMINGS][:MOST_PANELS]
        if not metrics:
            raise UserError(
                f"the runs have validated nothing in common: name one with --metric ({', '.join(sorted(known))})"
            )
    names = _short_names(runs)
    draw_runs(names, metrics, out)
    logger.info(f"{out}: {', '.join(metrics)} of {', '.join(names)}")


def _has_validated(lines: Sequence[dict[str, object]], name: str) -> bool:
    return any(name in line for line in lines if line["split"] == "dev")


def _short_names(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by their names, with as many of the folders above as it takes to tell them apart."""
    resolved = [run.resolve() for run in runs]
    for depth in range(1, max(len(run.parts) for run in resolved) + 1):
        names = {"/".join(run.parts[-depth:]): run for run in resolved}
        if len(names) == len(set(resolved)):
            break
    return names
