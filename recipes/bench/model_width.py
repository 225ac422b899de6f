"""How much does the residual cost at other widths: training steps beside those of the baseline.

A sub-layer multiplies matrices, O(d^2) operations a token, and passes over its state, O(d) bytes a
token. So what the state adds to a step, as a share of it, should fall as 1 / d.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from .bench_report import report, torch_threads
from .case_measurement import measured_rows, speed_ratio
from .ddl_cases import BASELINE, COMPILED, EAGER, Case, named
from .model import TRAINING, ModelBenchSettings, training_step


@dataclass(frozen=True, kw_only=True)
class ModelWidthSettings(ModelBenchSettings):
    """The models and the batch.

    Attributes:
        hidden_sizes: widths d; the prediction starts from `hidden_size`, which is one of them.
        head_dim: channels of a head.
    """

    variants: tuple[str, ...] = (BASELINE, "ddl-cc")
    precisions: tuple[str, ...] = ("bf16",)
    modes: tuple[str, ...] = (COMPILED,)
    memory: bool = False
    hidden_sizes: tuple[int, ...] = (128, 256, 512, 768)
    head_dim: int = 64


DEFAULT = ModelWidthSettings()
SHORT = ModelWidthSettings(
    rounds=20,
    warmup=3,
    vocab_size=256,
    num_hidden_layers=2,
    sequence_length=64,
    hidden_size=64,
    hidden_sizes=(64, 128),
    precisions=("fp32",),
    modes=(EAGER,),
    has_targets=False,
)


def run(output: Path | None = None, settings: ModelWidthSettings = DEFAULT) -> dict[str, Any]:
    """Time training steps of all widths in turns.

    Args:
        output: JSON file; None writes nothing.
        settings: widths, variants and rounds.

    Raises:
        ValueError: if the width that predicts the others is not measured.
    """
    if settings.hidden_size not in settings.hidden_sizes:
        raise ValueError(
            f"hidden_size {settings.hidden_size} is not among hidden_sizes "
            f"{settings.hidden_sizes}; the other widths are predicted from it"
        )
    with torch_threads(settings.threads):
        rows = measured_rows("model_width", cases(settings), settings)
        by_name = {row["case"]: row for row in rows}
        return report("model_width", settings, rows, _over_baseline(by_name, settings), output)


def cases(settings: ModelWidthSettings) -> dict[str, Case]:
    """Return the cases: a training step of each variant x width x precision x mode."""
    found = []
    for variant, size, precision, mode in product(
        settings.variants, settings.hidden_sizes, settings.usable_precisions, settings.usable_modes
    ):
        sizes = replace(
            settings,
            hidden_size=size,
            num_attention_heads=max(1, size // settings.head_dim),
        )
        found.append(
            Case(
                labels={
                    "what": TRAINING,
                    "variant": variant,
                    "d": size,
                    "precision": precision,
                    "mode": mode,
                },
                tokens=settings.batch_size * settings.sequence_length,
                prepare=partial(training_step, sizes, variant, precision, mode),
            )
        )
    return named(found, settings)


def predicted_ratio(ratio: float, width: int, other: int) -> float:
    """Return the speed over the baseline at another width, from the speed at this one.

    With a cost c = 1 / ratio - 1 over the baseline's step at `width`, it is
    1 / (1 + c width / other).
    """
    return 1 / (1 + (1 / ratio - 1) * width / other)


def _over_baseline(
    rows: Mapping[str, Mapping[str, Any]], settings: ModelWidthSettings
) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, row in rows.items():
        if row.get("variant", BASELINE) == BASELINE:
            continue
        ratio = speed_ratio(rows, name, name.replace(f" {row['variant']} ", f" {BASELINE} "))
        if row["d"] != settings.hidden_size:
            origin = name.replace(f"d={row['d']} ", f"d={settings.hidden_size} ")
            start = speed_ratio(rows, origin, origin.replace(row["variant"], BASELINE))["measured"]
            ratio["predicted"] = predicted_ratio(start, settings.hidden_size, row["d"])
        summary[f"{name}, speed over baseline"] = ratio
    return summary
