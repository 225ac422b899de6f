"""The export commands of the original README, in our keys: planned, run, or answered."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.hub_cards.export_slices import export_elastic
from nestling.modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from nestling.modeling.families import FAMILIES, resolve
from nestling.recipes import cli

# The original's best.pt is a folder here, which holds its tokenizer.
ONE = "export ./ckpts/best --budget 0.5:6:6 --output ./hf_exports/mini"
SEVERAL = "export ./ckpts/best --budgets 0.5:6:6 0.75:9:9 1.0:12:12 --output ./hf_exports"
LEGACY = (
    "export ./ckpts/best --budgets 0.5:4:6 0.75:8:8 1.0:12:12 --output ./exports "
    "--format state-dict"
)
# Command -> its folders, with the format of each.
COMMANDS = {
    ONE: {"hf_exports/mini": "remote"},
    SEVERAL: {
        "hf_exports/w050-h06-d06": "remote",
        "hf_exports/w075-h09-d09": "remote",
        "hf_exports/w100-h12-d12": "native",
    },
    LEGACY: {
        "exports/w050-h04-d06": "state-dict",
        "exports/w075-h08-d08": "state-dict",
        "exports/w100-h12-d12": "state-dict",
    },
}


@pytest.fixture
def checkpoints(tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``ckpts/best`` with twelve layers and twelve heads, in the current folder."""
    torch.manual_seed(0)
    config = DeltaEncoderConfig(
        vocab_size=96, hidden_size=48, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=16, max_position_embeddings=64, pad_token_id=0, cls_token_id=2,
        sep_token_id=3,
    )  # fmt: skip
    export_elastic(DeltaEncoderForMaskedLM(config), tiny_tokenizer, tmp_path / "ckpts" / "best")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("command", COMMANDS, ids=["one", "several", "legacy"])
def test_a_dry_run_says_what_the_command_then_writes(
    command: str, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(checkpoints)
    assert cli._run([*command.split(), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert files_below(checkpoints) == before
    assert cli._run(command.split()) == 0
    for folder, form in COMMANDS[command].items():
        [line] = [line for line in shown.splitlines() if f" {folder} " in line]
        written = checkpoints / folder
        assert (written / "model.safetensors").is_file()
        if form == "state-dict":
            assert not (written / "nestling.json").exists()
        else:
            described = json.loads((written / "nestling.json").read_text())
            assert described["format"] == form and f" {described['budget']} " in line
        assert f" {form} " in line


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"./ckpts/best": "./ckpts/worst"}, 4, ["ckpts/worst has no config.json"]),
        ({"0.5:6:6": "0.5:13:6"}, 2, ["0.5:13:6", "nearest"]),
        ({"0.5:6:6": "0.5:6"}, 2, ["0.5:6"]),
        ({"hf_exports/mini": "ckpts/best"}, 4, ["is the model itself"]),
        ({"--output": "--format native --output"}, 4, ["0.5:6:6 has no stock class"]),
    ],
)
def test_a_dry_run_finds_what_the_command_would(
    change: dict[str, str],
    code: int,
    words: list[str],
    checkpoints: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ONE
    for old, new in change.items():
        command = command.replace(old, new)
    for arguments in (command.split(), [*command.split(), "--dry-run"]):
        assert cli._run(arguments) == code
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and all(word in said for word in words), said


def test_a_dry_run_names_the_pack(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(checkpoints)
    assert cli._run([*ONE.split(), "--delta-pack", "up.safetensors", "--dry-run"]) == 0
    assert "up.safetensors" in capsys.readouterr().out
    assert files_below(checkpoints) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_a_dry_run_knows_every_family(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = FAMILIES[name]
    auto_class = "AutoModelForMaskedLM" if family.is_encoder else "AutoModelForCausalLM"
    model = resolve(family.auto_classes[auto_class])(resolve(family.config)(**family.tiny))
    model.save_pretrained(tmp_path)
    arguments = ["export", str(tmp_path), "--budgets", "all", "--output", str(tmp_path / "out")]
    assert cli._run([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {budget} " in shown for budget in model.config.budget_list())
    assert not (tmp_path / "out").exists()


def test_a_dry_run_wants_weights(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoints / "ckpts/best/model.safetensors").unlink()
    assert cli._run([*ONE.split(), "--dry-run"]) == 4
    assert "ckpts/best has no weights" in capsys.readouterr().err


def test_the_original_name_of_the_model(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it stands; the tokenizer comes with the model."""
    for command in (
        "export --checkpoint ./ckpts/best --budget 0.5:6:6 --output ./out --dry-run",
        "export --budgets 0.5:6:6 smallest --checkpoint=./ckpts/best --output ./out --dry-run",
    ):
        assert cli._run(command.split()) == 0
        assert "0.5:6:6" in capsys.readouterr().out
    command = "export --checkpoint ./ckpts/best --budget 0.5:6:6 --output o --tokenizer org/name"
    assert cli._run(command.split()) == 2
    assert "--tokenizer is not needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        "--export_only --load_path ./ckpts/best --export_budgets 0.5:4:6 0.75:8:8 "
        "--output_dir ./exports",
        "recipe=delta_encoder/plus export_only=true load_path=./ckpts/best "
        "export_budgets=0.5:4:6,0.75:8:8 output_dir=./exports",
    ],
    ids=["flags", "keys"],
)
def test_export_in_training_is_answered_with_the_verb_that_exports(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["train", *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "nestling export ./ckpts/best --budgets 0.5:4:6 0.75:8:8 --output ./exports" in said
    )
