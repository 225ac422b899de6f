"""The wasteful elastic step, for comparison: compute everything, then throw parts away.

It uses the weights of a `DeltaEncoderForMaskedLM` and computes the same function at every budget,
but as an implementation without slicing would: each product at full size and then cut, one
forward pass per budget, a dense head over all tokens, and a separate teacher pass whose logits
over the whole vocabulary are compared at all tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...configuration.configuration_delta_encoder import LOCAL
from ...configuration.delta_budget import DeltaBudget
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.eager_attention import eager_attention
from ...modeling.encoder_layer import EncoderLayer
from ...modeling.input_checks import IGNORED_LABEL
from ...modeling.rotary_embedding import rotary_tables, rotate
from .training_steps import Batch, precision


def dense_then_mask_logits(
    model: DeltaEncoderForMaskedLM, input_ids: Tensor, budget: DeltaBudget
) -> Tensor:
    """Return logits (batch, tokens, vocabulary) at a budget, every product at full size.

    Args:
        model: a masked LM with the full hidden width at every budget; rows without padding.
        input_ids: (batch, tokens).
        budget: width, heads and depth.
    """
    shape = budget.shape(model.config)
    trunk = model.model
    config: Any = model.config
    states = trunk.embeddings(input_ids, None, config.hidden_size)
    position_ids = torch.arange(input_ids.shape[1])[None]
    distance = (position_ids[0][:, None] - position_ids[0][None, :]).abs()
    near = (distance <= config.local_attention // 2)[None, None]
    for layer, channels in zip(trunk.layers, shape.intermediate, strict=False):
        assert isinstance(layer, EncoderLayer)
        is_local = layer.attention_type == LOCAL
        theta = config.local_rope_theta if is_local else config.global_rope_theta
        rotary = rotary_tables(position_ids, config.head_dim, theta)
        mask = near if is_local else None
        states = states + _attention(layer, states, rotary, mask, shape.heads)
        states = states + _gated_mlp(layer, states, channels)
    hidden = model.head(trunk.final_norm(states))
    logits: Tensor = model.decoder(hidden)
    return logits


def _attention(
    layer: EncoderLayer,
    states: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask: Tensor | None,
    heads: int,
) -> Tensor:
    attention = layer.attention
    batch, tokens, _ = states.shape
    # All heads are projected, then the first ones are kept.
    projected = attention.query_key_value(layer.attention_norm(states))
    kept = projected.view(batch, tokens, -1, 3, attention.head_dim)[:, :, :heads]
    query, key, value = kept.transpose(1, 2).unbind(dim=3)
    query, key = rotate(query, *rotary), rotate(key, *rotary)
    if attention.config._attn_implementation == "eager":
        scaling = query.shape[-1] ** -0.5
        mixed = eager_attention(attention, query, key, value, mask, scaling)[0]
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    output: Tensor = attention.output(mixed.reshape(batch, tokens, -1), states.shape[-1])
    return output


def _gated_mlp(layer: EncoderLayer, states: Tensor, channels: int) -> Tensor:
    normed = layer.mlp_norm(states)
    mlp = layer.mlp
    # All channels are computed, then the first ones are kept.
    inner = mlp.activation(mlp.up(normed)) * mlp.gate(normed)
    output: Tensor = mlp.down(inner[..., :channels], states.shape[-1])
    return output


def naive_elastic_step(
    model: DeltaEncoderForMaskedLM,
    batch: Batch,
    budgets: Sequence[DeltaBudget],
    bf16: bool,
    temperature: float = 2.0,
) -> float:
    """Train several budgets the wasteful way: one forward and backward pass each.

    Args:
        model: a masked LM.
        batch: inputs and labels, without padding.
        budgets: the largest first; it is the teacher.
        bf16: compute in bfloat16.
        temperature: softens both sides of the distillation.

    Returns:
        The mean masked-LM loss of the budgets.
    """
    model.zero_grad(set_to_none=True)
    input_ids, labels = batch["input_ids"], batch["labels"]
    with torch.no_grad(), precision(bf16):
        teacher = dense_then_mask_logits(model, input_ids, budgets[0]).float()
    target = F.softmax(teacher / temperature, dim=-1)
    losses = []
    for index, budget in enumerate(budgets):
        with precision(bf16):
            logits = dense_then_mask_logits(model, input_ids, budget).float()
            loss = F.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL
            )
            total = loss / len(budgets)
            if index > 0:
                student = F.log_softmax(logits / temperature, dim=-1)
                divergence = F.kl_div(student, target, reduction="none").sum(dim=-1).mean()
                total = total + temperature**2 * divergence / (len(budgets) - 1)
        torch.autograd.backward(total)
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)
