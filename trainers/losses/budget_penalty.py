"""Keeps the share of tokens that the router selects near its target."""

import math
from typing import Any

import torch
from torch import Tensor

from ..loss_term import LossSum, LossTerm


def _check_target(target_ratio: float) -> None:
    if not 0.0 < target_ratio < 1.0:
        raise ValueError(
            f"target_ratio is {target_ratio}, it must lie between 0 and 1: the share of tokens "
            "that get the delta; without routing leave the term out"
        )


def _check_scores(scores: Tensor, attention_mask: Tensor) -> None:
    if scores.shape != attention_mask.shape:
        raise ValueError(
            f"router scores {tuple(scores.shape)} and attention mask "
            f"{tuple(attention_mask.shape)} must have one shape, such as (batch, tokens)"
        )


class BudgetPenalty(LossTerm):
    """Squared distance of the soft share of selected tokens from the target.

    Formula: `(mean_t sigmoid((s_t - tau) / kappa) - rho)^2` over the real tokens of the
    micro-batch, in fp32, with router scores s and threshold tau (constant here, see
    `ThresholdController`). It is a mean over the micro-batch before the square, hence coupled to
    its size.

    Args:
        target_ratio: rho in (0, 1).
        temperature: kappa > 0; the smaller, the closer to counting tokens, and the fewer tokens
            near the threshold carry the gradient.

    Raises:
        ValueError: If an argument is out of range.

    Source: the budget penalty of Delta-Matryoshka++; thresholds instead of top-k at inference as in
    Mixture-of-Depths, Raposo et al., https://arxiv.org/abs/2404.02258.
    """

    name = "budget_penalty"
    unit = "step"
    batch_coupled = True

    def __init__(self, target_ratio: float, temperature: float = 1.0) -> None:
        super().__init__()
        _check_target(target_ratio)
        if not math.isfinite(temperature) or temperature <= 0:
            raise ValueError(
                f"budget_penalty temperature is {temperature}, it must be a finite number above 0"
            )
        self.target_ratio = target_ratio
        self.temperature = temperature

    def forward(self, scores: Tensor, threshold: Tensor | float, attention_mask: Tensor) -> LossSum:
        """Penalise the share of the micro-batch.

        Args:
            scores: `(batch, tokens)` router scores.
            threshold: scalar tau; no gradient reaches it.
            attention_mask: `(batch, tokens)`, 0 for padding, above 0 for real tokens.

        Returns:
            The penalty and 1.

        Raises:
            ValueError: If the shapes differ.
        """
        _check_scores(scores, attention_mask)
        tau = threshold.detach() if isinstance(threshold, Tensor) else threshold
        is_real = attention_mask.gt(0)
        selected = torch.sigmoid((scores.float() - tau) / self.temperature) * is_real
        share = selected.sum() / is_real.sum().clamp(min=1)
        return LossSum((share - self.target_ratio).square(), 1)

    def extra_repr(self) -> str:
        """Show the arguments in `repr`."""
        return f"target_ratio={self.target_ratio}, temperature={self.temperature}"


@torch.no_grad()
def score_quantile(scores: Tensor, attention_mask: Tensor, target_ratio: float) -> Tensor:
    """Return the score that the share `target_ratio` of the real tokens exceeds.

    Args:
        scores: router scores of any shape, `(batch, tokens)` or `(tokens,)`.
        attention_mask: of the same shape, 0 for padding, above 0 for real tokens.
        target_ratio: share in (0, 1).

    Returns:
        Scalar fp32 tensor, the quantile `1 - target_ratio`.

    Raises:
        ValueError: If the shapes differ, the share is out of range or no token is real.
    """
    _check_target(target_ratio)
    _check_scores(scores, attention_mask)
    real = scores[attention_mask.gt(0)].float()
    if not len(real):
        raise ValueError("no real token to take a score quantile of; check the attention mask")
    # As `Tensor.quantile`, which refuses more than 2^24 numbers; a large step has as many scores.
    place = (1 - target_ratio) * (len(real) - 1)
    below = real.kthvalue(math.floor(place) + 1).values
    above = real.kthvalue(math.ceil(place) + 1).values
    return torch.lerp(below, above, place - math.floor(place))


def next_threshold(threshold: Tensor | None, quantile: Tensor, momentum: float) -> Tensor:
    """Move the threshold: `momentum * threshold + (1 - momentum) * quantile`; None jumps to it."""
    if threshold is None:
        return quantile
    return momentum * threshold + (1 - momentum) * quantile


class ThresholdController:
    """Adapts the routing threshold so that the share of tokens above it tends to the target.

    It is an exponential moving average of score quantiles, and a stateful hook of the trainer: with
    its state a resumed run continues exactly. All ranks must hold the same threshold, so give
    `update` the quantile of the scores of all ranks.

    Args:
        momentum: weight of the old threshold in [0, 1).

    Raises:
        ValueError: If the momentum is out of range.

    Attributes:
        threshold: scalar tensor, or None before the first update.
    """

    def __init__(self, momentum: float = 0.99) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"threshold momentum is {momentum}, it must lie in [0, 1)")
        self.momentum = momentum
        self.threshold: Tensor | None = None

    def update(self, quantile: Tensor) -> Tensor:
        """Take in the `score_quantile` of one step and return the new threshold."""
        self.threshold = next_threshold(self.threshold, quantile.detach(), self.momentum)
        return self.threshold

    def state_dict(self) -> dict[str, Any]:
        """Return the threshold."""
        return {"threshold": self.threshold}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Restore the threshold."""
        self.threshold = state_dict["threshold"]
