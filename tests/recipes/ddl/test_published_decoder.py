"""What a run publishes: folders that generate with a cache, cards of a causal language model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.modeling.modeling_ddl import DdlForCausalLM
from nestling.recipes.ddl.build import scratch_config
from nestling.recipes.ddl_schema import DdlRecipe
from nestling.recipes.recipe_loader import load_recipe, of_family
from torch import Tensor

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)


def test_every_folder_of_a_run_asks_for_the_cache(ddl_run: Path) -> None:
    folders = [ddl_run / "model", ddl_run / "best", *(ddl_run / "slices").glob("v*")]
    assert len(folders) > 3
    for folder in folders:
        assert json.loads((folder / "config.json").read_text())["use_cache"] is True, folder


@pytest.mark.parametrize("place", ["model", "best", "slices/v01-d01"])
def test_generation_reads_one_token_a_step(ddl_run: Path, place: str) -> None:
    model = DdlForCausalLM.from_pretrained(ddl_run / place).eval()
    lengths: list[int] = []

    def count(module: Any, arguments: tuple[Tensor], output: Tensor) -> None:
        lengths.append(arguments[0].shape[1])

    model.model.embeddings.register_forward_hook(count)
    prompt = torch.tensor([[100, 101, 102, 103]])
    model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert lengths == [4, 1, 1, 1]


def test_cards_of_a_run_are_those_of_a_causal_model(ddl_run: Path) -> None:
    card = ModelCard.load(ddl_run / "slices" / "v01-d01" / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {result.task_type for result in results.values()} == {"text-generation"}
    assert results["cross_entropy"].metric_name == "Cross-entropy (nats per predicted token)"
    assert results["perplexity"].metric_name == "Perplexity of predicted tokens"
    assert "mask" not in str(card)
    assert "| `ddl-cc` | `delta` | 1 | `ddl-rs` |" in str(card)


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ((), 171),
        (("model.preset=ddl-rs",), 171),
        (("model.preset=paper",), 170),
        (("model.preset=reference-code",), 170),
        (("model.preset=paper", "model.intermediate_size=96"), 96),
    ],
)
def test_a_preset_of_a_recipe_rounds_as_its_source(
    changes: tuple[str, ...], width: int, tmp_path: Path
) -> None:
    arguments = [
        "recipe=ddl/tiny", f"output_dir={tmp_path}", "model.hidden_size=64", "model.vocab_size=9",
        *changes,
    ]  # fmt: skip
    recipe = of_family(load_recipe(arguments), DdlRecipe)
    streams: Any = SimpleNamespace(tokenizer=None)
    assert scratch_config(recipe, streams).intermediate_size == width
