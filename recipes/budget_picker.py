"""The best budget within limits of time, size or compute. Torch-free unless it has to measure.

Reads what ``nestling evaluate`` or ``nestling export`` wrote. A time measured on another machine
says little here, so it is measured again where the model is at hand, and pointed out otherwise.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .cli_errors import DataError, UsageError
from .environment import cpu_model, usable_cpus
from .evaluation_file import predicted_tokens_of

MEASURED_HERE, FROM_FILE, OTHER_MACHINE, NO_TIME = (
    "measured now on this machine",
    "measured on this machine",
    "measured on another machine; give the model folder to measure here",
    "not measured",
)


class Pick(NamedTuple):
    """The chosen budget.

    Attributes:
        budget: the budget to deploy.
        folder: name of its exported folder.
        cross_entropy: its loss on the evaluation data.
        milliseconds: time of one sequence; None if it was never measured.
        megabytes: weights, in 10^6 bytes.
        flops: FLOPs of one sequence, the head counted on the tokens the file says.
        time_source: where the time comes from.
    """

    budget: str
    folder: str
    cross_entropy: float
    milliseconds: float | None
    megabytes: float
    flops: int
    time_source: str


def pick(
    source: str | os.PathLike[str] | Mapping[str, Any],
    max_ms: float | None = None,
    max_mb: float | None = None,
    max_flops: float | None = None,
    measure: Path | None = None,
) -> Pick:
    """Return the budget with the lowest cross-entropy within all limits.

    A budget is served by its safe alias, a contained budget that is better or cannot be told
    from it, if the file has that one too and it keeps the limits itself (a measured time may exceed
    one by noise).

    Args:
        source: an evaluation file or ``budgets.json``, or the content of one.
        max_ms: milliseconds per sequence on this machine.
        max_mb: megabytes of weights.
        max_flops: FLOPs per sequence, counted as the file counts them.
        measure: model folder, to measure times here if the file's are from another machine.

    Raises:
        UsageError: if no limit is given or no budget fits; it names the nearest limits that work.
        DataError: if the file is none of the two kinds or holds no measured quality.
    """
    limits = {"milliseconds": max_ms, "megabytes": max_mb, "flops": max_flops}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    if not limits:
        raise UsageError("no limit is given; set max_ms, max_mb or max_flops")
    content = _read(source)
    picks, aliases = _candidates(content)
    if "milliseconds" in limits:
        picks = _with_times(picks, content, measure)
    fitting = {name for name, one in picks.items() if _fits(one, limits)}
    if not fitting:
        raise UsageError(_nothing_fits(picks.values(), limits))
    served = {alias if (alias := aliases.get(name)) in fitting else name for name in fitting}
    return min((picks[name] for name in served), key=lambda one: (one.cross_entropy, one.flops))


def is_this_machine(environment: Mapping[str, Any]) -> bool:
    """Whether an environment block describes this processor with as many usable CPUs."""
    machine = environment.get("machine") or {}
    return machine.get("cpu") == cpu_model() and machine.get("cpus") == usable_cpus()


def _read(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        content: Any = dict(source)
    else:
        try:
            content = json.loads(Path(source).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{source} does not exist; write it with nestling evaluate") from None
        except (ValueError, IsADirectoryError):
            raise DataError(f"{source} is no JSON file of nestling evaluate or export") from None
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in ("evaluation", "budgets") or not content.get("budgets"):
        raise DataError(
            f"kind {kind!r} holds no budgets to pick from; give the JSON of nestling evaluate or "
            "the budgets.json of nestling export"
        )
    if content.get("schema_version") != 1:
        raise DataError(
            f"schema version {content.get('schema_version')!r} is unknown, 1 is read; "
            "evaluate or export again with this version"
        )
    return content


def _candidates(content: Mapping[str, Any]) -> tuple[dict[str, Pick], dict[str, str]]:
    """Return the measured budgets by name, and the alias of each."""
    picks, aliases = {}, {}
    for entry in content["budgets"]:
        # An evaluation holds the measurements in the entry, budgets.json below "measured".
        measured = entry if content["kind"] == "evaluation" else entry.get("measured") or {}
        if measured.get("cross_entropy") is None:
            continue
        latency = measured.get("latency_ms")
        picks[entry["budget"]] = Pick(
            budget=entry["budget"],
            folder=entry["folder"],
            cross_entropy=measured["cross_entropy"],
            milliseconds=None if latency is None else latency["median"],
            megabytes=entry["bytes"] / 1e6,
            flops=entry["flops"],
            time_source=_time_source(content, latency),
        )
        if entry.get("safe_alias"):
            aliases[entry["budget"]] = entry["safe_alias"]
    if not picks:
        raise DataError(
            "no budget of the file has a measured cross-entropy; run nestling evaluate, or export "
            "with --evaluation FILE.json"
        )
    return picks, aliases


def _time_source(content: Mapping[str, Any], latency: object) -> str:
    if latency is None:
        return NO_TIME
    block = content if content["kind"] == "evaluation" else content.get("evaluation") or {}
    return FROM_FILE if is_this_machine(block.get("environment") or {}) else OTHER_MACHINE


def _with_times(
    picks: dict[str, Pick], content: Mapping[str, Any], measure: Path | None
) -> dict[str, Pick]:
    if all(one.time_source == FROM_FILE for one in picks.values()):
        return picks
    if measure is not None:
        block = content if content["kind"] == "evaluation" else content.get("evaluation") or {}
        length = int(block.get("sequence_length") or 128)
        times = _measure(
            measure,
            list(picks),
            length,
            predicted_tokens_of(block),
            block.get("delta_token_ratio"),
            _shares_of(content),
        )
        return {
            name: one._replace(milliseconds=times[name], time_source=MEASURED_HERE)
            for name, one in picks.items()
        }
    if all(one.milliseconds is None for one in picks.values()):
        raise DataError(
            "the file has no times; evaluate with evaluation.latency=true, or give the model "
            "folder to measure here"
        )
    return picks


def _shares_of(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of the tokens that scored above a threshold, of budgets that have one."""
    shares = {}
    for entry in content["budgets"]:
        measured = entry if content["kind"] == "evaluation" else entry.get("measured") or {}
        if measured.get("delta_token_share") is not None:
            shares[entry["budget"]] = float(measured["delta_token_share"])
    return shares


