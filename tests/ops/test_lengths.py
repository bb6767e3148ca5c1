import torch
from torch import nn

from w2vbert.ops.lengths import lengths_to_mask, padding_mask, subsampled_lengths, zero_padding


def test_mask_is_true_on_exactly_the_real_frames() -> None:
    mask = lengths_to_mask(torch.tensor([3, 0, 5]), 5)
    assert mask.tolist() == [[True] * 3 + [False] * 2, [False] * 5, [True] * 5]


def test_no_padding_needs_no_mask() -> None:
    assert padding_mask(torch.tensor([4, 4]), 4) is None
    mask = padding_mask(torch.tensor([4, 3]), 4)
    assert mask is not None and mask.sum() == 7


def test_subsampled_lengths_are_those_of_two_strided_convolutions() -> None:
    lengths = torch.arange(1, 60)
    convolution = nn.Conv1d(1, 1, 3, stride=2, padding=1)
    expected = [convolution(convolution(torch.zeros(1, 1, int(n)))).shape[2] for n in lengths]
    assert subsampled_lengths(lengths).tolist() == expected


def test_padding_is_zeroed_whatever_it_holds_and_gets_no_gradient() -> None:
    x = torch.tensor([[[1.0], [torch.nan]], [[2.0], [3.0]]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    y = zero_padding(x, mask)
    assert y.tolist() == [[[1.0], [0.0]], [[2.0], [3.0]]]
    y.sum().backward()
    assert x.grad is not None and x.grad[..., 0].tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert zero_padding(x, None) is x
