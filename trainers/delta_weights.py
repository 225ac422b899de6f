"""Terms that look at the weights of a nested encoder instead of its predictions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .loss_term import LossSum, WeightedTerm

WEIGHT_TERMS = ("coefficient_sparsity", "atom_orthogonality", "packing_regularizer")


def weight_losses(
    terms: Mapping[str, WeightedTerm], weights: Mapping[str, float], model: Any
) -> dict[str, LossSum]:
    """Return the weighted terms among `WEIGHT_TERMS`.

    Of the five dictionaries `coefficient_sparsity` is the sum: each coefficient is pulled alike,
    however many there are. `atom_orthogonality` is a mean of cosines, and their mean.

    Raises:
        ValueError: If the model has no dictionary, or no base slice, for a term that needs it.
    """
    wanted = [name for name in WEIGHT_TERMS if weights.get(name)]
    if not wanted:
        return {}
    trunk = model.base_model
    losses: dict[str, LossSum] = {}
    for name in wanted:
        term = terms[name].term
        if name == "packing_regularizer":
            losses[name] = term(base_and_delta(trunk))
            continue
        if trunk.config.delta_kind != "dictionary":
            raise ValueError(
                f"{name} needs delta_kind dictionary, the model has {trunk.config.delta_kind}; "
                "set its weight to 0"
            )
        blocks = list(trunk.deltas.blocks.values())
        each = [
            term(block.coefficients)
            if name == "coefficient_sparsity"
            else term(block.atoms_in, block.atoms_out)
            for block in blocks
        ]
        totals = torch.stack([loss.total for loss in each])
        is_sum = name == "coefficient_sparsity"
        losses[name] = LossSum(totals.sum() if is_sum else totals.mean(), 1)
    return losses


def base_and_delta(trunk: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the base slice and the delta of the MLP's first matrix, layer by layer.

    Layers whose base slice is the whole layer have no delta and are left out.

    Raises:
        ValueError: If the model has no base slice.
    """
    config = trunk.config
    if config.base_intermediate_size is None:
        raise ValueError(
            "packing_regularizer compares the base slice with the delta; set "
            "base_intermediate_size and base_attention_heads, or its weight to 0"
        )
    full = config.budget_class.full(config).shape(config)
    tails = None if trunk.deltas is None else trunk.deltas(full)
    pairs = []
    for index, channels in enumerate(config.base_intermediate_sizes()):
        weight = trunk.layers[index].mlp.up.weight
        delta = weight[channels:] if tails is None else tails[index].get("up")
        if delta is not None and len(delta):
            pairs.append((weight[:channels], delta))
    return pairs
