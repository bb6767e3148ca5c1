"""The table that a recipe ends with."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from w2vbert.errors import UserError
from w2vbert.files import atomic_file, check_writable, read_json
from w2vbert.tasks.curve import draw_wer_curve
from w2vbert.tasks.results import read_result

Row = tuple[str, Path]


def write_report(out: Path, rows: Sequence[Row], curve: Path | None = None) -> None:
    """Prints a Markdown table of decoding results and writes it to `out`, with the curves of all trainings.

    Args:
        out: file.
        rows: (name, folder of `w2vbert decode --data ... --out`), in order.
        curve: PNG of WER against the hours of pre-training; None: no such picture.

    Raises:
        UserError: there is no row, a folder holds no results, or the rows score different sets.
    """
    if not rows:
        raise UserError("a table needs a --row NAME=DIR")
    if out.is_dir() or (out.is_file() and not out.read_bytes().startswith(b"|")):
        raise UserError(f"{out} exists and was not written by `w2vbert report`: name another file")
    if curve is not None and curve.suffix != ".png":
        raise UserError(f"--curve {curve} must be a PNG file: name one that ends with .png")
    if curve is not None and (curve.is_dir() or (curve.is_file() and not curve.read_bytes().startswith(b"\x89PNG"))):
        raise UserError(f"{curve} exists and is no PNG picture: name another file")
    for target in (out, curve):
        if target is not None:
            check_writable(target)
    results = [(name, read_result(folder)) for name, folder in rows]
    splits = list(results[0][1]["splits"])
    sizes = _sizes(results[0][1])
    for name, result in results:
        if _sizes(result) != sizes:
            raise UserError(f"row {name!r} scores {_name_sets(_sizes(result))}, the first row {_name_sets(sizes)}")
    text = "\n".join([*_table(results, splits), "", *_notes(results, splits)]) + "\n"
    with atomic_file(out) as aside:
        page = text + "".join(line + "\n" for line in _trainings(results, out))
        aside.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of folders need not be UTF-8
    if curve is not None:
        draw_wer_curve([result for _, result in results], curve)
    print(text, end="")


def _sizes(result: dict[str, Any]) -> dict[str, int]:
    """Words of the references of each split."""
    return {split: score["words"] for split, score in result["splits"].items()}


def _name_sets(sizes: dict[str, int]) -> str:
    return ", ".join(f"{split} ({words} words)" for split, words in sizes.items())


def _table(results: Sequence[tuple[str, dict[str, Any]]], splits: Sequence[str]) -> list[str]:
    head = ["", *(f"WER {split} (%)" for split in splits), "hours of audio seen", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, result in results:
        cells = [_wer_cell(result["splits"][split]) for split in splits]
        costs = result["history"].values()
        cells += [f"{sum(cost[key] for cost in costs):.1f}" for key in ("audio_hours", "minutes")]
        lines.append(f"| {name.replace('|', '/')} | " + " | ".join(cells) + " |")
    return lines


def _wer_cell(score: dict[str, Any]) -> str:
    low, high = score["interval"]
    counts = f"{score['insertions']} ins, {score['deletions']} del, {score['substitutions']} sub"
    return f"**{score['wer']:.1f}** [{low:.1f}, {high:.1f}] ({counts} / {score['words']})"


def _notes(results: Sequence[tuple[str, dict[str, Any]]], splits: Sequence[str]) -> list[str]:
    first = results[0][1]["splits"][splits[0]]
    notes = [
        f"WER with its 95 % interval (by {first['resampled']}) and counts of insertions, deletions and "
        "substitutions over the words of the references. Hours and minutes are those of all trainings that the row "
        "needs, repetitions counted: pre-training, fine-tuning, and the teacher's for self-training.",
    ]
    for (name, result), (other, later) in itertools.combinations(results, 2):
        if result["history"] and all(result.get(key) == later.get(key) for key in ("history", "lm", "splits")):
            notes += ["", f"{other!r} is the model of {name!r}: self-training ends so where no student is better."]
    return notes


def _trainings(results: Sequence[tuple[str, dict[str, Any]]], out: Path) -> list[str]:
    """A line and the curves of every training behind the table."""
    folders = dict.fromkeys(folder for _, result in results for folder in result["history"])
    lines: list[str] = []
    for folder in map(Path, folders):
        if not all((folder / name).is_file() for name in ("curves.png", "run.json", "model.json")):
            continue
        run = read_json(folder / "run.json")
        commit = run["commit"][:9] if run.get("commit") else "unknown commit"
        place = run.get("gpu") or f"{run.get('cpus')} cores ({run.get('machine')})"
        link = os.path.relpath(folder / "curves.png", out.parent)
        facts = f"{folder}: {commit}, torch {run.get('torch')}, {place}; kept, on dev: {_best(folder)}"
        lines += ["", facts, "", f"![curves of {folder}]({link})"]
    return lines


def _best(folder: Path) -> str:
    """Validation metrics of a finished training."""
    best = read_json(folder / "model.json").get("best", {})
    return ", ".join(f"{name} {value:.4g}" for name, value in best.items())
