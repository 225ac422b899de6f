"""What one training step of each method costs: measured in turns, and by formula."""

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...trainers.parameter_groups import build_parameter_groups
from ..compiler import compiles
from ..data.causal_corpus import build_streams
from ..data.causal_rows import collate_rows
from ..ddl_schema import DdlRecipe
from ..environment import environment_block
from ..interleaved_timing import time_interleaved
from .build import build_model, rows_of, uses_bf16


def measure_step_times(recipes: Mapping[str, DdlRecipe], rounds: int) -> dict[str, Any]:
    """Time forward, backward and optimizer step of every method, in turns in one process.

    Args:
        recipes: method -> recipe of one of its cells.
        rounds: recorded rounds.

    Returns:
        Per method ``cpu_ms`` and ``wall_ms`` (median and quartiles) and ``ratio``, its median over
        that of the baseline: CPU time with one thread, which other processes do not disturb, wall
        time with more, which wait for each other. With ``clock``, threads and environment.
    """
    actions = {name: _training_step(recipe) for name, recipe in recipes.items()}
    timings = time_interleaved(actions, rounds, warmup=2)
    found = {name: timing.summary() for name, timing in timings.items()}
    del actions
    gc.collect()
    clock = "cpu_ms" if torch.get_num_threads() == 1 else "wall_ms"
    reference = found["baseline"][clock]["median"]
    return {
        "clock": {"cpu_ms": "CPU time of one thread", "wall_ms": "wall time"}[clock],
        "environment": environment_block([]),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "methods": {
            name: {**clocks, "ratio": clocks[clock]["median"] / reference}
            for name, clocks in found.items()
        },
    }


def _training_step(recipe: DdlRecipe) -> Callable[[], None]:
    """Return a function that takes one optimizer step on one batch."""
    torch.manual_seed(recipe.seed)
    streams = build_streams(recipe.data)
    model = build_model(recipe, streams).train()
    rows = rows_of(recipe, streams, "train")
    batch = collate_rows([rows[index] for index in range(recipe.training.batch_size)])
    section = recipe.training
    groups = build_parameter_groups(model.named_parameters(), section.lr, section.weight_decay)
    optimizer = torch.optim.AdamW(groups)
    device = model.device.type
    labels = batch.pop("labels").flatten()
    is_bf16 = uses_bf16(recipe)
    budget = model.config.budget_class.full(model.config)
    run: Any = model
    if section.torch_compile and compiles(device):
        run = torch.compile(model)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=is_bf16):
            logits = run(**batch, budgets=(budget,)).budget_logits[0]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.max_grad_norm or 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
