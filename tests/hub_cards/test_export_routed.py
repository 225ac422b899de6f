"""Slices that run the delta on a share of the tokens: their settings, costs and cards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from delta_models import lively_model
from nestling.configuration.delta_budget import DeltaBudget
from nestling.hub_cards.complete_folder import ExportError, read_json
from nestling.hub_cards.delta_pack import (
    DeltaPackError,
    export_folder_pack,
    load_delta_pack,
    pack_size,
)
from nestling.hub_cards.export_slices import export, export_elastic
from nestling.hub_cards.verify_export import verify_folder
from safetensors.torch import load_file

ROUTED, PLAIN = "1.0:4:4", "0.5:2:4:16"  # more than the base slice; the base slice


@pytest.fixture(scope="module")
def routing(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nested model of the kind dictionary that may route tokens, and does not yet."""
    model = lively_model(token_routing=True, delta_kind="dictionary")
    return export_elastic(model, tiny_tokenizer, tmp_path_factory.mktemp("routing") / "model")


@pytest.fixture
def measured(evaluation_file: Path, tmp_path: Path) -> Path:
    """An evaluation with the delta on 35 % of the tokens."""
    content = json.loads(evaluation_file.read_text())
    content["delta_token_ratio"] = 0.35
    path = tmp_path / "routed.json"
    path.write_text(json.dumps(content))
    return path


def test_the_share_is_a_setting_of_the_slices_that_have_a_delta(
    routing: Path, measured: Path, tmp_path: Path
) -> None:
    output = tmp_path / "slices"
    folders = export(
        routing, [ROUTED, PLAIN], output, evaluation=measured, delta_token_ratio=0.35, verify=False
    )
    report = verify_folder(folders[0])
    assert {check.status for check in report.checks} == {"passed"}
    types = [read_json(folder / "config.json")["model_type"] for folder in folders]
    assert types == ["delta_encoder", "modernbert"]
    config = lively_model(token_routing=True, delta_token_ratio=0.35).config
    assert read_json(folders[0] / "config.json")["delta_token_ratio"] == 0.35
    flops = [read_json(folder / "nestling.json")["flops"] for folder in folders]
    full, base = DeltaBudget.parse(ROUTED), DeltaBudget.parse(PLAIN)
    assert flops == [
        full.flops(config, 32, predicted_tokens=10, delta_ratio=0.35),
        base.flops(config, 32, predicted_tokens=10),
    ]
    assert flops[0] < full.flops(config, 32, predicted_tokens=10)
    assert read_json(output / "budgets.json")["evaluation"]["delta_token_ratio"] == 0.35
    for folder in folders:
        assert "Delta on 35 % of the tokens." in (folder / "README.md").read_text()


def test_cards_do_not_show_numbers_of_another_share(
    routing: Path, measured: Path, evaluation_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "slices"
    for file, ratio, text in (
        (measured, None, "share of 0.35 of the tokens, the slices run it on 1;"),
        (measured, 0.5, "share of 0.35 of the tokens, the slices run it on 0.5;"),
        (evaluation_file, 0.35, "share of 1 of the tokens, the slices run it on 0.35;"),
    ):
        with pytest.raises(ExportError, match=text):
            export(routing, [ROUTED], output, evaluation=file, delta_token_ratio=ratio)
    measured.write_text(measured.read_text().replace("0.35", "0.0"))  # none is a share, too
    with pytest.raises(ExportError, match="share of 0 of the tokens, the slices run it on 1;"):
        export(routing, [ROUTED], output, evaluation=measured)
    assert not output.exists()
    export(routing, [PLAIN], output, evaluation=measured, verify=False)


@pytest.mark.parametrize(
    ("budgets", "ratio", "message"),
    [
        ([PLAIN], 0.35, "delta_token_ratio 0.35 does nothing at 0.5:2:4:16: there is no d"),
        ([ROUTED], float("nan"), r"delta_token_ratio nan must be in \[0, 1\]"),
        ([ROUTED], 1.5, r"delta_token_ratio 1.5 must be in \[0, 1\]"),
    ],
)
def test_a_share_that_cannot_be(
    routing: Path, budgets: list[str], ratio: float, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export(routing, budgets, tmp_path / "out", delta_token_ratio=ratio)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_preview_network_is_refused(elastic_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="delta_token_ratio 0.5 needs a model with a preview netw"):
        export(elastic_folder, [ROUTED], tmp_path / "out", delta_token_ratio=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pack_of_a_folder_fits_the_model_as_it_loads(
    dtype: torch.dtype, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """In the dtype it is stored in: base and atoms are compared bit by bit."""
    model = lively_model(delta_kind="dictionary").to(dtype)
    folder = tmp_path / "model"
    export_elastic(model, tiny_tokenizer, folder)
    # An elastic folder holds float32 of what was trained; this one holds the dtype itself.
    model.save_pretrained(folder)
    size = export_folder_pack(folder, tmp_path / "p.safetensors")
    assert size == pack_size(model)
    assert {t.dtype for t in load_file(tmp_path / "p.safetensors").values()} == {dtype}
    loaded = type(model).from_pretrained(folder, dtype="auto")
    before = loaded.base_model.deltas.blocks["up"].coefficients.clone()
    with torch.no_grad():
        loaded.base_model.deltas.blocks["up"].coefficients.zero_()
    load_delta_pack(loaded, tmp_path / "p.safetensors")
    assert torch.equal(loaded.base_model.deltas.blocks["up"].coefficients, before)


def test_a_folder_without_a_delta_has_no_pack(elastic_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DeltaPackError, match="the model has no base slice"):
        export_folder_pack(elastic_folder, tmp_path / "p.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_the_nested_model_states_the_bytes_of_its_delta(
    routing: Path, elastic_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = lively_model(token_routing=True, delta_kind="dictionary")
    size = pack_size(model)
    text = " ".join((routing / "README.md").read_text().split())
    assert (
        f"(the delta) is stored as dictionary. An upgrade pack of it takes {size.pack:,} bytes, "
        f"beside {size.atoms:,} bytes of atoms that have to be there once; stored densely it takes "
        f"{size.dense:,} bytes. ## Load it"
    ) in text
    described = read_json(routing / "nestling.json")["delta"]
    assert described["pack_bytes"] == size.pack > 0
    half = export_elastic(model.to(torch.bfloat16), tiny_tokenizer, tmp_path / "half")
    assert read_json(half / "nestling.json")["delta"]["atom_bytes"] == size.atoms // 2
    whole = export_elastic(lively_model(), tiny_tokenizer, tmp_path / "dense")
    text = " ".join((whole / "README.md").read_text().split())
    assert "is stored as dense" in text and "atoms" not in text
    plain = (elastic_folder / "README.md").read_text()
    assert "the delta" not in plain and "|\n\n## Load it" in plain
    assert read_json(elastic_folder / "nestling.json")["delta"] is None
