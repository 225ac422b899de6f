"""Packing regularizer: the delta block may not outgrow the base block."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..loss_term import LossSum, LossTerm


class PackingRegularizer(LossTerm):
    """Hinge on spectral norms: `mean_pairs relu(sigma(W_delta) - sigma(W_base))`, in fp32.

    sigma is the largest singular value, estimated by power iteration:
    `v = W^T u / |W^T u|`, `u = W v / |W v|`, `sigma = u^T W v`. The vectors u are kept from call to
    call: weights move slowly, so one iteration a call follows them closely, where a fresh random
    vector would give a noisy underestimate each time. u and v are constants to the gradient, which
    is `u v^T` for W_delta and `-u v^T` for W_base, as for the exact value.

    The vectors are buffers: put the term among the stateful hooks of the trainer, and a resumed run
    continues exactly. They depend on the seed and the weights only, so they agree on all ranks.

    Args:
        rows: rows of W_base and W_delta for each pair, at least one.
        iterations: power iterations per call, >= 1.
        seed: seed of the first vectors.

    Raises:
        ValueError: If there are no pairs, or a number is below 1.

    Source: the packing regularization of Delta-Matryoshka++; persistent power iteration as in
    Miyato et al., https://arxiv.org/abs/1802.05957.
    """

    name = "packing_regularizer"
    unit = "step"

    def __init__(self, rows: Sequence[tuple[int, int]], iterations: int = 1, seed: int = 0) -> None:
        super().__init__()
        if not rows or any(count < 1 for pair in rows for count in pair):
            raise ValueError(
                f"packing_regularizer rows are {list(rows)}: give the rows of W_base and W_delta, "
                "1 or more each, for at least one pair"
            )
        if iterations < 1:
            raise ValueError(
                f"packing_regularizer iterations is {iterations}, it must be 1 or more"
            )
        self.rows = tuple(rows)
        self.iterations = iterations
        generator = torch.Generator().manual_seed(seed)
        for index, pair in enumerate(self.rows):
            for side, count in zip(("base", "delta"), pair, strict=True):
                start = torch.randn(count, generator=generator)
                self.register_buffer(f"{side}_{index}", start / start.norm())

    def forward(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> LossSum:
        """Average the hinge over the pairs and advance the vectors.

        Args:
            pairs: `(W_base, W_delta)`, each a matrix with the rows given at construction.

        Returns:
            The mean and 1.

        Raises:
            ValueError: If the matrices are not those of the constructor.
        """
        shapes = [(tuple(base.shape), tuple(delta.shape)) for base, delta in pairs]
        is_matrix = all(len(shape) == 2 for pair in shapes for shape in pair)
        if not is_matrix or tuple((base[0], delta[0]) for base, delta in shapes) != self.rows:
            raise ValueError(
                f"packing_regularizer: pairs of shapes {shapes} are not matrices with "
                f"{list(self.rows)} rows, as at construction"
            )
        excess = [
            self._spectral_norm(f"delta_{index}", delta)
            - self._spectral_norm(f"base_{index}", base)
            for index, (base, delta) in enumerate(pairs)
        ]
        return LossSum(torch.stack(excess).relu().mean(), 1)

    def _spectral_norm(self, name: str, weight: Tensor) -> Tensor:
        buffer = self.get_buffer(name)
        # bf16 products would round sigma to three digits.
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.float()
            left, right = _power_iteration(matrix.detach(), buffer, self.iterations)
            buffer.copy_(left)
            return torch.dot(left, matrix @ right)

    def extra_repr(self) -> str:
        """Show the arguments in `repr`."""
        return f"pairs={len(self.rows)}, iterations={self.iterations}"


@torch.no_grad()
def _power_iteration(matrix: Tensor, left: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Advance u and return new (u, v); a zero matrix leaves u alone, it must not die with it."""
    for _ in range(iterations):
        right = torch.nn.functional.normalize(matrix.T @ left, dim=0)
        image = matrix @ right
        norm = image.norm()
        left = torch.where(norm > 0, image / norm.clamp(min=1e-30), left)
    return left, right
