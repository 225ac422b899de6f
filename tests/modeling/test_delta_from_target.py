"""A delta from another checkpoint, and growth from folders: the small model stays exact."""

import json
from pathlib import Path

import pytest
import torch
from growing_models import (
    LARGER,
    assert_same,
    inputs,
    logits,
    random_model,
    scattered,
    small_config,
)
from nestling.configuration import DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.hierarchical_growth import (
    grow,
    grow_from_checkpoints,
    init_delta_from_target,
    small_budget,
)
from nestling.modeling.modernbert_weights import to_modernbert_config, to_modernbert_state
from safetensors.torch import save_file


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_a_delta_from_a_target_leaves_the_small_model_exact(by: str) -> None:
    small, config = random_model(small_config()), small_config(**LARGER)
    grown, target = grow(small, config), random_model(config, seed=1)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    batches = [inputs("padded"), inputs("packed")] if by == "activations" else None
    init_delta_from_target(grown, target, small, batches=batches)
    budget = small_budget(small.config, config)
    assert_same(logits(grown, budget=budget), logits(small))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    # Layers the small model does not have come from the target, up to its hidden order.
    deepest = "model.layers.4.mlp.up.weight"
    assert torch.equal(
        grown.state_dict()[deepest].sort(dim=1).values, before[deepest].sort(dim=1).values
    )
    assert (logits(grown) - logits(target)).abs().max() > 0.1


def test_a_target_that_contains_the_small_model_is_rebuilt() -> None:
    """The one case whose answer is known: its blocks come back to their places."""
    config = small_config(**LARGER)
    target = random_model(config)
    small = target.slice(small_budget(small_config(), config))
    expected = logits(target)
    grown = grow(small, config)
    assert (logits(grown) - expected).abs().max() > 0.1
    init_delta_from_target(grown, scattered(target, seed=4), small)
    torch.testing.assert_close(logits(grown), expected, atol=1e-4, rtol=1e-4)


def test_a_target_of_another_shape_is_refused() -> None:
    small, config = random_model(small_config()), small_config(**LARGER)
    with pytest.raises(ValueError, match="hidden_size 40 must be at least 48"):
        init_delta_from_target(
            grow(small, config), random_model(small_config(**{**LARGER, "hidden_size": 40})), small
        )


def test_a_delta_that_is_not_stored_takes_no_blocks() -> None:
    small = random_model(small_config())
    built = small_config(
        **LARGER,
        delta_kind="low_rank",
        delta_rank=2,
        base_attention_heads=4,
        base_intermediate_size=[48, 48, 48, 10, 10],
    )
    with pytest.raises(ValueError, match="use delta_kind='dense'"):
        init_delta_from_target(grow(small, built), random_model(small_config(**LARGER)), small)


def _write_stock_folder(model: DeltaEncoderForMaskedLM, folder: Path) -> str:
    folder.mkdir()
    state = to_modernbert_state(model.state_dict(), model.config)
    state.pop("decoder.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(to_modernbert_config(model.config)))
    return str(folder)


def _checkpoint_sizes() -> tuple[DeltaEncoderConfig, DeltaEncoderConfig]:
    return small_config(), small_config(hidden_size=48, num_attention_heads=6, intermediate_size=72)


@pytest.mark.parametrize("kind", ["stock", "ours"])
@pytest.mark.parametrize("delta_from_target", [False, True])
def test_growing_from_checkpoints(kind: str, delta_from_target: bool, tmp_path: Path) -> None:
    models = dict(zip(("mini", "base"), map(random_model, _checkpoint_sizes()), strict=True))
    folders = {}
    for name, model in models.items():
        if kind == "stock":
            folders[name] = _write_stock_folder(model, tmp_path / name)
        else:
            model.save_pretrained(tmp_path / name)
            folders[name] = str(tmp_path / name)
    grown, budget = grow_from_checkpoints(
        folders["mini"], folders["base"], delta_from_target=delta_from_target
    )
    assert grown.config.hidden_size == 48
    assert not grown.training
    assert_same(logits(grown, budget=budget), logits(models["mini"]))
    written = grown.model.layers[0].mlp.down.weight[:, 48:]
    assert bool(written.any()) is delta_from_target


def test_growing_to_a_configuration(tmp_path: Path) -> None:
    config, larger = _checkpoint_sizes()
    small = random_model(config)
    folder = _write_stock_folder(small, tmp_path / "mini")
    grown, budget = grow_from_checkpoints(folder, larger, new_units="random")
    assert_same(logits(grown, budget=budget), logits(small))
    assert grown.model.layers[0].mlp.down.weight[:, 48:].any()
    with pytest.raises(ValueError, match="needs a checkpoint"):
        grow_from_checkpoints(folder, larger, delta_from_target=True)
