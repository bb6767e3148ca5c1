"""Cutting of long recordings."""

from itertools import pairwise

import numpy as np
import pytest

from w2vbert.data.segments import FRAME_SECONDS, CutConfig, EnergyMeter, cut_at_silences, find_extent, find_speech

RATE_HZ = 16000


def signal(*parts: tuple[float, float]) -> np.ndarray:
    """Noise of a loudness and seconds for each part."""
    generator = np.random.default_rng(1)
    return np.concatenate(
        [level * generator.standard_normal(round(seconds * RATE_HZ)) for level, seconds in parts]
    ).astype(np.float32)


def energies_of(samples: np.ndarray, block: int = 10_000) -> np.ndarray:
    meter = EnergyMeter()
    for start in range(0, len(samples), block):
        meter.add(samples[start : start + block], RATE_HZ)
    return meter.energies()


def test_energies_do_not_depend_on_the_blocks() -> None:
    samples = signal((0.1, 1.0), (0.001, 1.0))
    assert len(energies_of(samples)) == 100
    np.testing.assert_allclose(energies_of(samples, 777), energies_of(samples, 32_000))


@pytest.mark.parametrize("rate_hz", [1030, 8000, 11_025, 44_100])
def test_frames_keep_time_at_any_rate(rate_hz: int) -> None:
    samples = np.zeros(100 * rate_hz, dtype=np.float32)
    samples[90 * rate_hz : 95 * rate_hz] = 0.1
    meter = EnergyMeter()
    for start in range(0, len(samples), 777):
        meter.add(samples[start : start + 777], rate_hz)
    np.testing.assert_allclose(find_speech(meter.energies()), [(90.0, 95.0)], atol=2 * FRAME_SECONDS)
    assert len(meter.energies()) == 5000


def test_speech_is_found_by_energy() -> None:
    speech = find_speech(
        energies_of(signal((0.001, 1.0), (0.1, 3.0), (0.001, 0.1), (0.1, 1.0), (0.001, 2.0), (0.1, 1.0)))
    )
    np.testing.assert_allclose(speech, [(1.0, 5.1), (7.1, 8.1)], atol=FRAME_SECONDS)
    assert find_speech(energies_of(signal((0.1, 2.0)))) == [(0.0, 2.0)]
    assert find_speech(np.empty(0)) == []


def test_rare_speech_is_found_too_but_not_the_peaks_of_what_has_one_level() -> None:
    word = find_speech(energies_of(signal((0.001, 9.0), (0.1, 0.4), (0.001, 11.0))))
    np.testing.assert_allclose(word, [(9.0, 9.4)], atol=FRAME_SECONDS)
    assert find_speech(energies_of(signal((0.1, 9.0), (0.3, 0.4), (0.1, 11.0)))) == [(0.0, pytest.approx(20.4))]
    click = energies_of(signal((0.001, 9.0), (1.0, 0.01), (0.001, 11.0)))
    assert find_speech(click) == [(0.0, pytest.approx(20.0, abs=0.02))]


def test_zeros_are_no_pause_that_speech_is_measured_against() -> None:
    speech = find_speech(energies_of(signal((0.001, 2.0), (0.1, 2.0), (0.0, 1.0), (0.1, 1.0), (0.001, 2.0))))
    np.testing.assert_allclose(speech, [(2.0, 4.0), (5.0, 6.0)], atol=FRAME_SECONDS)
    assert find_speech(energies_of(signal((0.0, 1.0), (0.1, 2.0), (0.0, 1.0)))) == [(1.0, 3.0)]


def test_silence_at_the_ends_is_no_part_of_the_extent() -> None:
    samples = signal((0.001, 2.0), (0.1, 1.0), (0.001, 3.0), (0.1, 1.0), (0.001, 0.1))
    np.testing.assert_allclose(find_extent(energies_of(samples), 7.1), (1.85, 7.1), atol=FRAME_SECONDS)
    assert find_extent(energies_of(signal((0.1, 2.0))), 2.0) == (0.0, 2.0)
    assert find_extent(energies_of(signal((0.0, 2.0))), 2.0) is None
    assert find_extent(np.empty(0), 0.01) is None


@pytest.mark.parametrize("seed", range(20))
def test_pieces_fit_do_not_overlap_and_hold_all_speech(seed: int) -> None:
    generator = np.random.default_rng(seed)
    edges = np.cumsum(generator.exponential(4.0, 60))
    speech = [(float(a), float(b)) for a, b in edges.reshape(-1, 2)]
    seconds = float(edges[-1]) + 1.0
    config = CutConfig(max_seconds=12.0, min_seconds=0.1, max_pause_seconds=3.0)
    pieces = list(cut_at_silences(speech, seconds, np.ones(int(seconds / FRAME_SECONDS)), config))
    assert all(0.0 <= a and 0.1 <= b - a <= 12.0 + 1e-9 and b <= seconds for a, b in pieces)
    assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(pieces))
    covered = sum(max(0.0, min(b, d) - max(a, c)) for a, b in speech for c, d in pieces)
    assert covered == pytest.approx(sum(b - a for a, b in speech), abs=0.1)


def test_a_long_span_is_cut_where_it_is_quietest() -> None:
    samples = signal((0.1, 9.0), (0.01, 0.4), (0.1, 8.0))
    pieces = list(cut_at_silences([(0.0, 17.4)], 17.4, energies_of(samples), CutConfig(max_seconds=12.0)))
    assert len(pieces) == 2 and 9.0 <= pieces[0][1] <= 9.4 and pieces[1] == (pieces[0][1], 17.4)


def test_long_pauses_part_pieces_and_short_pieces_are_dropped() -> None:
    config = CutConfig(max_seconds=10.0, min_seconds=1.0, max_pause_seconds=2.0)
    pieces = list(cut_at_silences([(20.0, 22.0), (1.0, 3.0), (4.0, 5.0), (15.0, 15.2)], 30.0, np.ones(1500), config))
    np.testing.assert_allclose(pieces, [(0.85, 5.15), (19.85, 22.15)])


def test_what_lies_outside_or_overlaps_is_mended() -> None:
    pieces = list(cut_at_silences([(-1.0, 4.0), (3.0, 6.0), (50.0, 60.0)], 7.0, np.ones(350), CutConfig()))
    np.testing.assert_allclose(pieces, [(0.0, 6.15)])
    assert list(cut_at_silences([], 7.0, np.ones(350), CutConfig())) == []


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="min_seconds"):
        CutConfig(max_seconds=1.0, min_seconds=2.0)
