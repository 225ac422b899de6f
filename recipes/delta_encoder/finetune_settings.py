"""What decides the result of a fine-tuning run, and the range of every number of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cli_errors import UsageError

SORTINGS = ("auto", "before", "after", "never")
# A row holds up to three special tokens, and some of each of two texts.
SHORTEST_ROW = 8
LARGEST_SEED = 2**32 - 1

# Setting -> whether a value is allowed, what is allowed, and a value that works.
_RANGES: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "epochs": (lambda value: _is_finite(value) and value > 0, "a number above 0", "5"),
    "max_steps": (lambda value: value is None or _is_count(value, 1), "a whole number >= 1", "500"),
    "batch_size": (lambda value: _is_count(value, 1), "a whole number >= 1", "32"),
    "lr": (lambda value: _is_finite(value) and value > 0, "a number above 0", "1e-4"),
    "max_length": (
        lambda value: _is_count(value, SHORTEST_ROW), f"a whole number >= {SHORTEST_ROW}", "128"
    ),
    "budgets_per_step": (lambda value: _is_count(value, 1), "a whole number >= 1", "4"),
    "kd_weight": (lambda value: _is_finite(value) and value >= 0, "a number >= 0", "1"),
    "kd_temperature": (lambda value: _is_finite(value) and value > 0, "a number above 0", "2"),
}  # fmt: skip


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that decides the result of a seed.

    Attributes:
        model: Folder of the pre-trained model or of its run.
        task: Sub-folder of ``data``.
        data: Folder of the labelled sets.
        train_budgets: Budgets the fine-tuned model is to have, one of which contains all others:
            texts, names, or ``all`` those of the pre-trained model.
        evaluate: Budgets to measure, likewise; ``all`` are the ``train_budgets``.
        epochs: Passes over the training rows; ``max_steps`` overrides it.
        max_steps: Optimizer steps, None for whole epochs.
        batch_size: Rows a step.
        lr: Peak learning rate.
        max_length: Tokens of a row at most.
        budgets_per_step: Budgets trained in each step; 1 trains the largest only.
        kd_weight: Weight of distillation from the largest budget of a step.
        kd_temperature: Its temperature.
        sort_units: When heads and channels are sorted by importance: ``before`` fine-tuning,
            ``after`` it (post-hoc slicing), ``never``; ``auto`` is never for a nested encoder,
            whose units are in order, and before for any other.
    """

    model: str
    task: str
    data: str
    train_budgets: tuple[str, ...] = ("all",)
    evaluate: tuple[str, ...] = ("all",)
    epochs: float = 5.0
    max_steps: int | None = None
    batch_size: int = 32
    lr: float = 1e-4
    max_length: int = 128
    budgets_per_step: int = 4
    kd_weight: float = 1.0
    kd_temperature: float = 2.0
    sort_units: str = "auto"

    def validate(self) -> None:
        """Check every number.

        Raises:
            UsageError: for the first value out of range.
        """
        for name, (is_allowed, allowed, example) in _RANGES.items():
            value = getattr(self, name)
            if not is_allowed(value):
                raise UsageError(f"{name} {value!r} must be {allowed}; give for example {example}")
        if self.sort_units not in SORTINGS:
            raise UsageError(f"sort_units={self.sort_units!r} must be {' or '.join(SORTINGS)}")

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values, without paths of this machine."""
        values = asdict(self)
        return {
            **values,
            # Two parts, because many runs call their model folder "model".
            "model": "/".join(Path(self.model).resolve().parts[-2:]),
            "data": Path(self.data).name,
            "train_budgets": list(self.train_budgets),
            "evaluate": list(self.evaluate),
        }


def check_seeds(seeds: Sequence[int]) -> None:
    """Check that every seed can be set and is a run of its own.

    Raises:
        UsageError: for no seed, one out of range, or one given twice: an interval over equal runs
            would have no width.
    """
    if not seeds:
        raise UsageError("no seed is given; give at least one: --seeds 0 1 2")
    for number, seed in enumerate(seeds):
        if not 0 <= seed <= LARGEST_SEED:
            raise UsageError(
                f"seed {seed} must be in 0..{LARGEST_SEED}; give others: --seeds 0 1 2"
            )
        if seed in seeds[:number]:
            raise UsageError(f"seed {seed} is given twice; each run needs another: --seeds 0 1 2")


def _is_finite(value: Any) -> bool:
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return is_numeric and math.isfinite(value)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
