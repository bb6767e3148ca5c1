"""What a folder made by w2vbert holds, and what a config gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from w2vbert.config import load_config, to_dict
from w2vbert.errors import UserError
from w2vbert.files import read_json
from w2vbert.stages import STAMP


def describe(target: Path | None, config_path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Facts about a folder (what step made it, when, from what) or about the model of a pre-training config.

    Raises:
        UserError: neither or both are given, the folder was not made by w2vbert, or the config is not valid.
    """
    if (target is None) == (config_path is None and not overrides):
        raise UserError("give either a folder made by w2vbert or --config FILE (or --set key=value)")
    return _describe_config(config_path, overrides) if target is None else _describe_folder(target)


def _describe_folder(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist")
    if not (folder / STAMP).is_file():
        raise UserError(f"{folder} was not made by w2vbert, or the step that makes it has not finished")
    stamp = read_json(folder / STAMP)
    keys = ("step", "finished", "inputs", "config")
    if not isinstance(stamp, dict) or not stamp.keys() >= set(keys):
        raise UserError(f"{folder / STAMP} was not written by w2vbert")
    description = {key: stamp[key] for key in keys}
    if (folder / "model.json").is_file():
        description |= read_json(folder / "model.json")
        description["parameters"] = _count_stored(folder / "model.safetensors")
    return description


def _count_stored(weights: Path) -> int:
    import math

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="pt") as file:
            names = [name for name in file.keys() if "running_" not in name]  # noqa: SIM118
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except SafetensorError as error:
        raise UserError(f"{weights} is damaged or no safetensors file ({error})") from error


def _describe_config(config_path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    import torch

    from w2vbert.models.objectives import make_pretraining_model
    from w2vbert.tasks.pretrain import PretrainConfig

    config = load_config(PretrainConfig, config_path, overrides)
    with torch.device("meta"):
        model = make_pretraining_model(config.model)
    encoder = model.encoder
    parts = {
        "feature_encoder": encoder.feature_encoder,
        "input_linear": encoder.input_linear,
        "contrastive_blocks": encoder.contrastive_blocks,
        "masked_blocks": encoder.masked_blocks,
        "quantizer": model.quantizer,
        "context_linear": getattr(model, "context_linear", None),
        "code_linear": model.code_linear,
    }
    by_part = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    return {
        "parameters": sum(by_part.values()),
        "parameters_by_part": by_part,
        "frames_per_second": 100 / config.model.encoder.subsampling.stride,
        "config": to_dict(config),
    }
