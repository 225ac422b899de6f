"""How much of what a dense delta adds to the base slice does a delta of fewer bytes add?

The delta is what lies outside the base slice: heads and MLP channels of every layer. Its gain is
by how much the largest budget predicts better than the base slice of the same model.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...configuration.delta_budget import DeltaBudget
from ...hub_cards.delta_pack import PackSize, pack_size
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from .study_summary import interval

# Ablations that store the delta in fewer numbers, of equal bytes where there are four layers.
DELTA_ABLATIONS = ("dictionary", "low-rank")
DENSE = "dense"

OfSeeds = Mapping[int, Mapping[str, Any]]


def size_of_delta(config: Any) -> PackSize:
    """Return the bytes of the delta of a model; its weights are not made."""
    with torch.device("meta"):
        return pack_size(DeltaEncoderForMaskedLM(config))


def base_budget(config: Any) -> DeltaBudget | None:
    """Return the budget of the lattice that is the base slice in full depth; None without one."""
    base = DeltaBudget.full(config).base_budget(config)
    return base if base in config.budget_list() else None


def summarise_deltas(
    ablations: Mapping[str, OfSeeds],
    ours: OfSeeds,
    sizes: Mapping[str, PackSize],
    base: DeltaBudget,
    largest: DeltaBudget,
) -> dict[str, Any] | None:
    """Compare the gains of the deltas, by seed.

    Args:
        ablations: ablation -> seed -> evaluation.
        ours: seed -> evaluation of the nested model, whose delta is dense, of the same length.
        sizes: ablation -> bytes of its delta.
        base: the base slice.
        largest: the budget with all of the delta.

    Returns:
        None without cells of any `DELTA_ABLATIONS` that ours has as well. Else ``base``,
        ``largest`` and ``kinds``: of the dense delta and of each other ``bytes`` (``pack``, what
        an upgrade carries; ``atoms``, what must be there before), ``cross_entropy`` at both
        budgets and their difference ``gain``; then, by seed, ``recovered``, gain over gain of the
        dense delta, and ``reached``, the same from the base slice of the dense model, which a
        model with a worse base slice does not profit from. Both are None where a dense delta
        gains nothing.
    """
    gains = {DENSE: _gains_of(ours, base, largest)}
    gains |= {kind: _gains_of(ablations.get(kind, {}), base, largest) for kind in DELTA_ABLATIONS}
    present = [kind for kind in DELTA_ABLATIONS if set(gains[kind]) & set(gains[DENSE])]
    if not present:
        return None
    dense = PackSize(sizes[present[0]].dense, 0, sizes[present[0]].dense)
    return {
        "base": str(base),
        "largest": str(largest),
        "kinds": {
            DENSE: _kind(gains[DENSE], gains[DENSE], dense),
            **{kind: _kind(gains[kind], gains[DENSE], sizes[kind]) for kind in present},
        },
    }


class Gain(NamedTuple):
    """Cross-entropy of one model without its delta and with it."""

    base: float
    largest: float

    @property
    def gain(self) -> float:
        """Return by how much the delta lowers it."""
        return self.base - self.largest


def _gains_of(cells: OfSeeds, base: DeltaBudget, largest: DeltaBudget) -> dict[int, Gain]:
    found = {}
    for seed, cell in cells.items():
        losses = {entry["budget"]: entry["cross_entropy"] for entry in cell["budgets"]}
        found[seed] = Gain(losses[str(base)], losses[str(largest)])
    return found


def _kind(
    gains: Mapping[int, Gain], dense: Mapping[int, Gain], size: PackSize
) -> dict[str, Any]:
    """Sum up one way to store the delta over the seeds that it shares with the dense one."""
    seeds = sorted(set(gains) & set(dense))
    each, whole = [gains[seed] for seed in seeds], [dense[seed] for seed in seeds]
    has_gain = all(model.gain > 0 for model in whole)
    pairs = list(zip(each, whole, strict=True))
    return {
        "seeds": seeds,
        "bytes": {"pack": size.pack, "atoms": size.atoms},
        "cross_entropy": {
            "base": interval([model.base for model in each]),
            "largest": interval([model.largest for model in each]),
        },
        "gain": interval([model.gain for model in each]),
        "recovered": interval([a.gain / b.gain for a, b in pairs]) if has_gain else None,
        "reached": interval([(b.base - a.largest) / b.gain for a, b in pairs])
        if has_gain
        else None,
    }
