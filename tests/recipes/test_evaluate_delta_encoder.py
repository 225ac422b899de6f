import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from nestling.configuration.budget import BudgetError
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.cli_errors import DataError, ModelFolderError
from nestling.recipes.data.corpus import build_data
from nestling.recipes.data.documents import DataError as DocumentsError
from nestling.recipes.delta_encoder.budget_latency import standalone_trunk
from nestling.recipes.delta_encoder.budget_scoring import group_by_trunk, score_budgets
from nestling.recipes.delta_encoder.build import build_model
from nestling.recipes.delta_encoder.evaluate import (
    evaluate_folder,
    resolve_budgets,
    run_full_evaluation,
)
from nestling.recipes.delta_encoder.evaluation_files import write_evaluation
from nestling.recipes.delta_encoder.evaluation_inputs import evaluation_loader, open_run
from nestling.recipes.delta_encoder.evaluation_table import (
    csv_table,
    ladder_rows,
    markdown_table,
)
from nestling.recipes.recipe_loader import load_recipe, save_recipe
from nestling.trainers.masked_lm_collator import MaskedLMCollator
from nestling.trainers.metrics.calibration import expected_calibration_error
from nestling.trainers.metrics.monotonicity import monotone_safe_alias, nested_pairs


def random_rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for size in torch.randint(10, 20, (count,), generator=generator).tolist():
        tokens = torch.randint(5, 96, (size,), generator=generator).tolist()
        numbers = [1] * (size // 2) + [2] * (size - size // 2)
        rows.append({"input_ids": tokens, "document_ids": numbers})
    return rows


def loader(count=12, batch_size=5, seed=0):
    collator = MaskedLMCollator(
        mask_token_id=4, pad_token_id=0, vocab_size=96, special_token_ids=range(5)
    )
    return evaluation_loader(random_rows(count, seed), collator, batch_size)


@pytest.fixture
def model(tiny_delta_encoder):
    # Wide weights: an untrained model would give every budget nearly the same loss.
    with torch.no_grad():
        for parameter in tiny_delta_encoder.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    return tiny_delta_encoder


def evaluate(model, **changes):
    options = {"sequence_length": 16, "latency": False, "bootstrap_samples": 50, "progress": False}
    return run_full_evaluation(model, loader(), **{**options, **changes})


def test_every_number_against_a_plain_loop(model):
    report = evaluate(model)
    assert len(report["budgets"]) == 27
    for entry in report["budgets"]:
        sliced = model.slice(entry["budget"])
        losses, hits, confidences = [], [], []
        for batch in loader(batch_size=1):
            with torch.no_grad():
                logits = sliced(batch["input_ids"], batch["attention_mask"]).logits
            labelled = batch["labels"] != -100
            z, y = logits[labelled], batch["labels"][labelled]
            losses += F.cross_entropy(z, y, reduction="none").tolist()
            hits += (z.argmax(-1) == y).tolist()
            confidences += z.softmax(-1).max(-1).values.tolist()
        mean = sum(losses) / len(losses)
        assert entry["cross_entropy"] == pytest.approx(mean, rel=1e-4)
        assert entry["nll"] == entry["cross_entropy"]
        assert entry["perplexity"] == pytest.approx(math.exp(mean), rel=1e-3)
        assert entry["accuracy"] == pytest.approx(sum(hits) / len(hits))
        expected = expected_calibration_error(confidences, hits)
        assert entry["ece"] == pytest.approx(expected, abs=1e-4)
        low, high = entry["cross_entropy_ci"]
        assert low < mean < high
        assert entry["parameters"] == sum(p.numel() for p in sliced.parameters())
        assert entry["bytes"] == 4 * entry["parameters"]
        budget = DeltaBudget.parse(entry["budget"])
        assert entry["flops"] == budget.flops(model.config, 16)
        assert entry["folder"] == budget.folder_name


def test_summary(model):
    report = evaluate(model)
    summary, entries = report["summary"], report["budgets"]
    losses = {entry["budget"]: entry["cross_entropy"] for entry in entries}
    budgets = [DeltaBudget.parse(text) for text in losses]
    wrong = [
        (i, j)
        for i, j in nested_pairs(budgets)
        if losses[str(budgets[j])] > losses[str(budgets[i])]
    ]
    counts = summary["monotonicity"]
    assert counts["pairs"] == 189
    assert counts["raw_violations"] == len(wrong) > 0  # random weights are not monotone
    assert 0 <= counts["significant_violations"] <= counts["raw_violations"]
    assert counts["alias_violations"] == 0
    alias = monotone_safe_alias(budgets, list(losses.values()))
    assert [entry["safe_alias"] for entry in entries] == [str(budgets[i]) for i in alias]
    assert summary["smallest"] == "0.5:2:2"
    assert summary["largest"] == "1.0:4:4"
    assert 0 <= summary["autc"] <= 1
    json.dumps(report, allow_nan=False)


def test_anchors_do_not_depend_on_the_budgets_evaluated(model):
    some = evaluate(model, budgets=[(0.5, 2, 2), "0.75:3:3", DeltaBudget(1.0, 4, 3)])
    assert [entry["budget"] for entry in some["budgets"]] == ["0.5:2:2", "0.75:3:3", "1.0:4:3"]
    assert some["summary"]["autc_anchors"] == evaluate(model)["summary"]["autc_anchors"]
    given = evaluate(model, autc_anchors=(1.0, 10.0))["summary"]
    assert given["autc_anchors"] == [1.0, 10.0]
    assert given["autc"] == 0.0  # no model is that cheap


def test_a_slice_has_one_budget_and_no_curve(model):
    report = evaluate(model.slice("0.5:2:2"))
    assert [entry["budget"] for entry in report["budgets"]] == ["1.0:2:2"]
    assert report["summary"]["autc"] is None
    assert report["summary"]["monotonicity"]["pairs"] == 0


def test_the_same_seed_gives_the_same_report(model):
    reports = [evaluate(model, seed=seed) for seed in (0, 0, 1)]
    assert reports[0]["budgets"] == reports[1]["budgets"]
    intervals = [[entry["cross_entropy_ci"] for entry in r["budgets"]] for r in reports]
    assert intervals[0] != intervals[2]


def test_held_out_rows_choose_aliases_and_temperatures(model):
    report = evaluate(model, calibration_loader=loader(count=30, seed=7))
    held_out = score_budgets(
        model, loader(count=30, seed=7), resolve_budgets(None, model.config)
    )
    alias = monotone_safe_alias(held_out.budgets, held_out.losses.tolist())
    expected = [str(held_out.budgets[index]) for index in alias]
    assert [entry["safe_alias"] for entry in report["budgets"]] == expected
    largest = report["budgets"][-1]
    # Logits of these weights are far too confident.
    assert largest["temperature"] > 1.5
    assert largest["nll_after_temperature"] < largest["nll"]
    hits, confidences = [], []
    for batch in loader():
        with torch.no_grad():
            z = model(**batch).logits / largest["temperature"]
        hits += (z.argmax(-1) == batch["labels"][batch["labels"] >= 0]).tolist()
        confidences += z.softmax(-1).max(-1).values.tolist()
    expected = expected_calibration_error(confidences, hits)
    assert largest["ece_after_temperature"] == pytest.approx(expected, abs=1e-4)
    assert report["data"]["aliases_chosen_on"] == "held-out rows"


def test_one_trunk_pass_serves_all_depths(model):
    groups = group_by_trunk(resolve_budgets(None, model.config))
    assert len(groups) == 9
    passes = []
    model.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    batches = list(loader())
    score_budgets(model, batches, resolve_budgets(None, model.config))
    assert len(passes) == 9 * len(batches)


def test_the_mode_of_the_model_is_restored(model):
    model.train()
    model.config.mlp_dropout = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    first, second = evaluate(model), evaluate(model)
    assert model.training
    assert first["budgets"] == second["budgets"]  # dropout was off


def test_latency_is_that_of_the_standalone_trunk(model):
    report = evaluate(model, budgets=["smallest", "largest"], latency=True)
    for entry in report["budgets"]:
        times = entry["latency_ms"]
        assert 0 < times["p25"] <= times["median"] <= times["p75"]
    trunk = standalone_trunk(model.model, DeltaBudget.parse("0.5:2:2"))
    assert len(trunk.layers) == 2
    assert trunk.layers[0].mlp.up.weight.shape == (24, 32)
    # The table is shared, not copied, and the nested model is untouched.
    assert trunk.embeddings.token.weight is model.model.embeddings.token.weight


def test_errors(model):
    with pytest.raises(DataError, match="0 rows"):
        run_full_evaluation(model, [], sequence_length=16, latency=False, progress=False)
    with pytest.raises(DataError, match="0 rows"):
        loader(count=0)
    batch = next(iter(loader()))
    batch["labels"].fill_(-100)
    with pytest.raises(DataError, match="no token to predict"):
        run_full_evaluation(model, [batch], sequence_length=16, latency=False, progress=False)
    with pytest.raises(BudgetError, match="nearest possible"):
        evaluate(model, budgets=["1.0:9:9"])
    with torch.no_grad():
        model.model.layers[3].mlp.down.weight[0, 0] = float("nan")
    with pytest.raises(ModelFolderError, match=r"budget 0\.5:2:4 gives a loss that is not finite"):
        evaluate(model)


def test_a_row_keeps_its_mask_in_any_batch_size():
    one = [batch["labels"] for batch in loader(count=4, batch_size=1)]
    four = next(iter(loader(count=4, batch_size=4)))["labels"]
    for row, labels in enumerate(one):
        assert torch.equal(four[row, : labels.shape[1]], labels[0])


def test_files_and_tables(model, tmp_path):
    report = evaluate(model)
    rows = write_evaluation(report, tmp_path / "run" / "metrics.json")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {f"metrics.{suffix}" for suffix in ("json", "md", "csv", "png", "svg")}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == report
    assert rows == ladder_rows(report)
    assert "ms" not in rows[0]  # latency was off
    assert [row["MFLOPs"] for row in rows] == sorted(row["MFLOPs"] for row in rows)
    assert len(markdown_table(report).splitlines()) == 2 + 27
    assert len(csv_table(report).splitlines()) == 1 + 27


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a finished run leaves behind, without the training."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    sentences = (f"Nest {i} holds {i % 7} eggs of bird {i % 5}." for i in range(400))
    text.write_text("\n\n".join(sentences))
    recipe = load_recipe(
        [
            "recipe=delta_encoder/tiny",
            f"output_dir={folder}",
            "data.source=files",
            f"data.path={text}",
            f"data.pretokenized_path={folder}/data",
            "data.vocab_size=300",
            "evaluation.latency=false",
            "evaluation.bootstrap_samples=20",
            "evaluation.batches=2",
        ]
    )
    data = build_data(recipe.data, recipe.seed, progress=False)
    build_model(recipe, data).save_pretrained(folder / "model")
    data.tokenizer.save_pretrained(folder / "model")
    save_recipe(recipe, folder)
    return folder


def test_a_finished_run_finds_its_data(run_folder, tmp_path):
    rows = evaluate_folder(run_folder / "model", tmp_path / "a.json")
    report = json.loads((tmp_path / "a.json").read_text())
    assert len(rows) == len(report["budgets"]) > 1
    assert report["data"]["split"] == "validation"
    assert report["data"]["path"] == "text.txt"  # the name, not where it lay on this machine
    assert report["data"]["manifest"]["source"]
    evaluate_folder(run_folder, tmp_path / "b.json", budgets=["smallest"])  # output_dir works too
    again = json.loads((tmp_path / "b.json").read_text())["budgets"]
    smallest = [e for e in report["budgets"] if e["budget"] == again[0]["budget"]]
    assert [e["cross_entropy"] for e in again] == [e["cross_entropy"] for e in smallest]


def test_other_text_is_numbered_by_the_tokenizer_of_the_model(run_folder, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"Quite other words, number {i}." for i in range(300)))
    run = open_run(run_folder / "model", [f"data.path={other}"])
    assert run.data["path"] == "other.txt"
    saved = (run_folder / "model" / "tokenizer.json").read_text()
    assert run.recipe.data.path == str(other)
    tokenizer = json.loads(saved)["model"]["vocab"]
    batch = next(iter(run.loader))
    labels = batch["labels"][batch["labels"] >= 0].tolist()
    assert set(labels) <= set(tokenizer.values())
    # None of the training rows: their words are not in the other text.
    assert tokenizer.get("eggs", -1) not in labels


def test_a_run_that_was_moved_keeps_its_rows(run_folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run_folder, moved)
    text = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(text.replace(f"{run_folder}/data", "/gone/data"))
    shutil.rmtree(moved / "data" / "train")
    with pytest.raises(DocumentsError, match="is missing"):
        open_run(moved / "model")  # it did look into moved/data


def test_a_folder_without_a_recipe(tiny_delta_encoder, tmp_path):
    tiny_delta_encoder.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelFolderError, match=r"recipe\.yaml"):
        open_run(tmp_path / "model")
