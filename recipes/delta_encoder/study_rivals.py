"""Where ours does not win: budgets at which a rival that trains them has the lower loss."""

from collections.abc import Mapping
from typing import Any

from ..evaluation.seed_interval import interval, verdict
from .study_cells import TOKENS
from .study_methods import NESTED, OURS
from .study_plot import title_of
from .study_tables import difference, markdown_rows


def better_rivals(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every trained budget of a rival whose mean loss is below ours, the largest first.

    Args:
        study: a study file.

    Returns:
        One entry each: ``budget``, ``method``, ``difference`` (rival minus ours in nats, paired by
        seed, with 95 % t-interval), ``verdict`` (at the level at which all comparisons of trained
        budgets hold together) and ``compared``, how many those are.
    """
    methods = study["tables"][TOKENS]["methods"]
    ours = methods[NESTED]
    compared = []
    for name, method in methods.items():
        both = [seed for seed in method["seeds"] if seed in ours["seeds"]]
        for budget in method["trained_budgets"] if name not in OURS else ():
            if budget not in ours["budgets"] or budget not in method["budgets"] or not both:
                continue
            theirs, mine = _losses(method, budget), _losses(ours, budget)
            values = [theirs[seed] - mine[seed] for seed in both]
            flops = ours["budgets"][budget]["flops"]
            compared.append((flops, budget, name, values))
    return [
        {
            "budget": budget,
            "method": name,
            "difference": interval(values),
            "verdict": verdict(values, len(compared)),
            "compared": len(compared),
        }
        for _, budget, name, values in sorted(compared, key=lambda each: (-each[0], *each[1:3]))
        if sum(values) < 0
    ]


def _losses(method: Mapping[str, Any], budget: str) -> dict[int, float]:
    """Return seed -> loss."""
    values = method["budgets"][budget]["cross_entropy"]["values"]
    return dict(zip(method["seeds"], values, strict=True))


def rivals_table(study: Mapping[str, Any]) -> str:
    """Return the table of `better_rivals`."""
    found = better_rivals(study)
    if not found:
        return "No rival has a lower mean at any budget that it trains.\n"
    rows = [["budget", "method", "minus ours", "of all comparisons"]]
    rows += [
        [each["budget"], title_of(each["method"]), difference(each["difference"]), each["verdict"]]
        for each in found
    ]
    note = (
        f"{len(found)} of {found[0]['compared']} comparisons at budgets that a rival trains; ours "
        "has the lower mean in the others. Paired by seed, 95 % interval, bold where it excludes "
        "0. The last column decides at the level at which all comparisons hold together."
    )
    return "\n".join([*markdown_rows(rows), "", note]) + "\n"
