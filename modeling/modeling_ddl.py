"""Deep Delta Learning decoder: every sublayer rewrites the residual state instead of adding to it.

A block reads a vector from the state, runs attention on its norm, and rewrites the state along the
direction that attention gives; then the same with a gated MLP. With a vector state (d_v = 1) the
state is what a sublayer reads. ``set_budget`` runs fewer value channels or layers, ``slice`` cuts
them out, and both compute the same function.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_ddl import DdlConfig
from ..configuration.ddl_budget import DdlBudget
from .carried_state import CarriedState
from .ddl_cache_slots import LAST_SLOT, embedding_slot, fill_unused_slots
from .ddl_layer import DdlLayer, read_state, state_read
from .ddl_output import DdlOutput, refuse_beside_budgets
from .ddl_sublayers import RmsNorm
from .delta_gates import Update
from .delta_residual import StateTape
from .input_checks import is_traced, require_ids, require_whole_rows
from .rotary_embedding import rotary_tables
from .sliceable_ddl import DdlPreTrainedModel
from .state_reading import ConvHistory, EmbeddingSpread, channels_of, stacked, state_of


class PassInputs(NamedTuple):
    """What every layer of a pass is given, whatever its budget.

    Attributes:
        embeds: (batch, tokens, d).
        tables: cosine and sine of the positions.
        mask: as the attention function wants it.
        is_real: (batch, tokens) 0 at padding where a convolution runs, else None.
        cache: or None.
    """

    embeds: Tensor
    tables: tuple[Tensor, Tensor]
    mask: Any
    is_real: Tensor | None
    cache: Any


class DdlModel(DdlPreTrainedModel):
    """The trunk: embedding, blocks, last read and final norm."""

    def __init__(self, config: DdlConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.spread = (
            EmbeddingSpread(config.d_value, config.hidden_size, config.conv_kernel)
            if config.embed_conv
            else None
        )
        self.layers = nn.ModuleList(
            DdlLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.last_read = state_read(config)
        self.final_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the token embedding."""
        self.embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        budget: DdlBudget | str | None = None,
        notes: list[Update] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run a batch.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, seen), 0 for padding, or the masks that `generate` prepares.
            position_ids: (batch, tokens); None counts on from what the cache has seen.
            past_key_values: cache.
            inputs_embeds: (batch, tokens, d) instead of ``input_ids``.
            use_cache: make a cache where none is given; None asks the configuration, never in
                training.
            budget: overrides ``set_budget`` for this call.
            notes: receives every update, two a layer, for diagnostics.
            output_hidden_states: also return the state before each block, (batch, tokens, v, d).
            output_attentions: also return attention weights (eager attention only).
            **kwargs: passed on to the attention function.

        Returns:
            ``last_hidden_state`` of shape (batch, tokens, d), after the final norm.

        Raises:
            ValueError: unless exactly one of ``input_ids`` and ``inputs_embeds`` is given, and
                for packed documents or a 4-D mask where a convolution would mix what they keep
                apart.
        """
        chosen = self.active_budget if budget is None else self._checked(budget)
        chosen = chosen or DdlBudget.full(self.config)
        if use_cache is None:
            # A cache is no output that traced code could have.
            use_cache = self.config.use_cache and not self.training and not is_traced()
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        inputs = self._inputs(
            input_ids, attention_mask, position_ids, inputs_embeds, past_key_values
        )
        collected: list[Tensor] | None = [] if output_hidden_states else None
        attentions: list[Any] | None = [] if output_attentions else None
        found = self._run(
            inputs,
            chosen.value_size,
            {chosen.depth},
            notes=notes,
            collected=collected,
            attentions=attentions,
            **kwargs,
        )
        hidden = found[chosen.depth]
        if past_key_values is not None and self.config.conv_slots:
            fill_unused_slots(self.config, past_key_values, chosen.depth, inputs.embeds)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=None if collected is None else (*collected, hidden),
            attentions=None if attentions is None else tuple(attentions),
        )

    def exits(
        self,
        budgets: Sequence[DdlBudget | str],
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        notes: list[Update] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """Run several budgets; those of one width share a pass up to the deepest of them.

        Args:
            budgets: one or more.
            input_ids: see `forward`, as for the next three.
            attention_mask: see there.
            position_ids: see there.
            inputs_embeds: see there.
            notes: receives the updates of the first budget.
            **kwargs: passed on to the attention function.

        Returns:
            One (batch, tokens, d) per budget in the order given, after the final norm.

        Raises:
            ValueError: if there is no budget, or see `forward`.
        """
        chosen = [self._checked(budget) for budget in budgets]
        if not chosen:
            raise ValueError("budgets [] is empty; name at least one budget, or give none at all")
        depths: dict[int, set[int]] = {}
        for budget in chosen:
            depths.setdefault(budget.trunk, set()).add(budget.depth)
        inputs = self._inputs(input_ids, attention_mask, position_ids, inputs_embeds)
        found = {}
        for values, wanted in depths.items():
            noted = notes if values == chosen[0].trunk else None
            found[values] = self._run(
                inputs, values, wanted, notes=noted, noted_depth=chosen[0].depth, **kwargs
            )
        return tuple(found[budget.trunk][budget.depth] for budget in chosen)

    def _inputs(
        self,
        input_ids: Tensor | None,
        attention_mask: Any,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        cache: Any = None,
    ) -> PassInputs:
        """Return what a pass needs, whatever its budget."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds = inputs_embeds
        if input_ids is not None:
            require_ids(input_ids, self.embeddings.weight.shape[0])
            embeds = self.embeddings(input_ids)
        assert embeds is not None
        if self.config.conv_slots and not isinstance(attention_mask, dict):
            # Positions tell attention about documents only beside neither a mask nor a cache.
            packed = position_ids if attention_mask is None and cache is None else None
            require_whole_rows(attention_mask, packed)
        seen = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(embeds.shape[1], device=embeds.device)[None] + seen
        mask, is_real = self._masks(attention_mask, embeds, cache, position_ids)
        tables = rotary_tables(position_ids, self.config.head_dim, self.config.rope_theta)
        return PassInputs(embeds, tables, mask, is_real, cache)

    def _run(
        self,
        inputs: PassInputs,
        values: int,
        depths: set[int],
        notes: list[Update] | None = None,
        noted_depth: int | None = None,
        collected: list[Tensor] | None = None,
        attentions: list[Any] | None = None,
        **kwargs: Any,
    ) -> dict[int, Tensor]:
        """Run the layers up to the deepest of ``depths`` once, and leave at each of them.

        An exit is read right after its layer: a tape holds the state of that moment only.
        """
        conv_cache = inputs.cache if self.config.conv_slots else None
        start = ConvHistory(conv_cache, 0, embedding_slot(self.config), inputs.is_real)
        first: Any = self.layers[0]
        state: Any
        tape = carried = None
        # The reads of a token convolution keep columns of the whole state in a cache.
        keeps_columns = conv_cache is not None and self.config.compression == "token"
        if notes is None and not keeps_columns and first.defers():
            state = channels_of(self.spread, inputs.embeds, values, start)
            # A tape is Python, which a compiler does not see; it sees where values go.
            if self._rebuilds() and first.read is not None:
                carried = CarriedState(state, max(depths))
        else:
            state = state_of(self.spread, inputs.embeds, values, start)
            if self._rebuilds() and not is_traced():
                tape = self._new_tape(state)
        first_value: Tensor | None = None
        found: dict[int, Tensor] = {}
        for depth, layer in enumerate(self.layers[: max(depths)], start=1):
            if collected is not None:
                collected.append(stacked(state))
            state, weights, first_value = layer(
                state,
                inputs.tables,
                inputs.mask,
                first_value,
                past_key_values=inputs.cache,
                is_real=inputs.is_real,
                tape=tape,
                notes=notes if noted_depth is None or depth <= noted_depth else None,
                carried=carried,
                **kwargs,
            )
            if attentions is not None:
                attentions.append(weights)
            if depth in depths:
                history = ConvHistory(conv_cache, depth - 1, LAST_SLOT, inputs.is_real)
                found[depth] = self.final_norm(read_state(self.last_read, state, history, tape))
        return found

    def _rebuilds(self) -> bool:
        """Whether this pass keeps one state and rebuilds the others backwards."""
        if not (self.config.rebuild_state and self.training and torch.is_grad_enabled()):
            return False
        if self.layers[0].gradient_checkpointing:
            raise ValueError(
                "rebuild_state and gradient checkpointing both save memory and exclude each "
                "other; switch one of them off"
            )
        return True

    def _new_tape(self, state: Tensor) -> StateTape:
        """Return the tape of a pass whose states are rebuilt, which begins at ``state``."""
        tape = StateTape()
        tape.state = state.detach()
        return tape

    def _masks(
        self, given: Any, embeds: Tensor, cache: Any, position_ids: Tensor
    ) -> tuple[Any, Tensor | None]:
        """Return the attention mask, and (batch, tokens) 0 at padding where a convolution runs."""
        if isinstance(given, dict):
            return given["full_attention"], given.get("linear_attention")
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=given,
            past_key_values=cache,
            position_ids=position_ids,
        )
        is_real = None
        if self.config.conv_slots and given is not None:
            is_real = given[:, -embeds.shape[1] :]
        return mask, is_real


