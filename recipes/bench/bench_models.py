"""Models and batches of the benchmark suites, seeded."""

import torch
from torch import Tensor

from ...configuration.configuration_delta_encoder import DeltaEncoderConfig
from ...modeling.delta_encoder_heads import IGNORED_LABEL, DeltaEncoderForMaskedLM


def build_model(
    *,
    vocab_size: int,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int,
    max_length: int,
    seed: int,
    attn_implementation: str = "sdpa",
) -> DeltaEncoderForMaskedLM:
    """Return a randomly initialised masked LM whose budgets are the default lattice."""
    config = DeltaEncoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        max_position_embeddings=max_length,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
    )
    config._attn_implementation = attn_implementation
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DeltaEncoderForMaskedLM(config)


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
