"""Slow references of a routed pass: everything for all tokens, then selected by gates."""

import math
from typing import Any

import torch
from nestling.configuration import DeltaBudget
from reference_delta_encoder import (
    Weights,
    attention,
    cut_of,
    gated_mlp,
    gelu,
    layer_norm,
)
from torch import Tensor

UNEVEN = {"intermediate_size": [48, 40, 30, 48], "base_intermediate_size": [24, 40, 10, 1]}


def reference_row(
    model: Any,
    budget: DeltaBudget,
    ids: Tensor,
    documents: list[int],
    choice: Any,
    first_layer: int | None = None,
) -> Tensor:
    """States (tokens, n) after the final norm of one row.

    Args:
        model: a dense trunk.
        budget: what runs.
        ids: (tokens,).
        documents: one number per token.
        choice: from the states (tokens, n) before the first routed layer to gates (tokens,); where
            it is fixed, from ``first_layer`` 0 on, the embeddings follow it as well.
        first_layer: the layers before this one run whole; None for that of the configuration.
    """
    config, weights = model.config, dict(model.named_parameters())
    cut = cut_of(budget, config)
    base_heads = min(cut.heads, config.base_attention_heads)
    x = weights["embeddings.token.weight"][ids][:, : cut.hidden]
    gates = choice(x) if first_layer == 0 else torch.ones(len(ids))
    norms = reference_norms(model, budget)

    def normalise(name: str, x: Tensor) -> Tensor:
        gains = torch.where(gates[:, None] > 0, *norms[name]) if norms else torch.zeros(())
        plain = layer_norm(weights, name, x, config.norm_eps)
        return plain * (1 + gains[..., : cut.hidden] if norms else 1)

    x = normalise("embeddings.norm", x)
    for index, channels in enumerate(cut.channels):
        if index == (config.routing_layer if first_layer is None else first_layer):
            gates = choice(x)
        name, local = f"layers.{index}", index % config.global_attn_every_n_layers != 0

        def attend(heads: int, x: Tensor, name: str = name, local: bool = local) -> Tensor:
            few = cut._replace(heads=heads)
            return attention(weights, f"{name}.attention", x, few, documents, config, local)

        def mlp(channels: int, x: Tensor, name: str = name) -> Tensor:
            return gated_mlp(weights, f"{name}.mlp", x, channels, cut.hidden)

        normed = x
        if index > 0:
            normed = normalise(f"{name}.attention_norm", x)
        everywhere = attend(base_heads, normed)
        x = x + everywhere + gates[:, None] * (attend(cut.heads, normed) - everywhere)
        normed = normalise(f"{name}.mlp_norm", x)
        everywhere = mlp(min(channels, config.base_intermediate_sizes()[index]), normed)
        x = x + everywhere + gates[:, None] * (mlp(channels, normed) - everywhere)
    return normalise("final_norm", x)


def reference_norms(model: Any, budget: DeltaBudget) -> dict[str, tuple[Tensor, Tensor]]:
    """The change of the gain of each norm, at the budget and at its base slice; often none."""
    config = model.config
    if not config.conditioned_norms:
        return {}
    layers, whole = config.num_hidden_layers, budget.shape(config)
    base = DeltaBudget(
        min(budget.width, config.base_intermediate_size / config.intermediate_size),
        min(whole.heads, config.base_attention_heads),
        budget.depth,
        budget.hidden,
    )
    names = [
        "embeddings.norm",
        *(f"layers.{index}.attention_norm" for index in range(1, layers)),
        *(f"layers.{index}.mlp_norm" for index in range(layers)),
        "final_norm",
    ]
    both = [model.conditioner(each, torch.device("cpu"))[:, 0] for each in (budget, base)]
    if config.exit_affine:
        own = model.exit_affine.change[budget.depth - 1, 0]
        both = [torch.cat((changes[:-1], changes[-1:] + own)) for changes in both]
    return dict(zip(names, zip(*both, strict=True), strict=True))


def reference_scores(weights: Weights, x: Tensor, eps: float) -> Tensor:
    """The preview network, one token after the other, without a gradient to the states."""
    scores = []
    for state in x.detach():
        centred = (state - state.mean()) / torch.sqrt(state.var(unbiased=False) + eps)
        inner = weights["preview.inner.weight"][:, : len(state)] @ centred
        inner = gelu(inner + weights["preview.inner.bias"])
        scores.append(weights["preview.score.weight"][0] @ inner + weights["preview.score.bias"][0])
    return torch.stack(scores)


def reference_gates(model: Any, documents: list[int], ratio: float, is_training: bool) -> Any:
    """Gates of the ``ceil(ratio n)`` best of the n real tokens of a row."""
    weights = dict(model.named_parameters())

    def choice(x: Tensor) -> Tensor:
        scores = reference_scores(weights, x, model.config.norm_eps)
        real = [token for token, document in enumerate(documents) if document > 0]
        best = sorted(real, key=lambda token: -scores[token].item())
        gates = [torch.zeros(()) for _ in documents]
        for token in best[: math.ceil(round(ratio * len(real), 6))]:
            soft = torch.sigmoid(scores[token]) if is_training else torch.zeros(())
            gates[token] = 1.0 + soft - soft.detach()
        return torch.stack(gates)

    return choice


def some_tokens() -> Tensor:
    """A choice (3, 12): scattered tokens, pads among them; none; all."""
    chosen = torch.zeros(3, 12, dtype=torch.bool)
    chosen[0, [0, 3, 4, 10]] = True
    chosen[2] = True
    chosen[2, [1, 6]] = False
    return chosen
