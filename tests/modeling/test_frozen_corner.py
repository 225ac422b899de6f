"""An upgrade trains what lies outside a smaller budget, which stays bit for bit what it was."""

from types import MethodType
from typing import Any

import pytest
import torch
from delta_models import KINDS, lively_model, packed_rows, some_labels
from nestling.configuration import DeltaBudget
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.frozen_corner import freeze_corner, frozen_parameters
from torch import Tensor

EVERYTHING: dict[str, Any] = {
    "conditioned_norms": True,
    "exit_affine": True,
    "token_routing": True,
    "norm_bias": True,
}
# Below, at and beyond the base slice (2 heads, half the channels), in every direction.
LATTICE = (
    "0.5:2:2",
    "0.5:2:4",
    "0.5:1:2:20",
    "0.75:2:3",
    "0.5:3:3",
    "0.75:3:3:20",
    "1.0:3:4",
    "0.5,0.75,0.6:3:3",
    "1.0:4:4",
)
BUDGETS = tuple(map(DeltaBudget.parse, LATTICE))
PAIRS = [(small, large) for small in BUDGETS for large in BUDGETS if small < large]


def upgrade_loss(
    model: DeltaEncoderForMaskedLM, larger: DeltaBudget, smaller: DeltaBudget
) -> Tensor:
    ids, documents = packed_rows()
    labels = some_labels(ids, documents)
    output = model(
        ids, documents, labels=labels, budgets=(smaller,), upgrade=(larger, smaller)
    )
    return torch.nn.functional.cross_entropy(output.budget_logits[-1], output.labels)


