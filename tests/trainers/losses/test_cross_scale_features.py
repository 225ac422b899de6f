"""Feature alignment against a loop, its masks, and taps in models of any depth."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from nestling.trainers.losses.cross_scale_features import (
    CrossScaleFeatureLoss,
    relative_taps,
    tap_depths,
)
from torch import Tensor

MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 2, 2, 2]])


def normalise(vector: list[float]) -> list[float]:
    """Layer norm without affine."""
    mean = sum(vector) / len(vector)
    variance = sum((x - mean) ** 2 for x in vector) / len(vector)
    return [(x - mean) / math.sqrt(variance + 1e-5) for x in vector]


def slow_sum(
    students: Sequence[Tensor], teachers: Sequence[Tensor], mask: Tensor, cosine: float = 0.0
) -> float:
    """Statistics of each row, tap and channel, one number at a time."""
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        n = min(student.shape[-1], teacher.shape[-1])
        for row in range(len(mask)):
            real = [token for token in range(mask.shape[1]) if mask[row, token] > 0]
            ours = [normalise(student[row, token, :n].tolist()) for token in real]
            theirs = [normalise(teacher[row, token, :n].tolist()) for token in real]
            for channel in range(n):
                moments = []
                for side in (ours, theirs):
                    values = [token[channel] for token in side]
                    mean = sum(values) / len(values)
                    variance = sum((x - mean) ** 2 for x in values) / len(values)
                    moments.append((mean, math.sqrt(variance + 1e-6)))
                (mu, sigma), (goal_mu, goal_sigma) = moments
                total += ((mu - goal_mu) ** 2 + (sigma - goal_sigma) ** 2) / n
            for a, b in zip(ours, theirs, strict=True):
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                norms = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
                total += cosine * (1 - dot / norms) / len(real)
    return total / len(students)


def taps(seed: int, count: int = 2, channels: int = 6) -> list[Tensor]:
    """Random states at `count` taps, with gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (1 + 2 * torch.randn(3, 5, channels, generator=generator)).requires_grad_()
        for _ in range(count)
    ]


def detached(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.detach() for value in values]


@pytest.mark.parametrize("cosine", [0.0, 0.7])
@pytest.mark.parametrize("student_channels", [6, 4])
def test_equals_the_slow_sum(cosine: float, student_channels: int) -> None:
    """Padding, a row of one token, a packed row, two taps, and a narrower student."""
    student, teacher = taps(0, channels=student_channels), taps(1)
    loss = CrossScaleFeatureLoss(cosine)(student, teacher, MASK)
    expected = slow_sum(detached(student), detached(teacher), MASK, cosine)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.count == 3


def test_only_the_student_learns_and_it_moves_to_the_teacher() -> None:
    student, teacher = taps(2), taps(3)
    term = CrossScaleFeatureLoss()
    before = term(student, teacher, MASK).total
    before.backward()
    assert all(tap.grad is None for tap in teacher)
    gradients = [tap.grad for tap in student]
    assert all(tap.grad is not None and tap.grad.abs().max() > 0 for tap in student)
    closer = [
        tap.detach() - 0.1 * gradient for tap, gradient in zip(student, gradients, strict=True)
    ]
    assert term(closer, teacher, MASK).total < before


def test_padding_neither_counts_nor_learns() -> None:
    student, teacher = taps(4), taps(5)
    term = CrossScaleFeatureLoss(0.5)
    loss = term(student, teacher, MASK).total
    loss.backward()
    for tap in student:
        assert tap.grad[MASK == 0].abs().max() == 0
        assert (tap.grad[MASK > 0].abs().amax(-1) > 0).all()
    dirty = [torch.where(MASK[..., None] > 0, tap, 99.0 + tap) for tap in detached(student)]
    torch.testing.assert_close(term(dirty, teacher, MASK).total, loss)


def test_scale_and_shift_of_a_token_do_not_matter() -> None:
    """Deeper layers have larger states; features are normalised first."""
    student = detached(taps(6))
    moved = [7 * tap + 3 for tap in student]
    assert CrossScaleFeatureLoss(1.0)(moved, student, MASK).total.item() == pytest.approx(
        0, abs=1e-4
    )


