"""What the suites of the delta residual share: settings, what a case is, precision, compiling."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ...configuration.ddl_settings import VARIANTS
from ..bench_regression import MACHINE
from ..compiler import why_eager
from ..environment import cpu_has_bf16
from .bench_settings import BenchSettings

logger = logging.getLogger(__name__)

Action = Callable[[], Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORWARD, BOTH = "forward", "forward+backward"
PASSES = (FORWARD, BOTH)
EAGER, COMPILED = "eager", "compiled"
BASELINE = "baseline"
MATRIX, COPIED_NUMBERS = 384, 2**21
# Numbers the copies of a function, see `compiled`.
_COPIES = count(1)


@dataclass(frozen=True, kw_only=True)
class DdlBenchSettings(BenchSettings):
    """What all suites of the delta residual can be asked for.

    Attributes:
        rounds: iterations of every case.
        warmup: iterations that are run first and not recorded.
        variants: slugs that are measured; others than the baseline are compared with it.
        precisions: fp32, bf16.
        modes: eager, compiled.
        device: cpu or cuda; None takes a GPU where there is one.
        memory: also measure peak memory.
        keeps_freed_memory: time without page faults, as training runs, see `keep_freed_memory`.
        has_targets: whether the sizes are those that the targets were set for.
    """

    rounds: int = 50
    warmup: int = 10
    variants: tuple[str, ...] = tuple(VARIANTS)
    precisions: tuple[str, ...] = ("fp32", "bf16")
    modes: tuple[str, ...] = (EAGER, COMPILED)
    device: str | None = None
    memory: bool = True
    keeps_freed_memory: bool = True
    has_targets: bool = True

    @property
    def place(self) -> torch.device:
        """The device that is measured."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def usable_precisions(self) -> tuple[str, ...]:
        """Precisions this machine multiplies in; a processor that emulates bf16 leaves it out."""
        if self.place.type == "cuda" or cpu_has_bf16():
            return self.precisions
        return tuple(precision for precision in self.precisions if precision != "bf16")

    @property
    def usable_modes(self) -> tuple[str, ...]:
        """Modes this machine can run; on a processor compiling needs a C++ compiler."""
        reason = why_eager(self.place.type) if COMPILED in self.modes else None
        if reason is None:
            return self.modes
        logger.warning(reason)
        return tuple(mode for mode in self.modes if mode != COMPILED)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is measured.

    Attributes:
        labels: what it is; the values name it, so they are unique within a suite.
        tokens: tokens that one call works on.
        prepare: builds what the case needs and returns the call to time.
        least_bytes: least memory traffic of a call: each tensor that must be read or written once.
        is_timed: False where only memory is of interest.
        has_memory: False where peak memory is of no interest.
    """

    labels: Mapping[str, Any]
    tokens: int
    prepare: Callable[[], Action]
    least_bytes: int | None = None
    is_timed: bool = True
    has_memory: bool = True

    @property
    def name(self) -> str:
        """The name under which a baseline file finds it again."""
        return " ".join(
            f"{key}={value}" if isinstance(value, int) else str(value)
            for key, value in self.labels.items()
        )

    @property
    def is_compiled(self) -> bool:
        """Whether preparing it runs a compiler."""
        return self.labels.get("mode") == COMPILED


def named(cases: list[Case], settings: DdlBenchSettings) -> dict[str, Case]:
    """Return name -> case, with the reference of the machine at the end."""
    reference = Case(
        labels={"what": MACHINE},
        tokens=MATRIX,
        prepare=partial(_machine, settings),
        has_memory=False,
    )
    return {case.name: case for case in (*cases, reference)}


def _machine(settings: DdlBenchSettings) -> Action:
    """Return a product and a copy of torch: if it got slower, so did the machine, not our code."""
    left = seeded(settings.seed, settings.place)(MATRIX, MATRIX)
    source = torch.ones(COPIED_NUMBERS, device=settings.place)
    target = torch.empty_like(source)

    def action() -> None:
        torch.mm(left, left)
        target.copy_(source)

    return action


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a copy of a function for fixed shapes.

    Compiled forms are kept per code object and found by testing one after the other. A copy has
    its own, so a case does not pay for the tests of those before it.
    """
    if not isinstance(function, FunctionType):
        raise TypeError(f"{function!r} must be a plain function")
    own = FunctionType(
        function.__code__.replace(co_name=f"{function.__name__}_{next(_COPIES)}"),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return torch.compile(own, dynamic=False)


def in_mode(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Return the function as it is, or compiled."""
    return compiled(function) if mode == COMPILED else function


def half_precision(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the autocast context of a training step."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


Given = Tensor | tuple[Tensor, ...]


def call_of(
    function: Callable[..., Given], inputs: tuple[Tensor, ...], direction: str, mode: str
) -> Action:
    """Return a call of a function of tensors: forward alone, or with the gradients of its inputs.

    Args:
        function: tensors -> one tensor, or several.
        inputs: its arguments; those with requires_grad get a gradient.
        direction: one of `PASSES`.
        mode: eager or compiled.
    """
    run = in_mode(function, mode)
    if direction == FORWARD:
        inputs = tuple(tensor.detach() for tensor in inputs)

        def forward() -> Given:
            with torch.no_grad():
                result: Given = run(*inputs)
            return result

        return forward
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    with torch.no_grad():
        gradients = tuple(map(torch.ones_like, as_tuple(function(*inputs))))

    def both() -> Any:
        return torch.autograd.grad(as_tuple(run(*inputs)), wanted, gradients)

    return both


def call_of_module(
    run: Callable[..., Given],
    module: torch.nn.Module,
    state: Given,
    direction: str,
    mode: str,
) -> Action:
    """Return a call of a module on a state: forward alone, or with the gradients of both.

    Args:
        run: calls the module.
        module: whose weights get gradients.
        state: what it is called on, one tensor or several.
        direction: one of `PASSES`.
        mode: eager or compiled.
    """
    given = as_tuple(state)

    def with_weights(*tensors: Tensor) -> Given:
        # The weights are named only so that their gradients are asked for.
        return run(*tensors[: len(given)])

    return call_of(with_weights, (*given, *module.parameters()), direction, mode)


def as_tuple(given: Given) -> tuple[Tensor, ...]:
    """Return one or several tensors as several."""
    return given if isinstance(given, tuple) else (given,)


def separate_channels(state: Tensor) -> tuple[Tensor, ...]:
    """Return a state (..., d_v, d) as compiled models hold it: a tensor (..., d) a value channel.

    Each is a tensor of its own, not a view, and gets a gradient if the state does.
    """
    return tuple(
        channel.detach().clone().requires_grad_(state.requires_grad)
        for channel in state.unbind(-2)
    )


def seeded(seed: int, place: torch.device) -> Callable[..., Tensor]:
    """Return a maker of normal tensors: shape and dtype in, the same numbers every time."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(place, dtype)

    return draw
