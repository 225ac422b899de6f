"""Deep Delta Learning decoder: every sublayer rewrites the residual state instead of adding to it.

A block reads a vector from the state, runs attention on its norm, and rewrites the state along the
direction that attention gives; then the same with a gated MLP. With a vector state (d_v = 1) the
state is what a sublayer reads. ``set_budget`` runs fewer value channels or layers, ``slice`` cuts
them out, and both compute the same function.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_ddl import DdlConfig
from ..configuration.ddl_budget import DdlBudget
from .budgeted_model import BudgetedModel
from .ddl_layer import EMBEDDING_SLOT, LAST_SLOT, DdlLayer, read_state, state_read
from .ddl_sublayers import RmsNorm
from .delta_gates import BetaLogit, Update
from .delta_residual import StateTape
from .input_checks import is_traced, require_ids
from .rotary_embedding import rotary_tables
from .state_reading import ChannelRead, ConvHistory, EmbeddingSpread, TokenRead, fill_slot


class DdlPreTrainedModel(BudgetedModel):
    """What all Deep Delta Learning models share: loading, initial weights, parts of a slice."""

    config_class = DdlConfig
    config: Any
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["DdlLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (BetaLogit, TokenRead, ChannelRead, EmbeddingSpread)):
            module.reset()
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RmsNorm):
            nn.init.ones_(module.weight)

    def sliced_config(self, budget: DdlBudget) -> DdlConfig:
        """Return the configuration of the slice at ``budget``."""
        values = {
            **self.config.to_dict(),
            "d_value": budget.value_size,
            "num_hidden_layers": budget.depth,
            "budgets": [str(budget)],
            "sliced_from": str(budget),
            "architectures": None,
        }
        config = type(self.config)(**values)
        config._attn_implementation = self.config._attn_implementation
        return config

    def sliced_weights(self, budget: DdlBudget) -> dict[str, Tensor]:
        """Return all weights, those of reads scaled as the budget scales them."""
        scale = self.config.d_value / budget.value_size
        return {
            name: tensor * scale if name.endswith("read.weight") else tensor
            for name, tensor in self.state_dict().items()
        }


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
            output_hidden_states: also return what the first sublayer of each block reads.
            output_attentions: also return attention weights (eager attention only).
            **kwargs: passed on to the attention function.

        Returns:
            ``last_hidden_state`` of shape (batch, tokens, d), after the final norm.

        Raises:
            ValueError: unless exactly one of ``input_ids`` and ``inputs_embeds`` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        chosen = self.active_budget if budget is None else self._checked(budget)
        chosen = chosen or DdlBudget.full(self.config)
        embeds = inputs_embeds
        if input_ids is not None:
            require_ids(input_ids, self.embeddings.weight.shape[0])
            embeds = self.embeddings(input_ids)
        assert embeds is not None
        if use_cache is None:
            # A cache is no output that traced code could have.
            use_cache = self.config.use_cache and not self.training and not is_traced()
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(embeds.shape[1], device=embeds.device)[None] + seen
        mask, is_real = self._masks(attention_mask, embeds, past_key_values, position_ids)
        tables = rotary_tables(position_ids, self.config.head_dim, self.config.rope_theta)
        conv_cache = past_key_values if self.config.conv_slots else None
        state = self._first_state(embeds, chosen, conv_cache, is_real)
        tape = None
        if self.config.rebuild_state and self.training and torch.is_grad_enabled():
            if self.layers[0].gradient_checkpointing:
                raise ValueError(
                    "rebuild_state and gradient checkpointing both save memory and exclude each "
                    "other; switch one of them off"
                )
            tape = StateTape()
            tape.state = state.detach()
        collected: list[Tensor] = []
        attentions: list[Any] = []
        for layer in self.layers[: chosen.depth]:
            if output_hidden_states:
                collected.append(state)
            state, weights = layer(
                state,
                tables,
                mask,
                past_key_values=past_key_values,
                is_real=is_real,
                tape=tape,
                notes=notes,
                **kwargs,
            )
            if output_attentions:
                attentions.append(weights)
        last = ConvHistory(conv_cache, chosen.depth - 1, LAST_SLOT, is_real)
        hidden = self.final_norm(read_state(self.last_read, state, last, tape))
        if conv_cache is not None:
            self._fill_slots(conv_cache, chosen.depth, embeds)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=(*collected, hidden) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

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
        if self.config.conv_slots and given is not None and given.dim() == 2:
            is_real = given[:, -embeds.shape[1] :]
        return mask, is_real

    def _first_state(
        self, embeds: Tensor, budget: DdlBudget, cache: Any, is_real: Tensor | None
    ) -> Tensor:
        """Return (batch, tokens, v, d): the embedding in every value channel, or spread."""
        if self.spread is None:
            return embeds.unsqueeze(-2).expand(-1, -1, budget.value_size, -1)
        slot = EMBEDDING_SLOT if self.config.compression == "token" else 0
        state: Tensor = self.spread(
            embeds, budget.value_size, ConvHistory(cache, 0, slot, is_real)
        )
        return state

    def _fill_slots(self, cache: Any, depth: int, embeds: Tensor) -> None:
        """Fill the convolution slots that layers declare alike and do not all use."""
        is_token = self.config.compression == "token"
        for layer in range(depth):
            unused = []
            if is_token and layer != depth - 1:
                unused.append(LAST_SLOT)
            if self.spread is not None and layer != 0:
                unused.append(EMBEDDING_SLOT if is_token else 0)
            for slot in unused:
                fill_slot(cache, layer, slot, embeds)


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
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
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
            **kwargs: ``budget`` and ``notes`` of the trunk, and what the attention takes.

        Returns:
            ``logits`` (batch, kept tokens, vocabulary) and, with labels, the mean cross-entropy.
        """
        loss_kwargs = {
            name: kwargs.pop(name) for name in ("num_items_in_batch",) if name in kwargs
        }
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits: Tensor = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
