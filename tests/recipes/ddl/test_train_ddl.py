"""The decoder's main job end to end: what it leaves, exact resume, all variants, refusals."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from nestling.configuration.budget import BudgetError
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.configuration.ddl_settings import VARIANTS
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.compiler import has_cpp_compiler
from nestling.recipes.data.documents import DataError
from nestling.recipes.ddl.evaluate import evaluate_folder, open_run
from nestling.recipes.ddl.original_report import read_manifest, read_training_comparison
from nestling.recipes.ddl.train import train, train_all_variants, variant_recipe
from nestling.recipes.ddl_schema import DdlModelSection, DdlRecipe
from nestling.recipes.evaluation_file import read_evaluation
from nestling.recipes.recipe_loader import load_recipe, of_family, save_recipe
from nestling.trainers.event_log import read_events
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)


def tiny(folder: Path, *changes: str) -> DdlRecipe:
    arguments = ["recipe=ddl/tiny", f"output_dir={folder}", *changes]
    return of_family(load_recipe(arguments), DdlRecipe)


def test_a_run_leaves_our_files_and_those_of_the_original(ddl_run: Path) -> None:
    for name in (
        "model/model.safetensors", "model/config.json", "model/tokenizer.json", "best/config.json",
        "metrics.json", "metrics.png", "events.jsonl", "recipe.yaml", "data/stream.json",
        "slices/budgets.json", "slices/v01-d01/model.safetensors", "manifest.json",
        "model.safetensors", "training_report.json", "optimizer_state.safetensors",
        "best_validation/manifest.json", "best_validation/model.safetensors",
    ):  # fmt: skip
        assert (ddl_run / name).is_file(), name
    manifest = read_manifest(ddl_run)
    weights = load_file(ddl_run / f"{manifest['weights_stem']}.safetensors")
    assert manifest["variant"] == "ddl-cc"
    assert manifest["num_params"] == sum(tensor.numel() for tensor in weights.values())
    state = load_file(ddl_run / "optimizer_state.safetensors")
    assert {name.rsplit(".", 1)[1] for name in state} >= {"exp_avg", "exp_avg_sq"}


def test_every_evaluation_measures_all_ends_and_the_spectrum(ddl_run: Path) -> None:
    events, _ = read_events(ddl_run / "events.jsonl")
    evaluated = [e["step"] for e in events if "eval_loss" in e]
    assert evaluated == [e["step"] for e in events if e["event"] == "spectral"] == [0, 10, 20]
    last = [e for e in events if "eval_loss" in e][-1]
    assert {"eval_loss/1:1", "eval_loss/2:2"} <= set(last)
    layers = next(e for e in events if e["event"] == "spectral")["layers"]
    assert [(one["layer"], one["sublayer"]) for one in layers] == [
        (0, "attention"), (0, "mlp"), (1, "attention"), (1, "mlp")
    ]  # fmt: skip
    # The gates of an untrained model give beta_init to every token.
    assert all(one["beta"]["p50"] == pytest.approx(0.5, abs=1e-5) for one in layers)
    losses = [e["eval_loss"] for e in events if "eval_loss" in e]
    assert losses[-1] < losses[0] - 0.3


def test_the_evaluation_states_what_it_measured(ddl_run: Path) -> None:
    evaluation = read_evaluation(ddl_run / "metrics.json")
    assert evaluation["family"] == "ddl"
    assert [one["budget"] for one in evaluation["budgets"]] == ["1:1", "1:2", "2:1", "2:2"]
    first = evaluation["budgets"][0]
    counts = evaluation["data"]["counts"]
    per_byte = first["cross_entropy"] / 0.6931471805599453 * counts["tokens"] / counts["bytes"]
    assert first["bits_per_byte"] == pytest.approx(per_byte)
    assert evaluation["data"]["predicted_tokens"] == 4 * 4 * 32
    assert len(evaluation["spectrum"]["layers"]) == 4


def test_evaluation_repeats_itself_on_the_saved_rows(ddl_run: Path, tmp_path: Path) -> None:
    evaluate_folder(ddl_run, tmp_path / "again.json")
    first, second = (
        [one["cross_entropy"] for one in read_evaluation(path)["budgets"]]
        for path in (ddl_run / "metrics.json", tmp_path / "again.json")
    )
    assert first == second
    opened = open_run(ddl_run / "best", ["data.max_length=16"])
    assert opened.rows.length == 16


def test_a_resumed_run_ends_with_the_same_weights(ddl_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("data", "checkpoint-10"):
        shutil.copytree(ddl_run / name, folder / name)
    shutil.copy(ddl_run / "recipe.yaml", folder)
    with pytest.raises(UsageError, match="--resume"):
        train(tiny(folder))
    with pytest.raises(UsageError, match=r"model\.variant was 'ddl-cc' and is now 'ddl-ec'"):
        train(tiny(folder, "model.variant=ddl-ec"), resume=True)
    train(tiny(folder, "export.budgets=[]"), resume=True)
    expected = load_file(ddl_run / "checkpoint-20" / "model.safetensors")
    resumed = load_file(folder / "checkpoint-20" / "model.safetensors")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    # The moments of the optimizer, too.
    states = [load_file(place / "optimizer_state.safetensors") for place in (ddl_run, folder)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_all_variants_train_on_the_same_tokens(tmp_path: Path) -> None:
    recipe = tiny(
        tmp_path, "training.max_steps=2", "training.eval_steps=null", "model.value_budgets=[]",
        "model.depth_budgets=[]", "export.budgets=[]", "evaluation.batches=1",
        "evaluation.bootstrap_samples=2",
    )  # fmt: skip
    report = train_all_variants(recipe)
    assert [row["variant"] for row in report.rows] == list(VARIANTS)
    reports = read_training_comparison(tmp_path / "training_comparison.json")
    assert [one["variant"] for one in reports] == list(VARIANTS)
    assert len({one["train_dataset"]["sha256"] for one in reports}) == 1
    assert all(len(one) == 19 for one in reports)
    by_name = {one["variant"]: one["num_params"] for one in reports}
    assert by_name["baseline"] < by_name["ddl"] < by_name["ddl-cc"] < by_name["ddl-cc-ec"]
    assert (tmp_path / "ddl" / "model" / "config.json").is_file()


def test_vector_variants_have_one_value_channel_in_a_sweep(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, "model.d_value=4", "model.rebuild_state=true")
    assert variant_recipe(recipe, "ddl").model.d_value is None
    assert variant_recipe(recipe, "ddl-cc").model.d_value == 4
    assert variant_recipe(recipe, "ddl-cc").model.rebuild_state
    assert not variant_recipe(recipe, "ddl-ec").model.rebuild_state
    with pytest.raises(UsageError, match=r"model\.d_value is 1, but four"):
        changes = ("model.variant=ddl", "model.d_value=1", "model.value_budgets=[1]")
        variant_recipe(tiny(tmp_path, *changes), "ddl-cc")
    with pytest.raises(UsageError, match="residual_update is write_only"):
        train_all_variants(tiny(tmp_path, "model.residual_update=write_only"))


def test_token_ids_without_a_tokenizer_train_and_state_their_range(tmp_path: Path) -> None:
    changes = (
        "training.max_steps=2", "training.eval_steps=null", "export.budgets=[]",
        "data.max_bytes=null", "data.max_length=4", "evaluation.batches=1",
        "evaluation.bootstrap_samples=2",
    )  # fmt: skip
    tokens = ("data.train_tokens=1 2 3 4 5 6 7 8 9", "data.valid_tokens=3 4 5 6 7")
    train(tiny(tmp_path / "a", *changes, *tokens))
    config = json.loads((tmp_path / "a" / "model" / "config.json").read_text())
    assert config["vocab_size"] == 10
    with pytest.raises(DataError, match="id 9 at place 8"):
        train(tiny(tmp_path / "b", *changes, *tokens, "model.vocab_size=9"))


def test_a_run_goes_on_from_a_model_of_the_family(ddl_run: Path, tmp_path: Path) -> None:
    recipe = tiny(
        tmp_path / "next", f"model.init_from={ddl_run}", "training.max_steps=1",
        "training.eval_steps=1", "export.budgets=[]",
    )  # fmt: skip
    train(recipe)
    events, _ = read_events(tmp_path / "next" / "events.jsonl")
    before, _ = read_events(ddl_run / "events.jsonl")
    with pytest.raises(UsageError, match="one model, not six"):
        train_all_variants(recipe)
    start = next(e["eval_loss/2:2"] for e in events if "eval_loss" in e)
    end = [e["eval_loss/2:2"] for e in before if "eval_loss" in e][-1]
    assert start == pytest.approx(end, abs=1e-5)


@pytest.mark.parametrize("name", ["tiny", "demo", "nested", "original", "study"])
def test_every_recipe_can_start_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    recipe = load_recipe([f"recipe=ddl/{name}", "model.init_from=start", "model.d_value=null"])
    shape = of_family(recipe, DdlRecipe).model
    # What the run saves does not claim a shape that the checkpoint may not have.
    kept = {key: vars(shape)[key] for key in ("init_from", "value_budgets", "depth_budgets")}
    assert shape == DdlModelSection(**kept)
    # Resuming reads it back.
    save_recipe(recipe, tmp_path)
    assert load_recipe([f"recipe={tmp_path / 'recipe.yaml'}"]) == recipe


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["model.residual_update=write_only"], "model.residual_update=write_only is"),
        # A default that is typed is asked for, too.
        (["model.variant=ddl-cc", "hidden_size=32"], "variant=ddl-cc, model.hidden_size=32 is"),
    ],
)
def test_keys_that_a_checkpoint_overrules_are_refused(
    typed: list[str], shown: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{shown} given as well"):
        tiny(tmp_path, "model.init_from=start", *typed)


def test_a_file_that_names_the_checkpoint_may_not_name_a_shape(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    head = "# @package _global_\ndefaults: [ddl/tiny, _self_]\nmodel: {init_from: start"
    path.write_text(f"{head}, variant: ddl}}\n")
    with pytest.raises(UsageError, match=r"model\.variant=ddl is given as well"):
        load_recipe([f"recipe={path}"])
    path.write_text(f"{head}}}\n")
    recipe = load_recipe([f"recipe={path}"])
    assert of_family(recipe, DdlRecipe).model.hidden_size == DdlModelSection().hidden_size


def test_a_tokenizer_that_does_not_fit_the_start_leaves_nothing(
    ddl_run: Path, tmp_path: Path
) -> None:
    changes = ("data.tokenizer=train", "data.vocab_size=400", f"model.init_from={ddl_run}")
    with pytest.raises(DataError, match=r"the tokenizer has 400 tokens, the model 258"):
        train(tiny(tmp_path / "run", *changes))
    assert not (tmp_path / "run").exists()


def test_budgets_of_a_recipe_that_the_start_does_not_have_are_named(
    ddl_run: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(
        [
            "recipe=ddl/nested", f"output_dir={tmp_path / 'run'}", f"model.init_from={ddl_run}",
            "data.max_length=16", "data.max_bytes=20_000",
        ]
    )  # fmt: skip
    keys = r"model\.value_budgets=\[1, 2, 4\] model\.depth_budgets=\[2, 3, 4\]"
    with pytest.raises(BudgetError, match=rf"{keys} .*depth 3 is not in 1\.\.2.*or \[\] for"):
        train(of_family(recipe, DdlRecipe))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.budgets=[smallest]", "without the largest budget 2:2"),
        ("export.format=native", "no stock class computes budget"),
    ],
)
def test_what_the_start_cannot_train_or_export_is_refused_first(
    change: str, words: str, ddl_run: Path, tmp_path: Path
) -> None:
    keys = ("training.max_steps=1", "data.max_bytes=20_000")
    with pytest.raises(UsageError, match=words):
        train(tiny(tmp_path / "run", f"model.init_from={ddl_run}", *keys, change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["export.budgets", "evaluation.budgets", "training.budgets"])
def test_budgets_that_do_not_exist_are_refused_before_training(key: str, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=rf"{key}: budget 9:9 does not fit"):
        tiny(tmp_path, f"{key}=['9:9']")
    # One that only the matrix variants have is refused before the baseline trains.
    sweep = tiny(tmp_path, f"{key}=['2:2']", "model.value_budgets=[2]")
    with pytest.raises(BudgetError, match="2:2 does not fit"):
        train_all_variants(sweep)
    assert not (tmp_path / "baseline").exists()


def test_spectra_rest_on_as_many_batches_as_asked(tmp_path: Path) -> None:
    train(
        tiny(
            tmp_path, "training.max_steps=1", "training.eval_steps=1", "export.budgets=[]",
            "evaluation.spectral_batches=3",
        )
    )
    events, _ = read_events(tmp_path / "events.jsonl")
    counted = {e["tokens"] for e in events if e["event"] == "spectral"}
    measured = read_evaluation(tmp_path / "metrics.json")["spectrum"]["tokens"]
    assert counted == {measured} == {3 * 4 * 32}


def launch(*words: str) -> None:
    """Train in two processes."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
        *("--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0"),
        *("-m", "nestling.recipes", "train", *words),
    ]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"
    }  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]


