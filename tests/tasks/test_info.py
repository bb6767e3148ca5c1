"""What `w2vbert info` tells of folders and configs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.tasks.conftest import ENCODER, Prepared, run
from w2vbert.config import save_config, to_dict
from w2vbert.files import read_json, write_json
from w2vbert.models.costs import encoder_activation_bytes, pretraining_flops
from w2vbert.models.transducer import Transducer
from w2vbert.models.w2v_bert import W2vBert, W2vBertConfig
from w2vbert.stages import STAMP
from w2vbert.tasks.finetune import FinetuneConfig, TransducerLossConfig
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
    for folder, step in (
        (prepared.manifests, "prepare corpus"),
        (prepared.data, "features"),
        (prepared.lm, "lm ngram"),
    ):
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
    assert facts["kind"] == "pre-training" and 0 not in facts["parameters_by_part"].values()
    assert facts["parameters_by_part"]["quantizer"] == sum(p.numel() for p in model.quantizer.parameters())
    run("info", "--set", "batch_seconds=8")
    xl = yaml.safe_load(capsys.readouterr().out)
    assert xl["config"]["batch_seconds"] == 8 and 5e8 < xl["parameters"] < 7e8, "w2v-BERT XL has 0.6 billion"


def test_costs_of_a_config(tmp_path: Path) -> None:
    config = PretrainConfig(model=W2vBertConfig(ENCODER), max_seconds=20.0)
    save_config(config, tmp_path / "c.yaml")
    facts = describe(None, tmp_path / "c.yaml", [])
    flops = pretraining_flops(config.model, 2000)
    assert facts["seconds_of_an_utterance"] == 20
    assert facts["flops_per_second"] == {
        "forward": round(flops.forward / 20),
        "forward_and_backward": round((flops.forward + flops.backward) / 20),
    }
    kept = facts["activation_bytes_per_second"]
    assert kept["float32"] == round(encoder_activation_bytes(ENCODER, 2000, torch.float32) / 20) > kept["bfloat16"] > 0
    assert facts["weight_and_optimizer_bytes"] == 16 * facts["parameters"]


def test_what_differs_from_the_paper_and_what_it_leaves_open(tmp_path: Path) -> None:
    paper = describe(None, None, ["train.update_seconds=65536", "model.diversity=perplexity"])
    assert all(":" in line for line in paper["unknown_in_the_paper"] + paper["deviations_from_the_paper"])
    assert any(line.startswith("model.quantizer.logit_std: 10.0 (") for line in paper["unknown_in_the_paper"])
    other = describe(None, None, ["model.encoder.block.kernel=31", "model.encoder.masked_blocks=30"])
    new = set(other["deviations_from_the_paper"]) - set(paper["deviations_from_the_paper"])
    assert "model.encoder.block.kernel: 31 (paper: 5)" in new and not any("masked_blocks" in line for line in new)
    assert not any("kernel: 5" in line or "objective" in line for line in paper["deviations_from_the_paper"])


def test_a_fine_tuning_config(tmp_path: Path, fails: Callable[..., str]) -> None:
    config = FinetuneConfig(encoder=ENCODER, loss=TransducerLossConfig(ctc_weight=0.3))
    save_config(config, tmp_path / "c.yaml")
    facts = describe(None, tmp_path / "c.yaml", [])
    model = Transducer(config.transducer(ENCODER, facts["vocab_size"]))
    assert facts["kind"] == "fine-tuning" and facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["parameters_by_part"]["ctc"] == sum(p.numel() for p in model.get_submodule("ctc").parameters())
    assert facts["flops_per_second"]["forward"] > 0 and "unknown_in_the_paper" not in facts
    save_config(FinetuneConfig(), tmp_path / "no_encoder.yaml")
    assert "the key encoder is left out" in fails("info", "--config", tmp_path / "no_encoder.yaml")


def test_a_file_of_another_kind(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "lm.yaml").write_text("ngram: {order: 3}\n")
    assert "is no config of a training: it has ngram" in fails("info", "--config", tmp_path / "lm.yaml")
    assert "is a file: for a config write `w2vbert info --config" in fails("info", tmp_path / "lm.yaml")
    (tmp_path / "typo.yaml").write_text("predictor: {dim: 8}\nloss: {ctc_wieght: 1}\n")
    assert "unknown key ctc_wieght in loss, did you mean ctc_weight?" in fails(
        "info", "--config", tmp_path / "typo.yaml"
    )


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
