"""The JSON file that `evaluate` writes; plots, tables, cards and the picker read it. Torch-free."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cli_errors import DataError
from .whole_file import write_whole_file

SCHEMA_VERSION = 1
KIND = "evaluation"


def write_json(path: Path, payload: Mapping[str, Any]) -> None:
    """Write JSON so that the file is complete or absent; numbers that are not finite become null.

    Args:
        path: Target; parents are made, an existing file is replaced.
        payload: What to write.
    """
    text = json.dumps(_finite(payload), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_whole_file(path, text)


def read_evaluation(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Read an evaluation and check that it is one.

    Args:
        source: Path of the JSON file, or its content.

    Raises:
        DataError: If the file is missing, is no JSON, or holds something else.
    """
    if isinstance(source, Mapping):
        content: Any = dict(source)
        name = "the evaluation"
    else:
        name = str(source)
        try:
            content = json.loads(Path(source).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"{name} does not exist; write it with: nestling evaluate MODEL --output {name}"
            ) from None
        except (ValueError, IsADirectoryError):
            raise DataError(f"{name} is no JSON file written by nestling evaluate") from None
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind != KIND or not content.get("budgets"):
        raise DataError(
            f"{name} has kind {kind!r}, not {KIND!r} with a list of budgets; "
            "write it with: nestling evaluate MODEL --output FILE.json"
        )
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{name} has schema version {version!r}, this program reads {SCHEMA_VERSION}; "
            "evaluate the model again with this version"
        )
    return content


def predicted_tokens_of(evaluation: Mapping[str, Any]) -> int:
    """Return on how many tokens of a sequence the head counts in ``flops`` and ``latency_ms``.

    Files of 0.1.0 before the head was counted lack the key: their costs are those of the trunk, 0.
    """
    return int(evaluation.get("predicted_tokens_per_sequence") or 0)


def describe_flops(evaluation: Mapping[str, Any]) -> str:
    """Return what ``flops`` count: ``sequence of 128 tokens, head on 38``."""
    predicted = predicted_tokens_of(evaluation)
    head = f"head on {predicted}" if predicted else "without the head"
    return f"sequence of {evaluation['sequence_length']} tokens, {head}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
