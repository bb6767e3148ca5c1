"""A model whose weights are the mean over checkpoints of a run."""

import shutil
from pathlib import Path

from w2vbert.data.features import FEATURES_FILE
from w2vbert.errors import UserError
from w2vbert.log import logger
from w2vbert.stages import Step, run_step
from w2vbert.training.best_models import list_best
from w2vbert.training.checkpoint import (
    average_weights,
    find_damage,
    list_checkpoints,
    read_model_card,
    save_tensors,
    write_model_card,
)


def average(
    run: Path, out: Path, last: int | None, best: int | None, until: int | None = None, force: bool = False
) -> bool:
    """Averages the weights of a finished run's checkpoints into a model folder; False if it is up to date.

    Of the last checkpoints these are the weights that were trained, not their running average (`train.average_decay`);
    of the best models those that were validated: the running average where there is one.

    Args:
        run: folder of a training.
        out: model folder to write.
        last: how many checkpoints, the newest; None: best models are averaged.
        best: how many best models; None: checkpoints are averaged.
        until: no checkpoint after this step; None: up to the newest.
        force: do it again even if it is up to date.

    Raises:
        UserError: not one of `last` and `best` is given; the run has not finished, or has too few checkpoints or
            damaged ones.
    """
    card = read_model_card(run, "w2v-bert", "transducer")
    if last is not None and best is None:
        kind, chosen = "checkpoints", _choose_last(run, last, until)
    elif best is not None and last is None and until is None:
        kind, chosen = "best models", _choose_best(run, best)
    else:
        raise UserError("give either --last N, perhaps with --until STEP, or --best N")

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
        logger.info(f"{out}: mean of the {kind} at steps {', '.join(map(str, chosen))}")

    return run_step(Step("average", out, {"steps": list(chosen), "of": kind}, {"run": run}), work, force)


def _choose_last(run: Path, count: int, until: int | None) -> dict[int, Path]:
    """The newest checkpoints by step, in order.

    Raises:
        UserError: there are too few.
    """
    steps = {int(folder.name.removeprefix("step-")): folder for folder in list_checkpoints(run)}
    steps = {step: folder for step, folder in steps.items() if until is None or step <= until}
    if len(steps) < count:
        up_to = "" if until is None else f" up to step {until}"
        there = ", ".join(map(str, steps)) or "none"
        raise UserError(
            f"{run} has too few checkpoints{up_to} ({there}) for {count}: train.keep_last says how many stay"
        )
    return dict(sorted(steps.items())[-count:])


def _choose_best(run: Path, count: int) -> dict[int, Path]:
    """The best models by step, in the order of their steps.

    Raises:
        UserError: there are too few.
    """
    ranked = list_best(run)
    if len(ranked) < count:
        there = ", ".join(map(str, ranked)) or "none"
        raise UserError(f"{run} keeps too few best models ({there}) for {count}: train.keep_best says how many stay")
    return dict(sorted(list(ranked.items())[:count]))
