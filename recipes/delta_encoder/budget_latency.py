"""Milliseconds per sequence of the sliced, standalone models, on the CPU of this machine."""

from collections.abc import Callable, Mapping, Sequence

import torch

from ...configuration.delta_budget import DeltaBudget
from ...configuration.delta_settings import choose_tokens_by_share
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ..interleaved_timing import time_interleaved


def measure_latency(
    model: DeltaEncoderForMaskedLM,
    budgets: Sequence[DeltaBudget],
    sequence_length: int,
    predicted_tokens: int = 0,
    *,
    shares: Mapping[DeltaBudget, float | None] | None = None,
    rounds: int = 20,
    seed: int = 0,
) -> dict[DeltaBudget, dict[str, float]]:
    """Time the work that ``budget.flops(config, sequence_length, 1, predicted_tokens)`` counts.

    Embeddings, layers and the final norm run on one sequence, then the masked-LM head on the first
    ``predicted_tokens`` positions. Budgets run in turn. Every budget is cut out first: what is
    timed is the model that gets deployed, not the nested one.

    Args:
        model: a masked LM of the family; it is left as it is.
        budgets: budgets that fit it.
        sequence_length: tokens of the one sequence (batch 1, no padding).
        predicted_tokens: positions the head runs on; 0 times the trunk alone.
        shares: share of the tokens that get the delta at a budget, in place of what the
            configuration says: random tokens do not score as text does.
        rounds: recorded rounds over all budgets.
        seed: seed of the random token ids, which do not influence the time.

    Returns:
        ``{"median", "p25", "p75"}`` in milliseconds of wall time for each budget.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(model.config.vocab_size, (1, sequence_length), generator=generator)
    slices = {str(budget): standalone_slice(model, budget) for budget in budgets}
    for budget, share in (shares or {}).items():
        if share is not None:
            choose_tokens_by_share(slices[str(budget)].config, share)

    def forward(sliced: DeltaEncoderForMaskedLM) -> Callable[[], object]:
        def trunk_and_head() -> object:
            hidden_states = sliced.model(input_ids=tokens).last_hidden_state
            if predicted_tokens == 0:
                return hidden_states
            return sliced.decoder(sliced.head(hidden_states[0, :predicted_tokens]))

        return trunk_and_head

    with torch.inference_mode():
        actions = {name: forward(sliced) for name, sliced in slices.items()}
        timings = time_interleaved(actions, rounds, warmup=2)
    return {budget: timings[str(budget)].summary()["wall_ms"] for budget in budgets}


def standalone_slice(
    model: DeltaEncoderForMaskedLM, budget: DeltaBudget
) -> DeltaEncoderForMaskedLM:
    """Cut out a masked LM in eval mode on the CPU.

    Where the hidden width is whole, the copies of the embedding and of the decoder are given up
    for the originals: otherwise the table of a large vocabulary would lie in memory once per
    budget.
    """
    sliced = model.slice(budget).train(False).cpu()
    for ours, theirs in (
        (sliced.model.embeddings.token, model.model.embeddings.token),
        (sliced.decoder, model.decoder),
    ):
        if theirs.weight.device.type == "cpu" and ours.weight.shape == theirs.weight.shape:
            ours.weight = theirs.weight
    return sliced
