"""Manifold-constrained hyper-connections: how a sublayer reads, mixes and writes the streams.

A control of the delta residual. A matrix state X in R^(v x d) is v streams. For each token, with x
the flattened state divided by its root mean square, and learned W, b and scales a::

    r = sigmoid(a_r W_r x + b_r) + eps      in R^v: the sublayer reads sum_j r_j X_j
    w = 2 sigmoid(a_w W_w x + b_w)          in R^v: where its output h is written
    M = Sinkhorn(a_m W_m x + b_m)           v x v with rows and columns that sum to 1
    X' = M X + w h^T

A doubly stochastic M has no eigenvalue beyond 1, so a product of many does not blow up.

Start: b_w = 0, a_r = a_w = 0, and the r of a sublayer sum to 1. Equal streams are then read as one
of them, so the first sublayer reads the embedding, and h is added to each as the baseline adds it.
Half of r is shared equally; the other half is on stream i mod d_v for sublayer i, as in
hyper-connections (https://arxiv.org/abs/2409.19606): streams that are read alike get equal
gradients and would stay one stream. b_m is `MIX_START` on the diagonal and a_m = 0.01: M is near
the identity, so what differs between streams stays. Unless a convolution spreads the embedding,
the first read finds equal streams, and the norm leaves its weights next to no gradient.

At v of d_v streams all maps are leading corners. The r of fewer streams sum to less; the norm that
follows takes the scale out.

Source: mHC, https://arxiv.org/abs/2512.24880, section 4. DeepSeek-V4 in transformers is another
implementation: it starts with b = 0 and a = 1, and its Sinkhorn ends with the columns. Here it ends
with the rows, whose sums decide whether equal streams stay equal.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .delta_residual import at_least_fp32
from .parameter_start import fill_start

# The least weight of a stream in a read, and of an entry in a mixing before it is normalised: a
# column that underflows has no sum to divide by, and a floor under the sum alone lets gradients
# overflow.
FLOOR = 1e-6
MIX_START = 6.0  # exp(6) : 1 on the diagonal against the rest
MIX_SCALE = 0.01


class Connection(NamedTuple):
    """How one sublayer is connected to the streams of each token, in fp32 or fp64.

    Attributes:
        read: (batch, tokens, v), weight of each stream in what the sublayer reads.
        write: (batch, tokens, v), weight of its output in each stream.
        mix: (batch, tokens, v, v), doubly stochastic.
    """

    read: Tensor
    write: Tensor
    mix: Tensor


class HyperConnection(nn.Module):
    """The maps from a state to the `Connection` of one sublayer.

    Args:
        streams: d_v.
        size: d.
        iterations: of the Sinkhorn normalisation.
        eps: floor of the mean square of a state.
        std: standard deviation of the initial maps.
        index: of the sublayer, counted through the model; decides which stream it reads most.
    """

    def __init__(
        self, streams: int, size: int, iterations: int, eps: float, std: float, index: int
    ) -> None:
        super().__init__()
        self.iterations, self.eps, self.std, self.index = iterations, eps, std, index
        # Streams are axes of their own, so that fewer streams are a leading corner.
        self.read_map = nn.Parameter(torch.empty(streams, streams, size))
        self.write_map = nn.Parameter(torch.empty(streams, streams, size))
        self.mix_map = nn.Parameter(torch.empty(streams, streams, streams, size))
        self.read_bias = nn.Parameter(torch.empty(streams))
        self.write_bias = nn.Parameter(torch.empty(streams))
        self.mix_bias = nn.Parameter(torch.empty(streams, streams))
        self.scales = nn.Parameter(torch.empty(3))  # of read, write and mix
        self.reset()

    def reset(self) -> None:
        """Set the start that the file describes."""
        for maps in (self.read_map, self.write_map, self.mix_map):
            nn.init.normal_(maps, std=self.std)
        nn.init.zeros_(self.write_bias)
        streams = len(self.read_bias)
        shares = torch.full((streams,), 0.5 / streams)
        shares[self.index % streams] += 0.5
        fill_start(self.read_bias, torch.logit(shares - FLOOR))
        fill_start(self.mix_bias, MIX_START * torch.eye(streams))
        fill_start(self.scales, torch.tensor([0.0, 0.0, MIX_SCALE]))

    def forward(self, state: Tensor) -> Connection:
        """Connect to (batch, tokens, v, d)."""
        v = state.shape[-2]
        maps = (self.read_map[:v, :v], self.write_map[:v, :v], self.mix_map[:v, :v, :v])
        flat = at_least_fp32(state.flatten(-2))
        wide = flat.dtype
        weight = torch.cat([part.reshape(-1, v * state.shape[-1]) for part in maps]).to(wide)
        with torch.autocast(state.device.type, enabled=False):
            logits = F.linear(flat, weight)
        # Dividing after the product spares a normed copy of the state.
        logits = logits * (flat.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        read, write, mix = logits.split([v, v, v * v], dim=-1)
        a_read, a_write, a_mix = self.scales.to(wide)
        read = a_read * read + self.read_bias[:v].to(wide)
        write = a_write * write + self.write_bias[:v].to(wide)
        mix = a_mix * mix.unflatten(-1, (v, v)) + self.mix_bias[:v, :v].to(wide)
        return Connection(
            read=torch.sigmoid(read) + FLOOR,
            write=2 * torch.sigmoid(write),
            mix=sinkhorn(mix, self.iterations),
        )


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Return softmax(logits) + eps with columns and rows divided by their sums in turn.

    Args:
        logits: (..., v, v).
        iterations: how often both are normalised.
    """
    mix = torch.softmax(logits, dim=-1) + FLOOR
    for _ in range(iterations):
        mix = mix / mix.sum(-2, keepdim=True)
        mix = mix / mix.sum(-1, keepdim=True)
    return mix


def read_streams(state: Tensor, connection: Connection) -> Tensor:
    """Return ``sum_j r_j X_j``, from (batch, tokens, v, d) to (batch, tokens, d)."""
    return (connection.read.unsqueeze(-1) * state).sum(-2).to(state.dtype)


def write_streams(state: Tensor, output: Tensor, connection: Connection) -> Tensor:
    """Return ``M X + w h^T`` in the dtype of the state; the sum is in fp32 or fp64.

    Args:
        state: (batch, tokens, v, d), X.
        output: (batch, tokens, d), h.
        connection: of the sublayer that gave ``output``.
    """
    with torch.autocast(state.device.type, enabled=False):
        mixed = torch.matmul(connection.mix, at_least_fp32(state))
    written = connection.write.unsqueeze(-1) * output.unsqueeze(-2)
    return (mixed + written).to(state.dtype)