class DdlForCausalLM(DdlPreTrainedModel, GenerationMixin):
    """The decoder with a language-model head tied to the token embedding."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: DdlConfig) -> None:
        super().__init__(config)
        self.model = DdlModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the head, whose weight is the token embedding."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        budgets: Sequence[DdlBudget | str] | None = None,
        **kwargs: Any,
    ) -> DdlOutput:
        """Predict the next token at every position.

        Args:
            input_ids: see `DdlModel.forward`, as for the next four.
            attention_mask: see there.
            position_ids: see there.
            past_key_values: see there.
            inputs_embeds: see there.
            labels: (batch, tokens), the tokens themselves; they are shifted here. -100 is left out.
            use_cache: see there.
            logits_to_keep: last positions to predict at, or their indices; 0 predicts at all.
            budgets: run all of these, see `DdlModel.exits`; without a cache. ``logits`` and the
                loss are those of the first.
            **kwargs: ``budget`` and ``notes`` of the trunk, and what the attention takes.

        Returns:
            ``logits`` (batch, kept tokens, vocabulary) and, with labels, the mean cross-entropy.

        Raises:
            ValueError: if ``budgets`` comes with a cache or with what describes one budget.
        """
        loss_kwargs = {name: kwargs.pop(name) for name in ("num_items_in_batch",) if name in kwargs}
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            **kwargs,
        }
        if budgets is None:
            outputs = self.model(
                past_key_values=past_key_values, use_cache=use_cache, return_dict=True, **inputs
            )
            states = (outputs.last_hidden_state,)
        else:
            refuse_beside_budgets(past_key_values=past_key_values, use_cache=use_cache, **kwargs)
            outputs = BaseModelOutputWithPast()
            states = self.model.exits(budgets, **inputs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = tuple(self.lm_head(hidden[:, kept]) for hidden in states)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits[0], labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs
            )
        return DdlOutput(
            loss=loss,
            logits=logits[0],
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            budget_logits=None if budgets is None else logits,
        )
