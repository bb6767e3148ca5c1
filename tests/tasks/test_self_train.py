"""Generations of self-training: which model is taken, what is skipped, killed, refused."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tasks.conftest import Prepared, kill, run
from tests.tasks.test_finetune import write_pretrained
from w2vbert.cli.entry import has_nothing_to_do
from w2vbert.files import read_json
from w2vbert.stages import STAMP
from w2vbert.tasks import self_train as task
from w2vbert.training.checkpoint import read_weights

OPTIM = {"learning_rate": 1e-2, "warmup_steps": 2}
CONFIG: dict[str, Any] = {
    "generations": 2,
    "labels": {
        "search": {"method": "beam", "beam_size": 2},
        "min_words": 0,
        "max_words_per_second": 100.0,
        "rate_quantile": 0.0,
        "dev_quantile": 0.0,
    },
    "student": {
        "predictor": {"dim": 16, "layers": 1},
        "projection_dim": 16,
        "joiner_dim": 16,
        "loss": {"prune_range": 4, "warmup_steps": 4},
        "train": {"max_steps": 4, "validate_every_steps": 4, "save_every_steps": 2, "log_every_steps": 2, "threads": 1},
        "encoder_optim": OPTIM,
        "decoder_optim": OPTIM,
        "pseudo_share": 0.5,
        "batch_seconds": 4.0,
    },
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, prepared: Prepared) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("self_train") / "pretrained", prepared.data)


def start(prepared: Prepared, pretrained: Path, out: Path, *settings: str, **changes: object) -> list[object]:
    """The command, with its file of settings beside `out`."""
    config = out.parent / "self_train.yaml"
    config.write_text(yaml.safe_dump(CONFIG | changes))
    base = ["self-train", prepared.data, out, "--tokenizer", prepared.tokenizer, "--init", pretrained]
    base += ["--model", prepared.model, "--lm", prepared.lm, "--config", config]
    return [*base, *(part for setting in settings for part in ("--set", setting))]


MEASURE = task._Generations._dev_wer


def set_wers(monkeypatch: pytest.MonkeyPatch, wers: Sequence[float]) -> None:
    """Gives each generation, from the first teacher on, a WER on dev."""

    def wer(generations: task._Generations, number: int, model: Path) -> float:
        assert MEASURE(generations, number, model) >= 0.0
        return wers[number]

    monkeypatch.setattr(task._Generations, "_dev_wer", wer)


def steps(out: Path) -> set[str]:
    return {str(stamp.parent.relative_to(out)) for stamp in out.rglob(STAMP)}


def test_the_last_better_student_is_the_result(
    prepared: Prepared, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each better student teaches the next one, which begins from the pre-trained model again."""
    set_wers(monkeypatch, [60.0, 50.0, 40.0])
    out = tmp_path / "out"
    run(*start(prepared, pretrained, out))
    every = {"gen0/dev", "gen1/labels", "gen1/model", "gen1/dev", "gen2/labels", "gen2/model", "gen2/dev", "."}
    assert steps(out) == every
    report = read_json(out / "report.json")
    assert report["best"] == 2 and [g["wer"] for g in report["generations"]] == [60.0, 50.0, 40.0]
    assert (
        os.path.realpath(out / "best") == str(out / "gen2" / "model")
        and not Path(os.readlink(out / "best")).is_absolute()
    )
    teachers = [read_json(out / f"gen{n}" / "labels" / STAMP)["inputs"]["model"] for n in (1, 2)]
    assert teachers == [str(prepared.model), str(out / "gen1" / "model")]
    inits = [read_json(out / f"gen{n}" / "model" / STAMP)["inputs"]["init"] for n in (1, 2)]
    assert inits == [str(pretrained)] * 2
    assert str(out / "gen1" / "model") in read_json(out / "best" / "model.json")["history"]
    run("decode", "--model", out / "best", next(prepared.corpus.rglob("*.flac")))


