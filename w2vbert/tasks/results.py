"""`wer.json`: what a decoding has scored, for the table that a recipe ends with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vbert.errors import UserError
from w2vbert.files import read_json, write_json

if TYPE_CHECKING:  # it loads torch, which a report can do without
    from w2vbert.tasks.fusion import LanguageModels

RESULT = "wer.json"


def write_result(
    folder: Path, model: Path, lms: LanguageModels, splits: Mapping[str, Any], history: Mapping[str, Any]
) -> None:
    """Writes the result of a decoding into its folder.

    Args:
        model, lms: what decoded.
        splits: scores of each.
        history: of the model's trainings, from its card.
    """
    names = "+".join(map(str, lms.folders)) or None
    write_json(folder / RESULT, {"model": str(model), "lm": names, "splits": splits, "history": history})


def read_result(folder: Path) -> dict[str, Any]:
    """What `write_result` has written into a folder.

    Raises:
        UserError: there is no such file, or something else wrote it.
    """
    if not (folder / RESULT).is_file():
        raise UserError(f"{folder} holds no {RESULT}: give a folder that `w2vbert decode --data ... --out` wrote")
    result = read_json(folder / RESULT)
    parts = [result.get(key) for key in ("splits", "history")] if isinstance(result, dict) else [None]
    if not all(isinstance(part, dict) and all(isinstance(x, dict) for x in part.values()) for part in parts):
        raise UserError(f"{folder / RESULT} was not written by `w2vbert decode`")
    return result
