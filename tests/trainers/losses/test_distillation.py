"""Distillation term against a loop, and the direction of its gradient."""

import math

import pytest
import torch
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.trainers.losses.distillation import DistillationLoss, require_quiet_teacher


def slow_sum(student: list[list[float]], teacher: list[list[float]], tau: float) -> float:
    """Sum `tau^2 p_teacher (log p_teacher - log p_student)`."""

    def probabilities(row: list[float]) -> list[float]:
        scaled = [math.exp(z / tau) for z in row]
        return [value / sum(scaled) for value in scaled]

    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        q, p = probabilities(student_row), probabilities(teacher_row)
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(q, p, strict=True))
    return tau * tau * total


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0, 4.0])
def test_equals_the_slow_sum(tau: float) -> None:
    """For several temperatures."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 9, generator=generator)
    loss = DistillationLoss(tau)(student, teacher)
    assert loss.total.item() == pytest.approx(
        slow_sum(student.tolist(), teacher.tolist(), tau), rel=1e-5
    )
    assert loss.count == 6


def test_only_the_student_learns_and_it_moves_towards_the_teacher() -> None:
    """The gradient is tau (q - p): up where the student is too sure, down where too unsure."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(4, 5, generator=generator) for _ in range(2))
    student.requires_grad_()
    teacher.requires_grad_()
    tau = 2.0
    DistillationLoss(tau)(student, teacher).total.backward()
    expected = tau * ((student / tau).softmax(-1) - (teacher / tau).softmax(-1))
    torch.testing.assert_close(student.grad, expected.detach())
    assert teacher.grad is None
    closer = student.detach() - 0.1 * student.grad
    after = DistillationLoss(tau)(closer, teacher).total
    assert after < DistillationLoss(tau)(student, teacher).total


def test_equal_logits_give_zero() -> None:
    """Also when they are shifted by a constant."""
    logits = torch.randn(3, 4)
    assert DistillationLoss()(logits, logits + 7).total.item() == pytest.approx(0, abs=1e-5)


def test_extreme_bf16_logits_stay_finite() -> None:
    """Probabilities that underflow do not give NaN."""
    student = torch.tensor([[500.0, -500.0]], dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.tensor([[-500.0, 500.0]], dtype=torch.bfloat16)
    loss = DistillationLoss(1.0)(student, teacher).total
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature(temperature: float) -> None:
    """The error gives the value and the range."""
    with pytest.raises(ValueError, match=f"temperature is {temperature}.*above 0"):
        DistillationLoss(temperature)


def test_shapes_that_differ() -> None:
    """Another vocabulary or other positions."""
    with pytest.raises(ValueError, match="must have one shape"):
        DistillationLoss()(torch.zeros(2, 3), torch.zeros(2, 4))


def test_softened_targets_serve_several_students() -> None:
    """Softening once gives each student the loss it has on its own."""
    generator = torch.Generator().manual_seed(2)
    teacher, *students = torch.randn(4, 6, 9, generator=generator)
    term = DistillationLoss(2.0)
    targets = term.soften(teacher.requires_grad_())
    assert not targets.probabilities.requires_grad
    for student in students:
        torch.testing.assert_close(term.against(student, targets), term(student, teacher))
    assert term(teacher, teacher).total.item() == pytest.approx(0.0, abs=1e-4)


def test_a_teacher_with_dropout_is_refused() -> None:
    """A training pass that drops activations gives noise for targets."""
    config = DeltaEncoderConfig(hidden_size=32, num_attention_heads=4)
    require_quiet_teacher(config)
    config.mlp_dropout = 0.1
    with pytest.raises(ValueError, match=r"mlp_dropout is 0\.1.*set them to 0"):
        require_quiet_teacher(config)
