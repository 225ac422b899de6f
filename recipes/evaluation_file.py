"""The JSON file that `evaluate` writes; plots, tables, cards and the picker read it. Torch-free."""

import json
import math
import os
from collections.abc import Iterable, Mapping
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


def read_evaluation(
    source: str | os.PathLike[str] | Mapping[str, Any], name: str = "the evaluation"
) -> dict[str, Any]:
    """Read an evaluation and check that it is one.

    Args:
        source: Path of the JSON file, or its content.
        name: What the content is called in errors; a path names itself.

    Raises:
        DataError: If the file is missing, is no JSON, lacks keys, or holds something else.
    """
    if isinstance(source, Mapping):
        content: Any = dict(source)
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
    if damage := _damage(content):
        raise DataError(f"{name} is damaged: {damage}; evaluate the model again")
    return content


def _damage(content: Mapping[str, Any]) -> str | None:
    """Return what is missing or no value of its key; None for a whole evaluation."""
    for key in ("data", "summary"):
        if not isinstance(content.get(key), Mapping):
            return f"it has no object {key!r}"
    budgets = content["budgets"]
    if not isinstance(budgets, list) or not all(isinstance(entry, Mapping) for entry in budgets):
        return "'budgets' is no list of objects"
    for number, entry in enumerate(budgets):
        if not isinstance(entry.get("budget"), str):
            return f"budgets[{number}] has no 'budget'"
        if "cross_entropy" not in entry or not _is_number(entry["cross_entropy"]):
            return f"the cross_entropy of budget {entry['budget']} is no number"
        interval = entry.get("cross_entropy_ci")
        is_pair = isinstance(interval, list) and len(interval) == 2
        if interval and not (is_pair and all(map(_is_number, interval))):
            return f"the cross_entropy_ci of budget {entry['budget']} is no pair of numbers"
    return None


def _is_number(value: Any) -> bool:
    """Whether this is a number as `write_json` writes it: null stands for one not finite."""
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or is_numeric


def predicted_tokens_of(evaluation: Mapping[str, Any]) -> int:
    """Return on how many tokens of a sequence the head counts in ``flops`` and ``latency_ms``.

    Files of 0.1.0 before the head was counted lack the key: their costs are those of the trunk, 0.
    """
    return int(evaluation.get("predicted_tokens_per_sequence") or 0)


def commits_of(evaluations: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the commits that evaluations were measured at, without repetition."""
    return sorted({str(one["environment"]["commit"]) for one in evaluations})


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
