"""Properties of the RNN-T losses, and agreement with torchaudio's full lattice. k2's numbers: test_rnnt_golden.py."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from w2vbert.ops import rnnt_loss as rnnt
from w2vbert.ops import rnnt_native, rnnt_recursion

TYPES = ["regular", "modified", "constrained"]
HAS_K2 = rnnt.backend_reason().startswith("k2")
BACKENDS = ["native", pytest.param("k2", marks=pytest.mark.skipif(not HAS_K2, reason=rnnt.backend_reason()))]


# A batch of our own


class Batch:
    """Random scores of utterances of different lengths; padding is as random as the rest."""

    def __init__(
        self, symbols: list[int], frames: list[int], classes: int = 7, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.size = B, T, S = len(symbols), max(frames), max(symbols)
        self.am = torch.randn(B, T, classes, generator=generator, dtype=dtype).requires_grad_()
        self.lm = torch.randn(B, S + 1, classes, generator=generator, dtype=dtype).requires_grad_()
        self.logits = torch.randn(B, T, S + 1, classes, generator=generator, dtype=dtype).requires_grad_()
        self.symbols = torch.randint(1, classes, (B, S), generator=generator)
        self.boundary = torch.tensor([[0, 0, s, t] for s, t in zip(symbols, frames, strict=True)])


def kept(logits: Tensor, ranges: Tensor) -> Tensor:
    """logits (B, T, S+1, C) at ranges (B, T, r): (B, T, r, C)."""
    return logits.gather(2, ranges.unsqueeze(3).expand(*ranges.shape, logits.shape[3]))


def ranges_of(batch: Batch, s_range: int, rnnt_type: str, backend: str = "native") -> Tensor:
    _, (px_grad, py_grad) = rnnt.rnnt_loss_simple(
        batch.lm, batch.am, batch.symbols, 0, batch.boundary, rnnt_type, return_grad=True, backend=backend
    )
    return rnnt.get_rnnt_prune_ranges(px_grad, py_grad, batch.boundary, s_range)


def every_loss(batch: Batch, rnnt_type: str, backend: str) -> dict[str, Any]:
    """Loss of each utterance by each function."""
    common: dict[str, Any] = {"boundary": batch.boundary, "rnnt_type": rnnt_type, "reduction": "none"}
    common["backend"] = backend
    ranges = ranges_of(batch, 3, rnnt_type, backend)
    return {
        "simple": rnnt.rnnt_loss_simple(batch.lm, batch.am, batch.symbols, 0, **common),
        "smoothed": rnnt.rnnt_loss_smoothed(batch.lm, batch.am, batch.symbols, 0, 0.25, 0.0, **common),
        "full": rnnt.rnnt_loss(batch.logits, batch.symbols, 0, **common),
        "pruned": rnnt.rnnt_loss_pruned(kept(batch.logits, ranges), batch.symbols, ranges, 0, **common),
    }


def gradients(losses: dict[str, Any], batch: Batch) -> list[Tensor]:
    return list(torch.autograd.grad(sum(losses.values()).sum(), [batch.am, batch.lm, batch.logits]))


# Agreement with others


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("symbols", "frames"), [([5, 9, 2], [20, 14, 20]), ([7, 3], [4, 2]), ([3, 1], [1, 1])])
def test_same_as_torchaudio_full_lattice(symbols: list[int], frames: list[int], backend: str) -> None:
    functional = pytest.importorskip("torchaudio").functional
    batch = Batch(symbols, frames, classes=11, dtype=torch.float32)
    ours = rnnt.rnnt_loss(batch.logits, batch.symbols, 0, batch.boundary, reduction="none", backend=backend)
    lengths = batch.boundary[:, 3].int(), batch.boundary[:, 2].int()
    theirs = functional.rnnt_loss(batch.logits, batch.symbols.int(), *lengths, blank=0, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    (our_grad,) = torch.autograd.grad(ours.sum(), batch.logits)
    (their_grad,) = torch.autograd.grad(theirs.sum(), batch.logits)
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-4, atol=1e-5)

    ranges = ranges_of(batch, batch.lm.shape[1], "regular", backend)
    pruned = rnnt.rnnt_loss_pruned(
        kept(batch.logits, ranges), batch.symbols, ranges, 0, batch.boundary, reduction="none", backend=backend
    )
    torch.testing.assert_close(pruned, theirs, rtol=1e-6, atol=1e-6)
    (pruned_grad,) = torch.autograd.grad(pruned.sum(), batch.logits)
    torch.testing.assert_close(pruned_grad, their_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_simple_is_the_full_loss_of_an_additive_joiner(rnnt_type: str) -> None:
    batch = Batch([4, 2, 0], [6, 5, 6])
    options: dict[str, Any] = {"boundary": batch.boundary, "rnnt_type": rnnt_type, "delay_penalty": 0.1}
    simple = rnnt.rnnt_loss_simple(batch.lm, batch.am, batch.symbols, 0, reduction="none", **options)
    logits = batch.am.unsqueeze(2) + batch.lm.unsqueeze(1)
    full = rnnt.rnnt_loss(logits, batch.symbols, 0, reduction="none", **options)
    torch.testing.assert_close(simple, full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_pruned_with_all_positions_is_the_full_loss(rnnt_type: str) -> None:
    batch = Batch([4, 2, 0], [6, 5, 6])
    ranges = ranges_of(batch, batch.lm.shape[1], rnnt_type)
    options: dict[str, Any] = {"boundary": batch.boundary, "rnnt_type": rnnt_type, "reduction": "none"}
    full = rnnt.rnnt_loss(batch.logits, batch.symbols, 0, **options)
    pruned = rnnt.rnnt_loss_pruned(kept(batch.logits, ranges), batch.symbols, ranges, 0, **options)
    torch.testing.assert_close(pruned, full, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(loss.sum(), batch.logits)[0] for loss in (pruned, full)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize(
    ("symbols", "frames"), [([9, 6, 0], [14, 12, 9]), ([12, 3, 1], [13, 13, 4]), ([1, 1], [1, 2]), ([4], [30])]
)
def test_a_ring_of_kept_points_is_the_whole_lattice_without_the_others(
    symbols: list[int], frames: list[int], rnnt_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, s_range in enumerate((1, 2, 3, 5, 13)):
        if s_range < (2 if rnnt_type != "modified" else 1):
            continue
        batch = Batch(symbols, frames, seed=seed)
        ranges = ranges_of(batch, s_range, rnnt_type)
        assert rnnt_native.is_staircase(ranges, batch.boundary)
        options: dict[str, Any] = {"boundary": batch.boundary, "rnnt_type": rnnt_type, "reduction": "none"}
        results = []
        for ring in (True, False):
            with monkeypatch.context() as patched:
                if not ring:
                    patched.setattr(rnnt_native, "is_staircase", lambda *_: False)
                loss = rnnt.rnnt_loss_pruned(kept(batch.logits, ranges), batch.symbols, ranges, 0, **options)
            results.append((loss, torch.autograd.grad(loss.sum(), batch.logits)[0]))
        torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_windows_on_padding_do_not_matter(rnnt_type: str) -> None:
    batch = Batch([2, 4], [3, 6])
    windows = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 2, 3, 3]]).unsqueeze(2) + torch.arange(2)
    further = windows.clone()
    further[0, 3:] = torch.tensor([3, 4])
    losses = [
        rnnt.rnnt_loss_pruned(
            kept(batch.logits, ranges), batch.symbols, ranges, 0, batch.boundary, rnnt_type, reduction="none"
        )
        for ranges in (windows, further)
    ]
    assert torch.equal(losses[0], losses[1]) and bool(torch.isfinite(losses[0]).all())


def test_only_windows_that_never_move_down_share_a_ring() -> None:
    window, boundary = torch.arange(3), torch.tensor([[0, 0, 4, 4]])

    def staircase(starts: list[int], begin: int = 0, frames: int = 4, step: int = 1) -> bool:
        ranges = torch.tensor([starts])[:, :, None] + step * window
        return rnnt_native.is_staircase(ranges, torch.tensor([[0, begin, 4, frames]]))

    assert staircase([0, 0, 1, 2])
    assert not staircase([0, 2, 1, 2])
    assert not staircase([1, 1, 1, 2])
    assert not staircase([0, 0, 0, 0], step=2)
    assert not staircase([0, 0, 1, 2], begin=1)
    assert not staircase([0, 0, 1, 2], frames=0)
    batch = Batch([4], [4])  # such windows are worked on in the whole lattice: here all of it, in two parts
    ranges = torch.tensor([[[0, 1, 2, 3, 4]] * 2 + [[4, 3, 2, 1, 0]] * 2])
    pruned = rnnt.rnnt_loss_pruned(kept(batch.logits, ranges), batch.symbols, ranges, 0, boundary)
    torch.testing.assert_close(pruned, rnnt.rnnt_loss(batch.logits, batch.symbols, 0, boundary))


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_pruning_only_takes_paths_away(rnnt_type: str) -> None:
    batch = Batch([9, 6, 3], [14, 12, 9])
    losses = every_loss(batch, rnnt_type, "native")
    assert bool((losses["pruned"] >= losses["full"] - 1e-12).all())
    assert bool((losses["pruned"] < torch.inf).all())


# Gradients


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_agree_with_differences(rnnt_type: str, backend: str) -> None:
    batch = Batch([2, 1, 0], [3, 2, 3], classes=4)
    common: dict[str, Any] = {"boundary": batch.boundary, "rnnt_type": rnnt_type, "reduction": "none"}
    common |= {"delay_penalty": 0.1, "backend": backend}
    ranges = ranges_of(batch, 2, rnnt_type)

    def additive(lm: Tensor, am: Tensor) -> Tensor:
        loss = rnnt.rnnt_loss_smoothed(lm, am, batch.symbols, 0, 0.2, 0.1, **common)
        assert isinstance(loss, Tensor)
        return loss

    def pruned(logits: Tensor, hat: bool) -> Tensor:
        return rnnt.rnnt_loss_pruned(kept(logits, ranges), batch.symbols, ranges, 0, use_hat_loss=hat, **common)

    assert torch.autograd.gradcheck(additive, (batch.lm, batch.am))
    assert torch.autograd.gradcheck(lambda x: rnnt.rnnt_loss(x, batch.symbols, 0, **common), (batch.logits,))
    assert torch.autograd.gradcheck(lambda x: pruned(x, hat=False), (batch.logits,))
    assert torch.autograd.gradcheck(lambda x: pruned(x, hat=True), (batch.logits,))


def test_logits_worked_on_in_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch([4, 2, 0], [6, 5, 6])
    whole = gradients(every_loss(batch, "regular", "native"), batch)
    monkeypatch.setattr(rnnt, "_CPU_BLOCK_ELEMENTS", 11 * batch.logits.shape[3])  # 90 rows in pieces of 11
    for piecewise, expected in zip(gradients(every_loss(batch, "regular", "native"), batch), whole, strict=True):
        assert torch.equal(piecewise, expected)


def test_occupation_probabilities_sum_to_one() -> None:
    batch = Batch([4, 2, 0], [6, 5, 3])
    _, (px_grad, py_grad) = rnnt.rnnt_loss_simple(
        batch.lm, batch.am, batch.symbols, 0, batch.boundary, return_grad=True, backend="native"
    )
    frames = torch.arange(6) < batch.boundary[:, 3:4]
    torch.testing.assert_close(py_grad.sum(1), frames.double())  # one blank leaves each real frame
    symbols = torch.arange(4) < batch.boundary[:, 2:3]
    torch.testing.assert_close(px_grad.sum(2), symbols.double())  # each real symbol is written once


# Hard batches


@pytest.mark.parametrize("rnnt_type", ["modified", "constrained"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unreachable_end_is_an_infinite_loss_without_gradient(rnnt_type: str, backend: str) -> None:
    batch = Batch([2, 4, 3], [5, 3, 5])  # the second has more symbols than frames
    for name, loss in every_loss(batch, rnnt_type, backend).items():
        assert torch.isinf(loss).tolist() == [False, True, False], name
        loss.sum().backward()
    for scores in (batch.am, batch.lm, batch.logits):
        assert scores.grad is not None and bool(torch.isfinite(scores.grad).all())
        assert scores.grad[1].count_nonzero() == 0
        assert scores.grad[0].count_nonzero() > 0 and scores.grad[2].count_nonzero() > 0


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frames", [[5, 3], [1, 1]])
def test_only_empty_transcripts(rnnt_type: str, backend: str, frames: list[int]) -> None:
    batch = Batch([0, 0], frames)
    losses = every_loss(batch, rnnt_type, backend)
    blanks = batch.logits.log_softmax(3)[:, :, 0, 0]
    expected = torch.stack([-blanks[b, :t].sum() for b, t in enumerate(frames)])
    torch.testing.assert_close(losses["full"], expected)
    torch.testing.assert_close(losses["pruned"], expected)
    assert all(bool(torch.isfinite(grad).all()) for grad in gradients(losses, batch))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("symbols", "frames"), [([7, 5, 2], [3, 2, 3]), ([3, 1], [1, 1]), ([12, 1], [3, 30])])
def test_regular_with_more_symbols_than_frames(symbols: list[int], frames: list[int], backend: str) -> None:
    batch = Batch(symbols, frames)
    losses = every_loss(batch, "regular", backend)
    assert all(bool(torch.isfinite(loss).all()) for loss in losses.values())
    assert all(bool(torch.isfinite(grad).all()) for grad in gradients(losses, batch))


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_utterance_without_frames_is_recognised(rnnt_type: str, backend: str) -> None:
    batch = Batch([2, 2, 0], [5, 0, 0])
    for name, loss in every_loss(batch, rnnt_type, backend).items():
        assert torch.isinf(loss).tolist() == [False, True, False], name
        assert loss[2] == 0.0  # nothing to write, nothing to read
        loss[torch.isfinite(loss)].sum().backward()
    for scores in (batch.am, batch.lm, batch.logits):
        assert scores.grad is not None and scores.grad[1:].count_nonzero() == 0
        assert bool(torch.isfinite(scores.grad).all()) and scores.grad[0].count_nonzero() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_peaky_scores_hold_no_denormal_numbers(backend: str) -> None:
    batch = Batch([9, 6], [40, 30], classes=50, dtype=torch.float32)
    with torch.no_grad():
        for scores in (batch.am, batch.lm, batch.logits):
            scores *= 20.0
    px_grad, py_grad = rnnt.rnnt_loss_simple(
        batch.lm, batch.am, batch.symbols, 0, batch.boundary, return_grad=True, backend=backend
    )[1]
    loss = rnnt.rnnt_loss(batch.logits, batch.symbols, 0, batch.boundary, reduction="sum", backend=backend)
    (grad,) = torch.autograd.grad(loss, batch.logits)
    for values in (px_grad, py_grad, grad):
        smallest = values[values != 0].abs().min()
        assert smallest >= torch.finfo(torch.float32).tiny and smallest < 1e-20


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_does_not_matter(rnnt_type: str, backend: str) -> None:
    batch, other = Batch([4, 2, 0], [6, 5, 3]), Batch([4, 2, 0], [6, 5, 3], seed=1)
    with torch.no_grad():
        for b, (_, _, s, t) in enumerate(batch.boundary.tolist()):
            other.am[b, :t] = batch.am[b, :t]
            other.lm[b, : s + 1] = batch.lm[b, : s + 1]
            other.logits[b, :t, : s + 1] = batch.logits[b, :t, : s + 1]
            other.symbols[b, :s], other.symbols[b, s:] = batch.symbols[b, :s], -1
    first, second = every_loss(batch, rnnt_type, backend), every_loss(other, rnnt_type, backend)
    for name, loss in first.items():
        torch.testing.assert_close(second[name], loss, rtol=1e-12, atol=1e-12)
    for one, two in zip(gradients(first, batch), gradients(second, other), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
        for b, (_, _, s, t) in enumerate(batch.boundary.tolist()):
            rows = t if one.shape[1] == 6 else s + 1
            assert one[b, rows:].count_nonzero() == 0


def test_nan_scores_are_not_hidden() -> None:
    batch = Batch([2, 1], [4, 4])
    with torch.no_grad():
        batch.logits[0, 1, 1, 3] = torch.nan
    loss = rnnt.rnnt_loss(batch.logits, batch.symbols, 0, batch.boundary, reduction="none", backend="native")
    assert torch.isnan(loss).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_summed_in_float32(dtype: torch.dtype) -> None:
    batch, half = Batch([4, 2, 0], [6, 5, 6], dtype=torch.float32), Batch([4, 2, 0], [6, 5, 6], dtype=torch.float32)
    for name in ("am", "lm", "logits"):
        rounded = getattr(batch, name).detach().to(dtype)
        setattr(half, name, rounded.clone().requires_grad_())
        setattr(batch, name, rounded.float().requires_grad_())
    wanted, got = every_loss(batch, "regular", "native"), every_loss(half, "regular", "native")
    for name, loss in wanted.items():
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name], loss)
    for one, two in zip(gradients(wanted, batch), gradients(got, half), strict=True):
        assert two.dtype == dtype
        torch.testing.assert_close(one, two.float(), rtol=1e-2, atol=1e-2)


# Ranges


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("s_range", [2, 3, 5, 50])
def test_ranges_leave_a_path(rnnt_type: str, s_range: int) -> None:
    for seed in range(5):
        batch = Batch([12, 7, 3, 0], [20, 14, 20, 9], seed=seed)
        ranges = ranges_of(batch, s_range, rnnt_type)
        B, T, _ = batch.size
        r = min(s_range, 13)
        assert ranges.shape == (B, T, r) and bool((ranges.diff(dim=2) == 1).all())
        start, moves = ranges[:, :, 0], ranges[:, :, 0].diff(dim=1)
        assert bool((start[:, 0] == 0).all())
        assert bool((moves >= 0).all()) and bool((moves <= (r - 1 if rnnt_type == "regular" else 1)).all())
        for b, (_, _, symbols, frames) in enumerate(batch.boundary.tolist()):
            assert symbols in ranges[b, frames - 1].tolist()


def test_states_of_a_frame_sum_to_one() -> None:
    batch = Batch([4, 2, 0], [6, 5, 3])
    _, grads = rnnt.rnnt_loss_simple(
        batch.lm, batch.am, batch.symbols, 0, batch.boundary, "modified", return_grad=True, backend="native"
    )
    nothing, states = rnnt.state_occupation(*grads, "modified")
    assert not nothing.any() and nothing.shape == grads[0].shape
    torch.testing.assert_close(states.sum(1), (torch.arange(6) < batch.boundary[:, 3:4]).double())


@pytest.mark.parametrize("rnnt_type", ["modified", "constrained"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_path_that_is_sure_of_itself_stays_inside_the_ranges(rnnt_type: str, backend: str) -> None:
    times = torch.tensor([start + i for start in (3, 12, 20, 33, 41) for i in range(4)])  # words of four pieces
    batch = Batch([20], [50], dtype=torch.float32)
    am = torch.zeros(1, 50, 7)
    am[0, :, 0] = 50.0
    am[0, times, batch.symbols[0]] = 50.0
    _, grads = rnnt.rnnt_loss_simple(
        0.0 * batch.lm, am, batch.symbols, 0, batch.boundary, rnnt_type, return_grad=True, backend=backend
    )
    ranges = rnnt.get_rnnt_prune_ranges(*rnnt.state_occupation(*grads, rnnt_type), batch.boundary, 5)
    logits = kept(am[:, :, None].expand(1, 50, 21, 7), ranges)
    loss = rnnt.rnnt_loss_pruned(logits, batch.symbols, ranges, 0, batch.boundary, rnnt_type, backend=backend)
    whole = rnnt.rnnt_loss(am[:, :, None].expand(1, 50, 21, 7), batch.symbols, 0, batch.boundary, rnnt_type)
    torch.testing.assert_close(loss, whole, atol=1e-3, rtol=0)


def test_ranges_widen_for_an_utterance_with_many_symbols() -> None:
    batch = Batch([12, 1], [3, 30])
    assert ranges_of(batch, 2, "regular").shape[2] == 11 // 3 + 2


# Backends and errors


@pytest.fixture
def forget_k2() -> Iterator[None]:
    rnnt_recursion._import_k2.cache_clear()
    yield
    rnnt_recursion._import_k2.cache_clear()


def test_without_k2_the_native_backend_is_taken(monkeypatch: pytest.MonkeyPatch, forget_k2: None) -> None:
    monkeypatch.setitem(sys.modules, "k2", None)
    assert rnnt.get_backend() == "native" == rnnt.get_backend("native")
    reason = rnnt.backend_reason()
    assert reason.startswith("native, by ") and ": k2 cannot be imported" in reason and "\n" not in reason
    with pytest.raises(ValueError, match="k2 cannot be imported"):
        rnnt.get_backend("k2")
    with pytest.raises(ValueError, match="auto, k2, native, not 'cuda'"):
        rnnt.get_backend("cuda")


def test_with_k2_its_recursion_is_taken(monkeypatch: pytest.MonkeyPatch, forget_k2: None) -> None:
    calls = []

    def recursion(px: Tensor, py: Tensor, boundary: Tensor, return_grad: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        calls.append(tuple(px.shape))
        scores, px_grad, py_grad = rnnt_native.lattice_flow(px, py, boundary)
        return scores, (px_grad, py_grad)

    k2 = ModuleType("k2")
    k2.mutual_information_recursion = recursion  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "k2", k2)
    assert rnnt.get_backend() == "k2" and rnnt.backend_reason() == "k2: k2 can be imported"
    batch = Batch([4, 2, 0], [6, 5, 6])
    auto, native = (gradients(every_loss(batch, "regular", name), batch) for name in ("auto", "native"))
    assert len(calls) == 5 and all(torch.equal(a, b) for a, b in zip(auto, native, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnnt_type": "graves"}, "rnnt_type must be one of regular, modified, constrained, not 'graves'"),
        ({"reduction": "batch"}, "reduction must be one of none, mean, sum, not 'batch'"),
        ({"delay_penalty": -1.0}, "delay_penalty must be 0 or more"),
        ({"termination_symbol": 7}, r"termination_symbol must be in 0..6, not 7"),
        ({"symbols": torch.ones(2, 3, dtype=torch.int64)}, "S\\+1"),
        ({"symbols": torch.ones(2, 2)}, "symbols must be int64"),
        ({"boundary": torch.tensor([[0, 0, 2, 4]])}, r"boundary must be \(2, 4\)"),
        ({"boundary": torch.tensor([[0, 0, 2, 5], [0, 0, 1, 4]])}, r"boundary must be within \[0, 0, 2, 4\]"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    batch = Batch([2, 1], [4, 4])
    arguments: dict[str, Any] = {"symbols": batch.symbols, "termination_symbol": 0, "boundary": batch.boundary}
    arguments |= options
    with pytest.raises(ValueError, match=message):
        rnnt.rnnt_loss_simple(batch.lm, batch.am, **arguments)
    with pytest.raises(ValueError, match=message):
        rnnt.rnnt_loss(batch.logits, **arguments)


def test_wrong_ranges_are_named() -> None:
    batch = Batch([2, 1], [4, 4])
    with pytest.raises(ValueError, match="s_range must be at least 2"):
        ranges_of(batch, 1, "regular")
    with pytest.raises(ValueError, match="ranges must be"):
        rnnt.rnnt_loss_pruned(batch.logits, batch.symbols, torch.zeros(2, 4, 2, dtype=torch.int64), 0)
    ranges = ranges_of(batch, 2, "regular")
    with pytest.raises(ValueError, match="use_hat_loss needs termination_symbol 0"):
        rnnt.rnnt_loss_pruned(kept(batch.logits, ranges), batch.symbols, ranges, 1, use_hat_loss=True)
    with pytest.raises(ValueError, match="do not fit"):
        rnnt.do_rnnt_pruning(batch.am[:, 1:], batch.lm, ranges)
