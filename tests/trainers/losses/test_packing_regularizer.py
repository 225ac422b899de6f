"""Packing regularizer against exact singular values; its memory survives zeros and resumes."""

from pathlib import Path

import pytest
import torch
from nestling.trainers.hook_state import capture_hook_state, load_hook_state, save_hook_state
from nestling.trainers.losses.packing_regularizer import PackingRegularizer
from torch import Tensor

Pairs = list[tuple[Tensor, Tensor]]
ROWS = [(4, 6), (5, 3)]


def pairs(seed: int) -> Pairs:
    """Matrices of 7 columns, the first delta larger than its base, the second smaller."""
    generator = torch.Generator().manual_seed(seed)
    scales = ((0.5, 2.0), (2.0, 0.5))
    return [
        (
            (scale[0] * torch.randn(rows[0], 7, generator=generator)).requires_grad_(),
            (scale[1] * torch.randn(rows[1], 7, generator=generator)).requires_grad_(),
        )
        for rows, scale in zip(ROWS, scales, strict=True)
    ]


def exact(values: Pairs) -> float:
    """Mean hinge of exact spectral norms."""

    def sigma(matrix: Tensor) -> float:
        return torch.linalg.matrix_norm(matrix, ord=2).item()

    return sum(max(0.0, sigma(delta) - sigma(base)) for base, delta in values) / len(values)


def test_reaches_the_exact_value_one_iteration_a_call() -> None:
    """The vectors are remembered: later calls are closer than the first."""
    values, term = pairs(0), PackingRegularizer(ROWS)
    first = term(values).total.item()
    for _ in range(200):
        total, count = term(values)
    assert count == 1
    assert total.item() == pytest.approx(exact(values), rel=1e-5)
    assert abs(first - exact(values)) > 10 * abs(total.item() - exact(values))


def test_several_iterations_in_one_call() -> None:
    values = pairs(1)
    assert PackingRegularizer(ROWS, iterations=200)(values).total.item() == pytest.approx(
        exact(values), rel=1e-5
    )


def test_the_gradient_is_u_v_and_only_of_violated_pairs() -> None:
    """Down for the delta's leading direction, up for the base's, none through the vectors."""
    values = pairs(2)
    term = PackingRegularizer(ROWS, iterations=300)
    before = term(values).total
    before.backward()
    (base, delta), satisfied = values
    for matrix, sign in ((delta, 1), (base, -1)):
        left, _, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
        expected = sign * torch.outer(left[:, 0], right[0]) / 2  # mean over 2 pairs
        torch.testing.assert_close(matrix.grad, expected, rtol=1e-3, atol=1e-4)
    assert all(matrix.grad.abs().max() == 0 for matrix in satisfied)
    stepped = [(base - 0.1 * base.grad, delta - 0.1 * delta.grad), satisfied]
    assert exact(stepped) < exact(values)


def test_follows_moving_weights() -> None:
    """One iteration a call tracks weights that move a little at each step."""
    generator = torch.Generator().manual_seed(3)
    values, term = pairs(3), PackingRegularizer(ROWS)
    for _ in range(100):
        term(values)
    for _ in range(30):
        values = [
            (base.detach(), delta.detach() + 0.005 * torch.randn(delta.shape, generator=generator))
            for base, delta in values
        ]
        assert term(values).total.item() == pytest.approx(exact(values), rel=2e-3)


def test_a_zero_delta_does_not_kill_its_vector() -> None:
    """Deltas may start at zero and grow later."""
    term = PackingRegularizer(ROWS)
    values = pairs(4)
    zeros = [(base, torch.zeros_like(delta).requires_grad_()) for base, delta in values]
    for _ in range(3):
        total = term(zeros).total
        total.backward()
    assert total.item() == 0 and all(torch.isfinite(delta.grad).all() for _, delta in zeros)
    for _ in range(200):
        total = term(values).total
    assert total.item() == pytest.approx(exact(values), rel=1e-5) and exact(values) > 0


def test_resumes_exactly_and_depends_on_the_seed_only(tmp_path: Path) -> None:
    """Through the files of a checkpoint, into a term of another seed."""
    values = pairs(5)
    through, stopped, resumed = (PackingRegularizer(ROWS, seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(99)  # the global generator has no part in it
    for _ in range(3):
        assert torch.equal(through(values).total, stopped(values).total)
    save_hook_state(tmp_path, capture_hook_state({"packing": stopped}))
    load_hook_state(tmp_path, {"packing": resumed})
    assert torch.equal(through(values).total, resumed(values).total)
    fresh = PackingRegularizer(ROWS, seed=1)
    assert not torch.equal(fresh(values).total, through(values).total)


def test_bf16_weights_and_autocast_are_measured_in_fp32() -> None:
    values = [(base.detach().bfloat16(), delta.detach().bfloat16()) for base, delta in pairs(6)]
    wide = [(base.float(), delta.float()) for base, delta in values]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = PackingRegularizer(ROWS)(values).total
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, PackingRegularizer(ROWS)(wide).total)


def test_no_trainable_parameters() -> None:
    """The trainer refuses terms that have some."""
    assert list(PackingRegularizer(ROWS).parameters()) == []


def test_shapes_and_arguments() -> None:
    values = pairs(7)
    with pytest.raises(ValueError, match="not matrices with"):
        PackingRegularizer(ROWS)(values[:1])
    with pytest.raises(ValueError, match="not matrices with"):
        PackingRegularizer(ROWS)([values[1], values[0]])
    with pytest.raises(ValueError, match="not matrices with"):
        PackingRegularizer([(7, 7)])([(torch.zeros(7), torch.zeros(7))])
    with pytest.raises(ValueError, match=r"rows are \[\]"):
        PackingRegularizer([])
    with pytest.raises(ValueError, match=r"rows are \[\(0, 2\)\]"):
        PackingRegularizer([(0, 2)])
    with pytest.raises(ValueError, match="iterations is 0"):
        PackingRegularizer(ROWS, iterations=0)
