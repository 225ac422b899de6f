"""Training arguments: the defaults of transformers that Nestling changes, and two additions."""

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from .process_group import start_process_group


@dataclass
class NestlingTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with other defaults. Runs on transformers 4.57 and 5.x.

    Args:
        lr_multipliers: Regular expression on the parameter name -> learning-rate multiplier; the
            first match counts (see `parameter_groups`).
        min_lr_ratio: Learning rate at the last step as a share of the peak, in [0, 1]. Used with
            `lr_scheduler_type="cosine"`.
        lr_warmup_ratio: Share of the run that warms up, in [0, 1). Used where `warmup_steps` is 0;
            the two transformers versions spell this option differently, so it has its own name.

    Raises:
        ValueError: If a ratio is out of range.
    """

    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: Any = field(default="cosine", metadata={"help": "Shape of the decay."})
    weight_decay: float = field(default=0.01, metadata={"help": "Decay of matrices only."})
    # As ModernBERT was trained (arXiv 2412.13663).
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW beta2."})
    # The fused AdamW fails on XLA devices.
    optim: Any = field(default="adamw_torch", metadata={"help": "Optimizer."})
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps per log line."})
    # The filter would replace a NaN by an average and hide it; HookedTrainer stops instead.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses."})
    report_to: Any = field(default="none", metadata={"help": "Experiment trackers."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    # Pinned memory only helps with a GPU and warns without one.
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin host memory."})
    # Our collators read columns that no model takes (document_ids).
    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns."})
    # Every step trains the largest budget, so no parameter is ever unused.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "DDP."})
    # The others wait while the first process measures and exports every budget.
    ddp_timeout: int = field(default=86400, metadata={"help": "Seconds to wait for others."})

    lr_multipliers: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Regex on parameter names -> lr multiplier."}
    )
    min_lr_ratio: float = field(default=0.1, metadata={"help": "Last lr / peak lr."})
    lr_warmup_ratio: float = field(default=0.05, metadata={"help": "Share of the run to warm up."})

    def __post_init__(self) -> None:
        """Check our fields, then run the checks of transformers."""
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            raise ValueError(f"min_lr_ratio is {self.min_lr_ratio}, it must lie in [0, 1]")
        if not 0.0 <= self.lr_warmup_ratio < 1.0:
            raise ValueError(f"lr_warmup_ratio is {self.lr_warmup_ratio}, it must lie in [0, 1)")
        if self.use_cpu:
            # On processors transformers would leave the time limit out.
            start_process_group(self.ddp_backend or "gloo", self.ddp_timeout)
        super().__post_init__()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return the warm-up in optimizer steps."""
        if self.warmup_steps >= 1:
            return int(self.warmup_steps)
        # transformers 5 reads a fraction in warmup_steps as a ratio.
        ratio = self.warmup_steps or self.lr_warmup_ratio
        return math.ceil(ratio * num_training_steps)
