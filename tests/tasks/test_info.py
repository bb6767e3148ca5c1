"""What `w2vbert info` tells of folders and configs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.tasks.conftest import ENCODER, Prepared, run
from w2vbert.config import save_config, to_dict
from w2vbert.files import read_json, write_json
from w2vbert.models.w2v_bert import W2vBert, W2vBertConfig
from w2vbert.stages import STAMP
from w2vbert.tasks.info import describe
from w2vbert.tasks.pretrain import PretrainConfig
from w2vbert.tasks.recognize import load_transducer


@pytest.fixture
def finished(prepared: Prepared, tmp_path: Path) -> Path:
    """A model folder with a stamp."""
    model = Path(shutil.copytree(prepared.model, tmp_path / "model"))
    stamp = {"step": "finetune", "fingerprint": "0", "finished": "now", "outputs": {}, "inputs": {}, "config": {"a": 1}}
    write_json(model / STAMP, stamp)
    return model


def test_a_model_folder(finished: Path) -> None:
    facts = describe(finished, None, [])
    assert (facts["step"], facts["kind"], facts["config"]) == ("finetune", "transducer", {"a": 1})
    model, _ = load_transducer(finished)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())


def test_any_folder_of_a_step_as_yaml_and_as_json(prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, step in ((prepared.manifests, "prepare corpus"), (prepared.data, "features"), (prepared.lm, "lm")):
        run("info", folder)
        text = capsys.readouterr().out
        run("info", folder, "--json")
        assert yaml.safe_load(text) == json.loads(capsys.readouterr().out) and yaml.safe_load(text)["step"] == step


def test_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PretrainConfig(model=W2vBertConfig(ENCODER))
    save_config(config, tmp_path / "c.yaml")
    run("info", "--config", tmp_path / "c.yaml", "--set", "batch_seconds=7", "--json")
    facts = json.loads(capsys.readouterr().out)
    model = W2vBert(config.model)
    assert (
        facts["parameters"] == sum(p.numel() for p in model.parameters()) == sum(facts["parameters_by_part"].values())
    )
    assert facts["frames_per_second"] == 25 and facts["config"]["batch_seconds"] == 7
    assert facts["config"]["model"] == json.loads(json.dumps(to_dict(config.model)))
    run("info", "--set", "batch_seconds=8")
    xl = yaml.safe_load(capsys.readouterr().out)
    assert xl["config"]["batch_seconds"] == 8 and 5e8 < xl["parameters"] < 7e8, "w2v-BERT XL has 0.6 billion"


def test_errors(finished: Path, prepared: Prepared, tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "give either a folder" in fails("info")
    assert "give either a folder" in fails("info", finished, "--set", "batch_seconds=7")
    assert "does not exist" in fails("info", tmp_path / "nowhere")
    assert "was not made by w2vbert" in fails("info", prepared.corpus)
    assert "unknown key batch_second, did you mean batch_seconds?" in fails("info", "--set", "batch_second=7")
    (finished / "model.safetensors").write_bytes(b"1234")
    assert "is damaged" in fails("info", finished)
    (finished / "model.safetensors").unlink()
    assert "model.safetensors" in fails("info", finished)
    write_json(finished / STAMP, {"made by": "others"})
    assert "was not written by w2vbert" in fails("info", finished)
    assert read_json(finished / STAMP) == {"made by": "others"}
