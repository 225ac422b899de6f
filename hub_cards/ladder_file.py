"""``budgets.json``: what each exported budget costs and how well it was measured to do."""

from pathlib import Path
from typing import Any

from .complete_folder import LADDER, ExportError, read_json, without_paths

SCHEMA_VERSION = 1
FLOPS_TOKENS = 128
METRICS = (
    "cross_entropy",
    "cross_entropy_ci",
    "perplexity",
    "accuracy",
    "ece",
    "temperature",
    "ece_after_temperature",
    "f1",
    "precision",
    "recall",
    "latency_ms",
    "delta_token_share",
)
# What a reader of budgets.json needs of the evaluation beside its rows.
CONTEXT = (
    "task",
    "environment",
    "data",
    "sequence_length",
    "predicted_tokens_per_sequence",
    "delta_token_ratio",
    "delta_token_threshold",
    "delta_pack",
)


def read_evaluation(path: str | Path | None, model_type: str) -> dict[str, Any] | None:
    """Read what ``nestling evaluate`` wrote.

    Raises:
        ExportError: if the file is something else, of another schema, or of another family.
    """
    if path is None:
        return None
    content = read_json(Path(path))
    if content.get("kind") != "evaluation" or content.get("schema_version") != SCHEMA_VERSION:
        raise ExportError(
            f"{path} has kind {content.get('kind')!r} and schema_version "
            f"{content.get('schema_version')!r}; give the JSON that `nestling evaluate` wrote "
            f"(kind 'evaluation', schema_version {SCHEMA_VERSION})"
        )
    if content.get("family") != model_type:
        raise ExportError(f"{path} measures {content.get('family')!r}, the model is {model_type!r}")
    return {key: _portable(value) for key, value in content.items()}


def _portable(value: Any) -> Any:
    """Return ``value`` with every absolute path in it cut to its last part."""
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    return value


def predicted_tokens(evaluation: dict[str, Any] | None) -> int:
    """Return on how many tokens of a sequence FLOPs count the head; 0 counts the trunk alone."""
    return int((evaluation or {}).get("predicted_tokens_per_sequence") or 0)


def measured_row(evaluation: dict[str, Any] | None, budget: Any) -> dict[str, Any] | None:
    """Return the row of the evaluation that measured ``budget``, or None."""
    rows = (evaluation or {}).get("budgets", [])
    return next((row for row in rows if row["budget"] == str(budget)), None)


def ladder_entry(
    description: dict[str, Any], evaluation: dict[str, Any] | None
) -> dict[str, Any]:
    """Return one entry of ``budgets.json`` from a folder's ``nestling.json``.

    ``safe_alias`` is the budget to serve when this one is asked for: a cheaper one that is better,
    or that the measured rows cannot tell from it, or the budget itself. It is written here only;
    folders keep their true shapes.
    """
    row = measured_row(evaluation, description["budget"])
    return {
        "budget": description["budget"],
        "folder": description["folder"],
        "format": description["format"],
        "native": description["format"] == "native",
        "format_reason": description["format_reason"],
        "parameters": description["parameters"],
        "flops": description["flops"],
        "bytes": description["bytes"],
        "source": description["source"],
        "measured": None if row is None else {key: row.get(key) for key in METRICS},
        "safe_alias": description["budget"] if row is None else row.get("safe_alias"),
    }


def ladder(
    entries: list[dict[str, Any]], family: str, evaluation: dict[str, Any] | None, version: str
) -> dict[str, Any]:
    """Return the content of ``budgets.json``, cheapest budget first."""
    context = None
    if evaluation is not None:
        context = {key: evaluation.get(key) for key in CONTEXT}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "budgets",
        "family": family,
        "version": version,
        "flops_tokens": flops_tokens(evaluation),
        "flops_predicted_tokens": predicted_tokens(evaluation),
        "evaluation": context,
        "budgets": sorted(entries, key=lambda entry: (entry["flops"], entry["folder"])),
    }


def flops_tokens(evaluation: dict[str, Any] | None) -> int:
    """Return the sequence length FLOPs are stated for: the evaluation's, or 128."""
    return int((evaluation or {}).get("sequence_length") or FLOPS_TOKENS)


def with_repositories(content: dict[str, Any], repositories: dict[str, str]) -> dict[str, Any]:
    """Return a ladder whose entries say where each slice is on the Hub.

    Whoever has one repository can then follow its ``safe_alias`` to the repository of that budget.

    Args:
        content: what `ladder` returned.
        repositories: folder name -> repository; other entries keep what they say, or say None.
    """
    entries = [
        {**entry, "repository": repositories.get(entry["folder"], entry.get("repository"))}
        for entry in content["budgets"]
    ]
    return {**content, "budgets": entries}


def kept_entries(folder: Path, replaced: set[str]) -> list[dict[str, Any]]:
    """Return the entries of an earlier export into ``folder`` that stay valid."""
    path = folder / LADDER
    if not path.is_file():
        return []
    earlier = read_json(path).get("budgets", [])
    return [
        entry
        for entry in earlier
        if entry["folder"] not in replaced and (folder / entry["folder"]).is_dir()
    ]
