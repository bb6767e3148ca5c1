"""Pre-training with each objective, and with a watch that finds a collapse: by the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.conftest import ENCODER, Prepared, run
from w2vbert import cli
from w2vbert.config import save_config
from w2vbert.data.batches import SpeechBatch
from w2vbert.files import read_json
from w2vbert.models.quantizer import QuantizerConfig
from w2vbert.models.w2v_bert import W2vBertConfig
from w2vbert.tasks import collapse
from w2vbert.tasks.finetune import FinetuneConfig
from w2vbert.tasks.pretrain import PretrainConfig, PretrainTask
from w2vbert.training.checkpoint import read_weights
from w2vbert.training.config import TrainConfig
from w2vbert.training.metrics import TIMINGS
from w2vbert.training.optim import OptimConfig
from w2vbert.training.task import StepOutput

CONFIG = PretrainConfig(
    model=W2vBertConfig(ENCODER, QuantizerConfig(codes=8, dim=8), mask_span_frames=3, num_distractors=5),
    train=TrainConfig(max_steps=6, log_every_steps=2, validate_every_steps=6, save_every_steps=2, threads=1),
    optim=OptimConfig(1e-3, 2),
    batch_seconds=1.0,
)
BLOCKS = {"w2v-bert": (1, 1), "w2v-conformer": (2, 0), "no-contrastive": (0, 2), "best-rq": (0, 2)}
CONTRASTIVE = {"contrastive_loss", "contrastive_accuracy", "contrastive_chance"}
MASKED = {"masked_loss", "masked_accuracy"}
LEARNT = {"diversity_loss", "batch_entropy", "frame_entropy", "temperature"}
METRICS = {
    "w2v-bert": CONTRASTIVE | MASKED | LEARNT,
    "w2v-conformer": CONTRASTIVE | LEARNT,
    "no-contrastive": MASKED | LEARNT,
    "best-rq": MASKED,
}
ALWAYS = {"loss", "code_perplexity", "codes_used", "top_code_share", "mask_share", "padding_share"}
ALWAYS |= {"gradient_norm", "audio_hours", "hours_per_hour"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    save_config(CONFIG, tmp_path / "pretrain.yaml")
    return tmp_path / "pretrain.yaml"


def settings(objective: str) -> list[str]:
    first, rest = BLOCKS[objective]
    keys = {"objective": objective, "encoder.contrastive_blocks": first, "encoder.masked_blocks": rest}
    keys["random_projection"] = "{codes: 16}" if objective == "best-rq" else "{}"
    return [word for key, value in keys.items() for word in ("--set", f"model.{key}={value}")]


def read_lines(out: Path, split: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


@pytest.mark.parametrize("objective", BLOCKS)
def test_each_objective_tells_its_own_metrics_and_can_be_fine_tuned(
    objective: str, prepared: Prepared, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pretrained"
    run("pretrain", prepared.data, out, "--config", config, *settings(objective))
    for line in read_lines(out, "train"):
        told = (CONTRASTIVE | MASKED | LEARNT) & set(line)
        assert told == METRICS[objective] and set(line) >= ALWAYS
        assert 0.2 < line["mask_share"] < 0.9 and 0.0 <= line["padding_share"] < 0.9
    assert (out / "curves.png").is_file() and list((out / "tensorboard").iterdir())
    finetuning = FinetuneConfig(
        train=TrainConfig(max_steps=1, log_every_steps=1, validate_every_steps=1, save_every_steps=1, threads=1),
        projection_dim=16,
        joiner_dim=16,
        freeze_feature_encoder=False,
        batch_seconds=2.0,
    )
    save_config(finetuning, tmp_path / "finetune.yaml")
    arguments = ("--tokenizer", prepared.tokenizer, "--init", out, "--config", tmp_path / "finetune.yaml")
    run("finetune", prepared.data, tmp_path / "tuned", *arguments)
    assert (tmp_path / "tuned" / "model.json").is_file()


def test_contradictions_are_refused_before_anything_is_written(
    prepared: Prepared, config: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    base = ("pretrain", prepared.data, tmp_path / "out", "--config", config)
    refused = fails(*base, "--set", "model.objective=w2v-conformer")
    assert "set encoder.contrastive_blocks to 2 and encoder.masked_blocks to 0" in refused
    frozen = [*settings("best-rq"), "--set", "on_collapse=reseed"]
    assert "the codes of objective best-rq are frozen" in fails(*base, *frozen)
    shared = ("--set", "on_collapse=reseed", "--set", "train.shard_weights=true")
    assert "reseed is not made for train.shard_weights" in fails(*base, *shared)
    uneven = ("--set", "on_collapse=stop", "--set", "train.log_every_steps=4")
    assert "make train.save_every_steps a multiple of train.log_every_steps, 4" in fails(*base, *uneven)
    assert not (tmp_path / "out").exists()


def call_everything_collapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "MIN_PERPLEXITY_SHARE", 1.0)
    monkeypatch.setattr(collapse, "MIN_FRAMES_PER_CODE", 0)


def test_stop_ends_the_run_with_one_line_and_keeps_what_was_healthy(
    prepared: Prepared, config: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, look = tmp_path / "out", collapse.CollapseWatch.look

    def look_late(watch: collapse.CollapseWatch, step: int, *rest: Any) -> None:
        if step >= 6:
            call_everything_collapsed(monkeypatch)
        look(watch, step, *rest)

    monkeypatch.setattr(collapse.CollapseWatch, "look", look_late)
    error = fails("pretrain", prepared.data, out, "--config", config, "--set", "on_collapse=stop")
    assert "step 6: the codes have collapsed" in error and "checkpoints before this step are kept" in error
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    assert [line["step"] for line in read_lines(out, "train")] == [2, 4, 6] and not (out / "model.json").exists()


def test_a_reseeding_run_that_was_broken_off_ends_as_if_undisturbed(
    prepared: Prepared, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_everything_collapsed(monkeypatch)
    monkeypatch.setattr(collapse, "DEAD_SHARE", 1.0)  # every code that is used less than evenly
    base = ("--config", config, "--set", "on_collapse=reseed")
    run("pretrain", prepared.data, tmp_path / "whole", *base)
    train_step, left = PretrainTask.train_step, [5]

    def break_off(task: PretrainTask, batch: SpeechBatch, step: int, generator: torch.Generator) -> StepOutput:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return train_step(task, batch, step, generator)

    monkeypatch.setattr(PretrainTask, "train_step", break_off)
    assert cli.main([str(a) for a in ("pretrain", prepared.data, tmp_path / "out", *base)]) == 130
    assert not (tmp_path / "out" / "model.json").exists()
    run("pretrain", prepared.data, tmp_path / "out", *base)
    runs = [tmp_path / name for name in ("whole", "out")]
    weights = [read_weights(folder / "checkpoints" / "step-00000006" / "model.safetensors") for folder in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    lines = [[{k: v for k, v in m.items() if k not in TIMINGS} for m in read_lines(f, "train")] for f in runs]
    assert lines[0] == lines[1]
    run("pretrain", prepared.data, tmp_path / "plain", "--config", config)
    plain = read_weights(tmp_path / "plain" / "checkpoints" / "step-00000006" / "model.safetensors")
    assert not torch.equal(plain["quantizer.logits.weight"], weights[0]["quantizer.logits.weight"])


def test_no_collapsed_model_is_preferred_for_its_low_loss(
    prepared: Prepared, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run("pretrain", prepared.data, tmp_path / "healthy", "--config", config)
    assert "on dev the codes" not in caplog.text
    call_everything_collapsed(monkeypatch)
    run("pretrain", prepared.data, tmp_path / "collapsed", "--config", config)
    assert "on dev the codes have collapsed" in caplog.text
    best = [read_json(tmp_path / name / "model.json")["best"] for name in ("healthy", "collapsed")]
    assert best[0]["loss_if_healthy"] == best[0]["loss"] == best[1]["loss"] < 100 < best[1]["loss_if_healthy"]


def test_keys_that_the_objective_does_not_look_at_are_told(
    prepared: Prepared, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("pretrain", prepared.data, tmp_path / "out", "--config", config, *settings("best-rq"))
    told = [record.getMessage() for record in caplog.records if "does not look at" in record.getMessage()]
    assert told == [f"objective best-rq does not look at the key model.{k}" for k in ("quantizer", "num_distractors")]
