"""The table of costs in recipes/librispeech/README.md is what `w2vbert info` tells."""

import re

import pytest

from tests.recipes.test_run_sh import RECIPES
from w2vbert.tasks.info import describe

FOLDER = RECIPES / "librispeech"
ROWS = re.findall(
    r"^\| ([a-z-]+) \| ([\d.]+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", (FOLDER / "README.md").read_text(), re.M
)


def test_there_are_rows() -> None:
    assert [row[0] for row in ROWS] == ["small", "base", "large-small", "xl", "xxl"]


@pytest.mark.parametrize(("name", "millions", "audio_hours", "a100", "h100"), ROWS)
def test_a_row_is_that_of_info(name: str, millions: str, audio_hours: str, a100: str, h100: str) -> None:
    facts = describe(None, FOLDER / "conf" / "pretrain" / f"{name}.yaml", [])
    run = facts["whole_run"]
    assert f"{facts['parameters'] / 1e6:.1f}" == millions and f"{run['audio_hours']:.0f}" == audio_hours
    assert (f"{run['A100_hours']:.2f}", f"{run['H100_hours']:.2f}") == (a100, h100)
