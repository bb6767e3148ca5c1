"""The contrastive loss against a slow plain reference, written from wav2vec 2.0's equation 3 in float64."""

import math

import pytest
import torch
from torch import Tensor

from w2vbert.ops.contrastive import ContrastiveLoss, contrastive_loss, draw_distractors

TEMPERATURE = 0.1


class Frames:
    """Random masked frames of utterances, some of which share codes; rows beyond `counts` hold nonsense."""

    def __init__(self, counts: list[int], num_codes: int = 6, groups: int = 1, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        B, M, D = len(counts), max(counts), 5
        self.counts = torch.tensor(counts)
        self.context = torch.randn(B, M, D, generator=generator).requires_grad_()
        self.targets = torch.randn(B, M, D, generator=generator).requires_grad_()
        self.codes = torch.randint(num_codes, (B, M, groups), generator=generator)
        self.distractors = draw_distractors(self.counts, M, 7, generator)

    def loss(self, sampled: bool, temperature: float = TEMPERATURE) -> ContrastiveLoss:
        distractors = self.distractors if sampled else None
        return contrastive_loss(self.context, self.targets, self.codes, self.counts, distractors, temperature)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def reference(frames: Frames, sampled: bool) -> tuple[Tensor, Tensor, Tensor, int, float]:
    """Loss, gradients of context and targets, frames that took part, and chance, frame by frame in float64."""
    context = frames.context.detach().double().requires_grad_()
    targets = frames.targets.detach().double().requires_grad_()
    losses, chance = [torch.zeros((), dtype=torch.float64)], 0.0
    for b, count in enumerate(frames.counts.tolist()):
        for t in range(count):
            if count == 1:
                continue
            candidates = frames.distractors[b, t].tolist() if sampled else range(count)
            others = [s for s in candidates if not torch.equal(frames.codes[b, s], frames.codes[b, t])]
            if not others:
                continue
            scores = [torch.exp(cosine(context[b, t], targets[b, s]) / TEMPERATURE) for s in [t, *others]]
            losses.append(-torch.log(scores[0] / sum(scores)))
            chance += 1 / len(scores)
    loss = torch.stack(losses).sum()
    grads = torch.autograd.grad(loss, [context, targets]) if loss.requires_grad else [torch.zeros_like(context)] * 2
    return loss, grads[0], grads[1], len(losses) - 1, chance


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize(("counts", "groups"), [([9, 4, 1, 2], 1), ([12, 12], 2), ([3], 1), ([1], 1)])
def test_value_and_gradients_are_those_of_the_equation(counts: list[int], groups: int, sampled: bool) -> None:
    frames = Frames(counts, groups=groups, seed=len(counts))
    ours = frames.loss(sampled)
    loss, context_grad, targets_grad, count, chance = reference(frames, sampled)
    ours.loss.backward()
    assert frames.context.grad is not None and frames.targets.grad is not None
    torch.testing.assert_close(ours.loss.double(), loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frames.context.grad.double(), context_grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frames.targets.grad.double(), targets_grad, rtol=1e-4, atol=1e-5)
    assert int(ours.count) == count and math.isclose(float(ours.chance), chance, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize("sampled", [True, False])
def test_frames_of_one_code_tell_nothing_apart_and_take_no_part(sampled: bool) -> None:
    frames = Frames([6, 3])
    frames.codes.zero_()
    ours = frames.loss(sampled)
    ours.loss.backward()
    assert ours.loss == 0 and ours.count == 0 and ours.correct == 0 and ours.chance == 0
    assert frames.context.grad is not None and torch.equal(frames.context.grad, torch.zeros_like(frames.context))


@pytest.mark.parametrize("sampled", [True, False])
def test_utterances_do_not_see_one_another(sampled: bool) -> None:
    frames = Frames([8, 5])
    together = frames.loss(sampled).loss
    alone = [
        contrastive_loss(
            frames.context[b : b + 1, :n],
            frames.targets[b : b + 1, :n],
            frames.codes[b : b + 1, :n],
            frames.counts[b : b + 1],
            frames.distractors[b : b + 1, :n] if sampled else None,
            TEMPERATURE,
        ).loss
        for b, n in enumerate(frames.counts.tolist())
    ]
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=1e-5)


def test_what_lies_beyond_the_counts_changes_nothing() -> None:
    frames, other = Frames([8, 3]), Frames([8, 3])
    with torch.no_grad():
        other.context[1, 3:] = 100.0
        other.targets[1, 3:] = 0.0
    other.codes[1, 3:] = 99
    for sampled in (True, False):
        assert torch.equal(frames.loss(sampled).loss, other.loss(sampled).loss)


def test_a_perfect_context_is_always_right_and_an_opposed_one_never() -> None:
    frames = Frames([20], num_codes=1000)
    for sign, expected in ((1.0, 20), (-1.0, 0)):
        frames.context = (sign * frames.targets).detach()
        assert int(frames.loss(sampled=False).correct) == expected


def test_a_broken_frame_is_not_hidden() -> None:
    frames = Frames([8])
    with torch.no_grad():
        frames.context[0, 2] = torch.nan
    for sampled in (True, False):
        assert frames.loss(sampled).loss.isnan()


def test_cosines_are_float32_under_autocast() -> None:
    frames = Frames([30])
    plain = frames.loss(sampled=False).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frames.loss(sampled=False).loss, plain)


def test_distractors_are_other_masked_frames_of_the_utterance() -> None:
    counts = torch.tensor([20, 2, 13, 3])
    drawn = draw_distractors(counts, 20, 1000, torch.Generator().manual_seed(0))
    for b, count in enumerate(counts.tolist()):
        for t in range(count):
            assert set(drawn[b, t].tolist()) == set(range(count)) - {t}, (b, t)


def test_distractors_are_uniform() -> None:
    drawn = draw_distractors(torch.tensor([5]), 5, 40000, torch.Generator().manual_seed(0))
    shares = torch.stack([(drawn[0] == s).float().mean(1) for s in range(5)], 1)  # (5, 5)
    torch.testing.assert_close(shares, (1 - torch.eye(5)) / 4, atol=0.01, rtol=0)


@pytest.mark.parametrize("counts", [[1], [0, 4], [1, 0]])
def test_too_few_masked_frames_do_not_break_the_draw(counts: list[int]) -> None:
    widest = max(*counts, 1)
    drawn = draw_distractors(torch.tensor(counts), widest, 3, torch.Generator().manual_seed(0))
    assert drawn.min() >= 0 and drawn.max() < widest
