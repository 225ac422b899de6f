"""`nestling generate`: the same tokens as the model itself, drawn reproducibly, at any budget."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.recipes.cli_errors import (
    CHECKPOINT,
    DATA,
    USAGE,
    ModelFolderError,
    UsageError,
    exit_code_of,
)
from nestling.recipes.ddl.starting_point import load_model
from nestling.recipes.generate_text import Request, generate_text

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)


def _ids(lines: list[str]) -> list[int]:
    return [int(word) for word in lines[-1].removeprefix("ids: ").split()]


@pytest.mark.parametrize("budget", [None, "1:1"])
def test_greedy_tokens_are_those_of_the_model(ddl_run: Path, budget: str | None) -> None:
    request = Request(prompt="def ", max_new_tokens=6, budget=budget)
    lines = generate_text(ddl_run, request)
    model = load_model(ddl_run)
    ids = list(b"def ")
    with torch.no_grad():
        for _ in range(6):
            logits = model(torch.tensor([ids]), budget=budget, use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    assert _ids(lines) == ids
    assert lines[0].encode()[:4] == b"def "


def test_draws_depend_on_the_seed_alone(ddl_run: Path) -> None:
    def draw(seed: int) -> list[int]:
        request = Request(
            prompt_tokens="1,2,3,4", max_new_tokens=12, do_sample=True, temperature=0.8, top_k=50,
            seed=seed,
        )  # fmt: skip
        return _ids(generate_text(ddl_run, request))

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert draw(0)[:4] == [1, 2, 3, 4]


def test_other_settings_reach_the_generation(ddl_run: Path) -> None:
    request = Request(
        prompt="a", max_new_tokens=4, num_beams=3, settings=("num_return_sequences=2",)
    )
    lines = generate_text(ddl_run, request)
    assert len(lines) == 4  # text and ids of two


def test_an_exported_slice_generates_as_its_budget(ddl_run: Path) -> None:
    whole = generate_text(ddl_run, Request(prompt="import", max_new_tokens=5, budget="1:1"))
    slice_ = generate_text(
        ddl_run / "slices" / "v01-d01", Request(prompt="import", max_new_tokens=5)
    )
    assert whole == slice_


def test_settings_that_do_not_generate_are_usage_errors(ddl_run: Path) -> None:
    with pytest.raises(ValueError) as caught:
        request = Request(prompt="a", max_new_tokens=1, do_sample=True, settings=("min_p=7",))
        generate_text(ddl_run, request)
    assert exit_code_of(caught.value) == USAGE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("num_beams=x", "num_beams is 'x', it must be a whole number;"),
        ("num_beams=1.5", "num_beams is 1.5, it must be a whole number;"),
        ("top_k=true", "top_k is True, it must be a whole number;"),
        ("max_new_tokens=abc", "max_new_tokens is 'abc', it must be a whole number;"),
        ("temperature=hot", "temperature is 'hot', it must be a number;"),
        ("do_sample=5", "do_sample is 5, it must be true or false;"),
        # Of the right type, and still of no use.
        ("num_return_sequences=2", "num_return_sequences=2: "),
        ("eos_token_id=end", "eos_token_id=end: "),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(ddl_run: Path, setting: str, said: str) -> None:
    request = Request(prompt="a", max_new_tokens=1, settings=(setting,))
    with pytest.raises(UsageError) as caught:
        generate_text(ddl_run, request)
    assert said in str(caught.value)


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_damaged_weights_are_named_with_the_fix(ddl_run: Path, tmp_path: Path, size: int) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ddl_run / "model", folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelFolderError) as caught:
        generate_text(tmp_path, Request(prompt="a", max_new_tokens=1))
    said = str(caught.value)
    assert said.startswith(f"{path} is damaged: ") and said.endswith("export the model again")
    assert "\n" not in said


def test_a_model_that_predicts_nan_is_refused(ddl_run: Path, tmp_path: Path) -> None:
    model = load_model(ddl_run)
    with torch.no_grad():
        model.model.final_norm.weight.fill_(torch.nan)
    shutil.copytree(ddl_run / "model", tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="not finite") as caught:
        generate_text(tmp_path, Request(prompt="a", max_new_tokens=2))
    assert exit_code_of(caught.value) == CHECKPOINT


def test_more_tokens_than_positions_are_named(
    ddl_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    positions = load_model(ddl_run).config.max_position_embeddings
    ids = ",".join(["1"] * (positions - 1))
    with caplog.at_level(logging.WARNING, logger="nestling"):
        generate_text(ddl_run, Request(prompt_tokens=ids, max_new_tokens=1))
        assert not caplog.records
        generate_text(ddl_run, Request(prompt_tokens=ids, max_new_tokens=2))
    (record,) = caplog.records
    assert f"more than the {positions} positions" in record.getMessage()


def test_an_id_out_of_range_is_the_fault_of_the_prompt(ddl_run: Path) -> None:
    with pytest.raises(ValueError, match="the id 999 .*; give ids in that range$") as caught:
        generate_text(ddl_run, Request(prompt_tokens="1,999"))
    assert exit_code_of(caught.value) == DATA
