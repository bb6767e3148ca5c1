"""Conformer blocks: padding, positions, statistics."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.models.tiny import BLOCK, ROTARY, noise, unsettle
from w2vbert.models.attention import SelfAttention, by_distance, rotate
from w2vbert.models.conformer import ConformerBlock, ConformerConfig, ConvolutionModule, MaskedBatchNorm
from w2vbert.ops.lengths import lengths_to_mask

LENGTHS = torch.tensor([30, 17, 4, 1])
MASK = lengths_to_mask(LENGTHS, 30)
NORM = nn.LayerNorm(16)
KINDS = [
    BLOCK,
    ROTARY,
    replace(BLOCK, positions="rotary_input"),
    replace(BLOCK, positions="relative_key", convolution="causal", span_frames=(5, 2)),
]


def block(config: ConformerConfig) -> ConformerBlock:
    torch.manual_seed(0)
    module = ConformerBlock(config)
    unsettle(module)
    return module


@pytest.mark.parametrize("config", KINDS, ids=lambda config: f"{config.positions}-{config.convolution}")
def test_padding_changes_no_real_frame(config: ConformerConfig) -> None:
    module = block(config).eval()
    x = noise(4, 30, config.dim)
    together = module(x, MASK)
    assert together.isfinite().all()
    for row, n in enumerate(LENGTHS.tolist()):
        alone = module(x[row : row + 1, :n], None)
        torch.testing.assert_close(together[row, :n], alone[0], atol=1e-5, rtol=0)


def test_what_padding_holds_changes_neither_outputs_nor_statistics_nor_gradients_in_training() -> None:
    results = []
    for scale in (1.0, 50.0):
        module = block(BLOCK).train()
        x = torch.where(MASK[..., None], noise(4, 30, 16), scale * noise(4, 30, 16, seed=1))
        y = module(x, MASK)
        (y[MASK] * noise(int(MASK.sum()), 16, seed=2)).sum().backward()
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        norm = module.convolution.norm
        results.append([y[MASK].detach(), norm.running_mean, norm.running_var, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_more_padding_changes_nothing_in_training() -> None:
    x = noise(4, 30, 16)
    wide = nn.functional.pad(x, (0, 0, 0, 25))
    narrow_block, wide_block = block(BLOCK).train(), block(BLOCK).train()
    narrow = narrow_block(x, MASK)
    padded = wide_block(wide, lengths_to_mask(LENGTHS, 55))[:, :30]
    torch.testing.assert_close(padded[MASK], narrow[MASK], atol=1e-5, rtol=0)
    for a, b in zip(narrow_block.buffers(), wide_block.buffers(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_block_keeps_20_times_its_width_a_frame_for_backward() -> None:
    config = ConformerConfig(dim=16, heads=2, feed_forward_dim=64, dropout_prob=0.0)
    module, kept = block(config).train(), {}
    parameters = {p.data_ptr() for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = noise(2, 400, 16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x, None)
    # Besides: the softmax's normaliser of each head, LayerNorm's two numbers a frame, BatchNorm's a channel.
    assert 20 <= sum(kept.values()) / (4 * 16 * 800) < 20 + (2 + 2) / 16 + 0.05


def test_batch_norm_is_torchs_on_the_joined_real_frames() -> None:
    ours, theirs = MaskedBatchNorm(16), nn.BatchNorm1d(16)
    unsettle(ours)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = noise(4, 30, 16) * 3 + 1
    outputs = []
    for _ in range(2):
        outputs = [ours(x.masked_fill(~MASK[..., None], 0.0), MASK)[MASK], theirs(x[MASK])]
        torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, atol=1e-6, rtol=0)
    biased = (int(MASK.sum()) - 1) / int(MASK.sum())  # torch keeps the unbiased variance
    assert theirs.running_var is not None
    ratio = ours.running_var / theirs.running_var
    assert biased - 1e-5 < ratio.min() and ratio.max() < 1 + 1e-5
    ours.eval()
    theirs.eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    torch.testing.assert_close(ours(x, MASK)[MASK], theirs(x[MASK]), atol=1e-5, rtol=1e-5)


def test_batch_norm_stays_finite_on_a_single_frame_with_its_gradient() -> None:
    x = noise(1, 1, 16).requires_grad_()
    y = MaskedBatchNorm(16)(x, None)
    (grad,) = torch.autograd.grad((y * noise(1, 1, 16, seed=1)).sum(), x)
    assert y.abs().max() < 0.1 and grad.isfinite().all()


def test_convolution_sees_its_kernel_only() -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(BLOCK).eval()
    x = noise(1, 20, 16).requires_grad_()
    (grad,) = torch.autograd.grad((module(x, NORM, None)[0, 10] * noise(16)).sum(), x)
    assert grad[0].abs().sum(-1).nonzero().squeeze(1).tolist() == [8, 9, 10, 11, 12]


def test_attention_without_positions_does_not_know_the_order() -> None:
    torch.manual_seed(0)
    module = SelfAttention(16, 2, "none", dropout=0.0)
    x, order = noise(1, 12, 16), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(x[:, order], NORM, None), module(x, NORM, None)[:, order], atol=1e-5, rtol=0)


def test_rotary_scores_depend_on_relative_position_only() -> None:
    q, k = noise(8), noise(8, seed=1)
    queries = rotate(q.expand(1, 1, 40, 8))[0, 0]
    keys = rotate(k.expand(1, 1, 40, 8))[0, 0]
    scores = queries @ keys.T  # (40, 40)
    for offset in (-20, -3, 0, 1, 15):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert (scores[0] - scores[0, 0]).abs().max() > 0.1
    torch.testing.assert_close(queries.norm(dim=-1), q.norm().expand(40), atol=1e-5, rtol=0)


def test_rotary_attention_knows_the_order_but_not_the_place() -> None:
    torch.manual_seed(0)
    module = SelfAttention(16, 2, "rotary", dropout=0.0)
    x = noise(1, 12, 16)
    assert (module(x.flip(1), NORM, None).flip(1) - module(x, NORM, None)).abs().max() > 1e-3
    shifted = nn.functional.pad(x, (0, 0, 9, 0))  # nine frames of left padding, not attended to
    mask = torch.arange(21)[None] >= 9
    torch.testing.assert_close(module(shifted, NORM, mask)[:, 9:], module(x, NORM, None), atol=1e-5, rtol=0)


def test_a_causal_convolution_sees_the_past_only() -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(replace(BLOCK, convolution="causal"))
    x = noise(1, 20, 16).requires_grad_()
    (grad,) = torch.autograd.grad((module(x, NORM, None)[0, 10] * noise(16)).sum(), x)
    assert grad[0].abs().sum(-1).nonzero().squeeze(1).tolist() == [6, 7, 8, 9, 10]
    assert not any(name.endswith("bias") for name, _ in module.named_parameters() if not name.startswith("norm"))


@pytest.mark.parametrize("frames", [1, 3, 9, 30])
@pytest.mark.parametrize(("left", "right"), [(5, 2), (0, 0), (4, 0)])
def test_scores_by_distance_are_indexing_with_its_gradient(frames: int, left: int, right: int) -> None:
    scores = noise(2, 3, frames, left + right + 1).double().requires_grad_()
    frame = torch.arange(frames)
    index = (frame - frame[:, None]).clamp(-left, right) + left  # (T, T)
    expected = torch.stack([scores[:, :, i, index[i]] for i in range(frames)], dim=2)
    weights = noise(2, 3, frames, frames, seed=1).double()
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), scores)
    found = by_distance(scores, left)
    (grad,) = torch.autograd.grad((found * weights).sum(), scores)
    assert torch.equal(found, expected)
    torch.testing.assert_close(grad, expected_grad, atol=1e-12, rtol=1e-12)


def test_relative_keys_are_shaws_equation() -> None:
    torch.manual_seed(0)
    module = SelfAttention(16, 2, "relative_key", dropout=0.0, span_frames=(3, 1))
    x = noise(1, 9, 16)
    q, k, v = (part.view(9, 2, 8) for part in module.qkv(NORM(x))[0].chunk(3, dim=-1))
    assert module.distance_keys is not None
    rows = []
    for i in range(9):
        keys = torch.stack([k[j] + module.distance_keys[min(max(j - i, -3), 1) + 3] for j in range(9)])  # (9, 2, 8)
        weights = ((keys * q[i]).sum(-1) / 8**0.5).softmax(0)  # (9, 2)
        rows.append((weights[..., None] * v).sum(0).flatten())
    torch.testing.assert_close(module(x, NORM, None)[0], module.out(torch.stack(rows)), atol=1e-5, rtol=0)


def test_dropout_acts_in_training_only() -> None:
    module = block(replace(BLOCK, dropout_prob=0.5))
    x = noise(1, 10, 16)
    module.train()
    assert not torch.equal(module(x, None), module(x, None))
    module.eval()
    assert torch.equal(module(x, None), module(x, None))


@pytest.mark.parametrize(
    "values",
    [
        {"heads": 3},
        {"kernel": 4},
        {"dropout_prob": 1.0},
        {"heads": 1024, "positions": "rotary"},
        {"span_frames": (-1, 0)},
    ],
)
def test_contradictions_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="heads|kernel|dropout|rotary|span_frames"):
        ConformerConfig(**values)  # type: ignore[arg-type]
