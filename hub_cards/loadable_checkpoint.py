"""Makes checkpoints loadable by themselves: code, complete ``auto_map``, portable tokenizer."""

from pathlib import Path

from ..modeling.families import FAMILIES
from .complete_folder import ExportError, read_json, write_json
from .remote_code import write_remote_code
from .tokenizer_files import make_tokenizer_portable


def make_checkpoint_loadable(folder: Path) -> None:
    """Add to a saved checkpoint what ``trust_remote_code=True`` needs.

    The code is written before the configuration names it, so an interruption leaves a folder that
    loads inside the package at least.

    Args:
        folder: a folder that ``save_pretrained`` wrote.

    Raises:
        ExportError: if it holds no model of ours.
    """
    config = read_json(folder / "config.json")
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise ExportError(f"{folder} holds a {config.get('model_type')!r} model, which is not ours")
    config["auto_map"] = write_remote_code(folder, family)
    if (folder / "tokenizer_config.json").is_file():
        make_tokenizer_portable(folder, config["max_position_embeddings"])
    write_json(folder / "config.json", config)
