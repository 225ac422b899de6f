"""Slices that run the delta on a share of the tokens: their settings, costs and cards."""

import json
import subprocess
import sys
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
from nestling.hub_cards.verify_export import clean_environment, verify_folder
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


CLEAN = """
import json, sys

sys.modules["nestling"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

folder, output = sys.argv[1:]
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules.")
assert model.config.learned_token_threshold == 0.125
stored = load_file(f"{folder}/reference.safetensors")
given = {name: stored[name] for name in ("input_ids", "attention_mask")}
found = {}
with torch.no_grad():
    found["all"] = model(**given).logits
    model.config.delta_token_ratio = 0.35
    found["ratio"] = model(**given).logits
    model.config.delta_token_ratio = None
    model.config.delta_token_threshold = model.config.learned_token_threshold
    found["threshold"] = model(**given).logits
save_file(found, output)
"""


def test_a_slice_with_a_delta_to_route_keeps_its_preview_network(
    tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Loaded by a stranger, it chooses tokens as the model in the package does."""
    model = lively_model(token_routing=True, learned_token_threshold=0.125)
    elastic = export_elastic(model, tiny_tokenizer, tmp_path / "model")
    with caplog.at_level("INFO", logger="nestling"):
        folders = export(elastic, [ROUTED, PLAIN], tmp_path / "slices", verify=False)
    (line,) = [text for text in caplog.messages if "with remote code" in text]
    assert line.startswith(f"{ROUTED} with remote code: a stock class has no preview network")
    entries = {e["budget"]: e for e in read_json(tmp_path / "slices" / "budgets.json")["budgets"]}
    assert {name: entry["format"] for name, entry in entries.items()} == {
        ROUTED: "remote", PLAIN: "native"
    }  # fmt: skip
    reason = entries[ROUTED]["format_reason"]
    assert line.endswith(reason) and "\n" not in reason
    assert entries[PLAIN]["format_reason"] is None
    cards = [" ".join((folder / "README.md").read_text().split()) for folder in folders]
    assert f"It is not stored as a stock ModernBERT: {reason}." in cards[0]
    assert "the score that training learned is 0.125." in cards[0]
    assert "stored as a stock" not in cards[1] and "can be routed" not in cards[1]
    script, output = tmp_path / "stranger.py", tmp_path / "found.safetensors"
    script.write_text(CLEAN)
    subprocess.run(
        [sys.executable, "-P", str(script), str(folders[0]), str(output)],
        env=clean_environment(tmp_path), cwd=tmp_path, check=True,
    )  # fmt: skip
    found, stored = load_file(output), load_file(folders[0] / "reference.safetensors")
    given = {name: stored[name] for name in ("input_ids", "attention_mask")}
    real = given["attention_mask"] > 0
    settings: dict[str, tuple[float | None, float | None]] = {
        "all": (None, None), "ratio": (0.35, None), "threshold": (None, 0.125)
    }  # fmt: skip
    seen = []
    for name, (model.config.delta_token_ratio, model.config.delta_token_threshold) in (
        settings.items()
    ):
        with torch.no_grad():
            seen.append(model(**given, budget=ROUTED).logits[real])
        torch.testing.assert_close(found[name][real], seen[-1], atol=1e-5, rtol=0)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((seen[one] - seen[other]).abs().max()) > 1e-2


def test_the_stock_class_can_be_asked_for_where_no_share_is_set(
    routing: Path, tmp_path: Path
) -> None:
    for options in ({}, {"delta_token_ratio": 1.0}):
        (folder,) = export(
            routing, [ROUTED], tmp_path / "out", format="native", verify=False, **options
        )
        assert read_json(folder / "config.json")["model_type"] == "modernbert"
        assert read_json(tmp_path / "out" / "budgets.json")["budgets"][0]["format_reason"] is None
    with pytest.raises(ExportError, match="1.0:4:4 has no stock class; use format=auto"):
        export(routing, [ROUTED], tmp_path / "out", format="native", delta_token_ratio=0.35)


def test_cards_do_not_show_numbers_of_another_share(
    routing: Path, measured: Path, evaluation_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "slices"
    for file, ratio, text in (
        (measured, None, "share of 0.35 of the tokens, the slices run it on a share of 1 of"),
        (measured, 0.5, "share of 0.35 of the tokens, the slices run it on a share of 0.5 of"),
        (evaluation_file, 0.35, "share of 1 of the tokens, the slices run it on a share of 0.35"),
    ):
        with pytest.raises(ExportError, match=text):
            export(routing, [ROUTED], output, evaluation=file, delta_token_ratio=ratio)
    measured.write_text(measured.read_text().replace("0.35", "0.0"))  # none is a share, too
    with pytest.raises(ExportError, match="share of 0 of the tokens, the slices run it on a share"):
        export(routing, [ROUTED], output, evaluation=measured)
    assert not output.exists()
    export(routing, [PLAIN], output, evaluation=measured, verify=False)


def test_the_threshold_is_a_setting_of_the_slices_that_have_a_delta(
    tiny_tokenizer: Any, evaluation_file: Path, tmp_path: Path
) -> None:
    """Cards and FLOPs are those of the share that the evaluation counted."""
    model = lively_model(token_routing=True, learned_token_threshold=0.125)
    elastic = export_elastic(model, tiny_tokenizer, tmp_path / "model")
    content = json.loads(evaluation_file.read_text())
    content["delta_token_threshold"] = 0.125
    for row in content["budgets"]:
        is_routed = DeltaBudget.parse(row["budget"]).has_routed_delta(model.config)
        row["delta_token_share"] = 0.25 if is_routed else None
    measured = tmp_path / "threshold.json"
    measured.write_text(json.dumps(content))
    output = tmp_path / "slices"
    for options, words in (
        ({}, "score above 0.125, the slices run it on a share of 1 of the tokens"),
        ({"delta_token_ratio": 0.25}, "score above 0.125, the slices run it on a share of 0.25"),
        ({"delta_token_threshold": 0.5}, "0.125, the slices run it on the tokens that score abov"),
    ):
        with pytest.raises(ExportError, match=words):
            export(elastic, [ROUTED], output, evaluation=measured, **options)
    with pytest.raises(ExportError, match="ratio 0.25 and delta_token_threshold 0.5 are both"):
        export(elastic, [ROUTED], output, delta_token_ratio=0.25, delta_token_threshold=0.5)
    with pytest.raises(ExportError, match="threshold 0.5 does nothing at 0.5:2:4:16: there is no"):
        export(elastic, [PLAIN], output, delta_token_threshold=0.5)
    assert not output.exists()
    folders = export(
        elastic, [ROUTED, PLAIN], output, evaluation=measured, delta_token_threshold="learned",
        verify=False,
    )  # fmt: skip
    assert {check.status for check in verify_folder(folders[0]).checks} == {"passed"}
    config = read_json(folders[0] / "config.json")
    assert (config["delta_token_ratio"], config["delta_token_threshold"]) == (None, 0.125)
    full, head = DeltaBudget.parse(ROUTED), {"predicted_tokens": 10}
    stated = [read_json(folder / "nestling.json")["flops"] for folder in folders]
    assert stated[0] == full.flops(model.config, 32, **head, delta_ratio=0.25)
    ladder = read_json(output / "budgets.json")
    assert ladder["evaluation"]["delta_token_threshold"] == 0.125
    entries = {entry["budget"]: entry["measured"] for entry in ladder["budgets"]}
    assert entries[ROUTED]["delta_token_share"] == 0.25 and entries[PLAIN] is None
    card = (folders[0] / "README.md").read_text()
    assert "Delta on the tokens that score above 0.125, 25 % of all by budget" in card
    # Without an evaluation the share is not known, and 1 is the most it can be.
    (folder,) = export(elastic, [ROUTED], output, delta_token_threshold=0.125, verify=False)
    assert read_json(folder / "nestling.json")["flops"] == full.flops(model.config, 128)


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
