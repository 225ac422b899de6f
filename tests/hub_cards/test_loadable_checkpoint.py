"""Checkpoints load by themselves."""

from pathlib import Path
from typing import Any

import pytest
from nestling.hub_cards.complete_folder import ExportError, read_json
from nestling.hub_cards.loadable_checkpoint import make_checkpoint_loadable
from nestling.hub_cards.remote_code import auto_map
from nestling.modeling.families import FAMILIES


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
    make_checkpoint_loadable(folder)
    assert read_json(folder / "config.json")["auto_map"] == auto_map(FAMILIES["delta_encoder"])
    assert (folder / "delta_encoder_heads.py").is_file()
    tokenizer_config = read_json(folder / "tokenizer_config.json")
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (folder / "optimizer.pt").read_bytes() == b"state"


def test_foreign_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ExportError, match="'bert' model, which is not ours"):
        make_checkpoint_loadable(tmp_path)
