"""How Nestling models learn: loss terms, schedules, samplers and the shared trainer.

Names are loaded on first use: events, schedules and budget sampling stay free of torch.
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "CheckpointError": "checkpoint_files",
    "CheckpointWriteError": "checkpoint_files",
    "DeltaClassifierTrainer": "delta_classifier_trainer",
    "DeltaEncoderTrainer": "delta_encoder_trainer",
    "DistillationLoss": "losses.distillation",
    "EventLog": "event_log",
    "HookedTrainer": "hooked_trainer",
    "LabelCrossEntropyLoss": "losses.label_cross_entropy",
    "LossSum": "loss_term",
    "LossTerm": "loss_term",
    "MaskedLmLoss": "losses.masked_lm",
    "NestlingTrainingArguments": "training_arguments",
    "NonFiniteLossError": "hooked_trainer",
    "SandwichSampler": "budget_sampling",
    "WeightedTerm": "loss_term",
    "last_complete_checkpoint": "checkpoint_files",
    "read_events": "event_log",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import the module that holds `name`."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
