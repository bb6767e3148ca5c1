"""`w2vbert settings` prints what a command reads, with a meaning above each key."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tests.tasks.conftest import run
from w2vbert.cli.options import app
from w2vbert.config import load_config, to_dict
from w2vbert.tasks.settings import CONFIGS, read_meanings


def config_class(command: str) -> Any:
    module, _, name = CONFIGS[command].rpartition(".")
    return getattr(importlib.import_module(f"w2vbert.{module}"), name)


def commands_with_settings(command: Any, name: str = "") -> Iterator[str]:
    """Names of all commands that take --config."""
    for word, child in getattr(command, "commands", {}).items():
        yield from commands_with_settings(child, f"{name} {word}".strip())
    if any("--config" in parameter.opts for parameter in command.params):
        yield name


def test_every_command_with_settings_is_there() -> None:
    found = set(commands_with_settings(typer.main.get_command(app)))
    assert found - {"info", "settings"} == set(CONFIGS)


@pytest.mark.parametrize("command", CONFIGS)
def test_what_is_printed_is_a_config_with_the_defaults(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("settings", *command.split())
    text = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(text)
    cls = config_class(command)
    assert to_dict(load_config(cls, tmp_path / "c.yaml")) == to_dict(cls())
    lines = [line.strip() for line in text.splitlines()]
    assert max(map(len, text.splitlines())) <= 120
    for before, line in zip(["", *lines], lines, strict=False):
        assert line.startswith("#") or before.startswith("#"), f"{line} has no meaning"


def test_words_to_choose_from_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    run("settings", "finetune")
    assert "pays for a blank as well). [regular | modified | constrained]" in capsys.readouterr().out.replace(
        "\n  # ", " "
    )


def test_no_meaning_without_a_key() -> None:
    for command in CONFIGS:
        cls = config_class(command)
        assert set(read_meanings(cls)) == set(to_dict(cls()))


def test_files_and_overrides_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("search: {method: beam}\n")
    run("settings", "decode", "--config", tmp_path / "c.yaml", "--set", "search.beam_size=7")
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["search"] | {"method": "beam", "beam_size": 7} == yaml.safe_load(text)["search"]
    assert "  # hypotheses kept for each utterance (beam only).\n  beam_size: 7\n" in text


def test_mistakes_are_told(fails: Callable[..., str]) -> None:
    told = fails("settings", "report")
    assert "'report' is no command with settings (there are: prepare synth, " in told and "lm train" in told
    assert "'fine-tune' is no command with settings, did you mean finetune?" in fails("settings", "fine-tune")
    assert "unknown key beem_size in search, did you mean beam_size?" in fails(
        "settings", "decode", "--set", "search.beem_size=7"
    )
