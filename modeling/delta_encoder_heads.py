"""Heads of the Delta-Matryoshka encoder: masked LM, sequence and token classification."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import ModelOutput, can_return_tuple

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import DeltaBudget
from .frozen_corner import run_frozen
from .input_checks import (
    IGNORED_LABEL,
    require_label_range,
    require_row_labels,
    require_some_label,
    require_token_labels,
)
from .modeling_delta_encoder import DeltaEncoderModel, Exit
from .nested_layers import NestedLayerNorm, NestedLinear
from .sliceable_encoder import DeltaEncoderPreTrainedModel


@dataclass
class NestedMaskedLMOutput(ModelOutput):
    """What several budgets predict at the labelled positions.

    Attributes:
        budget_logits: one (labelled tokens, vocabulary) tensor per budget, in the order asked
            for; then, where asked for, those of the routed pass and of the same pass without any
            delta, and that of the upgrade.
        labels: (labelled tokens,) the labels at those positions.
        states: one (labelled tokens, n) tensor per entry of ``budget_logits``: the states after
            the final norm.
        taps: for each budget the (batch, tokens, n) states after the layers asked for.
        scores: (batch, tokens) of the preview network in the routed pass.
        chosen: (batch, tokens) tokens that got the delta in the routed pass.
    """

    budget_logits: tuple[Tensor, ...] | None = None
    labels: Tensor | None = None
    states: tuple[Tensor, ...] | None = None
    taps: tuple[tuple[Tensor, ...], ...] | None = None
    scores: Tensor | None = None
    chosen: Tensor | None = None


class PredictionHead(nn.Module):
    """``norm(act(dense(x)))`` on however many channels the input has."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.dense = NestedLinear(size, size, config.classifier_bias, role="residual")
        self.activation = ACT2FN[config.classifier_activation]
        self.norm = NestedLayerNorm(size, config.norm_eps, config.norm_bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., n) to (..., n)."""
        return self.norm(self.activation(self.dense(hidden_states, hidden_states.shape[-1])))


class DeltaEncoderForMaskedLM(DeltaEncoderPreTrainedModel):
    """The encoder with a masked-language-model head tied to the token embedding."""

    _tied_weights_keys = {"decoder.weight": "model.embeddings.token.weight"}  # noqa: RUF012

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__(config)
        self.model = DeltaEncoderModel(config)
        self.head = PredictionHead(config)
        self.decoder = NestedLinear(config.hidden_size, config.vocab_size, config.decoder_bias)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the decoder, whose weight is the token embedding."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: NestedLinear) -> None:
        """Replace the decoder."""
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        budget: DeltaBudget | str | None = None,
        budgets: tuple[DeltaBudget, ...] | None = None,
        tap_layers: tuple[tuple[int, ...], ...] | None = None,
        routed: tuple[DeltaBudget, float] | None = None,
        upgrade: tuple[DeltaBudget, DeltaBudget] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput | NestedMaskedLMOutput:
        """Predict tokens.

        Args:
            input_ids: see `DeltaEncoderModel.forward`, as for the next three.
            attention_mask: see there.
            position_ids: see there.
            inputs_embeds: see there.
            labels: (batch, tokens), -100 where nothing is predicted.
            budget: the budget of this call.
            budgets: several budgets in one call, for training; needs ``labels`` and returns a
                `NestedMaskedLMOutput` without a loss.
            tap_layers: with ``budgets``: for each the layers whose states to return.
            routed: with ``budgets``: two more passes of this budget, the first with its delta on
                this share of the tokens, as the preview network chooses them, the second with its
                delta on none.
            upgrade: with ``budgets``: one more pass of the first of these two, in which the
                second, contained in it, gets no gradient.
            num_items_in_batch: divide the summed loss by this instead of the labelled tokens here.
            **kwargs: passed on to the trunk.

        Returns:
            ``logits`` of shape (batch, tokens, vocabulary) without labels; with labels and
            ``sparse_prediction``, (labelled tokens, vocabulary): the head runs nowhere else.

        Raises:
            ValueError: for inputs or labels that do not fit, or if no position is labelled (with
                ``budgets`` the logits are then empty: a trainer may well meet such a batch inside
                a larger step).
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if budgets is not None:
            inputs.update(kwargs, tap_layers=tap_layers, routed=routed)
            return self._forward_budgets(budgets, labels, inputs, upgrade)
        outputs = self.model(**inputs, budget=budget, return_dict=True, **kwargs)
        hidden_states = outputs.last_hidden_state
        if labels is not None:
            require_token_labels(labels, hidden_states.shape[:2])
        if labels is not None and self.config.sparse_prediction:
            where = labelled_positions(labels)
            hidden_states = hidden_states.flatten(0, 1).index_select(0, where)
            labels = labels.flatten().index_select(0, where)
        logits = self.decoder(self.head(hidden_states))
        loss = None
        if labels is not None:
            loss = masked_lm_loss(logits, labels, num_items_in_batch)
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _forward_budgets(
        self,
        budgets: tuple[DeltaBudget, ...],
        labels: Tensor | None,
        inputs: dict[str, Any],
        upgrade: tuple[DeltaBudget, DeltaBudget] | None,
    ) -> NestedMaskedLMOutput:
        if labels is None:
            raise ValueError("budgets= needs labels: the head runs on labelled positions only")
        where = labelled_positions(labels)
        targets = labels.flatten().index_select(0, where)
        # Here, before the trunk is queued, the device has nothing to finish first.
        require_label_range(targets, self.config.vocab_size)
        references = () if upgrade is None else upgrade[1:]
        exits = self.model.exits(budgets, **inputs, references=references)
        require_token_labels(labels, exits[0].states.shape[:2])
        states, logits = self._predict(exits, where)
        if upgrade is not None:
            above, below = self._upgrade(*upgrade, labels, inputs)
            states, logits = (*states, above), (*logits, below)
        routed = exits[len(budgets)] if len(exits) > len(budgets) else exits[0]
        return NestedMaskedLMOutput(
            budget_logits=logits,
            labels=targets,
            states=states,
            taps=tuple(found.taps for found in exits[: len(budgets)]),
            scores=routed.scores,
            chosen=routed.chosen,
        )

    def _predict(
        self, exits: list[Exit], where: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return normalised states and logits of every exit at the positions ``where``."""
        states = tuple(
            self.model.finish(
                found.states.flatten(0, 1).index_select(0, where),
                found.norm.at(where),
            )
            for found in exits
        )
        return states, tuple(self.decoder(self.head(state)) for state in states)

    def _upgrade(
        self, larger: DeltaBudget, smaller: DeltaBudget, labels: Tensor, inputs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Run ``larger`` once more, no gradient reaching what ``smaller`` consists of."""
        if not smaller < larger:
            raise ValueError(f"an upgrade goes from a smaller budget, not {smaller} to {larger}")
        if any(layer.gradient_checkpointing for layer in self.model.layers):
            raise ValueError(
                "an upgrade pass cannot recompute activations: they would be recomputed from "
                "weights that let gradients through; switch gradient_checkpointing off"
            )
        plain = {**inputs, "tap_layers": None, "routed": None}
        output = run_frozen(
            self, smaller, **plain, labels=labels, budgets=(larger,), return_dict=True
        )
        return output.states[0], output.budget_logits[0]


class DeltaEncoderForSequenceClassification(DeltaEncoderPreTrainedModel):
    """The encoder with mean or CLS pooling and a classifier over the row."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__(config)
        self.model = DeltaEncoderModel(config)
        self.head = PredictionHead(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = NestedLinear(
            config.hidden_size, config.num_labels or 2, True, role="classifier"
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        budget: DeltaBudget | str | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify each row; ``labels`` is (batch,), or (batch, num_labels) for several targets."""
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            budget=budget,
            return_dict=True,
            **kwargs,
        )
        pooled = pool(outputs.last_hidden_state, attention_mask, self.config.classifier_pooling)
        logits = self.classifier(self.dropout(self.head(pooled)))
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config)
            if num_items_in_batch is not None:
                # The trainer counts label entries over all accumulated batches.
                loss = loss * labels.numel() / num_items_in_batch
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class DeltaEncoderForTokenClassification(DeltaEncoderPreTrainedModel):
    """The encoder with a classifier over every token."""

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__(config)
        self.model = DeltaEncoderModel(config)
        self.head = PredictionHead(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = NestedLinear(
            config.hidden_size, config.num_labels or 2, True, role="classifier"
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        budget: DeltaBudget | str | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Classify each token; ``labels`` is (batch, tokens) with -100 where there is none."""
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            budget=budget,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(self.head(outputs.last_hidden_state)))
        loss = None
        if labels is not None:
            require_token_labels(labels, logits.shape[:2])
            loss = masked_lm_loss(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def labelled_positions(labels: Tensor) -> Tensor:
    """Return the flat indices of the positions whose label is not -100."""
    return (labels.flatten() != IGNORED_LABEL).nonzero().flatten()


def masked_lm_loss(
    logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy over labelled positions: mean, or sum divided by ``num_items``.

    Raises:
        ValueError: for a label out of range, or if no position is labelled.
    """
    flat, targets = logits.flatten(0, -2).float(), labels.flatten()
    require_some_label(targets, flat.shape[-1])
    if num_items is None:
        return F.cross_entropy(flat, targets, ignore_index=IGNORED_LABEL)
    summed = F.cross_entropy(flat, targets, ignore_index=IGNORED_LABEL, reduction="sum")
    return summed / num_items


def pool(hidden_states: Tensor, attention_mask: Tensor | None, mode: str) -> Tensor:
    """Reduce (batch, tokens, n) to (batch, n): the first token, or the mean over real tokens."""
    if mode == "cls":
        return hidden_states[:, 0]
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    real = (attention_mask > 0).unsqueeze(-1).to(hidden_states.dtype)
    return (hidden_states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def classification_loss(logits: Tensor, labels: Tensor, config: DeltaEncoderConfig) -> Tensor:
    """Cross-entropy, mean squared error (one label) or binary cross-entropy (several targets)."""
    kind = config.problem_type
    if kind is None:
        if config.num_labels == 1:
            kind = "regression"
        else:
            several = labels.is_floating_point()
            kind = "multi_label_classification" if several else "single_label_classification"
    require_row_labels(labels, logits, kind)
    if kind == "regression":
        predicted = logits.squeeze(-1)
        return F.mse_loss(predicted, labels.to(logits.dtype).view(predicted.shape))
    if kind == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)
