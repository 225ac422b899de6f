"""What a training step costs, by formula."""

from collections.abc import Sequence
from typing import Any

from ...configuration.delta_budget import DeltaBudget

# A backward pass multiplies by each weight matrix twice: once for its input, once for the weight.
FORWARD_AND_BACKWARD = 3


def forward_flops(
    draw: Sequence[DeltaBudget],
    config: Any,
    sequence_length: int,
    batch_size: int,
    predicted_tokens: int,
    *,
    routed: tuple[DeltaBudget, float] | None = None,
    upgrade: DeltaBudget | None = None,
) -> int:
    """Return the FLOPs of one forward pass of all budgets of a step.

    Budgets that differ only in depth share one trunk, the deepest; each has its own head.
    The two routed passes and an upgrade pass run a trunk and a head of their own. Distillation
    from the step's own largest budget adds no matrix product; building deltas from atoms is not
    counted.

    Args:
        draw: budgets of the step.
        config: configuration of the nested model.
        sequence_length: tokens per row.
        batch_size: rows.
        predicted_tokens: positions the head runs on, over all rows.
        routed: budget of the routed pass and its share of the tokens.
        upgrade: budget of the upgrade pass.
    """
    trunks: dict[Any, int] = {}
    head = 0
    for budget in draw:
        trunk = budget.flops(config, sequence_length, batch_size)
        trunks[budget.trunk] = max(trunks.get(budget.trunk, 0), trunk)
        head += budget.flops(config, sequence_length, batch_size, predicted_tokens) - trunk
    extra = 0
    sizes = sequence_length, batch_size, predicted_tokens
    if routed is not None:
        for ratio in (routed[1], 0.0):
            extra += routed[0].flops(config, *sizes, delta_ratio=ratio)
    if upgrade is not None:
        extra += upgrade.flops(config, *sizes)
    return sum(trunks.values()) + head + extra
