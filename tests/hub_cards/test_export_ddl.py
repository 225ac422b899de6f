"""Exported Deep Delta Learning decoders prove themselves in a process without the package."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.hub_cards.complete_folder import read_json
from nestling.hub_cards.export_slices import export, export_elastic
from nestling.hub_cards.verify_export import exported_folders, run_worker
from nestling.modeling.families import FAMILIES, resolve

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)
FAMILY = FAMILIES["ddl"]


CONTROLS = {"residual_update": "mhc", "value_residual": True, "budgets": ["2:2", "4:3"]}


@pytest.mark.parametrize(
    "changes", [{}, {"variant": "ddl-ec"}, {"variant": "ddl-cc-ec", **CONTROLS}], ids=str
)
def test_elastic_and_slices_load_without_the_package(
    changes: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    config = resolve(FAMILY.config)(**{**FAMILY.tiny, **changes})
    torch.manual_seed(0)
    model = resolve(FAMILY.auto_classes["AutoModelForCausalLM"])(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    elastic = export_elastic(model, tiny_tokenizer, tmp_path / "model")
    export(elastic, ["all"], tmp_path / "slices", verify=False)
    folders = [*exported_folders(tmp_path / "slices"), elastic]
    report = run_worker(folders, sys.executable, tolerance=1e-5)
    assert len({check.folder for check in report.checks}) == len(config.budgets) + 1
    for check in report.checks:
        assert check.status == "passed", check
    for budget in config.budget_list():
        folder = tmp_path / "slices" / budget.folder_name
        about = read_json(folder / "nestling.json")
        assert about["parameters"] == budget.parameters(config)
        text = (folder / "README.md").read_text()
        assert "model.generate" in text and "text-generation" in text
        assert (folder / "modeling_ddl.py").is_file()
        update = config.residual_update
        assert f"| `{config.variant}` | `{update}` | {budget.value_size} | " in text
        assert ("is a control" in text) == (update != "delta")
        # Only what the decoder needs.
        assert not list(folder.glob("*delta_encoder*"))
