"""Tokenizer files that transformers 4.57 and 5.x both load."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .complete_folder import read_json, write_json

FAST_CLASS = "PreTrainedTokenizerFast"
# Keys that name the machine, or that 5.x writes and 4.57 misreads.
_DROPPED = ("backend", "is_local", "local_files_only", "name_or_path", "auto_map")


def write_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> None:
    """Save a tokenizer so that it loads anywhere.

    Args:
        folder: an existing folder.
        tokenizer: a fast tokenizer.
        max_tokens: longest sequence of the model; a longer ``model_max_length`` is lowered to it.
    """
    tokenizer.save_pretrained(folder)
    make_tokenizer_portable(folder, max_tokens)


def make_tokenizer_portable(folder: Path, max_tokens: int) -> None:
    """Rewrite ``tokenizer_config.json`` for both generations of transformers.

    transformers 5 writes the class ``TokenizersBackend``, which 4.57 does not know, and
    ``extra_special_tokens`` as a list, where 4.57 wants a mapping. ``token_type_ids`` are never
    produced: ModernBERT-shaped models have none.
    """
    path = folder / "tokenizer_config.json"
    config = {key: value for key, value in read_json(path).items() if key not in _DROPPED}
    config["tokenizer_class"] = FAST_CLASS
    config["model_input_names"] = ["input_ids", "attention_mask"]
    config["model_max_length"] = min(int(config.get("model_max_length", max_tokens)), max_tokens)
    extra: Any = config.get("extra_special_tokens")
    if isinstance(extra, list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    write_json(path, config)
