"""What do our norms cost: RMSNorm beside torch's, and the norm of a direction."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...modeling.ddl_sublayers import RmsNorm
from ...modeling.delta_residual import direction_of
from .bench_report import report, torch_threads
from .case_measurement import measured_rows, share_rows, speed_ratio
from .ddl_cases import (
    BASELINE,
    BOTH,
    DTYPES,
    EAGER,
    PASSES,
    Action,
    Case,
    DdlBenchSettings,
    call_of,
    call_of_module,
    named,
    seeded,
)

OURS, TORCH = "RmsNorm", "torch RMSNorm"
DIRECTION, TORCH_DIRECTION = "direction", "torch normalize"
PAIRS = ((OURS, TORCH), (DIRECTION, TORCH_DIRECTION))
EPS, K_EPS = 1e-5, 1e-6


@dataclass(frozen=True, kw_only=True)
class NormalizationSettings(DdlBenchSettings):
    """The vectors that are normed.

    Attributes:
        hidden_size: d.
        tokens: vectors.
    """

    hidden_size: int = 512
    tokens: int = 2**13


DEFAULT = NormalizationSettings()
SHORT = NormalizationSettings(
    hidden_size=256, tokens=2**11, precisions=("fp32",), modes=(EAGER,), has_targets=False
)


def run(output: Path | None = None, settings: NormalizationSettings = DEFAULT) -> dict[str, Any]:
    """Time our norms and those of torch in turns.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes and rounds.
    """
    with torch_threads(settings.threads):
        rows = measured_rows("normalization", cases(settings), settings)
        by_name = {row["case"]: row for row in rows}
        summary: dict[str, Any] = {}
        for name, row in by_name.items():
            other = dict(PAIRS).get(row["what"])
            if other is not None:
                reference = name.replace(row["what"], other, 1)
                summary[f"ours over torch, {name}"] = speed_ratio(by_name, name, reference)
        summary |= share_rows(rows, {})
        return report("normalization", settings, rows, summary, output)


def cases(settings: NormalizationSettings) -> dict[str, Case]:
    """Return the cases: norm x forward or both passes x precision x mode.

    Every variant has the RMSNorm; the baseline has no direction.
    """
    has_direction = any(variant != BASELINE for variant in settings.variants)
    norms = [name for pair in PAIRS[: 1 + has_direction] for name in pair]
    return named(
        [
            Case(
                labels={"what": norm, "pass": direction, "precision": precision, "mode": mode},
                tokens=settings.tokens,
                prepare=partial(_prepare, settings, norm, direction, precision, mode),
                least_bytes=settings.tokens
                * least_bytes(norm, settings.hidden_size, direction, precision),
            )
            for norm, direction, precision, mode in product(
                norms, PASSES, settings.usable_precisions, settings.usable_modes
            )
        ],
        settings,
    )


def least_bytes(norm: str, hidden_size: int, direction: str, precision: str) -> int:
    """Return the least traffic of one vector.

    Forward: in and out, 2 d. Backward: gradient and input in, gradient out, 3 d. A direction of
    ours is fp32, and so is its gradient.
    """
    given = DTYPES[precision].itemsize * hidden_size
    made = torch.float32.itemsize * hidden_size if norm == DIRECTION else given
    return given + made + (2 * given + made) * (direction == BOTH)


def _prepare(
    settings: NormalizationSettings, norm: str, direction: str, precision: str, mode: str
) -> Action:
    draw = seeded(settings.seed, settings.place)
    states = draw(settings.tokens, settings.hidden_size, dtype=DTYPES[precision]).requires_grad_()
    size = settings.hidden_size
    modules: dict[str, Callable[[], torch.nn.Module]] = {
        OURS: lambda: RmsNorm(size, EPS),
        TORCH: lambda: torch.nn.RMSNorm(size, EPS),
    }
    if norm not in modules:
        function = _direction if norm == DIRECTION else _torch_direction
        return call_of(function, (states,), direction, mode)
    module = modules[norm]().to(settings.place, DTYPES[precision])
    return call_of_module(module, module, states, direction, mode)


def _direction(raw: Tensor) -> Tensor:
    return direction_of(raw, K_EPS)


def _torch_direction(raw: Tensor) -> Tensor:
    return F.normalize(raw, dim=-1, eps=K_EPS)
