"""Values of the schedules."""

import math

import pytest
import torch
from nestling.trainers.schedules import (
    Constant,
    CosineInterpolation,
    LateRise,
    LinearWarmup,
    Phase,
    Phases,
    WarmupCosine,
)


def values(schedule: object, total: int) -> list[float]:
    """Evaluate at every step."""
    return [schedule(step, total) for step in range(total)]  # type: ignore[operator]


def test_constant_and_warmup() -> None:
    """The warm-up takes ceil(ratio * total) steps and begins above 0."""
    assert values(Constant(0.3), 3) == [0.3] * 3
    assert values(LinearWarmup(2.0, 0.5), 8) == pytest.approx([0.5, 1, 1.5, 2, 2, 2, 2, 2])
    assert values(LinearWarmup(2.0, 0.0), 2) == [2.0, 2.0]


def test_cosine_interpolation_hits_both_ends() -> None:
    """And the middle half-way; past the end it stays."""
    schedule = CosineInterpolation(0.5, 0.1)
    assert values(schedule, 5) == pytest.approx(
        [0.1 + 0.4 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(5)]
    )
    assert schedule(9, 5) == pytest.approx(0.1) and schedule(0, 1) == 0.5


def test_a_late_rise_keeps_its_start_until_the_last_part() -> None:
    schedule = LateRise(0.6, 0.9, part=0.25)
    assert [schedule(step, 101) for step in (0, 50, 75)] == pytest.approx([0.6] * 3)
    assert [schedule(step, 101) for step in (80, 100)] == pytest.approx([0.66, 0.9])
    for part in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"part is {part}"):
            LateRise(0.6, 0.9, part)


def test_phases_fill_the_run_without_gaps() -> None:
    """Inside a phase its schedule sees local steps."""
    phases = Phases(
        [
            Phase(0.33, Constant(1.0)),
            Phase(0.33, CosineInterpolation(1.0, 0.0)),
            Phase(0.34, Constant(0.5)),
        ]
    )
    assert values(phases, 9) == pytest.approx([1, 1, 1, 1, 0.5, 0, 0.5, 0.5, 0.5])
    located = [phases.phase_at(step, 100) for step in range(100)]
    assert [index for index, _, _ in located] == [0] * 33 + [1] * 33 + [2] * 34
    assert located[33] == (1, 0, 33) and located[99] == (2, 33, 34)
    assert phases(1000, 9) == 0.5


@pytest.mark.parametrize("ratios", [[], [0.5, 0.4], [0.0, 1.0], [1.5, -0.5]])
def test_phase_ratios_are_checked(ratios: list[float]) -> None:
    """They must be positive and sum to 1."""
    with pytest.raises(ValueError, match="phase ratios"):
        Phases([Phase(ratio, Constant(1.0)) for ratio in ratios])


def test_warmup_cosine_values() -> None:
    """Rises over the warm-up, is 1 at its end, ends at the floor."""
    schedule = WarmupCosine(warmup_steps=2, min_ratio=0.1)
    expected = [1 / 3, 2 / 3, *(0.1 + 0.9 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5))]
    assert values(schedule, 7) == pytest.approx(expected)
    assert values(WarmupCosine(), 3) == pytest.approx([1.0, 0.5, 0.0])


def test_warmup_cosine_drives_lambda_lr() -> None:
    """Multiplies the rate of each group."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (1.0, 0.1), strict=True)]
    optimizer = torch.optim.SGD(groups)
    schedule = WarmupCosine(1, 0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, 4))
    rates = []
    for _ in range(4):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    assert [rate[0] for rate in rates] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert [rate[1] for rate in rates] == pytest.approx([0.05, 0.1, 0.05, 0.0])


def test_arguments_are_checked() -> None:
    """Ratios in [0, 1], steps from 0."""
    with pytest.raises(ValueError, match=r"warmup_ratio is 1\.5"):
        LinearWarmup(1.0, 1.5)
    with pytest.raises(ValueError, match="min_ratio is -1"):
        WarmupCosine(0, -1)
    with pytest.raises(ValueError, match="warmup_steps is -1"):
        WarmupCosine(-1)


def test_schedules_print_and_compare() -> None:
    """The event file shows them."""
    assert Constant(1.0) == Constant(1.0)
    assert repr(Phases([Phase(1.0, Constant(2.0))])) == (
        "Phases([Phase(ratio=1.0, schedule=Constant(value=2.0))])"
    )
