"""Opens what a run starts from: a model of this family, or an official checkpoint."""

from pathlib import Path

import torch
from safetensors import SafetensorError

from ...modeling.modeling_ddl import DdlForCausalLM
from ..cli_errors import ModelFolderError
from ..saved_model import family_of_folder, model_folder
from .official_checkpoint import is_official, load_official

FAMILY = "ddl"


def load_model(folder: Path) -> DdlForCausalLM:
    """Load a decoder of this family in eval mode and float32.

    Raises:
        ModelFolderError: if the folder holds no such model.
    """
    family = family_of_folder(folder)
    if family != FAMILY:
        raise ModelFolderError(
            f"{folder} holds a model of family {family}; give one of family {FAMILY}"
        )
    try:
        model = DdlForCausalLM.from_pretrained(model_folder(folder), dtype=torch.float32)
    except (SafetensorError, OSError, RuntimeError) as error:
        cause = str(error).splitlines()[0]
        raise ModelFolderError(f"cannot load the weights in {folder}: {cause}") from error
    return model.train(False)


def load_start(name: str) -> DdlForCausalLM:
    """Load what ``model.init_from`` names: a folder of this family, or an official checkpoint.

    Raises:
        ModelFolderError: if it is neither.
    """
    folder = Path(name)
    if not folder.exists():
        raise ModelFolderError(
            f"model.init_from={name} does not exist; give a folder with a checkpoint"
        )
    # A single file, or a folder of the published code; any other folder has to be ours.
    is_published = folder.is_file() or is_official(folder)
    return (load_official if is_published else load_model)(folder).train()
