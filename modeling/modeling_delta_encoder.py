"""Delta-Matryoshka encoder: one set of weights, many models.

A ModernBERT-shaped encoder whose MLP channels, heads, layers and hidden channels are nested as
prefixes. ``set_budget`` (or ``budget=`` in a call) runs the nested model, ``slice`` cuts it out as
a standalone model of the same class, and both compute the same function.
"""

from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import DeltaBudget, SliceShape
from .document_attention import plan_attention, reset_positions
from .encoder_layer import EncoderLayer
from .input_checks import (
    is_traced,
    require_ids,
    require_mask,
    require_positions,
    require_tokens,
)
from .nested_layers import NestedLayerNorm, NestedLinear, leading_corner
from .rotary_embedding import rotary_tables

logger = logging.get_logger(__name__)


class DeltaEncoderPreTrainedModel(PreTrainedModel):
    """Initialisation, loading flags and the budget interface shared by all heads."""

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
        config.validate()
        super().__init__(config, **kwargs)
        self.active_budget: DeltaBudget | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, NestedLinear) and module.role == "residual":
            std /= (2.0 * self.config.num_hidden_layers) ** 0.5
        elif isinstance(module, NestedLinear) and module.role == "classifier":
            std = self.config.hidden_size**-0.5
        if isinstance(module, (nn.Linear, nn.Embedding)):
            cut = self.config.initializer_cutoff_factor * std
            nn.init.trunc_normal_(module.weight, mean=0.0, std=std, a=-cut, b=cut)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def save_pretrained(
        self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Save weights and configuration. Inside the package no code is written, hence no map.

        ``nestling export`` writes folders that load by themselves.
        """
        if not __name__.startswith("transformers_modules."):
            vars(self.config).pop("auto_map", None)
            logger.warning_once(
                "saving weights and configuration only; `nestling export` writes a folder that "
                "loads without nestling"
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def set_budget(self, budget: DeltaBudget | str | None) -> None:
        """Run at ``budget`` from now on; None runs the full model.

        Raises:
            BudgetError: if the model cannot be cut so.
        """
        self.active_budget = None if budget is None else self._checked(budget)
        trunk: Any = self.base_model
        if trunk is not self:
            trunk.set_budget(self.active_budget)

    def slice(self, budget: DeltaBudget | str) -> Self:
        """Return a standalone model that computes what this one computes at ``budget``.

        Every weight of the smaller model is the leading corner of the same weight here.

        Raises:
            BudgetError: if the model cannot be cut so.
        """
        budget = self._checked(budget)
        shape = budget.shape(self.config)
        config = type(self.config)(**{**self.config.to_dict(), **slice_settings(shape, budget)})
        config._attn_implementation = self.config._attn_implementation
        with torch.device("meta"):
            smaller = type(self)(config)
        state = self.state_dict()
        smaller.load_state_dict(
            {k: leading_corner(state[k], v.shape) for k, v in smaller.state_dict().items()},
            assign=True,
        )
        smaller.tie_weights()
        return smaller.train(self.training)

    def _checked(self, budget: DeltaBudget | str) -> DeltaBudget:
        budget = budget if isinstance(budget, DeltaBudget) else DeltaBudget.parse(budget)
        return budget.check(self.config)


def slice_settings(shape: SliceShape, budget: DeltaBudget) -> dict[str, Any]:
    """Return the configuration values in which a slice differs from its source."""
    sizes = set(shape.intermediate)
    return {
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "intermediate_size": sizes.pop() if len(sizes) == 1 else list(shape.intermediate),
        "budgets": [f"1.0:{shape.heads}:{shape.layers}"],
        "sliced_from": str(budget),
        "architectures": None,
    }


class DeltaEncoderEmbeddings(nn.Module):
    """Token embedding followed by a norm, on the first n channels."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = NestedLayerNorm(config.hidden_size, config.norm_eps, config.norm_bias)
        self.dropout = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids: Tensor | None, embeds: Tensor | None, hidden: int) -> Tensor:
        """Return (batch, tokens, hidden)."""
        if embeds is None and input_ids is not None:
            require_ids(input_ids, self.token.weight.shape[0])
            # The whole module is called, because offloading hooks hang on it.
            embeds = self.token(input_ids)
        assert embeds is not None
        return self.dropout(self.norm(embeds[..., :hidden]))


