"""Work built deltas and changes of norms into plain weights, for a slice that needs neither."""

from typing import Any

from torch import Tensor

from ..configuration.delta_budget import DeltaBudget


def folded_weights(trunk: Any, budget: DeltaBudget) -> dict[str, Tensor]:
    """Return the weights of a slice that differ from the stored ones, by name.

    Args:
        trunk: a `DeltaEncoderModel`.
        budget: what the slice keeps.
    """
    shape = budget.shape(trunk.config)
    embedding_change, passes, final_change = trunk.plan_pass(budget, trunk.device)
    norms = {
        "embeddings.norm": embedding_change,
        "final_norm": trunk.final_change(final_change, shape.layers),
    }
    folded: dict[str, Tensor] = {}
    for index, now in enumerate(passes):
        norms[f"layers.{index}.attention_norm"] = now.attention_norm
        norms[f"layers.{index}.mlp_norm"] = now.mlp_norm
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
    for name, change in norms.items():
        if change is not None:
            gain, bias = trunk.get_submodule(name).folded(change)
            folded[f"{name}.weight"] = gain.detach()
            if bias is not None:
                folded[f"{name}.bias"] = bias.detach()
    return folded
