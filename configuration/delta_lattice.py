"""The budgets of a model as the product of three axes. Needs only the standard library."""

from collections.abc import Sequence

from .budget import BudgetError
from .delta_budget import DeltaBudget


def build_lattice(
    widths: list[float], heads: list[int], depths: list[int], extra: list[str] | None = None
) -> list[DeltaBudget]:
    """Return the product of the axes, smallest first, followed by ``extra`` budgets.

    Raises:
        BudgetError: if an axis is empty.
    """
    for name, axis in (("width", widths), ("head", heads), ("depth", depths)):
        if not axis:
            raise BudgetError(f"{name}_budgets is empty; list at least one value")
    lattice = [
        DeltaBudget(w, h, d)
        for w in sorted(set(widths))
        for h in sorted(set(heads))
        for d in sorted(set(depths))
    ]
    return lattice + [b for text in extra or [] if (b := DeltaBudget.parse(text)) not in lattice]


def default_steps(full: int) -> list[int]:
    """Return about half, three quarters and all of a number of heads or layers."""
    return sorted({max(1, full // 2), max(1, (3 * full + 2) // 4), full})


def default_lattice(heads: int, layers: int) -> list[DeltaBudget]:
    """Return the 3 x 3 x 3 lattice at about half, three quarters and all of each axis."""
    return build_lattice([0.5, 0.75, 1.0], default_steps(heads), default_steps(layers))


def meet_of(budgets: Sequence[DeltaBudget]) -> DeltaBudget:
    """Return the largest budget that all of ``budgets`` (at least one) contain.

    It has the least of each axis, and of the widths in each layer.
    """
    depth = min(budget.depth for budget in budgets)
    columns = zip(*(budget.layer_widths()[:depth] for budget in budgets), strict=True)
    hidden = [budget.hidden for budget in budgets if budget.hidden is not None]
    return DeltaBudget(
        tuple(map(min, columns)),
        min(budget.heads for budget in budgets),
        depth,
        min(hidden, default=None),
    )
