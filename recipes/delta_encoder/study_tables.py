"""The tables of a study as Markdown."""

from collections.abc import Mapping
from typing import Any

from .study_cells import ABLATIONS, COMPUTE, TOKENS
from .study_methods import METHODS, NESTED, SEPARATE
from .study_plot import title_of

SHAPES = ("smallest", "middle", "largest")
UNTRAINED = " †"
_NOTES = (
    "Cross-entropy in nats, mean and 95 % interval over seeds; in brackets the gap to the model "
    "trained alone. † a slice that the method does not train. AUTC counts the best slice within "
    "each compute limit, trained or not; its difference to ours is paired by seed, bold where the "
    "interval excludes 0. Violations of each seed: nested pairs in the wrong order "
    "on the evaluation rows, and, under safe, after the aliases chosen on the calibration rows: on "
    "those rows, where 0 is certain, and on the evaluation rows. FLOPs of training over those of "
    "ours.",
    "",
)


def tokens_table(study: Mapping[str, Any]) -> str:
    """Return the methods at equal tokens."""
    return _methods_table(study, TOKENS)


def compute_table(study: Mapping[str, Any]) -> str:
    """Return the methods at equal training FLOPs."""
    return _methods_table(study, COMPUTE)


def _methods_table(study: Mapping[str, Any], table: str) -> str:
    methods = study["tables"][table]["methods"]
    ours = (methods.get(NESTED, {}).get("training") or {}).get("flops")
    rest = ["AUTC", "minus ours", "over separate", "mean of the lattice"]
    rest += ["violations", "safe, calibration", "safe, evaluation"]
    rows = [[*_heads(study["named_budgets"]), *rest, "tokens", "FLOPs"]]
    for name, method in methods.items():
        cost, gaps = method["training"], method["gap_percent"] or {}
        trained = method["trained_budgets"]
        shapes = [
            _loss_and_gap(method["budgets"].get(budget), gaps.get(shape), name)
            + ("" if budget in trained else UNTRAINED)
            for shape, budget in study["named_budgets"].items()
        ]
        rows.append(
            [
                title_of(name),
                *shapes,
                measure(method["autc"]),
                "-" if name == NESTED else difference(method["minus_ours"].get("autc")),
                "1" if name == SEPARATE else measure(method["autc_over_separate"]),
                measure(method["mean_cross_entropy"]),
                _counts(method, "raw_violations"),
                _counts(method, "alias_violations_calibration"),
                _counts(method, "alias_violations"),
                f"{cost['tokens'] / 1e6:.2f}M",
                f"{cost['flops'] / ours:.2f}" if ours else "-",
            ]
        )
    lines = [*markdown_rows(rows), "", *_NOTES]
    lines += [f"{title_of(n)}: {METHODS[n].source}." for n in methods if n in METHODS]
    return "\n".join(lines) + "\n"


def ablation_table(study: Mapping[str, Any]) -> str:
    """Return what each change does to ours: differences of paired seeds."""
    return _minus_table(study, ABLATIONS)


def tokens_minus_table(study: Mapping[str, Any]) -> str:
    """Return the methods at equal tokens as differences to ours of paired seeds."""
    return _minus_table(study, TOKENS)


def compute_minus_table(study: Mapping[str, Any]) -> str:
    """Return the methods at equal training FLOPs as differences to ours of paired seeds."""
    return _minus_table(study, COMPUTE)


def _minus_table(study: Mapping[str, Any], table: str) -> str:
    methods = study["tables"][table]["methods"]
    ours = (methods.get(NESTED, {}).get("training") or {}).get("flops")
    rows = [["change", "keys", *SHAPES, "mean of the lattice", "AUTC", "violations", "FLOPs"]]
    for name, method in methods.items():
        # Rivals are no change of keys.
        if name not in study["changes"]:
            continue
        less = method["minus_ours"]
        rows.append(
            [
                name,
                " ".join(f"`{change}`" for change in study["changes"][name]),
                *(difference(less.get(shape)) for shape in SHAPES),
                difference(less.get("mean_cross_entropy")),
                difference(less.get("autc")),
                _counts(method, "raw_violations"),
                f"{method['training']['flops'] / ours:.2f}" if ours else "-",
            ]
        )
    steps = study["tables"][table]["steps"]
    length = f"Runs of {steps:,} steps, ours too."
    if table == COMPUTE:
        length = f"Ours has {steps:,} steps, each other as many as its FLOPs pay for."
    note = (
        f"{length} Differences to ours of the same seed, mean and 95 % "
        "interval; bold where the interval excludes 0. The intervals are not corrected for their "
        "number: of twenty without an effect, one is bold by chance."
    )
    return "\n".join([*markdown_rows(rows), "", note]) + "\n"


