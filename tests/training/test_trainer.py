"""The loop: resuming, bad updates, accumulation, what is kept."""

import json
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.toys import CONFIG, Interruption, ToyBatch, ToyStream, ToyTask, fit, fit_and_kill, make_trainer
from w2vbert.errors import UserError
from w2vbert.training.checkpoint import list_checkpoints, load_weights
from w2vbert.training.config import TrainConfig
from w2vbert.training.metrics import TIMINGS, Panel, read_metrics
from w2vbert.training.optim import OptimConfig
from w2vbert.training.task import StepOutput
from w2vbert.training.trainer import Trainer


def outcome(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Metrics without timings, and everything that training leaves: weights, best model, optimizer, random states."""
    metrics = [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run)]
    last = list_checkpoints(run)[-1]
    state = torch.load(last / "state.pt", weights_only=True)
    del state["train_seconds"]
    weights = {path.name: path.read_bytes() for path in [run / "model.safetensors", *last.glob("*.safetensors")]}
    return metrics, {"state": repr(state), **weights}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    run = tmp_path_factory.mktemp("undisturbed")
    fit(run)
    return outcome(run)


@pytest.mark.parametrize("seed", range(4))
def test_a_run_interrupted_at_random_steps_ends_as_if_undisturbed(
    tmp_path: Path, undisturbed: tuple[list[dict[str, Any]], dict[str, Any]], seed: int
) -> None:
    fail_at = random.Random(seed).sample(range(CONFIG.max_steps), 4)
    while fail_at:
        torch.manual_seed(random.Random(seed).randrange(1000))  # what the process did before must not matter
        with pytest.raises(Interruption):
            fit(tmp_path, task=ToyTask(fail_at=fail_at))
    result = fit(tmp_path)
    assert outcome(tmp_path) == undisturbed
    assert result.steps == CONFIG.max_steps and result.audio_hours > 0


# Renames of a run: 1 metrics; 2 to 5 two weights, card and folder of the first checkpoint; 6 best model; 7 to 10 again.
KILLS = [("torch.save", n) for n in (1, 3)] + [("rename", n) for n in range(2, 12)] + [("rmtree", n) for n in (1, 2)]


def test_a_run_killed_in_the_middle_of_its_writing_ends_as_if_undisturbed(
    tmp_path: Path, undisturbed: tuple[list[dict[str, Any]], dict[str, Any]], processes: ForkServerContext
) -> None:
    """SIGKILL between any two steps of the writing of metrics, best model and checkpoints."""
    kills = random.Random(0).sample(KILLS, len(KILLS))
    for where, count in kills:
        if list_checkpoints(tmp_path) and list_checkpoints(tmp_path)[-1].name.endswith(f"{CONFIG.max_steps}"):
            fit(tmp_path)
            assert outcome(tmp_path) == undisturbed
            for file in sorted(tmp_path.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
        process = processes.Process(target=fit_and_kill, args=(tmp_path, CONFIG, where, count))
        process.start()
        process.join(60)
        assert process.exitcode in (-9, 0), (where, count)
    fit(tmp_path)
    assert outcome(tmp_path) == undisturbed
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]


def test_a_run_killed_at_random_instants_ends_as_if_undisturbed(tmp_path: Path, processes: ForkServerContext) -> None:
    config = replace(CONFIG, max_steps=40, save_every_steps=1, validate_every_steps=5)
    instants = random.Random(time.time_ns())
    fit(tmp_path / "undisturbed", config)
    killed = 0
    for _ in range(8):
        process = processes.Process(target=fit_and_kill, args=(tmp_path / "run", config, "never", 1))
        process.start()
        process.join(instants.uniform(0.02, 0.2))
        if process.is_alive():
            process.kill()
            killed += 1
        process.join(60)
    fit(tmp_path / "run", config)
    assert killed
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path,
    undisturbed: tuple[list[dict[str, Any]], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Interruption):
        fit(tmp_path, task=ToyTask(fail_at=[9]))
    newest = list_checkpoints(tmp_path)[-1]
    (newest / "average.safetensors").write_bytes(b"")
    fit(tmp_path)
    assert f"{newest} cannot be used (average.safetensors is damaged)" in caplog.text
    assert outcome(tmp_path) == undisturbed


def test_without_any_usable_checkpoint_training_begins_again(
    tmp_path: Path,
    undisturbed: tuple[list[dict[str, Any]], dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Interruption):
        fit(tmp_path, task=ToyTask(fail_at=[5]))
    for folder in list_checkpoints(tmp_path):
        (folder / "state.pt").unlink()
    fit(tmp_path)
    assert "training begins again" in caplog.text
    assert outcome(tmp_path) == undisturbed


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(tmp_path)
    before = outcome(tmp_path)
    task = ToyTask(fail_at=list(range(100)))
    again = fit(tmp_path, task=task)
    assert outcome(tmp_path) == before and task.validations == 0
    assert again == first


def test_updates_with_broken_gradients_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, log_every_steps=1, validate_every_steps=1)
    trainer = make_trainer(tmp_path, config, broken=[4, 5, 8])
    trainer.fit()
    train = {line["step"]: line for line in read_metrics(tmp_path) if line["split"] == "train"}
    dev = {line["step"]: line["loss"] for line in read_metrics(tmp_path) if line["split"] == "dev"}
    assert [train[n]["skipped_steps"] for n in (4, 5, 6, 8, 9, 12)] == [0, 1, 2, 2, 3, 3]
    assert dev[4] == dev[5] == dev[6] != dev[7]
    assert all(torch.isfinite(value).all() for value in trainer.task.model.state_dict().values())
    assert torch.isfinite(torch.tensor(list(dev.values()))).all()
    assert "step 4: gradient is not finite; update skipped; utterances 4-0, 4-1, 4-2" in caplog.text


def test_too_many_broken_updates_in_a_row_end_the_run_with_their_ids(tmp_path: Path) -> None:
    config = replace(CONFIG, max_bad_steps=3)
    with pytest.raises(UserError, match=r"3 updates in a row .* gradient is not finite.* 8-0, 8-1"):
        fit(tmp_path, config, broken=[3, 4, 6, 7, 8])
    # Going on does not begin to count anew: the checkpoint of step 8 knows of two bad updates.
    with pytest.raises(UserError, match=r"3 updates in a row"):
        fit(tmp_path, config, broken=[3, 4, 6, 7, 8])


def test_an_empty_batch_teaches_nothing_and_is_said_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path, empty=[4])
    assert "step 4: there is nothing to learn from; update skipped" in caplog.text
    assert read_metrics(tmp_path)[-1]["step"] == CONFIG.max_steps


def test_accumulated_batches_have_the_gradient_of_the_joined_one(tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=1, accumulate=3)
    parts = make_trainer(tmp_path / "parts", config, ToyTask(plain=True))
    parts.fit()
    stream = ToyStream()
    batches = [stream.next_batch() for _ in range(3)]
    joined = make_trainer(tmp_path / "joined", replace(config, accumulate=1), ToyTask(plain=True))
    x, y = torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])
    whole = replace(batches[0], ids=tuple(id for b in batches for id in b.ids), x=x, y=y)
    joined.batches.next_batch = lambda: whole  # type: ignore[method-assign]
    joined.fit()
    assert parts.audio_seconds == joined.audio_seconds == len(y)
    for a, b in zip(parts.task.model.parameters(), joined.task.model.parameters(), strict=True):
        gradients = [t.optimizer.state[p]["exp_avg"] for t, p in ((parts, a), (joined, b))]
        assert gradients[0].any()
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


def test_the_best_validated_average_is_kept(tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=40, validate_every_steps=5)
    trainer = make_trainer(tmp_path, config)
    result = trainer.fit()
    dev = [line for line in read_metrics(tmp_path) if line["split"] == "dev"]
    assert result.best["loss"] == min(line["loss"] for line in dev) < dev[0]["loss"]
    kept = ToyTask()
    load_weights(kept.model, tmp_path / "model.safetensors")
    assert kept.validate(kept.model.eval(), 1)["loss"] == result.best["loss"]


def test_a_frozen_group_does_not_move(tmp_path: Path) -> None:
    task = ToyTask(optim=OptimConfig(0.05, 2, freeze_steps=12))
    before = task.first.weight.detach().clone()
    fit(tmp_path, task=task)
    assert torch.equal(task.first.weight, before)


def test_metrics_are_in_files_and_picture(tmp_path: Path) -> None:
    trainer = Trainer(ToyTask(), ToyStream(), CONFIG, tmp_path, [Panel("loss", ["loss"])])
    trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["split"]) for m in lines] == [
        (3, "train"), (4, "dev"), (6, "train"), (8, "dev"), (9, "train"), (12, "train"), (12, "dev"),
    ]  # fmt: skip
    assert {"loss", "gradient_norm", "lr_first", "lr_rest", "audio_hours", "skipped_steps"} <= lines[0].keys()
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    "values", [{"max_steps": 0}, {"keep_last": 0}, {"keep_best": 0}, {"average_decay": 1.0}, {"clip_norm": 0.0}]
)
def test_contradictions_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        TrainConfig(**values)


class OneTensorTask(ToyTask):
    """Two of its sums are one tensor, as the losses of BEST-RQ are."""

    def train_step(self, batch: ToyBatch, step: int, generator: torch.Generator) -> StepOutput:
        output = super().train_step(batch, step, generator)
        return replace(output, sums={**output.sums, "again": output.sums["loss"]})

    def summarize(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        assert sums["again"].data_ptr() != sums["loss"].data_ptr()  # processes add them up in place
        return super().summarize({name: value for name, value in sums.items() if name != "again"})


def test_sums_of_one_tensor_are_added_up_alone(tmp_path: Path) -> None:
    fit(tmp_path, replace(CONFIG, log_every_steps=1), OneTensorTask())
