"""Delta-Matryoshka encoder: one set of weights, many models.

A ModernBERT-shaped encoder whose MLP channels, heads, layers and hidden channels are nested as
prefixes. ``set_budget`` (or ``budget=`` in a call) runs the nested model, ``slice`` cuts it out as
a standalone model of the same class, and both compute the same function.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import DeltaBudget
from ..configuration.delta_settings import check_choice_of_tokens
from .budget_conditioning import ExitAffine, NormConditioner, NormTable, PassNorms
from .delta_blocks import DeltaBlocks
from .encoder_inputs import Inputs, prepare_inputs
from .encoder_layer import EncoderLayer, LayerPass
from .input_checks import require_ids
from .nested_layers import AS_STORED, NestedLayerNorm, NormPass
from .sliceable_encoder import DeltaEncoderPreTrainedModel
from .token_routing import (
    ResidualPreview,
    Routing,
    choose_tokens,
    fixed_choice,
    most_chosen,
    route_tokens,
)

ROUTABLE = ("eager", "sdpa")


class Exit(NamedTuple):
    """What a pass leaves at one depth.

    Attributes:
        states: (batch, tokens, n) before the final norm.
        norm: how the final norm runs.
        taps: states after the layers asked for.
        scores: (batch, tokens) of the preview network in a routed pass.
        chosen: (batch, tokens) tokens that got the delta in a routed pass.
    """

    states: Tensor
    norm: NormPass
    taps: tuple[Tensor, ...] = ()
    scores: Tensor | None = None
    chosen: Tensor | None = None


class DeltaEncoderEmbeddings(nn.Module):
    """Token embedding followed by a norm, on the first n channels."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = NestedLayerNorm(config.hidden_size, config.norm_eps, config.norm_bias)
        self.dropout = nn.Dropout(config.embedding_dropout)

    def forward(
        self,
        input_ids: Tensor | None,
        embeds: Tensor | None,
        hidden: int,
        norm: NormPass = AS_STORED,
    ) -> Tensor:
        """Return (batch, tokens, hidden)."""
        if embeds is None and input_ids is not None:
            require_ids(input_ids, self.token.weight.shape[0])
            # The whole module is called, because offloading hooks hang on it.
            embeds = self.token(input_ids)
        assert embeds is not None
        return self.dropout(self.norm(embeds[..., :hidden], norm))


