"""What do the delta residuals cost a whole model: training step, decoding step, memory?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from ...configuration.configuration_ddl import DdlConfig
from ...configuration.ddl_settings import VARIANTS
from ...modeling.modeling_ddl import DdlForCausalLM
from ..precision import attention_of
from .bench_report import report, torch_threads
from .case_measurement import measured_rows, speed_ratio
from .ddl_cases import (
    BASELINE,
    COMPILED,
    DTYPES,
    EAGER,
    Action,
    Case,
    DdlBenchSettings,
    half_precision,
    in_mode,
    named,
)

TRAINING, DECODING, MEMORY = "training step", "decoding step", "training memory"
STORED, REBUILT = "stored states", "rebuilt states"
# Least share of the baseline's speed by how a variant reads its state, and least gain of bf16;
# both for compiled training in bf16.
LEAST_RATIO = {None: 0.97, "channel": 0.92, "token": 0.80}
LEAST_BF16_GAIN = 2.0


@dataclass(frozen=True, kw_only=True)
class ModelBenchSettings(DdlBenchSettings):
    """The model and the batch.

    Attributes:
        rounds: iterations of every case.
        warmup: iterations before them.
        vocab_size: vocabulary.
        hidden_size: d.
        num_hidden_layers: blocks.
        num_attention_heads: heads.
        d_value: d_v of the matrix states.
        sequence_length: tokens per row; decoding starts in its middle.
        batch_size: rows of a training step.
        decoded_rows: rows of a decoding step.
        memory_layers: blocks of the models whose rebuilt states are compared with stored ones.
        memory_rows: rows of their training step.
    """

    rounds: int = 15
    warmup: int = 3
    vocab_size: int = 2048
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    d_value: int = 4
    sequence_length: int = 256
    batch_size: int = 4
    decoded_rows: int = 1
    memory_layers: int = 12
    memory_rows: int = 8

    def value_size_of(self, variant: str) -> int:
        """Return d_v of a variant."""
        return self.d_value if VARIANTS[variant][0] else 1


DEFAULT = ModelBenchSettings()
SHORT = ModelBenchSettings(
    rounds=50,
    warmup=10,
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    sequence_length=64,
    memory_layers=8,
    memory_rows=32,
    modes=(EAGER,),
    has_targets=False,
)


def run(output: Path | None = None, settings: ModelBenchSettings = DEFAULT) -> dict[str, Any]:
    """Time training and decoding of all variants in turns, and measure memory in fresh processes.

    Args:
        output: JSON file; None writes nothing.
        settings: sizes, variants and rounds.
    """
    with torch_threads(settings.threads):
        rows = measured_rows("model", cases(settings), settings)
        by_name = {row["case"]: row for row in rows}
        summary = {
            **_over_baseline(by_name, settings),
            **_bf16_gain(by_name, settings),
            **_memory_ratios(by_name),
        }
        return report("model", settings, rows, summary, output)


def cases(settings: ModelBenchSettings) -> dict[str, Case]:
    """Return the cases: step x variant x precision x mode, and memory with and without rebuilding.

    Decoding is timed eagerly: a cache that grows has another shape at every step.
    """
    found = []
    for what, variant, precision, mode in product(
        (TRAINING, DECODING), settings.variants, settings.usable_precisions, settings.usable_modes
    ):
        if (what, mode) == (DECODING, COMPILED):
            continue
        prepare = training_step if what == TRAINING else _decoding_step
        rows = settings.batch_size * settings.sequence_length
        found.append(
            Case(
                labels={"what": what, "variant": variant, "precision": precision, "mode": mode},
                tokens=rows if what == TRAINING else settings.decoded_rows,
                prepare=partial(prepare, settings, variant, precision, mode),
                has_memory=what == TRAINING,
            )
        )
    return named(found + _memory_cases(settings), settings)


def _memory_cases(settings: ModelBenchSettings) -> list[Case]:
    """Return steps of the variants whose states can be rebuilt, with and without, untimed."""
    can = [v for v in settings.variants if v != BASELINE and VARIANTS[v][1] != "token"]
    pairs = [(variant, states) for variant in can for states in (STORED, REBUILT)]
    if can and BASELINE in settings.variants:
        pairs.insert(0, (BASELINE, STORED))
    sizes = replace(settings, batch_size=settings.memory_rows)
    found = []
    for variant, states in pairs:
        parts = {
            "rebuild_state": states == REBUILT,
            "num_hidden_layers": settings.memory_layers,
        }
        found.append(
            Case(
                labels={
                    "what": MEMORY,
                    "variant": variant,
                    "d_v": settings.value_size_of(variant),
                    "states": states,
                },
                tokens=settings.memory_rows * settings.sequence_length,
                prepare=partial(training_step, sizes, variant, "fp32", EAGER, **parts),
                is_timed=False,
            )
        )
    return found


def build_model(
    settings: ModelBenchSettings, variant: str, attention: str, **parts: Any
) -> DdlForCausalLM:
    """Return a randomly initialised model of one variant.

    Args:
        settings: sizes.
        variant: slug.
        attention: attention function.
        **parts: further values of its configuration.
    """
    config = DdlConfig(
        **{
            "vocab_size": settings.vocab_size,
            "hidden_size": settings.hidden_size,
            "num_hidden_layers": settings.num_hidden_layers,
            "num_attention_heads": settings.num_attention_heads,
            "max_position_embeddings": settings.sequence_length,
            "variant": variant,
            "d_value": settings.value_size_of(variant),
            **parts,
        }
    )
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return DdlForCausalLM(config).to(settings.place)  # type: ignore[arg-type]


def token_batch(settings: ModelBenchSettings, rows: int, length: int) -> torch.Tensor:
    """Return (rows, length) random token ids, the same every time."""
    generator = torch.Generator().manual_seed(settings.seed)
    tokens = torch.randint(0, settings.vocab_size, (rows, length), generator=generator)
    return tokens.to(settings.place)


def training_step(
    settings: ModelBenchSettings, variant: str, precision: str, mode: str, **parts: Any
) -> Action:
    """Return a step: forward, loss, backward, AdamW.

    Args:
        settings: sizes of model and batch.
        variant: slug.
        precision: fp32 or bf16.
        mode: eager or compiled.
        **parts: further values of its configuration.
    """
    attention = attention_of("auto", precision == "bf16", settings.place.type == "cpu")
    model = build_model(settings, variant, attention, **parts).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = token_batch(settings, settings.batch_size, settings.sequence_length)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
        return loss

    loss_function = in_mode(loss_of, mode)

    def step() -> None:
        with half_precision(precision, settings.place):
            loss = loss_function(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _decoding_step(
    settings: ModelBenchSettings, variant: str, precision: str, mode: str
) -> Action:
    """Return a step: one more token for every row, behind a cache that grows by it."""
    model = build_model(settings, variant, "sdpa").train(False)
    model.to(DTYPES[precision])
    prompt = token_batch(settings, settings.decoded_rows, max(1, settings.sequence_length // 2))
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=prompt, past_key_values=cache, use_cache=True)
    token = prompt[:, -1:]

    def step() -> None:
        with torch.inference_mode():
            model(input_ids=token, past_key_values=cache, use_cache=True)

    return step


def _over_baseline(
    rows: Mapping[str, Mapping[str, Any]], settings: ModelBenchSettings
) -> dict[str, Any]:
    summary = {}
    for name, row in rows.items():
        if row.get("variant", BASELINE) == BASELINE or "latency_ms" not in row:
            continue
        reference = name.replace(f" {row['variant']} ", f" {BASELINE} ")
        if reference not in rows:
            continue
        is_goal = settings.has_targets and name.startswith(TRAINING)
        is_goal = is_goal and (row["precision"], row["mode"]) == ("bf16", COMPILED)
        target = LEAST_RATIO[VARIANTS[row["variant"]][1]] if is_goal else None
        summary[f"{name}, speed over baseline"] = speed_ratio(rows, name, reference, target)
    return summary


def _bf16_gain(
    rows: Mapping[str, Mapping[str, Any]], settings: ModelBenchSettings
) -> dict[str, Any]:
    summary = {}
    for name, row in rows.items():
        reference = name.replace(" bf16 ", " fp32 ")
        if row.get("precision") != "bf16" or reference not in rows:
            continue
        is_goal = settings.has_targets and (row["what"], row["mode"]) == (TRAINING, COMPILED)
        target = LEAST_BF16_GAIN if is_goal and settings.place.type == "cpu" else None
        label = f"{row['what']} {row['variant']} {row['mode']}, speed of bf16 over fp32"
        summary[label] = speed_ratio(rows, name, reference, target)
    return summary


def _memory_ratios(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return peak over peak: rebuilt states over stored ones, and both over the baseline."""
    weighed = [row for row in rows.values() if row["what"] == MEMORY and row["peak_memory_bytes"]]
    peaks = {(row["variant"], row["states"]): row["peak_memory_bytes"] for row in weighed}
    baseline = peaks.get((BASELINE, STORED))
    summary = {}
    for row in weighed:
        variant, peak = row["variant"], row["peak_memory_bytes"]
        name = f"peak memory of training, {variant} d_v={row['d_v']}, {row['states']}"
        if row["states"] == REBUILT:
            ratio = peak / peaks[variant, STORED]
            summary[f"{name} over {STORED}"] = {"measured": ratio}
        if variant != BASELINE and baseline is not None:
            summary[f"{name} over baseline"] = {"measured": peak / baseline}
    return summary
