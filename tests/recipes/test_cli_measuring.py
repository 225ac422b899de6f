"""Verbs that measure, cut and publish hand over what was asked for; bad requests are one line."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from cli_stub import stub
from nestling.recipes import cli
from nestling.recipes.bench.bench_report import gate
from nestling.recipes.budget_picker import Pick


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
    assert cli._run([*arguments, "--delta-pack", "p.safetensors"]) == 0
    given = (tmp_path, output, ["data.path=x"], ["0.5:2:2", "largest"])
    packed = {"delta_pack": Path("p.safetensors")}
    assert calls == [(given, {}), (given, {"delta_token_ratio": 0.35}), (given, packed)]
    for text, threshold in (("-0.25", -0.25), ("learned", "learned")):
        assert cli._run([*arguments, "--delta-token-threshold", text]) == 0
        assert calls.pop() == (given, {"delta_token_threshold": threshold})
    shown = capsys.readouterr().out
    assert "3.25" in shown and "Delta on 35 % of the tokens of each row." in shown
    assert (
        "Delta outside the base slice (dictionary): upgrade pack 3,840 bytes, atoms 40,894,464 "
        "bytes, dense 226,492,416 bytes."
    ) in shown


@pytest.mark.parametrize(
    ("family", "flags", "words"),
    [
        ("ddl", "--delta-token-threshold 0.5", ["threshold 0.5 needs a model of family delta_e"]),
        ("delta_encoder", "--delta-token-threshold x", ["x must be a finite number, or learned"]),
        ("delta_encoder", "--delta-token-threshold nan", ["nan must be a finite number, or le"]),
        ("delta_encoder", "--delta-token-threshold inf", ["inf must be a finite number, or le"]),
        (
            "delta_encoder",
            "--delta-token-threshold learned --delta-token-ratio 0.5",
            ["--delta-token-ratio 0.5 and --delta-token-threshold learned are both given; give o"],
        ),
    ],
)
@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_a_threshold_that_cannot_be(
    verb: str,
    family: str,
    flags: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    arguments = [verb, str(tmp_path), "--output", str(tmp_path / "out"), "--budgets", "largest"]
    assert cli._run([*arguments, *flags.split()]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(word in line for word in words)


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
    expected["delta_pack"] = None
    given = (tmp_path, budgets, Path("out"))
    assert calls == [(given, expected), (given, {**expected, "delta_token_ratio": 0.35})]
    assert cli._run([*arguments, "--delta-token-threshold", "-0.25"]) == 0
    assert calls.pop() == (given, {**expected, "delta_token_threshold": -0.25})
    assert cli._run([*arguments, "--load-delta-pack", "p.safetensors"]) == 0
    assert calls[2:] == [(given, {**expected, "delta_pack": Path("p.safetensors")})]
    packs: list[tuple[Path, Path, bool]] = []

    def export_folder_pack(model: Path, file: Path, *, with_atoms: bool) -> SimpleNamespace:
        packs.append((model, file, with_atoms))
        return SimpleNamespace(pack=3840, atoms=1024)

    stub(monkeypatch, "nestling.hub_cards.delta_pack", export_folder_pack=export_folder_pack)
    assert cli._run([*arguments, "--delta-pack", "p.safetensors"]) == 0
    assert "p.safetensors (delta of 3,840 bytes)" in capsys.readouterr().out
    assert cli._run([*arguments, "--delta-pack", "p.safetensors", "--with-atoms"]) == 0
    assert packs == [(tmp_path, Path("p.safetensors"), atoms) for atoms in (False, True)]
    assert "(delta of 3,840 bytes, atoms of 1,024 bytes)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--with-atoms"], ["--with-atoms is for the pack", "--delta-pack FILE"]),
        (
            ["--load-delta-pack", "a", "--delta-pack", "b"],
            ["--load-delta-pack a reads", "--delta-pack b writes", "give one of them"],
        ),
    ],
)
def test_flags_of_packs_that_do_not_go_together(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["export", "m", "--budgets", "1:1:1", "--output", "out", *flags]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(word in line for word in words)


def test_export_takes_the_folder_of_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    taken: list[Path] = []

    def export(model: Path, *rest: object, **options: object) -> list[Path]:
        taken.append(model)
        return []

    stub(monkeypatch, "nestling.hub_cards.export_slices", export=export)
    arguments = ["export", str(tmp_path), "--budgets", "1:1", "--output", "out"]
    assert cli._run(arguments) == 4
    assert "give the folder of a saved model, or of the run that made it" in capsys.readouterr().err
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "ddl"}')
    assert cli._run(arguments) == 0
    assert taken == [tmp_path / "model"]


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
