"""Prefix depth dropout: how deep a step runs. Torch-free."""

import random
from dataclasses import dataclass
from itertools import accumulate
from operator import mul


@dataclass(frozen=True)
class SurvivalSchedule:
    """Random depth of a prefix of layers, deeper layers failing more often.

    Layer l (from 0) survives with `p_l = 1 - alpha * l / (L - 1)`. The first `floor` layers always
    run; the depth is the first l >= floor that fails, or L. A layer only runs if all before it did:
    `P(depth >= k) = prod_{j=floor}^{k-1} p_j`. Where alpha changes during training make one for
    each step.

    Args:
        layers: L >= 1.
        floor: smallest depth, in 1..L.
        alpha: in [0, 1]; 0 always runs all layers.

    Raises:
        ValueError: If an argument is out of range.

    Source: stochastic depth, Huang et al., https://arxiv.org/abs/1603.09382, made nested as the
    prefix depth dropout of Delta-Matryoshka++.
    """

    layers: int
    floor: int = 1
    alpha: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.layers < 1:
            raise ValueError(f"layers is {self.layers}, it must be 1 or more")
        if not 1 <= self.floor <= self.layers:
            raise ValueError(f"floor is {self.floor}, it must lie in 1..{self.layers} (the layers)")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"survival alpha is {self.alpha}, it must lie in [0, 1]")

    def keep_probability(self, layer: int) -> float:
        """Return p_l, the chance that layer l runs given that the one before it ran."""
        return 1.0 - self.alpha * layer / max(1, self.layers - 1)

    def expected_depth(self) -> float:
        """Return `floor + sum_{k=floor}^{L-1} prod_{j=floor}^{k} p_j`.

        Summing the p_k themselves would be wrong: layers do not fail independently of the ones
        before them.
        """
        keep = (self.keep_probability(layer) for layer in range(self.floor, self.layers))
        return self.floor + sum(accumulate(keep, mul))

    def sample(self, rng: random.Random) -> int:
        """Draw a depth. All ranks need equal draws, so seed `rng` with the step."""
        for layer in range(self.floor, self.layers):
            if rng.random() >= self.keep_probability(layer):
                return layer
        return self.layers
