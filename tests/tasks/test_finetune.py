"""Fine-tuning as a step: from scratch, from a pre-trained model, with pseudo-labels; killed, refused."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet

from tests.tasks.conftest import ENCODER, Prepared, is_up_to_date, kill, run
from w2vbert.config import load_config, save_config
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.files import read_json
from w2vbert.models.quantizer import QuantizerConfig
from w2vbert.models.transducer import PredictorConfig, TransducerConfig
from w2vbert.models.w2v_bert import W2vBert, W2vBertConfig
from w2vbert.tasks import recognize
from w2vbert.tasks.finetune import FinetuneConfig, FinetuneTask, TransducerLossConfig, build_transducer
from w2vbert.tasks.recognize import load_transducer
from w2vbert.training.checkpoint import read_weights, save_weights, write_model_card
from w2vbert.training.config import TrainConfig
from w2vbert.training.metrics import TIMINGS
from w2vbert.training.optim import OptimConfig

CONFIG = FinetuneConfig(
    encoder=ENCODER,
    predictor=PredictorConfig(dim=16, layers=1),
    projection_dim=16,
    joiner_dim=16,
    loss=TransducerLossConfig(prune_range=3, warmup_steps=4, ctc_weight=0.3),
    train=TrainConfig(
        max_steps=9, average_decay=0.9, log_every_steps=2, validate_every_steps=4, save_every_steps=3, threads=1
    ),
    encoder_optim=OptimConfig(1e-3, 2),
    decoder_optim=OptimConfig(1e-3, 2),
    batch_seconds=1.0,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    save_config(CONFIG, tmp_path / "finetune.yaml")
    return tmp_path / "finetune.yaml"


def write_pretrained(folder: Path, data: Path) -> Path:
    """A pre-trained model with random weights, for the features in `data`."""
    folder.mkdir()
    model_config = W2vBertConfig(ENCODER, QuantizerConfig(codes=8, dim=8))
    torch.manual_seed(5)
    save_weights(W2vBert(model_config), folder / "model.safetensors")
    save_config(model_config, folder / "model.yaml")
    shutil.copyfile(data / "features.yaml", folder / "features.yaml")
    write_model_card(folder, "w2v-bert", {"history": {str(folder): {"audio_hours": 3.0, "minutes": 1.0}}})
    return folder


@pytest.fixture
def pretrained(tmp_path: Path, prepared: Prepared) -> Path:
    return write_pretrained(tmp_path / "pretrained", prepared.data)


def start(prepared: Prepared, out: Path, config: Path, init: object = "scratch") -> tuple[object, ...]:
    return ("finetune", prepared.data, out, "--tokenizer", prepared.tokenizer, "--init", init, "--config", config)


def change_split(prepared: Prepared, folder: Path, split: str, texts: dict[int, str | None]) -> Path:
    """A copy of the features where some utterances of a split have other transcripts."""
    data = Path(shutil.copytree(prepared.data, folder, ignore=shutil.ignore_patterns("storage", ".*")))
    cuts = list(CutSet.from_file(data / f"cuts_{split}.jsonl.gz"))
    for index, text in texts.items():
        cuts[index] = replace(cuts[index], supervisions=[replace(cuts[index].supervisions[0], text=text)])
    CutSet.from_cuts(cuts).to_file(data / f"cuts_{split}.jsonl.gz")
    return data


def test_from_scratch_it_leaves_a_recogniser_and_is_done_once(
    prepared: Prepared, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    base = start(prepared, out, config)
    assert not is_up_to_date(caplog, *base)
    assert load_config(FinetuneConfig, out / "config.yaml") == CONFIG
    model, tokenizer = load_transducer(out)
    assert tokenizer == Tokenizer.load(prepared.tokenizer) and model.vocab_size == tokenizer.vocab_size
    card = read_json(out / "model.json")
    assert (card["kind"], card["steps"]) == ("transducer", 9) and list(card["history"]) == [str(out)]
    assert card["tokenizer"] == tokenizer.digest
    run("decode", "--model", out, next(prepared.corpus.rglob("*.flac")))
    assert is_up_to_date(caplog, *base)
    assert is_up_to_date(caplog, *base, "--set", "encoder_optim.freeze_steps=4")  # a fresh encoder is never frozen
    for how in ("threads=1", "loader_workers=1", "hang_seconds=70", "compile=off"):
        assert is_up_to_date(caplog, *base, "--set", f"train.{how}")
    assert not is_up_to_date(caplog, *base, "--set", "train.seed=2")
    run("tokenizer", prepared.manifests, tmp_path / "bpe", "--set", "vocab_size=20")
    assert not is_up_to_date(caplog, *base[:4], tmp_path / "bpe", *base[5:], "--set", "train.max_steps=1")
    assert load_config(TransducerConfig, out / "model.yaml").vocab_size == 20


def test_the_encoder_is_that_of_the_pre_trained_model(
    prepared: Prepared, config: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    base = (*start(prepared, out, config, pretrained), "--set", "train.max_steps=2", "--set", "train.average_decay=0")
    run(*base, "--set", "encoder_optim.freeze_steps=2")
    source, tuned = read_weights(pretrained / "model.safetensors"), read_weights(out / "model.safetensors")
    kept = [name for name in source if name.startswith("encoder.")]
    weights = [name for name in kept if "running_" not in name]
    assert len(kept) > len(weights) > 30 and all(torch.equal(source[name], tuned[name]) for name in kept)
    history = read_json(out / "model.json")["history"]
    assert history.keys() == {str(pretrained), str(out)} and history[str(pretrained)]["audio_hours"] == 3.0
    assert not is_up_to_date(caplog, *base)
    tuned = read_weights(out / "model.safetensors")
    moved = {name for name in weights if not torch.equal(source[name], tuned[name])}
    frozen = {name for name in weights if ".feature_encoder." in name}
    assert frozen and moved == set(weights) - frozen
    assert is_up_to_date(caplog, *base)
    save_weights(W2vBert(W2vBertConfig(ENCODER, QuantizerConfig(codes=8, dim=8))), pretrained / "model.safetensors")
    assert not is_up_to_date(caplog, *base)


def test_pseudo_labels_are_trained_on_too(
    prepared: Prepared, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = tmp_path / "labels"
    settings = ("max_words_per_second=100", "min_words=0", "rate_quantile=0", "dev_quantile=0")
    keep = [part for setting in settings for part in ("--set", setting)]
    run("pseudo-label", prepared.data, labels, "--model", prepared.model, *keep)
    base = (*start(prepared, tmp_path / "out", config), "--pseudo", labels, "--set", "train.max_steps=4")
    caplog.clear()
    assert not is_up_to_date(caplog, *base)
    assert any("12 utterances" in record.getMessage() for record in caplog.records)
    history = read_json(tmp_path / "out" / "model.json")["history"]
    assert history.keys() == {str(prepared.model), str(tmp_path / "out")}
    assert is_up_to_date(caplog, *base)
    run("pseudo-label", prepared.data, labels, "--model", prepared.model, *keep, "--set", "keep_share=0.5")
    assert not is_up_to_date(caplog, *base)


def test_killed_and_started_again_gives_the_same_weights(
    prepared: Prepared, config: Path, pretrained: Path, tmp_path: Path
) -> None:
    run(*start(prepared, tmp_path / "whole", config, pretrained))
    out = tmp_path / "out"
    # After the second validation has replaced the best model, before any checkpoint knows of it.
    kill("step-00000009", 1, *start(prepared, out, config, pretrained))
    assert (out / "checkpoints" / "step-00000006").is_dir() and not (out / "model.json").exists()
    kill("model.json", 1, *start(prepared, out, config, pretrained))
    run(*start(prepared, out, config, pretrained))
    for name in ("model", "checkpoints/step-00000009/model", "checkpoints/step-00000009/average"):
        expected, found = (read_weights(tmp_path / run / f"{name}.safetensors") for run in ("whole", "out"))
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    cards = [read_json(tmp_path / run / "model.json") for run in ("whole", "out")]
    assert cards[0]["best"] == cards[1]["best"] and cards[0]["audio_hours"] == cards[1]["audio_hours"]
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "out")]
    known = [[json.loads(line) | dict.fromkeys(TIMINGS) for line in run] for run in lines]
    assert known[0] == known[1]


def test_a_damaged_checkpoint_is_passed_over(prepared: Prepared, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*start(prepared, tmp_path / "whole", config))
    kill("step-00000009", 1, *start(prepared, out, config))
    (out / "checkpoints" / "step-00000006" / "state.pt").write_bytes(b"damaged")
    run(*start(prepared, out, config))
    expected, found = (read_weights(tmp_path / run / "model.safetensors") for run in ("whole", "out"))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_errors_leave_nothing(
    prepared: Prepared, config: Path, pretrained: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    accents = change_split(prepared, tmp_path / "accents", "train", {2: "SPEAKER SAYS É"})
    bare = change_split(prepared, tmp_path / "bare", "train", {i: None for i in range(8)})
    (tmp_path / "empty").mkdir()
    before = sorted(os.listdir(tmp_path))
    base = start(prepared, tmp_path / "out", config)
    assert "the tokenizer has never seen É (utterances 11-7-0002)" in fails(base[0], accents, *base[2:])
    assert "no utterance of the training data has a transcript" in fails(base[0], bare, *base[2:])
    assert "no such file or folder" in fails(base[0], tmp_path / "nowhere", *base[2:])
    assert "holds cuts without features" in fails(base[0], prepared.manifests, *base[2:])
    assert "unknown key loss_, did you mean loss?" in fails(*base, "--set", "loss_.prune_range=3")
    assert "needs the key `encoder`" in fails(*base[:-2])
    assert "is not a tokenizer" in fails(*base[:4], tmp_path / "empty", *base[5:])
    assert "no such file or folder" in fails(*base[:4], tmp_path / "nowhere", *base[5:])
    assert "cuts_pseudo.jsonl.gz does not exist" in fails(*base, "--pseudo", tmp_path / "empty")
    for init, message in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "empty", "is not a model folder: it has no model.json"),
        (prepared.model, "holds a transducer model, but a w2v-bert or encoder model is needed"),
    ):
        assert message in fails(*start(prepared, tmp_path / "out", config, init))
    deeper = ("--set", "encoder.contrastive_blocks=2")
    assert "key encoder contradicts" in fails(*start(prepared, tmp_path / "out", config, pretrained), *deeper)
    assert sorted(os.listdir(tmp_path)) == before


def test_some_utterances_without_text_do_no_harm(prepared: Prepared, config: Path, tmp_path: Path) -> None:
    """A pseudo-label may be empty; so may all of a batch."""
    data = change_split(prepared, tmp_path / "data", "train", {i: "" for i in range(7)})
    base = start(prepared, tmp_path / "out", config)
    run(base[0], data, *base[2:], "--set", "batch_seconds=0.6")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["pruned_loss"] for line in lines if line["split"] == "train"]
    assert all(0.0 < loss < 100.0 for loss in losses) and lines[-1]["step"] == 9
    assert not any(line.get("skipped_steps") for line in lines)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_empty_and_too_long_transcripts_are_named_counted_and_harmless(
    prepared: Prepared, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Three utterances have more pieces than frames; joined to one without text they may fit, or not."""
    long = "SPEAKER SAYS A"
    texts = {0: "A", 1: "", 2: long, 3: "SAYS", 4: "B", 5: long, 6: "", 7: "SPEAKER SAYS A SPEAKER SAYS A SPEAKER"}
    data = change_split(prepared, tmp_path / "data", "train", texts)
    base = start(prepared, tmp_path / "out", config)
    more = ("--set", "loss.rnnt_type=modified", "--set", f"train.seed={seed}", "--set", "join_utterances=2")
    run(base[0], data, *base[2:], *more, "--set", "train.max_steps=6")
    named = [m for m in caplog.messages if "more word pieces than encoder frames and are left out" in m]
    assert named == [named[0]] and named[0].endswith(": 11-7-0002, 12-7-0002, 13-7-0001")
    assert read_json(tmp_path / "out" / "left_out.json") == ["11-7-0002", "12-7-0002", "13-7-0001"]
    assert read_json(tmp_path / "out" / "model.json")["left_out"] == {
        "more_pieces_than_frames": 3,
        "times_without_finite_loss": 0,
    }
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(0.0 < line["pruned_loss"] < 100.0 for line in lines if line["split"] == "train")
    assert not any(line.get("skipped_steps") for line in lines)
    assert all(t.isfinite().all() for t in read_weights(tmp_path / "out" / "model.safetensors").values())


