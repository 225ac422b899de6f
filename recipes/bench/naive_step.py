"""How much faster is our elastic step than computing everything and masking afterwards?"""

from functools import partial
from pathlib import Path
from typing import Any

from ...configuration.delta_budget import DeltaBudget
from ..environment import cpu_has_bf16
from ..interleaved_timing import time_interleaved
from .bench_models import build_model, masked_batch
from .bench_report import gate, report, torch_threads
from .naive_reference import naive_elastic_step
from .training_steps import elastic_step

TARGET_FP32, TARGET_BF16 = 4.0, 9.0


def run(
    output: Path | None = None,
    *,
    vocab_size: int = 30_522,
    hidden_size: int = 384,
    num_hidden_layers: int = 6,
    num_attention_heads: int = 6,
    intermediate_size: int = 576,
    sequence_length: int = 128,
    batch_size: int = 8,
    mlm_probability: float = 0.15,
    budgets: tuple[str, ...] = ("1.0:6:6", "0.5:3:3", "0.75:6:3", "0.5:3:6"),
    rounds: int = 2,
    bf16: bool | None = None,
    threads: int | None = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Time both steps on equal weights, budgets and data.

    Args:
        output: JSON file; None writes nothing.
        vocab_size: vocabulary.
        hidden_size: hidden channels.
        num_hidden_layers: layers.
        num_attention_heads: heads.
        intermediate_size: MLP channels.
        sequence_length: tokens per row.
        batch_size: rows.
        mlm_probability: share of the tokens to predict.
        budgets: the budgets of the step, the largest first.
        rounds: recorded rounds.
        bf16: also time bfloat16; None does where the processor has it.
        threads: torch threads; None leaves the setting alone.
        seed: seed of weights and tokens.
    """
    settings = {name: value for name, value in locals().items() if name != "output"}
    build = partial(
        build_model,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        max_length=sequence_length,
        seed=seed,
    )
    # As the recipes choose: the fused attention of a CPU has a slow backward pass in bfloat16.
    models = {"fp32": build(attn_implementation="sdpa")}
    if cpu_has_bf16() if bf16 is None else bf16:
        models["bf16"] = build(attn_implementation="eager")
    batch = masked_batch(vocab_size, batch_size, sequence_length, mlm_probability, seed)
    drawn = [DeltaBudget.parse(text) for text in budgets]
    actions: dict[str, Any] = {}
    for name, model in models.items():
        half = name == "bf16"
        actions[f"ours {name}"] = partial(elastic_step, model, batch, drawn, half)
        actions[f"naive {name}"] = partial(naive_elastic_step, model, batch, drawn, half)
    with torch_threads(threads):
        clocks = {n: t.summary() for n, t in time_interleaved(actions, rounds).items()}
        tokens = batch_size * sequence_length
        cpu = {name: clock["cpu_ms"]["median"] for name, clock in clocks.items()}
        results = [
            {"step": name, "tokens_per_second": 1e3 * tokens / cpu[name], **clock}
            for name, clock in clocks.items()
        ]
        summary: dict[str, Any] = {
            "fp32 over naive fp32": gate(cpu["naive fp32"] / cpu["ours fp32"], TARGET_FP32, True)
        }
        if "ours bf16" in cpu:
            gain = cpu["naive fp32"] / cpu["ours bf16"]
            summary["bf16 over naive fp32"] = gate(gain, TARGET_BF16, True)
            summary["bf16 over naive bf16"] = {"measured": cpu["naive bf16"] / cpu["ours bf16"]}
        return report("naive_step", settings, results, summary, output, seed)
