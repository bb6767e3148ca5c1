"""Encoders of transformers as model folders, from which fine-tuning and pre-training begin."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_wav2vec2_bert import SETTINGS
from tests.tasks.conftest import ENCODER, Prepared, is_up_to_date, run
from w2vbert.config import load_config, save_config
from w2vbert.data.features import W2V_BERT_2, FeatureConfig, features_of_waveform, normalize
from w2vbert.files import read_json
from w2vbert.models.encoder import SpeechEncoder
from w2vbert.models.quantizer import QuantizerConfig
from w2vbert.models.transducer import PredictorConfig
from w2vbert.models.w2v_bert import W2vBertConfig
from w2vbert.tasks.encoders import load_encoder_weights, read_encoder_config
from w2vbert.tasks.finetune import FinetuneConfig
from w2vbert.tasks.pretrain import PretrainConfig
from w2vbert.training.checkpoint import read_weights
from w2vbert.training.config import TrainConfig
from w2vbert.training.schedules import OptimConfig

TRAIN = TrainConfig(max_steps=2, log_every_steps=1, validate_every_steps=2, save_every_steps=2, threads=1)
PRETRAIN = PretrainConfig(
    model=W2vBertConfig(quantizer=QuantizerConfig(codes=8, dim=8), mask_span_frames=3, num_distractors=5),
    train=TRAIN,
    optim=OptimConfig(1e-3, 0),
    batch_seconds=1.0,
)
FINETUNE = FinetuneConfig(
    predictor=PredictorConfig(dim=8, layers=1),
    projection_dim=8,
    joiner_dim=8,
    train=TRAIN,
    encoder_optim=OptimConfig(1e-4, 0),
    batch_seconds=1.0,
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers with a tiny model and its feature extractor."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    settings = SETTINGS | {"feature_projection_input_dim": 160}
    transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**settings)).save_pretrained(folder)
    transformers.SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def imported(theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "encoder"
    run("import", theirs, out, "--set", "contrastive_blocks=1")
    return out


@pytest.fixture(scope="module")
def data(imported: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features that the imported model asks for, by the file that it has of them."""
    out = tmp_path_factory.mktemp("features") / "data"
    run("features", prepared.manifests, out, "--config", imported / "features.yaml")
    return out


def changed(theirs: Path, out: Path, file: str, **settings: Any) -> Path:
    """A copy of a folder with other settings in a JSON file."""
    shutil.copytree(theirs, out)
    (out / file).write_text(json.dumps(read_json(theirs / file) | settings))
    return out


@torch.no_grad()
def test_from_samples_to_states_it_is_transformers(theirs: Path, imported: Path) -> None:
    import transformers

    samples = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    inputs = transformers.SeamlessM4TFeatureExtractor()(samples.numpy(), sampling_rate=16000, return_tensors="pt")
    expected = transformers.Wav2Vec2BertModel.from_pretrained(theirs).eval()(**inputs).last_hidden_state
    encoder = SpeechEncoder(read_encoder_config(imported)).eval()
    load_encoder_weights(encoder, imported)
    features = normalize(features_of_waveform(samples, W2V_BERT_2))
    found = encoder(features[None], torch.tensor([len(features)])).output
    assert found.shape == expected.shape == (1, 49, 16)
    assert (found - expected).square().mean().sqrt() < 0.03 < expected.std(), "stored features are exact to 1/64"


