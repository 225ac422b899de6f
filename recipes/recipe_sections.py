"""Sections of a recipe that every family has. Imports neither torch nor Hydra."""

from dataclasses import dataclass, field

# What may change without changing what is learned: whole sections, and keys of the others.
FREE_SECTIONS = ("evaluation", "export")
FREE_KEYS: dict[str, tuple[str, ...]] = {
    "data": ("num_proc", "pretokenized_path"),
    "training": (
        "logging_steps",
        "save_steps",
        "save_total_limit",
        "eval_steps",
        "report_to",
        "dataloader_num_workers",
    ),
}

DATA_SOURCES = ("embedded", "files", "hub", "ecommerce")
EXPORT_FORMATS = ("auto", "native", "remote", "state-dict")
BUDGET_SAMPLINGS = ("sandwich", "fixed", "random")
ATTENTION_IMPLEMENTATIONS = ("auto", "sdpa", "eager", "flash_attention_2", "flex_attention")


@dataclass
class TextSection:
    """Where the text comes from.

    Attributes:
        source: embedded, files, hub or ecommerce; None means files where a path is given, hub where
            a name is given, else the embedded corpus.
        path: local file or folder.
        name: data set on the Hub, such as thebajajra/Ecom-niverse.
        split: split of a Hub data set or of a saved DatasetDict.
        noncommercial: with source ecommerce, also read sets whose licence forbids commercial use.
        text_column: column that holds the text.
        text_columns: several columns, joined into one text.
        group_column: rows with the same value stay on one side of the split.
        vocab_size: size of a tokenizer that is trained.
        max_length: tokens per row.
        num_proc: processes that tokenize.
        pretokenized_path: folder written by ``nestling prepare``; None uses output_dir/data.
        validation_fraction: share of the document groups held out, in (0, 1).
        max_bytes: limit of the embedded corpus; None reads all.
    """

    source: str | None = None
    path: str | None = None
    name: str | None = None
    split: str = "train"
    noncommercial: bool = False
    text_column: str | None = None
    text_columns: list[str] = field(default_factory=list)
    group_column: str | None = None
    vocab_size: int = 2048
    max_length: int = 128
    num_proc: int = 1
    pretokenized_path: str | None = None
    validation_fraction: float = 0.05
    max_bytes: int | None = None


@dataclass
class OptimizerSection:
    """How long and how fast a model learns, and which budgets each step runs.

    Attributes:
        max_steps: optimizer steps; give this or ``epochs``.
        epochs: passes over the data; give this or ``max_steps``.
        batch_size: rows per forward pass and device.
        gradient_accumulation_steps: forward passes per optimizer step.
        lr: peak learning rate.
        weight_decay: AdamW weight decay of matrices.
        warmup_ratio: share of the run that warms up, in [0, 1).
        min_lr_ratio: last learning rate over the peak, in [0, 1].
        max_grad_norm: gradient clipping; 0 switches it off.
        bf16: compute in bfloat16; None does so where the hardware has it.
        gradient_checkpointing: recompute activations to save memory.
        torch_compile: compile the model (needs a C++ compiler).
        logging_steps: optimizer steps between log lines.
        save_steps: optimizer steps between checkpoints.
        eval_steps: optimizer steps between evaluations (mean cross-entropy of the smallest, middle
            and largest budget); the best model becomes output_dir/best. None evaluates at the end
            only and leaves no best/.
        save_total_limit: checkpoints to keep; the best one is among them.
        budgets: budgets that are trained, as quoted text, or smallest, middle, largest, all; the
            largest one must be among them.
        budgets_per_step: budgets in one optimizer step.
        budget_sampling: sandwich (largest, smallest, some in between), fixed (all of them) or
            random (any of them, without the largest at every step).
        lr_multipliers: regular expression on parameter names -> learning-rate factor.
        report_to: tracker, such as trackio, wandb or tensorboard; none switches it off.
        use_cpu: train on the CPU even where there is an accelerator.
        dataloader_num_workers: processes that build batches.
    """

    max_steps: int | None = None
    epochs: float | None = None
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    lr: float = 5e-4
    weight_decay: float = 0.01
    warmup_ratio: float = 0.05
    min_lr_ratio: float = 0.1
    max_grad_norm: float = 1.0
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    logging_steps: int = 10
    save_steps: int = 500
    eval_steps: int | None = None
    save_total_limit: int = 2
    budgets: list[str] = field(default_factory=lambda: ["all"])
    budgets_per_step: int = 4
    budget_sampling: str = "sandwich"
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    report_to: str = "none"
    use_cpu: bool = False
    dataloader_num_workers: int = 0


@dataclass
class EvaluationSection:
    """What is measured after training.

    Attributes:
        budgets: budgets as quoted text, or smallest, middle, largest, all.
        batches: validation batches to evaluate on, and at most as many for calibration; None uses
            all.
        batch_size: packed rows per batch.
        sequence_length: tokens per row for latency and FLOPs; None means data.max_length.
        latency: measure the time of each budget.
        bootstrap_samples: resamples of the paired bootstrap and the confidence intervals.
        calibration_fraction: share of the validation rows, in [0, 1), held out to choose safe
            aliases and to fit one temperature per budget; 0 chooses aliases on the evaluation rows
            and fits no temperature.
        alias_confidence: how surely, in [0.5, 1), a budget must beat all it contains on those rows
            to be its own safe alias; 0.5 lets the means decide.
    """

    budgets: list[str] = field(default_factory=lambda: ["all"])
    batches: int | None = None
    batch_size: int = 16
    sequence_length: int | None = None
    latency: bool = True
    bootstrap_samples: int = 1000
    calibration_fraction: float = 0.5
    alias_confidence: float = 0.99


@dataclass
class ExportSection:
    """What is written for others to load.

    Attributes:
        budgets: budgets as quoted text, or smallest, middle, largest, all; empty exports nothing.
        format: auto (stock architecture where the slice is one and has no tokens to route),
            native, remote or state-dict.
        verify: load each folder in a clean process and compare its outputs.
    """

    budgets: list[str] = field(default_factory=lambda: ["smallest", "middle", "largest"])
    format: str = "auto"
    verify: bool = True
