"""From a model folder to the rows it is measured on: held-out rows, masks, saved recipes."""

import json
import shutil

import pytest
from nestling.recipes.cli_errors import ModelFolderError, UsageError
from nestling.recipes.data.corpus import build_data
from nestling.recipes.data.documents import DataError as DocumentsError
from nestling.recipes.delta_encoder.build import build_model
from nestling.recipes.delta_encoder.evaluate import evaluate_folder
from nestling.recipes.delta_encoder.evaluation_inputs import open_run
from nestling.recipes.evaluation.row_split import split_rows
from nestling.recipes.recipe_loader import load_recipe, save_recipe


@pytest.mark.parametrize("count", [2, 3, 17, 300, 1133])
def test_rows_are_held_out_in_blocks(count):
    held_out, measured = split_rows(count, 0.5)
    assert sorted(held_out + measured) == list(range(count))
    assert abs(len(held_out) - len(measured)) <= 8
    assert (held_out, measured) == split_rows(count, 0.5)
    if count > 200:
        # Both halves, and the first rows of each, are like all rows: those are stored by falling
        # document length.
        for part in (held_out, measured):
            assert sum(part) / len(part) == pytest.approx(count / 2, rel=0.05)
            assert max(part[:80]) - min(part[:80]) > 0.5 * count
        # Pieces of one long document lie in neighbouring rows.
        known = set(held_out)
        cuts = sum((row in known) != (row + 1 in known) for row in range(count - 1))
        assert cuts <= count / 8


def test_shares_of_the_held_out_rows(caplog):
    assert split_rows(50, 0.0) == ([], list(range(50)))
    assert len(split_rows(800, 0.25)[0]) == 200
    assert all(len(part) >= 1 for part in split_rows(2, 0.99))
    assert not caplog.records
    assert split_rows(1, 0.5) == ([], [0])
    assert len(caplog.records) == 1 and "validation_fraction" in caplog.text


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
    assert report["data"]["calibration_fraction"] == 0.5
    assert report["data"]["aliases_chosen_on"] == "calibration rows"
    rows_of = report["data"]["manifest"]["counts"]["validation"]["rows"]
    assert report["data"]["rows"] + report["data"]["calibration_rows"] == rows_of
    assert report["summary"]["monotonicity"]["alias_violations_calibration"] == 0
    assert all(entry["temperature"] > 0 for entry in report["budgets"])
    assert {"ECE", "ECE at T"} <= set(rows[0])
    evaluate_folder(run_folder, tmp_path / "b.json", budgets=["smallest"])  # output_dir works too
    again = json.loads((tmp_path / "b.json").read_text())["budgets"]
    smallest = [e for e in report["budgets"] if e["budget"] == again[0]["budget"]]
    assert [e["cross_entropy"] for e in again] == [e["cross_entropy"] for e in smallest]


def test_calibration_rows_are_not_evaluated(run_folder):
    run = open_run(run_folder, ["evaluation.batches=null"])
    parts = [
        {tuple(row) for batch in part for row in batch["input_ids"].tolist()}
        for part in (run.loader, run.calibration_loader)
    ]
    assert all(parts) and not parts[0] & parts[1]
    run = open_run(run_folder, ["evaluation.batches=1", "evaluation.batch_size=2"])
    assert [len(run.loader), len(run.calibration_loader)] == [1, 1]  # the limit holds for each


def test_fraction_0_evaluates_and_chooses_on_all_rows(run_folder, tmp_path):
    rows = evaluate_folder(
        run_folder, tmp_path / "a.json", ["evaluation.calibration_fraction=0"], ["smallest"]
    )
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["data"]["aliases_chosen_on"] == "evaluation rows"
    assert report["data"]["calibration_fraction"] == report["data"]["calibration_rows"] == 0
    assert "temperature" not in report["budgets"][0] and "ECE at T" not in rows[0]


@pytest.mark.parametrize("fraction", [1.0, -0.1])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(UsageError, match=r"calibration_fraction.*\[0, 1\)"):
        load_recipe(["recipe=delta_encoder/tiny", f"evaluation.calibration_fraction={fraction}"])


@pytest.mark.parametrize("confidence", [0.4, 1.0])
def test_the_confidence_of_aliases_has_a_range(confidence: float) -> None:
    with pytest.raises(UsageError, match=r"alias_confidence.*\[0\.5, 1\)"):
        load_recipe(["recipe=delta_encoder/tiny", f"evaluation.alias_confidence={confidence}"])


def test_the_share_of_tokens_is_an_argument(run_folder, tmp_path):
    """It reaches the model, in place of what the saved configuration says."""
    routed = tmp_path / "routed"
    shutil.copytree(run_folder, routed)
    config = json.loads((routed / "model" / "config.json").read_text())
    config = {**config, "token_routing": True, "delta_token_threshold": 9.0}
    (routed / "model" / "config.json").write_text(json.dumps(config))
    losses = {}
    for ratio in (0.1, 1.0):
        file = tmp_path / f"{ratio}.json"
        evaluate_folder(routed, file, budgets=["largest"], delta_token_ratio=ratio)
        report = json.loads(file.read_text())
        assert report.get("delta_token_ratio") == (ratio if ratio < 1 else None)
        losses[ratio] = report["budgets"][0]["cross_entropy"]
    assert losses[0.1] != losses[1.0]
    # The threshold that the configuration has itself: no token scores above it.
    evaluate_folder(routed, tmp_path / "x.json", budgets=["largest"])
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["delta_token_threshold"] == 9.0 and "delta_token_ratio" not in report
    assert report["budgets"][0]["delta_token_share"] == 0.0


def test_a_threshold_is_an_argument(run_folder, tmp_path):
    routed = tmp_path / "routed"
    shutil.copytree(run_folder, routed)
    config = json.loads((routed / "model" / "config.json").read_text())
    config = {**config, "token_routing": True, "learned_token_threshold": -9.0}
    (routed / "model" / "config.json").write_text(json.dumps(config))
    file = tmp_path / "x.json"
    for given, number, share in (("learned", -9.0, 1.0), (9.0, 9.0, 0.0)):
        evaluate_folder(
            routed, file, budgets=["smallest", "largest"], delta_token_threshold=given
        )
        report = json.loads(file.read_text())
        assert report["delta_token_threshold"] == number
        shares = {entry["budget"]: entry["delta_token_share"] for entry in report["budgets"]}
        assert shares == {"0.5:2:1": None, "1.0:4:3": share}
    with pytest.raises(UsageError, match="0.5 does nothing at 0.5:2:1: .* or add 1.0:4:3"):
        evaluate_folder(routed, file, budgets=["0.5:2:1"], delta_token_threshold=0.5)
    with pytest.raises(UsageError, match="ratio 0.5 and delta_token_threshold 9.0 are both given"):
        evaluate_folder(routed, file, delta_token_ratio=0.5, delta_token_threshold=9.0)
    with pytest.raises(ValueError, match="threshold 0.5 needs a model with a preview network"):
        evaluate_folder(run_folder, file, delta_token_threshold=0.5)


def test_what_an_evaluation_refuses(run_folder, tmp_path):
    with pytest.raises(ValueError, match="0.5 needs a model with a preview network; train one"):
        evaluate_folder(run_folder, tmp_path / "x.json", delta_token_ratio=0.5)
    with pytest.raises(UsageError, match="training.lr=5 would change nothing"):
        evaluate_folder(run_folder, tmp_path / "x.json", ["lr=5"])


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