def test_a_model_folder_is_made_once(
    theirs: Path, imported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = read_encoder_config(imported)
    assert (config.contrastive_blocks, config.masked_blocks) == (1, 2)
    assert load_config(FeatureConfig, imported / "features.yaml") == W2V_BERT_2
    assert read_json(imported / "model.json")["kind"] == "encoder"
    assert is_up_to_date(caplog, "import", theirs, imported, "--set", "contrastive_blocks=1")
    assert not is_up_to_date(caplog, "import", theirs, tmp_path / "out", "--set", "dropout_prob=0.3")
    assert read_encoder_config(tmp_path / "out").block.dropout_prob == 0.3


def test_fine_tuning_begins_with_it(imported: Path, data: Path, prepared: Prepared, tmp_path: Path) -> None:
    save_config(FINETUNE, tmp_path / "c.yaml")
    arguments = ("--tokenizer", prepared.tokenizer, "--init", imported, "--config", tmp_path / "c.yaml")
    run("finetune", data, tmp_path / "out", *arguments, "--set", "encoder_optim.freeze_steps=2")
    before, after = read_weights(imported / "model.safetensors"), read_weights(tmp_path / "out" / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(after[f"encoder.{name}"], tensor), name
    run("decode", "--model", tmp_path / "out", next(prepared.corpus.rglob("*.flac")))


def test_pre_training_goes_on_with_it_and_fresh_codebooks(
    imported: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_config(PRETRAIN, tmp_path / "c.yaml")
    call = ("pretrain", data, tmp_path / "out", "--init", imported, "--config", tmp_path / "c.yaml")
    call = (*call, "--set", "optim.freeze_steps=2")
    run(*call)
    before, after = read_weights(imported / "model.safetensors"), read_weights(tmp_path / "out" / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(after[f"encoder.{name}"], tensor), name
    assert load_config(W2vBertConfig, tmp_path / "out" / "model.yaml").encoder == read_encoder_config(imported)
    assert read_encoder_config(tmp_path / "out") == read_encoder_config(imported)
    assert is_up_to_date(caplog, *call)


def test_an_objective_without_contrastive_module_wants_an_encoder_without(
    theirs: Path, imported: Path, data: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    save_config(PRETRAIN, tmp_path / "c.yaml")
    settings = ("--config", tmp_path / "c.yaml", "--set", "model.objective=best-rq")
    settings = (*settings, "--set", "model.encoder.contrastive_blocks=0")
    error = fails("pretrain", data, tmp_path / "out", "--init", imported, *settings)
    assert "does not fit the config" in error and "contrastive" in error
    run("import", theirs, tmp_path / "other", "--set", "contrastive_blocks=0")
    run("pretrain", data, tmp_path / "out", "--init", tmp_path / "other", *settings)
    assert read_encoder_config(tmp_path / "out").masked_blocks == 3


def test_pre_training_from_a_pre_trained_model_remembers_its_cost(imported: Path, data: Path, tmp_path: Path) -> None:
    save_config(PRETRAIN, tmp_path / "c.yaml")
    first, second = tmp_path / "first", tmp_path / "second"
    run("pretrain", data, first, "--init", imported, "--config", tmp_path / "c.yaml")
    run("pretrain", data, second, "--init", first, "--config", tmp_path / "c.yaml", "--set", "train.seed=2")
    assert list(read_json(second / "model.json")["history"]) == [str(first), str(second)]


def test_what_does_not_fit_is_one_line(
    theirs: Path, imported: Path, data: Path, prepared: Prepared, tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    save_config(PRETRAIN, tmp_path / "c.yaml")
    pretrain = ("pretrain", data, out, "--config", tmp_path / "c.yaml", "--init")
    other = replace(PRETRAIN, model=W2vBertConfig(encoder=ENCODER))
    save_config(other, tmp_path / "other.yaml")
    assert "holds a transducer model, but a w2v-bert or encoder model" in fails(*pretrain, prepared.model)
    assert "key model.encoder contradicts" in fails(
        "pretrain", data, out, "--init", imported, "--config", tmp_path / "other.yaml"
    )
    for blocks in (7, 0):
        deeper = ("--config", tmp_path / "c.yaml", "--set", f"model.encoder.masked_blocks={blocks}")
        assert "key model.encoder contradicts" in fails("pretrain", data, out, "--init", imported, *deeper)
    message = fails("pretrain", prepared.data, out, "--init", imported, "--config", tmp_path / "c.yaml")
    assert "differ in " in message and "high_hz, snip_edges" in message and "the model needs other features" in message
    assert not out.exists()


def test_foreign_and_damaged_folders_are_one_line(theirs: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "out"
    assert "config.json does not exist: give a folder" in fails("import", tmp_path, out)
    wav2vec = changed(theirs, tmp_path / "a", "config.json", model_type="wav2vec2")
    assert "a/config.json: model_type is 'wav2vec2'" in fails("import", wav2vec, out)
    wide = changed(theirs, tmp_path / "b", "config.json", intermediate_size=48)
    assert "b/model.safetensors: encoder.layers.0.ffn1" in fails("import", wide, out)
    stride = changed(theirs, tmp_path / "c", "preprocessor_config.json", stride="two")
    assert "stride is 'two'" in fails("import", stride, out)
    whisper = changed(
        theirs, tmp_path / "d", "preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor"
    )
    assert "feature_extractor_type is 'WhisperFeatureExtractor'" in fails("import", whisper, out)
    (whisper / "config.json").write_text("[]")
    assert "is no config of a model" in fails("import", whisper, out)
    (stride / "model.safetensors").write_bytes(b"1234")
    (stride / "preprocessor_config.json").unlink()
    assert "is damaged or no safetensors file" in fails("import", stride, out)
    assert not out.exists()