def test_a_sweep_runs_in_two_processes(tmp_path: Path) -> None:
    """The variants share one process group; a second one would wait for ever."""
    launch(
        "recipe=ddl/tiny", "--all-variants", f"output_dir={tmp_path}", "data.max_bytes=60000",
        "training.batch_size=2", "training.max_steps=1", "training.eval_steps=null",
        "model.value_budgets=[]", "model.depth_budgets=[]", "export.budgets=[]",
        "evaluation.batches=1", "evaluation.bootstrap_samples=2",
    )  # fmt: skip
    reports = read_training_comparison(tmp_path / "training_comparison.json")
    assert [one["variant"] for one in reports] == list(VARIANTS)


def test_two_processes_learn_what_one_learns(ddl_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "together"
    shutil.copytree(ddl_run / "data", folder / "data")
    launch(
        "recipe=ddl/tiny", f"output_dir={folder}", "training.batch_size=2", "export.budgets=[]",
        # The same rows, all in the first process; the second one only repeats them.
        "evaluation.batches=1", "evaluation.batch_size=16",
    )  # fmt: skip
    losses = [
        [e["eval_loss"] for e in read_events(place / "events.jsonl")[0] if "eval_loss" in e]
        for place in (ddl_run, folder)
    ]
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    alone, together = (
        load_file(place / "checkpoint-20" / "model.safetensors") for place in (ddl_run, folder)
    )
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)
    report = json.loads((folder / "training_report.json").read_text())
    assert report["steps_completed"] == 20


def test_bfloat16_trains_and_leaves_weights_in_fp32(tmp_path: Path) -> None:
    train(
        tiny(
            tmp_path, "training.bf16=true", "training.max_steps=3", "training.eval_steps=3",
            "training.logging_steps=1", "export.budgets=[]",
        )
    )
    events, _ = read_events(tmp_path / "events.jsonl")
    losses = [event["loss"] for event in events if "loss" in event]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_learns_what_an_eager_one_learns(tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        train(
            tiny(
                folder, f"training.torch_compile={compiled}", "training.max_steps=3",
                "training.eval_steps=null", "training.logging_steps=1", "export.budgets=[]",
            )
        )
        events, _ = read_events(folder / "events.jsonl")
        losses.append([event["loss"] for event in events if "loss" in event])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