def test_a_row_does_not_depend_on_the_others() -> None:
    student, teacher = detached(taps(7)), detached(taps(8))
    term = CrossScaleFeatureLoss(0.3)
    alone = [
        term([t[row : row + 1] for t in student], [t[row : row + 1] for t in teacher], MASK[[row]])
        for row in range(3)
    ]
    together = term(student, teacher, MASK)
    assert sum(loss.total.item() for loss in alone) == pytest.approx(
        together.total.item(), rel=1e-5
    )


def test_one_token_and_no_token_have_finite_gradients() -> None:
    """The deviation of one token is 0, where a bare root has an infinite slope."""
    mask = torch.tensor([[1, 0], [0, 0]])
    generator = torch.Generator().manual_seed(9)
    student = torch.randn(2, 2, 4, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 2, 4, generator=generator)
    total, count = CrossScaleFeatureLoss(1.0)([student], [teacher], mask)
    total.backward()
    assert count == 2 and torch.isfinite(total)
    assert torch.isfinite(student.grad).all()
    assert student.grad[0, 0].abs().max() > 0 and student.grad[1].abs().max() == 0


def test_bf16_taps_are_compared_in_fp32() -> None:
    student = [tap.detach().bfloat16() for tap in taps(10)]
    teacher = [tap.detach().bfloat16() for tap in taps(11)]
    total = CrossScaleFeatureLoss()(student, teacher, MASK).total
    wide = [tap.float() for tap in student], [tap.float() for tap in teacher]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, CrossScaleFeatureLoss()(*wide, MASK).total)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [(0, 0, "0 student taps"), (2, 3, "2 student taps and 3 teacher taps")],
)
def test_taps_that_do_not_pair_up(student: int, teacher: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossScaleFeatureLoss()(taps(0, student), taps(0, teacher), MASK)


def test_taps_that_do_not_fit_the_mask() -> None:
    with pytest.raises(ValueError, match=r"tap \(3, 5, 6\) does not fit.*\(3, 4\)"):
        CrossScaleFeatureLoss()(taps(0), taps(1), MASK[:, :4])


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_bad_weight(weight: float) -> None:
    with pytest.raises(ValueError, match=f"token_cosine_weight is {weight}"):
        CrossScaleFeatureLoss(weight)


def test_the_taps_of_the_original_exist_at_every_depth() -> None:
    """Layers 4, 8, 11 of 12 in a model of 6, where absolute indices stop the run."""
    relative = relative_taps([4, 8, 11], 12)
    assert relative == pytest.approx((5 / 12, 9 / 12, 1.0))
    assert tap_depths(relative, 12) == (5, 9, 12)
    assert tap_depths(relative, 6) == (3, 5, 6)  # 2.5 and 4.5 go up
    assert tap_depths(relative, 1) == (1, 1, 1)
    for depth in range(1, 30):
        placed = tap_depths(relative, depth)
        assert len(placed) == 3 and placed[-1] == depth
        assert all(1 <= low <= high for low, high in pairwise(placed))


def test_halves_round_up_in_spite_of_binary_fractions() -> None:
    """0.145 * 100 is 14.499999999999998."""
    assert tap_depths([0.145], 100) == (15,)
    assert tap_depths([0.25], 10) == (3,) and tap_depths([0.35], 10) == (4,)
    assert tap_depths([0.01], 12) == (1,)


def test_tap_ranges() -> None:
    with pytest.raises(ValueError, match="tap layer 12 does not exist.* 0 to 11"):
        relative_taps([4, 12], 12)
    with pytest.raises(ValueError, match="tap layer -1"):
        relative_taps([-1], 12)
    with pytest.raises(ValueError, match=r"tap 4 must lie in \(0, 1\]"):
        tap_depths([4], 12)
    with pytest.raises(ValueError, match=r"tap 0\.0"):
        tap_depths([0.0], 12)
    with pytest.raises(ValueError, match="depth is 0"):
        tap_depths([0.5], 0)
