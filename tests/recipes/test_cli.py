import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from nestling.configuration.budget import BudgetError
from nestling.recipes import cli
from nestling.recipes.bench.bench_report import gate
from nestling.recipes.budget_picker import Pick
from nestling.recipes.cli_errors import GateError
from nestling.recipes.console import show_rows
from nestling.recipes.recipe_schema import DeltaEncoderRecipe

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


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> None:
    """Put a module with `functions` where a verb would import a seam."""
    module = ModuleType(name)
    module.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, name, module)


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
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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


def test_evaluate_reads_the_family_and_takes_many_budgets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "delta_encoder"}')
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
    output = tmp_path / "out.json"
    measured = {
        "schema_version": 1,
        "kind": "evaluation",
        "data": {},
        "summary": {},
        "budgets": [{"budget": "0.5:2:2", "cross_entropy": 3.25}],
        "delta_token_ratio": 0.35,
        "delta": {
            "kind": "dictionary", "pack_bytes": 3840, "atom_bytes": 40894464,
            "dense_bytes": 226492416,
        },
    }  # fmt: skip

    def evaluate_folder(*arguments: object, **options: object) -> list[dict[str, object]]:
        calls.append((arguments, options))
        output.write_text(json.dumps(measured))
        return [{"budget": "0.5:2:2", "cross_entropy": 3.25}]

    seam = ModuleType("evaluate")
    seam.__dict__["evaluate_folder"] = evaluate_folder
    monkeypatch.setattr("nestling.recipes.saved_model.family_module", lambda family, part: seam)
    arguments = ["evaluate", str(tmp_path), "--budgets", "0.5:2:2", "largest", "data.path=x"]
    arguments += ["--output", str(output)]
    assert cli._run(arguments) == 0
    assert cli._run([*arguments, "--delta-token-ratio", "0.35"]) == 0
    given = (tmp_path, output, ["data.path=x"], ["0.5:2:2", "largest"])
    assert calls == [(given, {}), (given, {"delta_token_ratio": 0.35})]
    shown = capsys.readouterr().out
    assert "3.25" in shown and "Delta on 35 % of the tokens of each row." in shown
    assert (
        "Delta outside the base slice (dictionary): upgrade pack 3,840 bytes, atoms 40,894,464 "
        "bytes, dense 226,492,416 bytes."
    ) in shown


