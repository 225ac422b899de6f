"""Order heads, MLP channels and hidden channels by importance without changing the function.

Prefix slices keep what comes first, so a checkpoint trained without nesting should first be
sorted. The score of a unit is the first-order effect of switching it off, ``|dL / dm|`` for a
mask m = 1 on its output, averaged over sequences (Michel et al., arXiv 1905.10650; DynaBERT,
arXiv 2004.04037). Sorting permutes whole units: heads as blocks, because rotary positions pair
channels inside a head, and both halves of the gated MLP together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration.delta_budget import DeltaBudget
from .delta_encoder_heads import DeltaEncoderForMaskedLM
from .nested_layers import NestedLayerNorm, NestedLinear
from .sliceable_encoder import DeltaEncoderPreTrainedModel


@dataclass
class Importance:
    """Scores, higher for units that matter more.

    Attributes:
        heads: one (heads,) tensor per layer.
        channels: one (intermediate,) tensor per layer.
        hidden: (hidden,) shared by all layers.
    """

    heads: list[Tensor]
    channels: list[Tensor]
    hidden: Tensor


def measure_importance(
    model: DeltaEncoderForMaskedLM, batches: Iterable[Mapping[str, Tensor]]
) -> Importance:
    """Score every head, MLP channel and hidden channel on labelled batches.

    Args:
        model: a masked-LM encoder; its weights and gradients are left as they are.
        batches: keyword arguments of the model, with ``labels``.

    Raises:
        ValueError: if there is no batch.
    """
    config = model.config
    scores = Importance(
        heads=[torch.zeros(config.num_attention_heads) for _ in model.model.layers],
        channels=[torch.zeros(size) for size in config.intermediate_sizes()],
        hidden=torch.zeros(config.hidden_size),
    )
    was_training = model.training
    model.eval()
    sequences = 0
    for batch in batches:
        sequences += _accumulate(model, dict(batch), scores)
    model.train(was_training)
    if not sequences:
        raise ValueError("importance needs at least one batch; the data set is empty")
    return scores


def _accumulate(
    model: DeltaEncoderForMaskedLM, batch: dict[str, Tensor], scores: Importance
) -> int:
    """Add one batch's ``|sum_t x dL/dx|`` per sequence and unit."""
    seen: dict[nn.Module, Tensor] = {}

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[module] = args[0]

    def keep_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = output

    trunk = model.model
    handles = [trunk.final_norm.register_forward_hook(keep_output)]
    for layer in trunk.layers:
        handles.append(layer.attention.output.register_forward_pre_hook(keep_input))
        handles.append(layer.mlp.down.register_forward_pre_hook(keep_input))
        handles.append(layer.mlp_norm.register_forward_hook(keep_output))
        handles.append(layer.attention.query_key_value.register_forward_pre_hook(keep_input))
    try:
        with torch.enable_grad():
            # The loss is a mean; times the rows, every sequence counts the same in any batch.
            full = DeltaBudget.full(model.config)
            loss = model(**batch, budget=full).loss * len(batch["labels"])
            modules = list(seen)
            gradients = torch.autograd.grad(loss, [seen[m] for m in modules])
    finally:
        for handle in handles:
            handle.remove()
    effects = {
        module: (seen[module].detach() * gradient).sum(dim=1).float().cpu()
        for module, gradient in zip(modules, gradients, strict=True)
    }
    hidden = effects[trunk.final_norm].clone()
    for index, layer in enumerate(trunk.layers):
        by_head = effects[layer.attention.output].unflatten(-1, (len(scores.heads[index]), -1))
        scores.heads[index] += by_head.sum(dim=-1).abs().sum(dim=0)
        scores.channels[index] += effects[layer.mlp.down].abs().sum(dim=0)
        hidden += effects[layer.mlp_norm] + effects[layer.attention.query_key_value]
    scores.hidden += hidden.abs().sum(dim=0)
    return len(hidden)


def reorder_by_importance(model: DeltaEncoderPreTrainedModel, scores: Importance) -> None:
    """Sort units in place, most important first; the model computes what it did before."""
    reorder_units(
        model,
        [heads.argsort(descending=True, stable=True) for heads in scores.heads],
        [channels.argsort(descending=True, stable=True) for channels in scores.channels],
        scores.hidden.argsort(descending=True, stable=True),
    )


@torch.no_grad()
def reorder_units(
    model: DeltaEncoderPreTrainedModel,
    heads: Sequence[Tensor],
    channels: Sequence[Tensor],
    hidden: Tensor,
) -> None:
    """Permute units in place; the model computes what it did before.

    Args:
        model: an encoder with any head.
        heads: one permutation per layer; unit ``heads[l][i]`` moves to place i.
        channels: the same for the MLP channels of each layer.
        hidden: one permutation of the hidden channels.

    Raises:
        ValueError: if the model has parts beside plain weights, whose units have no order of
            their own.
    """
    trunk: Any = model.base_model
    _require_plain(trunk)
    for layer, head_order, order in zip(trunk.layers, heads, channels, strict=True):
        head_dim = layer.attention.head_dim
        within = torch.arange(3 * head_dim)
        _permute(layer.attention.query_key_value, rows=_blocks(head_order, within))
        _permute(layer.attention.output, columns=_blocks(head_order, within[:head_dim]))
        _permute(layer.mlp.up, rows=order)
        _permute(layer.mlp.gate, rows=order)
        _permute(layer.mlp.down, columns=order)
    _permute_hidden(model, hidden)


def _require_plain(trunk: Any) -> None:
    settings = {
        f"delta_kind={trunk.config.delta_kind!r}": trunk.deltas,
        "conditioned_norms": trunk.conditioner,
        "exit_affine": trunk.exit_affine,
        "token_routing": trunk.preview,
    }
    present = [name for name, part in settings.items() if part is not None]
    if present:
        raise ValueError(
            f"a model with {', '.join(present)} cannot be reordered: those parts were trained for "
            "the present order; reorder the plain model first and add them afterwards"
        )


def _permute_hidden(model: DeltaEncoderPreTrainedModel, order: Tensor) -> None:
    trunk: Any = model.base_model
    embedding = trunk.embeddings.token.weight
    embedding.copy_(embedding[:, order])
    for name, module in model.named_modules():
        leaf = name.rsplit(".", 1)[-1]
        if isinstance(module, NestedLayerNorm):
            for vector in (module.weight, module.bias):
                if vector is not None:
                    vector.copy_(vector[order])
        elif not isinstance(module, NestedLinear):
            continue
        elif leaf in ("query_key_value", "up", "gate", "classifier"):
            _permute(module, columns=order)
        elif leaf in ("output", "down"):
            _permute(module, rows=order)
        elif leaf == "dense":
            _permute(module, rows=order, columns=order)
        elif leaf == "decoder" and module.weight is not embedding:
            _permute(module, columns=order)


def _permute(
    linear: NestedLinear, rows: Tensor | None = None, columns: Tensor | None = None
) -> None:
    if rows is not None:
        linear.weight.copy_(linear.weight[rows])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias[rows])
    if columns is not None:
        linear.weight.copy_(linear.weight[:, columns])


def _blocks(order: Tensor, within: Tensor) -> Tensor:
    """Indices that move whole blocks of ``len(within)`` rows into ``order``."""
    return (order[:, None] * len(within) + within).flatten()
