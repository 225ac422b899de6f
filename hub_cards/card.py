"""Model cards, generated from measured JSON. No number in a card is typed by hand."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..modeling.families import Family
from .ladder_file import measured_row, predicted_tokens
from .loading_snippets import loading_snippets

TEMPLATES = Path(__file__).parent / "templates"
_PIPELINES = {
    "AutoModel": "feature-extraction",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}
# Measure -> title in the metadata (of masked or of predicted tokens), head of its column, decimals.
# An evaluation has the first four, one of a fine-tuned model the rest.
_MEASURES = {
    "cross_entropy": (
        "Cross-entropy (nats per {tokens} token)",
        "cross-entropy (95 % interval)",
        3,
    ),
    "perplexity": ("Perplexity of {tokens} tokens", "perplexity", 2),
    "accuracy": ("Accuracy", "accuracy", 4),
    "ece": ("Expected calibration error", "ECE", 4),
    "f1": ("F1", "F1", 4),
    "precision": ("Precision", "precision", 4),
    "recall": ("Recall", "recall", 4),
}
_ORIGINS = {
    "source": "cut from",
    "base_model": "initialised from",
    "recipe": "recipe",
    "command": "command",
    "trained_commit": "trained at commit",
    "delta_pack": "delta of the upgrade pack",
}


def write_card(
    folder: Path,
    family: Family,
    description: dict[str, Any],
    evaluation: dict[str, Any] | None,
    config: Any,
) -> None:
    """Write ``README.md``.

    Args:
        folder: an existing folder; its template is ``templates/<model_type>.md``.
        family: the row of the family.
        description: content of ``nestling.json``.
        evaluation: what ``nestling evaluate`` wrote; None makes the card say "not measured".
        config: configuration of the model in the folder.
    """
    card = ModelCard.from_template(
        card_data(family, description, evaluation),
        template_path=str(TEMPLATES / f"{family.model_type}.md"),
        **{"base_model": None, "delta": None, **description},
        title=family.title,
        megabytes=f"{description['bytes'] / 1e6:.2f}",
        snippets=loading_snippets(description, description["folder"]),
        columns=[_MEASURES[name][1] for name in measures_of(evaluation)],
        rows=ladder_rows(description, evaluation),
        task=task_of(description, evaluation),
        task_data=((evaluation or {}).get("data") or {}).get("name"),
        is_masked_lm=description["auto_class"] == "AutoModelForMaskedLM",
        conditions=_conditions(evaluation),
        predicted_tokens=predicted_tokens(evaluation),
        provenance=[
            (label, description[key]) for key, label in _ORIGINS.items() if description.get(key)
        ],
        max_tokens=config.max_position_embeddings,
        example=config.budgets[0],
        config=config,
    )
    (folder / "README.md").write_text(str(card).rstrip() + "\n", encoding="utf-8")


def card_data(
    family: Family, description: dict[str, Any], evaluation: dict[str, Any] | None
) -> ModelCardData:
    """Return the metadata block: tags, pipeline, base model and the results of this budget."""
    tags = ["nestling", "matryoshka", "elastic-inference", family.model_type.replace("_", "-")]
    if description["format"] != "native":
        tags.append("custom_code")
    if family.is_encoder and description["has_tokenizer"]:
        tags += ["sentence-transformers", "feature-extraction"]
    row = measured_row(evaluation, description["budget"])
    results = []
    if row is not None and evaluation is not None:
        tokens = "masked" if family.is_encoder else "predicted"
        results = _results(row, evaluation, task_of(description, evaluation), tokens)
    return ModelCardData(
        model_name=f"{family.title} {description['budget']}",
        library_name="transformers",
        pipeline_tag=_PIPELINES.get(description["auto_class"]),
        base_model=description.get("base_model"),
        tags=tags,
        eval_results=results or None,
    )


def ladder_rows(
    description: dict[str, Any], evaluation: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Return the table of all measured budgets, largest first, this slice marked by an arrow."""
    rows = sorted((evaluation or {}).get("budgets", []), key=lambda row: -row["flops"])
    is_slice = description["kind"] == "slice"
    return [
        {
            "mark": "→" if is_slice and row["budget"] == description["budget"] else "",
            "budget": row["budget"],
            "parameters": f"{row['parameters']:,}",
            "gflops": f"{row['flops'] / 1e9:.3g}",
            "quality": [_quality(row, name) for name in measures_of(evaluation)],
            "latency": _number((row.get("latency_ms") or {}).get("median"), 2),
        }
        for row in rows
    ]


def measures_of(evaluation: dict[str, Any] | None) -> list[str]:
    """Return the measures that some row has, in the order of the columns."""
    rows = (evaluation or {}).get("budgets", [])
    return [name for name in _MEASURES if any(row.get(name) is not None for row in rows)]


def task_of(description: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """Return what was measured: a task of the labelled sets, or what the model was trained for."""
    return str((evaluation or {}).get("task") or _PIPELINES[description["auto_class"]])


def _results(
    row: dict[str, Any], evaluation: dict[str, Any], task: str, tokens: str
) -> list[EvalResult]:
    data = evaluation["data"]
    name = data.get("name") or data.get("path") or "evaluation text"
    return [
        EvalResult(
            task_type=task,
            dataset_type=name,
            dataset_name=name,
            dataset_split=data.get("split"),
            metric_type=metric,
            metric_name=title.format(tokens=tokens),
            metric_value=row[metric],
        )
        for metric, (title, _, _) in _MEASURES.items()
        if row.get(metric) is not None
    ]


def _conditions(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return ""
    data = ", ".join(_scalars(evaluation.get("data", {})))
    machine = ", ".join(_scalars(evaluation.get("environment", {})))
    length = evaluation.get("sequence_length")
    routed = _routed_tokens(evaluation)
    machine = machine or "not stated"
    return f"Data: {data or 'not stated'}; {length} tokens.{routed} Machine: {machine}."


def _routed_tokens(evaluation: dict[str, Any]) -> str:
    """Return a sentence on which tokens got the delta; nothing where all did."""
    ratio, threshold = (evaluation.get(f"delta_token_{name}") for name in ("ratio", "threshold"))
    if threshold is None:
        return "" if ratio is None else f" Delta on {100 * ratio:g} % of the tokens."
    each = [row.get("delta_token_share") for row in evaluation["budgets"]]
    shares = sorted({f"{100 * share:.3g}" for share in each if share is not None}, key=float)
    spread = " to ".join(dict.fromkeys([shares[0], shares[-1]])) if shares else "0"
    return (
        f" Delta on the tokens that score above {threshold:g}, {spread} % of all by budget, which "
        "the FLOPs count."
    )


def _scalars(values: dict[str, Any]) -> Iterable[str]:
    for key, value in values.items():
        if isinstance(value, (str, int, float)) and value != "":
            yield f"{key.replace('_', ' ')} {value}"


def _quality(row: dict[str, Any], measure: str) -> str:
    value = _number(row.get(measure), _MEASURES[measure][2])
    interval = row.get("cross_entropy_ci") if measure == "cross_entropy" else None
    return value if not interval else f"{value} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
