import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from cli_stub import stub
from nestling.configuration.budget import BudgetError
from nestling.recipes import cli
from nestling.recipes.cli_errors import GateError
from nestling.recipes.console import show_rows
from nestling.recipes.recipe_schema import DeltaEncoderRecipe
from nestling.recipes.steady_memory import LARGEST_INT, M_MMAP_MAX, M_TRIM_THRESHOLD

HEAVY = ("torch", "transformers", "hydra", "omegaconf", "datasets")
RUN_AND_REPORT = """
import json, sys
from nestling.recipes.cli import _run
code = _run(sys.argv[1:])
print(json.dumps([code, [name for name in {heavy!r} if name in sys.modules]]))
"""


def run_in_subprocess(*arguments: str) -> tuple[int, list[str], str, float]:
    """Return exit code, heavy modules that were imported, standard error, and seconds."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_REPORT.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    seconds = time.perf_counter() - begin
    code, imported = json.loads(done.stdout.strip().splitlines()[-1])
    return code, imported, done.stderr, seconds


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["list"], 0),
        (["trian"], 2),
        (["train", "recipe=delta_encoder/tinny"], 2),
        (["pick", "budgets.json"], 2),
        (["explore", "nowhere"], 3),
        (["compare"], 2),
        (["compare", "--artifact", "nowhere"], 2),
        (["compare", "nowhere.json"], 3),
        (["export", "nowhere", "--output", "x"], 2),
    ],
)
def test_light_commands_import_nothing_heavy(arguments: list[str], code: int) -> None:
    seen_code, imported, stderr, seconds = run_in_subprocess(*arguments)
    print(f"nestling {' '.join(arguments)}: {seconds:.2f} s")
    assert (seen_code, imported) == (code, [])
    assert len(stderr.splitlines()) == (0 if code == 0 else 1)


def test_dry_run_composes_without_torch() -> None:
    code, imported, _, seconds = run_in_subprocess(
        "train", "recipe=delta_encoder/tiny", "lr=2e-4", "--dry-run"
    )
    print(f"dry run: {seconds:.2f} s")
    assert code == 0
    assert "torch" not in imported and "transformers" not in imported


def test_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nestling.recipes", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert done.stdout[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["trian", "train"]),
        (["train"], ["Missing argument", "recipe=NAME"]),
        (["train", "recipe=delta_encoder/tinny"], ["tinny", "did you mean delta_encoder/tiny"]),
        (["train", "recipe=delta_encoder/tiny", "--lr", "3"], ["--lr", "key=value"]),
        (["train", "lr=3"], ["0 recipes", "recipe=delta_encoder/tiny"]),
        (["compile", "x", "--batch-size", "0"], ["--batch-size"]),
        (["bench", "no_such_suite"], ["no_such_suite", "suites:"]),
        (["export", "m", "--budgets", "a", "--budget", "b", "--output", "o"], ["either"]),
    ],
)
def test_usage_errors_are_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("nestling: error: ") and line.count("\n") == 1
    for word in words:
        assert word in line


def test_no_arguments_show_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run([]) == 0
    shown = capsys.readouterr().out
    verbs = "list prepare train evaluate export verify compile push bench pick explore doctor"
    for verb in verbs.split():
        assert verb in shown


def test_list_names_every_recipe_and_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["list"]) == 0
    shown = capsys.readouterr().out
    for name in ("delta_encoder/tiny", "delta_encoder/demo", "delta_encoder/ecommerce", "hidden"):
        assert name in shown


def test_train_hands_over_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kept_memory: list[tuple[int, int]],
) -> None:
    calls: list[tuple[DeltaEncoderRecipe, bool]] = []

    def train(recipe: DeltaEncoderRecipe, resume: bool) -> SimpleNamespace:
        calls.append((recipe, resume))
        rows = [{"budget": "0.5:2:2", "cross-entropy": 3.25}]
        return SimpleNamespace(rows=rows, written={"model": Path(recipe.output_dir) / "model"})

    seam = ModuleType("train")
    seam.__dict__["train"] = train
    monkeypatch.setattr("nestling.recipes.saved_model.family_module", lambda family, part: seam)
    arguments = ["train", "recipe=delta_encoder/tiny", "hidden_size=32", "output_dir=here"]
    assert cli._run([*arguments, "--resume"]) == 0
    [(recipe, resume)] = calls
    assert (recipe.model.hidden_size, recipe.output_dir, resume) == (32, "here", True)
    shown = capsys.readouterr().out
    assert "0.5:2:2" in shown and "here/model" in shown
    # A step frees and takes the same blocks over and over.
    assert kept_memory == [(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT)]


def test_prepare_hands_over_the_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seam = ModuleType("train")
    seam.__dict__["prepare"] = lambda recipe: Path(recipe.output_dir) / "data"
    monkeypatch.setattr("nestling.recipes.saved_model.family_module", lambda family, part: seam)
    arguments = ["prepare", "recipe=delta_encoder/tiny", "output_dir=here"]
    assert cli._run(arguments) == 0
    assert "here/data" in capsys.readouterr().out
    assert cli._run([*arguments, "--dry-run"]) == 0
    assert "output_dir: here" in capsys.readouterr().out


def test_tables_print_brackets_and_gaps_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows("Rows", [{"name": "nestling[neuron]", "count": 12345, "share": 0.123456}])
    show_rows("Gaps", [{"name": ":smile:", "share": None}])
    show_rows("Nothing at all", [])
    shown = capsys.readouterr().out
    for text in (
        "nestling[neuron]",
        "12,345",
        "0.1235",
        ":smile:",
        " - ",
        "Nothing at all: nothing",
    ):
        assert text in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetError("budget 9:9:9 is too large"), 2),
        (FileNotFoundError(2, "No such file", "text.csv"), 3),
        (GateError("outputs differ by 1e-2"), 5),
        (ValueError("hidden_size 0 must be a whole number >= 1"), 4),
        (RuntimeError("surprise"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_of_a_verb_become_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def verify_folder(folder: Path) -> None:
        raise error

    stub(monkeypatch, "nestling.hub_cards.verify_export", verify_folder=verify_folder)
    assert cli._run(["verify", "folder"]) == code
    seen = capsys.readouterr().err
    assert seen.count("\n") == 1 and "Traceback" not in seen


def test_debug_adds_the_traceback_and_keeps_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["train", "recipe=nothing", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interrupted_training_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(recipe: object, resume: bool) -> None:
        raise KeyboardInterrupt

    seam = ModuleType("train")
    seam.__dict__["train"] = train
    monkeypatch.setattr("nestling.recipes.saved_model.family_module", lambda family, part: seam)
    assert cli._run(["train", "recipe=delta_encoder/tiny", "lr=1e-3"]) == 130
    expected = "nestling train recipe=delta_encoder/tiny lr=1e-3 --resume"
    assert expected in capsys.readouterr().err


def test_doctor_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["doctor"]) == 0
    assert "C++ compiler" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["finetune", "study"])
def test_a_script_shows_one_line(module: str, tmp_path: Path) -> None:
    given = {
        "finetune": [str(tmp_path), "--task", "match_wdc_computers"],
        "study": ["recipe=delta_encoder/tiny", f"data.path={tmp_path / 'none.txt'}"],
    }[module]
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"nestling.recipes.delta_encoder.{module}", *given),
            *("--output", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == {"finetune": 4, "study": 3}[module]
    assert done.stderr.splitlines()[-1].startswith("nestling: error: ")
    assert "Traceback" not in done.stderr
