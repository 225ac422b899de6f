"""Cards carry measured numbers only, and loading lines that run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from nestling.hub_cards.export_slices import export
from nestling.hub_cards.loading_snippets import loading_snippets, rename_in_snippets


def test_results_of_this_slice_are_in_the_metadata(slices_folder: Path) -> None:
    card = ModelCard.load(slices_folder / "w050-h02-d03" / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert set(results) == {"cross_entropy", "perplexity", "accuracy", "ece"}
    assert abs(results["cross_entropy"].metric_value - 3.49) < 1e-9
    assert results["cross_entropy"].dataset_name == "held_out.txt"
    assert results["cross_entropy"].dataset_split == "test"
    assert {result.task_type for result in results.values()} == {"fill-mask"}
    assert results["cross_entropy"].metric_name == "Cross-entropy (nats per masked token)"
    assert card.data.pipeline_tag == "fill-mask" and card.data.library_name == "transformers"
    assert card.data.base_model == "ettin-encoder-17m"
    assert {"custom_code", "matryoshka", "sentence-transformers"} <= set(card.data.tags)


def test_native_card_needs_no_trust(slices_folder: Path) -> None:
    text = (slices_folder / "w100-h04-d04" / "README.md").read_text()
    assert "trust_remote_code" not in text and "custom_code" not in text
    assert "stock" in text


def test_ladder_marks_this_slice(slices_folder: Path) -> None:
    text = (slices_folder / "w075-h03-d03" / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|") and ":" in line]
    rows = [row for row in rows if "---" not in row]
    assert len(rows) == 27
    marked = [row for row in rows if "→" in row]
    assert len(marked) == 1 and "0.75:3:3" in marked[0]
    assert "3.370 [3.350, 3.390]" in marked[0] and "1.50" in marked[0]
    assert "| - |" in rows[0], "an unmeasured latency is a dash"


def test_unmeasured_budget_has_a_ladder_but_no_mark_and_no_results(slices_folder: Path) -> None:
    folder = slices_folder / "w100-h02-d04-n016"
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results is None and "→" not in card.content


def test_without_evaluation_nothing_is_claimed(elastic_folder: Path, tmp_path: Path) -> None:
    (folder,) = export(elastic_folder, ["middle"], tmp_path / "slices", verify=False)
    for path in (folder, elastic_folder):
        text = (path / "README.md").read_text()
        assert "Not measured" in text and "perplexity" not in text and "model-index" not in text


def test_card_says_what_flops_count(
    slices_folder: Path, elastic_folder: Path, evaluation_file: Path, tmp_path: Path
) -> None:
    text = " ".join((slices_folder / "w050-h02-d02" / "README.md").read_text().split())
    assert "sequence of 32 tokens, the prediction head included on 10 of them" in text
    content = json.loads(evaluation_file.read_text())
    del content["predicted_tokens_per_sequence"]  # a file from before the head was counted
    old = tmp_path / "old.json"
    old.write_text(json.dumps(content))
    (folder,) = export(
        elastic_folder, ["smallest"], tmp_path / "slices", evaluation=old, verify=False
    )
    text = " ".join((folder / "README.md").read_text().split())
    assert "sequence of 32 tokens, the prediction head not included" in text


def test_elastic_card_explains_budgets(elastic_folder: Path) -> None:
    text = (elastic_folder / "README.md").read_text()
    assert 'model.set_budget("0.5:2:2")' in text and 'name = "model"' in text


def test_snippets_can_be_pointed_at_a_repository() -> None:
    text = 'x\nname = "w050-h02-d02"\nother = "w050-h02-d02"\n'
    renamed = rename_in_snippets(text, "acme/toy")
    assert renamed == 'x\nname = "acme/toy"\nother = "w050-h02-d02"\n'


@pytest.mark.parametrize("format", ["remote", "native"])
@pytest.mark.parametrize("auto_class", ["AutoModelForMaskedLM", "AutoModelForCausalLM"])
def test_every_loading_line_trusts_a_folder_with_code(auto_class: str, format: str) -> None:
    """A tokenizer asks the configuration what it belongs to, and that is code as well."""
    description: dict[str, Any] = {
        "format": format, "auto_class": auto_class, "has_tokenizer": True, "is_encoder": True,
    }  # fmt: skip
    loading = r"from_pretrained\(|pipeline\(\"|SentenceTransformer\("
    lines = [
        line
        for block in loading_snippets(description, "toy")
        for line in block.splitlines()
        if re.search(loading, line)
    ]
    assert len(lines) == (4 if auto_class == "AutoModelForMaskedLM" else 5)
    assert all(("trust_remote_code=True" in line) == (format == "remote") for line in lines)
