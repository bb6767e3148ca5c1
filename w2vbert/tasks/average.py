"""A model whose weights are the mean over checkpoints of a run."""

import shutil
from pathlib import Path

from w2vbert.data.features import FEATURES_FILE
from w2vbert.errors import UserError
from w2vbert.log import logger
from w2vbert.stages import Step, run_step
from w2vbert.training.checkpoint import (
    average_weights,
    find_damage,
    list_checkpoints,
    read_model_card,
    save_tensors,
    write_model_card,
)


def average(run: Path, out: Path, last: int, until: int | None = None, force: bool = False) -> bool:
    """Averages the weights of a finished run's checkpoints into a model folder; False if it is up to date.

    These are the weights that were trained, not their running average (`train.average_decay`).

    Args:
        run: folder of a training.
        out: model folder to write.
        last: how many checkpoints.
        until: no checkpoint after this step; None: up to the newest.
        force: do it again even if it is up to date.

    Raises:
        UserError: the run has not finished, or has too few checkpoints or damaged ones.
    """
    card = read_model_card(run, "w2v-bert", "transducer")
    steps = {int(folder.name.removeprefix("step-")): folder for folder in list_checkpoints(run)}
    steps = {step: folder for step, folder in steps.items() if until is None or step <= until}
    if len(steps) < last:
        there = ", ".join(map(str, steps)) or "none"
        up_to = "" if until is None else f" up to step {until}"
        raise UserError(
            f"{run} has too few checkpoints{up_to} ({there}) for {last}: train.keep_last says how many stay"
        )
    chosen = dict(sorted(steps.items())[-last:])

    def work(folder: Path) -> None:
        for checkpoint in chosen.values():
            damage = find_damage(checkpoint)
            if damage is not None:
                raise UserError(f"{checkpoint}: {damage}")
        weights = average_weights([checkpoint / "model.safetensors" for checkpoint in chosen.values()])
        save_tensors(weights, folder / "model.safetensors")
        for name in ("model.yaml", FEATURES_FILE):
            shutil.copyfile(run / name, folder / name)
        if (run / "tokenizer").is_dir():
            shutil.copytree(run / "tokenizer", folder / "tokenizer")
        kept = {key: value for key, value in card.items() if key not in ("format", "kind", "best")}
        write_model_card(folder, card["kind"], kept | {"averaged_steps": list(chosen)})
        logger.info(f"{out}: mean of the checkpoints at steps {', '.join(map(str, chosen))}")

    return run_step(Step("average", out, {"steps": list(chosen)}, {"run": run}), work, force)
