import errno
from importlib import import_module
from pathlib import Path

import pytest
from nestling.configuration.budget import BudgetError
from nestling.recipes import cli_errors
from nestling.recipes.cli_errors import EXIT_CODES, exit_code_of, interrupted_line, one_line
from nestling.recipes.data.documents import DataError


@pytest.mark.parametrize("name", [name for name in EXIT_CODES if "safetensors" not in name])
def test_every_named_exception_exists_under_its_own_name(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    error = getattr(import_module(module), attribute)
    assert f"{error.__module__}.{error.__qualname__}" == name
    assert issubclass(error, Exception)


def test_a_truncated_weight_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x40")
    with pytest.raises(SafetensorError) as caught:
        load_file(path)
    assert exit_code_of(caught.value) == 4


def test_there_is_one_data_error() -> None:
    assert cli_errors.DataError is DataError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (cli_errors.UsageError("x"), 2),
        (BudgetError("x"), 2),
        (DataError("x"), 3),
        (OSError(errno.ENOSPC, "No space left on device"), 3),
        (PermissionError(errno.EACCES, "denied"), 3),
        (cli_errors.ModelFolderError("x"), 4),
        (OSError("no file named model.safetensors in folder"), 4),
        (ValueError("x"), 4),
        (cli_errors.GateError("x"), 5),
        (KeyError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


def test_messages_fit_on_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert "free some space" in one_line(OSError(errno.ENOSPC, "No space left on device"))
    assert "--debug" in one_line(KeyError("x"))


def test_a_full_disk_inside_another_exception_class_keeps_its_hint() -> None:
    class WriteError(OSError):
        pass

    error = WriteError(errno.ENOSPC, "No space left on device", "model.safetensors")
    assert exit_code_of(error) == 3
    assert "output_dir" in one_line(error)


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        (["train", "recipe=a"], "nestling train recipe=a --resume"),
        (["train", "recipe=a", "--resume"], "nestling train recipe=a --resume"),
        (["prepare", "recipe=a"], "nestling prepare recipe=a"),
        (["doctor"], "nestling doctor"),
    ],
)
def test_interrupted_line(arguments: list[str], end: str) -> None:
    assert interrupted_line(arguments).endswith(end)
