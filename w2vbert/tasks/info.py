"""What a folder made by w2vbert holds, and what a config of a training gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2vbert.config import load_config, to_dict, top_level_keys
from w2vbert.errors import UserError
from w2vbert.files import read_json
from w2vbert.stages import STAMP

if TYPE_CHECKING:
    from torch import nn

    from w2vbert.models.costs import Flops
    from w2vbert.models.encoder import EncoderConfig
    from w2vbert.tasks.finetune import FinetuneConfig
    from w2vbert.tasks.pretrain import PretrainConfig

VOCAB_SIZE = 1024
"""Word pieces of the model of a config, as in the paper; in training the tokenizer tells them."""

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12}
"""Products in bfloat16 a second, dense, as the makers' data sheets tell."""

ASSUMED_USE = 0.4
"""Share of the peak that a training is assumed to reach. Nobody has measured it with this code."""


def describe(target: Path | None, config_path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Facts about a folder (what step made it, when, from what) or about the model of a config.

    Raises:
        UserError: neither or both are given, the folder was not made by w2vbert, or the config is not valid.
    """
    if (target is None) == (config_path is None and not overrides):
        raise UserError("give either a folder made by w2vbert or --config FILE (or --set key=value)")
    return _describe_config(config_path, overrides) if target is None else _describe_folder(target)


def _describe_folder(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise UserError(f"{folder} is a file: for a config write `w2vbert info --config {folder}`")
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
        if not str(description.get("kind")).endswith("ngram"):
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


def _describe_config(path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    from dataclasses import fields

    from w2vbert.tasks.finetune import FinetuneConfig
    from w2vbert.tasks.pretrain import PretrainConfig

    keys = set(top_level_keys(path, overrides))
    if "lm" in keys:
        return _describe_lm(path, overrides)
    pretraining, finetuning = ({field.name for field in fields(kind)} for kind in (PretrainConfig, FinetuneConfig))
    if path is not None and keys and not keys & (pretraining | finetuning):
        raise UserError(f"{path} is no config of a training: it has {', '.join(sorted(keys))}")
    if len(keys & finetuning) > len(keys & pretraining):
        return _describe_finetuning(load_config(FinetuneConfig, path, overrides))
    return _describe_pretraining(load_config(PretrainConfig, path, overrides))


def _describe_pretraining(config: "PretrainConfig") -> dict[str, Any]:
    import torch

    from w2vbert.models.costs import pretraining_flops
    from w2vbert.models.objectives import make_pretraining_model
    from w2vbert.tasks.paper import compare_with_paper

    with torch.device("meta"):
        model = make_pretraining_model(config.model)
    settings = to_dict(config)
    deviations, unknowns = compare_with_paper(settings)
    flops = pretraining_flops(config.model, _count_frames(config.max_seconds))
    return {
        "kind": "pre-training",
        **_count_parameters(model),
        **_count_costs(config.model.encoder, flops, config.max_seconds),
        "whole_run": _count_run(config, flops, config.max_seconds),
        "deviations_from_the_paper": deviations,
        "unknown_in_the_paper": unknowns,
        "config": settings,
    }


def _describe_finetuning(config: "FinetuneConfig") -> dict[str, Any]:
    import torch

    from w2vbert.models.costs import transducer_flops
    from w2vbert.models.transducer import Transducer

    if config.encoder is None:
        raise UserError(
            "the key encoder is left out, so the encoder is that of --init: describe that folder, or name it"
        )
    model_config = config.transducer(config.encoder, VOCAB_SIZE)
    with torch.device("meta"):
        model = Transducer(model_config)
    flops = transducer_flops(model_config, _count_frames(config.max_seconds), config.loss.prune_range)
    return {
        "kind": "fine-tuning",
        "vocab_size": VOCAB_SIZE,
        **_count_parameters(model),
        **_count_costs(config.encoder, flops, config.max_seconds),
        "whole_run": _count_run(config, flops, config.max_seconds),
        "config": to_dict(config),
    }


def _describe_lm(path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    import torch

    from w2vbert.models.costs import STATE_BYTES_PER_PARAMETER
    from w2vbert.models.language_model import CausalLm
    from w2vbert.tasks.train_lm import LmTrainConfig

    config = load_config(LmTrainConfig, path, overrides)
    with torch.device("meta"):
        model = CausalLm(config.lm, VOCAB_SIZE)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "kind": "language model",
        "vocab_size": VOCAB_SIZE,
        "parameters": parameters,
        "weight_and_optimizer_bytes": STATE_BYTES_PER_PARAMETER * parameters,
        "config": to_dict(config),
    }


def _count_frames(seconds: float) -> int:
    from w2vbert.data.batches import FRAMES_PER_SECOND

    return round(seconds * FRAMES_PER_SECOND)


def _count_parameters(model: "nn.Module") -> dict[str, Any]:
    from w2vbert.models.costs import STATE_BYTES_PER_PARAMETER

    parts = [part for part in model.named_children() if part[0] != "encoder"]
    by_part = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in [*model.get_submodule("encoder").named_children(), *parts]
    }
    total = sum(by_part.values())
    return {
        "parameters": total,
        "parameters_of_blocks": by_part["contrastive_blocks"] + by_part["masked_blocks"],
        "parameters_by_part": {name: count for name, count in by_part.items() if count},
        "weight_and_optimizer_bytes": STATE_BYTES_PER_PARAMETER * total,
    }


def _count_costs(encoder: "EncoderConfig", flops: "Flops", seconds: float) -> dict[str, Any]:
    """What a second of audio costs, in utterances of `seconds`: attention costs more in longer ones."""
    import torch

    from w2vbert.models.costs import encoder_activation_bytes

    frames = _count_frames(seconds)
    kept = {
        name: round(encoder_activation_bytes(encoder, frames, dtype) / seconds)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    return {
        "frames_per_second": _count_frames(1.0) / encoder.subsampling.stride,
        "seconds_of_an_utterance": seconds,
        "flops_per_second": {
            "forward": round(flops.forward / seconds),
            "forward_and_backward": round(flops.total / seconds),
        },
        "activation_bytes_per_second": kept,
    }


def _count_run(config: "PretrainConfig | FinetuneConfig", flops: "Flops", seconds: float) -> dict[str, Any]:
    """Audio, operations and hours of one GPU for all updates, if batches are full."""
    update_seconds = config.train.update_seconds or config.batch_seconds * config.train.accumulate
    audio_seconds = update_seconds * config.train.max_steps
    total = flops.total / seconds * audio_seconds
    hours = {f"{gpu}_hours": round(total / (ASSUMED_USE * peak) / 3600, 2) for gpu, peak in PEAK_FLOPS.items()}
    return {"audio_hours": round(audio_seconds / 3600, 1), "flops": round(total), "assumed_use": ASSUMED_USE, **hours}
