"""Whether a stock class computes the slices that a recipe exports, asked before training.

`hub_cards.model_files.native_obstacle` decides when a slice is written, but it lives beside the
weights and so imports torch. What it says of a model that a recipe describes follows from sizes
and choices alone; a test holds both to the same words. A checkpoint can have further obstacles,
which the export finds.
"""

from collections.abc import Callable
from typing import Any

from ..configuration.budget import select_budgets
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
    shape, size = budget.shape(config), config.head_dim
    if shape.heads * size != shape.hidden:
        return f"heads x head_dim = {shape.heads} x {size} is not the hidden size {shape.hidden}"
    if len(set(shape.intermediate)) > 1:
        return f"intermediate_size differs between layers: {list(shape.intermediate)}"
    return None


def decoder_obstacle(config: Any) -> str | None:
    """Return why no stock class computes a decoder, at any budget, or None if one does."""
    if config.variant != "baseline":
        return f"variant {config.variant!r} rewrites its state, only 'baseline' adds"
    if config.value_residual:
        return "value_residual mixes attention values across layers"
    if config.qk_norm and config.rope_before_qk_norm:
        return "rope_before_qk_norm rotates queries and keys before their norm"
    if not config.qk_norm and config.hidden_size % config.num_attention_heads:
        return (
            f"num_attention_heads {config.num_attention_heads} does not divide hidden_size "
            f"{config.hidden_size}"
        )
    return None
