"""Means over checkpoints as models."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tasks.conftest import Prepared, is_up_to_date, run
from w2vbert.files import read_json
from w2vbert.models.transducer import Transducer
from w2vbert.tasks.recognize import load_transducer
from w2vbert.training.best_models import BestModels
from w2vbert.training.checkpoint import average_weights, read_weights, save_checkpoint


@pytest.fixture
def trained(prepared: Prepared, tmp_path: Path) -> Path:
    """A finished run with checkpoints at steps 2, 4, 6 and 8, whose weights and statistics differ."""
    folder = Path(shutil.copytree(prepared.model, tmp_path / "run"))
    model, _ = load_transducer(folder)
    for step in (2, 4, 6, 8):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(step)))
        save_checkpoint(folder, step, {"model": model, "average": Transducer(model.config)}, {"step": step}, 4)
    return folder


def weights(trained: Path, step: int) -> dict[str, torch.Tensor]:
    return read_weights(trained / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


@pytest.mark.parametrize(("options", "steps"), [(("--last", 3), (4, 6, 8)), (("--last", 2, "--until", 5), (2, 4))])
def test_the_mean_of_the_newest_is_a_model(
    trained: Path, prepared: Prepared, options: tuple[object, ...], steps: tuple[int, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run("average", trained, out, *options)
    found, parts = read_weights(out / "model.safetensors"), [weights(trained, step) for step in steps]
    assert found.keys() == parts[0].keys() and any("running_var" in name for name in found)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, sum(part[name] for part in parts) / len(parts))
    card, source = read_json(out / "model.json"), read_json(trained / "model.json")
    assert card["averaged_steps"] == list(steps) and card["history"] == source["history"] and "best" not in card
    assert card["tokenizer"] == source["tokenizer"] and load_transducer(out)
    run("decode", "--model", out, next(prepared.corpus.rglob("*.flac")))


def test_the_mean_of_the_best_is_a_model(trained: Path, tmp_path: Path) -> None:
    models = BestModels(trained, "wer", 3)
    model, _ = load_transducer(trained)
    for step, wer in ((1, 9.0), (2, 5.0), (3, 5.5), (5, 7.0), (7, 6.0)):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(step)))
        models.judge(step, {"wer": wer}, model)
    for count, steps in ((3, [2, 3, 7]), (2, [2, 3])):
        run("average", trained, tmp_path / "out", "--best", count)
        parts = [read_weights(trained / "best" / f"step-{step:08d}" / "model.safetensors") for step in steps]
        for name, tensor in read_weights(tmp_path / "out" / "model.safetensors").items():
            torch.testing.assert_close(tensor, sum(part[name] for part in parts) / len(parts))
        assert read_json(tmp_path / "out" / "model.json")["averaged_steps"] == steps
    assert load_transducer(tmp_path / "out")


def test_it_is_done_once(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = ("average", trained, tmp_path / "out", "--last", 2)
    assert not is_up_to_date(caplog, *base) and is_up_to_date(caplog, *base)
    assert not is_up_to_date(caplog, *base[:3], "--last", 3)


def test_errors_leave_nothing(trained: Path, prepared: Prepared, tmp_path: Path, fails: Callable[..., str]) -> None:
    base, before = ("average", trained, tmp_path / "out"), sorted(os.listdir(tmp_path))
    assert "too few checkpoints (2, 4, 6, 8) for 5: train.keep_last says" in fails(*base, "--last", 5)
    assert "too few checkpoints up to step 3 (2) for 2" in fails(*base, "--last", 2, "--until", 3)
    assert "too few checkpoints (none)" in fails("average", prepared.model, tmp_path / "out", "--last", 1)
    assert "does not exist" in fails("average", tmp_path / "nowhere", tmp_path / "out", "--last", 1)
    assert "keeps too few best models (none) for 2: train.keep_best says" in fails(*base, "--best", 2)
    for options in ((), ("--last", 1, "--best", 1), ("--best", 1, "--until", 5), ("--until", 5)):
        assert "give either --last N, perhaps with --until STEP, or --best N" in fails(*base, *options)
    (trained / "checkpoints" / "step-00000006" / "model.safetensors").write_bytes(b"damaged")
    assert "step-00000006: model.safetensors is damaged" in fails(*base, "--last", 2)
    (trained / "model.json").unlink()
    assert "its training has not finished" in fails(*base, "--last", 1)
    assert sorted(os.listdir(tmp_path)) == before


def test_models_of_other_sizes_are_refused(trained: Path, prepared: Prepared, tmp_path: Path) -> None:
    first = trained / "checkpoints" / "step-00000002" / "model.safetensors"
    other = tmp_path / "other.safetensors"
    save_file({"joiner": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match="models of other configurations"):
        average_weights([first, other])


def test_the_mean_of_whole_numbers_is_the_last_one(tmp_path: Path) -> None:
    for n in (1, 2):
        save_file({"x": torch.tensor([float(n)]), "count": torch.tensor([n])}, tmp_path / f"{n}")
    found = average_weights([tmp_path / "1", tmp_path / "2"])
    assert found["x"].item() == 1.5 and found["count"].item() == 2
