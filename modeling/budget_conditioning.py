"""Norms that know their budget: small changes of gain and bias, folded away in a slice.

Source of the idea: switchable norms of slimmable networks (arXiv 1812.08928) and FiLM
(arXiv 1709.07871). Both parts start at zero, so a model starts as if they were absent.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import DeltaBudget
from .nested_layers import NestedLinear


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
        self.shape = (
            2 * config.num_hidden_layers + 1,
            1 + config.norm_bias,
            config.hidden_size,
        )
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


class ExitAffine(nn.Module):
    """Change of the final norm for each depth at which the model may end: (layers, parts, H)."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        shape = (config.num_hidden_layers, 1 + config.norm_bias, config.hidden_size)
        self.change = nn.Parameter(torch.empty(shape))

    def forward(self, depth: int) -> Tensor:
        """Return (parts, hidden) of the exit after ``depth`` layers."""
        # A copy: without gradients a view of a parameter still claims to need one, which breaks
        # torch's FlopCounterMode.
        return self.change[depth - 1].clone()
