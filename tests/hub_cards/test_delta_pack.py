"""Upgrade packs: exact, swapped in place, refused where they do not fit, as small as stated."""

from pathlib import Path
from typing import Any

import pytest
import torch
from delta_models import KINDS, lively_model, packed_rows
from nestling.configuration import DeltaEncoderConfig
from nestling.hub_cards import delta_pack as module
from nestling.hub_cards.delta_pack import (
    DeltaPackError,
    describe_delta,
    export_delta_pack,
    load_delta_pack,
    pack_size,
)
from nestling.modeling import DeltaEncoderModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

by_kind = pytest.mark.parametrize("kind", KINDS)


def outputs(model: Any) -> Tensor:
    ids, documents = packed_rows()
    with torch.no_grad():
        return model(ids, documents)[0]


def tensors_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def with_another_delta(model: Any, *, atoms: bool = False) -> Any:
    """Move what a pack of ``model`` holds (and the atoms), in place."""
    generator = torch.Generator().manual_seed(11)
    trunk = model.base_model
    moved = module.delta_tensors(trunk)
    if atoms:
        moved |= module.atom_tensors(trunk)
    with torch.no_grad():
        for tensor in moved.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.3)
    return model


def rewrite(file: Path, *, tensors: Any = None, **metadata: str) -> None:
    with safe_open(file, framework="pt") as opened:
        known = opened.metadata()
    save_file(tensors or load_file(file), file, metadata={**known, **metadata})


@by_kind
def test_a_round_trip_is_exact_and_swaps_without_reloading(kind: str, tmp_path: Path) -> None:
    model = lively_model(delta_kind=kind, token_routing=True)
    first, weights = outputs(model), tensors_of(model)
    parameters = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    export_delta_pack(model, tmp_path / "first.safetensors")
    with_another_delta(model)
    second, moved = outputs(model), tensors_of(model)
    export_delta_pack(model, tmp_path / "second.safetensors")
    assert (second - first).abs().max() > 1e-2
    for name, output, state in (
        ("first", first, weights),
        ("second", second, moved),
        ("first", first, weights),
    ):
        load_delta_pack(model, tmp_path / f"{name}.safetensors")
        assert torch.equal(outputs(model), output)
        found = model.state_dict()
        assert [key for key in state if not torch.equal(state[key], found[key])] == []
    assert parameters == {n: p.data_ptr() for n, p in model.named_parameters()}


@by_kind
def test_a_pack_changes_what_lies_outside_the_base_slice_only(kind: str, tmp_path: Path) -> None:
    model = lively_model(delta_kind=kind)
    export_delta_pack(with_another_delta(lively_model(delta_kind=kind)), tmp_path / "p.safetensors")
    base, full = tensors_of(model.slice("0.5:2:4")), outputs(model)
    load_delta_pack(model, tmp_path / "p.safetensors")
    after = model.slice("0.5:2:4").state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in base.items())
    assert not torch.equal(outputs(model), full)


def test_a_trunk_takes_the_pack_of_a_headed_model(tmp_path: Path) -> None:
    model = with_another_delta(lively_model(delta_kind="dictionary"))
    export_delta_pack(model, tmp_path / "p.safetensors")
    trunk: DeltaEncoderModel = lively_model(delta_kind="dictionary").model
    load_delta_pack(trunk, tmp_path / "p.safetensors")
    assert torch.equal(outputs(trunk), outputs(model.model))


def test_atoms_travel_when_asked(tmp_path: Path) -> None:
    source = with_another_delta(lively_model(delta_kind="dictionary"), atoms=True)
    export_delta_pack(source, tmp_path / "small.safetensors")
    export_delta_pack(source, tmp_path / "whole.safetensors", with_atoms=True)
    model = lively_model(delta_kind="dictionary")
    before = tensors_of(model)
    with pytest.raises(DeltaPackError, match="made for other atoms; export it with --with-atoms"):
        load_delta_pack(model, tmp_path / "small.safetensors")
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    load_delta_pack(model, tmp_path / "whole.safetensors")
    assert torch.equal(outputs(model), outputs(source))
    load_delta_pack(model, tmp_path / "small.safetensors")
    assert torch.equal(outputs(model), outputs(source))


def _other_norm(model: Any) -> None:
    model.model.layers[1].mlp_norm.weight.data[3] += 1e-3


def _other_base_head(model: Any) -> None:
    model.model.layers[3].attention.output.weight.data[0, 15] += 1e-3


