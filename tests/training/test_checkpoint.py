"""Checkpoints appear whole or not at all; what cannot be used is named."""

import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from w2vbert.errors import UserError
from w2vbert.files import read_json, write_json
from w2vbert.training import checkpoint
from w2vbert.training.checkpoint import (
    check_room,
    list_checkpoints,
    load_newest,
    load_weights,
    read_model_card,
    save_checkpoint,
    save_weights,
    write_model_card,
)


def model(value: float = 0.0, outputs: int = 3) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(4, outputs), nn.BatchNorm1d(outputs))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def value_of(module: nn.Module) -> float:
    values = {float(x) for p in module.parameters() for x in p.detach().flatten()}
    assert len(values) == 1
    return values.pop()


def save(run: Path, step: int, keep_last: int = 2) -> Path:
    """A checkpoint whose weights say its step."""
    state = {"step": step, "tensor": torch.arange(5), "nested": {"list": [1, 2.5, "x", None]}}
    weights = {"model": model(step), "average": model(step)}
    return save_checkpoint(run, step, weights, state, keep_last)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_weights_are_as_open_as_their_folder(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    save_weights(nn.Linear(2, 2), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode & 0o666


def test_the_newest_comes_back_whole_and_older_ones_go(tmp_path: Path) -> None:
    assert load_newest(tmp_path, {}) is None
    for step in (9, 10, 100):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    target, average = model(-1.0), model(-1.0)
    state = load_newest(tmp_path, {"model": target, "average": average})
    assert state is not None and state["step"] == 100 and state["nested"] == {"list": [1, 2.5, "x", None]}
    assert torch.equal(state["tensor"], torch.arange(5))
    assert value_of(target) == value_of(average) == 100


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "text": lambda data: b"hello world",
}


@pytest.mark.parametrize("name", ["model.safetensors", "average.safetensors", "state.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    target, average = model(-1.0), model(-1.0)
    state = load_newest(tmp_path, {"model": target, "average": average})
    assert state is not None and state["step"] == value_of(target) == value_of(average) == 1
    assert "step-00000002 cannot be used" in caplog.text
    # A wrong bit in a noted checksum looks like damage to the file that it belongs to.
    assert name in caplog.text or (name == "checkpoint.json" and damage == "one bit")


def test_a_missing_file_is_damage_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "state.pt").unlink()
    assert load_newest(tmp_path, {"model": model()}) is not None
    assert "state.pt is missing" in caplog.text


class Foreign:
    """What a file that wants to run code would be."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise AssertionError('code of a file was run')",)


@pytest.mark.parametrize("name", ["state.pt", "checkpoint.json"])
def test_a_checkpoint_of_another_program_is_named_and_its_code_never_run(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its checksums are right."""
    save(tmp_path, 1)
    foreign = save(tmp_path, 2)
    card = read_json(foreign / "checkpoint.json")
    if name == "state.pt":
        torch.save(Foreign(), foreign / name)
        card["crc32"][name] = zlib.crc32((foreign / name).read_bytes())
    else:
        card["format"] = 99
    write_json(foreign / "checkpoint.json", card)
    target = model(-1.0)
    state = load_newest(tmp_path, {"model": target})
    assert state is not None and state["step"] == value_of(target) == 1
    assert f"step-00000002 cannot be used ({name} was written by another program" in caplog.text


def test_without_a_usable_checkpoint_nothing_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (save(tmp_path, 1) / "average.safetensors").write_bytes(b"")
    target = model(-1.0)
    assert load_newest(tmp_path, {"model": target, "average": model()}) is None
    assert value_of(target) == -1.0
    assert "no checkpoint can be used" in caplog.text


def test_a_run_that_went_back_leaves_the_damaged_newer_one_behind(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep_last=3)
    (tmp_path / "checkpoints" / "step-00000003" / "state.pt").write_bytes(b"")
    save(tmp_path, 2, keep_last=1)
    assert names(tmp_path) == ["step-00000002"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".partial.step-00000002"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (save(tmp_path, 2) / "checkpoint.json").unlink()  # removal of an old one, cut off
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    save(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]


def test_a_whole_checkpoint_of_another_model_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(UserError, match="another size"):
        load_newest(tmp_path, {"model": model(outputs=5)})


# A full disk


def test_an_error_of_the_gpu_is_not_told_as_one_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows when tensors are fetched, perhaps long after what caused it."""

    def fail(*arguments: object) -> None:
        raise torch.AcceleratorError("device-side assert triggered")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(torch.AcceleratorError):
        save_weights(model(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("large", ["weights", "state"])
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(small_disk: Path, large: str) -> None:
    save(small_disk, 1)
    before = names(small_disk)
    weights = {"model": nn.Linear(300, 300) if large == "weights" else model()}
    state = {"moments": torch.zeros(300, 300)} if large == "state" else {}
    with pytest.raises(UserError, match=rf"cannot write a checkpoint to {small_disk}, where 0\.\d MiB are free"):
        save_checkpoint(small_disk, 2, weights, state, 1)
    assert names(small_disk) == before
    target = model(-1.0)
    assert load_newest(small_disk, {"model": target}) is not None and value_of(target) == 1


def test_the_best_model_stays_when_the_disk_is_full(small_disk: Path) -> None:
    save_weights(model(1.0), small_disk / "model.safetensors")
    with pytest.raises(UserError, match="MiB are free"):
        save_weights(nn.Linear(300, 300), small_disk / "model.safetensors")
    assert [path.name for path in small_disk.iterdir()] == ["model.safetensors"]
    target = model()
    load_weights(target, small_disk / "model.safetensors")
    assert value_of(target) == 1.0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("enforce fail\nstack")])
def test_an_error_while_writing_the_state_leaves_the_last_checkpoint(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(UserError, match=rf"^cannot write .*{tmp_path}.* MiB are free"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"] and load_newest(tmp_path, {"model": model()}) is not None


# Weights and cards


def test_weights_come_back_equal_with_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = model(2.0), model()
    source(torch.randn(8, 4))
    save_weights(source, tmp_path / "model.safetensors")
    load_weights(target, tmp_path / "model.safetensors")
    for (name, a), b in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_weights_that_do_not_fit_say_why(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(model(1.0), path)
    target = model(0.0, outputs=5)
    with pytest.raises(UserError, match=rf"{path}: 0.weight has shape \(3, 4\), not \(5, 4\)"):
        load_weights(target, path)
    with pytest.raises(UserError, match=rf"{path} lacks 2.weight"):
        load_weights(nn.Sequential(*model(), nn.Linear(3, 3)), path)
    first = model(0.0)[0]
    with pytest.raises(UserError, match=rf"{path} has 1.bias, which this model does not know"):
        load_weights(nn.Sequential(first), path)
    assert value_of(target) == 0.0 and value_of(first) == 0.0


def test_files_that_hold_no_weights_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_weights(model(), tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"hello world")
    with pytest.raises(UserError, match="damaged or no safetensors file"):
        load_weights(model(), tmp_path / "model.safetensors")


def test_weights_are_read_by_any_reader_of_safetensors(tmp_path: Path) -> None:
    save_weights(model(2.0), tmp_path / "model.safetensors")
    assert safetensors.torch.load_file(tmp_path / "model.safetensors").keys() == model().state_dict().keys()


def test_a_model_folder_says_what_it_is(tmp_path: Path) -> None:
    write_model_card(tmp_path, "w2v-bert", {"steps": 3})
    assert read_model_card(tmp_path, "w2v-bert")["steps"] == 3
    with pytest.raises(UserError, match="holds a w2v-bert model, but a transducer model is needed"):
        read_model_card(tmp_path, "transducer")


def test_what_is_no_model_folder_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_model_card(tmp_path / "absent", "w2v-bert")
    with pytest.raises(UserError, match=r"no model.json$"):
        read_model_card(tmp_path, "w2v-bert")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="training has not finished"):
        read_model_card(tmp_path, "w2v-bert")
    for text in ("[]", '{"kind": "w2v-bert"}', '{"format": 99, "kind": "w2v-bert"}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(UserError, match="another program or a newer version"):
            read_model_card(tmp_path, "w2v-bert")


def test_room_for_all_checkpoints_is_asked_for_at_the_start(tmp_path: Path) -> None:
    module = model()
    check_room(tmp_path / "run", {"model": module}, list(module.parameters()), keep_last=2, keep_best=5)
    for last, best in ((10**15, 1), (2, 10**15)):
        with pytest.raises(UserError, match="run will need about .* MiB, but .* MiB are free there"):
            check_room(tmp_path / "run", {"model": module}, list(module.parameters()), last, best)


def test_the_model_before_is_named_while_a_new_one_is_trained(tmp_path: Path) -> None:
    write_model_card(tmp_path / "run.old", "transducer", {})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"not finished\); the model before it is .*run\.old$"):
        read_model_card(tmp_path / "run", "transducer")
