"""The proof: 27 budgets and more, loaded by strangers, equal to the elastic model."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from nestling.hub_cards.complete_folder import ExportError, read_json, write_json
from nestling.hub_cards.verify_export import (
    VerifyError,
    VerifyReport,
    exported_folders,
    run_worker,
    verify_folder,
)
from nestling.modeling.families import FAMILIES
from safetensors.torch import load_file, save_file

FOLDERS = 27 + 4 + 1 + 1
LOADS = {"weights", "card", 'pipeline("fill-mask")', "SentenceTransformer"}


def test_every_folder_passes_every_check(clean_process_report: VerifyReport) -> None:
    report = clean_process_report
    assert [check for check in report.checks if check.status != "passed"] == []
    assert report.largest_difference <= 1e-5
    by_folder: dict[str, set[str]] = {}
    for check in report.checks:
        by_folder.setdefault(check.folder, set()).add(check.check)
    assert len(by_folder) == FOLDERS
    wanted = LOADS | set(FAMILIES["delta_encoder"].auto_classes)
    assert by_folder.pop("model") == wanted | {"slice"}
    assert all(checks == wanted for checks in by_folder.values())


def test_code_ran_from_the_folders_and_stock_classes_are_stock(
    clean_process_report: VerifyReport, slices_folder: Path
) -> None:
    """9 of the 27 are stock ModernBERT; every other class was defined by the folder's own code."""
    homes = {c.folder: c.remark for c in clean_process_report.checks if c.check == "AutoModel"}
    native = {name for name, home in homes.items() if home.startswith("transformers.models.")}
    assert all(
        home.startswith("transformers_modules.") for n, home in homes.items() if n not in native
    )
    entries = read_json(slices_folder / "budgets.json")["budgets"]
    assert native == {entry["folder"] for entry in entries if entry["native"]}
    assert sum("-n" not in name for name in native) == 9
    assert {name for name in native if "-n" in name} == {
        "w100-h02-d04-n016",
        "w050-h01-d03-n008",
        "w100-h03-d04-n024",
    }


def damaged_copies(slices: Path, target: Path) -> list[Path]:
    """Copy a remote and a native slice, each broken in its own way."""
    made = []
    for damage in ("weights", "window", "no-code", "no-reference", "renamed"):
        name = "w100-h04-d04" if damage == "window" else "w050-h02-d03"
        folder = target / damage
        shutil.copytree(slices / name, folder)
        made.append(folder)
    tensors = load_file(target / "weights" / "model.safetensors")
    tensors["model.layers.0.mlp.down.weight"][0] += 1e-3
    save_file(tensors, target / "weights" / "model.safetensors", metadata={"format": "pt"})
    config = read_json(target / "window" / "config.json")
    write_json(target / "window" / "config.json", {**config, "local_attention": 4})
    (target / "no-code" / "delta_encoder_heads.py").unlink()
    (target / "no-reference" / "reference.safetensors").unlink()
    tensors = load_file(target / "renamed" / "model.safetensors")
    tensors["lost.weight"] = tensors.pop("head.dense.weight")
    save_file(tensors, target / "renamed" / "model.safetensors", metadata={"format": "pt"})
    return made


def test_damage_is_found(slices_folder: Path, tmp_path: Path) -> None:
    """Changed weights, a lost attention window, missing code, files and names; one process."""
    folders = damaged_copies(slices_folder, tmp_path)
    report = run_worker(folders, sys.executable, 1e-5)
    failed: dict[str, list[str]] = {}
    for check in report.of_status("failed"):
        failed.setdefault(check.folder, []).append(check.check)
    assert set(failed) == {"weights", "window", "no-code", "no-reference", "renamed"}
    assert "AutoModel" in failed["weights"] and "AutoModel" in failed["window"]
    assert {"AutoModel", "AutoModelForMaskedLM", "card"} <= set(failed["no-code"])
    assert failed["no-reference"] == ["files"]
    renamed = next(c for c in report.of_status("failed") if c.folder == "renamed")
    assert "weights missing: head.dense.weight" in renamed.remark


def test_error_names_folder_class_and_difference(
    slices_folder: Path, monkeypatch: pytest.MonkeyPatch, clean_process_report: VerifyReport
) -> None:
    from dataclasses import replace

    from nestling.hub_cards import verify_export

    bad = replace(clean_process_report.checks[1], status="failed", difference=0.25)
    report = replace(clean_process_report, checks=(bad, bad))
    monkeypatch.setattr(verify_export, "run_worker", lambda *_: report)
    with pytest.raises(VerifyError) as caught:
        verify_folder(slices_folder)
    message = str(caught.value)
    assert bad.folder in message and bad.check in message and "2.50e-01" in message
    assert "1 more" in message and "\n" not in message


def test_report_is_written_as_json(clean_process_report: VerifyReport, tmp_path: Path) -> None:
    clean_process_report.write(tmp_path / "report.json")
    content = read_json(tmp_path / "report.json")
    assert content["kind"] == "verification" and content["schema_version"] == 1
    assert len(content["checks"]) == len(clean_process_report.checks)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="neither"):
        exported_folders(tmp_path)


def test_interpreter_that_cannot_run_is_one_line(slices_folder: Path) -> None:
    with pytest.raises(VerifyError, match=r"the verifying process .* failed"):
        verify_folder(slices_folder, python=shutil.which("false") or "/bin/false")


@pytest.mark.skipif(
    "NESTLING_OTHER_PYTHON" not in os.environ,
    reason="NESTLING_OTHER_PYTHON does not name an interpreter with another transformers (4.57.6)",
)
def test_other_transformers(slices_folder: Path, elastic_folder: Path) -> None:
    """The same folders on the transformers that optimum-neuron pins."""
    names = ("w050-h02-d02", "w100-h04-d04", "w100-h02-d04-n016", "w075-h03-d02-n020")
    folders = [*(slices_folder / name for name in names), elastic_folder]
    report = run_worker(folders, os.environ["NESTLING_OTHER_PYTHON"], 1e-5)
    assert report.transformers.startswith("4.57")
    assert [check for check in report.checks if check.status != "passed"] == []
