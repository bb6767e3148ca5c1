import pytest
import torch

from w2vbert.data.augment import SpecAugmentConfig, spec_augment

BINS = 80
LENGTHS = torch.tensor([400, 250, 30, 3])


def hidden(config: SpecAugmentConfig, seed: int = 0, rows: torch.Tensor = LENGTHS) -> torch.Tensor:
    """Which values are masked: bool (B, T, F)."""
    ones = torch.ones(len(rows), int(rows.max()), BINS)
    return spec_augment(ones, rows, config, torch.Generator().manual_seed(seed)) == 0


def test_masks_are_whole_bands_and_the_rest_is_untouched() -> None:
    x = torch.randn(4, 400, BINS, generator=torch.Generator().manual_seed(1)) + 10
    before = x.clone()
    y = spec_augment(x, LENGTHS, SpecAugmentConfig(), torch.Generator().manual_seed(0))
    mask = hidden(SpecAugmentConfig())
    assert torch.equal(x, before) and torch.equal(y[~mask], x[~mask]) and not y[mask].any()
    time, frequency = mask.all(2), mask.all(1)
    assert torch.equal(mask, time[:, :, None] | frequency[:, None])


def test_time_masks_stay_inside_the_utterance_and_its_share() -> None:
    config = SpecAugmentConfig(frequency_masks=0)
    for seed in range(50):
        time = hidden(config, seed)[..., 0]
        for row, n in zip(time, LENGTHS.tolist(), strict=True):
            assert not row[n:].any() and row.sum() <= config.time_masks * int(n * config.time_share)


def test_widths_are_uniform_up_to_the_largest() -> None:
    config = SpecAugmentConfig(frequency_masks=1, time_masks=0)
    widths = hidden(config, rows=torch.full((5000,), 2))[:, 0].sum(1)
    assert widths.min() == 0 and widths.max() == config.frequency_width
    assert abs(widths.float().mean() - config.frequency_width / 2) < 0.5
    time = hidden(SpecAugmentConfig(0, 0, 1, 0.1), rows=torch.full((3000,), 100))[..., 0].sum(1)
    assert time.min() == 0 and time.max() == 10 and abs(time.float().mean() - 5) < 0.3


def test_every_bin_can_be_hidden() -> None:
    shares = hidden(SpecAugmentConfig(time_masks=0), rows=torch.full((3000,), 2))[:, 0].float().mean(0)
    assert shares.min() > 0 and shares[0] > 0.002 and shares[-1] > 0.002


def test_equal_generators_draw_equal_masks_and_each_utterance_its_own() -> None:
    config = SpecAugmentConfig()
    assert torch.equal(hidden(config, 3), hidden(config, 3)) and not torch.equal(hidden(config, 3), hidden(config, 4))
    rows = hidden(config, rows=torch.full((2,), 400))
    assert not torch.equal(rows[0], rows[1])


def test_no_masks_change_nothing() -> None:
    assert not hidden(SpecAugmentConfig(0, 0, 0, 0.0)).any()


@pytest.mark.parametrize("values", [{"frequency_masks": -1}, {"time_share": 1.1}, {"time_masks": -2}])
def test_contradictions_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="SpecAugment"):
        SpecAugmentConfig(**values)  # type: ignore[arg-type]
