"""Transcripts that cannot be learnt: said before training, left out of the loss, named once."""

import string
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.tiny import MELS, TRANSDUCER, noise
from w2vbert.data.batches import SpeechBatch, collate
from w2vbert.data.cut_index import CutIndex
from w2vbert.data.datasets import SpeechDataset
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.errors import UserError
from w2vbert.models.transducer import Transducer
from w2vbert.tasks import transcripts
from w2vbert.tasks.finetune import FinetuneConfig, FinetuneTask, TransducerLossConfig
from w2vbert.tasks.transcripts import UnusableUtterances, check_spelling, leave_out_crowded
from w2vbert.training.config import TrainConfig
from w2vbert.training.optim import OptimConfig, scale_and_clip

Type = Literal["regular", "modified", "constrained"]
TYPES: tuple[Type, ...] = ("regular", "modified", "constrained")


class ToyDataset(SpeechDataset):
    """Utterances without files, named a, b, c ..."""

    def __init__(self, texts: list[str], frames: list[int]) -> None:
        count = len(texts)
        ids, nobody, records = list(string.ascii_letters[:count]), [""] * count, b""
        self._manifests = [CutIndex(ids, texts, nobody, frames, [0] * (count + 1), records)]
        self._choose(np.arange(count))
        self.frames, self.spare = frames, [0] * count
        self._cache = {}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Characters A to H and the space."""
    return Tokenizer.train(["A B C D E F G H"], TokenizerConfig("char"))


def quarter(frames: Tensor) -> Tensor:
    return frames // 4


def task(rnnt_type: Type = "modified", freeze_steps: int = 0, decay: float = 1.0) -> FinetuneTask:
    """A tiny transducer to train, with a CTC head."""
    config = FinetuneConfig(
        loss=TransducerLossConfig(prune_range=3, warmup_steps=0, ctc_weight=0.5, rnnt_type=rnnt_type),
        train=TrainConfig(max_steps=10),
        encoder_optim=OptimConfig(1e-3, 0, freeze_steps=freeze_steps),
        encoder_layer_decay=decay,
    )
    torch.manual_seed(0)
    block = replace(TRANSDUCER.encoder.block, dropout_prob=0.2)
    encoder = replace(TRANSDUCER.encoder, block=block)
    model = Transducer(replace(TRANSDUCER, encoder=encoder, rnnt_type=rnnt_type))
    return FinetuneTask(config, model.train(), None, None)  # type: ignore[arg-type]


def batch(ids: str, labels: list[int], frames: int = 24) -> SpeechBatch:
    """Utterances of `frames` filterbank frames and so many labels each."""
    features = [noise(frames, MELS, seed=n) for n in range(len(ids))]
    return collate(list(ids), features, [[1 + n % 9 for n in range(count)] for count in labels])


def step(trained: FinetuneTask, data: SpeechBatch, number: int = 0) -> tuple[float, float, Tensor]:
    """Loss, count and gradient norm of a step."""
    trained.model.zero_grad()
    output = trained.train_step(data, number, torch.Generator().manual_seed(0))
    output.loss.backward()
    norm = scale_and_clip(list(trained.model.parameters()), output.count, 5.0)
    return float(output.loss.detach()), float(output.count), norm


@pytest.mark.parametrize("rnnt_type", ["modified", "constrained"])
def test_an_end_out_of_reach_is_left_out_named_once_and_counted(
    rnnt_type: Type, caplog: pytest.LogCaptureFixture
) -> None:
    trained = task(rnnt_type)
    mixed = batch("abcd", [3, 9, 0, 30])  # 6 encoder frames
    for _ in range(3):
        loss, count, norm = step(trained, mixed)
        assert 0.0 < loss < 1000.0 and count == 12 and norm.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in trained.model.parameters())
    sums = trained.train_step(mixed, 0, torch.Generator()).sums
    assert trained.summarize(sums)["unusable_utterances"] == 2.0
    assert caplog.messages == ["no finite loss, left out: b, d"]
    assert all(buffer.isfinite().all() for buffer in trained.model.buffers())


def test_a_regular_transducer_reaches_every_end(caplog: pytest.LogCaptureFixture) -> None:
    trained = task("regular")
    loss, count, norm = step(trained, batch("abcd", [3, 9, 0, 30]))
    assert 0.0 < loss < 10000.0 and count == 24 and norm.isfinite()
    trained.unusable.report()
    assert not caplog.messages


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_a_batch_of_only_empty_transcripts_teaches_blanks(rnnt_type: Type) -> None:
    loss, count, norm = step(task(rnnt_type), batch("abc", [0, 0, 0]))
    assert 0.0 < loss < 1000.0 and count == 18 and norm.isfinite()


def test_a_batch_with_nothing_to_learn_gives_no_update_and_no_nan_to_weigh(caplog: pytest.LogCaptureFixture) -> None:
    trained = task()
    output = trained.train_step(batch("ab", [9, 12]), 0, torch.Generator())
    output.loss.backward()
    assert float(output.loss.detach()) == 0.0 and int(output.count) == 0
    assert not any(p.grad is not None and p.grad.any() for p in trained.model.parameters())
    assert not scale_and_clip(list(trained.model.parameters()), output.count, 5.0).isfinite()  # the trainer skips it


def test_of_very_many_only_the_first_are_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcripts, "NAMED_IDS", 6)
    unusable = UnusableUtterances()
    for ids in ("abcd", "abcde", "fg", "hij", "ab"):
        unusable.note(list(ids), torch.tensor([id not in "bc" for id in ids]))
    unusable.report()
    unusable.report()
    lines = ["a, d", "e", "f, g", "h, i, j"]
    assert [m.removeprefix("no finite loss, left out: ") for m in caplog.messages[:4]] == lines
    assert caplog.messages[4:] == ["8 utterances without a finite loss were named; more are only counted"]


def test_a_frozen_encoder_stays_as_it_is_statistics_too() -> None:
    trained = task(freeze_steps=2)
    encoder = trained.model.encoder
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    losses = [step(trained, batch("ab", [2, 3]), 1)[0] for _ in range(2)]
    assert losses[0] == losses[1]  # no dropout in the encoder; the rest has none here
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters()) and encoder.training
    assert trained.model.joiner.linear.weight.grad is not None
    step(trained, batch("ab", [2, 3]), 2)
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed and all("running_" in name for name in changed)
    assert all(p.grad is not None and p.grad.any() for p in encoder.masked_blocks.parameters())


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_all_weights_are_in_a_group_and_lower_layers_learn_slower(decay: float) -> None:
    trained = task(decay=decay)
    groups = trained.param_groups()
    found = [p for group in groups for module in group.modules for p in module.parameters()]
    assert len(found) == len({id(p) for p in found}) == len(list(trained.model.parameters()))
    scales = {id(p): group.scale for group in groups for module in group.modules for p in module.parameters()}
    encoder = trained.model.encoder
    chain = [encoder.feature_encoder, *encoder.contrastive_blocks, *encoder.masked_blocks, trained.model.joiner]
    seen = [scales[id(next(module.parameters()))] for module in chain]
    assert seen == [decay**4, decay**3, decay**2, decay, 1.0, 1.0]


def test_characters_never_seen_are_refused_in_train_and_said_of_dev(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    train, dev = ToyDataset(["A B", "", "C"], [40, 40, 40]), ToyDataset(["A", "ÄB Ö", "D"], [40, 40, 40])
    with pytest.raises(UserError, match=r"the tokenizer has never seen Ä Ö \(utterances b\): train it"):
        check_spelling(dev, train, tokenizer)
    assert not caplog.messages
    check_spelling(train, dev, tokenizer)
    assert len(caplog.messages) == 1
    assert "dev: the tokenizer has never seen Ä Ö (utterances b)" in caplog.messages[0]
    with pytest.raises(UserError, match="no utterance of the training data has a transcript"):
        check_spelling(ToyDataset(["", ""], [40, 40]), dev, tokenizer)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_more_pieces_than_frames_are_named_before_training(
    rnnt_type: Type, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["A B", "A B C D", "", "A B C D"]
    assert len(tokenizer.encode(texts[1])) == 8
    dataset = ToyDataset(texts, [40, 31, 8, 32])
    left_out = leave_out_crowded(dataset, tokenizer, quarter, rnnt_type)
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith(": b")
    assert caplog.messages[0].startswith("1 utterances have more word pieces than encoder frames")
    kept = ["a", "b", "c", "d"] if rnnt_type == "regular" else ["a", "c", "d"]
    assert dataset.ids == kept and left_out == [id for id in "abcd" if id not in kept]
    caplog.clear()
    assert leave_out_crowded(ToyDataset(["A"], [40]), tokenizer, quarter, rnnt_type) == [] and not caplog.messages


def test_nothing_but_crowded_transcripts_is_refused(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="every transcript has more word pieces than encoder frames"):
        leave_out_crowded(ToyDataset(["A B"] * 2, [8, 8]), tokenizer, quarter, "modified")
    many = ToyDataset(["A B"] * 30, [8] * 30)
    many.ids = [f"u{n}" for n in range(30)]
    caplog.clear()
    leave_out_crowded(many, tokenizer, quarter, "regular")
    assert caplog.messages[0].endswith("u18, u19 and 10 more")
