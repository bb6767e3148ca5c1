import math

import pytest

from w2vbert.training.schedules import OptimConfig

STEPS = 200
SCHEDULES = ("inverse_sqrt", "cosine", "linear", "constant")


def rates(config: OptimConfig) -> list[float]:
    return [config.at(step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rate_rises_linearly_to_the_peak_and_never_again(schedule: str) -> None:
    found = rates(OptimConfig(0.5, 20, schedule))  # type: ignore[arg-type]
    assert found[:20] == pytest.approx([0.5 * (n + 1) / 20 for n in range(20)])
    assert max(found) == pytest.approx(0.5) and min(found) > 0
    assert all(later <= earlier + 1e-12 for earlier, later in zip(found[20:], found[21:], strict=False))


def test_shapes_after_the_warm_up() -> None:
    inverse, cosine, linear, constant = (OptimConfig(1.0, 20, s, 0.1) for s in SCHEDULES)  # type: ignore[arg-type]
    assert inverse.at(79, STEPS) == pytest.approx(0.5)  # four times the warm-up: half
    assert cosine.at(110, STEPS) == linear.at(110, STEPS) == pytest.approx(0.55)  # half-way between 1 and 0.1
    assert cosine.at(65, STEPS) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    for config in (cosine, linear):
        assert config.at(STEPS, STEPS) == config.at(3 * STEPS, STEPS) == pytest.approx(0.1)
    assert constant.at(STEPS, STEPS) == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_freezing_shifts_the_schedule(schedule: str) -> None:
    plain = OptimConfig(1.0, 20, schedule)  # type: ignore[arg-type]
    frozen = OptimConfig(1.0, 20, schedule, freeze_steps=30)  # type: ignore[arg-type]
    assert [frozen.at(n, STEPS) for n in range(30)] == [0.0] * 30
    assert [frozen.at(n, STEPS) for n in range(30, STEPS)] == [plain.at(n, STEPS - 30) for n in range(STEPS - 30)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("warmup", "freeze", "steps"), [(0, 0, 5), (10, 0, 5), (5, 5, 5), (0, 9, 5), (0, 0, 1)])
def test_odd_lengths_stay_finite(schedule: str, warmup: int, freeze: int, steps: int) -> None:
    config = OptimConfig(1.0, warmup, schedule, freeze_steps=freeze)  # type: ignore[arg-type]
    assert all(0.0 <= config.at(step, steps) <= 1.0 for step in range(2 * steps))


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0.0},
        {"warmup_steps": -1},
        {"freeze_steps": -1},
        {"final_share": -0.5},
        {"weight_decay": -1.0},
    ],
)
def test_contradictions_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        OptimConfig(**values)  # type: ignore[arg-type]
