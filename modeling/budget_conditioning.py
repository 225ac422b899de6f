"""Norms that know their budget: small changes of gain and bias, folded away in a slice.

Source of the idea: switchable norms of slimmable networks (arXiv 1812.08928) and FiLM
(arXiv 1709.07871). Both parts start at zero, so a model starts as if they were absent.

Where tokens are routed, a token without the delta is one of the base slice, and normalised as the
base budget is. A slice that routes then needs two plain norms in each place: a `NormTable`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import DeltaBudget
from .nested_layers import AS_STORED, NestedLinear, NormPass


class NormConditioner(nn.Module):
    """Change of every norm as a function of the budget: ``phi(b) -> (norms, parts, hidden)``.

    ``phi(b) = [mean MLP width, heads, hidden width]``, each as a share of the full model, goes
    through two linear maps with a GELU between; the second starts at zero. Depth is left out, so
    that budgets that differ in depth only can share a pass; `ExitAffine` covers it.

    Norms in order: embedding, attention norms of layers 2…L, MLP norms of layers 1…L, final.
    """

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.shape = changes_shape(config)
        self.features = NestedLinear(3, config.conditioner_size, True, role="features")
        size = self.shape[0] * self.shape[1] * self.shape[2]
        self.changes = NestedLinear(config.conditioner_size, size, True, role="change")

    def forward(self, budget: DeltaBudget, device: torch.device) -> Tensor:
        """Return (2 L + 1, parts, hidden) for a budget; the model works on ``device``."""
        widths, hidden = budget.layer_widths(), self.shape[2]
        shares = [
            sum(widths) / len(widths),
            budget.heads / self.heads,
            (budget.hidden or hidden) / hidden,
        ]
        given = torch.tensor(shares, dtype=self.features.weight.dtype, device=device)
        inner = F.gelu(self.features(given))
        changes: Tensor = self.changes(inner).view(self.shape)
        return changes


class NormTable(nn.Module):
    """What a `NormConditioner` computed for a slice and for its base slice, in its place.

    Shape (2, norms, parts, hidden): the base slice, the whole.
    """

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.empty(2, *changes_shape(config)))

    def forward(self, budget: DeltaBudget, device: torch.device) -> Tensor:
        """Return (2 L + 1, parts, hidden): of the base slice if the budget has no delta."""
        is_whole = budget.shape(self.config) != budget.base_shape(self.config)
        return self.table[int(is_whole)].clone()  # a copy, as in `ExitAffine`


class ExitAffine(nn.Module):
    """Change of the final norm for each depth at which the model may end: (layers, parts, H)."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        parts = changes_shape(config)[1:]
        self.change = nn.Parameter(torch.empty(config.num_hidden_layers, *parts))

    def forward(self, depth: int) -> Tensor:
        """Return (parts, hidden) of the exit after ``depth`` layers."""
        # A copy: without gradients a view of a parameter still claims to need one, which breaks
        # torch's FlopCounterMode.
        return self.change[depth - 1].clone()


class PassNorms(NamedTuple):
    """The changes of all norms in one pass, in the order of `NormConditioner`.

    Attributes:
        layers: L of the model.
        changes: (2 L + 1, parts, hidden), or None.
        chosen: (batch, tokens) tokens that get the delta; None for all.
        others: the changes for all other tokens, or None.
    """

    layers: int
    changes: Tensor | None = None
    chosen: Tensor | None = None
    others: Tensor | None = None

    def embedding(self) -> NormPass:
        """Return how the norm of the embeddings runs."""
        return self._at(0)

    def attention(self, layer: int) -> NormPass:
        """Return how the attention norm of a layer runs; the first layer, 0, has none."""
        return self._at(layer) if layer else AS_STORED

    def mlp(self, layer: int) -> NormPass:
        """Return how the MLP norm of a layer runs."""
        return self._at(self.layers + layer)

    def final(self, own: Tensor | None) -> NormPass:
        """Return how the final norm runs; ``own`` is the change of this exit, for all tokens."""
        last = self._at(2 * self.layers)
        if own is None:
            return last
        others = None if last.others is None else own + last.others
        return last._replace(
            change=own if last.change is None else own + last.change, others=others
        )

    def _at(self, index: int) -> NormPass:
        if self.changes is None:
            return AS_STORED
        if self.others is None:
            return NormPass(self.changes[index])
        return NormPass(self.changes[index], self.chosen, self.others[index])


def changes_shape(config: DeltaEncoderConfig) -> tuple[int, int, int]:
    """Return (norms, parts, hidden) of the changes of all norms; parts are gain and bias."""
    return 2 * config.num_hidden_layers + 1, 1 + config.norm_bias, config.hidden_size
