"""The pre-training presets of recipes/librispeech: they load, have the sizes that they promise, and start."""

from pathlib import Path

import pytest

from tests.tasks.conftest import Prepared, run
from w2vbert.config import load_config
from w2vbert.files import read_json
from w2vbert.tasks.info import describe
from w2vbert.tasks.pretrain import PretrainConfig

FOLDER = Path(__file__).parents[2] / "recipes" / "librispeech" / "conf" / "pretrain"
MILLIONS = {"xxl": 1018.9, "xl": 584.1, "large-small": 149.4, "base": 74.9, "small": 12.8, "tiny": 1.5}
BLOCK_MILLIONS = {"xxl": 1014.4, "xl": 579.7}  # the paper's sizes


def test_these_are_all_presets() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(MILLIONS)


@pytest.mark.parametrize("name", MILLIONS)
def test_a_preset_has_the_size_that_it_promises(name: str) -> None:
    facts = describe(None, FOLDER / f"{name}.yaml", [])
    assert facts["parameters"] / 1e6 == pytest.approx(MILLIONS[name], rel=0.01)
    if name in BLOCK_MILLIONS:
        assert facts["parameters_of_blocks"] / 1e6 == pytest.approx(BLOCK_MILLIONS[name], rel=0.005)
        assert facts["config"]["train"]["update_seconds"] == 2048 * 32
        assert not [line for line in facts["deviations_from_the_paper"] if line.startswith(("model.encoder", "optim."))]
    assert facts["frames_per_second"] == 25 and len(facts["unknown_in_the_paper"]) > 3


@pytest.mark.parametrize("name", MILLIONS)
def test_an_update_holds_what_it_promises(name: str) -> None:
    config = load_config(PretrainConfig, FOLDER / f"{name}.yaml")
    assert config.batch_seconds >= config.max_seconds
    assert config.train.update_seconds == 0 or config.train.update_seconds % config.batch_seconds == 0
    assert config.optim.warmup_steps < config.train.max_steps / 5


def test_tiny_trains_as_it_stands(prepared: Prepared, tmp_path: Path) -> None:
    few = ("--set", "train.max_steps=2", "--set", "train.threads=1", "--set", "optim.warmup_steps=1")
    run("pretrain", prepared.data, tmp_path / "out", "--config", FOLDER / "tiny.yaml", *few)
    assert read_json(tmp_path / "out" / "model.json")["steps"] == 2
