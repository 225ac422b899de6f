"""Tiny models whose deltas, norms and preview all show in the output."""

from typing import Any

import torch
from nestling.configuration import DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.families import FAMILIES
from torch import Tensor

KINDS = ("dense", "dictionary", "low_rank")
BUILT = ("dictionary", "low_rank")
SMALL: dict[str, Any] = {
    "delta_atoms": 3,
    "delta_rank": 4,
    "conditioner_size": 8,
    "preview_size": 8,
    "base_attention_heads": 2,
    "base_intermediate_size": 24,
}


def tiny_config(**settings: Any) -> DeltaEncoderConfig:
    return DeltaEncoderConfig(**{**FAMILIES["delta_encoder"].tiny, **SMALL, **settings})


def fresh_model(seed: int = 0, **settings: Any) -> DeltaEncoderForMaskedLM:
    torch.manual_seed(seed)
    return DeltaEncoderForMaskedLM(tiny_config(**settings))


def lively_model(seed: int = 0, **settings: Any) -> DeltaEncoderForMaskedLM:
    """In evaluation mode, every parameter moved away from zeros and ones."""
    model = fresh_model(seed, **settings).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


def packed_rows(seed: int = 2) -> tuple[Tensor, Tensor]:
    """Token ids (3, 12) and document numbers: one document; padding; two documents and padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, 96, (3, 12), generator=generator)
    documents = torch.tensor([[1] * 12, [1] * 8 + [0] * 4, [1] * 5 + [2] * 4 + [0] * 3])
    return ids, documents


def some_labels(ids: Tensor, documents: Tensor) -> Tensor:
    """Labels on every third real token."""
    wanted = (torch.arange(ids.shape[1]) % 3 == 0) & (documents > 0)
    return ids.masked_fill(~wanted, -100)