def test_a_student_that_is_no_better_is_not_taken(
    prepared: Prepared,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    set_wers(monkeypatch, [60.0, 60.0])
    with caplog.at_level("INFO", "w2vbert"):
        run(*start(prepared, pretrained, out))
    assert steps(out) == {"gen0/dev", "gen1/labels", "gen1/model", "gen1/dev", "."}
    assert os.path.realpath(out / "best") == str(prepared.model)
    assert "generation 1 has 60.00 % WER on dev, its teacher 60.00 %: it is not taken" in caplog.text
    set_wers(monkeypatch, [60.0, 50.0, 49.5])
    before = read_weights(out / "gen1" / "model" / "model.safetensors")
    stamp = (out / "gen1" / "model" / STAMP).stat().st_mtime_ns
    run(*start(prepared, pretrained, out, "min_gain=1"))
    assert os.path.realpath(out / "best") == str(out / "gen1" / "model")
    report = read_json(out / "report.json")
    assert report["best"] == 1 and len(report["generations"]) == 3 and before
    assert (out / "gen1" / "model" / STAMP).stat().st_mtime_ns == stamp  # what is finished is not done again


def test_speech_of_another_kind_leaves_the_teacher(
    prepared: Prepared, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    run(*start(prepared, pretrained, out, "labels.dev_quantile=0.99", "labels.min_passing_share=1"))
    assert (
        steps(out) == {"gen0/dev", "gen1/labels", "."}
        and read_json(out / "gen1" / "labels" / "report.json")["kept"] == 0
    )
    lines = [record.getMessage() for record in caplog.records if "nothing of it is kept" in record.getMessage()]
    assert len(lines) == 1 and "speech of another kind" in lines[0]
    assert os.path.realpath(out / "best") == str(prepared.model)
    assert "good enough" in read_json(out / "report.json")["ending"]


def test_killed_anywhere_and_started_again_gives_the_same(
    prepared: Prepared, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(*start(prepared, pretrained, whole, generations=1))
    command = start(prepared, pretrained, out, generations=1)
    for moment in ("gen1/labels", "step-00000002", "best"):
        kill(moment, 1, *command)
    run(*command)
    assert steps(out) == steps(whole) and not [path for path in out.rglob(".partial.*")]
    weights = [read_weights(folder / "gen1" / "model" / "model.safetensors") for folder in (whole, out)]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])
    for name in ("gen0/dev/labels.jsonl", "gen1/labels/labels.jsonl", "gen1/dev/labels.jsonl"):
        assert (whole / name).read_bytes() == (out / name).read_bytes()
    assert read_json(whole / "report.json")["best"] == read_json(out / "report.json")["best"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    caplog.clear()
    with caplog.at_level("INFO", "w2vbert"):
        run(*command)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    told = [record.getMessage() for record in caplog.records if "up to date" in record.getMessage()]
    assert told == [f"self-train: up to date ({out})"]
    words = [str(word) for word in command]
    assert has_nothing_to_do(words)
    taken = os.readlink(out / "best")
    (out / "best").unlink()
    (out / "best").symlink_to("gen1/labels")
    assert not has_nothing_to_do(words)
    run(*command)
    assert os.readlink(out / "best") == taken and has_nothing_to_do(words)


def test_errors_leave_nothing(prepared: Prepared, pretrained: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "out"
    command = start(prepared, pretrained, out)

    def refused(*changes: object) -> str:
        message = fails(*command, *changes)
        assert not out.exists()
        return message

    assert "unknown key generation" in refused("--set", "generation=2")
    assert "generations must be at least 1" in refused("--set", "generations=0")
    assert "pseudo_share must lie between 0 and 1" in refused("--set", "student.pseudo_share=1")
    assert "dev_quantile in [0, 1)" in refused("--set", "labels.dev_quantile=2")
    for option in ("--model", "--init", "--tokenizer"):
        assert str(tmp_path / "nowhere") in refused(option, tmp_path / "nowhere")
    assert "holds a transducer model, but" in refused("--init", prepared.model)
    assert "no such file or folder" in refused("--lm", tmp_path / "nowhere")
    assert "needs a beam search" in refused("--set", "labels.search={method: greedy}")
    assert "holds a w2v-bert model, but a transducer" in refused("--model", pretrained)
    out.mkdir()
    (out / "notes.txt").touch()
    assert "was not made by self-train" in fails(*command)
    (out / "notes.txt").rename(out / "best")
    assert "is in the way of the link to the best model" in fails(*command)
    assert os.listdir(out) == ["best"]


def test_pseudo_share_needs_pseudo_labels(prepared: Prepared, tmp_path: Path, fails: Callable[..., str]) -> None:
    base = ("finetune", prepared.data, tmp_path / "out", "--tokenizer", prepared.tokenizer, "--init", "scratch")
    assert "pseudo_share needs pseudo-labels" in fails(*base, "--set", "pseudo_share=0.9")
