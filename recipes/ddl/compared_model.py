"""One checkpoint to compare: found, described, and loaded at one budget when it is its turn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ...configuration.budget import select_budgets
from ...configuration.ddl_budget import DdlBudget
from ...modeling.families import register_families
from ..cli_errors import ModelFolderError
from ..compared_runs import RunOrigin, origin_of, residual_label
from ..data.tokenizer_training import open_tokenizer, tokenizer_hash
from ..evaluation.budget_scoring import without_labels
from ..saved_model import family_of_folder
from .starting_point import FAMILY, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONFIG, MARKER, TOKENIZER = "config.json", "nestling.json", "tokenizer.json"
BEST_FOLDERS = ("best", "best_validation")


@dataclass(frozen=True)
class ComparedModel:
    """A checkpoint whose weights are not loaded yet.

    Attributes:
        name: The path as it was given.
        folder: Folder of the weights.
        origin: The run that made it.
        config: Its configuration.
        budget: What of it runs.
        is_stock: A slice of a baseline that was exported as a stock architecture.
        tokenizer: None where it was trained on numbers.
        tokenizer_id: Equal for equal tokenizers.
    """

    name: str
    folder: Path
    origin: RunOrigin
    config: Any
    budget: DdlBudget
    is_stock: bool
    tokenizer: "PreTrainedTokenizerFast | None"
    tokenizer_id: str | None

    @property
    def label(self) -> str:
        """Return the residual, and the budget of a part.

        A stock class does not say what it was; its run does, or else it goes by its name.
        """
        if self.is_stock:
            return self.origin.label or self.name
        config = self.config
        label = residual_label(config.variant, config.residual_update, config.value_residual)
        is_part = self.config.sliced_from or self.budget != DdlBudget.full(self.config)
        return f"{label} {self.budget}" if is_part else label

    @property
    def part(self) -> str:
        """Return what of its run this is: the checkpoint and the budget."""
        return f"{self.folder.name} {self.budget}"

    def load(self) -> Any:
        """Return the model in eval mode, set to the budget.

        Raises:
            ModelFolderError: If the weights cannot be loaded.
        """
        if not self.is_stock:
            model = load_model(self.folder)
            model.set_budget(self.budget)
            return model
        from transformers import AutoModelForCausalLM

        try:
            stock = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        except (SafetensorError, OSError, RuntimeError) as error:
            cause = str(error).splitlines()[0]
            raise ModelFolderError(f"cannot load the weights in {self.folder}: {cause}") from error
        return stock.eval()


def open_model(path: Path, best_validation: bool, budget: str) -> ComparedModel:
    """Look into the folder of a run, of a model, or of an exported slice.

    Args:
        path: The folder.
        best_validation: Take the checkpoint of the best evaluation of a run.
        budget: Text or name of the budget to run.

    Raises:
        ModelFolderError: If there is no such checkpoint, or it is of another family.
        BudgetError: If the model cannot be cut so.
    """
    from transformers import AutoConfig

    folder = checkpoint_folder(path, best_validation)
    is_stock = _is_stock_slice(folder)
    family = FAMILY if is_stock else family_of_folder(folder)
    if family != FAMILY:
        raise ModelFolderError(
            f"--artifact {path} is of family {family}; compare takes models of family {FAMILY}"
        )
    register_families()  # the Auto classes read config.json, for a tokenizer too
    config = AutoConfig.from_pretrained(folder)
    if is_stock:
        # A baseline has one value channel, and a stock class runs as a whole.
        chosen = DdlBudget(1, config.num_hidden_layers)
    else:
        (chosen,) = select_budgets([budget], config)
    tokenizer = open_tokenizer(folder) if (folder / TOKENIZER).is_file() else None
    identity = None if tokenizer is None else tokenizer_hash(tokenizer)
    origin = origin_of(path)
    return ComparedModel(
        str(path), folder, origin, config, chosen, is_stock, tokenizer, identity
    )


def checkpoint_folder(path: Path, best_validation: bool) -> Path:
    """Return the folder of the weights inside an artifact.

    Raises:
        ModelFolderError: If there is none.
    """
    if not path.is_dir():
        raise ModelFolderError(
            f"--artifact {path} is no folder; give one of a run, a model or an exported slice"
        )
    names = BEST_FOLDERS if best_validation else (".", "model")
    for name in names:
        if (path / name / CONFIG).is_file():
            return path / name
    if best_validation:
        raise ModelFolderError(
            f"--artifact {path} has no best/ with a model; give the folder of a run that was "
            "trained with training.eval_steps, or leave --best-validation out"
        )
    raise ModelFolderError(
        f"--artifact {path} has neither config.json nor model/config.json; give the folder of a "
        "finished run, a model or an exported slice"
    )


def _is_stock_slice(folder: Path) -> bool:
    """Whether this is a slice of our family that was exported as a stock architecture."""
    marker = folder / MARKER
    if not marker.is_file():
        return False
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{marker} is damaged ({error}); export it again") from error
    return bool(content.get("family") == FAMILY and content.get("format") == "native")


def predict_at_budget(
    model: Any, inputs: dict[str, Tensor], budgets: Sequence[Any]
) -> tuple[Sequence[Tensor], Tensor]:
    """Run a decoder at the budget it is set to; its labels already are the next tokens."""
    rest, is_predicted, labels = without_labels(inputs)
    return [model(**rest, use_cache=False).logits[is_predicted]], labels
