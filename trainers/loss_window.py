"""Bookkeeping of loss sums: one accumulation window, and the steps between two log lines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .loss_term import UNITS, LossSum, WeightedTerm


@dataclass
class LossWindow:
    """Loss sums of one optimizer step.

    Attributes:
        counts: Units of the whole window over all ranks: unit -> scalar integer tensor.
        weights: Weight of each term at this step.
        totals: Sum of each term over the micro-batches of this rank, on the device.
        seen: Units that the terms themselves counted, likewise.
    """

    counts: Mapping[str, Tensor]
    weights: Mapping[str, float]
    totals: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def add(self, terms: Mapping[str, WeightedTerm], losses: Mapping[str, LossSum]) -> Tensor:
        """Add one micro-batch.

        Returns:
            `sum_terms weight * total / units of the window`, with gradient. Summed over the
            micro-batches and ranks of the window this is the loss of the optimizer step.
        """
        self._check_names(terms, losses)
        device = next(iter(self.counts.values())).device
        loss = torch.zeros((), device=device)
        for name, (total, count) in losses.items():
            counted = torch.as_tensor(count, device=device)
            self.totals[name] = self.totals.get(name, 0) + total.detach().to(_sum_dtype(device))
            self.seen[name] = self.seen.get(name, 0) + counted.to(_sum_dtype(device))
            # A term of weight 0 is only logged; 0 * inf would spoil the others.
            if self.weights[name] != 0:
                units = self.counts[terms[name].term.unit].clamp(min=1)
                loss = loss + self.weights[name] * total / units
        return loss

    def _check_names(self, terms: Mapping[str, Any], losses: Mapping[str, Any]) -> None:
        unknown = sorted(set(losses) - set(terms))
        if unknown:
            raise ValueError(
                f"step_losses returned {unknown}, but the terms are {sorted(terms)}; add the term "
                "to the trainer or drop it from step_losses"
            )
        missing = sorted(n for n in terms if self.weights[n] != 0 and n not in losses)
        if missing:
            raise ValueError(
                f"step_losses did not return {missing}, whose weight is not 0 at this step; it "
                f"returned {sorted(losses)}"
            )

    def as_vector(self, names: list[str]) -> Tensor:
        """Stack totals, then counts, for one reduction over the ranks: `(2 * len(names),)`."""
        return torch.stack([self.totals[n] for n in names] + [self.seen[n] for n in names])


@dataclass
class StepSums:
    """Loss sums of one optimizer step over all ranks, as plain numbers."""

    totals: dict[str, float]
    counts: dict[str, float]

    @classmethod
    def from_vector(cls, names: list[str], values: list[float]) -> "StepSums":
        """Undo `LossWindow.as_vector`."""
        half = len(names)
        return cls(
            totals=dict(zip(names, values[:half], strict=True)),
            counts=dict(zip(names, values[half:], strict=True)),
        )

    def check_counts(
        self, terms: Mapping[str, WeightedTerm], expected: Mapping[str, float]
    ) -> None:
        """Compare what the terms counted with the units of the window.

        Raises:
            ValueError: If there is nothing to learn from, or a term counted something else.
        """
        for name, count in self.counts.items():
            unit = terms[name].term.unit
            if expected[unit] == 0:
                raise ValueError(
                    f"the batches of this step hold no {unit} for {name} (all labels are -100?); "
                    "check the collator and the length of the rows"
                )
            if count != expected[unit]:
                raise ValueError(
                    f"loss term {name} counted {count:.0f} units, the batches of this step hold "
                    f"{expected[unit]:.0f} (unit: {unit}); a term over several sub-models counts "
                    "its units once, see mean_over_models"
                )


@dataclass
class LossLog:
    """Running sums between two log lines; saved with the hook state, so a resume loses nothing."""

    totals: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    loss: float = 0.0
    steps: int = 0

    def add(self, sums: StepSums, weights: Mapping[str, float]) -> None:
        """Add one optimizer step."""
        for name, weight in weights.items():
            self.weights[name] = self.weights.get(name, 0.0) + weight
        for name, total in sums.totals.items():
            self.totals[name] = self.totals.get(name, 0.0) + total
            self.counts[name] = self.counts.get(name, 0.0) + sums.counts[name]
            if weights[name] != 0:
                self.loss += weights[name] * total / sums.counts[name]
        self.steps += 1

    def drain(self) -> dict[str, float]:
        """Return the numbers of a log line and start again.

        Returns:
            `loss` (mean total per optimizer step), `loss/<term>` (unweighted mean per unit over
            all steps since the last line that computed the term) and `weight/<term>` (mean over
            all of these steps); empty if no step was taken.
        """
        if self.steps == 0:
            return {}
        line = {"loss": self.loss / self.steps}
        for name, total in self.totals.items():
            line[f"loss/{name}"] = total / self.counts[name]
            line[f"weight/{name}"] = self.weights[name] / self.steps
        self.totals, self.counts, self.weights, self.loss, self.steps = {}, {}, {}, 0.0, 0
        return line

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {
            "totals": dict(self.totals),
            "counts": dict(self.counts),
            "weights": dict(self.weights),
            "loss": self.loss,
            "steps": self.steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Restore the sums."""
        self.totals, self.counts = state_dict["totals"], state_dict["counts"]
        # A checkpoint of an earlier version has no weights: those of its steps count as 0.
        self.weights = state_dict.get("weights", dict.fromkeys(self.totals, 0.0))
        self.loss, self.steps = state_dict["loss"], state_dict["steps"]


def _sum_dtype(device: torch.device) -> torch.dtype:
    # Sums over millions of tokens want fp64, which only these devices have for certain.
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def count_batch_units(batch: Mapping[str, Any]) -> Tensor:
    """Count the units of one micro-batch.

    Returns:
        Integer tensor `(3,)` in the order of `UNITS`: labels that are not -100 (0 without labels),
        rows, and 1.
    """
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if not tensors:
        raise ValueError(f"a batch holds no tensor, only {sorted(batch)}; check the collator")
    labels = batch.get("labels")
    device = tensors[0].device
    tokens = labels.ne(-100).sum() if labels is not None else torch.zeros((), device=device)
    rows = torch.tensor(tensors[0].shape[0], device=device)
    by_unit = {"token": tokens.long(), "sequence": rows, "step": torch.ones_like(rows)}
    return torch.stack([by_unit[unit] for unit in UNITS])
