"""Inputs and outputs a folder carries so that it can prove itself on any machine."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .complete_folder import write_tensors

REFERENCE = "reference.safetensors"
SEED = 0
MAX_TOKENS = 96


def reference_inputs(config: Any) -> tuple[Tensor, Tensor]:
    """Return token ids and mask (2, tokens); the second row ends in padding.

    The rows are longer than the window of local attention (up to 96 tokens), so that a folder
    which lost its window is found out. The ids come from a fixed seed.
    """
    tokens = max(8, min(config.max_position_embeddings, MAX_TOKENS))
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, config.vocab_size, (2, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, tokens - tokens // 3 :] = 0
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    return ids.masked_fill(mask == 0, pad), mask


def logit_positions(mask: Tensor) -> Tensor:
    """Return (4, 2) row and column of the first and last real token of each row.

    Logits are kept there only: a whole (2, tokens, vocabulary) tensor would outweigh many slices.
    """
    last = mask.sum(dim=1) - 1
    return torch.tensor([[row, column] for row in (0, 1) for column in (0, int(last[row]))])


@torch.no_grad()
def reference_outputs(model: Any, budget: Any) -> dict[str, Tensor]:
    """Run the *elastic* model at ``budget``: what the exported slice must reproduce.

    Args:
        model: the nested model in float32, on the CPU, in evaluation mode.
        budget: the budget of the slice, None for the whole model.

    Returns:
        ``input_ids``, ``attention_mask``, ``last_hidden_state`` and, for models with a head,
        ``logits``: of a masked LM at ``logit_positions``, of other heads as they are.
    """
    ids, mask = reference_inputs(model.config)
    model.set_budget(budget)
    try:
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        outputs = {"input_ids": ids, "attention_mask": mask, "last_hidden_state": hidden}
        if model.base_model is not model:
            logits = model(input_ids=ids, attention_mask=mask).logits
            if logits.dim() == 3 and logits.shape[-1] == model.config.vocab_size:
                where = logit_positions(mask)
                outputs["logit_positions"] = where
                logits = logits[where[:, 0], where[:, 1]]
            outputs["logits"] = logits
    finally:
        model.set_budget(None)
    return {name: tensor.detach().clone().contiguous() for name, tensor in outputs.items()}


def write_reference(folder: Path, outputs: dict[str, Tensor]) -> None:
    """Write ``reference.safetensors``."""
    write_tensors(folder / REFERENCE, outputs)
