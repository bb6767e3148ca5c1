"""Model folders that are none, and recognition of batches."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tasks.conftest import ENCODER, Prepared, write_model
from w2vbert.config import load_config, save_config
from w2vbert.data.batches import collate
from w2vbert.data.features import FEATURES_FILE, FeatureConfig
from w2vbert.data.tokenizer import SPACE, Tokenizer, TokenizerConfig
from w2vbert.decoding.search import SearchConfig
from w2vbert.errors import UserError
from w2vbert.files import read_json, write_json
from w2vbert.models.transducer import TransducerConfig
from w2vbert.models.w2v_bert import W2vBert, W2vBertConfig
from w2vbert.tasks import recognize as task
from w2vbert.tasks.recognize import check_features, load_transducer, recognize
from w2vbert.training.checkpoint import save_weights, write_model_card


@pytest.fixture
def model(prepared: Prepared, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(prepared.model, tmp_path / "model"))


def empty(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


def unfinished(model: Path) -> None:
    (model / "model.json").unlink()
    (model / "checkpoints" / "step-00000001").mkdir(parents=True)


def pretrained(model: Path) -> None:
    write_model_card(model, "w2v-bert", {})


def newer(model: Path) -> None:
    write_json(model / "model.json", read_json(model / "model.json") | {"format": 99})


def cut_off(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def no_tensors(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")


def another_model(model: Path) -> None:
    save_weights(W2vBert(W2vBertConfig(ENCODER)), model / "model.safetensors")


def another_size(model: Path) -> None:
    config = load_config(TransducerConfig, model / "model.yaml")
    save_config(replace(config, joiner_dim=24), model / "model.yaml")


def another_tokenizer(model: Path) -> None:
    Tokenizer.train(["OTHER TEXT WITH MANY MORE LETTERS JKLQZXVBCD"], TokenizerConfig("char")).save(model / "tokenizer")


def swapped_tokenizer(model: Path) -> None:
    """One of the same size, with Z in the place of one letter."""
    own = Tokenizer.load(model / "tokenizer")
    letters = "".join(sorted(set("".join(own.pieces(range(2, own.vocab_size)))) - {SPACE}))
    other = Tokenizer.train([f"{letters[:-1]}Z {letters[:-1]}Z"], TokenizerConfig("char"))
    assert other.vocab_size == own.vocab_size and "Z" not in letters
    other.save(model / "tokenizer")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist"),
        (empty, "is not a model folder: it has no model.json"),
        (unfinished, "(its training has not finished)"),
        (pretrained, "holds a w2v-bert model, but a transducer model is needed"),
        (newer, "another program or a newer version"),
        (lambda model: (model / "model.json").write_text("{"), "model.json is damaged"),
        (lambda model: (model / "model.json").write_text("[]"), "another program or a newer version"),
        (lambda model: (model / "model.yaml").unlink(), "no such config file"),
        (cut_off, "is damaged or no safetensors file"),
        (no_tensors, "is damaged or no safetensors file"),
        (lambda model: (model / "model.safetensors").unlink(), "does not exist"),
        (another_model, "it belongs to a model of another configuration"),
        (another_size, "it belongs to a model of another size"),
        (another_tokenizer, "the tokenizer has"),
        (swapped_tokenizer, "is not the one that the model was trained with"),
        (lambda model: shutil.rmtree(model / "tokenizer"), "is not a tokenizer"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_by_every_command(
    damage: Callable[[Path], object],
    message: str,
    model: Path,
    prepared: Prepared,
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    damage(model)
    audio = next(prepared.corpus.rglob("*.flac"))
    assert message in fails("decode", "--model", model, audio, "-o", tmp_path / "out.jsonl")
    if model.is_dir():
        assert message in fails(
            "decode", "--model", model, "--data", prepared.data, "--split", "dev", "--out", tmp_path / "out"
        )
        assert message in fails("pseudo-label", prepared.data, tmp_path / "out", "--model", model)
    assert sorted(set(os.listdir(tmp_path)) - {"model"}) == []


def test_the_text_of_an_utterance_does_not_depend_on_its_batch(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "choose_precision", lambda *_: torch.float32)
    model, tokenizer = load_transducer(prepared.model)
    assert not model.training
    features = [torch.randn(frames, 80, generator=torch.Generator().manual_seed(frames)) for frames in (60, 171, 98)]
    together = next(recognize(model, tokenizer, [collate("abc", features, None)], SearchConfig()))
    assert [r.id for r in together] == ["a", "b", "c"] and len({r.text for r in together}) == 3
    for id, result, own in zip("abc", together, features, strict=True):
        alone = next(recognize(model, tokenizer, [collate([id], [own], None)], SearchConfig()))[0]
        assert result.text == alone.text == tokenizer.decode(alone.hypotheses[0].tokens)
        assert 0.0 < result.confidence < 1.0 and result.confidence == pytest.approx(alone.confidence, abs=1e-5)


def test_the_precision_asked_for_does_not_depend_on_the_machine(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_transducer(prepared.model)
    batch = collate("a", [torch.randn(80, 80, generator=torch.Generator().manual_seed(1))], None)
    scores: dict[tuple[str, bool], float] = {}
    for precision in ("auto", "float32", "bfloat16"):
        for fast in (False, True):
            monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda fast=fast: fast)
            (found,) = next(recognize(model, tokenizer, [batch], SearchConfig(), precision=precision))
            scores[precision, fast] = found.hypotheses[0].score
    for fast in (False, True):
        assert scores["float32", fast] == scores["auto", False] != scores["auto", True] == scores["bfloat16", fast]


def test_models_of_other_seeds_say_other_things(prepared: Prepared, tmp_path: Path) -> None:
    batch = collate("a", [torch.randn(80, 80, generator=torch.Generator().manual_seed(1))], None)
    folders = [prepared.model, write_model(tmp_path / "other", prepared.tokenizer, seed=1)]
    texts = [next(recognize(*load_transducer(folder), [batch], SearchConfig()))[0].text for folder in folders]
    assert texts[0] != texts[1]


def test_features_of_another_kind_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    check_features(prepared.model, prepared.data)
    save_config(FeatureConfig(num_mel_bins=40), tmp_path / FEATURES_FILE)
    with pytest.raises(UserError, match="the model needs other features"):
        check_features(prepared.model, tmp_path)
    with pytest.raises(UserError, match="no such config file"):
        check_features(prepared.model, tmp_path / "nowhere")
