"""Models and batches of the benchmark suites, seeded."""

from typing import Any

import torch
from torch import Tensor

from ...configuration.configuration_delta_encoder import DeltaEncoderConfig
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.input_checks import IGNORED_LABEL
from ..environment import cpu_has_bf16
from .bench_settings import ModelSettings, StepSettings


def build_model(
    settings: ModelSettings, max_length: int, attn_implementation: str = "sdpa", **parts: Any
) -> DeltaEncoderForMaskedLM:
    """Return a randomly initialised masked LM whose budgets are the default lattice.

    Args:
        settings: sizes.
        max_length: longest sequence.
        attn_implementation: attention function.
        **parts: further values of its configuration.
    """
    config = DeltaEncoderConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=max_length,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        **parts,
    )
    config._attn_implementation = attn_implementation
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return DeltaEncoderForMaskedLM(config)


def models_by_precision(settings: StepSettings) -> dict[str, DeltaEncoderForMaskedLM]:
    """Return equal models to step in fp32 and, where wanted, in bf16."""
    length = settings.sequence_length
    # As the recipes choose: the fused attention of a CPU has a slow backward pass in bfloat16.
    models = {"fp32": build_model(settings, length, "sdpa")}
    if cpu_has_bf16() if settings.bf16 is None else settings.bf16:
        models["bf16"] = build_model(settings, length, "eager")
    return models


def masked_batch(
    vocab_size: int, batch_size: int, length: int, mlm_probability: float, seed: int
) -> dict[str, Tensor]:
    """Return random tokens with a fixed number of labels per row and no padding."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(3, vocab_size, (batch_size, length), generator=generator)
    order = torch.rand(batch_size, length, generator=generator).argsort(dim=1)
    is_predicted = order < max(1, round(mlm_probability * length))
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": input_ids.masked_fill(~is_predicted, IGNORED_LABEL),
    }


def step_batch(settings: StepSettings) -> dict[str, Tensor]:
    """Return the `masked_batch` of a step."""
    return masked_batch(
        settings.vocab_size,
        settings.batch_size,
        settings.sequence_length,
        settings.mlm_probability,
        settings.seed,
    )
