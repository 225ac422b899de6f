"""Regularizers of shared delta dictionaries: few coefficients, atoms that differ."""

import math

import torch
from torch import Tensor

from ..loss_term import LossSum, LossTerm


class CoefficientSparsity(LossTerm):
    """L1 norm of the coefficients of one bank: `sum_{l,i} |c_{l,i}|`, in fp32.

    A sum, so that the pull on a coefficient is the weight of the term, however many there are.
    Args of `forward` say the shapes. Several banks are added up.

    Source: L1 penalty, Tibshirani (1996), https://doi.org/10.1111/j.2517-6161.1996.tb02080.x.
    """

    name = "coefficient_sparsity"
    unit = "step"

    def forward(self, coefficients: Tensor) -> LossSum:
        """Sum over layers and atoms.

        Args:
            coefficients: `(layers, atoms)` of one bank.

        Returns:
            The sum and 1.

        Raises:
            ValueError: If the shape is another or empty.
        """
        if coefficients.dim() != 2 or not coefficients.numel():
            raise ValueError(
                f"coefficient_sparsity: coefficients {tuple(coefficients.shape)} must be "
                "(layers, atoms), both 1 or more"
            )
        return LossSum(coefficients.float().abs().sum(), 1)


class AtomOrthogonality(LossTerm):
    """Mean squared cosine between the atoms of one bank.

    With whole atoms `A_i = V_i U_i` (out x in) the loss is `mean_{i != j} cos(A_i, A_j)^2`,
    `cos = <A_i, A_j> / (|A_i| |A_j|)` in the Frobenius product, in fp32. Atoms are never built:
    `<A_i, A_j> = tr(U_i^T V_i^T V_j U_j) = sum_{ab} (V_i^T V_j)_{ab} (U_i U_j^T)_{ab}`, so two Gram
    matrices of size (N r) x (N r) suffice, at `(N r)^2 (in + out)` multiplications. Orthogonal U
    alone would not do: V can map orthogonal rows to the same output.

    A bank may start with one side at zero. Then cosines are undefined, so each squared norm is
    raised by eps, which gives atoms of norm zero a loss and a gradient of zero.

    Args:
        eps: > 0, added to each squared norm. Atoms with a norm well below sqrt(eps) hardly count.

    Raises:
        ValueError: If eps is not a positive finite number.

    Source: the orthogonality penalty of Delta-Matryoshka++, on whole atoms.
    """

    name = "atom_orthogonality"
    unit = "step"

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        if not math.isfinite(eps) or eps <= 0:
            raise ValueError(f"atom_orthogonality eps is {eps}, it must be a finite number above 0")
        self.eps = eps

    def forward(self, atoms_in: Tensor, atoms_out: Tensor) -> LossSum:
        """Average over ordered pairs of different atoms.

        Args:
            atoms_in: U, `(atoms, rank, in)`.
            atoms_out: V, `(atoms, out, rank)`.

        Returns:
            The mean (0 for a single atom) and 1.

        Raises:
            ValueError: If the shapes do not fit.
        """
        if (
            atoms_in.dim() != 3
            or atoms_out.dim() != 3
            or (atoms_in.shape[0], atoms_in.shape[1]) != (atoms_out.shape[0], atoms_out.shape[2])
        ):
            raise ValueError(
                f"atom_orthogonality: atoms_in {tuple(atoms_in.shape)} and atoms_out "
                f"{tuple(atoms_out.shape)} must be (atoms, rank, in) and (atoms, out, rank)"
            )
        products = _frobenius_products(atoms_in, atoms_out)
        squared_norms = products.diagonal() + self.eps
        squared_cosines = products.square() / (squared_norms[:, None] * squared_norms)
        others = squared_cosines.sum() - squared_cosines.diagonal().sum()
        count = len(products)
        return LossSum(others / max(1, count * (count - 1)), 1)

    def extra_repr(self) -> str:
        """Show eps in `repr`."""
        return f"eps={self.eps}"


def _frobenius_products(atoms_in: Tensor, atoms_out: Tensor) -> Tensor:
    """Return all `<A_i, A_j>`: `(atoms, atoms)`."""
    atoms, rank, _ = atoms_in.shape
    # bf16 products would make parallel atoms look less than parallel.
    with torch.autocast(atoms_in.device.type, enabled=False):
        inner = atoms_in.float().flatten(0, 1)  # (atoms * rank, in)
        outer = atoms_out.float().transpose(1, 2).flatten(0, 1)  # (atoms * rank, out)
        gram = (inner @ inner.T) * (outer @ outer.T)
    return gram.view(atoms, rank, atoms, rank).sum(dim=(1, 3))
