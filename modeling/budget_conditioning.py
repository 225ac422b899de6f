"""Norms that know their budget: small changes of gain and bias, folded away in a slice.

Source of the idea: switchable norms of slimmable networks (arXiv 1812.08928) and FiLM
(arXiv 1709.07871). Both parts start at zero, so a model starts as if they were absent.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import SliceShape
from .nested_layers import NestedLinear


class NormConditioner(nn.Module):
    """Change of every norm as a function of the budget: ``phi(b) -> (norms, parts, hidden)``.

    ``phi(b) = [mean MLP width, heads, hidden width]``, each as a share of the full model, goes
    through two linear maps with a GELU between; the second starts at zero. Depth is left out: it
    would keep budgets that differ in depth from sharing a pass, and `ExitAffine` covers it.

    Norms in order: embedding, attention norms of layers 2…L, MLP norms of layers 1…L, final.
    """

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        self.layers = config.num_hidden_layers
        self.full_heads = config.num_attention_heads
        self.full_channels = config.intermediate_sizes()
        self.shape = (2 * self.layers + 1, 1 + config.norm_bias, config.hidden_size)
        self.features = NestedLinear(3, config.conditioner_size, True, role="features")
        size = self.shape[0] * self.shape[1] * self.shape[2]
        self.changes = NestedLinear(config.conditioner_size, size, True, role="change")

    def forward(self, shape: SliceShape) -> Tensor:
        """Return (2 L + 1, parts, hidden)."""
        widths = [k / full for k, full in zip(shape.intermediate, self.full_channels, strict=False)]
        budget = [
            sum(widths) / len(widths),
            shape.heads / self.full_heads,
            shape.hidden / self.shape[2],
        ]
        weight = self.features.weight
        given = torch.tensor(budget, dtype=weight.dtype, device=weight.device)
        inner = F.gelu(self.features(given))
        changes: Tensor = self.changes(inner).view(self.shape)
        return changes


class ExitAffine(nn.Module):
    """Change of the final norm for each depth at which the model may end: (layers, parts, H)."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        shape = (config.num_hidden_layers, 1 + config.norm_bias, config.hidden_size)
        self.change = nn.Parameter(torch.empty(shape))

    def forward(self, depth: int) -> Tensor:
        """Return (parts, hidden) of the exit after ``depth`` layers."""
        return self.change[depth - 1]
