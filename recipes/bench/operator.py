"""How near does the delta update come to the copy bandwidth, and what does its layout matter?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configuration.ddl_settings import VARIANTS
from ...modeling.deferred_rewrite import defer_rewrite, with_rewrites
from ...modeling.delta_residual import direction_of, rewrite
from .bench_report import report, torch_threads
from .case_measurement import measured_rows, share_rows, speed_ratio
from .ddl_cases import (
    BASELINE,
    BOTH,
    COMPILED,
    DTYPES,
    FORWARD,
    PASSES,
    Action,
    Case,
    DdlBenchSettings,
    call_of,
    named,
    seeded,
    separate_channels,
)

OURS, NAIVE, ADDED = "delta", "delta with d_v innermost", "add"
K_EPS = 1e-6
# The compiled forward of a vector state, where one pass over the data suffices.
LEAST_SHARE = 0.5
FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class OperatorSettings(DdlBenchSettings):
    """The states.

    Attributes:
        hidden_size: d.
        state_numbers: tokens x d_v x d, equal for all d_v, so that no state is small enough for a
            cache that another misses.
        value_sizes: d_v of the matrix states; the vector state has 1.
    """

    hidden_size: int = 512
    state_numbers: int = 2**22
    value_sizes: tuple[int, ...] = (2, 4, 8)


DEFAULT = OperatorSettings()
SHORT = OperatorSettings(
    hidden_size=256,
    state_numbers=2**19,
    value_sizes=(4,),
    precisions=("fp32",),
    has_targets=False,
)


def run(output: Path | None = None, settings: OperatorSettings = DEFAULT) -> dict[str, Any]:
    """Time the plain addition, our update and one with [d, d_v] storage, in turns.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes and rounds.
    """
    with torch_threads(settings.threads):
        rows = measured_rows("operator", cases(settings), settings)
        by_name = {row["case"]: row for row in rows}
        goal = {
            f"{OURS} d_v=1 {FORWARD} {precision} {COMPILED}": LEAST_SHARE
            for precision in settings.precisions
            if settings.has_targets
        }
        summary: dict[str, Any] = share_rows(rows, goal)
        for name in by_name:
            if name.startswith(NAIVE):
                ours = name.replace(NAIVE, OURS)
                summary[f"our layout over d_v innermost, {ours.removeprefix(OURS).strip()}"] = (
                    speed_ratio(by_name, ours, name)
                )
        return report("operator", settings, rows, summary, output)


def cases(settings: OperatorSettings) -> dict[str, Case]:
    """Return the cases: operation x d_v x forward or both passes x precision x mode."""
    operations = [(ADDED, 1)] if BASELINE in settings.variants else []
    if "ddl" in settings.variants:
        operations.append((OURS, 1))
    if any(VARIANTS[variant][0] for variant in settings.variants):
        operations += product((OURS, NAIVE), settings.value_sizes)
    found = []
    for (operation, value_size), direction, precision, mode in product(
        operations, PASSES, settings.usable_precisions, settings.usable_modes
    ):
        tokens = settings.state_numbers // (settings.hidden_size * value_size)
        found.append(
            Case(
                labels={
                    "what": operation,
                    "d_v": value_size,
                    "pass": direction,
                    "precision": precision,
                    "mode": mode,
                },
                tokens=tokens,
                prepare=partial(
                    _prepare, settings, operation, value_size, tokens, direction, precision, mode
                ),
                least_bytes=tokens
                * least_bytes(operation, settings.hidden_size, value_size, direction, precision),
            )
        )
    return named(found, settings)


def least_bytes(
    operation: str, hidden_size: int, value_size: int, direction: str, precision: str
) -> int:
    """Return the least traffic of one token: each tensor that must be read or written, once.

    Forward: state and sublayer output in, state out, ``(2 d_v + 1) d``; value and beta in fp32.
    Backward: gradient, state and output in, gradients of state and output out,
    ``(3 d_v + 2) d``; delta and beta in, gradients of value and beta out. An addition hands its
    gradient on and moves nothing.
    """
    wide = DTYPES[precision].itemsize * hidden_size
    if operation == ADDED:
        return 3 * wide
    forward = (2 * value_size + 1) * wide + (value_size + 1) * FLOAT
    backward = (3 * value_size + 2) * wide + 2 * (value_size + 1) * FLOAT
    return forward + backward if direction == BOTH else forward


def _prepare(
    settings: OperatorSettings,
    operation: str,
    value_size: int,
    tokens: int,
    direction: str,
    precision: str,
    mode: str,
) -> Action:
    draw = seeded(settings.seed, settings.place)
    dtype, size = DTYPES[precision], settings.hidden_size
    shape = (size, value_size) if operation == NAIVE else (value_size, size)
    state = draw(tokens, *shape, dtype=dtype)
    output = draw(tokens, size, dtype=dtype)
    inputs: tuple[Tensor, ...] = (state, output)
    if operation != ADDED:
        inputs = (*inputs, draw(tokens, value_size), 2 * torch.sigmoid(draw(tokens, 1)))
    for tensor in inputs:
        tensor.requires_grad_()
    if operation == OURS and mode == COMPILED:
        return call_of(update_apart, (*inputs[1:], *separate_channels(state)), direction, mode)
    return call_of(FUNCTIONS[operation], inputs, direction, mode)


def delta_update(state: Tensor, output: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    """Update (tokens, d_v, d) along the direction of a sublayer's output, as eager models do."""
    return rewrite(state, direction_of(output, K_EPS), value, beta)


def update_apart(
    output: Tensor, value: Tensor, beta: Tensor, *state: Tensor
) -> tuple[Tensor, ...]:
    """Do the same to d_v tensors (tokens, d), as compiled models do."""
    return with_rewrites(state, defer_rewrite(state, output, value.split(1, -1), beta, K_EPS))


def innermost_update(state: Tensor, output: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    """Do the same to (tokens, d, d_v), the layout of the paper and of published code."""
    direction = direction_of(output, K_EPS).unsqueeze(-1)
    step = beta * (value - (state * direction).sum(-2))
    return (state + direction * step.unsqueeze(-2)).to(state.dtype)


def added(state: Tensor, output: Tensor) -> Tensor:
    """Add a sublayer's output, as the baseline does."""
    return state + output.unsqueeze(-2)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    OURS: delta_update,
    NAIVE: innermost_update,
    ADDED: added,
}
