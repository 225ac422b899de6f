"""Delta blocks: the weights outside the base slice, built from few numbers.

The base slice is the first ``base_attention_heads`` heads and ``base_intermediate_size`` MLP
channels of every layer. Stored densely, what lies outside is simply the rest of each matrix. Here
it is a ``tail`` computed from shared atoms and a few coefficients a layer (`DictionaryBlock`), or
from two thin matrices a layer (`LowRankBlock`). Either way it is materialised once per pass and
joined to the stored weight, because applying the factors one by one would cost more: per token
``N r (in + out)`` against ``in x out``.

The tail of a matrix that writes to the residual stream (attention output, MLP down) starts at
zero and that of its partner (values, MLP up) at random: the delta starts as no change, and every
factor has a gradient within two steps. Zero on both sides would be a saddle without any gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import DeltaBudget, SliceShape

RESIDUAL_KINDS = ("output", "down")


class DictionaryBlock(nn.Module):
    """``dW_l = sum_i c_{l,i} V_i U_i``: linear in the coefficients, atoms shared by all layers.

    Source of the idea: shared matrix atoms as in MASA, arXiv 2508.04581.

    Args:
        layers: L.
        rows: rows of the block.
        columns: columns of the block.
        atoms: N.
        rank: r of each atom.
        starts_at_zero: whether the coefficients start at zero.
    """

    def __init__(
        self, layers: int, rows: int, columns: int, atoms: int, rank: int, starts_at_zero: bool
    ) -> None:
        super().__init__()
        self.starts_at_zero = starts_at_zero
        self.coefficients = nn.Parameter(torch.empty(layers, atoms))
        self.atoms_out = nn.Parameter(torch.empty(atoms, rows, rank))
        self.atoms_in = nn.Parameter(torch.empty(atoms, rank, columns))

    def reset(self, std: float) -> None:
        """Draw factors so that a block that does not start at zero has entries of scale ``std``."""
        atoms, _, rank = self.atoms_out.shape
        nn.init.normal_(self.atoms_in, std=std)
        nn.init.normal_(self.atoms_out, std=rank**-0.5)
        if self.starts_at_zero:
            nn.init.zeros_(self.coefficients)
        else:
            nn.init.normal_(self.coefficients, std=atoms**-0.5)

    def forward(self, layers: int, rows: int, columns: int) -> Tensor:
        """Return the leading (layers, rows, columns) corner of the blocks."""
        scaled = torch.einsum(
            "ln,nor->lonr", self.coefficients[:layers], self.atoms_out[:, :rows]
        ).flatten(2)
        return scaled @ self.atoms_in[:, :, :columns].flatten(0, 1)

    def corners(self, layers: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the leading corners that `forward` reads."""
        atoms, _, rank = self.atoms_out.shape
        return {
            "coefficients": (layers, atoms),
            "atoms_out": (atoms, rows, rank),
            "atoms_in": (atoms, rank, columns),
        }

    def packed(self) -> dict[str, Tensor]:
        """Return what an upgrade pack holds: the coefficients."""
        return {"coefficients": self.coefficients}


class LowRankBlock(nn.Module):
    """``dW_l = B_l A_l`` with ``B_l`` of shape (rows, r): a LoRA in the place of the delta.

    Args:
        layers: L.
        rows: rows of the block.
        columns: columns of the block.
        rank: r.
        starts_at_zero: whether ``B`` starts at zero.
    """

    def __init__(
        self, layers: int, rows: int, columns: int, rank: int, starts_at_zero: bool
    ) -> None:
        super().__init__()
        self.starts_at_zero = starts_at_zero
        self.factor_out = nn.Parameter(torch.empty(layers, rows, rank))
        self.factor_in = nn.Parameter(torch.empty(layers, rank, columns))

    def reset(self, std: float) -> None:
        """Draw factors so that a block that does not start at zero has entries of scale ``std``."""
        nn.init.normal_(self.factor_in, std=std)
        if self.starts_at_zero:
            nn.init.zeros_(self.factor_out)
        else:
            nn.init.normal_(self.factor_out, std=self.factor_out.shape[-1] ** -0.5)

    def forward(self, layers: int, rows: int, columns: int) -> Tensor:
        """Return the leading (layers, rows, columns) corner of the blocks."""
        return self.factor_out[:layers, :rows] @ self.factor_in[:layers, :, :columns]

    def corners(self, layers: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the leading corners that `forward` reads."""
        rank = self.factor_in.shape[1]
        return {"factor_out": (layers, rows, rank), "factor_in": (layers, rank, columns)}

    def packed(self) -> dict[str, Tensor]:
        """Return what an upgrade pack holds: both factors."""
        return {"factor_out": self.factor_out, "factor_in": self.factor_in}


class DeltaBlocks(nn.Module):
    """The tails of the five matrices of every layer.

    Args:
        config: with ``delta_kind`` ``"dictionary"`` or ``"low_rank"``.
    """

    def __init__(self, config: DeltaEncoderConfig) -> None:
        super().__init__()
        self.base_heads: int = config.base_attention_heads
        self.base_channels = config.base_intermediate_sizes()
        self.head_dim = config.head_dim
        whole = DeltaBudget.full(config).shape(config)
        self.blocks = nn.ModuleDict(
            {
                kind: _block(config, rows, columns, kind in RESIDUAL_KINDS)
                for kind, (rows, columns) in self.sizes(whole).items()
            }
        )

    def sizes(self, shape: SliceShape) -> dict[str, tuple[int, int]]:
        """Return rows and columns of the tails a budget needs; none for an empty tail."""
        inner = max(0, shape.heads - self.base_heads) * self.head_dim
        channels = max(self._channels(shape))
        sizes = {
            "query_key_value": (3 * inner, shape.hidden),
            "output": (shape.hidden, inner),
            "up": (channels, shape.hidden),
            "gate": (channels, shape.hidden),
            "down": (shape.hidden, channels),
        }
        return {kind: size for kind, size in sizes.items() if all(size)}

    def forward(self, shape: SliceShape) -> list[dict[str, Tensor]]:
        """Return the tails of each kept layer, as large as the widest kept layer needs them."""
        channels = self._channels(shape)
        built = {
            kind: self.blocks[kind](shape.layers, *size) for kind, size in self.sizes(shape).items()
        }
        cut = {"up": 0, "gate": 0, "down": 1}
        return [
            {
                kind: tail[layer].narrow(cut[kind], 0, channels[layer])
                if kind in cut
                else tail[layer]
                for kind, tail in built.items()
            }
            for layer in range(shape.layers)
        ]

    def _channels(self, shape: SliceShape) -> list[int]:
        """Return the MLP channels of each kept layer that lie outside the base slice."""
        pairs = zip(shape.intermediate, self.base_channels, strict=False)
        return [max(0, channels - base) for channels, base in pairs]


def _block(config: Any, rows: int, columns: int, starts_at_zero: bool) -> nn.Module:
    layers, rank = config.num_hidden_layers, config.delta_rank
    if config.delta_kind == "low_rank":
        return LowRankBlock(layers, rows, columns, rank, starts_at_zero)
    return DictionaryBlock(layers, rows, columns, config.delta_atoms, rank, starts_at_zero)
