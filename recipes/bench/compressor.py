"""What does reading a matrix state cost, and what does folding its two maps into one save?"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from ...configuration.ddl_settings import VARIANTS
from ...modeling.ddl_layer import read_state
from ...modeling.state_reading import ChannelRead, ConvHistory, TokenRead
from .bench_report import report, torch_threads
from .case_measurement import measured_rows, share_rows, speed_ratio
from .ddl_cases import (
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
    separate_channels,
)
from .unfolded_reads import unfolded_channel_read, unfolded_token_read

FOLDED, UNFOLDED = "folded", "two steps"
KINDS = ("channel", "token")


@dataclass(frozen=True, kw_only=True)
class CompressorSettings(DdlBenchSettings):
    """The states that are read.

    Attributes:
        hidden_size: d.
        rows: sequences.
        sequence_length: tokens per row.
        value_sizes: d_v.
        conv_kernel: columns of the token convolution, and taps of the channel one.
    """

    hidden_size: int = 512
    rows: int = 4
    sequence_length: int = 512
    value_sizes: tuple[int, ...] = (2, 4, 8)
    conv_kernel: int = 4


DEFAULT = CompressorSettings(rounds=20, warmup=4)
SHORT = CompressorSettings(
    hidden_size=128,
    sequence_length=128,
    value_sizes=(4,),
    precisions=("fp32",),
    modes=(EAGER,),
    has_targets=False,
)


def run(output: Path | None = None, settings: CompressorSettings = DEFAULT) -> dict[str, Any]:
    """Time the folded reads of our models and the same reads in two steps, in turns.

    Compiled, whole forms are compared: ours reads a tensor a value channel, as compiled models do.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes and rounds.
    """
    with torch_threads(settings.threads):
        rows = measured_rows("compressor", cases(settings), settings)
        by_name = {row["case"]: row for row in rows}
        summary: dict[str, Any] = {}
        for name in by_name:
            if f" {FOLDED} " in name:
                other = name.replace(FOLDED, UNFOLDED)
                summary[f"folded over two steps, {name}"] = speed_ratio(by_name, name, other)
        summary |= share_rows(rows, {})
        return report("compressor", settings, rows, summary, output)


def cases(settings: CompressorSettings) -> dict[str, Case]:
    """Return the cases: kind x form x d_v x forward or both passes x precision x mode."""
    kinds = [kind for kind in KINDS if kind in {VARIANTS[v][1] for v in settings.variants}]
    tokens = settings.rows * settings.sequence_length
    return named(
        [
            Case(
                labels={
                    "what": kind,
                    "form": form,
                    "d_v": value_size,
                    "pass": direction,
                    "precision": precision,
                    "mode": mode,
                },
                tokens=tokens,
                prepare=partial(
                    _prepare, settings, kind, form, value_size, direction, precision, mode
                ),
                least_bytes=tokens
                * least_bytes(settings.hidden_size, value_size, direction, precision),
            )
            for kind, form, value_size, direction, precision, mode in product(
                kinds,
                (FOLDED, UNFOLDED),
                settings.value_sizes,
                PASSES,
                settings.usable_precisions,
                settings.usable_modes,
            )
        ],
        settings,
    )


def least_bytes(hidden_size: int, value_size: int, direction: str, precision: str) -> int:
    """Return the least traffic of one token; weights are shared by all tokens and left out.

    Forward: state in, read out, ``(d_v + 1) d``. Backward: gradient and state in (for the weights),
    gradient of the state out, ``(2 d_v + 1) d``.
    """
    numbers = value_size + 1 + (2 * value_size + 1) * (direction == BOTH)
    return DTYPES[precision].itemsize * hidden_size * numbers


def _prepare(
    settings: CompressorSettings,
    kind: str,
    form: str,
    value_size: int,
    direction: str,
    precision: str,
    mode: str,
) -> Action:
    draw = seeded(settings.seed, settings.place)
    dtype, size = DTYPES[precision], settings.hidden_size
    state = draw(settings.rows, settings.sequence_length, value_size, size, dtype=dtype)
    if form == UNFOLDED:
        shape = (settings.conv_kernel, value_size, size)
        kernel = draw(*(shape if kind == "token" else shape[::2]), dtype=dtype)
        read = unfolded_token_read if kind == "token" else unfolded_channel_read
        inputs = (state, kernel, draw(value_size, dtype=dtype))
        for tensor in inputs:
            tensor.requires_grad_()
        return call_of(read, inputs, direction, mode)
    module = (
        TokenRead(value_size, size, settings.conv_kernel)
        if kind == "token"
        else ChannelRead(value_size, size)
    ).to(settings.place, dtype)
    state.requires_grad_()
    if mode == EAGER:
        return call_of_module(module, module, state, direction, mode)

    def read_apart(*channels: Tensor) -> Tensor:
        return read_state(module, channels, ConvHistory())

    return call_of_module(read_apart, module, separate_channels(state), direction, mode)
