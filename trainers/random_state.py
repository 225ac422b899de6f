"""Capture and restore the global random states that transformers saves in a checkpoint.

Library code draws from no global generator; dropout inside torch does, and a step that must be
taken back needs it rewound.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RandomState:
    """States of the Python, NumPy, torch CPU and current CUDA generators."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: torch.Tensor | None

    @classmethod
    def capture(cls) -> "RandomState":
        """Copy the current states."""
        # Only the device in use: asking for all would open a context on each of them.
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        # The legacy tuple form is what restores bit by bit.
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Set all generators back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
