"""The presets of language models: they load, have the sizes that they promise, and start."""

from pathlib import Path

import pytest

from tests.tasks.conftest import Prepared, run
from w2vbert.files import read_json
from w2vbert.tasks.info import describe

FOLDER = Path(__file__).parents[2] / "recipes" / "librispeech" / "conf" / "lm"
MILLIONS = {"tiny": 0.53, "small": 3.4, "base": 19.4, "paper": 102.9}


def test_these_are_all_presets() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(MILLIONS)


@pytest.mark.parametrize("name", MILLIONS)
def test_a_preset_has_the_size_that_it_promises(name: str) -> None:
    facts = describe(None, FOLDER / f"{name}.yaml", [])
    assert facts["kind"] == "language model" and facts["vocab_size"] == 1024
    assert facts["parameters"] / 1e6 == pytest.approx(MILLIONS[name], rel=0.01)


def test_tiny_trains_as_it_stands(prepared: Prepared, tmp_path: Path) -> None:
    few = ("--set", "train.max_steps=2", "--set", "train.threads=1", "--set", "optim.warmup_steps=1")
    tokenizer = ("--tokenizer", prepared.tokenizer)
    run("lm", "train", prepared.manifests, tmp_path / "out", *tokenizer, "--config", FOLDER / "tiny.yaml", *few)
    card = read_json(tmp_path / "out" / "model.json")
    assert (card["kind"], card["steps"]) == ("neural", 2) and not (tmp_path / "out.text").exists()
