"""The result of `routing_study` as Markdown."""

from collections.abc import Mapping
from typing import Any

from .study_tables import difference, markdown_rows, measure

RULES = {
    "preview": "preview network",
    "confidence": "confidence",
    "random": "random",
    "labelled": "knows the masks",
    "benefit": "knows the labels",
}
AGAINST_RANDOM = ("preview", "confidence", "labelled")


def routing_table(study: Mapping[str, Any]) -> str:
    """Return the loss of every rule at every share of tokens, and what beats chance."""
    curves, less = study["curves"], study["minus_random"]
    heads = [*RULES.values(), *(f"{RULES[rule]} minus random" for rule in AGAINST_RANDOM)]
    rows = [["share of tokens", "FLOPs", *heads]]
    for ratio, flops in study["flops"].items():
        rows.append(
            [
                ratio,
                f"{flops:.3f}",
                *(measure(curves[rule][ratio]) for rule in RULES),
                *(difference(less[rule][ratio]) for rule in AGAINST_RANDOM),
            ]
        )
    note = (
        f"Cross-entropy in nats of {study['predicted_tokens']:,} predicted tokens at the largest "
        f"budget, mean and 95 % interval over {len(study['models'])} models; differences by model, "
        "bold where the interval excludes 0. FLOPs over those with the delta on every token. The "
        "last two rules cannot be used in practice: one takes the predicted tokens first, in "
        "random order, the other those of them that the delta helps most."
    )
    facts = [
        f"The delta lowers the loss of a predicted token by {measure(study['benefit'])} nats.",
        "Where it helps a predicted token, the preview network scores that token above one that "
        f"it does not help with probability {measure(study['preview_auc'])} (0.5 is chance).",
    ]
    if study["learned_threshold"]:
        masked, clean = (measure(study["learned_threshold"][text]) for text in ("masked", "clean"))
        facts.append(
            f"The learned threshold lets {masked} of the tokens of masked text through, and "
            f"{clean} of clean text."
        )
        losses = study["threshold_loss"]
        facts.append(
            "With the delta on those of masked text the loss is "
            f"{measure(losses['threshold'])}, on as many of each batch chosen row by row "
            f"{measure(losses['same_share'])}; difference {difference(losses['minus_same_share'])}."
        )
    return "\n".join([*markdown_rows(rows), "", note, "", *facts]) + "\n"
