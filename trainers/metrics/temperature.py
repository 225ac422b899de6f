"""One temperature per model, fitted while logits stream by.

Source: Guo et al., https://arxiv.org/abs/1706.04599, section 4.2.
"""

import torch
from torch import Tensor


class TemperatureFit:
    """Find the temperature with the lowest negative log-likelihood without keeping any logits.

    `NLL(tau) = mean_t -log softmax(z_t / tau)[y_t]` is summed for each temperature of a grid that
    is even in `ln tau`. The minimum of the parabola through the best grid point and its neighbours
    is the estimate. With a grid step of 0.1 its error is far below what calibration data resolve.

    Args:
        low: Smallest temperature, > 0.
        high: Largest temperature, > low.
        points: Grid points, >= 3.
    """

    def __init__(self, low: float = 0.4, high: float = 4.0, points: int = 24) -> None:
        """Lay out the grid."""
        if not 0 < low < high or points < 3:
            raise ValueError(
                f"temperature grid {low}..{high} with {points} points; "
                "it needs 0 < low < high and 3 or more points"
            )
        self.log_temperatures = torch.linspace(0, 1, points, dtype=torch.float64).mul(
            torch.tensor(high / low, dtype=torch.float64).log()
        ) + torch.tensor(low, dtype=torch.float64).log()
        self.totals = torch.zeros(points, dtype=torch.float64)
        self.tokens = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add predictions.

        Args:
            logits: `(n, classes)`.
            labels: `(n,)`.
        """
        logits = logits.float()
        target = logits.gather(1, labels[:, None]).squeeze(1)
        for index, log_temperature in enumerate(self.log_temperatures.tolist()):
            scale = torch.tensor(-log_temperature).exp().item()
            loss = torch.logsumexp(logits * scale, dim=1) - target * scale
            self.totals[index] += loss.double().sum().cpu()
        self.tokens += labels.numel()

    def best(self) -> float:
        """Return the temperature; an end of the grid if the minimum lies outside it.

        Raises:
            ValueError: If nothing was added.
        """
        if not self.tokens:
            raise ValueError("no predictions were added, so there is no temperature to fit")
        index = int(self.totals.argmin())
        chosen = self.log_temperatures[index]
        if 0 < index < len(self.totals) - 1:
            left, middle, right = (self.totals[index + shift] for shift in (-1, 0, 1))
            step = self.log_temperatures[1] - self.log_temperatures[0]
            curvature = left - 2 * middle + right
            if curvature > 0:
                chosen = chosen + step * (left - right) / (2 * curvature)
        return float(chosen.exp())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that fits logits `(n, classes)` to labels `(n,)`."""
    fit = TemperatureFit()
    fit.update(logits, labels)
    return fit.best()
