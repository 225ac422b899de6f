"""The nested encoder, spelled out: explicit loops, full matrices cut by index, no shared code.

Only names of weights are taken from the package. Every function handles ONE row of tokens, so
nothing is batched, masked or cached.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

Weights = dict[str, Tensor]


class Cut(NamedTuple):
    """The sizes that run: hidden channels, heads, and MLP channels of each kept layer."""

    hidden: int
    heads: int
    channels: list[int]


def cut_of(budget: Any, config: Any) -> Cut:
    """Resolve a budget by hand: the floor of the share, at least one channel."""
    sizes = config.intermediate_size
    sizes = [sizes] * config.num_hidden_layers if isinstance(sizes, int) else sizes
    widths = budget.width if isinstance(budget.width, tuple) else [budget.width] * budget.depth
    channels = [
        max(1, math.floor(round(width * 10**6) * sizes[layer] / 10**6))
        for layer, width in enumerate(widths)
    ]
    return Cut(budget.hidden or config.hidden_size, budget.heads, channels)


def linear(weights: Weights, name: str, rows: list[int], columns: list[int], x: Tensor) -> Tensor:
    """``x W^T + b`` on the listed rows and columns; x is (tokens, columns)."""
    matrix = weights[f"{name}.weight"][rows][:, columns]
    result = x @ matrix.T
    bias = weights.get(f"{name}.bias")
    return result if bias is None else result + bias[rows]


def layer_norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """Normalise each token over the channels it has."""
    size = x.shape[-1]
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    result = centred / torch.sqrt(variance + eps) * weights[f"{name}.weight"][:size]
    bias = weights.get(f"{name}.bias")
    return result if bias is None else result + bias[:size]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def rotate(x: Tensor, positions: list[int], theta: float) -> Tensor:
    """Turn channel i and channel i + p/2 by position * theta^(-2i/p); x is (tokens, p)."""
    half = x.shape[-1] // 2
    rows = []
    for token, position in enumerate(positions):
        first, second = [], []
        for i in range(half):
            angle = position * theta ** (-2.0 * i / x.shape[-1])
            a, b = x[token, i], x[token, i + half]
            first.append(a * math.cos(angle) - b * math.sin(angle))
            second.append(b * math.cos(angle) + a * math.sin(angle))
        rows.append(torch.stack(first + second))
    return torch.stack(rows)


def positions_of(documents: list[int]) -> list[int]:
    """Count from 0 inside each document."""
    positions: list[int] = []
    for index, document in enumerate(documents):
        new = index == 0 or documents[index - 1] != document
        positions.append(0 if new else positions[-1] + 1)
    return positions


def attention(
    weights: Weights, name: str, x: Tensor, cut: Cut, documents: list[int], config: Any, local: bool
) -> Tensor:
    """Softmax attention, one head after the other, one query after the other."""
    size, hidden = config.head_dim, list(range(cut.hidden))
    theta = config.local_rope_theta if local else config.global_rope_theta
    positions = positions_of(documents)
    mixed = []
    for head in range(cut.heads):
        start = head * 3 * size
        parts = [list(range(start + k * size, start + (k + 1) * size)) for k in range(3)]
        query, key, value = (
            linear(weights, f"{name}.query_key_value", rows, hidden, x) for rows in parts
        )
        query, key = rotate(query, positions, theta), rotate(key, positions, theta)
        rows = []
        for i in range(len(documents)):
            seen = [
                j
                for j in range(len(documents))
                if documents[j] == documents[i]
                and (not local or abs(i - j) <= config.local_attention // 2)
            ]
            scores = torch.stack([query[i] @ key[j] / math.sqrt(size) for j in seen])
            shares = torch.exp(scores - scores.max())
            rows.append((shares / shares.sum()) @ value[seen])
        mixed.append(torch.stack(rows))
    columns = list(range(cut.heads * size))
    return linear(weights, f"{name}.output", hidden, columns, torch.cat(mixed, dim=-1))


def gated_mlp(weights: Weights, name: str, x: Tensor, channels: int, hidden: int) -> Tensor:
    rows, columns = list(range(channels)), list(range(hidden))
    up = linear(weights, f"{name}.up", rows, columns, x)
    gate = linear(weights, f"{name}.gate", rows, columns, x)
    return linear(weights, f"{name}.down", columns, rows, gelu(up) * gate)


def encode_row(
    weights: Weights, config: Any, budget: Any, ids: Tensor, documents: list[int], prefix: str = ""
) -> Tensor:
    """Hidden states (tokens, n) of one row after the final norm.

    Args:
        weights: name -> full tensor.
        config: the configuration of the full model.
        budget: a `DeltaBudget`.
        ids: (tokens,) token ids.
        documents: one document number per token; tokens see their own document only.
        prefix: ``"model."`` for the weights of a headed model.
    """
    cut = cut_of(budget, config)
    x = weights[f"{prefix}embeddings.token.weight"][ids][:, : cut.hidden]
    x = layer_norm(weights, f"{prefix}embeddings.norm", x, config.norm_eps)
    for index, channels in enumerate(cut.channels):
        name = f"{prefix}layers.{index}"
        local = index % config.global_attn_every_n_layers != 0
        normed = x
        if index > 0:
            normed = layer_norm(weights, f"{name}.attention_norm", x, config.norm_eps)
        x = x + attention(weights, f"{name}.attention", normed, cut, documents, config, local)
        normed = layer_norm(weights, f"{name}.mlp_norm", x, config.norm_eps)
        x = x + gated_mlp(weights, f"{name}.mlp", normed, channels, cut.hidden)
    return layer_norm(weights, f"{prefix}final_norm", x, config.norm_eps)


def masked_lm_row(
    weights: Weights, config: Any, budget: Any, ids: Tensor, documents: list[int]
) -> Tensor:
    """Logits (tokens, vocabulary) of one row."""
    states = encode_row(weights, config, budget, ids, documents, prefix="model.")
    channels = list(range(states.shape[-1]))
    dense = gelu(linear(weights, "head.dense", channels, channels, states))
    normed = layer_norm(weights, "head.norm", dense, config.norm_eps)
    logits = normed @ weights["model.embeddings.token.weight"][:, channels].T
    bias = weights.get("decoder.bias")
    return logits if bias is None else logits + bias
