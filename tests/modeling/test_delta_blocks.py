"""Built deltas: the documented sum, alive from the start, and no larger than a budget needs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from delta_models import BUILT, fresh_model, lively_model, packed_rows, some_labels, tiny_config
from nestling.configuration import DeltaBudget, DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.delta_blocks import DeltaBlocks, DictionaryBlock, LowRankBlock
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

by_kind = pytest.mark.parametrize("kind", BUILT)


def _lively(block: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return block


def _dictionary() -> DictionaryBlock:
    return _lively(DictionaryBlock(3, 7, 5, atoms=4, rank=2, starts_at_zero=False))


def test_dictionary_is_the_documented_sum() -> None:
    """``sum_i c_i V_i U_i``, one atom after the other."""
    block = _dictionary()
    built = block(2, 6, 4)
    assert built.shape == (2, 6, 4)
    for layer in range(2):
        expected = torch.zeros(6, 4)
        for atom in range(4):
            product = block.atoms_out[atom, :6] @ block.atoms_in[atom][:, :4]
            expected = expected + block.coefficients[layer, atom] * product
        torch.testing.assert_close(built[layer], expected)


def test_low_rank_is_one_product_a_layer() -> None:
    block = _lively(LowRankBlock(3, 7, 5, rank=2, starts_at_zero=False))
    built = block(2, 6, 4)
    for layer in range(2):
        expected = torch.zeros(6, 4)
        for unit in range(2):
            expected = expected + torch.outer(
                block.factor_out[layer, :6, unit], block.factor_in[layer, unit, :4]
            )
        torch.testing.assert_close(built[layer], expected)


def test_dictionary_is_linear_in_the_coefficients() -> None:
    """A product of two weighted sums would be quadratic."""
    block = _dictionary()
    first, second = torch.randn(3, 4), torch.randn(3, 4)

    def build(coefficients: Tensor) -> Tensor:
        block.coefficients.data = coefficients
        return block(3, 7, 5).detach()

    expected = 2.0 * build(first) - 0.5 * build(second)
    torch.testing.assert_close(build(2.0 * first - 0.5 * second), expected, atol=1e-5, rtol=1e-5)


def test_rank_is_that_of_all_atoms_together() -> None:
    """N atoms of rank r reach rank N r, more than one weighted atom of rank r."""
    block = _lively(DictionaryBlock(1, 20, 20, atoms=3, rank=2, starts_at_zero=False))
    assert torch.linalg.matrix_rank(block(1, 20, 20)[0]) == 6


@by_kind
def test_every_factor_is_alive_within_two_steps(kind: str) -> None:
    """Factors that are all zero have no gradient, and then never will."""
    model = fresh_model(delta_kind=kind).train()
    ids, documents = packed_rows()
    labels = some_labels(ids, documents)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    deltas = dict(model.model.deltas.named_parameters())
    assert len(deltas) == 5 * (3 if kind == "dictionary" else 2)
    asleep = set(deltas)
    for _ in range(2):
        model(ids, documents, labels=labels).loss.backward()
        for name in list(asleep):
            rows = deltas[name].grad.flatten(1)  # of each layer, or of each atom
            if (rows.abs().amax(dim=1) > 0).all():
                asleep.remove(name)
        optimizer.step()
        optimizer.zero_grad()
    assert asleep == set()


@by_kind
def test_a_fresh_delta_changes_nothing_and_a_trained_one_does(kind: str) -> None:
    """Both more channels and more heads must count once the factors have moved."""
    ids, documents = packed_rows()
    budgets = ("0.5:2:4", "1.0:2:4", "0.5:4:4", "1.0:4:4")

    def logits(model: DeltaEncoderForMaskedLM) -> list[Tensor]:
        with torch.no_grad():
            return [model(ids, documents, budget=budget).logits for budget in budgets]

    base, *others = logits(fresh_model(delta_kind=kind).eval())
    for other in others:
        assert torch.equal(other, base)
    found = logits(lively_model(delta_kind=kind))
    for index, one in enumerate(found):
        for other in found[index + 1 :]:
            assert (one - other).abs().max() > 1e-2


@by_kind
def test_a_tail_is_built_as_far_as_the_budget_needs_it(kind: str) -> None:
    config = tiny_config(
        delta_kind=kind,
        intermediate_size=[48, 40, 48, 24],
        base_intermediate_size=[24, 10, 48, 12],
        base_attention_heads=1,
    )
    blocks = DeltaBlocks(config)

    def sizes(text: str) -> list[dict[str, tuple[int, ...]]]:
        tails = blocks(DeltaBudget.parse(text).shape(config))
        return [{name: tuple(tail.shape) for name, tail in layer.items()} for layer in tails]

    full = sizes("1.0:4:4")
    assert full[0] == {
        "query_key_value": (3 * 3 * 8, 32),
        "output": (32, 3 * 8),
        "up": (24, 32),
        "gate": (24, 32),
        "down": (32, 24),
    }
    assert [layer["up"] for layer in full] == [(24, 32), (30, 32), (0, 32), (12, 32)]
    assert [layer["down"] for layer in full] == [(32, 24), (32, 30), (32, 0), (32, 12)]
    small = sizes("0.5:2:2:20")
    assert small[0] == {
        "query_key_value": (24, 20),
        "output": (20, 8),
        "up": (0, 20),
        "gate": (0, 20),
        "down": (20, 0),
    }
    assert small[1]["up"] == (10, 20)
    assert len(small) == 2
    assert sizes("0.25:1:3") == [{}, {}, {}]


@by_kind
def test_building_costs_what_the_budget_needs(kind: str) -> None:
    """Counted multiplications, so that nothing is built in full and cut afterwards."""
    config = tiny_config(delta_kind=kind)
    blocks = DeltaBlocks(config)

    def flops(text: str) -> int:
        shape = DeltaBudget.parse(text).shape(config)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            blocks(shape)
        return int(counter.get_total_flops())

    def expected(heads: int, channels: int, layers: int, hidden: int) -> int:
        rank = config.delta_rank * (config.delta_atoms if kind == "dictionary" else 1)
        entries = 4 * heads * config.head_dim * hidden + 3 * channels * hidden
        return 2 * layers * entries * rank

    assert flops("1.0:4:4") == expected(2, 24, 4, 32)
    assert flops("0.75:3:2:20") == expected(1, 12, 2, 20)
    assert flops("1.0:2:1") == expected(0, 24, 1, 32)
    assert flops("0.5:2:4") == 0


@by_kind
def test_initial_scale(kind: str) -> None:
    """Inner weights like stored ones; what joins the residual stream starts at zero."""
    torch.manual_seed(0)
    config = DeltaEncoderConfig(
        vocab_size=64,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        delta_kind=kind,
        delta_atoms=16,
        delta_rank=32,
    )
    model = DeltaEncoderForMaskedLM(config)
    tails = model.model.deltas(DeltaBudget.full(config).shape(config))
    for name in ("query_key_value", "up", "gate"):
        entries = torch.stack([layer[name] for layer in tails])
        assert entries.std().item() == pytest.approx(0.02, rel=0.15), name
        assert entries.mean().abs() < 0.001
    for name in ("output", "down"):
        assert all(not layer[name].any() for layer in tails), name


def _is_initialised(model: DeltaEncoderForMaskedLM) -> None:
    """Compare with a twin drawn from another seed: no value may come from elsewhere."""
    twin = dict(fresh_model(5, **_EVERYTHING).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        expected = twin[name]
        if (expected == expected.flatten()[0]).all():
            assert torch.equal(parameter, expected), name
        else:
            assert 0.5 < (parameter.std() / expected.std()).item() < 2.0, name


_EVERYTHING: dict[str, Any] = {
    "delta_kind": "dictionary",
    "conditioned_norms": True,
    "exit_affine": True,
    "token_routing": True,
    "norm_bias": True,
}


@by_kind
def test_construction_leaves_no_memory_as_it_was(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``torch.empty`` gives whatever was there: here, something that is not a number."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        tensor = empty(*args, **kwargs)
        is_float = tensor.is_floating_point() and not tensor.is_meta
        return tensor.fill_(torch.nan) if is_float else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
    model = fresh_model(**{**_EVERYTHING, "delta_kind": kind})
    monkeypatch.undo()
    assert [n for n, p in model.named_parameters() if not torch.isfinite(p).all()] == []


@pytest.mark.parametrize("part", ["deltas", "conditioner", "exit_affine", "preview"])
def test_a_checkpoint_without_a_part_gives_it_its_initial_values(
    part: str, tmp_path: Path
) -> None:
    """Loading builds on the meta device; missing weights are then drawn module by module."""
    fresh_model(**_EVERYTHING).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith(f"model.{part}.")}
    assert 0 < len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = DeltaEncoderForMaskedLM.from_pretrained(tmp_path)
    for name, tensor in kept.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    _is_initialised(loaded)


@by_kind
def test_fewer_layers_at_load_are_refused(kind: str, tmp_path: Path) -> None:
    """The factors of all layers lie in one tensor; such a model is cut with ``slice``."""
    model = lively_model(delta_kind=kind)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size"):
        DeltaEncoderForMaskedLM.from_pretrained(tmp_path, num_hidden_layers=2)
    assert model.slice("1.0:4:2").config.num_hidden_layers == 2
