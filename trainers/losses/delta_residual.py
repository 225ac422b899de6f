"""Residual loss: what a larger budget adds should be what the smaller one lacks."""

import math

from torch import Tensor

from ..loss_term import LossSum, LossTerm


class DeltaResidualLoss(LossTerm):
    """Share of the smaller budget's residual that the upgrade leaves open, summed over tokens.

    For nested budgets b < b+ < T with final normalised states h_b, h_b+, h_T of n channels, the
    upgrade is `delta = h_b+ - sg(h_b)` and the residual is `r = sg(h_T - h_b)`:
    `L = sum_t ||delta_t - r_t||^2 / (||r_t||^2 + n * eps)`, in fp32.

    The numerator is `||h_b+ - sg(h_T)||^2`: h_b cancels. What the smaller budget contributes is the
    normaliser: where it misses much more than the floor, the loss of a token is the share of the
    residual that is still missing (0 where the upgrade closes the gap, m / (m + eps) where it adds
    nothing to a residual of mean square m, more where it points away); where it misses much less,
    it is the distance to h_T alone.

    Only h_b+ gets a gradient. Parameters that b+ shares with b are still reached through h_b+.
    Where the hidden widths differ the leading channels common to all three are compared: nested
    hidden widths are prefixes.

    Args:
        eps: floor of the mean square of the residual's channels, > 0. Normalised states have a mean
            square near 1, and those of unrelated budgets differ by one near 2: with the default
            the loss starts near 2/3, and mostly measures the distance to h_T. Where the upgrade
            adds nothing, the gradient of a token is at most `1 / sqrt(n * eps)`: a floor far below
            1 makes the loudest tokens those on which the budgets differ by noise, and in the first
            hundred steps these are all tokens.

    Raises:
        ValueError: If eps is not a positive finite number.

    Source: gradient boosting fits each stage to the residual of the stages before it, Friedman
    (2001), https://doi.org/10.1214/aos/1013203451; the term takes the place of the delta
    residualization of Delta-Matryoshka++.
    """

    name = "delta_residual"
    unit = "token"

    def __init__(self, eps: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(eps) or eps <= 0:
            raise ValueError(
                f"delta_residual eps is {eps}, it must be a finite number above 0; try 1"
            )
        self.eps = eps

    def forward(self, upgraded: Tensor, smaller: Tensor, teacher: Tensor) -> LossSum:
        """Sum the open share over the tokens.

        Args:
            upgraded: `(num_labelled, n)` final normalised states of b+.
            smaller: `(num_labelled, n_b)` of b, detached here.
            teacher: `(num_labelled, n_T)` of the largest budget or an external teacher of the same
                hidden space, detached here.

        Returns:
            The sum and `num_labelled`.

        Raises:
            ValueError: If the shapes do not fit.
        """
        states = (upgraded, smaller, teacher)
        if any(state.dim() != 2 or len(state) != len(upgraded) for state in states):
            raise ValueError(
                f"delta_residual: upgraded {tuple(upgraded.shape)}, smaller "
                f"{tuple(smaller.shape)} and teacher {tuple(teacher.shape)} must all be "
                "(num_labelled, hidden) over the same tokens"
            )
        channels = min(state.shape[1] for state in states)
        upgraded, smaller, teacher = (state[:, :channels].float() for state in states)
        smaller, teacher = smaller.detach(), teacher.detach()
        residual = teacher - smaller
        open_part = (upgraded - smaller) - residual
        missing = residual.square().sum(-1) + channels * self.eps
        return LossSum((open_part.square().sum(-1) / missing).sum(), len(upgraded))

    def extra_repr(self) -> str:
        """Show eps in `repr`."""
        return f"eps={self.eps}"
