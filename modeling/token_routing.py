"""Token-conditional deltas: the base slice runs on every token, the rest on chosen ones.

``y_t = f_base(x_t) + m_t f_delta(x_t)``. Tokens are chosen once, by a small preview network, from
the states after the first layers; the delta's products then run on the gathered tokens only. With
``conditioned_norms`` a token without the delta is normalised as the base budget is, so that with a
fixed choice of no token the model is its base slice, and with one of all tokens the whole.
Sources of the idea: Mixture-of-Depths (arXiv 2404.02258), MoNE (arXiv 2407.19985).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import share_of
from .input_checks import is_traced
from .nested_layers import NestedLinear


class TokenRoute(NamedTuple):
    """The tokens a delta runs on: equally many places in each row, so that shapes stay fixed.

    Attributes:
        columns: (batch, k) chosen positions of each row, ascending; filled up with others where a
            row has fewer.
        gate: (batch, k, 1) exactly 1 for chosen positions and 0 for the filling; through it the
            score of a chosen token gets a gradient.
    """

    columns: Tensor
    gate: Tensor

    def gather(self, states: Tensor) -> Tensor:
        """Take the chosen tokens of (batch, tokens, n): (batch, k, n)."""
        return states.gather(1, self._index(states.shape[-1]))

    def add(self, states: Tensor, delta: Tensor) -> Tensor:
        """Add (batch, k, n) at the chosen tokens of (batch, tokens, n)."""
        weighted = (delta * self.gate.to(delta.dtype)).to(states.dtype)
        return states.scatter_add(1, self._index(states.shape[-1]), weighted)

    def _index(self, size: int) -> Tensor:
        return self.columns[..., None].expand(-1, -1, size)


class Routing(NamedTuple):
    """How a pass chooses the tokens of the delta; the first rule that is given decides.

    Attributes:
        first_layer: the layers before this one run whole, and so does the norm of the embeddings
            but for a fixed choice from layer 0 on.
        chosen: (batch, tokens) bool, fixed from outside.
        threshold: score above which a token is chosen.
        ratio: share of the real tokens of each row.
    """

    first_layer: int
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
    wanted = share_of(is_real.sum(dim=1, keepdim=True), ratio)
    ranked = scores.detach().masked_fill(~is_real, -torch.inf)
    ranked = ranked.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(ranked).scatter_(
        1, ranked, torch.arange(scores.shape[1], device=scores.device).expand_as(ranked)
    )
    return (rank < wanted) & is_real


def choose_by_threshold(scores: Tensor, is_real: Tensor, threshold: float) -> Tensor:
    """Choose the real tokens whose score lies above ``threshold``: no look at other tokens."""
    return (scores.detach() > threshold) & is_real


def route_tokens(chosen: Tensor, scores: Tensor | None, most: int) -> TokenRoute:
    """Turn a choice into places.

    Args:
        chosen: (batch, tokens) bool, at most ``most`` of each row.
        scores: (batch, tokens) that get a gradient through the gate; None for no gradient.
        most: places a row.
    """
    order = chosen.int().argsort(dim=1, descending=True, stable=True)
    columns = order[:, :most]
    gate = chosen.gather(1, columns).float()
    if scores is not None:
        soft = torch.sigmoid(scores.gather(1, columns))
        gate = gate * (1 + (soft - soft.detach()))
    return TokenRoute(columns, gate.unsqueeze(-1))


def fixed_choice(chosen: Tensor, shape: tuple[int, int], is_real: Tensor | None) -> Tensor:
    """Return a choice made outside, without padding.

    Raises:
        ValueError: if it does not have the shape of the tokens.
    """
    if tuple(chosen.shape) != shape:
        raise ValueError(
            f"delta_tokens have shape {tuple(chosen.shape)}, the input {shape}; they must be equal"
        )
    return chosen if is_real is None else chosen & is_real


def choose_tokens(
    preview: nn.Module | None, states: Tensor, is_real: Tensor | None, routing: Routing
) -> tuple[Tensor, Tensor]:
    """Score the tokens and choose those of the delta.

    Args:
        preview: gives the scores.
        states: (batch, tokens, n).
        is_real: (batch, tokens) False at padding; None if every token is real.
        routing: how to choose.

    Returns:
        The scores and the choice, (batch, tokens) each.
    """
    if is_real is None:
        is_real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    assert preview is not None
    scores: Tensor = preview(states)
    if routing.threshold is not None:
        return scores, choose_by_threshold(scores, is_real, routing.threshold)
    assert routing.ratio is not None
    return scores, choose_by_share(scores, is_real, routing.ratio)


def most_chosen(chosen: Tensor, routing: Routing) -> int:
    """Return how many tokens of a row are chosen at most."""
    tokens = chosen.shape[1]
    if routing.chosen is None and routing.threshold is None:
        assert routing.ratio is not None
        return int(share_of(tokens, routing.ratio))
    # Traced code has fixed shapes, so every token keeps a place there.
    return tokens if is_traced() else int(chosen.sum(dim=1).max())
