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
from .input_checks import (
    IGNORED_LABEL,
    require_label_range,
    require_row_labels,
    require_some_label,
    require_token_labels,
)
from .modeling_delta_encoder import DeltaEncoderModel, DeltaEncoderPreTrainedModel
from .nested_layers import NestedLayerNorm, NestedLinear


@dataclass
class NestedMaskedLMOutput(ModelOutput):
    """Logits of several budgets at the labelled positions.

    Attributes:
        budget_logits: one (labelled tokens, vocabulary) tensor per budget, in the order asked for.
        labels: (labelled tokens,) the labels at those positions.
    """

    budget_logits: tuple[Tensor, ...] | None = None
    labels: Tensor | None = None


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
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if budgets is not None:
            return self._forward_budgets(budgets, labels, {**inputs, **kwargs})
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
        self, budgets: tuple[DeltaBudget, ...], labels: Tensor | None, inputs: dict[str, Any]
    ) -> NestedMaskedLMOutput:
        if labels is None:
            raise ValueError("budgets= needs labels: the head runs on labelled positions only")
        where = labelled_positions(labels)
        targets = labels.flatten().index_select(0, where)
        # Here, before the trunk is queued, the device has nothing to finish first.
        require_label_range(targets, self.config.vocab_size)
        logits = []
        for states in self.model.exits(budgets, **inputs):
            require_token_labels(labels, states.shape[:2])
            gathered = states.flatten(0, 1).index_select(0, where)
            logits.append(self.decoder(self.head(self.model.final_norm(gathered))))
        return NestedMaskedLMOutput(budget_logits=tuple(logits), labels=targets)


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
