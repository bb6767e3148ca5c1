"""The best models of a run: which stay, and that no stop or kill changes which."""

import math
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from tests.training.toys import CONFIG, Interruption, ToyTask, fit, fit_and_kill
from tests.training.workers import run, train
from w2vbert.errors import UserError
from w2vbert.files import read_json
from w2vbert.training.best_models import BestModels, list_best
from w2vbert.training.checkpoint import find_damage, load_weights, read_weights
from w2vbert.training.metrics import read_metrics

KEEP_3 = replace(CONFIG, max_steps=24, validate_every_steps=2, save_every_steps=3, keep_best=3)


def model(value: float) -> torch.nn.Module:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, value)
    return module


def judge(models: BestModels, values: Sequence[float], first: int = 1) -> None:
    """Validations at steps `first`, `first` + 1, ..., of models whose weight is the step."""
    for step, value in enumerate(values, first):
        models.judge(step, {"wer": value, "other": 1.0}, model(step))


def weight(path: Path) -> float:
    return float(read_weights(path)["weight"])


def content(folder: Path) -> dict[str, bytes]:
    """All that lies under `best/`, and the best model."""
    files = [path for path in (folder / "best").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*files, folder / "model.safetensors"]}


def test_the_best_stay_with_step_and_metrics(tmp_path: Path) -> None:
    models = BestModels(tmp_path, "wer", 3)
    judge(models, [9.0, 5.0, 7.0, 8.0, 6.0, 9.5])
    assert list(list_best(tmp_path)) == [2, 5, 3]
    assert sorted(os.listdir(tmp_path / "best")) == ["step-00000002", "step-00000003", "step-00000005"]
    for step, folder in list_best(tmp_path).items():
        card = read_json(folder / "checkpoint.json")
        assert (card["step"], card["metric"], card["wer"]) == (step, "wer", {2: 5.0, 3: 7.0, 5: 6.0}[step])
        assert weight(folder / "model.safetensors") == step and find_damage(folder) is None
    assert weight(tmp_path / "model.safetensors") == 2
    assert models.best == {"step": 2, "wer": 5.0, "other": 1.0} and models.since_best == 4


def test_one_best_model_is_a_file_and_nothing_else(tmp_path: Path) -> None:
    judge(BestModels(tmp_path, "wer", 1), [3.0, 2.0, 4.0])
    assert os.listdir(tmp_path) == ["model.safetensors"] and weight(tmp_path / "model.safetensors") == 2


def test_of_equal_ones_the_later_goes_before_and_no_number_comes_last(tmp_path: Path) -> None:
    models = BestModels(tmp_path, "wer", 2)
    judge(models, [math.nan])
    assert models.best["step"] == 1
    judge(models, [4.0, math.nan, 4.0, 4.0], first=2)
    assert list(list_best(tmp_path)) == [5, 4] and models.best["step"] == 5 and models.since_best == 3
    models.judge(6, {"ctc_wer": 0.0}, model(6))
    assert models.since_best == 4 and list(list_best(tmp_path)) == [5, 4]


def test_going_back_ends_with_the_same_models(tmp_path: Path) -> None:
    """After each validation in turn, the state before it is taken up again: some of its models have gone since."""
    values = random.Random(0).choices(range(8), k=12)
    for keep in (2, 3):
        whole = BestModels(tmp_path / f"whole-{keep}", "wer", keep)
        (tmp_path / f"whole-{keep}").mkdir()
        judge(whole, values)
        for back in range(len(values)):
            folder = tmp_path / f"{keep}-{back}"
            folder.mkdir()
            models = BestModels(folder, "wer", keep)
            judge(models, values[:back])
            state = models.state_dict()
            for end in (back + 3, len(values)):
                models = BestModels(folder, "wer", keep)
                models.load_state_dict(state)
                judge(models, values[back:end], first=back + 1)
            assert content(folder) == content(tmp_path / f"whole-{keep}")
            assert models.best == whole.best and models.since_best == whole.since_best


def test_without_the_best_model_a_run_does_not_go_on(tmp_path: Path) -> None:
    models = BestModels(tmp_path, "wer", 1)
    judge(models, [1.0])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors, is gone: start again with --force"):
        BestModels(tmp_path, "wer", 1).load_state_dict(models.state_dict())


def test_damaged_cards_are_named(tmp_path: Path) -> None:
    judge(BestModels(tmp_path, "wer", 2), [1.0, 2.0])
    card = tmp_path / "best" / "step-00000002" / "checkpoint.json"
    card.write_text("[]")
    with pytest.raises(UserError, match=f"{card} is damaged"):
        list_best(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = fit(folder, KEEP_3)
    dev = {line["step"]: line["loss"] for line in read_metrics(folder) if line["split"] == "dev"}
    assert list(list_best(folder)) == sorted(dev, key=lambda step: (dev[step], -step))[:3]
    assert list(list_best(folder))[0] == result.best["step"]
    for step, kept in list_best(folder).items():
        task = ToyTask()
        load_weights(task.model, kept / "model.safetensors")
        assert task.validate(task.model.eval(), 1)["loss"] == dev[step]
    return content(folder)


@pytest.mark.parametrize("seed", range(3))
def test_an_interrupted_run_ends_with_the_same_models(tmp_path: Path, undisturbed: dict[str, bytes], seed: int) -> None:
    fail_at = random.Random(seed).sample(range(KEEP_3.max_steps), 5)
    while fail_at:
        with pytest.raises(Interruption):
            fit(tmp_path, KEEP_3, ToyTask(fail_at=fail_at))
    fit(tmp_path, KEEP_3)
    assert content(tmp_path) == undisturbed


def test_a_run_killed_while_it_writes_ends_with_the_same_models(
    tmp_path: Path, undisturbed: dict[str, bytes], processes: ForkServerContext
) -> None:
    """SIGKILL at renamings and removals, among them those of the best models."""
    kills = [("rename", n) for n in range(2, 24, 2)] + [("rmtree", n) for n in range(1, 5)]
    random.Random(1).shuffle(kills)
    for where, count in kills:
        process = processes.Process(target=fit_and_kill, args=(tmp_path, KEEP_3, where, count))
        process.start()
        process.join(60)
        assert process.exitcode in (-9, 0), (where, count)
    fit(tmp_path, KEEP_3)
    assert content(tmp_path) == undisturbed


def test_shared_out_weights_leave_whole_models(tmp_path: Path, processes: ForkServerContext) -> None:
    config = replace(CONFIG, max_steps=8, validate_every_steps=2, keep_best=2, shard_weights=True)
    assert run(processes, 2, train, tmp_path, config) == [0, 0]
    kept = list_best(tmp_path / "run")
    assert len(kept) == 2 and not any(map(find_damage, kept.values()))
    for folder in kept.values():
        load_weights(ToyTask().model, folder / "model.safetensors")