def _measure(
    folder: Path,
    budgets: Sequence[str],
    sequence_length: int,
    predicted_tokens: int,
    delta_token_ratio: float | None,
    delta_token_shares: Mapping[str, float],
) -> dict[str, float]:
    from ..configuration.delta_budget import DeltaBudget
    from ..configuration.delta_settings import choose_tokens_by_share
    from ..modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
    from .delta_encoder.budget_latency import measure_latency

    model = DeltaEncoderForMaskedLM.from_pretrained(folder)
    if delta_token_ratio is not None:
        choose_tokens_by_share(model.config, delta_token_ratio)
    parsed = [DeltaBudget.parse(budget) for budget in budgets]
    shares = {budget: delta_token_shares.get(str(budget)) for budget in parsed}
    times = measure_latency(model, parsed, sequence_length, predicted_tokens, shares=shares)
    return {str(budget): spread["median"] for budget, spread in times.items()}


def _fits(one: Pick, limits: Mapping[str, float | None]) -> bool:
    values = one._asdict()
    return all(
        values[name] is not None and limit is not None and values[name] <= limit
        for name, limit in limits.items()
    )


def _nothing_fits(picks: Any, limits: Mapping[str, float | None]) -> str:
    """Name, for each limit, the smallest value with which something fits the other limits."""
    flags = {"milliseconds": "max_ms", "megabytes": "max_mb", "flops": "max_flops"}
    given = ", ".join(f"{flags[name]}={limit:g}" for name, limit in limits.items())
    hints = []
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        values = [one._asdict()[name] for one in picks if _fits(one, others)]
        known = [value for value in values if value is not None]
        if known:
            hints.append(f"{flags[name]}={_round_up(min(known)):g}")
    advice = " or ".join(hints) or "looser limits on all of them"
    return f"no budget fits {given}; the nearest that works: {advice}"


def _round_up(value: float) -> float:
    """Round up to four significant digits, so that the printed limit really works."""
    from decimal import ROUND_CEILING, Context, Decimal

    return float(Context(prec=4, rounding=ROUND_CEILING).create_decimal(Decimal(value)))
