"""Folders that most tests of this room look at, written once."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.hub_cards.export_slices import export, export_elastic
from nestling.hub_cards.verify_export import VerifyReport, exported_folders, run_worker
from nestling.modeling.families import FAMILIES, resolve

# For ``delta_models``.
sys.path.insert(0, str(Path(__file__).parents[1] / "modeling"))

HIDDEN_BUDGETS = ("1.0:2:4:16", "0.5:1:3:8", "0.75:3:2:20", "1.0:3:4:24")
LIST_BUDGETS = ("0.5,0.25,1.0:4:3",)


@pytest.fixture(scope="session")
def lively_encoder() -> Any:
    """A tiny masked LM whose weights are large enough that every part shows in the output."""
    family = FAMILIES["delta_encoder"]
    torch.manual_seed(0)
    config = resolve(family.config)(**family.tiny)
    model = resolve(family.auto_classes["AutoModelForMaskedLM"])(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.15 * noise)
    return model


@pytest.fixture(scope="session")
def evaluation_file(lively_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``nestling evaluate`` writes, with made-up numbers that fall with the budget."""
    config = lively_encoder.config
    rows = []
    for index, budget in enumerate(config.budget_list()):
        loss = 3.5 - 0.01 * index
        rows.append(
            {
                "budget": str(budget),
                "folder": budget.folder_name,
                "cross_entropy": loss,
                "cross_entropy_ci": [loss - 0.02, loss + 0.02],
                "perplexity": 2.718281828**loss,
                "accuracy": 0.3 + 0.001 * index,
                "ece": 0.02,
                "parameters": budget.parameters(config),
                "flops": budget.flops(config, 32, predicted_tokens=10),
                "bytes": budget.weight_bytes(config),
                "latency_ms": {"median": 1.5, "p25": 1.4, "p75": 1.6} if index % 2 else None,
                "safe_alias": "0.5:2:2" if index == 1 else str(budget),
            }
        )
    content = {
        "schema_version": 1,
        "kind": "evaluation",
        "family": "delta_encoder",
        "environment": {"cpu": "made up", "threads": 1},
        "data": {"name": "/somewhere/held_out.txt", "split": "test"},
        "sequence_length": 32,
        "predicted_tokens_per_sequence": 10,
        "budgets": rows,
        "summary": {},
    }
    path = tmp_path_factory.mktemp("evaluation") / "evaluation.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def elastic_folder(
    lively_encoder: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that training leaves."""
    return export_elastic(
        lively_encoder,
        tiny_tokenizer,
        tmp_path_factory.mktemp("run") / "model",
        base_model="/home/somebody/checkpoints/ettin-encoder-17m",
        recipe="delta_encoder/tiny",
        command="nestling train recipe=delta_encoder/tiny data.path=/home/somebody/text.txt",
    )


@pytest.fixture(scope="session")
def slices_folder(
    elastic_folder: Path, evaluation_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All 27 budgets, hidden-width budgets and a per-layer one, each in its folder."""
    output = tmp_path_factory.mktemp("export") / "slices"
    budgets = ["all", *HIDDEN_BUDGETS, *LIST_BUDGETS]
    export(elastic_folder, budgets, output, evaluation=evaluation_file, verify=False)
    return output


@pytest.fixture(scope="session")
def clean_process_report(slices_folder: Path, elastic_folder: Path) -> VerifyReport:
    """Every folder above, loaded in ONE process in which the package cannot be imported."""
    folders = [*exported_folders(slices_folder), *exported_folders(elastic_folder)]
    return run_worker(folders, sys.executable, tolerance=1e-5)
