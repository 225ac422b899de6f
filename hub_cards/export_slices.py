"""Cuts an elastic model into folders that need nothing of ours to be used.

A folder holds weights, tokenizer, sentence-transformers files, a card and, where no stock class
computes the slice, the code. Everything is written and verified in a hidden folder beside the
output and renamed at the end: an export is there in full, or not at all.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .. import __version__
from ..configuration.budget import select_budgets
from ..configuration.delta_settings import choose_tokens_by_share, delta_share
from .complete_folder import (
    LADDER,
    ExportError,
    move_into_place,
    require_replaceable,
    staging_folder,
    write_json,
)
from .elastic_folder import ElasticModel, describe_model, load_elastic
from .ladder_file import kept_entries, ladder, ladder_entry, read_evaluation
from .model_files import WEIGHTS, has_native_class
from .slice_folder import write_elastic_folder, write_slice_folder
from .verify_export import verify_folder

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
) -> list[Path]:
    """Export slices of the elastic model in ``model_dir``.

    Args:
        model_dir: folder that training (or `export_elastic`) wrote.
        budgets: texts such as ``"0.5:6:6"``, names such as ``"smallest"``, or budget objects.
        output: folder that receives ``budgets.json`` and one folder per budget; with ``single``,
            the folder of the one slice itself. Slices exported there earlier are kept.
        format: ``"auto"`` (a stock class where one computes the slice, else our code),
            ``"native"``, ``"remote"``, or ``"state-dict"`` (weights and configuration only).
        evaluation: JSON written by ``nestling evaluate``, for cards and ``budgets.json``.
        single: write one budget straight into ``output``.
        verify: load every folder in a process without this package before it is put in place.
        delta_token_ratio: share of the tokens that get the delta in slices that have one; None
            asks the configuration of the model. Delta-Matryoshka encoders only.

    Returns:
        The slice folders, in the order of ``budgets``.

    Raises:
        ExportError: for a bad request or a full disk; ``output`` is then unchanged.
        BudgetError: for a budget the model cannot be cut to.
        ValueError: for a ratio outside [0, 1], or for a model that cannot choose tokens.
        VerifyError: if an exported folder does not reproduce the model; nothing is put in place.
    """
    model_dir, output = Path(model_dir), Path(output)
    _check_request(model_dir, output, budgets, format, single)
    elastic = load_elastic(model_dir)
    chosen = select_budgets(budgets, elastic.model.config)
    if delta_token_ratio is not None:
        _route_tokens(elastic, chosen, delta_token_ratio)
    _check_formats(elastic, chosen, format)
    measured = read_evaluation(evaluation, elastic.family.model_type)
    _check_token_ratio(elastic, chosen, measured)
    with staging_folder(output) as staged:
        descriptions = []
        for budget in chosen:
            folder = staged / budget.folder_name
            folder.mkdir()
            descriptions.append(write_slice_folder(folder, elastic, budget, format, measured))
        entries = [ladder_entry(each, measured) for each in descriptions]
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


def _route_tokens(elastic: ElasticModel, budgets: Sequence[Any], ratio: float) -> None:
    config = elastic.model.config
    if config.model_type != "delta_encoder":
        raise ExportError(
            f"delta_token_ratio {ratio} is a setting of family delta_encoder, the model is of "
            f"{config.model_type}; leave it out"
        )
    choose_tokens_by_share(config, ratio)
    if not any(budget.has_routed_delta(config) for budget in budgets):
        raise ExportError(
            f"delta_token_ratio {ratio} does nothing at {', '.join(map(str, budgets))}: there is "
            f"no delta left to route; leave it out, or add {config.budgets[-1]}"
        )


def _check_token_ratio(
    elastic: ElasticModel, budgets: Sequence[Any], measured: dict[str, Any] | None
) -> None:
    """Refuse cards with numbers of another share of tokens than the slices run on."""
    config = elastic.model.config
    if measured is None or config.model_type != "delta_encoder":
        return
    stated = measured.get("delta_token_ratio")
    ours, theirs = delta_share(config), 1.0 if stated is None else float(stated)
    if ours != theirs and any(budget.has_routed_delta(config) for budget in budgets):
        raise ExportError(
            f"the evaluation ran the delta on a share of {theirs:g} of the tokens, the slices run "
            f"it on {ours:g}; evaluate and export with the same --delta-token-ratio"
        )


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