def test_noise_copies_at_other_speeds_and_learning_rates_by_layer(
    prepared: Prepared, config: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fbank, more = tmp_path / "fbank", ("--set", "noise.prob=0.7", "--set", "encoder_layer_decay=0.5")
    noisy = ("--set", f"noise={prepared.corpus / 'a-more'}", "--set", "speeds=[0.9, 1.1]")
    base = (*start(prepared, tmp_path / "out", config, pretrained), "--set", "train.max_steps=3")
    run("features", prepared.manifests, fbank, *noisy)
    run(base[0], fbank, *base[2:], *more)
    assert any("24 utterances" in message for message in caplog.messages)
    plain = (base[0], fbank, tmp_path / "plain", *base[3:])
    run(*plain)
    tuned, other = (read_weights(tmp_path / out / "model.safetensors") for out in ("out", "plain"))
    assert not torch.equal(tuned["joiner.linear.weight"], other["joiner.linear.weight"])


def test_noise_that_was_not_prepared_is_asked_for(
    prepared: Prepared, config: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    base = start(prepared, tmp_path / "out", config)
    assert "needs `w2vbert features` with --set noise=FOLDER" in fails(*base, "--set", "noise.prob=0.5")
    assert "encoder_layer_decay must lie in (0, 1]" in fails(*base, "--set", "encoder_layer_decay=0")


def test_the_ctc_head_may_learn_alone_at_first(prepared: Prepared, tmp_path: Path) -> None:
    loss = replace(CONFIG.loss, ctc_only_steps=5)
    save_config(replace(CONFIG, loss=loss), tmp_path / "ctc.yaml")
    out = tmp_path / "out"
    options = ("--tokenizer", prepared.tokenizer, "--init", "scratch", "--config", tmp_path / "ctc.yaml")
    run("finetune", prepared.data, out, *options)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    at = {(line["split"], line["step"]): line for line in lines}
    assert "ctc_wer" in at["dev", 4] and "wer" not in at["dev", 4]
    assert "wer" in at["dev", 8] and "wer" in at["dev", 9]
    assert "ctc_loss" in at["train", 4] and "pruned_loss" not in at["train", 4]
    assert at["train", 8]["pruned_loss"] > 0
    assert "wer" in read_json(out / "model.json")["best"]
    config, pieces = replace(CONFIG, loss=loss), Tokenizer.load(prepared.tokenizer)
    dev = SpeechDataset([prepared.data / "cuts_dev.jsonl.gz"], config.max_seconds)
    task = FinetuneTask(config, build_transducer(config, "scratch", pieces).eval(), pieces, dev)  # as after a restart
    assert [*task.validate(task.model, 5)] == ["ctc_wer"] and [*task.validate(task.model, 6)] == ["wer"]


def test_validation_has_the_precision_of_the_training(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the hardware: on another machine another model would be the best."""
    asked = []
    monkeypatch.setattr(
        recognize, "choose_precision", lambda precision, device: asked.append(precision) or torch.float32
    )
    pieces = Tokenizer.load(prepared.tokenizer)
    dev = SpeechDataset([prepared.data / "cuts_dev.jsonl.gz"], CONFIG.max_seconds)
    for precision in ("float32", "bfloat16"):
        config = replace(CONFIG, train=replace(CONFIG.train, precision=precision))
        task = FinetuneTask(config, build_transducer(config, "scratch", pieces).eval(), pieces, dev)
        task.validate(task.model, 9)
        assert set(asked) == {precision}
        asked.clear()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prune_range": 1}, "prune_range must be at least 2 with rnnt_type regular"),
        ({"prune_range": 0, "rnnt_type": "modified"}, "at least 1 with rnnt_type modified"),
        ({"warmup_steps": -1}, "must not be negative"),
        ({"ctc_only_steps": 3, "ctc_weight": 0.0}, "needs a CTC head"),
    ],
)
def test_losses_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG.loss, **values)


def test_dimensions_of_no_size_are_refused() -> None:
    for key in ("projection_dim", "joiner_dim"):
        with pytest.raises(ValueError, match=key):
            replace(CONFIG, **{key: 0})


def test_losses_are_means_over_the_frames_that_have_them(prepared: Prepared) -> None:
    """In the interval in which the CTC head ceases to learn alone, too."""
    pieces = Tokenizer.load(prepared.tokenizer)
    dev = SpeechDataset([prepared.data / "cuts_dev.jsonl.gz"], CONFIG.max_seconds)
    config = replace(CONFIG, loss=replace(CONFIG.loss, ctc_only_steps=1))
    task = FinetuneTask(config, build_transducer(config, "scratch", pieces).eval(), pieces, dev)
    generator = torch.Generator()
    alone, whole = (task.train_step(dev.batch([0, 1], pieces.encode), step, generator).sums for step in (0, 1))
    found = task.summarize({name: alone[name] + whole[name] for name in alone})
    expected = task.summarize(whole)
    for name in ("pruned_loss", "simple_loss", "ctc_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_the_ctc_head_cannot_learn_alone_to_the_end() -> None:
    with pytest.raises(ValueError, match="less than train.max_steps"):
        replace(CONFIG, loss=replace(CONFIG.loss, ctc_only_steps=9))
