"""Match the units of a small encoder with units of a larger, independently trained one.

Two networks trained apart number their units differently. Before blocks of one can stand beside
blocks of the other, the larger one is permuted so that its leading units are those most like the
units of the smaller one. A permutation is all that is applied: it leaves the larger model's
function unchanged, and it is also the limit of the method. A unit of the small model need not have
a twin, and no permutation can undo a rotation or a change of sign.

Similar units are found from activations on text, or from the weights where there is no text; which
goes with which is then an assignment problem. Sources of the idea: neuron alignment (arXiv
1511.07543), OTFusion (arXiv 1910.05653), Git Re-Basin (arXiv 2209.04836).
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..configuration.delta_budget import DeltaBudget
from .delta_encoder_heads import DeltaEncoderForMaskedLM

TINY = 1e-12


class UnitOrder(NamedTuple):
    """Permutations for `reorder_units`: the unit named at place i moves to place i.

    Attributes:
        heads: one (heads,) tensor per layer of the larger model.
        channels: one (intermediate,) tensor per layer of the larger model.
        hidden: (hidden,) shared by all layers.
    """

    heads: list[Tensor]
    channels: list[Tensor]
    hidden: Tensor


class JointMoments:
    """Centred second moments of two sets of features over the same tokens, batch by batch.

    Batches are merged by their means (Chan, Golub and LeVeque, 1979): sums of raw products would
    lose the small variances of channels with a large mean.

    Args:
        first: number of features of the first set.
        second: number of features of the second set.
        device: where the features live.
    """

    def __init__(self, first: int, second: int, device: torch.device) -> None:
        self.count = 0
        self.means = torch.zeros(first, device=device), torch.zeros(second, device=device)
        self.squares = torch.zeros(first, device=device), torch.zeros(second, device=device)
        self.cross = torch.zeros(first, second, device=device)

    def add(self, first: Tensor, second: Tensor) -> None:
        """Add (tokens, first) and (tokens, second)."""
        count = len(first)
        if not count:
            return
        share = self.count * count / (self.count + count)
        centred, steps = [], []
        for index, features in enumerate((first.float(), second.float())):
            mean = features.mean(dim=0)
            step = mean - self.means[index]
            centred.append(features - mean)
            steps.append(step)
            self.squares[index].add_(centred[-1].square().sum(dim=0) + share * step.square())
            self.means[index].add_(step * count / (self.count + count))
        self.cross += centred[0].T @ centred[1] + share * torch.outer(*steps)
        self.count += count

    def correlation(self) -> Tensor:
        """Return (first, second) correlations; 0 for a feature that never changes."""
        scale = torch.outer(self.squares[0].sqrt(), self.squares[1].sqrt())
        return self.cross / scale.clamp(min=TINY)


def assign(similarity: Tensor) -> Tensor:
    """Give every row its own column so that the summed similarity is as large as possible.

    Shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987), ``O(rows^2 columns)``.

    Args:
        similarity: (rows, columns) with ``rows <= columns``.

    Returns:
        (rows,) the column of each row.

    Raises:
        ValueError: if there are more rows than columns, or a value is not finite.
    """
    rows, columns = similarity.shape
    if rows > columns:
        raise ValueError(f"{rows} rows cannot have a column each of {columns}; transpose")
    if not bool(similarity.isfinite().all()):
        raise ValueError("a similarity is not finite; check the weights for NaN")
    cost = -similarity.detach().double().cpu()
    row_price, column_price = cost.new_zeros(rows), cost.new_zeros(columns)
    row_of, column_of = [-1] * columns, [-1] * rows
    for row in range(rows):
        distance = torch.full((columns,), torch.inf, dtype=torch.double)
        remaining = distance.clone().zero_()  # inf where a column has been visited
        came_from = torch.full((columns,), -1)
        visited: list[int] = []
        current, lowest = row, 0.0
        while True:
            reached = cost[current] - column_price + (lowest - float(row_price[current]))
            is_shorter = (reached < distance) & (remaining == 0)
            distance = torch.where(is_shorter, reached, distance)
            came_from = came_from.masked_fill(is_shorter, current)
            column = int((distance + remaining).argmin())
            lowest = float(distance[column])
            if row_of[column] < 0:
                break
            remaining[column] = torch.inf
            visited.append(column)
            current = row_of[column]
        row_price[row] += lowest
        if visited:
            slack = lowest - distance[visited]
            row_price[[row_of[index] for index in visited]] += slack
            column_price[visited] -= slack
        while True:
            current = int(came_from[column])
            row_of[column] = current
            column_of[current], column = column, column_of[current]
            if current == row:
                break
    return torch.tensor(column_of)


def leading_order(similarity: Tensor) -> Tensor:
    """Return all columns, those assigned to the rows first and in the order of the rows."""
    matched = assign(similarity)
    rest = torch.ones(similarity.shape[1], dtype=torch.bool)
    rest[matched] = False
    return torch.cat((matched, rest.nonzero().flatten()))


@torch.no_grad()
def align_by_activations(
    small: DeltaEncoderForMaskedLM,
    target: DeltaEncoderForMaskedLM,
    batches: Iterable[Mapping[str, Tensor]],
) -> UnitOrder:
    """Order the units of ``target`` by how their activations go with those of ``small``.

    Layer l is compared with layer l. Hidden channels: correlation of the states before each layer
    of ``small``, averaged over layers. MLP channels: correlation of what enters ``down``. Heads:
    linear CKA (arXiv 1905.00414) of their outputs, because the channels inside a head may be mixed
    without changing what it does.

    Args:
        small: the smaller model.
        target: the larger model; neither is changed.
        batches: arguments of the trunk (``input_ids``, ``attention_mask``); labels are ignored.

    Raises:
        ValueError: if there is no token.
    """
    gathered: list[_LayerMoments] = []
    modes = small.training, target.training
    small.eval()
    target.eval()
    for batch in batches:
        mine, theirs = (_activations(model, batch, small) for model in (small, target))
        if not gathered:
            gathered = [_LayerMoments(a, b) for a, b in zip(mine, theirs, strict=True)]
        for moments, a, b in zip(gathered, mine, theirs, strict=True):
            moments.add(a, b)
    small.train(modes[0])
    target.train(modes[1])
    if not gathered or not gathered[0].hidden.count:
        raise ValueError("alignment by activations needs a token; the batches are empty")
    size = small.config.head_dim
    return _complete(
        target,
        [leading_order(moments.head_similarity(size)) for moments in gathered],
        [leading_order(moments.channels.correlation()) for moments in gathered],
        leading_order(torch.stack([m.hidden.correlation() for m in gathered]).mean(dim=0)),
    )


class _Activations(NamedTuple):
    """What one layer sees and does on the real tokens of a batch, (tokens, units) each."""

    hidden: Tensor
    heads: Tensor
    channels: Tensor


class _LayerMoments:
    """The statistics of one layer of both models."""

    def __init__(self, mine: _Activations, theirs: _Activations) -> None:
        def joint(first: Tensor, second: Tensor) -> JointMoments:
            return JointMoments(first.shape[1], second.shape[1], first.device)

        self.hidden = joint(mine.hidden, theirs.hidden)
        self.channels = joint(mine.channels, theirs.channels)
        self.heads = joint(mine.heads, theirs.heads)
        self.within = joint(mine.heads, mine.heads), joint(theirs.heads, theirs.heads)

    def add(self, mine: _Activations, theirs: _Activations) -> None:
        """Add a batch."""
        self.hidden.add(mine.hidden, theirs.hidden)
        self.channels.add(mine.channels, theirs.channels)
        self.heads.add(mine.heads, theirs.heads)
        for moments, features in zip(self.within, (mine.heads, theirs.heads), strict=True):
            moments.add(features, features)

    def head_similarity(self, size: int) -> Tensor:
        """Return linear CKA, ``|Y_a^T Y_b|^2 / (|Y_a^T Y_a| |Y_b^T Y_b|)``, of all head pairs."""
        between = _block_sums(self.heads.cross.square(), size)
        mine, theirs = (
            _block_sums(moments.cross.square(), size).diagonal().sqrt() for moments in self.within
        )
        return between / torch.outer(mine, theirs).clamp(min=TINY)


def _activations(
    model: DeltaEncoderForMaskedLM, batch: Mapping[str, Tensor], small: DeltaEncoderForMaskedLM
) -> list[_Activations]:
    """Run the trunk; return the first layers, as many as ``small`` has, on real tokens only."""
    heads: list[Tensor] = []
    channels: list[Tensor] = []

    def keep_in(kept: list[Tensor]) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            kept.append(args[0])

        return hook

    names = ("input_ids", "attention_mask", "position_ids", "inputs_embeds")
    inputs = {name: batch[name].to(model.device) for name in names if name in batch}
    depth = small.config.num_hidden_layers
    handles = []
    trunk: Any = model.model
    for layer in trunk.layers[:depth]:
        handles.append(layer.attention.output.register_forward_pre_hook(keep_in(heads)))
        handles.append(layer.mlp.down.register_forward_pre_hook(keep_in(channels)))
    try:
        full = DeltaBudget.full(model.config)
        outputs = trunk(**inputs, budget=full, output_hidden_states=True, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    states = outputs.hidden_states[:depth]
    mask = inputs.get("attention_mask")
    is_real = torch.ones_like(states[0][..., 0]) if mask is None else mask
    return [
        _Activations(*(unit[is_real > 0] for unit in layer))
        for layer in zip(states, heads, channels, strict=True)
    ]


@torch.no_grad()
def align_by_weights(
    small: DeltaEncoderForMaskedLM, target: DeltaEncoderForMaskedLM
) -> UnitOrder:
    """Order the units of ``target`` by how their weights go with those of ``small``.

    Hidden channels: correlation of embedding columns over the vocabulary. With the hidden channels
    so matched, layer l is compared with layer l. MLP channels: cosine of all weights into and out
    of the channel. Heads: mean cosine of the two products ``W_q^T W_k`` and ``W_o W_v`` that say
    what a head does whatever the basis inside it (``W_q^T W_k`` at distance 0).

    Args:
        small: the smaller model.
        target: the larger model; neither is changed.
    """
    first, second = _token_weights(small), _token_weights(target)
    moments = JointMoments(first.shape[1], second.shape[1], first.device)
    moments.add(first, second)
    hidden = leading_order(moments.correlation())
    shared = hidden[: small.config.hidden_size]
    size = small.config.head_dim
    heads, channels = [], []
    for mine, theirs in zip(_layers(small), _layers(target), strict=False):
        heads.append(leading_order(_head_weight_similarity(mine, theirs, shared, size)))
        first, second = _channel_weights(mine.mlp), _channel_weights(theirs.mlp, shared)
        channels.append(leading_order(first @ second.T))
    return _complete(target, heads, channels, hidden)


def _token_weights(model: DeltaEncoderForMaskedLM) -> Tensor:
    weight: Tensor = model.model.embeddings.token.weight
    return weight


def _layers(model: DeltaEncoderForMaskedLM) -> Any:
    return model.model.layers


def _channel_weights(mlp: Any, hidden: Tensor | None = None) -> Tensor:
    """Return (channels, 3 n) unit vectors: the weights of each channel to ``hidden`` channels."""
    kept = slice(None) if hidden is None else hidden
    parts = (mlp.up.weight[:, kept], mlp.gate.weight[:, kept], mlp.down.weight[kept].T)
    return nn.functional.normalize(torch.cat(parts, dim=1).float(), dim=1)


def _head_weight_similarity(mine: Any, theirs: Any, hidden: Tensor, size: int) -> Tensor:
    first = _head_factors(mine.attention, slice(None), size)
    second = _head_factors(theirs.attention, hidden, size)
    cosines = []
    for left, right in (("query", "key"), ("output", "value")):
        between = _product_overlap(first[left], first[right], second[left], second[right], size)
        norms = [
            _product_overlap(f[left], f[right], f[left], f[right], size).diagonal().sqrt()
            for f in (first, second)
        ]
        cosines.append(between / torch.outer(*norms).clamp(min=TINY))
    return (cosines[0] + cosines[1]) / 2


def _head_factors(attention: Any, hidden: Any, size: int) -> dict[str, Tensor]:
    """Return the four weights of a layer's heads as (heads x head_dim, n)."""
    weight = attention.query_key_value.weight[:, hidden].float().unflatten(0, (-1, 3, size))
    query, key, value = (part.flatten(0, 1) for part in weight.unbind(dim=1))
    output = attention.output.weight[hidden].float().T
    return {"query": query, "key": key, "value": value, "output": output}


def _product_overlap(a: Tensor, b: Tensor, c: Tensor, d: Tensor, size: int) -> Tensor:
    """``<A_i^T B_i, C_j^T D_j>`` of all head pairs, through ``sum((A_i C_j^T) (B_i D_j^T))``."""
    return _block_sums((a @ c.T) * (b @ d.T), size)


def _block_sums(matrix: Tensor, size: int) -> Tensor:
    """Sum ``size x size`` blocks: (h size, g size) -> (h, g)."""
    return matrix.unflatten(0, (-1, size)).unflatten(2, (-1, size)).sum(dim=(1, 3))


def _complete(
    target: DeltaEncoderForMaskedLM, heads: list[Tensor], channels: list[Tensor], hidden: Tensor
) -> UnitOrder:
    """Leave the layers that the small model does not have as they are."""
    config = target.config
    beyond = range(len(heads), config.num_hidden_layers)
    sizes = config.intermediate_sizes()
    return UnitOrder(
        heads + [torch.arange(config.num_attention_heads) for _ in beyond],
        channels + [torch.arange(sizes[layer]) for layer in beyond],
        hidden,
    )
