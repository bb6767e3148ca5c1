"""The best validated models of a run.

`model.safetensors` is the best one. With `train.keep_best` above 1 so many lie under `best/step-N/`, that one among
them: weights, and a card with step, metrics and checksums. `w2vbert average --best` makes a model of their mean.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from w2vbert.errors import UserError
from w2vbert.files import PARTIAL, read_json, remove_tree
from w2vbert.training.checkpoint import (
    BEST,
    CARD_FILE,
    checkpoint_folder,
    list_checkpoints,
    save_weights,
    write_checkpoint,
)

MODEL_FILE = "model.safetensors"


class BestModels:
    """Keeps the best models of a run; what it knows of them is part of the run's state.

    A run that goes on from a checkpoint before its last validations finds their models, and perhaps not those that had
    to make room for them. It validates again, so it ends with the same set.

    Attributes:
        best: metrics of the best model, with its step; {} before the first one.
        since_best: validations in a row without a better one.
    """

    def __init__(self, run: Path, metric: str, keep: int) -> None:
        """Knows of none.

        Args:
            run: the run's folder.
            metric: name among the metrics, lower is better.
            keep: how many models stay.
        """
        self.best: dict[str, float] = {}
        self.since_best = 0
        self._run = run
        self._metric = metric
        self._keep = keep
        self._ranked: list[dict[str, float]] = []  # those under `best/`, best first

    def judge(self, step: int, metrics: Mapping[str, float], model: nn.Module) -> None:
        """Takes note of a validation, and keeps the model if it is among the best.

        Args:
            step: steps done.
            metrics: of the validation; without the one that counts no model is kept.
            model: what was validated.

        Raises:
            UserError: the model cannot be written, for example to a full disk.
        """
        self.since_best += bool(self.best)
        if self._metric not in metrics:
            return
        found = {"step": step, **metrics}
        if self._keep > 1:
            self._rank(found, model)
        if not self.best or _key(found, self._metric) < _key(self.best, self._metric):
            save_weights(model, self._run / MODEL_FILE)
            if not self.best or _key(found, self._metric)[0] < _key(self.best, self._metric)[0]:
                self.since_best = 0  # an equal one is the later and is kept, but no progress
            self.best = found

    def _rank(self, found: dict[str, float], model: nn.Module) -> None:
        """Gives a model its place under `best/` if it deserves one, and takes away what has lost its own."""
        ranked = sorted([*self._ranked, found], key=lambda metrics: _key(metrics, self._metric))[: self._keep]
        if any(metrics is found for metrics in ranked):
            card = {**found, "metric": self._metric}
            write_checkpoint(self._run, self._folder(found), {"model": model}, card)
        self._ranked = ranked
        kept = {self._folder(metrics) for metrics in ranked}
        for folder in sorted((self._run / BEST).iterdir()):  # what a killed process has left comes first
            if folder not in kept:
                aside = folder.with_name(f"{PARTIAL}{folder.name.removeprefix(PARTIAL)}")
                os.replace(folder, aside)  # a kill leaves no half of it under its name
                remove_tree(aside)

    def _folder(self, metrics: Mapping[str, float]) -> Path:
        return checkpoint_folder(self._run, BEST, int(metrics["step"]))

    def state_dict(self) -> dict[str, Any]:
        """What is known of the models."""
        return {"best": self.best, "since_best": self.since_best, "ranked": self._ranked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with what was known.

        Raises:
            UserError: the best model is gone.
        """
        if state["best"] and not (self._run / MODEL_FILE).is_file():
            raise UserError(f"{self._run}: the best model so far, {MODEL_FILE}, is gone: start again with --force")
        self.best, self.since_best = state["best"], state["since_best"]
        self._ranked = [metrics for metrics in state["ranked"] if self._folder(metrics).is_dir()]


def _key(metrics: Mapping[str, float], metric: str) -> tuple[float, float]:
    """To sort models by, best first: of equal ones the later; what is not a number comes last."""
    value = metrics[metric]
    return (math.inf if math.isnan(value) else value, -metrics["step"])


def list_best(run: Path) -> dict[int, Path]:
    """Folders of the best models of a run by step, best first.

    Raises:
        UserError: a card is damaged.
    """
    found: list[tuple[tuple[float, float], Path]] = []
    for folder in list_checkpoints(run, BEST):
        card = read_json(folder / CARD_FILE)
        try:
            found.append((_key(card, card["metric"]), folder))
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / CARD_FILE} is damaged") from error
    return {int(-key[1]): folder for key, folder in sorted(found)}