class DeltaEncoderModel(DeltaEncoderPreTrainedModel):
    """The trunk: embeddings, layers and a final norm."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__(config)
        self.embeddings = DeltaEncoderEmbeddings(config)
        self.layers = nn.ModuleList(
            EncoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.final_norm = NestedLayerNorm(config.hidden_size, config.norm_eps, config.norm_bias)
        self.deltas = None if config.delta_kind == "dense" else DeltaBlocks(config)
        self.conditioner: nn.Module | None = None
        if config.conditioned_norms or config.norm_table:
            kind = NormTable if config.norm_table else NormConditioner
            self.conditioner = kind(config)
        self.exit_affine = ExitAffine(config) if config.exit_affine else None
        self.preview = ResidualPreview(config) if config.token_routing else None
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
        delta_tokens: Tensor | None = None,
        delta_first_layer: int = 0,
        drop_paths: bool = True,
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
            delta_tokens: (batch, tokens) bool, the tokens that get the delta, in every layer; with
                none this is the base slice, with all the whole budget. None asks the configuration.
            delta_first_layer: with ``delta_tokens``: the layers before this one run whole, as
                those before ``routing_layer`` do where the preview network chooses.
            drop_paths: in training, apply the stochastic depth of the configuration; a pass that
                teaches others goes without.
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
        inputs = prepare_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds)
        exits = self._run(
            chosen,
            inputs,
            {chosen.depth: ()},
            kwargs,
            self._routing(chosen, delta_tokens, delta_first_layer),
            drops_paths=drop_paths,
            collected=collected,
            weights=weights,
        )
        last = self.finish(exits[chosen.depth].states, exits[chosen.depth].norm)
        wants_states = self.config.output_hidden_states
        if output_hidden_states is not None:
            wants_states = output_hidden_states
        return BaseModelOutput(
            last_hidden_state=last,
            hidden_states=(*collected, last) if wants_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )

    def finish(self, states: Tensor, norm: NormPass) -> Tensor:
        """Apply the final norm of an exit to (..., n)."""
        normed: Tensor = self.final_norm(states, norm)
        return normed

    def exits(
        self,
        budgets: tuple[DeltaBudget, ...],
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        tap_layers: tuple[tuple[int, ...], ...] | None = None,
        routed: tuple[DeltaBudget, float] | None = None,
        references: tuple[DeltaBudget, ...] = (),
        **kwargs: Any,
    ) -> list[Exit]:
        """Run several budgets and return their exits, in the order asked for.

        Budgets that differ only in depth share one pass through the layers. The pass of the first
        budget runs without stochastic depth, because it teaches the others, and so do those of
        `references`: a difference to them would otherwise be noise.

        Args:
            budgets: budgets that run on all tokens, whatever the configuration says.
            input_ids: see `forward`, as for the next three.
            attention_mask: see there.
            position_ids: see there.
            inputs_embeds: see there.
            tap_layers: for each budget the layers (counted from 1) whose states to keep.
            routed: a budget and the share of tokens that get its delta. Two exits come last: that
                one, and the same pass with the delta on no token.
            references: budgets that others are compared with.
            **kwargs: passed on to the attention function.
        """
        budgets = tuple(map(self._checked, budgets))
        taps = tap_layers or ((),) * len(budgets)
        for budget, layers in zip(budgets, taps, strict=True):
            if any(not 1 <= layer <= budget.depth for layer in layers):
                raise ValueError(
                    f"tap_layers {layers} of budget {budget} must lie in 1..{budget.depth}, the "
                    "layers it runs, counted from 1"
                )
        inputs = prepare_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, budget in enumerate(budgets):
            groups.setdefault(budget.trunk, []).append(index)
        exits: dict[int, Exit] = {}
        steady = {0, *(i for i, b in enumerate(budgets) if b in map(self._checked, references))}
        for members in groups.values():
            deepest = max((budgets[index] for index in members), key=lambda b: b.depth)
            wanted = {budgets[index].depth: taps[index] for index in members}
            found = self._run(
                deepest, inputs, wanted, kwargs, drops_paths=steady.isdisjoint(members)
            )
            exits.update({index: found[budgets[index].depth] for index in members})
        ordered = [exits[index] for index in range(len(budgets))]
        if routed is not None:
            budget, ratio = self._checked(routed[0]), routed[1]
            if not budget.has_routed_delta(self.config):
                raise ValueError(
                    f"budget {budget} has no delta to route; route a larger one, of a model with "
                    "token_routing=True"
                )
            for share in (ratio, 0.0):
                routing = Routing(self.config.routing_layer, ratio=share)
                run = self._run(budget, inputs, {budget.depth: ()}, kwargs, routing)
                ordered.append(run[budget.depth])
        return ordered

    def _routing(
        self, budget: DeltaBudget, delta_tokens: Tensor | None, first_layer: int
    ) -> Routing | None:
        """Return how the configuration (or the caller) wants tokens chosen; None for all."""
        config = self.config
        check_choice_of_tokens(config)
        if delta_tokens is not None and not config.token_routing:
            raise ValueError("delta_tokens needs a base slice; set token_routing=True")
        if not 0 <= first_layer < config.num_hidden_layers:
            raise ValueError(
                f"delta_first_layer {first_layer} must be in 0..{config.num_hidden_layers - 1}"
            )
        if delta_tokens is not None:
            has_delta = budget.base_shape(config) != budget.shape(config)
            return Routing(first_layer, delta_tokens.bool()) if has_delta else None
        if not budget.has_routed_delta(config):
            return None
        if config.delta_token_threshold is not None:
            return Routing(config.routing_layer, threshold=config.delta_token_threshold)
        ratio = config.delta_token_ratio
        if ratio is None or ratio >= 1.0:
            return None
        return Routing(config.routing_layer, ratio=ratio)

    def plan_layers(self, budget: DeltaBudget) -> list[LayerPass]:
        """Return what each layer computes at a budget, but for its norms."""
        shape = budget.shape(self.config)
        tails = [{}] * shape.layers if self.deltas is None else self.deltas(shape)
        return [
            LayerPass(shape.heads, channels, tail)
            for channels, tail in zip(shape.intermediate, tails, strict=True)
        ]

    def plan_norms(self, budget: DeltaBudget, device: torch.device) -> PassNorms:
        """Return how the norms run at a budget."""
        changes = None if self.conditioner is None else self.conditioner(budget, device)
        return PassNorms(self.config.num_hidden_layers, changes)

    def exit_norm(self, norms: PassNorms, depth: int) -> NormPass:
        """Return how the final norm runs after ``depth`` layers."""
        return norms.final(None if self.exit_affine is None else self.exit_affine(depth))

    def _run(
        self,
        budget: DeltaBudget,
        inputs: Inputs,
        wanted: dict[int, tuple[int, ...]],
        kwargs: dict[str, Any],
        routing: Routing | None = None,
        drops_paths: bool = False,
        collected: list[Tensor] | None = None,
        weights: list[Any] | None = None,
    ) -> dict[int, Exit]:
        """Run the layers of a budget.

        Args:
            budget: what runs.
            inputs: from `prepare_inputs`.
            wanted: depth of each exit -> layers whose states it keeps as taps.
            kwargs: for the attention function.
            routing: how the tokens of the delta are chosen; None runs it on all.
            drops_paths: whether stochastic depth applies in training.
            collected: receives the states before each layer.
            weights: receives attention weights.
        """
        if routing is not None and self.config._attn_implementation not in ROUTABLE:
            raise ValueError(
                f"token routing needs attention {' or '.join(ROUTABLE)}, not "
                f"{self.config._attn_implementation}: the chosen queries are gathered"
            )
        passes, norms = self.plan_layers(budget), self.plan_norms(budget, inputs.device)
        scores = chosen = route = None
        if routing is not None and routing.chosen is not None:
            chosen = fixed_choice(routing.chosen, inputs.shape, inputs.is_real)
            if routing.first_layer == 0:
                norms = self._split(norms, budget, chosen)
        hidden = budget.hidden or self.config.hidden_size
        states = self.embeddings(inputs.input_ids, inputs.embeds, hidden, norms.embedding())
        exits: dict[int, Exit] = {}
        kept_states: dict[int, Tensor] = {}
        tapped = {layer for taps in wanted.values() for layer in taps}
        for index, now in enumerate(passes):
            if routing is not None and index == routing.first_layer:
                if chosen is None:
                    scores, chosen = choose_tokens(self.preview, states, inputs.is_real, routing)
                most = most_chosen(chosen, routing)
                route = route_tokens(chosen, scores if self.training else None, most)
                if norms.chosen is None:
                    norms = self._split(norms, budget, chosen)
            if collected is not None:
                collected.append(states)
            kept = self._kept(states, index) if drops_paths and self.training else None
            layer: Any = self.layers[index]
            states, layer_weights = layer(
                states,
                inputs.plan.masks[layer.attention_type],
                inputs.tables[layer.attention_type],
                now._replace(
                    attention_norm=norms.attention(index),
                    mlp_norm=norms.mlp(index),
                    route=route,
                    kept=kept,
                ),
                **inputs.plan.kwargs,
                **kwargs,
            )
            if weights is not None:
                weights.append(layer_weights)
            depth = index + 1
            if depth in tapped:
                kept_states[depth] = states
            if depth in wanted:
                taps = tuple(kept_states[layer] for layer in wanted[depth])
                exits[depth] = Exit(states, self.exit_norm(norms, depth), taps, scores, chosen)
        return exits

    def _split(self, norms: PassNorms, budget: DeltaBudget, chosen: Tensor) -> PassNorms:
        """Return the norms of a pass in which some tokens compute the base slice of the budget."""
        if self.conditioner is None:
            return norms
        others = self.conditioner(budget.base_budget(self.config), chosen.device)
        return norms._replace(chosen=chosen, others=others)

    def _kept(self, states: Tensor, index: int) -> Tensor | None:
        """Draw which rows skip a layer: (batch, 1, 1), 0 or 1 / (1 - rate)."""
        rate = self.config.drop_path * index / max(1, self.config.num_hidden_layers - 1)
        if not rate:
            return None
        drawn = torch.rand(states.shape[0], 1, 1, device=states.device)
        return (drawn >= rate).to(states.dtype) / (1 - rate)
