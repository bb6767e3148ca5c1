"""Encoders to start from: of `w2vbert pretrain`, and of others by `w2vbert import`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from w2vbert.config import load_config, save_config
from w2vbert.data.features import FEATURES_FILE, W2V_BERT_2, FeatureConfig
from w2vbert.errors import UserError
from w2vbert.files import read_json
from w2vbert.log import logger
from w2vbert.models.encoder import EncoderConfig, SpeechEncoder
from w2vbert.models.w2v_bert import W2vBertConfig
from w2vbert.models.wav2vec2_bert import convert_config, convert_weights
from w2vbert.stages import Step, run_step
from w2vbert.training.checkpoint import load_weights, read_model_card, read_weights, save_weights, write_model_card

PRETRAINED, IMPORTED = "w2v-bert", "encoder"
"""Kinds of model folders that hold an encoder to start from."""

EXTRACTOR_TYPE = "SeamlessM4TFeatureExtractor"


@dataclass(frozen=True)
class ImportConfig:
    """What to make of an encoder of the kind of w2v-bert-2.0.

    Attributes:
        contrastive_blocks: how many of its blocks form the contrastive module in continued pre-training; null: half.
        dropout_prob: of every dropout in later training; null: `hidden_dropout` of its config.json (0 in w2v-bert-2.0).
    """

    contrastive_blocks: int | None = None
    dropout_prob: float | None = None


def read_encoder_config(folder: Path) -> EncoderConfig:
    """Architecture of the encoder of a pre-trained or imported model.

    Raises:
        UserError: the folder does not hold one.
    """
    settings = folder / "model.yaml"
    if _is_imported(folder):
        return load_config(EncoderConfig, settings)
    return load_config(W2vBertConfig, settings).encoder


def load_encoder_weights(encoder: SpeechEncoder, folder: Path) -> None:
    """Gives an encoder of the same architecture the weights of a pre-trained or imported model.

    Raises:
        UserError: the folder does not hold such an encoder.
    """
    load_weights(encoder, folder / "model.safetensors", prefix="" if _is_imported(folder) else "encoder.")


def _is_imported(folder: Path) -> bool:
    return bool(read_model_card(folder, PRETRAINED, IMPORTED)["kind"] == IMPORTED)


def read_encoder_history(folder: Path) -> dict[str, Any]:
    """Cost of the trainings that made an encoder, by folder; of an imported one nothing is known.

    Raises:
        UserError: the folder does not hold one.
    """
    return dict(read_model_card(folder, PRETRAINED, IMPORTED)["history"])


def import_encoder(
    source: Path, out: Path, config_path: Path | None = None, overrides: Sequence[str] = (), force: bool = False
) -> bool:
    """Makes a model folder from one in which transformers has saved a `Wav2Vec2BertModel`; False if up to date.

    Raises:
        UserError: a file is missing or damaged, or the model has a part that is not known here.
    """
    config = load_config(ImportConfig, config_path, overrides)
    files = {name: source / name for name in ("config.json", "model.safetensors", "preprocessor_config.json")}
    for path in list(files.values())[:2]:
        if not path.is_file():
            raise UserError(f"{path} does not exist: give a folder as transformers' save_pretrained writes it")
    inputs = {name: path if path.is_file() else None for name, path in files.items()}
    step = Step("import", out, config, inputs)
    return run_step(step, lambda folder: _convert(files, folder, config), force)


def _convert(files: Mapping[str, Path], out: Path, config: ImportConfig) -> None:
    """Fills the model folder."""
    settings = _read_settings(files["config.json"])
    stacked_frames = _read_stacked_frames(files["preprocessor_config.json"])
    weights = read_weights(files["model.safetensors"])
    try:
        read = files["config.json"]
        encoder_config = convert_config(settings, stacked_frames, config.contrastive_blocks, config.dropout_prob)
        read = files["model.safetensors"]
        converted, left_out = convert_weights(weights, encoder_config)
    except ValueError as error:
        raise UserError(f"{read}: {error}") from error
    with torch.device("meta"):
        encoder = SpeechEncoder(encoder_config)
    encoder.load_state_dict(converted, assign=True)
    save_weights(encoder, out / "model.safetensors")
    save_config(encoder_config, out / "model.yaml")
    save_config(matching_features(encoder_config), out / FEATURES_FILE)
    write_model_card(out, IMPORTED, {"source": str(read.parent), "history": {}})
    if left_out:
        logger.info(f"left out, for they are no part of the encoder: {', '.join(left_out)}")
    parameters = sum(weight.numel() for weight in converted.values())
    logger.info(f"{parameters / 1e6:.1f} M parameters; {FEATURES_FILE} says which features they need")


def matching_features(encoder: EncoderConfig) -> FeatureConfig:
    """Features like those that an imported encoder was trained on."""
    return replace(W2V_BERT_2, num_mel_bins=encoder.subsampling.num_mel_bins)


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path} is no config of a model")
    return settings


def _read_stacked_frames(path: Path) -> int:
    """`stride` of the feature extractor; 2, as in w2v-bert-2.0, where its file is absent."""
    if not path.is_file():
        logger.warning(f"{path} does not exist: features as for w2v-bert-2.0 are assumed")
        return 2
    settings = _read_settings(path)
    wanted = {"feature_extractor_type": EXTRACTOR_TYPE, "sampling_rate": 16000}
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise UserError(f"{path}: {key} is {settings[key]!r}, but only {value!r} is known")
    stacked_frames = settings.get("stride", 2)
    if not isinstance(stacked_frames, int) or stacked_frames < 1:
        raise UserError(f"{path}: stride is {stacked_frames!r}, but a number of frames is needed")
    return stacked_frames
