"""Properties of the span masks; w2v-BERT masks 48.9 % of the frames: 1 - (1 - 0.065) ** 10."""

import pytest
import torch
from torch import Tensor

from w2vbert.ops.lengths import lengths_to_mask
from w2vbert.ops.masking import gather_frames, masked_frames, noise_generator, span_mask

START_PROB, SPAN = 0.065, 10
FRAMES_PER_SECOND = 25  # of the encoder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(lengths: Tensor, seed: int = 0, span: int = SPAN, start_prob: float = START_PROB) -> Tensor:
    return span_mask(lengths, int(lengths.max()), start_prob, span, generator(seed))


def shares(lengths: Tensor, mask: Tensor) -> Tensor:
    return mask.sum(1) / lengths


def test_share_of_masked_frames_is_that_of_the_paper_at_all_lengths() -> None:
    lengths = torch.randint(FRAMES_PER_SECOND, 40 * FRAMES_PER_SECOND + 1, (3000,), generator=generator())
    mask = draw(lengths)
    assert abs(mask.sum() / lengths.sum() - 0.489) < 0.01
    for shortest, longest in ((2, 5), (5, 15), (15, 40)):
        chosen = (lengths >= shortest * FRAMES_PER_SECOND) & (lengths <= longest * FRAMES_PER_SECOND)
        assert abs(mask[chosen].sum() / lengths[chosen].sum() - 0.489) < 0.015, (shortest, longest)


def test_every_frame_is_as_likely_to_be_masked_as_any_other() -> None:
    lengths = torch.full((20000,), 50)
    by_frame = draw(lengths).float().mean(0)
    assert by_frame.min() > 0.489 - 0.02 and by_frame.max() < 0.489 + 0.02


def test_an_utterance_of_one_second_has_more_masked_only_by_the_span_that_it_must_have() -> None:
    lengths = torch.full((20000,), FRAMES_PER_SECOND)
    none = (1 - START_PROB) ** (FRAMES_PER_SECOND + SPAN - 1)
    expected = 1 - (1 - START_PROB) ** SPAN + none * SPAN / FRAMES_PER_SECOND
    assert abs(shares(lengths, draw(lengths)).mean() - expected) < 0.01


def test_merged_spans_have_the_papers_mean_length() -> None:
    mask = draw(torch.full((50,), 1000))
    begins = (mask[:, 1:] & ~mask[:, :-1]).sum()
    assert abs(mask[:, 1:].sum() / begins - 14.5) < 1.0


@pytest.mark.parametrize("span", [1, 10])
def test_masks_lie_inside_each_utterance_and_every_utterance_has_one(span: int) -> None:
    lengths = torch.arange(1, 400)
    for seed in range(5):
        mask = draw(lengths, seed, span, start_prob=0.01)
        assert not (mask & ~lengths_to_mask(lengths, 399)).any()
        assert mask.any(1).all()


def test_short_utterances_keep_their_share_beside_long_ones() -> None:
    short = torch.full((2000,), 50)
    alone = shares(short, draw(short)).mean()
    beside = torch.cat([short, torch.tensor([1000])])
    together = shares(beside, draw(beside, seed=1))[:-1].mean()
    assert abs(alone - together) < 0.02


def test_an_utterance_without_frames_has_no_mask_and_hurts_nobody() -> None:
    frames = masked_frames(draw(torch.tensor([0, 30])))
    assert frames.counts[0] == 0 and frames.counts[1] > 0


def test_equal_generators_draw_equal_masks() -> None:
    lengths = torch.tensor([100, 70, 3])
    assert torch.equal(draw(lengths, 5), draw(lengths, 5))
    assert not torch.equal(draw(lengths, 5), draw(lengths, 6))


def test_masked_frames_are_listed_in_order_of_time() -> None:
    mask = draw(torch.tensor([60, 31, 4, 1]))
    frames = masked_frames(mask)
    assert frames.index.shape == (4, int(frames.counts.max()))
    for row, expected in enumerate(mask):
        count = int(frames.counts[row])
        assert frames.index[row, :count].tolist() == expected.nonzero().squeeze(1).tolist()
        assert not frames.index[row, count:].any()


def test_no_mask_at_all_still_gives_a_shape() -> None:
    frames = masked_frames(torch.zeros(2, 5, dtype=torch.bool))
    assert frames.index.tolist() == [[0], [0]] and not frames.counts.any() and not len(frames.frames)


def test_taking_and_spreading_move_the_listed_frames_with_their_gradients() -> None:
    x = torch.randn(3, 20, 4, generator=generator()).requires_grad_()
    frames = masked_frames(torch.rand(3, 20, generator=generator()) < 0.4)
    taken = frames.take(x)
    torch.testing.assert_close(taken, x[frames.mask])
    spread = frames.spread(taken)
    valid = torch.arange(frames.index.shape[1]) < frames.counts[:, None]
    torch.testing.assert_close(spread, gather_frames(x, frames.index).masked_fill(~valid[..., None], 0.0))
    (grad,) = torch.autograd.grad(spread.square().sum(), x)
    torch.testing.assert_close(grad, 2 * x * frames.mask[..., None])


def test_noise_on_the_cpu_comes_from_the_generator_itself() -> None:
    source = generator()
    assert noise_generator(source, torch.device("cpu")) is source
