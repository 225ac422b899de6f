"""Elastic = exported, for every budget and every way a model is built, on this transformers.

27 budgets and two with fewer hidden channels, cut from a model made from scratch, from one that
began as a stock ModernBERT, and from one with every part of Delta-Matryoshka++. All folders of a
model are loaded in one process in which the package cannot be imported; the reference outputs in
them come from the elastic model.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from nestling.configuration import DeltaBudget, DeltaEncoderConfig
from nestling.hub_cards.complete_folder import read_json
from nestling.hub_cards.export_slices import export, export_elastic
from nestling.hub_cards.verify_export import VerifyReport, exported_folders, run_worker
from nestling.modeling import load_modernbert
from nestling.modeling.families import FAMILIES, resolve
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import ModernBertConfig, ModernBertForMaskedLM

TOLERANCE = 1e-5
# The first of each pair is a stock shape: its heads fill its hidden channels.
HIDDEN_WIDTHS = {
    "scratch": ("1.0:2:4:16", "0.75:3:2:20"),
    "modernbert": ("1.0:2:4:32", "0.5:3:3:40"),
    "every part": ("1.0:2:4:16", "0.75:3:2:20"),
}
EVERY_PART = {
    "delta_kind": "dictionary",
    "delta_atoms": 3,
    "delta_rank": 4,
    "conditioned_norms": True,
    "conditioner_size": 8,
    "exit_affine": True,
    "token_routing": True,
    "preview_size": 8,
    "delta_token_ratio": 0.35,
    "drop_path": 0.2,
}


@dataclass(frozen=True)
class Proof:
    """An elastic model, the folders cut from it, and what loading them in one process gave."""

    model: Any
    slices: Path
    hidden_widths: tuple[str, ...]
    report: VerifyReport

    def budgets(self) -> list[DeltaBudget]:
        return [*self.model.config.budget_list(), *map(DeltaBudget.parse, self.hidden_widths)]


@pytest.fixture(scope="module")
def modernbert_proof(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """A stock model of 4 layers, 64 hidden channels and 4 heads, saved, loaded and cut."""
    where = tmp_path_factory.mktemp("modernbert")
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=64, local_attention=8, pad_token_id=0,
        cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    stock = ModernBertForMaskedLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    stock.save_pretrained(where / "stock")
    model = load_modernbert(str(where / "stock"))
    ids = torch.arange(5, 29).view(2, 12)
    with torch.no_grad():
        assert float((model(ids).logits - stock(ids).logits).abs().max()) <= TOLERANCE
    elastic = export_elastic(model, tiny_tokenizer, where / "model")
    widths = HIDDEN_WIDTHS["modernbert"]
    export(elastic, ["all", *widths], where / "slices", verify=False)
    report = run_worker(exported_folders(where / "slices"), sys.executable, TOLERANCE)
    return Proof(model, where / "slices", widths, report)


@pytest.fixture(scope="module")
def every_part_proof(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """Built deltas, norms that know their budget, exits of their own and routed tokens."""
    where = tmp_path_factory.mktemp("every_part")
    family = FAMILIES["delta_encoder"]
    config = resolve(family.config)(**{**family.tiny, **EVERY_PART})
    torch.manual_seed(0)
    model = resolve(family.auto_classes["AutoModelForMaskedLM"])(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    elastic = export_elastic(model, tiny_tokenizer, where / "model")
    widths = HIDDEN_WIDTHS["every part"]
    export(elastic, ["all", *widths], where / "slices", verify=False)
    report = run_worker(exported_folders(where / "slices"), sys.executable, TOLERANCE)
    return Proof(model, where / "slices", widths, report)


@pytest.fixture(params=["scratch", "modernbert", "every part"])
def proof(request: pytest.FixtureRequest) -> Proof:
    """The proof of one way to build; that from scratch is shared with the other tests here."""
    if request.param != "scratch":
        return request.getfixturevalue(f"{request.param.replace(' ', '_')}_proof")
    return Proof(
        request.getfixturevalue("lively_encoder"),
        request.getfixturevalue("slices_folder"),
        HIDDEN_WIDTHS["scratch"],
        request.getfixturevalue("clean_process_report"),
    )


def test_every_folder_computes_what_the_elastic_model_computes(proof: Proof) -> None:
    assert len(proof.budgets()) == 27 + 2
    assert proof.report.transformers == transformers.__version__
    differences: dict[str, dict[str, float | None]] = {}
    for check in proof.report.checks:
        differences.setdefault(check.folder, {})[check.check] = check.difference
        assert check.status == "passed", check
    for budget in proof.budgets():
        of_folder = differences[budget.folder_name]
        for auto_class in ("AutoModel", "AutoModelForMaskedLM"):
            difference = of_folder[auto_class]
            assert difference is not None and difference <= TOLERANCE, (budget, auto_class)


def test_references_are_the_outputs_of_the_elastic_model(proof: Proof) -> None:
    """Otherwise the folders above would agree with something else; and budgets must differ."""
    seen: list[torch.Tensor] = []
    for budget in proof.budgets():
        reference = load_file(proof.slices / budget.folder_name / "reference.safetensors")
        inputs = {key: reference[key] for key in ("input_ids", "attention_mask")}
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            hidden = proof.model.base_model(**inputs, budget=budget).last_hidden_state
        difference = hidden[real] - reference["last_hidden_state"][real]
        assert float(difference.abs().max()) <= TOLERANCE, budget
        seen.append(hidden[real])
    for index, mine in enumerate(seen):
        same_shape = [other for other in seen[:index] if other.shape == mine.shape]
        assert all(float((mine - other).abs().max()) > 1e-3 for other in same_shape)


def test_files_hold_what_the_formulas_say(proof: Proof) -> None:
    config: DeltaEncoderConfig = proof.model.config
    for budget in proof.budgets():
        path = proof.slices / budget.folder_name / "model.safetensors"
        with safe_open(path, framework="pt") as file:
            sizes = [file.get_tensor(key).numel() for key in file.keys()]
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert sum(sizes) == budget.parameters(config), budget
        assert path.stat().st_size - header == budget.weight_bytes(config), budget


def test_stock_class_exactly_where_heads_fill_the_hidden_size(proof: Proof) -> None:
    """And no token is routed: then every budget with a delta left is a class of ours."""
    config: DeltaEncoderConfig = proof.model.config
    classes = {c.folder: c.remark for c in proof.report.checks if c.check == "AutoModel"}
    stock = []
    for budget in proof.budgets():
        hidden = budget.hidden or config.hidden_size
        fills = budget.heads * config.head_dim == hidden and not budget.has_routed_delta(config)
        home = "transformers.models.modernbert" if fills else "transformers_modules."
        assert classes[budget.folder_name].startswith(home), budget
        code = list((proof.slices / budget.folder_name).glob("*.py"))
        written = read_json(proof.slices / budget.folder_name / "config.json")["model_type"]
        assert (written == "modernbert") == fills == (not code), budget
        stock += [budget] if fills else []
    # 4 heads of 27 budgets, and one of the two hidden widths; all of them have a delta.
    assert len(stock) == (0 if config.token_routing else 9 + 1)
