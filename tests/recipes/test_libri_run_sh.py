"""run.sh of librispeech and librilight with a w2vbert that only notes its calls; and all settings of all recipes."""

from pathlib import Path

import pytest
import yaml

from tests.recipes.test_run_sh import RECIPES, Recipe
from w2vbert.config import load_config

LIBRISPEECH = "train-clean-100,train-clean-360,train-other-500"


class Libri(Recipe):
    """A copy of the recipes, of which one is called."""

    def __init__(self, folder: Path, name: str) -> None:
        import shutil

        super().__init__(folder)
        parent = self.folder.parent
        for recipe in ("librispeech", "librilight"):
            shutil.copytree(RECIPES / recipe, parent / recipe, ignore=shutil.ignore_patterns("data", "exp", "download"))
        self.folder = parent / name
        self.script = str(self.folder / "run.sh")
        self.corpus = folder / "my corpus"
        self.corpus.mkdir()


def commands(calls: list[str]) -> list[str]:
    return [" ".join(word for word in call.split()[:2] if "/" not in word) for call in calls]


def test_librispeech_is_downloaded_unless_it_is_named(tmp_path: Path) -> None:
    recipe = Libri(tmp_path, "librispeech")
    subsets = f"{LIBRISPEECH},dev-clean,dev-other,test-clean,test-other".replace(",", " ")
    assert recipe.run("--stop-stage", "0", "--mirror", "http://here").returncode == 0
    assert recipe.calls() == [f"download download {subsets} --mirror http://here"]
    assert recipe.run("--stop-stage", "1", "--nj", "1").returncode == 0
    prepare = recipe.calls()[1]
    assert prepare.startswith("prepare corpus download/LibriSpeech data/manifests --nj 1")
    assert f"--train {LIBRISPEECH} --dev dev-clean,dev-other --test test-clean,test-other" in prepare
    result = recipe.run("--stop-stage", "0", "--corpus", str(recipe.corpus))
    assert result.returncode == 0 and not recipe.calls() and "nothing to download" in result.stderr
    assert "nowhere does not exist" in recipe.refusal("--corpus", "/nowhere")


def test_presets_are_chosen_by_name(tmp_path: Path) -> None:
    recipe = Libri(tmp_path, "librispeech")
    given = ("--corpus", str(recipe.corpus), "--nj", "1")
    recipe.run(*given)
    calls = recipe.calls()
    assert any("--config conf/pretrain/base.yaml" in call for call in calls)
    assert any("--init exp/pretrain --config conf/finetune/960h.yaml" in call for call in calls)
    assert not any("scratch" in call or "self-train" in call for call in calls)
    recipe.run(*given, "--pretrain-preset", "xl", "--finetune-preset", "10h")
    calls = recipe.calls()
    for settings in ("pretrain/xl", "finetune/10h", "tokenizer/10h"):
        assert any(f"--config conf/{settings}.yaml" in call for call in calls)
    assert "--finetune-preset 5h: there is no conf/finetune/5h.yaml" in recipe.refusal("--finetune-preset", "5h")


def test_two_cores_go_from_scratch_to_self_training(tmp_path: Path) -> None:
    recipe = Libri(tmp_path, "librispeech")
    options = ("--corpus", str(recipe.corpus), "--nj", "1", "--conf", str(recipe.folder / "conf" / "two_cores"))
    result = recipe.run(*options, "--unlabelled", "more")
    assert result.returncode == 0, result.stderr
    calls = recipe.calls()
    report = calls[-1]
    assert report.count("--row") == 4 and "trained from scratch=exp/scratch/decode_greedy" in report
    assert sum(call.startswith(("finetune", "self-train")) for call in calls) == 3
    assert all(
        "conf/two_cores/" in call for call in calls if call.startswith(("pretrain", "finetune", "self-train", "decode"))
    )


def test_librilight_prepares_and_hands_over(tmp_path: Path) -> None:
    recipe = Libri(tmp_path, "librilight")
    result = recipe.run("--nj", "1")
    assert result.returncode == 0, result.stderr
    calls = recipe.calls()
    subsets = "librispeech_finetuning dev-clean dev-other test-clean test-other small medium large"
    assert calls[0] == f"download download {subsets}"
    assert calls[1].startswith("prepare librilight download data/manifests --nj 1 --train 10h")
    folder = recipe.folder
    assert calls[2].startswith(f"features {folder}/data/manifests {folder}/data/fbank")
    assert any("pretrain/xl.yaml" in call for call in calls) and any("finetune/10h.yaml" in call for call in calls)
    assert any(call.startswith("self-train") for call in calls)
    stages = [line.split()[2] for line in result.stderr.splitlines() if line.split()[1:2] == ["stage"]]
    assert stages == ["0:", "1:", "2:", "3:", "4:", "5:", "6:"]


def test_librilight_runs_single_stages(tmp_path: Path) -> None:
    recipe = Libri(tmp_path, "librilight")
    corpus = ("--corpus", str(recipe.corpus))
    recipe.run(*corpus, "--stage", "1", "--stop-stage", "1")
    assert commands(recipe.calls()) == ["prepare librilight"]
    recipe.run(*corpus, "--stage", "3", "--stop-stage", "3", "--train", "1h", "--nj", "1")
    assert commands(recipe.calls()) == ["pretrain"]
    assert "names nothing" in recipe.refusal("--unlabelled", "")


SETTINGS = sorted(
    path for path in RECIPES.rglob("*.yaml") if not {"data", "exp", "download"} & set(path.relative_to(RECIPES).parts)
)


def config_of(path: Path) -> type | None:
    """The dataclass that a file of settings is for, by its name or that of its folder; None: a language model's."""
    from w2vbert.data.features import ExtractionConfig
    from w2vbert.data.synthesis import SynthConfig
    from w2vbert.data.tokenizer import TokenizerConfig
    from w2vbert.tasks.decode import DecodeConfig
    from w2vbert.tasks.finetune import FinetuneConfig
    from w2vbert.tasks.pretrain import PretrainConfig
    from w2vbert.tasks.self_train import SelfTrainConfig

    kinds = {
        "synth": SynthConfig,
        "features": ExtractionConfig,
        "tokenizer": TokenizerConfig,
        "pretrain": PretrainConfig,
        "finetune": FinetuneConfig,
        "scratch": FinetuneConfig,
        "self_train": SelfTrainConfig,
        "decode": DecodeConfig,
        "decode_lm": DecodeConfig,
    }
    return kinds.get(path.stem) or kinds.get(path.parent.name)


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_settings_load(path: Path) -> None:
    kind = config_of(path)
    if kind is None:
        assert path.stem == "lm" or path.parent.name == "lm", f"{path}: settings of what?"
        return
    config = load_config(kind, path)
    train = getattr(config, "train", None)
    if train is not None and train.update_seconds:
        assert train.update_seconds % config.batch_seconds == 0


def test_scratch_differs_from_finetune_in_the_encoder_alone() -> None:
    folder = RECIPES / "librispeech" / "conf" / "two_cores"
    scratch, finetune, pretrain = (
        yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("scratch", "finetune", "pretrain")
    )
    assert scratch.pop("encoder") == pretrain["model"]["encoder"] and scratch == finetune
