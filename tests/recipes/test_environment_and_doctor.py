import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from nestling.recipes import doctor, environment


def test_environment_block_is_json_and_names_the_essentials() -> None:
    block = json.loads(json.dumps(environment.environment_block([1, 2])))
    assert block["seeds"] == [1, 2]
    assert block["versions"]["torch"][0].isdigit()
    assert block["machine"]["cpus"] >= 1
    # Not the release of its kernel.
    assert block["machine"]["system"] == platform.system()
    assert set(block["machine"]["cpu_flags"]) <= set(environment.RECORDED_CPU_FLAGS)
    assert block["threads"]["torch"] >= 1


def test_environment_imports_no_torch() -> None:
    code = (
        "import sys; from nestling.recipes.environment import environment_block as e; "
        "assert e()['threads']['torch'] is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_commit_is_that_of_the_folder_itself(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    inner = tmp_path / "inner"
    inner.mkdir()
    assert environment.commit_of(tmp_path) is None
    git("init", "-q")
    assert environment.commit_of(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    commit = environment.commit_of(tmp_path)
    assert commit is not None and len(commit) == 40
    assert environment.commit_of(inner) is None
    (tmp_path / "file").write_text("2")
    assert environment.commit_of(tmp_path) == f"{commit}-dirty"


def test_missing_package_has_no_version() -> None:
    assert environment.package_version("no-such-package-here") is None


@pytest.mark.parametrize(("flags", "has"), [(["avx2"], False), (["avx2", "amx_bf16"], True)])
def test_bf16_follows_the_flags(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], has: bool
) -> None:
    monkeypatch.setattr(environment, "cpu_flags", lambda: flags)
    assert environment.cpu_has_bf16() is has


def test_doctor_checks_this_machine(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.examine(tmp_path)}
    for name in ("torch", "threads", "CPU bf16", "C++ compiler", "memory", "disk", "Hub cache"):
        assert name in checks
    for check in checks.values():
        assert (check.status == "ok") == (check.limits == "")


def test_doctor_says_what_a_missing_thing_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "package_version", lambda name: None)
    monkeypatch.setattr(doctor, "cpu_flags", lambda: [])
    monkeypatch.setattr(doctor, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(doctor, "available_memory", lambda: 1024)
    monkeypatch.setattr(doctor, "LEAST_DISK", 2**62)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checks = {check.name: check for check in doctor.examine(tmp_path)}
    assert checks["torch"].status == "missing"
    assert "threads" not in checks
    assert "torch_compile" in checks["C++ compiler"].limits
    assert "fp32" in checks["CPU bf16"].limits
    assert "batch_size" in checks["memory"].limits
    assert "output_dir" in checks["disk"].limits
    assert "cached" in checks["Hub cache"].limits
    assert "Trainium" in checks["optimum-neuron"].limits


def test_missing_packages_fail_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nestling.recipes import cli

    monkeypatch.setattr(doctor, "package_version", lambda name: None)
    assert cli._run(["doctor"]) == 5
    assert "torch" in capsys.readouterr().err
