"""Predictions of an encoder whose delta runs on some of the tokens."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...configuration.delta_budget import DeltaBudget
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.token_routing import choose_by_threshold
from ..evaluation.budget_scoring import without_labels


def predict_routed(
    model: DeltaEncoderForMaskedLM, inputs: dict[str, Tensor], budgets: Sequence[DeltaBudget]
) -> tuple[Sequence[Tensor], Tensor]:
    """Run a masked LM with the delta on the tokens that its configuration asks for.

    Each budget is a pass of its own: `predict_masked` runs the delta on all tokens.
    """
    rest, is_predicted, labels = without_labels(inputs)
    logits = []
    for budget in budgets:
        states = model.model(**rest, budget=budget).last_hidden_state
        logits.append(model.decoder(model.head(states[is_predicted])))
    return logits, labels


class CountedPrediction:
    """Predicts as `predict_routed` does, and counts the tokens that score above a threshold.

    How many they are depends on the text, and on the budget: each scores states of its own.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._chosen: Counter[DeltaBudget] = Counter()
        self._real: Counter[DeltaBudget] = Counter()

    def __call__(
        self,
        model: DeltaEncoderForMaskedLM,
        inputs: dict[str, Tensor],
        budgets: Sequence[DeltaBudget],
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Predict; see `predict_routed`."""
        mask = inputs.get("attention_mask")
        everywhere = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
        is_real = everywhere if mask is None else mask != 0
        heard: list[Tensor] = []

        def hear(module: Any, given: Any, scores: Tensor) -> None:
            heard.append(scores)

        preview: Any = model.model.preview
        handle = preview.register_forward_hook(hear)
        logits: list[Tensor] = []
        try:
            for budget in budgets:
                heard.clear()
                logits += predict_routed(model, inputs, (budget,))[0]
                for scores in heard:  # none where the budget has no delta to route
                    chosen = choose_by_threshold(scores, is_real, self.threshold)
                    self._chosen[budget] += int(chosen.sum())
                    self._real[budget] += int(is_real.sum())
        finally:
            handle.remove()
        return logits, without_labels(inputs)[2]

    def share(self, budget: DeltaBudget) -> float | None:
        """Return the share of the real tokens so far that got the delta; None without a delta."""
        real = self._real[budget]
        return self._chosen[budget] / real if real else None
