"""Every variant of a family leaves folders that a stranger can use."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.hub_cards.complete_folder import read_json
from nestling.hub_cards.export_slices import export, export_elastic
from nestling.hub_cards.verify_export import VerifyReport, run_worker
from nestling.modeling.families import FAMILIES, resolve
from safetensors.torch import load_file
from transformers import ModernBertForMaskedLM

FAMILY = FAMILIES["delta_encoder"]
# More than the base slice of a variant, and inside of it; the second is a stock class.
SLICES = {"middle": "0.75:3:3", "native": "0.5:2:4:16"}


def variant_model(variant: str) -> Any:
    torch.manual_seed(0)
    config = resolve(FAMILY.config)(**{**FAMILY.tiny, **FAMILY.variants[variant]})
    model = resolve(FAMILY.auto_classes["AutoModelForMaskedLM"])(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


@pytest.fixture(scope="module")
def folders(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One nested folder and two slices of each variant."""
    root, made = tmp_path_factory.mktemp("variants"), {}
    for variant in FAMILY.variants:
        elastic = export_elastic(variant_model(variant), tiny_tokenizer, root / f"{variant}-nested")
        made[f"{variant}-nested"] = elastic
        for name, budget in SLICES.items():
            output = root / f"{variant}-{name}"
            export(elastic, [budget], output, single=True, verify=False)
            made[output.name] = output
    return made


@pytest.fixture(scope="module")
def report(folders: dict[str, Path]) -> VerifyReport:
    return run_worker([*folders.values()], sys.executable, tolerance=1e-5)


def _checks(report: VerifyReport) -> Iterator[tuple[str, str]]:
    return ((check.folder, check.check) for check in report.checks)


def test_every_folder_passes_in_a_clean_process(
    folders: dict[str, Path], report: VerifyReport
) -> None:
    assert [check for check in report.checks if check.status != "passed"] == []
    done = set(_checks(report))
    for name in folders:
        assert {(name, "weights"), (name, "AutoModelForMaskedLM"), (name, "card")} <= done
        assert ((name, "slice") in done) == name.endswith("nested")


def test_a_slice_is_of_a_stock_class_where_no_token_is_routed(folders: dict[str, Path]) -> None:
    types = {name: read_json(path / "config.json")["model_type"] for name, path in folders.items()}
    for name, model_type in types.items():
        assert model_type == ("modernbert" if name.endswith("native") else "delta_encoder"), name
    middle = read_json(folders["routed-middle"] / "config.json")
    assert (middle["token_routing"], middle["delta_token_ratio"]) == (True, 0.5)
    assert (middle["base_attention_heads"], middle["base_intermediate_size"]) == (2, 24)


def test_sizes_are_those_that_are_stored(folders: dict[str, Path]) -> None:
    """Of a nested folder, what it stores: atoms, conditioner and preview network included."""
    for name, path in folders.items():
        tensors = load_file(path / "model.safetensors").values()
        about = read_json(path / "nestling.json")
        assert about["parameters"] == sum(tensor.numel() for tensor in tensors), name
        assert about["bytes"] == sum(tensor.nbytes for tensor in tensors), name
    dense = read_json(folders["drop_path-nested"] / "nestling.json")["parameters"]
    low_rank = read_json(folders["low_rank-nested"] / "nestling.json")["parameters"]
    assert low_rank < dense


def test_a_model_that_may_route_but_does_not_is_a_stock_class_where_one_is_asked_for(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """The preview network then is left out; else it stays: the share is a setting of the run.

    Norms that know their budget are plain ones where no token can go without the delta.
    """
    model = variant_model("routed")
    assert model.config.conditioned_norms
    ids = torch.arange(8, 40).view(2, 16)
    model.config.delta_token_ratio = None
    elastic = export_elastic(model, tiny_tokenizer, tmp_path / "nested")
    forms = {"native": "modernbert", "auto": "delta_encoder", "remote": "delta_encoder"}
    for format, model_type in forms.items():
        output = tmp_path / format
        export(elastic, ["1.0:4:4"], output, format=format, single=True, verify=False)
        assert read_json(output / "config.json")["model_type"] == model_type
        tensors = load_file(output / "model.safetensors").values()
        stored = sum(tensor.numel() for tensor in tensors)
        assert read_json(output / "nestling.json")["parameters"] == stored
        has_preview = any("preview" in n for n in load_file(output / "model.safetensors"))
        assert has_preview == (format != "native")
    stock = ModernBertForMaskedLM.from_pretrained(tmp_path / "native").eval()
    with torch.no_grad():
        found, expected = stock(ids).logits, model(ids, budget="1.0:4:4").logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(
    "NESTLING_OTHER_PYTHON" not in os.environ,
    reason="NESTLING_OTHER_PYTHON does not name an interpreter with another transformers (4.57.6)",
)
def test_other_transformers(folders: dict[str, Path]) -> None:
    report = run_worker([*folders.values()], os.environ["NESTLING_OTHER_PYTHON"], 1e-5)
    assert report.transformers.startswith("4.57")
    assert [check for check in report.checks if check.status != "passed"] == []
