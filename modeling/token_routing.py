"""Token-conditional deltas: the base slice runs on every token, the rest on chosen ones.

``y_t = f_base(x_t) + m_t f_delta(x_t)``. Tokens are chosen once, by a small preview network, from
the states after the first layers; the delta's products then run on the gathered tokens only.
Sources of the idea: Mixture-of-Depths (arXiv 2404.02258), MoNE (arXiv 2407.19985).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from .nested_layers import NestedLinear


class TokenRoute(NamedTuple):
    """The tokens a delta runs on.

    Attributes:
        columns: (batch, k) chosen positions of each row, ascending; filled up where a row has
            fewer than the longest.
        is_chosen: (batch, k) False for the filling.
        flat: (chosen,) positions in the flattened batch, row by row.
        gate: (chosen, 1) factor of value 1 through which the score of a token gets a gradient.
    """

    columns: Tensor
    is_chosen: Tensor
    flat: Tensor
    gate: Tensor

    def gather(self, states: Tensor) -> Tensor:
        """Take the chosen tokens of (batch, tokens, n): (chosen, n)."""
        return states.flatten(0, 1).index_select(0, self.flat)

    def add(self, states: Tensor, delta: Tensor) -> Tensor:
        """Add (chosen, n) at the chosen tokens of (batch, tokens, n)."""
        weighted = (delta * self.gate.to(delta.dtype)).to(states.dtype)
        return states.flatten(0, 1).index_add(0, self.flat, weighted).view(states.shape)


class Routing(NamedTuple):
    """How a pass chooses the tokens of the delta; the first that is given decides.

    Attributes:
        chosen: (batch, tokens) bool, fixed from outside.
        threshold: score above which a token is chosen.
        ratio: share of the real tokens of each row.
    """

    chosen: Tensor | None = None
    threshold: float | None = None
    ratio: float | None = None


class ResidualPreview(nn.Module):
    """Predicts for each token how much the delta would help: ``w2 gelu(W1 norm(sg(x)))``.

    It reads the states without a gradient, so routing never bends the representation.
    """

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.inner = NestedLinear(config.hidden_size, config.preview_size, True)
        self.score = nn.Linear(config.preview_size, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Map (batch, tokens, n) to scores (batch, tokens)."""
        states = F.layer_norm(states.detach(), (states.shape[-1],), eps=self.eps)
        scores: Tensor = self.score(F.gelu(self.inner(states))).squeeze(-1)
        return scores.float()


def choose_by_share(scores: Tensor, is_real: Tensor, ratio: float) -> Tensor:
    """Choose the ``ceil(ratio x real tokens)`` highest scores of each row.

    Args:
        scores: (batch, tokens).
        is_real: (batch, tokens) False at padding, which is never chosen.
        ratio: share of the real tokens in [0, 1].

    Returns:
        (batch, tokens) bool.
    """
    wanted = torch.ceil(ratio * is_real.sum(dim=1, keepdim=True) - 1e-6)
    ranked = scores.detach().masked_fill(~is_real, -torch.inf).argsort(dim=1, descending=True)
    rank = torch.empty_like(ranked).scatter_(
        1, ranked, torch.arange(scores.shape[1], device=scores.device).expand_as(ranked)
    )
    return (rank < wanted) & is_real


def choose_by_threshold(scores: Tensor, is_real: Tensor, threshold: float) -> Tensor:
    """Choose the real tokens whose score lies above ``threshold``: no look at other tokens."""
    return (scores.detach() > threshold) & is_real


def route_tokens(chosen: Tensor, scores: Tensor | None) -> TokenRoute:
    """Turn a (batch, tokens) choice into indices; ``scores`` give the gate its gradient."""
    tokens = chosen.shape[1]
    counts = chosen.sum(dim=1)
    longest = int(counts.max())
    columns = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
    is_chosen = torch.arange(longest, device=chosen.device) < counts[:, None]
    starts = torch.arange(chosen.shape[0], device=chosen.device)[:, None] * tokens
    flat = (columns + starts)[is_chosen]
    gate = torch.ones(flat.shape[0], 1, device=chosen.device)
    if scores is not None:
        soft = torch.sigmoid(scores.flatten().index_select(0, flat)).unsqueeze(-1)
        gate = gate + (soft - soft.detach())
    return TokenRoute(columns, is_chosen, flat, gate)


def choose_tokens(
    preview: nn.Module | None, states: Tensor, is_real: Tensor | None, routing: Routing
) -> tuple[Tensor | None, Tensor]:
    """Score the tokens and choose those of the delta.

    Args:
        preview: gives the scores; not asked where the choice is fixed.
        states: (batch, tokens, n).
        is_real: (batch, tokens) False at padding; None if every token is real.
        routing: how to choose.

    Returns:
        The scores, or None where the choice is fixed, and the (batch, tokens) choice.
    """
    if is_real is None:
        is_real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if routing.chosen is not None:
        return None, routing.chosen & is_real
    assert preview is not None
    scores: Tensor = preview(states)
    if routing.threshold is not None:
        return scores, choose_by_threshold(scores, is_real, routing.threshold)
    assert routing.ratio is not None
    return scores, choose_by_share(scores, is_real, routing.ratio)
