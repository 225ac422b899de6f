"""From a model folder and its saved recipe to the model and the batches to evaluate it on."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...configuration.configuration_delta_encoder import DeltaEncoderConfig
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...trainers.masked_lm_collator import MaskedLMCollator
from ...trainers.stream_sampler import PositionedRows
from ..cli_errors import DataError, ModelFolderError
from ..data.corpus import build_data
from ..data.manifest import MANIFEST_FILE
from ..evaluation.row_split import SPLIT_SEED, rows_loader, split_rows
from ..recipe_loader import load_saved_recipe, of_family
from ..recipe_overrides import split_arguments
from ..recipe_schema import DataSection, DeltaEncoderRecipe

# One seed for all evaluations: every budget, checkpoint and run predicts the same tokens.
MASK_SEED = 0


class EvaluationInputs(NamedTuple):
    """What an evaluation of a folder needs.

    Attributes:
        recipe: the recipe of the run, with overrides.
        model: the model, in eval mode.
        loader: batches with fixed masks.
        calibration_loader: batches of other rows, held out for aliases and temperatures; None
            where no rows are held out.
        data: where the rows come from, for the result file.
    """

    recipe: DeltaEncoderRecipe
    model: DeltaEncoderForMaskedLM
    loader: Iterable[dict[str, Tensor]]
    calibration_loader: Iterable[dict[str, Tensor]] | None
    data: dict[str, Any]


def open_run(model_dir: Path, overrides: Sequence[str] = ()) -> EvaluationInputs:
    """Load the model and rebuild the validation rows of its recipe.

    Args:
        model_dir: a model folder, or the output_dir that holds it as ``model/``.
        overrides: ``section.key=value`` changes to the saved recipe.

    Raises:
        ModelFolderError: if there is no model or no recipe, or tokenizer and model do not fit.
        DataError: if the data cannot be used.
    """
    folder = _model_folder(model_dir)
    recipe = of_family(load_saved_recipe(model_dir, overrides), DeltaEncoderRecipe)
    section = _data_section(recipe.data, folder, overrides)
    prepared = build_data(section, recipe.seed)
    model = _load_model(folder)
    if len(prepared.tokenizer) > model.config.vocab_size:
        raise ModelFolderError(
            f"the tokenizer of the data has {len(prepared.tokenizer)} tokens, the model "
            f"{model.config.vocab_size}; use the tokenizer the model was trained with: "
            f"data.tokenizer={folder}"
        )
    collator = MaskedLMCollator.from_tokenizer(
        prepared.tokenizer, mlm_probability=section.mlm_probability, seed=MASK_SEED
    )
    settings, rows = recipe.evaluation, prepared.validation_rows
    held_out, measured = split_rows(len(rows), settings.calibration_fraction)
    load = partial(evaluation_loader, rows, collator, settings.batch_size, settings.batches)
    loader, calibration_loader = load(measured), load(held_out) if held_out else None
    description = {
        "source": section.source,
        "name": section.name,
        "path": None if section.path is None else Path(section.path).name,
        "split": "validation",
        "mlm_probability": section.mlm_probability,
        "mask_seed": MASK_SEED,
        "calibration_fraction": settings.calibration_fraction if held_out else 0.0,
        "split_seed": SPLIT_SEED if held_out else None,
        "manifest": prepared.manifest,
    }
    return EvaluationInputs(recipe, model, loader, calibration_loader, description)


def evaluation_loader(
    rows: Any,
    collator: MaskedLMCollator,
    batch_size: int,
    batches: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterable[dict[str, Tensor]]:
    """Return the first ``batches`` batches of the rows ``numbers``, or of all in stored order.

    Row r always has position r, so its mask depends neither on the batch size nor on the split.

    Raises:
        DataError: if there are no rows.
    """
    if len(rows) == 0:
        raise DataError(
            "the validation split has 0 rows; raise data.validation_fraction or give more data"
        )
    return rows_loader(PositionedRows(rows), collator, batch_size, batches, numbers)


def _data_section(section: DataSection, folder: Path, overrides: Sequence[str]) -> DataSection:
    """Adapt the data keys of training to the evaluation of a finished model."""
    changed = {override.key for override in split_arguments(overrides)}
    changes: dict[str, Any] = {}
    if "data.pretokenized_path" not in changed and section.pretokenized_path is not None:
        # Rows prepared for training are not what other data keys ask for. A run folder that was
        # moved still has its rows beside the model.
        places = [Path(section.pretokenized_path), folder.resolve().parent / "data"]
        kept = [str(place) for place in places if (place / MANIFEST_FILE).is_file()]
        asks_for_others = any(key.startswith("data.") for key in changed)
        changes["pretokenized_path"] = None if asks_for_others or not kept else kept[0]
    # A tokenizer trained anew on other text would number its tokens differently.
    if "data.tokenizer" not in changed and (folder / "tokenizer.json").is_file():
        changes["tokenizer"] = str(folder)
    return replace(section, **changes)


def stored_dtype(model_dir: Path) -> torch.dtype:
    """Return the dtype the weights of a folder are stored in; `open_run` loads them in float32."""
    dtype = DeltaEncoderConfig.from_pretrained(_model_folder(model_dir)).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _model_folder(model_dir: Path) -> Path:
    return model_dir if (model_dir / "config.json").is_file() else model_dir / "model"


def _load_model(folder: Path) -> DeltaEncoderForMaskedLM:
    device = "cuda" if torch.cuda.is_available() else None
    model = DeltaEncoderForMaskedLM.from_pretrained(
        folder, dtype=torch.float32, device_map=device
    )
    return model.train(False)
