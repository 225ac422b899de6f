"""Small encoders that grow, shared by the tests of growth and of alignment."""

from typing import Any

import torch
from nestling.configuration import DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.families import FAMILIES
from nestling.modeling.importance_ordering import reorder_units
from torch import Tensor

SMALL = {**FAMILIES["delta_encoder"].tiny, "head_dim": 8, "num_hidden_layers": 3}
BIASES = {
    "norm_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "classifier_bias": True,
}
LARGER: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 6,
    "intermediate_size": [72, 49, 48, 64, 30],
    "num_hidden_layers": 5,
}


def small_config(**overrides: Any) -> DeltaEncoderConfig:
    return DeltaEncoderConfig(**{**SMALL, **overrides})


def randomise(model: Any, seed: int) -> Any:
    """Move every weight away from its initial value, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def random_model(config: DeltaEncoderConfig, seed: int = 0) -> DeltaEncoderForMaskedLM:
    torch.manual_seed(seed)
    return randomise(DeltaEncoderForMaskedLM(config), seed)


def scattered(model: DeltaEncoderForMaskedLM, seed: int) -> DeltaEncoderForMaskedLM:
    """Move every unit; the function stays."""
    config, generator = model.config, torch.Generator().manual_seed(seed)

    def draw(size: int) -> Tensor:
        return torch.randperm(size, generator=generator)

    heads = [draw(config.num_attention_heads) for _ in range(config.num_hidden_layers)]
    channels = [draw(size) for size in config.intermediate_sizes()]
    reorder_units(model, heads, channels, draw(config.hidden_size))
    return model


def inputs(kind: str) -> dict[str, Tensor]:
    ids = torch.randint(8, 96, (3, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if kind == "padded":
        mask[1, 15:] = 0
    if kind == "packed":
        mask[0, 9:] = 2
        mask[1, 5:14] = 2
        mask[1, 14:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: Any, kind: str = "padded", **kwargs: Any) -> Tensor:
    """Logits of the real tokens."""
    batch = inputs(kind)
    with torch.no_grad():
        return model(**batch, **kwargs).logits[batch["attention_mask"] > 0]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)