def _other_exit(model: Any) -> None:
    model.model.exit_affine.change.data[0, 0, 0] += 1e-3


@by_kind
@pytest.mark.parametrize("change", [_other_norm, _other_base_head, _other_exit])
def test_other_base_weights_are_refused(kind: str, change: Any, tmp_path: Path) -> None:
    settings = {"delta_kind": kind, "exit_affine": True}
    export_delta_pack(lively_model(**settings), tmp_path / "p.safetensors")
    model = lively_model(**settings)
    change(model)
    _assert_refused(model, tmp_path / "p.safetensors", "made for other base weights")


def test_the_preview_network_and_the_head_may_differ(tmp_path: Path) -> None:
    """They do not belong to what the pack was trained against."""
    export_delta_pack(lively_model(token_routing=True), tmp_path / "p.safetensors")
    model = with_another_delta(lively_model(token_routing=True))
    with torch.no_grad():
        model.head.dense.weight.add_(1.0)
        model.model.preview.score.weight.add_(1.0)
    load_delta_pack(model, tmp_path / "p.safetensors")


def _assert_refused(model: Any, file: Path, message: str) -> None:
    before = tensors_of(model)
    with pytest.raises(DeltaPackError, match=message):
        load_delta_pack(model, file)
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta_kind": "dense"}, "is of delta_kind dictionary, the model of dense"),
        ({"delta_rank": 5, "delta_atoms": 4}, r"coefficients has shape \(4, 3\) .* \(4, 4\)"),
        ({"num_hidden_layers": 3}, r"coefficients has shape \(4, 3\) .* \(3, 3\) .* 4 more diff"),
        ({"base_attention_heads": 4}, r"output.coefficients has shape \(4, 3\) in it and None"),
        ({"hidden_size": 36, "head_dim": 8}, "made for other base weights"),
    ],
    ids=repr,
)
def test_other_models_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    export_delta_pack(lively_model(delta_kind="dictionary"), tmp_path / "p.safetensors")
    model = lively_model(**{"delta_kind": "dictionary", **settings})
    _assert_refused(model, tmp_path / "p.safetensors", message)


@by_kind
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    model, file = lively_model(delta_kind=kind), tmp_path / "p.safetensors"
    export_delta_pack(with_another_delta(lively_model(delta_kind=kind)), file)
    whole, tensors = file.read_bytes(), load_file(file)
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        _assert_refused(model, file, "is not a readable safetensors file")
    _assert_refused(model, tmp_path / "absent.safetensors", "absent.safetensors does not exist")
    file.write_bytes(whole)
    name = sorted(tensors)[-1]
    for bad in (
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, name: tensors[name][..., :-1].contiguous()},
        {**tensors, "more": tensors[name].clone()},
    ):
        rewrite(file, tensors=bad)
        _assert_refused(model, file, "does not fit: .* has shape .* and 0 more differ")
    file.write_bytes(whole)
    rewrite(file, kind="unheard of")
    _assert_refused(model, file, "is of delta_kind unheard of")
    save_file(tensors, file)
    _assert_refused(model, file, "is not a delta pack; give a file that nestling export --delta-")
    file.write_bytes(whole)
    load_delta_pack(model, file)


