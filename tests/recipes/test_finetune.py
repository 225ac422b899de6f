"""Fine-tuning on tiny labelled sets: every budget learns, controls run, slices are exported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from huggingface_hub import ModelCard
from nestling.configuration.delta_budget import DeltaBudget
from nestling.hub_cards.export_slices import export_elastic
from nestling.modeling.delta_encoder_heads import (
    DeltaEncoderForSequenceClassification,
    DeltaEncoderForTokenClassification,
)
from nestling.modeling.families import FAMILIES, resolve
from nestling.recipes.cli_errors import DataError, ModelFolderError, UsageError
from nestling.recipes.delta_encoder import finetune as recipe
from nestling.recipes.delta_encoder.finetune import finetune
from nestling.recipes.delta_encoder.finetune_model import (
    load_source,
    predict,
    sort_after,
    sort_before,
    with_classifier,
)
from nestling.recipes.delta_encoder.finetune_settings import FinetuneSettings, check_seeds
from nestling.recipes.delta_encoder.finetune_tasks import MatchingTask, TaggingTask
from tiny_labelled_sets import write_sets

BUDGETS = ["0.5:2:2", "0.75:3:3", "1.0:4:4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """The output_dir of a run that left an untrained nested encoder."""
    family = FAMILIES["delta_encoder"]
    torch.manual_seed(0)
    config = resolve(family.config)(**family.tiny, budgets=BUDGETS, initializer_range=0.1)
    model = resolve(family.auto_classes["AutoModelForMaskedLM"])(config)
    folder = tmp_path_factory.mktemp("nested")
    export_elastic(model, tiny_tokenizer, folder / "model")
    return folder


def settings_of(model: Path, data: Path, **changes: Any) -> FinetuneSettings:
    values: dict[str, Any] = {
        "model": str(model),
        "task": "match_easy",
        "data": str(data),
        "max_steps": 40,
        "batch_size": 16,
        "lr": 5e-3,
        "max_length": 32,
        "budgets_per_step": 3,
    }
    return FinetuneSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def finished(nested: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    finetune(settings_of(nested, data), [0, 1], output, slices=["0.5:2:2"])
    return output


def test_every_budget_learns_to_match(finished: Path) -> None:
    summary = json.loads((finished / "metrics.json").read_text())
    assert [entry["budget"] for entry in summary["budgets"]] == BUDGETS
    assert summary["seeds"] == [0, 1] and summary["steps"] == 40
    bar = summary["baselines"]["always_match"]["f1"]
    assert summary["baselines"]["majority_class"]["f1"] == 0.0 < bar < 0.6
    for entry in summary["budgets"]:
        for split in ("validation", "test"):
            measured = entry[split]["f1"]
            assert measured["mean"] > bar + 0.2, (entry["budget"], split)
            assert measured["low"] <= measured["mean"] <= measured["high"]
            assert len(measured["values"]) == 2
    parameters = [entry["parameters"] for entry in summary["budgets"]]
    assert parameters == sorted(set(parameters))


def test_metrics_hold_no_paths(finished: Path, nested: Path, data: Path) -> None:
    for file in (finished / "metrics.json", finished / "seed-0" / "metrics.json"):
        assert str(nested) not in file.read_text() and str(data) not in file.read_text()


def test_the_exported_slice_is_the_fine_tuned_model_at_its_budget(finished: Path) -> None:
    """`export` has verified it in a clean process; here its class and its answers."""
    slices = json.loads((finished / "slices" / "budgets.json").read_text())["budgets"]
    [folder] = [finished / "slices" / entry["folder"] for entry in slices]
    smaller = DeltaEncoderForSequenceClassification.from_pretrained(folder)
    whole = DeltaEncoderForSequenceClassification.from_pretrained(finished / "seed-0" / "model")
    assert smaller.config.id2label == {0: "different", 1: "match"}
    rows = [{"input_ids": [2, 10 + i, 20 + i, 3], "labels": 0} for i in range(8)]
    expected = predict(whole.eval(), rows, DeltaBudget.parse("0.5:2:2"), 4)
    torch.testing.assert_close(
        predict(smaller.eval(), rows, DeltaBudget.full(smaller.config), 4), expected,
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_cards_state_the_task_and_its_measures(finished: Path) -> None:
    measured = json.loads((finished / "seed-0" / "metrics.json").read_text())["budgets"]
    f1 = {entry["budget"]: entry["test"]["f1"] for entry in measured}
    slices = json.loads((finished / "slices" / "budgets.json").read_text())
    for entry in slices["budgets"]:
        assert entry["measured"]["f1"] == f1[entry["budget"]]
        folder = finished / "slices" / entry["folder"]
        card = ModelCard.load(folder / "README.md")
        results = {result.metric_type: result for result in card.data.eval_results}
        assert results["f1"].metric_value == f1[entry["budget"]]
        assert results["f1"].task_type == "text-classification"
        assert results["f1"].dataset_name == "match_easy"
        text = card.content
        assert "Fine-tuned for text-classification on match_easy" in text
        assert "| accuracy | F1 | precision | recall | latency (ms) |" in text
        for word in ("Not measured", "masked-language", "perplexity", "masked tokens"):
            assert word not in text
    elastic = (finished / "seed-0" / "model" / "README.md").read_text()
    assert "Fine-tuned for text-classification" in elastic


def test_a_finished_seed_is_not_run_again_and_other_settings_are_refused(
    finished: Path, nested: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("a finished seed ran again")

    monkeypatch.setattr(recipe, "_run_seed", fail)
    before = (finished / "seed-1" / "metrics.json").read_bytes()
    finetune(settings_of(nested, data), [0, 1], finished)
    assert (finished / "seed-1" / "metrics.json").read_bytes() == before
    with pytest.raises(UsageError, match=r"lr was 0.005 and is now 0.1; choose another output"):
        finetune(settings_of(nested, data, lr=0.1), [0], finished)


def test_spans_are_learned_at_every_budget(nested: Path, data: Path, tmp_path: Path) -> None:
    settings = settings_of(nested, data, task="attributes_easy", max_steps=60)
    summary = json.loads(finetune(settings, [0], tmp_path).read_text())
    assert summary["data"]["test_f1_of_true_tags"] == 1.0
    assert summary["baselines"]["majority_class"]["f1"] == 0.0
    assert summary["baselines"]["majority_class"]["accuracy"] > 0.4
    for entry in summary["budgets"]:
        assert entry["test"]["f1"]["mean"] > 0.8, entry["budget"]
        assert entry["test"]["f1"]["low"] is None  # one seed has no interval
    config = json.loads((tmp_path / "seed-0" / "model" / "config.json").read_text())
    assert config["architectures"] == ["DeltaEncoderForTokenClassification"]
    assert list(config["id2label"].values()) == ["O", "B-Brand", "I-Brand", "B-Color", "I-Color"]


def test_post_hoc_slicing_of_a_model_tuned_at_full_size(
    nested: Path, data: Path, tmp_path: Path
) -> None:
    """One budget a step: no distillation, and sorting does not change the full model."""
    full_only = settings_of(nested, data, budgets_per_step=1, max_steps=10, sort_units="never")
    plain = json.loads(finetune(full_only, [0], tmp_path / "plain").read_text())
    sorted_after = replace(full_only, sort_units="after")
    after = json.loads(finetune(sorted_after, [0], tmp_path / "after").read_text())
    assert after["budgets"][-1] == plain["budgets"][-1]
    states = [
        DeltaEncoderForSequenceClassification.from_pretrained(
            tmp_path / name / "seed-0" / "model"
        ).state_dict()
        for name in ("plain", "after")
    ]
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])
    events = (tmp_path / "plain" / "seed-0" / "events.jsonl").read_text()
    assert "label_cross_entropy" in events and "distillation" not in events


def test_a_modernbert_folder_starts_sorted_and_computes_the_same(
    tmp_path: Path, data: Path, tiny_tokenizer: Any
) -> None:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(0)
    tiny = FAMILIES["delta_encoder"].tiny
    stock = ModernBertForMaskedLM(ModernBertConfig(**tiny)).eval()
    stock.save_pretrained(tmp_path / "stock")
    tiny_tokenizer.save_pretrained(tmp_path / "stock")
    source, tokenizer = load_source(tmp_path / "stock")
    rows = MatchingTask(data / "match_easy", tokenizer, 32).rows["train"]
    before = source.model.embeddings.token.weight.clone()
    sort_before(source, tokenizer, rows, 16)
    assert not torch.equal(source.model.embeddings.token.weight, before)
    model = with_classifier(source, DeltaEncoderForSequenceClassification, ["no", "yes"]).eval()
    ids = torch.tensor([rows[0]["input_ids"]])
    with torch.no_grad():
        expected = stock.decoder(stock.head(stock.model(input_ids=ids).last_hidden_state))
        states = model.head(model.model(input_ids=ids).last_hidden_state)
        logits = source.decoder(states)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)

    changes = {"max_steps": 2, "train_budgets": ("0.5:2:2", "1.0:4:4")}
    settings = settings_of(tmp_path / "stock", data, **changes)
    summary = json.loads(finetune(settings, [0], tmp_path / "tuned").read_text())
    assert [entry["budget"] for entry in summary["budgets"]] == ["0.5:2:2", "1.0:4:4"]


def test_predictions_equal_those_of_single_rows_without_padding(nested: Path, data: Path) -> None:
    source, tokenizer = load_source(nested / "model")
    matching = MatchingTask(data / "match_easy", tokenizer, 32)
    tagging = TaggingTask(data / "attributes_easy", tokenizer, 32)
    torch.manual_seed(1)
    for task in (matching, tagging):
        assert task.model_class in (
            DeltaEncoderForSequenceClassification, DeltaEncoderForTokenClassification
        )  # fmt: skip
        model = with_classifier(source, task.model_class, task.labels)
        smaller = model.slice("0.5:2:2").eval()
        rows = task.rows["test"][:7]
        alone = [
            smaller(input_ids=torch.tensor([row["input_ids"]])).logits[0].detach() for row in rows
        ]
        together = predict(model, rows, DeltaBudget.parse("0.5:2:2"), 3)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        assert model.training  # as it was


def test_sorting_after_keeps_predictions_of_the_full_model(nested: Path, data: Path) -> None:
    source, tokenizer = load_source(nested / "model")
    task = TaggingTask(data / "attributes_easy", tokenizer, 32)
    model = with_classifier(source, task.model_class, task.labels)
    full = DeltaBudget.full(model.config)
    rows = task.rows["test"]
    before = predict(model, rows, full, 8)
    sort_after(model, rows, 8)
    torch.testing.assert_close(predict(model, rows, full, 8), before, rtol=1e-4, atol=1e-5)


def test_pairs_have_a_threshold_of_the_validation_split(nested: Path, data: Path) -> None:
    """A model that never says match at 0 still ranks; the test split does not choose."""
    _, tokenizer = load_source(nested / "model")
    task = MatchingTask(data / "match_easy", tokenizer, 32)
    far = {}
    for split in ("validation", "test"):
        labels = torch.tensor([row["labels"] for row in task.rows[split]])
        far[split] = torch.stack([torch.zeros(len(labels)), labels - 5.0], dim=1)
    scored = task.score({split: list(logits) for split, logits in far.items()})
    for measured in scored.values():
        assert (measured["f1"], measured["f1_at_threshold"]) == (0.0, 1.0)
        assert measured["match_threshold"] == -4.5
    turned = task.score({**{s: list(v) for s, v in far.items()}, "test": list(-far["test"])})
    assert turned["validation"] == scored["validation"]
    assert turned["test"]["f1_at_threshold"] < 1.0


def test_requests_that_cannot_be_met(nested: Path, data: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"task": "match_hard"}, UsageError, "there are: attributes_easy, match_easy"),
        ({"task": "summary_x"}, UsageError, "begins with match_ or attributes_"),
        ({"sort_units": "once"}, UsageError, "'once' must be auto or before"),
        ({"model": str(tmp_path)}, ModelFolderError, "has no config.json, and no model/config"),
        ({"evaluate": ("1.0:9:4",)}, ValueError, "heads 9 is not in 1..4"),
    ]
    for changes, error, text in cases:
        with pytest.raises(error, match=text):
            finetune(replace(settings_of(nested, data), **changes), [0], tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0.0, "max_steps": None}, "epochs 0.0 must be a number above 0; give for exam"),
        ({"epochs": -1.0, "max_steps": -3}, "epochs -1.0 must be a number above 0"),
        ({"epochs": float("inf")}, "epochs inf must be a number above 0"),
        ({"max_steps": -3}, "max_steps -3 must be a whole number >= 1; give for example 500"),
        ({"max_steps": 0}, "max_steps 0 must be a whole number >= 1"),
        ({"batch_size": 0}, "batch_size 0 must be a whole number >= 1; give for example 32"),
        ({"lr": float("nan")}, "lr nan must be a number above 0; give for example 1e-4"),
        ({"lr": 0.0}, "lr 0.0 must be a number above 0"),
        ({"max_length": 1}, "max_length 1 must be a whole number >= 8; give for example 128"),
        ({"budgets_per_step": 0}, "budgets_per_step 0 must be a whole number >= 1"),
        ({"kd_weight": -1.0}, "kd_weight -1.0 must be a number >= 0; give for example 1"),
        ({"kd_weight": float("nan")}, "kd_weight nan must be a number >= 0"),
        ({"kd_temperature": 0.0}, "kd_temperature 0.0 must be a number above 0"),
    ],
    ids=str,
)
def test_settings_out_of_range_run_nothing(
    nested: Path, data: Path, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        finetune(replace(settings_of(nested, data), **changes), [0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([0, 1, 0], "seed 0 is given twice; each run needs another: --seeds 0 1 2"),
        ([-1], r"seed -1 must be in 0\.\.4294967295; give others: --seeds 0 1 2"),
        ([2**32], r"seed 4294967296 must be in 0\.\.4294967295"),
        ([], "no seed is given; give at least one"),
    ],
)
def test_seeds_that_are_no_runs(
    nested: Path, data: Path, seeds: list[int], message: str, tmp_path: Path
) -> None:
    check_seeds([0, 1, 2**32 - 1])
    with pytest.raises(UsageError, match=message):
        finetune(settings_of(nested, data), seeds, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "emptied", "nothing", "text"),
    [
        ("attributes_easy", "train", {"attributes": "{}"}, "no text of the train split has an att"),
        ("attributes_easy", "test", {"attributes": "{}"}, "test split has an .* fill the column"),
        ("match_easy", "validation", {"label": 0}, "no pair of the validation split is a match"),
        ("match_easy", "test", {"label": 0}, "no pair of the test split is a match"),
    ],
)
def test_a_split_with_nothing_to_find_names_the_folder(
    nested: Path, task: str, emptied: str, nothing: dict[str, Any], text: str, tmp_path: Path
) -> None:
    table = write_sets(tmp_path) / task / f"{emptied}.parquet"
    pandas.read_parquet(table).assign(**nothing).to_parquet(table)
    with pytest.raises(DataError, match=f"{task}: .*{text}"):
        finetune(settings_of(nested, tmp_path, task=task), [0], tmp_path / "out")


def test_a_share_of_the_tokens_is_counted_and_named(
    data: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """A model that was saved with a share is fine-tuned, measured and described with it."""
    family = FAMILIES["delta_encoder"]
    torch.manual_seed(0)
    settings = {"token_routing": True, "delta_token_ratio": 0.5, "preview_size": 2}
    config = resolve(family.config)(**family.tiny, budgets=BUDGETS, **settings)
    model = resolve(family.auto_classes["AutoModelForMaskedLM"])(config)
    export_elastic(model, tiny_tokenizer, tmp_path / "model")
    finetune(settings_of(tmp_path, data, max_steps=1), [0], tmp_path / "out", slices=["largest"])
    measured = json.loads((tmp_path / "out" / "seed-0" / "evaluation.json").read_text())
    assert measured["delta_token_ratio"] == 0.5
    full = DeltaBudget.full(config)
    assert measured["budgets"][-1]["flops"] == full.flops(config, 32, delta_ratio=0.5)
    [card] = (tmp_path / "out" / "slices").glob("*/README.md")
    assert "Delta on 50 % of the tokens." in card.read_text()


def test_a_fine_tuned_model_is_no_starting_point(finished: Path) -> None:
    with pytest.raises(ModelFolderError, match="not from a model that was fine-tuned already"):
        load_source(finished / "seed-0" / "model")


def test_the_command_line_fills_in_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(recipe, "finetune", lambda *arguments: seen.append(arguments))
    line = f"finetune M --task match_x --output {tmp_path} --seeds 0 1 --max-steps 9"
    line += " --budgets-per-step 1 --sort-units after --evaluate smallest --budgets 0.5:2:2"
    monkeypatch.setattr("sys.argv", line.split())
    recipe.main()
    expected = FinetuneSettings(
        model="M", task="match_x", data="data/ecommerce", max_steps=9, budgets_per_step=1,
        sort_units="after", evaluate=("smallest",),
    )  # fmt: skip
    assert seen == [(expected, [0, 1], tmp_path, ["0.5:2:2"])]


def test_several_processes_are_refused(
    nested: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would write into one folder at a time."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="WORLD_SIZE=2"):
        finetune(settings_of(nested, data), [0], tmp_path / "out")
    assert not (tmp_path / "out").exists()
