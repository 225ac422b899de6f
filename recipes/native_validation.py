"""Whether a stock class computes the slices that a recipe exports, asked before training.

What a recipe describes has the obstacles of its sizes and choices; a checkpoint can have further
ones, which the export finds.
"""

from collections.abc import Callable
from typing import Any

from ..configuration.budget import select_budgets
from ..configuration.stock_shapes import encoder_shape_obstacle
from .cli_errors import UsageError
from .recipe_sections import ExportSection


def check_native(
    export: ExportSection, config: Any, obstacle_of: Callable[[Any], str | None]
) -> None:
    """Require a stock class for every exported budget where the format is native.

    Args:
        export: the keys.
        config: configuration or planned sizes of the model.
        obstacle_of: budget -> why no stock class computes its slice, or None if one does.

    Raises:
        UsageError: for the first budget without one; after training it would be too late.
        BudgetError: for a budget that does not fit the model.
    """
    if export.format != "native":
        return
    for budget in select_budgets(export.budgets, config):
        obstacle = obstacle_of(budget)
        if obstacle is None:
            continue
        possible = [str(other) for other in config.budget_list() if obstacle_of(other) is None]
        others = f", or export.budgets to some that have one: {', '.join(possible)}"
        raise UsageError(
            f"export.format is native, but no stock class computes budget {budget} of "
            f"export.budgets: {obstacle}; set export.format=auto{others if possible else ''}"
        )


def encoder_obstacle(config: Any, budget: Any) -> str | None:
    """Return why stock ModernBERT cannot compute a slice of an encoder, or None if it can."""
    shape = budget.shape(config)
    return encoder_shape_obstacle(shape.heads, config.head_dim, shape.hidden, shape.intermediate)