class DeltaEncoderModel(DeltaEncoderPreTrainedModel):
    """The trunk: embeddings, layers and a final norm."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__(config)
        self.embeddings = DeltaEncoderEmbeddings(config)
        self.layers = nn.ModuleList(
            EncoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.final_norm = NestedLayerNorm(config.hidden_size, config.norm_eps, config.norm_bias)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.embeddings.token

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embedding."""
        self.embeddings.token = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        budget: DeltaBudget | str | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode a batch.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens), 0 for padding and 1 for real tokens. A packed row
                numbers its documents 1, 2, 3, …; tokens attend inside their own document.
            position_ids: (batch, tokens); None counts from 0, anew in each document.
            inputs_embeds: (batch, tokens, hidden) instead of ``input_ids``.
            budget: overrides ``set_budget`` for this call.
            output_hidden_states: also return the states before each layer and the last one.
            output_attentions: also return attention weights (eager attention only).
            **kwargs: passed on to the attention function.

        Returns:
            ``last_hidden_state`` of shape (batch, tokens, n), after the final norm.
        """
        chosen = self.active_budget if budget is None else self._checked(budget)
        chosen = chosen or DeltaBudget.full(self.config)
        collected: list[Tensor] = []
        weights: list[Any] = []
        last = self._run(
            chosen.shape(self.config),
            self._prepare(input_ids, attention_mask, position_ids, inputs_embeds),
            {chosen.depth},
            collected,
            weights,
            kwargs,
        )[chosen.depth]
        last = self.final_norm(last)
        wants_states = self.config.output_hidden_states
        if output_hidden_states is not None:
            wants_states = output_hidden_states
        return BaseModelOutput(
            last_hidden_state=last,
            hidden_states=(*collected, last) if wants_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )

    def exits(
        self,
        budgets: tuple[DeltaBudget, ...],
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Return the states of several budgets before the final norm, in the order asked for.

        Budgets that differ only in depth share one pass through the layers.
        """
        budgets = tuple(map(self._checked, budgets))
        inputs = self._prepare(input_ids, attention_mask, position_ids, inputs_embeds)
        groups: dict[tuple[Any, ...], list[DeltaBudget]] = {}
        for budget in budgets:
            groups.setdefault(budget.trunk, []).append(budget)
        states: dict[DeltaBudget, Tensor] = {}
        for members in groups.values():
            deepest = max(members, key=lambda b: b.depth)
            by_depth = self._run(
                deepest.shape(self.config), inputs, {b.depth for b in members}, [], [], kwargs
            )
            states.update({b: by_depth[b.depth] for b in members})
        return [states[budget] for budget in budgets]

    def _prepare(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        embeds: Tensor | None,
    ) -> tuple[Any, ...]:
        """Work out positions, rotary tables and masks, once for all budgets of a call."""
        rows, tokens = require_tokens(input_ids, embeds, self.config.hidden_size)
        source = input_ids if input_ids is not None else embeds
        assert source is not None
        if attention_mask is not None:
            require_mask(attention_mask, rows, tokens)
            if not is_traced() and bool((attention_mask == 1).all()):
                attention_mask = None
        if position_ids is not None:
            require_positions(position_ids, rows, tokens)
        else:
            position_ids = (
                torch.arange(tokens, device=source.device)[None]
                if attention_mask is None
                else reset_positions(attention_mask)
            )
        plan = plan_attention(
            self.config._attn_implementation,
            attention_mask,
            (rows, tokens),
            self.config.local_attention,
            source.device,
        )
        thetas = {
            "full_attention": self.config.global_rope_theta,
            "sliding_attention": self.config.local_rope_theta,
        }
        tables = {
            name: rotary_tables(position_ids, self.config.head_dim, theta)
            for name, theta in thetas.items()
            if name in self.config.layer_types
        }
        return input_ids, embeds, plan, tables

    def _run(
        self,
        shape: SliceShape,
        inputs: tuple[Any, ...],
        exit_depths: set[int],
        collected: list[Tensor],
        weights: list[Any],
        kwargs: dict[str, Any],
    ) -> dict[int, Tensor]:
        """Run the first ``shape.layers`` layers; return the states after each exit depth."""
        input_ids, embeds, plan, tables = inputs
        hidden_states = self.embeddings(input_ids, embeds, shape.hidden)
        exits: dict[int, Tensor] = {}
        for depth, channels in enumerate(shape.intermediate, start=1):
            layer = self.layers[depth - 1]
            collected.append(hidden_states)
            hidden_states, layer_weights = layer(
                hidden_states,
                plan.masks[layer.attention_type],
                tables[layer.attention_type],
                shape.heads,
                channels,
                **plan.kwargs,
                **kwargs,
            )
            weights.append(layer_weights)
            if depth in exit_depths:
                exits[depth] = hidden_states
        return exits
