"""Checkpoints load by themselves, and only the writing process touches them."""

from pathlib import Path
from typing import Any

import pytest
from nestling.hub_cards.complete_folder import ExportError, read_json
from nestling.hub_cards.on_save import LoadableCheckpoint, make_checkpoint_loadable
from nestling.hub_cards.remote_code import auto_map
from nestling.modeling.families import FAMILIES
from transformers import TrainerControl, TrainerState, TrainingArguments


def checkpoint(model: Any, tokenizer: Any, run: Path, step: int) -> Path:
    folder = run / f"checkpoint-{step}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_checkpoint_gets_code_map_and_portable_tokenizer(
    lively_encoder: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    folder = checkpoint(lively_encoder, tiny_tokenizer, tmp_path, 7)
    (folder / "optimizer.pt").write_bytes(b"state")
    sealed: list[Path] = []
    callback = LoadableCheckpoint(seal=sealed.append)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    callback.on_save(arguments, TrainerState(global_step=7), TrainerControl())
    assert read_json(folder / "config.json")["auto_map"] == auto_map(FAMILIES["delta_encoder"])
    assert (folder / "delta_encoder_heads.py").is_file()
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (folder / "optimizer.pt").read_bytes() == b"state"
    assert sealed == [folder]


def test_other_processes_leave_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    monkeypatch.setattr(TrainingArguments, "should_save", False)
    callback = LoadableCheckpoint(seal=lambda folder: pytest.fail("touched"))
    callback.on_save(arguments, TrainerState(global_step=7), TrainerControl())


def test_foreign_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ExportError, match="'bert' model, which is not ours"):
        make_checkpoint_loadable(tmp_path)
