"""Configs: strict reading with errors that name file, key and what is allowed, and a lossless round trip."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from w2vbert.config import load_config, save_config, to_dict
from w2vbert.errors import UserError


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")


@dataclass(frozen=True)
class Layer:
    width: int = 8


@dataclass(frozen=True)
class Run:
    name: str = "run"
    method: Literal["greedy", "beam"] = "greedy"
    steps: int = 10
    limit: float | None = None
    folder: Path = Path("exp")
    optimizer: Optimizer = field(default_factory=Optimizer)
    teacher: Optimizer | None = None
    layers: tuple[Layer, ...] = (Layer(), Layer())
    rates: dict[str, float] = field(default_factory=dict)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_defaults_without_file() -> None:
    assert load_config(Run) == Run()


def test_values_take_the_types_of_the_fields(tmp_path: Path) -> None:
    text = "steps: 3\nmethod: beam\nlimit: 1e-4\nfolder: a/b\noptimizer: {learning_rate: 1e-4, betas: [0.5, 1e-1]}\n"
    config = load_config(Run, write(tmp_path, text + "layers: [{width: 2}]\nteacher: {learning_rate: 2}\n"))
    optimizer = Optimizer(1e-4, (0.5, 0.1))
    assert config == Run("run", "beam", 3, 1e-4, Path("a/b"), optimizer, Optimizer(2.0), (Layer(2),))
    assert isinstance(config.teacher, Optimizer) and isinstance(config.teacher.learning_rate, float)


@dataclass(frozen=True)
class Words:
    compile: Literal["auto", "on", "off"] = "auto"
    share: bool = False


def test_on_and_off_are_words_and_still_true_and_false(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("compile: off\nshare: yes\n")
    assert load_config(Words, tmp_path / "run.yaml") == Words("off", True)
    assert load_config(Words, tmp_path / "run.yaml", ["compile=on", "share=off"]) == Words("on", False)
    save_config(Words("off", True), tmp_path / "saved.yaml")
    assert load_config(Words, tmp_path / "saved.yaml") == Words("off", True)


def test_overrides_win_over_the_file_and_keep_its_other_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {learning_rate: 0.5, betas: [0.1, 0.2]}\n")
    config = load_config(Run, path, ["optimizer.learning_rate=1e-4", "limit=null", "rates={a: 1}"])
    assert config.optimizer == Optimizer(1e-4, (0.1, 0.2)) and config.limit is None and config.rates == {"a": 1.0}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("stepps: 3", ["unknown key stepps", "did you mean steps?", "allowed: name, method, steps"]),
        ("optimizer: {lr: 3}", ["unknown key lr in optimizer", "allowed: learning_rate, betas"]),
        ("teacher: {learning_rat: 3}", ["unknown key learning_rat in teacher", "did you mean learning_rate?"]),
        ("layers: [{width: 1}, {widht: 3}]", ["unknown key widht in layers.1", "did you mean width?"]),
        ("steps: many", ["steps: ", "integer", "'many'"]),
        ("steps: yes", ["steps: a number is needed, not true"]),
        ("method: viterbi", ["method: ", "'greedy' or 'beam'", "'viterbi'"]),
        ("optimizer: {betas: [1, 2, 3]}", ["optimizer.betas: "]),
        ("teacher: {betas: [x, 2]}", ["teacher.betas.0: "]),
        ("optimizer: 3", ["optimizer: "]),
        ("optimizer: {learning_rate: -1}", ["optimizer: learning_rate must be positive, not -1.0"]),
        ("steps: 1\nsteps: 2", ["key 'steps' is given twice"]),
        ("- a", ["must be a mapping"]),
        ("a: [", ["not valid YAML"]),
    ],
)
def test_errors_are_one_line_with_the_file(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_config(Run, path)
    message = str(error.value)
    assert "\n" not in message and message.startswith(str(path))
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("override", ["steps", "=3", "a..b=1", "stepps=3", "optimizer.lr=1", "steps.x=1"])
def test_errors_name_the_override(override: str) -> None:
    with pytest.raises(UserError, match="--set") as error:
        load_config(Run, None, [override])
    assert override in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such config file"):
        load_config(Run, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "config",
    [
        Run(),
        Run("no", "beam", 1, 1e-7, Path("x y"), Optimizer(1e20), Optimizer(), (Layer(1),), {"a": 1e-5}),
        Run(name="été: #1", limit=1e300, layers=()),
    ],
)
def test_saved_config_loads_back_equal(tmp_path: Path, config: Run) -> None:
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Run, tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_to_dict_holds_plain_values_only() -> None:
    tree = to_dict(Run())
    assert tree["folder"] == "exp" and tree["layers"] == [{"width": 8}, {"width": 8}]
    assert tree["optimizer"] == {"learning_rate": 1e-3, "betas": [0.9, 0.98]}


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("limit=.nan", "limit"),
        ("limit=.inf", "limit"),
        ("limit=-.inf", "limit"),
        ("limit='nan'", "limit"),
        ("optimizer.betas=[0.5, .nan]", "optimizer.betas.1"),
        ("rates={a: .nan}", "rates.a"),
    ],
)
def test_what_is_no_number_is_refused(setting: str, place: str) -> None:
    with pytest.raises(UserError, match=rf"^--set .*: {place}: a finite number is needed$"):
        load_config(Run, None, [setting])


@pytest.mark.parametrize("value", ["2024-13-45", "[" * 5000, "'", "{a: [}"])
def test_values_that_yaml_cannot_read_are_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the value is not valid YAML"):
        load_config(Run, None, [f"name={value}"])
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(Run, write(tmp_path, f"name: {value}\n"))
