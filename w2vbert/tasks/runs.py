"""Folders of training runs: how they begin and how they end, the same for every task."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from w2vbert import __version__
from w2vbert.config import load_config, save_config
from w2vbert.data.features import FEATURES_FILE, FeatureConfig
from w2vbert.errors import UserError
from w2vbert.files import write_json
from w2vbert.log import logger, setup_logging
from w2vbert.machine import local_processes, usable_cores
from w2vbert.models.encoder import EncoderConfig
from w2vbert.stages import Step
from w2vbert.training.checkpoint import write_model_card
from w2vbert.training.config import TrainConfig
from w2vbert.training.distributed import World, join_world
from w2vbert.training.trainer import TrainResult


def prepare_run(step: Step, config: TrainConfig, force: bool) -> World:
    """Opens the run's folder (an unfinished run of the same config goes on in it) and notes where it runs.

    Returns:
        This process among those of the run; the first one has done all this for the others.
    """
    world = join_world()
    if world.is_first:
        step.start(force)
        setup_logging(step.out / "train.log")
        save_config(step.config, step.out / "config.yaml")
        write_json(step.out / "run.json", _describe_machine() | {"processes": world.size})
    world.wait()
    share = usable_cores() // local_processes()
    torch.set_num_threads(config.threads or max(share, 1))
    torch.manual_seed(config.seed)
    return world


def check_mel_bins(data: Path, encoder: EncoderConfig) -> None:
    """Refuses an encoder that is not made for the features of a data set.

    Raises:
        UserError: says how many mel bins each has.
    """
    stored = load_config(FeatureConfig, data / FEATURES_FILE).num_mel_bins
    wanted = encoder.subsampling.num_mel_bins
    if stored != wanted:
        raise UserError(f"{data} holds features with {stored} mel bins, but the model takes {wanted} (num_mel_bins)")


def finish_run(
    step: Step,
    kind: str,
    result: TrainResult,
    history: Mapping[str, Any] = MappingProxyType({}),
    details: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Turns the finished run's folder into a model folder and stamps it.

    Args:
        step: the run.
        kind: of the model.
        result: what the trainer returned.
        history: cost of the trainings that this one builds on, by folder, as their cards tell it.
        details: what else the card shall say.
    """
    own = {"audio_hours": result.audio_hours, "minutes": result.minutes}
    card = asdict(result) | {"history": {**history, str(step.out): own}, **details}
    write_model_card(step.out, kind, card)
    step.finish()
    audio = f"{result.audio_hours:.1f} h of audio in " if result.audio_hours else ""
    logger.info(f"{step.out}: {kind} model, {audio}{result.minutes:.1f} min")


def _find_commit() -> str | None:
    """Commit of the code that runs; None where it is not in a git repository, or git is not installed."""
    if shutil.which("git") is None:
        return None
    # safe.directory: a clone that belongs to another user is read as well.
    command = ["git", "-c", "safe.directory=*", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _describe_machine() -> dict[str, object]:
    return {
        "command": sys.argv,
        "commit": _find_commit(),
        "w2vbert": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
