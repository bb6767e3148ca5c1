"""Checkpoints that appear whole or not at all, and model folders.

A run's folder holds `checkpoints/step-N/` (weights in safetensors, everything else that changes in `state.pt`) and the
best model so far, `model.safetensors`; several of the best (`train.keep_best`) lie in `best/step-N/`. The card
`model.json`, written at the end, makes it a model folder.
"""

import pickle
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from w2vbert.errors import UserError
from w2vbert.files import CHECKPOINTS, atomic_dir, atomic_file, check_space, list_files, read_json, write_json
from w2vbert.log import logger

FORMAT = 1
STATE_FILE = "state.pt"
CARD_FILE = "checkpoint.json"
LAST, BEST = CHECKPOINTS, "best"
"""Folders of a run: of its newest checkpoints, and of its best models."""

Weights = nn.Module | Mapping[str, Tensor]
"""A module, or its parameters and buffers by name."""


def save_checkpoint(
    run: Path, step: int, weights: Mapping[str, Weights], state: Mapping[str, Any], keep_last: int
) -> Path:
    """Writes `run/checkpoints/step-N` aside, renames it, and removes all but the `keep_last` newest up to it.

    Checkpoints of later steps go too: the run has not got there, or it could not use them.

    Args:
        run: the run's folder.
        step: steps done.
        weights: modules, or their tensors, by name; each becomes NAME.safetensors.
        state: everything else that changes in training: tensors, numbers, strings, lists, dicts.
        keep_last: how many checkpoints stay.

    Raises:
        UserError: it cannot be written, for example to a full disk; the checkpoints before it stay.
    """
    target = checkpoint_folder(run, LAST, step)
    write_checkpoint(run, target, weights, {"step": step}, state)
    kept = [folder for folder in list_checkpoints(run) if folder.name <= target.name][-keep_last:]
    for folder in target.parent.glob("step-*"):
        if folder not in kept:
            shutil.rmtree(folder)
    return target


def checkpoint_folder(run: Path, kind: str, step: int) -> Path:
    """Where a checkpoint lies; `kind` is `LAST` or `BEST`."""
    return run / kind / f"step-{step:08d}"


def write_checkpoint(
    run: Path,
    target: Path,
    weights: Mapping[str, Weights],
    card: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder `target` of a run aside and renames it.

    Args:
        run: the run's folder.
        target: the checkpoint's.
        weights: see `save_checkpoint`.
        card: what its card says beside format and checksums.
        state: see `save_checkpoint`; None: weights only.

    Raises:
        UserError: it cannot be written, for example to a full disk.
    """
    with _writing_to(run), atomic_dir(target) as folder:
        for name, module in weights.items():
            tensors = module.state_dict() if isinstance(module, nn.Module) else module
            _write_tensors(tensors, folder / f"{name}.safetensors")
        if state is not None:
            torch.save(dict(state), folder / STATE_FILE)
        checksums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
        write_json(folder / CARD_FILE, {"format": FORMAT, **card, "crc32": checksums})


def check_room(
    run: Path, weights: Mapping[str, nn.Module], params: Sequence[nn.Parameter], keep_last: int, keep_best: int
) -> None:
    """Refuses to begin or go on with a run whose checkpoints have no room.

    Args:
        run: the run's folder.
        weights: modules by name, as for `save_checkpoint`.
        params: what the optimizer keeps two moments of.
        keep_last: how many checkpoints stay; one more is there while it is written.
        keep_best: how many of the best models stay.

    Raises:
        UserError: says how much is needed and how much is free.
    """
    models = [sum(tensor.nbytes for tensor in module.state_dict().values()) for module in weights.values()]
    moments = 2 * sum(param.nbytes for param in params if param.requires_grad)
    bests = 2 + (keep_best if keep_best > 1 else 0)  # model.safetensors, one that is written aside, those under best/
    needed = (keep_last + 1) * (sum(models) + moments) + bests * max(models)
    there = sum(path.stat().st_size for path in list_files(run)) if run.is_dir() else 0
    check_space(run, needed - there)


def list_checkpoints(run: Path, kind: str = LAST) -> list[Path]:
    """Whole checkpoints of a run, oldest first; of its best models with `kind` `BEST`."""
    folders = (run / kind).glob("step-*")
    return sorted(f for f in folders if re.fullmatch(r"step-\d{8}", f.name) and (f / CARD_FILE).is_file())


def load_newest(run: Path, weights: Mapping[str, nn.Module]) -> dict[str, Any] | None:
    """Loads the newest checkpoint that can be used into `weights` and returns its state; None when there is none.

    A damaged one, or one of another program, is named and the one before it used.

    Raises:
        UserError: the checkpoint is whole, but belongs to another model.
    """
    folders = list_checkpoints(run)
    for folder in reversed(folders):
        try:
            state = _read_state(folder)
        except UserError as error:
            logger.warning(f"checkpoint {folder} cannot be used ({error}); trying the one before it")
            continue
        for name, module in weights.items():
            load_weights(module, folder / f"{name}.safetensors")
        return state
    if folders:
        logger.warning(f"{run}: no checkpoint can be used; training begins again")
    return None


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """All but the weights of a checkpoint, whose files are held against their checksums first.

    Raises:
        UserError: says what is wrong.
    """
    damage = find_damage(checkpoint)
    if damage is not None:
        raise UserError(damage)
    try:
        return dict(torch.load(checkpoint / STATE_FILE, weights_only=True, map_location="cpu"))
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
        raise UserError(f"{STATE_FILE} was written by another program") from error


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, by the checksums that were noted when they were written."""
    try:
        card = read_json(checkpoint / CARD_FILE)
        if not isinstance(card, dict) or not isinstance(card.get("crc32"), dict):
            return f"{CARD_FILE} is damaged"
        if card.get("format") not in range(1, FORMAT + 1):
            return f"{CARD_FILE} was written by another program or a newer version"
        for name, checksum in card["crc32"].items():
            if _checksum(checkpoint / name) != checksum:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, UserError) as error:
        return str(error)
    return None


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Says in one way what a full disk makes torch, safetensors and Python say in three."""
    try:
        yield
    except torch.AcceleratorError:  # of something before, which only shows when tensors are fetched
        raise
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        free = shutil.disk_usage(folder).free / 2**20
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot write a checkpoint to {folder}, where {free:.1f} MiB are free ({reason})") from error


def save_weights(module: nn.Module, path: Path) -> None:
    """Parameters and buffers as safetensors, written aside and renamed.

    Raises:
        UserError: they cannot be written, for example to a full disk; an older file stays.
    """
    save_tensors(module.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Tensors by name as safetensors; otherwise as `save_weights`."""
    with _writing_to(path.parent):
        _write_tensors(tensors, path)


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with atomic_file(path) as aside:
        safetensors.torch.save_file(plain, aside)
        aside.chmod(aside.parent.stat().st_mode & 0o666)  # as open as its folder: safetensors shuts all others out


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


