"""What does one block cost with each residual?"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configuration.configuration_ddl import DdlConfig
from ...configuration.ddl_settings import VARIANTS
from ...modeling.ddl_layer import DdlLayer
from ...modeling.rotary_embedding import rotary_tables
from .bench_report import report, torch_threads
from .case_measurement import measured_rows, speed_ratio
from .ddl_cases import (
    BASELINE,
    BOTH,
    COMPILED,
    DTYPES,
    EAGER,
    PASSES,
    Action,
    Case,
    DdlBenchSettings,
    as_tuple,
    call_of_module,
    named,
    seeded,
    separate_channels,
)
from .operator import ADDED, OURS
from .operator import least_bytes as operator_bytes


@dataclass(frozen=True, kw_only=True)
class BlockSettings(DdlBenchSettings):
    """The block and its states.

    Attributes:
        hidden_size: d.
        num_attention_heads: heads.
        d_value: d_v of the matrix states.
        rows: sequences.
        sequence_length: tokens per row.
    """

    hidden_size: int = 256
    num_attention_heads: int = 4
    d_value: int = 4
    rows: int = 4
    sequence_length: int = 256


DEFAULT = BlockSettings(rounds=20, warmup=4)
SHORT = BlockSettings(
    hidden_size=64,
    num_attention_heads=2,
    sequence_length=64,
    precisions=("fp32",),
    modes=(EAGER,),
    has_targets=False,
)


def run(output: Path | None = None, settings: BlockSettings = DEFAULT) -> dict[str, Any]:
    """Time a block of every variant in turns.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes and rounds.
    """
    with torch_threads(settings.threads):
        rows = measured_rows("block", cases(settings), settings)
        by_name = {row["case"]: row for row in rows}
        summary: dict[str, Any] = {}
        for name, row in by_name.items():
            variant = row.get("variant", BASELINE)
            reference = name.replace(variant, BASELINE, 1)
            if variant != BASELINE and reference in by_name:
                ratio = speed_ratio(by_name, name, reference)
                summary[f"block {name}, speed over baseline"] = ratio
        return report("block", settings, rows, summary, output)


def cases(settings: BlockSettings) -> dict[str, Case]:
    """Return the cases: variant x forward or both passes x precision x mode."""
    return named(
        [
            Case(
                labels={
                    "variant": variant,
                    "pass": direction,
                    "precision": precision,
                    "mode": mode,
                },
                tokens=settings.rows * settings.sequence_length,
                prepare=partial(_prepare, settings, variant, direction, precision, mode),
                least_bytes=least_bytes(settings, variant, direction, precision),
            )
            for variant, direction, precision, mode in product(
                settings.variants, PASSES, settings.usable_precisions, settings.usable_modes
            )
        ],
        settings,
    )


def _config(settings: BlockSettings, variant: str) -> DdlConfig:
    config = DdlConfig(
        vocab_size=1,
        hidden_size=settings.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=settings.num_attention_heads,
        max_position_embeddings=settings.sequence_length,
        variant=variant,
        d_value=settings.d_value if VARIANTS[variant][0] else 1,
    )
    config._attn_implementation = "sdpa"
    return config


def least_bytes(settings: BlockSettings, variant: str, direction: str, precision: str) -> int:
    """Return the least traffic of a block: two updates of every token, and the weights once.

    With a backward pass the weights are read again and their gradients written. A block computes
    much with what it moves, so it stays far from this bound.
    """
    config = _config(settings, variant)
    operation = ADDED if variant == BASELINE else OURS
    updates = 2 * operator_bytes(
        operation, settings.hidden_size, config.d_value, direction, precision
    )
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in DdlLayer(config, 0).parameters())
    weights *= DTYPES[precision].itemsize * (3 if direction == BOTH else 1)
    return settings.rows * settings.sequence_length * updates + weights


def _prepare(
    settings: BlockSettings, variant: str, direction: str, precision: str, mode: str
) -> Action:
    config = _config(settings, variant)
    dtype, place = DTYPES[precision], settings.place
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        layer = DdlLayer(config, 0).to(place, dtype)
    positions = torch.arange(settings.sequence_length, device=place)[None]
    tables = rotary_tables(positions, config.head_dim, config.rope_theta)
    draw = seeded(settings.seed, place)
    shape = (settings.rows, settings.sequence_length, config.d_value, settings.hidden_size)
    state = draw(*shape, dtype=dtype).requires_grad_()

    # Compiled models hold a tensor a value channel where the residual is a delta.
    is_apart = mode == COMPILED and variant != BASELINE

    def block(*given: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(layer(given if is_apart else given[0], tables)[0])

    given = separate_channels(state) if is_apart else state
    return call_of_module(block, layer, given, direction, mode)
