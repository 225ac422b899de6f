"""The model that the keys of a recipe describe, as far as budgets ask. Imports no transformers.

A recipe can so be checked before anything is loaded. Where the sizes are those of a checkpoint,
its configuration takes the place of `PlannedSizes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..configuration.delta_budget import DeltaBudget
from ..configuration.delta_lattice import build_lattice, default_steps
from .recipe_schema import DeltaEncoderRecipe, ModelSection


@dataclass(frozen=True)
class PlannedSizes:
    """What a budget asks of a configuration, under the names it has there."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    intermediate_size: int
    base_intermediate_size: int | None
    base_attention_heads: int | None
    token_routing: bool
    routing_layer: int
    budgets: tuple[DeltaBudget, ...] = ()
    budget_class: ClassVar[type[DeltaBudget]] = DeltaBudget

    def intermediate_sizes(self) -> list[int]:
        """Return the MLP channels of each layer."""
        return [self.intermediate_size] * self.num_hidden_layers

    def base_intermediate_sizes(self) -> list[int]:
        """Return the MLP channels of the base slice of each layer; all without one."""
        return [self.base_intermediate_size or self.intermediate_size] * self.num_hidden_layers

    def budget_list(self) -> list[DeltaBudget]:
        """Return the budgets."""
        return list(self.budgets)


def planned_sizes(recipe: DeltaEncoderRecipe) -> PlannedSizes:
    """Return the sizes that the ``model`` keys describe, with the budgets.

    Raises:
        BudgetError: for a budget that does not fit them.
    """
    section = recipe.model
    heads, channels = section.num_attention_heads, section.intermediate_size
    base_heads, base_channels = None, None
    if has_base_slice(recipe):
        base_heads, [base_channels] = base_slice(section, heads, [channels])
    sizes: dict[str, Any] = {
        "vocab_size": section.vocab_size or 1,  # costs without predictions do not look at it
        "hidden_size": section.hidden_size,
        "num_hidden_layers": section.num_hidden_layers,
        "num_attention_heads": heads,
        "head_dim": section.head_dim or section.hidden_size // heads,
        "intermediate_size": channels,
        "base_intermediate_size": base_channels,
        "base_attention_heads": base_heads,
        "token_routing": section.token_routing,
        "routing_layer": section.routing_layer,
    }
    return PlannedSizes(**sizes, budgets=tuple(lattice_of(section, PlannedSizes(**sizes))))


def has_base_slice(recipe: DeltaEncoderRecipe) -> bool:
    """Whether some part of the recipe tells a base slice from the rest."""
    section = recipe.model
    return bool(section.delta != "dense" or section.token_routing or recipe.loss.packing_weight)


def base_slice(section: ModelSection, heads: int, channels: Sequence[int]) -> tuple[int, list[int]]:
    """Return heads and MLP channels by layer of the base slice of a model of these sizes."""
    base = [max(1, int(section.base_ratio * size + 1e-4)) for size in channels]
    return section.base_heads or max(1, heads // 2), base


def lattice_of(section: ModelSection, config: Any) -> list[DeltaBudget]:
    """Return the budgets a recipe names; empty axes take about half, three quarters and all.

    Args:
        section: the keys.
        config: configuration or planned sizes of the model.

    Raises:
        BudgetError: for a budget that does not fit, naming the nearest one that does.
    """
    budgets = build_lattice(
        list(section.width_budgets),
        list(section.head_budgets) or default_steps(config.num_attention_heads),
        list(section.depth_budgets) or default_steps(config.num_hidden_layers),
        list(section.extra_budgets),
    )
    return list(dict.fromkeys(budget.check(config) for budget in budgets))
