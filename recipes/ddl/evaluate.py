"""Measure a saved decoder: quality and cost of every budget, gates and spectrum."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...configuration.budget import select_budgets
from ...modeling.modeling_ddl import DdlForCausalLM
from ...trainers.metrics.perplexity import bits_per_byte
from ...trainers.spectral_callback import measure_spectrum
from ..cli_errors import ModelFolderError
from ..data.causal_corpus import build_streams
from ..data.causal_rows import CausalRows, collate_rows, spread_rows
from ..data.token_stream import STREAM_FILE, TokenStreams
from ..ddl_schema import DdlDataSection, DdlRecipe
from ..evaluation.budget_scoring import predict_next
from ..evaluation.evaluation_files import write_evaluation
from ..evaluation.evaluation_table import Row
from ..evaluation.measure_budgets import measure_budgets
from ..evaluation.row_split import rows_loader, split_rows
from ..interleaved_timing import time_interleaved
from ..recipe_loader import load_saved_recipe, of_family
from ..recipe_overrides import split_arguments
from ..saved_model import model_folder
from .build import batches_of, require_fitting, rows_of
from .starting_point import load_model

LATENCY_ROUNDS = 10


class OpenedRun(NamedTuple):
    """A saved model with the data of its recipe.

    Attributes:
        recipe: the recipe of the run, with overrides.
        model: in eval mode.
        streams: the tokens.
        rows: of the validation split.
    """

    recipe: DdlRecipe
    model: DdlForCausalLM
    streams: TokenStreams
    rows: CausalRows


def open_run(model_dir: Path, overrides: Sequence[str] = ()) -> OpenedRun:
    """Load a model and the validation rows of its recipe.

    Args:
        model_dir: a model folder, or the output_dir that holds it as ``model/``.
        overrides: ``section.key=value`` changes to the saved recipe.

    Raises:
        ModelFolderError: if there is no model or no recipe, or the rows do not fit it.
        DataError: if the data cannot be used.
    """
    recipe = of_family(load_saved_recipe(model_dir, overrides), DdlRecipe)
    section = _data_section(recipe.data, model_folder(model_dir), overrides)
    recipe = replace(recipe, data=section)
    streams = build_streams(section)
    model = load_model(model_dir)
    require_fitting(streams, model.config, section.max_length)
    return OpenedRun(recipe, model, streams, rows_of(recipe, streams, "validation"))


def _data_section(
    section: DdlDataSection, folder: Path, overrides: Sequence[str]
) -> DdlDataSection:
    """Adapt the data keys of training to the evaluation of a finished model."""
    changed = {override.key for override in split_arguments(overrides)}
    changes: dict[str, Any] = {}
    if "data.pretokenized_path" not in changed and section.pretokenized_path is not None:
        places = [Path(section.pretokenized_path), folder.resolve().parent / "data"]
        kept = [str(place) for place in places if (place / STREAM_FILE).is_file()]
        asks_for_others = any(key.startswith("data.") for key in changed)
        changes["pretokenized_path"] = None if asks_for_others or not kept else kept[0]
    # A tokenizer trained anew on other text would number its tokens differently.
    trained = section.tokenizer == "train" and changes.get("pretokenized_path") is None
    if trained and "data.tokenizer" not in changed and (folder / "tokenizer.json").is_file():
        changes["tokenizer"] = str(folder)
    return replace(section, **changes)


def evaluate_folder(
    model_dir: Path,
    output: Path,
    overrides: Sequence[str] = (),
    budgets: Sequence[str] | None = None,
) -> list[Row]:
    """Evaluate a saved model on the data of its recipe; write JSON, tables and plots.

    Args:
        model_dir: the model folder of a run, or the output_dir above it.
        output: the JSON file; Markdown, CSV and plots come beside it.
        overrides: changes to the saved recipe, such as ``data.path=…``.
        budgets: texts or names; None takes those of the recipe.

    Returns:
        The rows of the table on the console.

    Raises:
        ModelFolderError: if the folder holds no model or no recipe.
        DataError: if the data cannot be used.
    """
    return write_evaluation(evaluate_run(open_run(model_dir, overrides), budgets), output)


def evaluate_run(run: OpenedRun, budgets: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate an opened run by the settings of its recipe.

    Args:
        run: the model and its rows.
        budgets: texts or names; None takes those of the recipe.

    Returns:
        What `measure_budgets` returns, with the origin of the rows in ``data``, bits per byte
        where the text is known, and the spectrum of the full model.
    """
    settings, model, rows = run.recipe.evaluation, run.model, run.rows
    length = settings.sequence_length or run.recipe.data.max_length
    if length > model.config.max_position_embeddings:
        raise ModelFolderError(
            f"evaluation.sequence_length is {length}, the model takes at most "
            f"{model.config.max_position_embeddings} tokens; lower it"
        )
    held_out, measured = split_rows(len(rows), settings.calibration_fraction)

    def load(numbers: list[int]) -> Any:
        wanted = None if settings.batches is None else settings.batches * settings.batch_size
        chosen = [numbers[index] for index in spread_rows(len(numbers), wanted)]
        return rows_loader(rows, collate_rows, settings.batch_size, numbers=chosen)

    evaluation = measure_budgets(
        model,
        load(measured),
        select_budgets(list(budgets or settings.budgets), model.config),
        predict=predict_next,
        sequence_length=length,
        time_budgets=partial(time_slices, model, length) if settings.latency else None,
        bootstrap_samples=settings.bootstrap_samples,
        alias_confidence=settings.alias_confidence,
        seed=run.recipe.seed,
        calibration_loader=load(held_out) if held_out else None,
    )
    counts = run.streams.description["counts"]["validation"]
    evaluation["data"].update(
        {
            "split": "validation",
            "source": run.streams.description["source"],
            "sha256": run.streams.description["sha256"]["validation"],
            "counts": counts,
        }
    )
    if "bytes" in counts:
        for entry in evaluation["budgets"]:
            loss = entry["cross_entropy"]
            entry["bits_per_byte"] = bits_per_byte(loss, counts["tokens"], counts["bytes"])
    if settings.spectral_batches:
        batches = batches_of(run.recipe, rows, spectral=True)
        evaluation["spectrum"] = measure_spectrum(model, batches())
    return evaluation


def time_slices(
    model: DdlForCausalLM, sequence_length: int, budgets: Sequence[Any], predicted: int
) -> dict[Any, dict[str, float]]:
    """Return milliseconds of a forward pass over one sequence, of the sliced models in turns.

    Args:
        model: the model; it is left as it is.
        sequence_length: tokens of the sequence, batch 1.
        budgets: budgets that fit it.
        predicted: positions the head predicts at.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, sequence_length), generator=generator)

    def forward(sliced: DdlForCausalLM) -> Callable[[], object]:
        return lambda: sliced(tokens, use_cache=False, logits_to_keep=predicted)

    with torch.inference_mode():
        slices = {str(budget): model.slice(budget).train(False).cpu() for budget in budgets}
        actions = {name: forward(sliced) for name, sliced in slices.items()}
        timings = time_interleaved(actions, LATENCY_ROUNDS, warmup=2)
    return {budget: timings[str(budget)].summary()["wall_ms"] for budget in budgets}
