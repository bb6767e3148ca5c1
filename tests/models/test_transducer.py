"""The transducer: padding, step by step against all at once, empty transcripts."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from tests.models.tiny import LSTM, MELS, STATELESS, TRANSDUCER, noise, unsettle
from w2vbert.models.encoder import EncoderOutput
from w2vbert.models.transducer import (
    BLANK,
    PredictorConfig,
    Transducer,
    TransducerConfig,
    TransducerLoss,
)
from w2vbert.ops.rnnt_loss import rnnt_loss

LENGTHS = torch.tensor([120, 77, 52, 33])
TOKEN_LENGTHS = torch.tensor([4, 6, 0, 2])
Lattice = Literal["regular", "modified", "constrained"]
LATTICES = pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
KINDS = pytest.mark.parametrize("predictor", [LSTM, STATELESS], ids=["lstm", "stateless"])


def model(predictor: PredictorConfig = LSTM, rnnt_type: Lattice = "regular") -> Transducer:
    torch.manual_seed(0)
    module = Transducer(replace(TRANSDUCER, predictor=predictor, rnnt_type=rnnt_type))
    unsettle(module)
    return module.eval()


def random_tokens(batch: int, labels: int) -> Tensor:
    return torch.randint(1, TRANSDUCER.vocab_size, (batch, labels), generator=torch.Generator().manual_seed(0))


def losses(module: Transducer, s_range: int = 5) -> TransducerLoss:
    return module(noise(4, 120, MELS), LENGTHS, random_tokens(4, 6), TOKEN_LENGTHS, s_range)


def test_encode_gives_the_same_frames_alone_or_padded() -> None:
    module, features = model(), noise(4, 130, MELS)
    together, lengths = module.encode(features, LENGTHS)
    assert together.shape == (4, 33, TRANSDUCER.joiner_dim)
    for row, (n, m) in enumerate(zip(LENGTHS.tolist(), lengths.tolist(), strict=True)):
        alone, _ = module.encode(features[row : row + 1, :n], LENGTHS[row : row + 1])
        assert alone.shape[1] == m
        torch.testing.assert_close(together[row, :m], alone[0], atol=1e-5, rtol=0)


@KINDS
@LATTICES
def test_losses_of_an_utterance_do_not_depend_on_its_batch(predictor: PredictorConfig, rnnt_type: Lattice) -> None:
    module, features, tokens = model(predictor, rnnt_type), noise(4, 120, MELS), random_tokens(4, 6)
    together = module(features, LENGTHS, tokens, TOKEN_LENGTHS, 5)
    for row, (n, u) in enumerate(zip(LENGTHS.tolist(), TOKEN_LENGTHS.tolist(), strict=True)):
        one = slice(row, row + 1)
        alone = module(features[one, :n], LENGTHS[one], tokens[one, :u], TOKEN_LENGTHS[one], 5)
        for name in ("simple", "pruned", "ctc"):
            ours, expected = getattr(together, name)[row], getattr(alone, name)[0]
            assert expected.isfinite()
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_padding_changes_no_loss_and_no_statistic_in_training() -> None:
    results = []
    for extra in (0, 40):
        module = model().train()
        features = torch.nn.functional.pad(noise(4, 120, MELS), (0, 0, 0, extra), value=3.0)
        loss = module(features, LENGTHS, random_tokens(4, 6), TOKEN_LENGTHS, 5)
        (loss.simple + loss.pruned + loss.ctc).sum().backward()
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        results.append([loss.simple.detach(), loss.pruned.detach(), loss.ctc.detach(), *module.buffers(), *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


@LATTICES
def test_pruned_loss_with_a_range_of_all_labels_is_the_full_loss(rnnt_type: Lattice) -> None:
    module, features, tokens = model(LSTM, rnnt_type), noise(4, 120, MELS), random_tokens(4, 6)
    encoded, frames = module.encode(features, LENGTHS)
    logits = module.joiner(encoded[:, :, None], module.predictor(tokens)[:, None])
    boundary = torch.zeros(4, 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = TOKEN_LENGTHS, frames
    full = rnnt_loss(logits, tokens, BLANK, boundary, rnnt_type, reduction="none")
    found = module(features, LENGTHS, tokens, TOKEN_LENGTHS, 7)
    torch.testing.assert_close(found.pruned, full, atol=1e-4, rtol=1e-5)
    assert torch.equal(found.frames, frames)


@LATTICES
def test_ranges_hold_the_path_of_a_model_that_is_sure_of_it(
    rnnt_type: Lattice, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, tokens = model(LSTM, rnnt_type), random_tokens(1, 20)
    times = torch.tensor([start + i for start in (3, 12, 20, 33, 41) for i in range(4)])  # words of four pieces
    encoded = torch.zeros(1, 50, TRANSDUCER.joiner_dim)
    encoded[0, :, BLANK] = 1.0
    encoded[0, times, tokens[0]] = 1.0
    heads = (module.simple_encoder, module.joiner.linear)
    for layer in (*heads, module.simple_predictor, module.predictor.linear):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for head in heads:
        head.weight.data.fill_diagonal_(50.0)
    monkeypatch.setattr(module, "_project", lambda output: encoded)
    output = EncoderOutput(*(encoded,) * 3, torch.tensor([50]))
    pruned, full = (module._rnnt_losses(output, tokens, torch.tensor([20]), r)[1] for r in (5, 21))
    torch.testing.assert_close(pruned, full, atol=1e-2, rtol=1e-5)


@pytest.mark.parametrize("transcripts", [[0, 0], [0, 3], [1, 0]])
def test_empty_transcripts_have_finite_losses_and_gradients(transcripts: list[int]) -> None:
    module, lengths = model().train(), torch.tensor([50, 31])
    tokens = random_tokens(2, max(transcripts))
    loss = module(noise(2, 50, MELS), lengths, tokens, torch.tensor(transcripts), 5)
    total = (loss.simple + loss.pruned + loss.ctc).sum()
    total.backward()
    assert total.isfinite()
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_more_labels_than_frames_have_no_way_through_a_modified_lattice() -> None:
    module = model(LSTM, "modified").train()
    lengths, labels = torch.tensor([80, 8]), torch.tensor([4, 4])
    loss = module(noise(2, 80, MELS), lengths, random_tokens(2, 4), labels, 5)
    assert loss.pruned.isinf().tolist() == loss.simple.isinf().tolist() == [False, True]
    usable = loss.pruned.isfinite()
    (loss.simple.masked_fill(~usable, 0.0) + loss.pruned.masked_fill(~usable, 0.0)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("frames", [1, 7])
def test_an_utterance_of_one_encoder_frame_or_two_works(frames: int) -> None:
    module = model().train()
    loss = module(noise(1, frames, MELS), torch.tensor([frames]), random_tokens(1, 2), torch.tensor([2]), 5)
    (loss.simple + loss.pruned).sum().backward()
    assert loss.simple.isfinite().all() and loss.pruned.isfinite().all() and loss.ctc.isfinite().all()


@KINDS
def test_every_parameter_learns(predictor: PredictorConfig) -> None:
    module = model(predictor).train()
    loss = losses(module)
    (loss.simple + loss.pruned + loss.ctc).sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_without_a_ctc_head_its_loss_is_zero() -> None:
    module = Transducer(replace(TRANSDUCER, ctc=False)).eval()
    assert losses(module).ctc.tolist() == [0.0] * 4
    assert not any("ctc" in name for name in module.state_dict())


@KINDS
def test_predictor_step_by_step_equals_all_at_once(predictor: PredictorConfig) -> None:
    module, tokens = model(predictor).predictor, random_tokens(3, 9)
    at_once = module(tokens)
    assert at_once.shape == (3, 10, TRANSDUCER.joiner_dim)
    state = module.initial_state(3, torch.device("cpu"))
    fed = torch.cat([torch.full((3, 1), BLANK), tokens], dim=1)
    for u in range(10):
        output, state = module.step(fed[:, u], state)
        torch.testing.assert_close(output, at_once[:, u], atol=1e-6, rtol=1e-5)


@KINDS
def test_predictor_sees_the_past_only(predictor: PredictorConfig) -> None:
    module, tokens = model(predictor).predictor, random_tokens(1, 6)
    changed = tokens.clone()
    changed[0, 3] = tokens[0, 3] % 10 + 1
    difference = (module(tokens) - module(changed)).abs().amax((0, 2))
    assert not difference[:4].any() and difference[4] > 0
    if predictor.kind == "stateless":
        assert not difference[4 + predictor.context :].any()


@KINDS
def test_states_hold_hypotheses_in_dimension_1(predictor: PredictorConfig) -> None:
    module = model(predictor).predictor
    state = module.initial_state(5, torch.device("cpu"))
    _, after = module.step(torch.tensor([1, 2, 3, 4, 5]), state)
    assert all(s.shape[1] == 5 for s in state) and [s.shape for s in after] == [s.shape for s in state]
    chosen = torch.tensor([4, 0])
    output, _ = module.step(torch.tensor([6, 7]), tuple(s[:, chosen] for s in after))
    whole, _ = module.step(torch.tensor([7, 1, 1, 1, 6]), after)
    torch.testing.assert_close(output, whole[chosen], atol=1e-6, rtol=1e-5)


def test_joiner_broadcasts() -> None:
    joiner = model().joiner
    grid = joiner(noise(2, 5, 1, 13), noise(2, 1, 3, 13))
    assert grid.shape == (2, 5, 3, TRANSDUCER.vocab_size)
    one = joiner(noise(2, 5, 1, 13)[1, 4, 0], noise(2, 1, 3, 13)[1, 0, 2])
    torch.testing.assert_close(grid[1, 4, 2], one)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size"):
        TransducerConfig(vocab_size=1)
    with pytest.raises(ValueError, match="context"):
        PredictorConfig(context=0)
