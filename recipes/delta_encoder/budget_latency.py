"""Milliseconds per sequence of the sliced, standalone models, on the CPU of this machine."""

from collections.abc import Callable, Sequence
from typing import cast

import torch

from ...configuration.delta_budget import DeltaBudget
from ...modeling.modeling_delta_encoder import DeltaEncoderModel, DeltaEncoderPreTrainedModel
from ..interleaved_timing import time_interleaved


def measure_latency(
    model: DeltaEncoderPreTrainedModel,
    budgets: Sequence[DeltaBudget],
    sequence_length: int,
    *,
    rounds: int = 20,
    seed: int = 0,
) -> dict[DeltaBudget, dict[str, float]]:
    """Time the trunk of each slice on one sequence, budgets in turn.

    Embeddings, layers and the final norm run; no head does, so the times compare with the FLOPs
    of the table (``predicted_tokens=0``). Every budget is cut out first: what is timed is the
    model that gets deployed, not the nested one.

    Args:
        model: any model of the family; it is left as it is.
        budgets: budgets that fit it.
        sequence_length: tokens of the one sequence (batch 1, no padding).
        rounds: recorded rounds over all budgets.
        seed: seed of the random token ids, which do not influence the time.

    Returns:
        ``{"median", "p25", "p75"}`` in milliseconds of wall time for each budget.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (1, sequence_length), generator=generator)
    trunk = cast(DeltaEncoderModel, model.base_model)
    slices = {str(budget): standalone_trunk(trunk, budget) for budget in budgets}

    def forward(sliced: DeltaEncoderModel) -> Callable[[], object]:
        return lambda: sliced(input_ids=tokens)

    with torch.inference_mode():
        actions = {name: forward(sliced) for name, sliced in slices.items()}
        timings = time_interleaved(actions, rounds, warmup=2)
    return {budget: timings[str(budget)].summary()["wall_ms"] for budget in budgets}


def standalone_trunk(trunk: DeltaEncoderModel, budget: DeltaBudget) -> DeltaEncoderModel:
    """Cut out a trunk in eval mode on the CPU.

    Where the hidden width is whole, the copy of the embedding is given up for the original:
    otherwise the table of a large vocabulary would lie in memory once per budget.
    """
    sliced = trunk.slice(budget).train(False).cpu()
    original = trunk.embeddings.token.weight
    if original.device.type == "cpu" and original.shape == sliced.embeddings.token.weight.shape:
        sliced.embeddings.token.weight = original
    return sliced