def average_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """Mean of each tensor over safetensors files, in double precision; of whole numbers those of the last file.

    Raises:
        UserError: a file is missing or damaged, or they do not belong to one model.
    """
    first = read_weights(files[0])
    sums = {name: tensor.double() for name, tensor in first.items() if tensor.is_floating_point()}
    last = first
    for path in files[1:]:
        last = read_weights(path)
        if {n: t.shape for n, t in last.items()} != {n: t.shape for n, t in first.items()}:
            raise UserError(f"{path} and {files[0]} belong to models of other configurations")
        for name, total in sums.items():
            total += last[name]
    return {n: (sums[n] / len(files)).to(t.dtype) if n in sums else t for n, t in last.items()}


def load_weights(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Loads weights that must fit `module` exactly; with a prefix those whose names begin with it, for part of a model.

    Raises:
        UserError: names the first tensor that is missing, unknown or of another shape.
    """
    stored, wanted = read_weights(path), module.state_dict()
    tensors = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    for name, tensor in wanted.items():
        if name not in tensors:
            raise UserError(f"{path} lacks {prefix}{name}: it belongs to a model of another configuration")
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
            raise UserError(f"{path}: {name} has shape {shapes}: it belongs to a model of another size")
    unknown = sorted(tensors.keys() - wanted.keys())
    if unknown:
        raise UserError(f"{path} has {unknown[0]}, which this model does not know")
    module.load_state_dict(tensors)


def write_model_card(folder: Path, kind: str, details: Mapping[str, Any]) -> None:
    """Marks a folder as a model of `kind` ("w2v-bert", "encoder" or "transducer"), with facts about its training."""
    write_json(folder / "model.json", {"format": FORMAT, "kind": kind, **details})


def read_model_card(folder: Path, *kinds: str) -> dict[str, Any]:
    """The card of a model folder of one of `kinds`.

    Raises:
        UserError: the folder is missing, is no model, or is one of another kind or of a newer format.
    """
    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist")
    if not (folder / "model.json").is_file():
        unfinished = " (its training has not finished)" if (folder / CHECKPOINTS).is_dir() else ""
        old = folder.with_name(f"{folder.name}.old")
        unfinished += f"; the model before it is {old}" if (old / "model.json").is_file() else ""
        raise UserError(f"{folder} is not a model folder: it has no model.json{unfinished}")
    card = read_json(folder / "model.json")
    if not isinstance(card, dict) or "kind" not in card or card.get("format") not in range(1, FORMAT + 1):
        raise UserError(f"{folder / 'model.json'} was written by another program or a newer version")
    if card["kind"] not in kinds:
        raise UserError(f"{folder} holds a {card['kind']} model, but a {' or '.join(kinds)} model is needed here")
    return dict(card)