@pytest.mark.parametrize(
    ("family", "ratio", "words"),
    [
        ("ddl", "0.5", ["--delta-token-ratio 0.5", "delta_encoder, not ddl", "leave it out"]),
        ("delta_encoder", "1.5", ["--delta-token-ratio 1.5 must be in [0, 1]; 1 runs"]),
        ("delta_encoder", "-0.5", ["--delta-token-ratio -0.5 must be in [0, 1]; 1 runs"]),
        ("delta_encoder", "nan", ["--delta-token-ratio nan must be in [0, 1]; 1 runs"]),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_a_share_of_tokens_that_cannot_be(
    verb: str,
    family: str,
    ratio: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    arguments = [verb, str(tmp_path), "--output", str(tmp_path / "out"), "--budgets", "largest"]
    assert cli._run([*arguments, "--delta-token-ratio", ratio]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("flags", "budgets", "single"),
    [
        (
            ["--budgets", "0.5:6:6", "0.75:9:9", "1.0:12:12"],
            ["0.5:6:6", "0.75:9:9", "1.0:12:12"],
            0,
        ),
        (["--budget", "0.5:6:6"], ["0.5:6:6"], 1),
    ],
)
def test_export_passes_budgets(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    flags: list[str],
    budgets: list[str],
    single: int,
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "delta_encoder"}')
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def export(*arguments: object, **options: object) -> list[Path]:
        calls.append((arguments, options))
        return [Path("out/w050")]

    stub(monkeypatch, "nestling.hub_cards.export_slices", export=export)
    arguments = ["export", str(tmp_path), *flags, "--output", "out", "--format", "remote"]
    assert cli._run(arguments) == 0
    assert cli._run([*arguments, "--delta-token-ratio", "0.35"]) == 0
    expected = {"format": "remote", "evaluation": None, "single": bool(single)}
    expected["delta_token_ratio"] = None
    given = (tmp_path, budgets, Path("out"))
    assert calls == [(given, expected), (given, {**expected, "delta_token_ratio": 0.35})]
    packs: list[tuple[Path, Path]] = []

    def export_folder_pack(*paths: Path) -> SimpleNamespace:
        packs.append(paths)
        return SimpleNamespace(pack=3840)

    stub(monkeypatch, "nestling.hub_cards.delta_pack", export_folder_pack=export_folder_pack)
    assert cli._run([*arguments, "--delta-pack", "p.safetensors"]) == 0
    assert packs == [(tmp_path, Path("p.safetensors"))]
    assert "p.safetensors (delta of 3,840 bytes)" in capsys.readouterr().out


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


def test_push_compile_pick_and_bench_call_their_seams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: dict[str, object] = {}

    def push(folder: Path, repo_id: str, **options: object) -> list[str]:
        seen["push"] = (folder, repo_id, options)
        return ["create_repo(org/name)"]

    def check(folder: Path, batch_size: int, sequence_length: int) -> str:
        seen["check"] = (folder, batch_size, sequence_length)
        return "static"

    def pick(table: Path, **limits: object) -> Pick:
        seen["pick"] = limits
        return Pick("0.5:2:2", "w050-h02-d02", 3.5, 1.25, 0.4, 1000, "measured")

    def run(output: Path) -> dict[str, object]:
        seen["bench"] = output
        return {"suite": "step", "results": [], "summary": {"ratio": {"measured": 2.5}}}

    suite = ModuleType("suite")
    suite.__dict__["run"] = run
    stub(monkeypatch, "nestling.hub_cards.publish", push=push)
    monkeypatch.setattr("nestling.recipes.bench_catalogue.bench_module", lambda name: suite)
    stub(monkeypatch, "nestling.recipes.budget_picker", pick=pick)
    neuron = ModuleType("nestling.hub_cards.neuron")
    neuron.__dict__.update(check=check, compile_folder=None)
    monkeypatch.setitem(sys.modules, "nestling.hub_cards.neuron", neuron)
    monkeypatch.setattr("nestling.hub_cards.neuron", neuron, raising=False)
    assert cli._run(["push", "d", "--repo-id", "org/name", "--dry-run"]) == 0
    assert cli._run(["compile", "d", "--check", "--sequence-length", "64"]) == 0
    assert cli._run(["pick", "b.json", "--max-ms", "2.5"]) == 0
    assert cli._run(["bench", "step", "--output", str(tmp_path)]) == 0
    options = {"private": False, "tag": None, "collection": None, "dry_run": True}
    assert seen == {
        "push": (Path("d"), "org/name", options),
        "check": (Path("d"), 1, 64),
        "pick": {"max_ms": 2.5, "max_mb": None, "max_flops": None, "measure": None},
        "bench": tmp_path / "step.json",
    }
    shown = capsys.readouterr().out
    for text in ("create_repo(org/name)", "static", "0.5:2:2", "2.5"):
        assert text in shown


def fake_suite(name: str, ratio: float) -> ModuleType:
    suite = ModuleType(name)
    summary = {"gain": gate(ratio, 4.0, at_least=True), "cost": gate(1.5, 2.7, at_least=False)}
    suite.__dict__["run"] = lambda output: {"suite": name, "results": [], "summary": summary}
    return suite


@pytest.mark.parametrize(
    ("options", "ratios", "code", "shown_on"),
    [
        (["--gate"], (3.5, 1.25), 5, "err"),
        ([], (3.5, 1.25), 0, "out"),
        (["--gate"], (4.0, 9.0), 0, None),
        ([], (4.0, 9.0), 0, None),
    ],
)
def test_bench_names_missed_targets_and_gates_on_them(
    options: list[str],
    ratios: tuple[float, float],
    code: int,
    shown_on: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    suites = {name: fake_suite(name, r) for name, r in zip(("one", "two"), ratios, strict=True)}
    monkeypatch.setattr("nestling.recipes.bench_catalogue.bench_module", suites.__getitem__)
    assert cli._run(["bench", "one", "two", "--output", str(tmp_path), *options]) == code
    printed = capsys.readouterr()
    line = (
        "missed targets: one, gain: 3.5, target at least 4; two, gain: 1.25, target at least 4\n"
    )
    assert printed.err == (f"nestling: error: {line}" if shown_on == "err" else "")
    assert (line in printed.out) == (shown_on == "out")
    assert ("missed targets" in printed.out) == (shown_on == "out")


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