@by_kind
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(kind: str, value: float, tmp_path: Path) -> None:
    model, file = lively_model(delta_kind=kind), tmp_path / "p.safetensors"
    export_delta_pack(model, file)
    name, tensor = sorted(load_file(file).items())[1]
    tensor.view(-1)[3] = value
    rewrite(file, tensors={**load_file(file), name: tensor})
    _assert_refused(model, file, f"{name} of .*p.safetensors has a value that is not finite")
    with torch.no_grad():
        delta = module.delta_tensors(model.base_model)[name]
        delta[(0,) * delta.dim()] = value
    with pytest.raises(DeltaPackError, match=f"{name} of the model has a value that is not fin"):
        export_delta_pack(model, tmp_path / "other.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_atoms_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model, file = lively_model(delta_kind="dictionary"), tmp_path / "p.safetensors"
    export_delta_pack(model, file, with_atoms=True)
    tensors = load_file(file)
    tensors["up.atoms_in"].view(-1)[0] = float("nan")
    rewrite(file, tensors=tensors)
    _assert_refused(model, file, "up.atoms_in of .* has a value that is not finite")


def test_a_pack_with_some_atoms_only_is_refused(tmp_path: Path) -> None:
    model, file = lively_model(delta_kind="dictionary"), tmp_path / "p.safetensors"
    export_delta_pack(with_another_delta(model, atoms=True), file, with_atoms=True)
    kept = {k: v for k, v in load_file(file).items() if k != "up.atoms_in"}
    rewrite(file, tensors=kept)
    _assert_refused(lively_model(delta_kind="dictionary"), file, "up.atoms_in has shape None in it")


def test_a_model_without_a_base_slice_has_no_delta(tmp_path: Path) -> None:
    config = {"base_attention_heads": None, "base_intermediate_size": None}
    model = lively_model(**config)
    with pytest.raises(DeltaPackError, match="no base slice; set base_attention_heads and base_in"):
        export_delta_pack(model, tmp_path / "p.safetensors")
    assert list(tmp_path.iterdir()) == []
    export_delta_pack(lively_model(), tmp_path / "p.safetensors")
    with pytest.raises(DeltaPackError, match="no base slice"):
        load_delta_pack(model, tmp_path / "p.safetensors")


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "folder" / "p.safetensors"
    model = lively_model(delta_kind="low_rank")
    export_delta_pack(model, file)
    whole = file.read_bytes()

    def interrupted(path: Path, tensors: Any, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "write_tensors", interrupted)
    with pytest.raises(OSError, match="no space left"):
        export_delta_pack(with_another_delta(model), file)
    assert [path.name for path in file.parent.iterdir()] == ["p.safetensors"]
    assert file.read_bytes() == whole


def _stored_bytes(file: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(file).values())


@by_kind
def test_bytes_are_those_in_the_file(kind: str, tmp_path: Path) -> None:
    model = lively_model(delta_kind=kind, intermediate_size=[48, 40, 24, 30])
    size = export_delta_pack(model, tmp_path / "p.safetensors")
    assert size == pack_size(model)
    assert size.pack == _stored_bytes(tmp_path / "p.safetensors")
    export_delta_pack(model, tmp_path / "whole.safetensors", with_atoms=True)
    assert size.pack + size.atoms == _stored_bytes(tmp_path / "whole.safetensors")
    whole = lively_model(intermediate_size=[48, 40, 24, 30])
    inside = lively_model(num_attention_heads=2, head_dim=8, intermediate_size=24)
    counts = [sum(p.numel() for p in each.parameters()) for each in (whole, inside)]
    assert size.dense == 4 * (counts[0] - counts[1])
    assert (size.atoms > 0) == (kind == "dictionary")
    if kind == "dense":
        assert size.pack == size.dense


@by_kind
def test_bytes_are_described_for_a_dtype(kind: str) -> None:
    model = lively_model(delta_kind=kind)
    size = pack_size(model)
    full = {"pack_bytes": size.pack, "atom_bytes": size.atoms, "dense_bytes": size.dense}
    assert describe_delta(model) == {"kind": kind, **full}
    assert describe_delta(model, torch.bfloat16) == {
        "kind": kind,
        **{name: count // 2 for name, count in full.items()},
    }
    assert describe_delta(lively_model(base_attention_heads=None, base_intermediate_size=None)) is (
        None
    )


def test_bytes_of_a_base_sized_model() -> None:
    """12 layers of 768 channels and 12 heads, half of each the base; 16 atoms of rank 64."""
    layers, hidden, inner, channels, atoms, rank = 12, 768, 6 * 64, 1536, 16, 64

    def size(kind: str) -> Any:
        config = DeltaEncoderConfig(
            num_hidden_layers=layers,
            intermediate_size=3072,
            base_attention_heads=6,
            base_intermediate_size=channels,
            delta_kind=kind,
            delta_atoms=atoms,
            delta_rank=rank,
        )
        with torch.device("meta"):
            return pack_size(DeltaEncoderModel(config))

    entries = 3 * inner * hidden + hidden * inner + 3 * channels * hidden
    ends = (3 * inner + hidden) + (hidden + inner) + 3 * (channels + hidden)
    dictionary, low_rank, dense = size("dictionary"), size("low_rank"), size("dense")
    assert dictionary.pack == layers * atoms * 5 * 4 == 3_840
    assert dictionary.atoms == 4 * atoms * rank * ends == 40_894_464
    assert low_rank == (4 * layers * rank * ends, 0, 4 * layers * entries)
    assert dense.pack == dense.dense == dictionary.dense == 4 * layers * entries == 226_492_416
