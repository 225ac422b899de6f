"""What all classes of the family share: initialisation, loading flags, the parts of a slice."""

from typing import Any

import torch
from torch import Tensor, nn

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import DeltaBudget
from .budget_conditioning import ExitAffine, NormTable
from .budgeted_model import BudgetedModel
from .delta_blocks import DictionaryBlock, LowRankBlock
from .nested_layers import NestedLinear
from .weight_folding import folded_weights

# Values of the configuration of a model that runs its delta on all tokens and cannot do otherwise.
WITHOUT_ROUTING: dict[str, Any] = {
    "token_routing": False,
    "delta_token_ratio": None,
    "delta_token_threshold": None,
    "learned_token_threshold": None,
}


class DeltaEncoderPreTrainedModel(BudgetedModel):
    """Initialisation, loading flags and what a slice is made of, shared by all heads."""

    config: DeltaEncoderConfig
    config_class = DeltaEncoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer"]  # noqa: RUF012  (transformers reads a plain list)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DeltaEncoderConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self._corner_shapes: dict[tuple[DeltaBudget, int], dict[str, tuple[int, ...]]] = {}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (DictionaryBlock, LowRankBlock)):
            module.reset(std)
        elif isinstance(module, ExitAffine):
            nn.init.zeros_(module.change)
        elif isinstance(module, NormTable):
            nn.init.zeros_(module.table)
        if isinstance(module, NestedLinear) and module.role == "residual":
            std /= (2.0 * self.config.num_hidden_layers) ** 0.5
        elif isinstance(module, NestedLinear) and module.role in ("classifier", "features"):
            std = module.in_features**-0.5
        if isinstance(module, NestedLinear) and module.role == "change":
            nn.init.zeros_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            cut = self.config.initializer_cutoff_factor * std
            nn.init.trunc_normal_(module.weight, mean=0.0, std=std, a=-cut, b=cut)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def sliced_weights(self, budget: DeltaBudget) -> dict[str, Tensor]:
        """Return all weights, with built deltas and changes of norms worked into them.

        Token routing stays a setting of the slice, if there is a delta left in it; changes of norms
        then stay as a table, for tokens with the delta and without.
        """
        return {**self.state_dict(), **self._folded(budget)}

    def sliced_config(self, budget: DeltaBudget) -> DeltaEncoderConfig:
        """Return the configuration of the slice at ``budget``."""
        settings = slice_settings(self.config, budget)
        config = type(self.config)(**{**self.config.to_dict(), **settings})
        config._attn_implementation = self.config._attn_implementation
        return config

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute activations; without re-entry, which cannot reach tensors built per pass."""
        options = gradient_checkpointing_kwargs or {"use_reentrant": False}
        super().gradient_checkpointing_enable(options, **kwargs)

    def _folded(self, budget: DeltaBudget) -> dict[str, Tensor]:
        """Return the weights of the trunk that differ from the stored ones, by full name."""
        trunk: Any = self.base_model
        prefix = "" if trunk is self else f"{self.base_model_prefix}."
        return {prefix + name: tensor for name, tensor in folded_weights(trunk, budget).items()}


def slice_settings(config: DeltaEncoderConfig, budget: DeltaBudget) -> dict[str, Any]:
    """Return the configuration values in which a slice differs from its source."""
    shape = budget.shape(config)
    settings: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "intermediate_size": _one_or_list(shape.intermediate),
        "budgets": [f"1.0:{shape.heads}:{shape.layers}"],
        "sliced_from": str(budget),
        "architectures": None,
        "delta_kind": "dense",
        "conditioned_norms": False,
        "exit_affine": False,
        "norm_table": False,
    }
    if budget.has_routed_delta(config):
        base = budget.base_shape(config)
        settings["base_attention_heads"] = base.heads
        settings["base_intermediate_size"] = _one_or_list(base.intermediate)
        settings["norm_table"] = config.conditioned_norms or config.norm_table
        return settings
    return {
        **settings,
        **WITHOUT_ROUTING,
        "base_attention_heads": None,
        "base_intermediate_size": None,
    }


def _one_or_list(sizes: tuple[int, ...]) -> int | list[int]:
    return sizes[0] if len(set(sizes)) == 1 else list(sizes)
