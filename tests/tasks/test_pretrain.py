"""Pre-training as a step: done once, killed and continued, refused."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from tests.tasks.conftest import ENCODER, Prepared, is_up_to_date, kill, run
from w2vbert.config import load_config, save_config
from w2vbert.files import read_json
from w2vbert.models.quantizer import QuantizerConfig
from w2vbert.models.w2v_bert import W2vBert, W2vBertConfig
from w2vbert.tasks.pretrain import PretrainConfig
from w2vbert.training.checkpoint import load_weights, read_weights
from w2vbert.training.config import TrainConfig
from w2vbert.training.metrics import TIMINGS
from w2vbert.training.optim import OptimConfig

CONFIG = PretrainConfig(
    model=W2vBertConfig(ENCODER, QuantizerConfig(codes=8, dim=8), mask_span_frames=3, num_distractors=5),
    train=TrainConfig(max_steps=9, log_every_steps=2, validate_every_steps=4, save_every_steps=3, threads=1),
    optim=OptimConfig(1e-3, 2),
    batch_seconds=1.0,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    save_config(CONFIG, tmp_path / "pretrain.yaml")
    return tmp_path / "pretrain.yaml"


def test_it_leaves_a_model_folder_and_is_done_once(
    prepared: Prepared, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    base = ("pretrain", prepared.data, out, "--config", config)
    assert not is_up_to_date(caplog, *base)
    assert load_config(PretrainConfig, out / "config.yaml") == CONFIG
    load_weights(W2vBert(CONFIG.model), out / "model.safetensors")
    card = read_json(out / "model.json")
    assert (card["kind"], card["steps"]) == ("w2v-bert", 9) and card["best"]["step"] in (4, 8, 9)
    assert card["history"] == {str(out): {key: card[key] for key in ("audio_hours", "minutes")}}
    assert read_json(out / "run.json")["command"] and (out / "curves.png").is_file() and (out / "train.log").is_file()
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if m["split"] == "train"] == [2, 4, 6, 8, 9]
    assert [m["step"] for m in metrics if m["split"] == "dev"] == [4, 8, 9]
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000006", "step-00000009"]
    assert is_up_to_date(caplog, *base)
    assert not is_up_to_date(caplog, *base, "--set", "train.max_steps=5")
    assert read_json(out / "model.json")["steps"] == 5
    assert not is_up_to_date(caplog, *base, "--set", "train.max_steps=5", "--force")


def test_other_data_make_another_run(
    prepared: Prepared, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("features", prepared.manifests, tmp_path / "data", "--set", "high_hz=7000")
    base = ("--config", config, "--set", "train.max_steps=2")
    run("pretrain", prepared.data, tmp_path / "out", *base)
    assert not is_up_to_date(caplog, "pretrain", tmp_path / "data", tmp_path / "out", *base)
    assert is_up_to_date(caplog, "pretrain", tmp_path / "data", tmp_path / "out", *base)


def test_killed_and_started_again_gives_the_same_weights(prepared: Prepared, config: Path, tmp_path: Path) -> None:
    arguments = ("--config", config)
    run("pretrain", prepared.data, tmp_path / "whole", *arguments)
    out = tmp_path / "out"
    kill("step-00000006/checkpoint.json", 1, "pretrain", prepared.data, out, *arguments)  # while it is written
    assert (out / "checkpoints" / "step-00000003").is_dir() and not (out / "model.json").exists()
    kill("out/.stamp.json", 1, "pretrain", prepared.data, out, *arguments)
    assert (out / "model.json").exists() and not (out / ".stamp.json").exists()
    run("pretrain", prepared.data, out, *arguments)
    assert_equal_runs(tmp_path / "whole", out)


def assert_equal_runs(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "checkpoints/step-00000009/model.safetensors"):
        expected, found = read_weights(one / name), read_weights(other / name)
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    cards = [read_json(run / "model.json") for run in (one, other)]
    assert cards[0]["best"] == cards[1]["best"] and cards[0]["audio_hours"] == cards[1]["audio_hours"]
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    for a, b in zip(*lines, strict=True):
        assert {k: v for k, v in a.items() if k not in TIMINGS} == {k: v for k, v in b.items() if k not in TIMINGS}


def test_errors_leave_nothing(prepared: Prepared, config: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    base = ("pretrain", prepared.data, tmp_path / "out", "--config", config)
    assert "unknown key max_step in train, did you mean max_steps?" in fails(*base, "--set", "train.max_step=3")
    assert "unknown key quantiser in model, did you mean quantizer?" in fails(*base, "--set", "model.quantiser.codes=4")
    assert "must be at least 1" in fails(*base, "--set", "train.max_steps=0")
    assert "no utterance between" in fails(*base, "--set", "max_seconds=0.05")
    assert "no such file or folder" in fails("pretrain", tmp_path / "nowhere", *base[2:])
    assert "holds cuts without features" in fails("pretrain", prepared.manifests, *base[2:])
    assert "does not exist: run `w2vbert features`" in fails("pretrain", prepared.corpus, *base[2:])
    assert sorted(os.listdir(tmp_path)) == ["pretrain.yaml"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    assert "was not made by pretrain" in fails(*base)
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


def test_long_utterances_are_cropped(
    prepared: Prepared, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = ("--set", "train.max_steps=6", "--set", "max_seconds=0.2", "--set", "batch_seconds=0.8")
    run("pretrain", prepared.data, tmp_path / "out", "--config", config, *few)
    assert not any("left out" in record.getMessage() for record in caplog.records)
    # 12 utterances of 0.3 s and more in batches of 4: 6 batches are two epochs.
    assert read_json(tmp_path / "out" / "model.json")["audio_hours"] == pytest.approx(2 * 12 * 0.2 / 3600)


def test_utterances_shorter_than_the_receptive_field_are_left_out_and_counted(
    prepared: Prepared, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = Path(shutil.copytree(prepared.data, tmp_path / "data", ignore=shutil.ignore_patterns("storage", ".*")))
    cuts = list(CutSet.from_file(data / "cuts_unlabelled.jsonl.gz"))
    short = [
        replace(cut, id=f"{cut.id}-s", duration=0.06, features=replace(cut.features, num_frames=6)) for cut in cuts
    ]
    CutSet.from_cuts([*short, *cuts]).to_file(data / "cuts_unlabelled.jsonl.gz")
    run("pretrain", data, tmp_path / "out", "--config", config, "--set", "train.max_steps=2")
    assert any("left out 4 utterances under 0.1 s" in record.getMessage() for record in caplog.records)


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    prepared: Prepared, config: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("pretrain", prepared.data, tmp_path / "out", "--config", config)
    real, left = os.fsync, [10**6]

    def fill(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fill)
        run("pretrain", prepared.data, tmp_path / "whole", "--config", config)
        left[0] = (10**6 - left[0]) // 2
        assert "no space left on device" in fails(*base)
    assert (tmp_path / "out" / "checkpoints").is_dir() and not (tmp_path / "out" / "model.json").exists()
    run(*base)
    assert_equal_runs(tmp_path / "whole", tmp_path / "out")
