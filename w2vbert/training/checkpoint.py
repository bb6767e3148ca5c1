"""Checkpoints that appear whole or not at all, and model folders.

A run's folder holds `checkpoints/step-N/` (weights in safetensors, everything else that changes in `state.pt`) and the
best model so far, `model.safetensors`. The card `model.json`, written at the end, makes it a model folder.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from w2vbert.errors import UserError
from w2vbert.log import logger
from w2vbert.stages import atomic_dir, atomic_file, read_json, write_json

FORMAT = 1


def save_checkpoint(
    run: Path, step: int, weights: Mapping[str, nn.Module], state: Mapping[str, Any], keep_last: int
) -> Path:
    """Writes `run/checkpoints/step-N` aside, renames it, and removes all but the `keep_last` newest.

    Args:
        run: the run's folder.
        step: steps done.
        weights: modules by name; each becomes NAME.safetensors.
        state: everything else that changes in training: tensors, numbers, strings, lists, dicts.
        keep_last: how many checkpoints stay.
    """
    target = run / "checkpoints" / f"step-{step:08d}"
    with atomic_dir(target) as folder:
        for name, module in weights.items():
            save_weights(module, folder / f"{name}.safetensors")
        torch.save(dict(state), folder / "state.pt")
        write_json(folder / "checkpoint.json", {"format": FORMAT, "step": step})
    for old in list_checkpoints(run)[:-keep_last]:
        shutil.rmtree(old)
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted(f for f in folders if re.fullmatch(r"step-\d{8}", f.name) and (f / "checkpoint.json").is_file())


def load_newest(run: Path, weights: Mapping[str, nn.Module]) -> dict[str, Any] | None:
    """Loads the newest checkpoint that can be read into `weights` and returns its state; None when there is none.

    A damaged one is named and the one before it used.
    """
    for folder in reversed(list_checkpoints(run)):
        try:
            state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
            for name, module in weights.items():
                load_weights(module, folder / f"{name}.safetensors")
            return dict(state)
        except (UserError, OSError, RuntimeError, EOFError) as error:
            logger.warning(f"checkpoint {folder} cannot be used ({error}); trying the one before it")
    return None


def save_weights(module: nn.Module, path: Path) -> None:
    """Parameters and buffers as safetensors, written aside and renamed."""
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()}
    with atomic_file(path) as aside:
        safetensors.torch.save_file(tensors, aside)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: is its folder a model?") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error})") from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads weights that must fit `module` exactly.

    Raises:
        UserError: names the first tensor that is missing, unknown or of another shape.
    """
    tensors, wanted = read_weights(path), module.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise UserError(f"{path} lacks {name}: it belongs to a model of another configuration")
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
            raise UserError(f"{path}: {name} has shape {shapes}: it belongs to a model of another size")
    unknown = sorted(tensors.keys() - wanted.keys())
    if unknown:
        raise UserError(f"{path} has {unknown[0]}, which this model does not know")
    module.load_state_dict(tensors)


def write_model_card(folder: Path, kind: str, details: Mapping[str, Any]) -> None:
    """Marks a folder as a model of `kind` ("w2v-bert" or "transducer"), with facts about its training."""
    write_json(folder / "model.json", {"format": FORMAT, "kind": kind, **details})


def read_model_card(folder: Path, kind: str) -> dict[str, Any]:
    """The card of a model folder.

    Raises:
        UserError: the folder is missing, is no model, or is one of another kind or of a newer format.
    """
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    if not (folder / "model.json").is_file():
        unfinished = " (its training has not finished)" if (folder / "checkpoints").is_dir() else ""
        raise UserError(f"{folder} is not a model folder: it has no model.json{unfinished}")
    card = read_json(folder / "model.json")
    if not isinstance(card, dict) or "kind" not in card or card.get("format", FORMAT + 1) > FORMAT:
        raise UserError(f"{folder / 'model.json'} was written by another program or a newer version")
    if card["kind"] != kind:
        raise UserError(f"{folder} holds a {card['kind']} model, but a {kind} model is needed here")
    return dict(card)
