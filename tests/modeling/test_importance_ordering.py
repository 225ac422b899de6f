"""Importance: scores are mask derivatives, sorting keeps the function and helps the slices."""

from typing import Any

import pytest
import torch
from nestling.configuration import DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForMaskedLM, measure_importance, reorder_by_importance
from nestling.modeling.families import FAMILIES, resolve
from nestling.modeling.importance_ordering import Importance
from torch import Tensor

FAMILY = FAMILIES["delta_encoder"]
BIASES = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}


def _model(auto_class: str = "AutoModelForMaskedLM", **overrides: Any) -> Any:
    torch.manual_seed(0)
    config = DeltaEncoderConfig(**{**FAMILY.tiny, **overrides})
    model = resolve(FAMILY.auto_classes[auto_class])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def _batch(rows: int = 3, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(8, 96, (rows, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[-1, 9:] = 0
    labels = ids.masked_fill((torch.arange(12) % 3 != 0) | (torch.arange(12) >= 9), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _scores_at_random(model: Any) -> Importance:
    config, generator = model.config, torch.Generator().manual_seed(9)
    layers = range(config.num_hidden_layers)
    return Importance(
        heads=[torch.rand(config.num_attention_heads, generator=generator) for _ in layers],
        channels=[torch.rand(size, generator=generator) for size in config.intermediate_sizes()],
        hidden=torch.rand(config.hidden_size, generator=generator),
    )


@pytest.mark.parametrize("auto_class", FAMILY.auto_classes)
@pytest.mark.parametrize(
    "overrides",
    [{}, BIASES, {"tie_word_embeddings": False, "intermediate_size": [40, 48, 17, 30]}],
    ids=["plain", "biases", "untied and uneven"],
)
def test_sorting_keeps_the_function(auto_class: str, overrides: dict[str, Any]) -> None:
    model = _model(auto_class, **overrides)
    batch = {key: value for key, value in _batch().items() if key != "labels"}
    with torch.no_grad():
        before = model(**batch)[0]
        sliced = model(**batch, budget="0.5:2:4")[0]
        reorder_by_importance(model, _scores_at_random(model))
        after = model(**batch)[0]
        assert not torch.allclose(model(**batch, budget="0.5:2:4")[0], sliced, atol=1e-2)
    if auto_class == "AutoModel":
        order = _scores_at_random(model).hidden.argsort(descending=True)
        before = before[..., order]
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def _loss_with_mask(
    model: DeltaEncoderForMaskedLM,
    batch: dict[str, Tensor],
    row: int,
    site: str,
    unit: int,
    mask: float,
) -> float:
    """The loss with one unit of one sequence multiplied by ``mask``."""

    def scaled(states: Tensor, channels: list[int]) -> Tensor:
        factors = torch.ones_like(states)
        factors[row, :, channels] = mask
        return states * factors

    def on_input(channels: list[int]) -> Any:
        return lambda module, args: (scaled(args[0], channels), *args[1:])

    def on_output(channels: list[int]) -> Any:
        return lambda module, args, output: scaled(output, channels)

    trunk, size = model.model, model.config.head_dim
    handles = []
    if site == "hidden":
        handles = [
            module.register_forward_hook(on_output([unit]))
            for layer in trunk.layers
            for module in (layer.attention_norm, layer.mlp_norm)
            if not isinstance(module, torch.nn.Identity)
        ]
        for norm in (trunk.embeddings.norm, trunk.final_norm):
            handles.append(norm.register_forward_hook(on_output([unit])))
    else:
        kind, index = site.split()
        layer = trunk.layers[int(index)]
        module = layer.attention.output if kind == "head" else layer.mlp.down
        channels = list(range(unit * size, (unit + 1) * size)) if kind == "head" else [unit]
        handles.append(module.register_forward_pre_hook(on_input(channels)))
    with torch.no_grad():
        loss = model(**batch).loss.item()
    for handle in handles:
        handle.remove()
    return loss


def _finite_score(model: Any, batch: dict[str, Tensor], site: str, unit: int) -> float:
    step, total = 0.03, 0.0
    for row in range(batch["input_ids"].shape[0]):
        high = _loss_with_mask(model, batch, row, site, unit, 1 + step)
        low = _loss_with_mask(model, batch, row, site, unit, 1 - step)
        total += abs(high - low) / (2 * step)
    return total


@pytest.mark.parametrize("site", ["head 0", "head 3", "channel 0", "channel 2", "hidden"])
def test_scores_are_the_derivative_of_a_mask(site: str) -> None:
    model, batch = _model(), _batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = measure_importance(model, [batch])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    kind, *index = site.split()
    measured = {
        "head": lambda: scores.heads[int(index[0])],
        "channel": lambda: scores.channels[int(index[0])],
        "hidden": lambda: scores.hidden,
    }[kind]()
    units = range(len(measured)) if kind == "head" else range(0, len(measured), 7)
    expected = torch.tensor([_finite_score(model, batch, site, unit) for unit in units])
    actual = measured[list(units)]
    expected, actual = expected / expected.sum(), actual / actual.sum()  # only the order is used
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.005 * expected.max().item())


def test_scores_add_up_over_batches() -> None:
    model = _model()
    first, second = _batch(seed=1), _batch(seed=2)
    both = measure_importance(model, [first, second])
    parts = [measure_importance(model, [batch]) for batch in (first, second)]
    torch.testing.assert_close(both.hidden, parts[0].hidden + parts[1].hidden)
    for layer in range(model.config.num_hidden_layers):
        summed = parts[0].heads[layer] + parts[1].heads[layer]
        torch.testing.assert_close(both.heads[layer], summed)


def test_every_sequence_counts_the_same() -> None:
    """However the same sequences are batched: a short last batch must not weigh more."""
    model, batch = _model(), _batch(rows=4)
    parts = [{key: value[rows] for key, value in batch.items()} for rows in ([0], [1, 2, 3])]
    together = measure_importance(model, [batch]).hidden
    apart = measure_importance(model, parts).hidden
    torch.testing.assert_close(apart / apart.sum(), together / together.sum(), rtol=1e-3, atol=1e-6)


def test_after_sorting_the_scores_descend() -> None:
    model, batch = _model(), _batch()
    scores = measure_importance(model, [batch])
    reorder_by_importance(model, scores)
    again = measure_importance(model, [batch])
    for new, old in zip(
        [*again.heads, *again.channels, again.hidden],
        [*scores.heads, *scores.channels, scores.hidden],
        strict=True,
    ):
        expected = old.sort(descending=True).values
        torch.testing.assert_close(new, expected, rtol=1e-2, atol=1e-3 * expected[0].item())


def test_sorting_finds_planted_importance() -> None:
    """The first half of every layer is made nearly useless; its slices must recover."""
    model, batch = _model(), _batch(rows=8)
    half_heads = model.config.num_attention_heads // 2 * model.config.head_dim
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attention.output.weight[:, :half_heads] *= 0.01
            layer.mlp.down.weight[:, : layer.mlp.down.in_features // 2] *= 0.01
    inputs = {key: value for key, value in batch.items() if key != "labels"}

    def distance() -> float:
        with torch.no_grad():
            full, cut = model(**inputs).logits, model(**inputs, budget="0.5:2:4").logits
        return float((full - cut)[inputs["attention_mask"] > 0].square().mean())

    before = distance()
    reorder_by_importance(model, measure_importance(model, [batch]))
    assert distance() < before / 20


def test_measuring_keeps_the_mode_and_needs_a_batch() -> None:
    model = _model().train()
    measure_importance(model, [_batch()])
    assert model.training
    with pytest.raises(ValueError, match="at least one batch"):
        measure_importance(model, [])


def test_measuring_ignores_the_active_budget() -> None:
    """Scores are of all units; a budget left set must not hide some of them."""
    model, batch = _model(), _batch()
    expected = measure_importance(model, [batch])
    model.set_budget("0.5:2:2")
    actual = measure_importance(model, [batch])
    torch.testing.assert_close(actual.hidden, expected.hidden)
    assert str(model.active_budget) == "0.5:2:2"


@pytest.mark.parametrize(
    "setting",
    [
        {"delta_kind": "dictionary"},
        {"delta_kind": "low_rank"},
        {"conditioned_norms": True},
        {"exit_affine": True},
        {"token_routing": True},
    ],
    ids=str,
)
def test_parts_trained_for_an_order_are_not_reordered(setting: dict[str, Any]) -> None:
    """Atoms, changes of norms and the preview network do not move with the units."""
    model = _model(**setting)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = next(iter(setting))
    with pytest.raises(ValueError, match=f"a model with {name}.* cannot be reordered: .* first"):
        reorder_by_importance(model, _scores_at_random(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