def tensors_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def step(model: DeltaEncoderForMaskedLM, optimizer: str, loss: Tensor) -> None:
    parameters = list(model.parameters())
    if optimizer == "SGD":
        chosen: Any = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    else:
        chosen = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    loss.backward()
    chosen.step()
    chosen.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_slice_is_untouched_for_every_pair(kind: str) -> None:
    assert len(PAIRS) >= 20
    start = lively_model(delta_kind=kind, **EVERYTHING)
    weights = tensors_of(start)
    for index, (smaller, larger) in enumerate(PAIRS):
        start.load_state_dict(weights)
        before = {budget: tensors_of(start.slice(budget)) for budget in (smaller, larger)}
        step(start, ("SGD", "AdamW")[index % 2], upgrade_loss(start, larger, smaller))
        after = tensors_of(start.slice(smaller))
        changed = [n for n, tensor in before[smaller].items() if not torch.equal(tensor, after[n])]
        assert changed == [], (str(smaller), str(larger))
        after = tensors_of(start.slice(larger))
        assert any(not torch.equal(t, after[n]) for n, t in before[larger].items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_although_the_smaller_model_is_frozen(kind: str) -> None:
    """Both from the base slice and from a budget that already uses part of the delta."""
    for small, large in (("0.5:2:4", "1.0:4:4"), ("0.75:3:4", "1.0:4:4"), ("0.5:2:2", "0.5:2:4")):
        model = lively_model(delta_kind=kind)
        smaller, larger = DeltaBudget.parse(small), DeltaBudget.parse(large)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
        losses = []
        for _ in range(12):
            loss = upgrade_loss(model, larger, smaller)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.3, (small, large)


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_outside_of_the_corner_is_trained(kind: str) -> None:
    """Every entry of every matrix that only the larger budget has, and no entry of the corner."""
    model = lively_model(delta_kind=kind)
    upgrade_loss(model, BUDGETS[-1], DeltaBudget.parse("0.5:1:3:20")).backward()
    for index, layer in enumerate(model.model.layers):
        inner = 8 if index < 3 else 0
        channels, hidden = (24, 20) if index < 3 else (0, 0)
        places = {
            "attention.query_key_value": (3 * inner, hidden),
            "attention.output": (hidden, inner),
            "mlp.up": (channels, hidden),
            "mlp.gate": (channels, hidden),
            "mlp.down": (hidden, channels),
        }
        for name, (rows, columns) in places.items():
            is_frozen = torch.zeros_like(layer.get_submodule(name).weight, dtype=torch.bool)
            is_frozen[:rows, :columns] = True
            gradient = layer.get_submodule(name).weight.grad
            assert not gradient[is_frozen].any(), (index, name)
            assert (gradient[~is_frozen] != 0).float().mean() > 0.99, (index, name)
    if kind != "dense":  # the smaller budget lies inside the base slice
        for name, parameter in model.model.deltas.named_parameters():
            assert (parameter.grad != 0).float().mean() > 0.99, name


def test_factors_that_both_budgets_use_are_frozen_where_the_smaller_reads_them() -> None:
    model = lively_model(delta_kind="dictionary", delta_atoms=3, delta_rank=4)
    upgrade_loss(model, BUDGETS[-1], DeltaBudget.parse("0.75:3:2:20")).backward()
    blocks = model.model.deltas.blocks
    output, up = blocks["output"], blocks["up"]
    assert not output.coefficients.grad[:2].any() and output.coefficients.grad[2:].all()
    assert not output.atoms_out.grad[:, :20].any() and output.atoms_out.grad[:, 20:].all()
    assert not output.atoms_in.grad[:, :, :8].any() and output.atoms_in.grad[:, :, 8:].all()
    assert not up.atoms_out.grad[:, :12].any() and up.atoms_out.grad[:, 12:].all()


def test_the_tied_decoder_is_frozen_with_the_embedding() -> None:
    model = lively_model()
    upgrade_loss(model, DeltaBudget.parse("1.0:4:4"), DeltaBudget.parse("0.5:2:2:20")).backward()
    embedding = model.get_input_embeddings().weight
    assert model.decoder.weight is embedding
    assert not embedding.grad[:, :20].any()
    assert embedding.grad[:, 20:].any(dim=1).all()
    assert model.decoder.bias.grad is None, "the smaller model has all of the bias"
    model.zero_grad()
    upgrade_loss(model, DeltaBudget.parse("1.0:4:4"), DeltaBudget.parse("0.5:2:2")).backward()
    assert embedding.grad is None or not embedding.grad.any()


def test_the_exit_of_the_smaller_depth_is_frozen_and_that_of_the_larger_trained() -> None:
    for small, large, trained in (
        ("0.5:2:2", "1.0:4:4", [False, False, False, True]),
        ("0.5:2:2", "1.0:4:2", [False, False, False, False]),
    ):
        model = lively_model(exit_affine=True, conditioned_norms=True)
        upgrade_loss(model, DeltaBudget.parse(large), DeltaBudget.parse(small)).backward()
        gradient = model.model.exit_affine.change.grad
        assert gradient.flatten(1).any(dim=1).tolist() == trained
        network = model.model.conditioner.parameters()
        assert all(p.grad is None or not p.grad.any() for p in network)


def test_the_upgrade_pass_computes_the_larger_budget() -> None:
    model = lively_model(delta_kind="dictionary", **EVERYTHING).train()
    ids, documents = packed_rows()
    labels = some_labels(ids, documents)
    for smaller, larger in PAIRS[::5]:
        output = model(
            ids, documents, labels=labels, budgets=(larger,), upgrade=(larger, smaller)
        )
        assert torch.equal(output.budget_logits[0], output.budget_logits[1])
        assert torch.equal(output.states[0], output.states[1])


def test_a_corner_is_the_identity_without_its_gradient() -> None:
    tensor = torch.randn(3, 4, requires_grad=True)
    frozen = freeze_corner(tensor, (2, 1))
    assert torch.equal(frozen, tensor)
    weight = torch.arange(1.0, 13.0).view(3, 4)
    (gradient,) = torch.autograd.grad((frozen * weight).sum(), tensor)
    expected = weight.clone()
    expected[:2, :1] = 0
    assert torch.equal(gradient, expected)
    assert not freeze_corner(tensor, (3, 4)).requires_grad


def test_a_frozen_trunk_has_no_parameter_left_of_the_smaller_one() -> None:
    """Frozen to itself, nothing but what no slice contains lets a gradient through."""
    model = lively_model(**EVERYTHING, delta_kind="low_rank")
    frozen = frozen_parameters(model, DeltaBudget.full(model.config))
    left = {name for name, tensor in frozen.items() if tensor.requires_grad}
    assert left == {"model.exit_affine.change"}, "the exits of other depths"


def test_impossible_upgrades_are_refused() -> None:
    model = lively_model()
    small, large = DeltaBudget.parse("0.5:2:2"), DeltaBudget.parse("1.0:4:4")
    beside = DeltaBudget.parse("1.0:1:2")
    for pair in ((small, large), (small, small), (beside, small), (small, beside)):
        with pytest.raises(ValueError, match="an upgrade goes from a smaller budget"):
            upgrade_loss(model, *pair)
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="switch gradient_checkpointing off"):
        upgrade_loss(model, large, small)
    model.gradient_checkpointing_disable()
    assert torch.isfinite(upgrade_loss(model, large, small))


def test_new_tokens_are_frozen_as_the_old_ones() -> None:
    """The vocabulary may grow between two upgrades."""
    model = lively_model()
    smaller = BUDGETS[0]
    frozen_parameters(model, smaller)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    assert not frozen_parameters(model, smaller)["model.embeddings.token.weight"].requires_grad


def test_an_upgrade_leaves_autocast_as_it_was() -> None:
    """Accelerate puts one autocast context around the forward of a model; upgrades run within."""
    model = lively_model()
    context = torch.autocast("cpu", dtype=torch.bfloat16)
    model.forward = MethodType(context(type(model).forward), model)
    upgrade_loss(model, BUDGETS[-1], BUDGETS[0])
    assert not torch.is_autocast_enabled("cpu")
