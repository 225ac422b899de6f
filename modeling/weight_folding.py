"""Work built deltas and changes of norms into plain weights, for a slice that needs neither."""

from typing import Any

import torch
from torch import Tensor

from ..configuration.delta_budget import DeltaBudget


def folded_weights(trunk: Any, budget: DeltaBudget) -> dict[str, Tensor]:
    """Return the weights of a slice that differ from the stored ones, by name.

    Args:
        trunk: a `DeltaEncoderModel`.
        budget: what the slice keeps.
    """
    shape = budget.shape(trunk.config)
    folded = _folded_norms(trunk, budget)
    for index, now in enumerate(trunk.plan_layers(budget)):
        inner = now.heads * trunk.config.head_dim
        sizes = {
            "attention.query_key_value": (3 * inner, shape.hidden),
            "attention.output": (shape.hidden, inner),
            "mlp.up": (now.channels, shape.hidden),
            "mlp.gate": (now.channels, shape.hidden),
            "mlp.down": (shape.hidden, now.channels),
        }
        for name, size in sizes.items():
            tail = now.tails.get(name.split(".")[1])
            if tail is not None:
                linear = trunk.get_submodule(f"layers.{index}.{name}")
                folded[f"layers.{index}.{name}.weight"] = linear.corner(*size, tail).detach()
    return folded


def _folded_norms(trunk: Any, budget: DeltaBudget) -> dict[str, Tensor]:
    """Return plain norms, or the table of a slice that has two in each place."""
    if trunk.conditioner is not None and budget.has_routed_delta(trunk.config):
        both = (budget.base_budget(trunk.config), budget)
        return {"conditioner.table": torch.stack([_changes(trunk, each) for each in both])}
    layers, norms = budget.depth, trunk.plan_norms(budget, trunk.device)
    passes = {
        "embeddings.norm": norms.embedding(),
        **{f"layers.{index}.attention_norm": norms.attention(index) for index in range(layers)},
        **{f"layers.{index}.mlp_norm": norms.mlp(index) for index in range(layers)},
        "final_norm": trunk.exit_norm(norms, layers),
    }
    folded: dict[str, Tensor] = {}
    for name, now in passes.items():
        if now.change is not None:
            gain, bias = trunk.get_submodule(name).folded(now.change)
            folded[f"{name}.weight"] = gain.detach()
            if bias is not None:
                folded[f"{name}.bias"] = bias.detach()
    return folded


def _changes(trunk: Any, budget: DeltaBudget) -> Tensor:
    """Return (2 L + 1, parts, hidden) of the L layers of a budget, the exit worked in."""
    norms = trunk.plan_norms(budget, trunk.device)
    last = trunk.exit_norm(norms, budget.depth).change
    whole, layers = norms.changes.detach(), budget.depth
    mlp = whole[norms.layers : norms.layers + layers]
    return torch.cat((whole[:layers], mlp, last.detach()[None]))
