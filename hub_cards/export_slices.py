"""Cuts an elastic model into folders that need nothing of ours to be used.

A folder holds weights, tokenizer, sentence-transformers files, a card and, where no stock class
computes the slice, the code. Everything is written and verified in a hidden folder beside the
output and renamed at the end: an export is there in full, or not at all.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .. import __version__
from ..configuration.budget import select_budgets
from ..configuration.delta_settings import (
    choose_tokens_by_share,
    choose_tokens_by_threshold,
    delta_share,
)
from .complete_folder import (
    LADDER,
    ExportError,
    clear_leftovers,
    move_into_place,
    require_replaceable,
    staging_folder,
    write_json,
)
from .delta_pack import load_pack_as_stored, pack_identity
from .elastic_folder import ElasticModel, describe_model, load_elastic, load_outline
from .ladder_file import kept_entries, ladder, ladder_entry, read_evaluation
from .model_files import WEIGHTS, choose_format, has_native_class
from .slice_folder import write_elastic_folder, write_slice_folder
from .verify_export import verify_folder

logger = logging.getLogger(__name__)

FORMATS = ("auto", "native", "remote", "state-dict")


def export(
    model_dir: str | Path,
    budgets: Sequence[Any],
    output: str | Path,
    format: str = "auto",
    evaluation: str | Path | None = None,
    single: bool = False,
    verify: bool = True,
    delta_token_ratio: float | None = None,
    delta_token_threshold: float | str | None = None,
    delta_pack: str | Path | None = None,
) -> list[Path]:
    """Export slices of the elastic model in ``model_dir``.

    Args:
        model_dir: folder that training (or `export_elastic`) wrote.
        budgets: texts such as ``"0.5:6:6"``, names such as ``"smallest"``, or budget objects.
        output: folder that receives ``budgets.json`` and one folder per budget; with ``single``,
            the folder of the one slice itself. Slices exported there earlier are kept.
        format: ``"auto"`` (a stock class where one computes the slice, and no delta is left in it
            to route, else our code), ``"native"``, ``"remote"``, or ``"state-dict"`` (weights and
            configuration only).
        evaluation: JSON written by ``nestling evaluate``, for cards and ``budgets.json``.
        single: write one budget straight into ``output``.
        verify: load every folder in a process without this package before it is put in place.
        delta_token_ratio: share of the tokens that get the delta in slices that have one; None
            asks the configuration of the model. Delta-Matryoshka encoders only.
        delta_token_threshold: instead, the score above which a token gets the delta, or
            ``"learned"`` for the one that training noted.
        delta_pack: upgrade pack whose delta the slices get in place of the model's own; the folder
            of the model is not changed. Delta-Matryoshka encoders only.

    Returns:
        The slice folders, in the order of ``budgets``.

    Raises:
        ExportError: for a bad request or a full disk; ``output`` is then unchanged.
        BudgetError: for a budget the model cannot be cut to.
        DeltaPackError: for a pack that cannot be read or does not fit the model.
        ValueError: for a ratio outside [0, 1], or for a model that cannot choose tokens.
        VerifyError: if an exported folder does not reproduce the model; nothing is put in place.
    """
    model_dir, output = Path(model_dir), Path(output)
    clear_leftovers(output)
    _check_request(model_dir, output, budgets, format, single)
    identity = None if delta_pack is None else pack_identity(delta_pack)
    elastic = load_elastic(model_dir)
    if delta_pack is not None and identity is not None:
        elastic = _with_pack(elastic, delta_pack, identity)
    measured = read_evaluation(evaluation, elastic.family.model_type)
    routing = delta_token_ratio, delta_token_threshold
    chosen = _checked_budgets(elastic, budgets, format, routing, identity, measured)
    with staging_folder(output) as staged:
        descriptions = []
        for budget in chosen:
            folder = staged / budget.folder_name
            folder.mkdir()
            descriptions.append(write_slice_folder(folder, elastic, budget, format, measured))
        entries = [ladder_entry(each, measured) for each in descriptions]
        _log_reasons(descriptions)
        model_type = elastic.family.model_type
        root = staged / chosen[0].folder_name if single else staged
        write_json(root / LADDER, ladder(entries, model_type, measured, __version__))
        if verify and format != "state-dict":
            verify_folder(root)
        if single:
            move_into_place(root, output)
            return [output]
        output.mkdir(parents=True, exist_ok=True)
        entries += kept_entries(output, {each["folder"] for each in entries})
        for budget in chosen:
            move_into_place(staged / budget.folder_name, output / budget.folder_name)
        write_json(output / LADDER, ladder(entries, model_type, measured, __version__))
    return [output / budget.folder_name for budget in chosen]


def planned_slices(
    model_dir: str | Path,
    budgets: Sequence[Any],
    output: str | Path,
    format: str = "auto",
    evaluation: str | Path | None = None,
    single: bool = False,
    delta_token_ratio: float | None = None,
    delta_token_threshold: float | str | None = None,
    delta_pack: str | Path | None = None,
) -> list[dict[str, str]]:
    """Return budget, folder and format of what `export` would write; write nothing.

    Takes the arguments of `export` and raises its errors, but reads no weights: whether they are
    whole, and a pack fits them, shows only then.
    """
    model_dir, output = Path(model_dir), Path(output)
    _check_request(model_dir, output, budgets, format, single)
    identity = None if delta_pack is None else pack_identity(delta_pack)
    elastic = load_outline(model_dir)
    config, family = elastic.model.config, elastic.family
    measured = read_evaluation(evaluation, family.model_type)
    routing = delta_token_ratio, delta_token_threshold
    chosen = _checked_budgets(elastic, budgets, format, routing, identity, measured)
    return [
        {
            "budget": str(budget),
            "folder": str(output if single else output / budget.folder_name),
            "format": choose_format(config, budget, family)[0] if format == "auto" else format,
        }
        for budget in chosen
    ]


def export_elastic(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    evaluation: str | Path | None = None,
    **origin: Any,
) -> Path:
    """Write the whole nested model as a folder with remote code; this is what training leaves.

    Args:
        model: a model of one of our families.
        tokenizer: its tokenizer, or None.
        folder: replaced if it is an export, refused if it holds anything else.
        evaluation: JSON written by ``nestling evaluate``, for the card.
        **origin: ``base_model``, ``recipe``, ``command`` and ``trained_commit``, for the card.

    Raises:
        ExportError: for a model of no family or a full disk; ``folder`` is then unchanged.
    """
    folder = Path(folder)
    clear_leftovers(folder)
    require_replaceable(folder)
    elastic = describe_model(model, tokenizer, folder.resolve().name, origin)
    elastic = replace(elastic, model=copy.deepcopy(model).to("cpu", torch.float32).eval())
    elastic.model.set_budget(None)
    measured = read_evaluation(evaluation, elastic.family.model_type)
    with staging_folder(folder) as staged:
        write_elastic_folder(staged, elastic, measured)
        move_into_place(staged, folder)
    return folder


def _check_request(
    model_dir: Path, output: Path, budgets: Sequence[Any], format: str, single: bool
) -> None:
    if format not in FORMATS:
        raise ExportError(f"format {format!r} is unknown; choose one of {', '.join(FORMATS)}")
    if not budgets or (single and len(budgets) != 1):
        needed = "exactly one" if single else "at least one"
        raise ExportError(f"{len(budgets)} budgets given; give {needed}")
    if output.resolve() == model_dir.resolve():
        raise ExportError(f"output {output} is the model itself; choose another folder")
    require_replaceable(output)
    holds_weights = (output / WEIGHTS).is_file()
    if not single and holds_weights:
        raise ExportError(f"{output} holds a single model; choose a folder for several slices")
    if single and (output / LADDER).is_file() and not holds_weights:
        raise ExportError(f"{output} holds several slices; choose another folder for one slice")


def _checked_budgets(
    elastic: ElasticModel,
    budgets: Sequence[Any],
    format: str,
    routing: tuple[float | None, float | str | None],
    identity: dict[str, str] | None,
    measured: dict[str, Any] | None,
) -> list[Any]:
    """Return the budgets to cut, and set the share of routed tokens; refuse what does not fit."""
    chosen = select_budgets(budgets, elastic.model.config)
    _route_tokens(elastic, chosen, *routing)
    _check_formats(elastic, chosen, format)
    _check_token_choice(elastic, chosen, measured)
    _check_pack(elastic, chosen, identity, measured)
    return chosen


def _with_pack(
    elastic: ElasticModel, delta_pack: str | Path, identity: dict[str, str]
) -> ElasticModel:
    """Put the delta of a pack into the loaded model; folders and cards then name it."""
    model_type = elastic.family.model_type
    if model_type != "delta_encoder":
        raise ExportError(
            f"{delta_pack} is an upgrade pack of family delta_encoder, the model is of "
            f"{model_type}, which has no delta; leave it out"
        )
    load_pack_as_stored(elastic.model, delta_pack, elastic.dtype)
    named = f"{identity['file']} (SHA-256 {identity['sha256']})"
    return replace(elastic, origin={**elastic.origin, "delta_pack": named})


def _check_pack(
    elastic: ElasticModel,
    budgets: Sequence[Any],
    identity: dict[str, str] | None,
    measured: dict[str, Any] | None,
) -> None:
    """Refuse cards with numbers of another delta than the slices have."""
    config = elastic.model.config
    if measured is None or config.model_type != "delta_encoder":
        return
    ours, theirs = identity or {}, measured.get("delta_pack") or {}
    has_delta = any(b.base_shape(config) != b.shape(config) for b in budgets)
    if ours.get("sha256") != theirs.get("sha256") and has_delta:
        names = [
            f"{pack['file']} ({pack['sha256'][:8]})" if pack else "the model itself"
            for pack in (theirs, ours)
        ]
        raise ExportError(
            f"the evaluation measured the delta of {names[0]}, the slices have that of {names[1]}; "
            "evaluate and export with the same upgrade pack"
        )


def _route_tokens(
    elastic: ElasticModel,
    budgets: Sequence[Any],
    ratio: float | None,
    threshold: float | str | None,
) -> None:
    """Set which tokens get the delta, as asked for."""
    config = elastic.model.config
    asked = {"delta_token_ratio": ratio, "delta_token_threshold": threshold}
    given = [f"{name} {value}" for name, value in asked.items() if value is not None]
    if not given:
        return
    if len(given) > 1:
        raise ExportError(f"{' and '.join(given)} are both given; give one of them")
    if config.model_type != "delta_encoder":
        raise ExportError(
            f"{given[0]} is a setting of family delta_encoder, the model is of "
            f"{config.model_type}; leave it out"
        )
    if ratio is not None:
        choose_tokens_by_share(config, ratio)
    elif threshold is not None:
        choose_tokens_by_threshold(config, threshold)
    if not any(budget.has_routed_delta(config) for budget in budgets):
        raise ExportError(
            f"{given[0]} does nothing at {', '.join(map(str, budgets))}: there is "
            f"no delta left to route; leave it out, or add {config.budgets[-1]}"
        )


def _check_token_choice(
    elastic: ElasticModel, budgets: Sequence[Any], measured: dict[str, Any] | None
) -> None:
    """Refuse cards with numbers of other tokens than the slices run the delta on."""
    config = elastic.model.config
    if measured is None or config.model_type != "delta_encoder":
        return
    share, threshold = measured.get("delta_token_ratio"), measured.get("delta_token_threshold")
    theirs = threshold, 1.0 if share is None else float(share)
    ours = config.delta_token_threshold, delta_share(config)
    if ours != theirs and any(budget.has_routed_delta(config) for budget in budgets):
        raise ExportError(
            f"the evaluation ran the delta on {_tokens_of(*theirs)}, the slices run it on "
            f"{_tokens_of(*ours)}; evaluate and export with the same --delta-token-ratio or "
            "--delta-token-threshold"
        )


def _tokens_of(threshold: float | None, share: float) -> str:
    if threshold is not None:
        return f"the tokens that score above {threshold:g}"
    return f"a share of {share:g} of the tokens"


def _log_reasons(descriptions: Sequence[dict[str, Any]]) -> None:
    """Say once for each reason why slices of format=auto come with code."""
    by_reason: dict[str, list[str]] = {}
    for each in descriptions:
        if each["format_reason"] is not None:
            by_reason.setdefault(each["format_reason"], []).append(each["budget"])
    for reason, budgets in by_reason.items():
        logger.info("%s with remote code: %s", ", ".join(budgets), reason)


def _check_formats(elastic: ElasticModel, budgets: list[Any], format: str) -> None:
    if format != "native":
        return
    config, family = elastic.model.config, elastic.family
    unfit = [str(b) for b in budgets if not has_native_class(config, b, family)]
    if unfit:
        possible = [str(b) for b in config.budget_list() if has_native_class(config, b, family)]
        raise ExportError(
            f"budget {', '.join(unfit)} has no stock class; "
            f"use format=auto, or a native budget: {', '.join(possible) or 'none of this model'}"
        )
