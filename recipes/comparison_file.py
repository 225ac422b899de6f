"""The JSON file that `compare` writes; its table and its page are made from it. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import Any

from .environment import environment_block

SCHEMA_VERSION = 1
KIND = "comparison"
NATS, BITS = "nats per token", "bits per byte"

Row = dict[str, Any]


def comparison(
    measure: str,
    data: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    statistics: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Put a comparison together; docs/files.md lists its keys."""
    seeds = sorted({model["seed"] for model in models if model.get("seed") is not None})
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "environment": environment_block(seeds),
        "measure": measure,
        "data": dict(data),
        "models": [dict(model) for model in models],
        **statistics,
        "notes": [*notes, *meaning_of(statistics)],
    }


def meaning_of(statistics: Mapping[str, Any]) -> list[str]:
    """Return what the intervals of a comparison mean, a sentence each."""
    pairs = statistics["pairs"]
    bases = {pair["basis"] for pair in pairs}
    notes = []
    if any(basis.startswith("text") for basis in bases):
        notes.append(
            "Intervals that rest on text say how the same trained models would differ on other "
            "text of the kind: one training run each, so they say nothing about other seeds."
        )
    if "text, unpaired" in bases:
        notes.append(
            "Losses of the pieces of text were not kept, so these intervals are unpaired and wider."
        )
    if any(basis.startswith("seeds") for basis in bases):
        notes.append("Intervals that rest on seeds are Student's, over the runs of each method.")
    if "seeds of one" in bases:
        notes.append(
            "Where only one of two methods has several runs, the single run is taken to vary as "
            "much as those do."
        )
    if "none" in bases:
        notes.append("Pairs without an interval are not separable: there is too little to rest on.")
    if len(pairs) > 1:
        notes.append(
            f"Verdicts hold together with {statistics['level']:.0%}: each of the {len(pairs)} "
            f"pairs is decided at {statistics['joint_level']:.2%}, the intervals shown are those "
            f"of {statistics['level']:.0%}."
        )
    return notes


def training_token_notes(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence where models have read different amounts of text in training."""
    known = [(model["name"], model["training_tokens"]) for model in models]
    counts = {tokens for _, tokens in known if tokens is not None}
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{name} {tokens:,}" for name, tokens in known if tokens is not None)
    return [
        f"Not trained on equally many tokens, so part of a difference may be that alone: {listed}."
    ]


def token_ratio_notes(ratios: Mapping[str, float | None]) -> list[str]:
    """Return a sentence where models ran the delta on different shares of the tokens.

    Args:
        ratios: name of a model -> its ``delta_token_ratio``; None is every token.
    """
    shares = {name: 1.0 if ratio is None else ratio for name, ratio in ratios.items()}
    if len(set(shares.values())) < 2:
        return []
    listed = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    return [
        "The delta ran on different shares of the tokens (delta_token_ratio), so part of a "
        f"difference may be that alone: {listed}."
    ]


def method_rows(content: Mapping[str, Any]) -> list[Row]:
    """Return one row a method for a table, the best mean first."""
    parameters = {model["method"]: model.get("parameters") for model in content["models"]}
    return [
        {
            "rank": entry["rank"],
            "method": entry["method"],
            "runs": len(entry["runs"]),
            content["measure"]: shown(entry["loss"]["mean"]),
            "95 %": shown_interval(entry["loss"]),
            "rests on": entry["loss"]["basis"],
            "parameters": parameters[entry["method"]],
        }
        for entry in content["methods"]
    ]


def pair_rows(content: Mapping[str, Any]) -> list[Row]:
    """Return one row a pair of methods for a table."""
    return [
        {
            "pair": f"{pair['worse']} - {pair['better']}",
            "difference": shown(pair["difference"]),
            "95 %": shown_interval(pair),
            "rests on": pair["basis"],
            "verdict": pair["verdict"],
        }
        for pair in content["pairs"]
    ]


def shown(value: float | None) -> str:
    """Print a loss or a difference with four decimals."""
    return "-" if value is None else f"{value:.4f}"


def shown_interval(entry: Mapping[str, Any]) -> str:
    """Print the interval of an entry with ``low`` and ``high``."""
    if entry["low"] is None:
        return "-"
    return f"{shown(entry['low'])} to {shown(entry['high'])}"
