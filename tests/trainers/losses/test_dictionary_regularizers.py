"""Dictionary regularizers against whole atoms."""

import math

import pytest
import torch
from nestling.trainers.losses.dictionary_regularizers import AtomOrthogonality, CoefficientSparsity
from torch import Tensor


def slow_orthogonality(atoms_in: Tensor, atoms_out: Tensor) -> float:
    """Build each atom and compare all pairs."""
    whole = [(v @ u).flatten() for u, v in zip(atoms_in, atoms_out, strict=True)]
    squares = [
        (torch.dot(a, b) / (a.norm() * b.norm())).item() ** 2
        for i, a in enumerate(whole)
        for j, b in enumerate(whole)
        if i != j
    ]
    return sum(squares) / len(squares)


def bank(seed: int, atoms: int = 4) -> tuple[Tensor, Tensor]:
    """U (atoms, 3, 5) and V (atoms, 6, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(atoms, 3, 5, generator=generator).requires_grad_(),
        torch.randn(atoms, 6, 3, generator=generator).requires_grad_(),
    )


def test_orthogonality_equals_that_of_whole_atoms() -> None:
    atoms_in, atoms_out = bank(0)
    total, count = AtomOrthogonality()(atoms_in, atoms_out)
    expected = slow_orthogonality(atoms_in.detach(), atoms_out.detach())
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert count == 1


def test_equal_atoms_give_one_and_orthogonal_atoms_zero() -> None:
    atoms_in, atoms_out = (side.detach() for side in bank(1))
    same = AtomOrthogonality()(atoms_in[:1].expand(3, -1, -1), -atoms_out[:1].expand(3, -1, -1))
    assert same.total.item() == pytest.approx(1.0, rel=1e-5)
    apart = atoms_in[:2].clone()
    apart[0, :, 2:] = 0  # the two atoms read different inputs
    apart[1, :, :2] = 0
    assert AtomOrthogonality()(apart, atoms_out[:2]).total.item() == pytest.approx(0, abs=1e-10)


def test_orthogonal_inputs_alone_are_not_enough() -> None:
    """One matrix written in two bases: the rows of U differ, the atoms are the same."""
    atoms_in = torch.stack([torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])])
    atoms_out = atoms_in.clone()  # V U = identity for both
    assert AtomOrthogonality()(atoms_in, atoms_out).total.item() == pytest.approx(1.0, rel=1e-5)


def test_a_step_turns_atoms_apart() -> None:
    atoms_in, atoms_out = bank(2)
    term = AtomOrthogonality()
    before = term(atoms_in, atoms_out).total
    before.backward()
    moved = [side.detach() - 0.1 * side.grad for side in (atoms_in, atoms_out)]
    assert term(*moved).total < before


@pytest.mark.parametrize("zero_atoms", [slice(0, 1), slice(None)])
def test_atoms_of_norm_zero_have_finite_gradients(zero_atoms: slice) -> None:
    """One side starts at zero; it must not turn the other into NaN."""
    atoms_in, atoms_out = bank(3)
    with torch.no_grad():
        atoms_out[zero_atoms] = 0
    total = AtomOrthogonality()(atoms_in, atoms_out).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(atoms_in.grad).all() and torch.isfinite(atoms_out.grad).all()
    assert atoms_out.grad[zero_atoms].abs().max() == 0


def test_a_single_atom_has_nothing_to_be_orthogonal_to() -> None:
    atoms_in, atoms_out = bank(4, atoms=1)
    total = AtomOrthogonality()(atoms_in, atoms_out).total
    total.backward()
    assert total.item() == 0 and atoms_in.grad.abs().max() == 0


def test_no_atom_is_built() -> None:
    """Nothing of size atoms x out x in, which for real banks is larger than the model."""
    atoms_in = torch.randn(8, 2, 300, generator=torch.Generator().manual_seed(5))
    atoms_out = torch.randn(8, 300, 2, generator=torch.Generator().manual_seed(6))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        sizes: list[int] = []
        AtomOrthogonality()(atoms_in.requires_grad_(), atoms_out.requires_grad_())
    assert sizes and max(sizes) <= 8 * 2 * 300


def test_orthogonality_under_bf16_autocast_is_exact() -> None:
    atoms_in, atoms_out = (side.detach() for side in bank(7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = AtomOrthogonality()(atoms_in, atoms_out).total
    torch.testing.assert_close(total, AtomOrthogonality()(atoms_in, atoms_out).total)


def test_sparsity_is_the_sum_of_sizes_and_pulls_alike() -> None:
    coefficients = torch.tensor([[0.5, -1.5, 0.0], [2.0, -1.0, 1.0]], requires_grad=True)
    total, count = CoefficientSparsity()(coefficients)
    total.backward()
    assert total.item() == pytest.approx(6.0) and count == 1
    torch.testing.assert_close(coefficients.grad, coefficients.detach().sign())


def test_shapes_and_arguments() -> None:
    with pytest.raises(ValueError, match=r"coefficients \(3,\) must be \(layers, atoms\)"):
        CoefficientSparsity()(torch.zeros(3))
    with pytest.raises(ValueError, match=r"coefficients \(0, 3\)"):
        CoefficientSparsity()(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"atoms_in \(2, 3, 5\) and atoms_out \(2, 3, 6\)"):
        AtomOrthogonality()(torch.zeros(2, 3, 5), torch.zeros(2, 3, 6))
    with pytest.raises(ValueError, match=r"atoms_in \(2, 3, 5\) and atoms_out \(1, 6, 3\)"):
        AtomOrthogonality()(torch.zeros(2, 3, 5), torch.zeros(1, 6, 3))
    for eps in (0.0, math.nan):
        with pytest.raises(ValueError, match=f"eps is {eps}"):
            AtomOrthogonality(eps)