def rates_table(study: Mapping[str, Any]) -> str:
    """Return what the common learning rate costs each method, and whether it favours ours."""
    rates, nested = study["rates"], study["rates"]["methods"].get(NESTED)
    factors = sorted({f for each in rates["methods"].values() for f in each["rates"]}, key=float)
    rest = ["best", "lost at 1", "lost minus ours", "AUTC minus ours at 1", "each at its best"]
    rows = [["method", *(f"{factor} x lr" for factor in factors), *rest]]
    for name, method in rates["methods"].items():
        tried = (method["rates"].get(factor, {}) for factor in factors)
        areas = method["autc_minus_ours"]
        rows.append(
            [
                title_of(name),
                *(measure(each.get("cross_entropy")) for each in tried),
                f"{method['best'] or '-'}{' (edge)' if method['is_at_edge'] else ''}",
                measure(method["lost"]),
                *(difference(value) for value in (method["lost_minus_ours"], *areas.values())),
            ]
        )
    more, less = (
        ", ".join(title_of(name) for name in rates[key]) or "no method"
        for key in ("favoured_over", "favoured_by")
    )
    note = (
        f"Runs of {rates['steps']:,} steps, {study['equal']['steps']:,} in the study; 1 x is its "
        f"rate of {rates['lr']:g}. Cross-entropy in nats, mean over the budgets that the method "
        "trains, with 95 % interval over seeds. Lost at 1: by how much the common rate is worse "
        "than the best of the method, chosen on the same rows, so noise alone makes it positive."
    )
    verdict = f"At the common rate more than ours loses: {more}; less: {less}."
    return "\n".join([*markdown_rows(rows), "", note, *([verdict] if nested else [])]) + "\n"


def deltas_table(study: Mapping[str, Any]) -> str:
    """Return how much of the gain of a dense delta smaller ones recover."""
    deltas = study["delta_gains"]
    base, largest = deltas["base"], deltas["largest"]
    rows = [["delta", "pack, KB", "atoms, KB", base, largest, "gain", "recovered", "reached"]]
    for name, kind in deltas["kinds"].items():
        sizes, losses = kind["bytes"], kind["cross_entropy"]
        rows.append(
            [
                name,
                *(f"{sizes[key] / 1000:.1f}" for key in ("pack", "atoms")),
                *(measure(losses[key]) for key in ("base", "largest")),
                measure(kind["gain"]),
                *(measure(kind[key], 2) for key in ("recovered", "reached")),
            ]
        )
    note = (
        f"Runs of {deltas['steps']:,} steps. Cross-entropy in nats of the base slice {base} and of "
        f"{largest}, mean and 95 % interval over seeds. Gain: their difference. Recovered: gain "
        "over gain of the dense delta, by seed; reached: the same from the base slice of the dense "
        "model. Atoms are sent once, before the first pack."
    )
    return "\n".join([*markdown_rows(rows), "", note]) + "\n"


def lattice_table(study: Mapping[str, Any]) -> str:
    """Return the cross-entropy of every budget, of every method at equal tokens."""
    methods = study["tables"][TOKENS]["methods"]
    rows = [["budget", *(title_of(name) for name in methods)]]
    budgets = {b: entry["flops"] for m in methods.values() for b, entry in m["budgets"].items()}
    for budget in sorted(budgets, key=lambda name: (budgets[name], name)):
        cells = []
        for method in methods.values():
            entry = method["budgets"].get(budget)
            mark = "" if entry is None or budget in method["trained_budgets"] else UNTRAINED
            cells.append(measure(entry and entry["cross_entropy"]) + mark)
        rows.append([budget, *cells])
    return "\n".join(markdown_rows(rows)) + "\n"


def measure(value: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Print a mean with its interval."""
    if value is None:
        return "-"
    mean, low, high = (value[key] for key in ("mean", "low", "high"))
    if low is None:
        return f"{mean:.{digits}f} (n = 1)"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(value: Mapping[str, Any] | None) -> str:
    """Print a difference with sign and interval; bold where the interval excludes 0."""
    if value is None:
        return "-"
    mean, low, high = (value[key] for key in ("mean", "low", "high"))
    if low is None:
        return f"{mean:+.3f} (n = 1)"
    text = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _counts(method: Mapping[str, Any], key: str) -> str:
    """Print a number per seed."""
    values = method.get(key) or ["-"]
    return ", ".join("-" if value is None else str(value) for value in values)


def _heads(named: Mapping[str, str]) -> list[str]:
    return ["method", *(f"{shape} {budget} (gap %)" for shape, budget in named.items())]


def _loss_and_gap(
    entry: Mapping[str, Any] | None, gap: Mapping[str, Any] | None, method: str
) -> str:
    if entry is None:
        return "-"
    loss = measure(entry["cross_entropy"])
    if gap is None or method == SEPARATE:
        return loss
    low, high = gap["low"], gap["high"]
    bounds = "" if low is None else f" [{low:+.1f}, {high:+.1f}]"
    return f"{loss} ({gap['mean']:+.1f}{bounds})"


def markdown_rows(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table whose first row is its head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "| --- |" + " ---: |" * (len(rows[0]) - 1), *body]
