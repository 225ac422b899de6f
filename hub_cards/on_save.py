"""Makes checkpoints loadable by themselves: code, complete ``auto_map``, portable tokenizer."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..modeling.families import FAMILIES
from .complete_folder import ExportError, read_json, write_json
from .remote_code import write_remote_code
from .tokenizer_files import make_tokenizer_portable

logger = logging.getLogger(__name__)


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


class LoadableCheckpoint(TrainerCallback):
    """Completes every checkpoint right after it was saved.

    Args:
        seal: called with the folder afterwards, for trainers that keep checksums of their
            checkpoints. The rooms do not know each other, so the recipe hands it over.
    """

    def __init__(self, seal: Callable[[Path], None] | None = None) -> None:
        self.seal = seal

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Complete ``checkpoint-<step>``, on the process that writes."""
        if not args.should_save:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        make_checkpoint_loadable(folder)
        if self.seal is not None:
            self.seal(folder)
        logger.debug("%s loads by itself", folder)
