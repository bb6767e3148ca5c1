"""Cutting recordings of any length into pieces."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from w2vbert.data.pieces import CuttingConfig, Piece, cut

RATE_HZ = 16000


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> Tensor:
    return level * torch.randn(round(seconds * RATE_HZ), generator=torch.Generator().manual_seed(seed))


def utterances(count: int) -> list[Tensor]:
    """Of 1 to 6 s."""
    return [noise(1.0 + (i * 37 % 50) / 10, seed=i) for i in range(count)]


def cut_all(samples: Tensor, max_seconds: float = 10.0, block: int = 30 * RATE_HZ, **keys: float) -> list[Piece]:
    return list(cut(samples.split(block), RATE_HZ, max_seconds, CuttingConfig(**keys)))


@pytest.mark.parametrize("seconds", [0.2, 0.5, 1.7, 45.0])
@pytest.mark.parametrize("block", [30 * RATE_HZ, 5001, 100_003])
def test_what_digital_silence_parts_comes_out_as_it_was(seconds: float, block: int) -> None:
    parts = utterances(20 if seconds < 40 else 4)
    silence = torch.zeros(round(seconds * RATE_HZ))
    samples = torch.cat([silence, *(torch.cat([part, silence]) for part in parts)])
    pieces = cut_all(samples, block=block)
    assert len(pieces) == len(parts) and not any(piece.overlaps for piece in pieces)
    assert all(torch.equal(piece.samples, part) for piece, part in zip(pieces, parts, strict=True))
    ends = [piece.start + len(piece.samples) for piece in pieces]
    assert pieces[0].start == len(silence)
    assert all(piece.start - end == len(silence) for piece, end in zip(pieces[1:], ends, strict=False))


@pytest.mark.parametrize("seconds", [0.01, 3.0, 10.0])
def test_what_fits_is_one_piece_as_it_is(seconds: float) -> None:
    samples = noise(seconds)
    samples[len(samples) // 3 : len(samples) // 2] = 0.0
    (piece,) = cut_all(samples, block=777)
    assert torch.equal(piece.samples, samples) and piece.start == 0


def test_of_silence_nothing_is_left() -> None:
    assert cut_all(torch.zeros(5 * RATE_HZ)) == [] == cut_all(torch.zeros(50 * RATE_HZ)) == cut_all(torch.zeros(0))
    (piece,) = cut_all(torch.cat([torch.zeros(50 * RATE_HZ), noise(2.0), torch.zeros(50 * RATE_HZ)]))
    assert piece.start == 50 * RATE_HZ and torch.equal(piece.samples, noise(2.0))


def test_long_pauses_are_cut_out_but_for_their_edges() -> None:
    parts = utterances(20)
    pieces = cut_all(torch.cat([torch.cat([part, noise(1.0, 1e-3)]) for part in parts]))
    assert len(pieces) == len(parts)
    for piece, part in zip(pieces, parts, strict=True):
        assert abs(len(piece.samples) - len(part) - 0.6 * RATE_HZ) <= 0.42 * RATE_HZ  # the first and last: one edge
    samples = torch.cat([torch.cat([part, noise(0.5, 1e-3)]) for part in parts])
    fewer = cut_all(samples)
    assert len(fewer) < len(parts) and torch.equal(torch.cat([piece.samples for piece in fewer]), samples)
    assert max(len(piece.samples) for piece in fewer) <= 10 * RATE_HZ


def test_without_pauses_pieces_overlap() -> None:
    samples = noise(64.0)
    pieces = cut_all(samples, overlap_seconds=2.0)
    assert [piece.overlaps for piece in pieces] == [False] + [True] * 7
    for before, after in pairwise(pieces):
        assert len(before.samples) == 10 * RATE_HZ and before.start + len(before.samples) - after.start == 2 * RATE_HZ
    assert all(torch.equal(p.samples, samples[p.start : p.start + len(p.samples)]) for p in pieces)
    assert pieces[-1].start + len(pieces[-1].samples) == len(samples)


@pytest.mark.parametrize("max_seconds", [1.0, 3.3, 32.0])
def test_nothing_but_pauses_is_lost_and_no_piece_is_too_long(max_seconds: float) -> None:
    gaps = [0.05, 0.15, 0.4, 0.9, 3.0]
    samples = torch.cat([torch.cat([part, noise(gaps[i % 5], 1e-3)]) for i, part in enumerate(utterances(30))])
    heard = torch.zeros(len(samples), dtype=torch.bool)
    pieces = cut_all(samples, max_seconds)
    for piece in pieces:
        end = piece.start + len(piece.samples)
        assert 0 < len(piece.samples) <= max_seconds * RATE_HZ
        assert torch.equal(piece.samples, samples[piece.start : end])
        heard[piece.start : end] = True
    assert float(samples[~heard].abs().max()) < 0.01
    assert all(before.start < after.start for before, after in pairwise(pieces))


def test_no_more_is_kept_than_a_piece_needs() -> None:
    taken = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal taken
        for i in range(400):
            taken += RATE_HZ
            yield noise(1.0, seed=i)

    for piece in cut(blocks(), RATE_HZ, 10.0, CuttingConfig()):
        assert taken - piece.start <= 12 * RATE_HZ or taken == 400 * RATE_HZ


@pytest.mark.parametrize("keys", [{"silence_seconds": 0.0}, {"pause_seconds": 0.05}, {"overlap_seconds": -1.0}])
def test_settings_that_make_no_sense(keys: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        CuttingConfig(**keys)
