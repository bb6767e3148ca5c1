"""What goes wrong with a batch is named, and a rehearsal leaves no trace."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.test_trainer import outcome
from tests.training.toys import CONFIG, Interruption, ToyBatch, ToyTask, fit, make_trainer
from w2vbert.errors import UserError
from w2vbert.training.checkpoint import find_damage, list_checkpoints
from w2vbert.training.distributed import Replica
from w2vbert.training.metrics import read_metrics
from w2vbert.training.task import StepOutput
from w2vbert.training.trouble import SKIPPED_FILE, naming_memory


class HungryTask(ToyTask):
    """Asks for more memory than any machine has, or for what a GPU refuses, at one step."""

    error: Exception | None = None

    def train_step(self, batch: ToyBatch, step: int, generator: torch.Generator) -> StepOutput:
        if step == 3 and self.error is None:
            torch.empty(2**60)
        elif step == 3 and self.error is not None:
            raise self.error
        return super().train_step(batch, step, generator)


@pytest.mark.parametrize("error", [None, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_names_the_batch_and_what_to_lower(tmp_path: Path, error: Exception | None) -> None:
    task = HungryTask()
    task.error = error
    with pytest.raises(UserError, match="out of memory with a batch of 3 rows, 3-0 and others: lower batch_seconds"):
        fit(tmp_path, task=task)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), naming_memory(None):
        raise RuntimeError("shapes do not fit")


def test_ids_of_skipped_batches_are_in_a_file_once(tmp_path: Path) -> None:
    """Also when a run that was stopped does some again."""
    with pytest.raises(Interruption):
        fit(tmp_path, replace(CONFIG, save_every_steps=4), ToyTask(fail_at=[7]), broken=[2, 5])
    fit(tmp_path, replace(CONFIG, save_every_steps=4), broken=[2, 5])
    lines = [json.loads(line) for line in (tmp_path / SKIPPED_FILE).read_text().splitlines()]
    assert lines == [
        {"step": step, "reason": "gradient is not finite", "ids": [f"{step}-{row}" for row in range(3 + step % 3)]}
        for step in (2, 5)
    ]


def test_deciding_on_the_device_gives_the_same_weights(tmp_path: Path) -> None:
    """As on a GPU: the optimizer itself leaves out what is not finite, and the log tells of it later."""
    config = replace(CONFIG, average_decay=0.0)
    for name in ("host", "device"):
        trainer = make_trainer(tmp_path / name, config, broken=[4, 5, 8])
        trainer.decides_on_device = name == "device"
        trainer.fit()
    host, device = (outcome(tmp_path / name) for name in ("host", "device"))
    assert host[0] == device[0]
    assert host[1]["model.safetensors"] == device[1]["model.safetensors"]
    assert (tmp_path / "host" / SKIPPED_FILE).read_text() == (tmp_path / "device" / SKIPPED_FILE).read_text()
    with pytest.raises(UserError, match="3 updates in a row"):
        trainer = make_trainer(tmp_path / "stopped", replace(config, max_bad_steps=3), broken=[4, 5, 6])
        trainer.decides_on_device = True
        trainer.fit()


def test_a_rehearsal_of_the_largest_batch_leaves_no_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path / "plain")
    trainer = make_trainer(tmp_path / "rehearsed")
    trainer.generator.manual_seed(CONFIG.seed)
    torch.manual_seed(CONFIG.seed)
    with caplog.at_level("INFO", "w2vbert"):
        trainer.rehearse(Replica(trainer.task, trainer.world))
    assert "the largest batch, 5 rows, fits in memory" in caplog.text
    trainer.fit()
    assert outcome(tmp_path / "plain") == outcome(tmp_path / "rehearsed")


def test_a_rehearsal_finds_that_memory_is_short(tmp_path: Path) -> None:
    task = HungryTask()
    trainer = make_trainer(tmp_path, replace(CONFIG, max_steps=4), task=task)
    with pytest.raises(UserError, match="out of memory with a batch of 5 rows, 2-0 and others"):
        trainer.rehearse(Replica(task, trainer.world))


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_disk_that_fills_up_ends_the_run_which_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    """Another program takes all that is left at step 7; the last checkpoint stays whole."""
    ballast = small_disk / "ballast"

    class FillingTask(ToyTask):
        def train_step(self, batch: ToyBatch, step: int, generator: torch.Generator) -> StepOutput:
            if step == 7:
                with ballast.open("wb", buffering=0) as file, suppress(OSError):
                    while file.write(bytes(4096)):
                        pass
            return super().train_step(batch, step, generator)

    config = replace(CONFIG, keep_best=2, validate_every_steps=2)
    fit(tmp_path / "undisturbed", config)
    with pytest.raises(UserError, match="cannot write .*run.* MiB are free"):
        fit(small_disk / "run", config, FillingTask())
    newest = list_checkpoints(small_disk / "run")[-1]
    assert newest.name == "step-00000006" and find_damage(newest) is None
    with pytest.raises(UserError, match="MiB are free"):
        fit(small_disk / "run", config)
    ballast.unlink()
    fit(small_disk / "run", config)
    assert outcome(small_disk / "run") == outcome(tmp_path / "undisturbed")


# Length of an update and of a run


def test_an_update_may_be_given_in_seconds(tmp_path: Path) -> None:
    """The toy's full batch has 5 s."""
    for seconds, batches in ((1.0, 1), (5.0, 1), (11.0, 3)):
        assert make_trainer(tmp_path, replace(CONFIG, update_seconds=seconds)).accumulate == batches
    with pytest.raises(ValueError, match="leave one out"):
        replace(CONFIG, update_seconds=10.0, accumulate=2)


def test_training_ends_early_when_nothing_gets_better(tmp_path: Path) -> None:
    class StuckTask(ToyTask):
        def validate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
            self.validations += 1
            return {"loss": 1.0 if self.validations == 2 else 2.0 + self.validations}

    config = replace(CONFIG, max_steps=40, validate_every_steps=2, patience=3)
    task = StuckTask()
    result = fit(tmp_path, config, task)
    assert (result.steps, result.best, task.validations) == (10, {"step": 4, "loss": 1.0}, 5)
    assert read_metrics(tmp_path)[-1]["step"] == 10
    again = StuckTask()
    assert fit(tmp_path, config, again) == result and again.validations == 0
