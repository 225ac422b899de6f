"""The keys of a recipe, with their types and defaults. Imports neither torch nor Hydra.

A recipe is one nested dataclass. Hydra merges a YAML file and the ``section.key=value`` overrides
into it, so a wrong type or an unknown key fails before anything runs. `recipe_validation` checks
the values against each other.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelSection:
    """Shape of a Delta-Matryoshka encoder and the budgets it is trained for.

    Attributes:
        vocab_size: rows of the embedding; None takes the tokenizer's size.
        hidden_size: hidden channels.
        num_hidden_layers: layers.
        num_attention_heads: heads per layer.
        head_dim: channels per head; None means hidden_size // num_attention_heads.
        intermediate_size: MLP channels.
        max_position_embeddings: longest sequence, in tokens.
        width_budgets: shares of the MLP channels, in (0, 1].
        head_budgets: numbers of heads; empty means about half, three quarters and all.
        depth_budgets: numbers of layers; empty means about half, three quarters and all.
        extra_budgets: further budgets as quoted text, such as "0.5:2:2:64" (hidden width 64).
        init_from: ModernBERT-family checkpoint to start from, a folder or a Hub name; its sizes
            replace the ones above.
        reorder_by_importance: sort heads, MLP channels and hidden channels of ``init_from`` by
            importance before training, so that prefixes keep what matters.
        initializer_range: standard deviation of the initial weights; narrow models learn faster
            with more than ModernBERT's 0.02.
        attn_implementation: sdpa, eager, flash_attention_2 or flex_attention; auto takes eager for
            bfloat16 on a CPU, where its backward pass is faster, and sdpa elsewhere.
    """

    vocab_size: int | None = None
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    head_dim: int | None = None
    intermediate_size: int = 256
    max_position_embeddings: int = 512
    width_budgets: list[float] = field(default_factory=lambda: [0.5, 0.75, 1.0])
    head_budgets: list[int] = field(default_factory=list)
    depth_budgets: list[int] = field(default_factory=list)
    extra_budgets: list[str] = field(default_factory=list)
    init_from: str | None = None
    reorder_by_importance: bool = True
    initializer_range: float = 0.02
    attn_implementation: str = "auto"


@dataclass
class DataSection:
    """Where the text comes from and how it becomes packed rows.

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
        tokenizer: tokenizer to use, a folder or a Hub name; None trains one on the corpus.
        vocab_size: size of the trained tokenizer.
        max_length: tokens per packed row.
        packing: several documents per row, each attending to itself only.
        num_proc: processes that tokenize.
        pretokenized_path: folder written by ``nestling prepare``; None uses output_dir/data.
        streaming: tokenize while training instead of beforehand.
        shuffle_buffer: documents held for shuffling when streaming.
        validation_fraction: share of the document groups held out, in (0, 1).
        max_bytes: limit of the embedded corpus; None reads all.
        mlm_probability: share of the tokens to predict, in (0, 1).
    """

    source: str | None = None
    path: str | None = None
    name: str | None = None
    split: str = "train"
    noncommercial: bool = False
    text_column: str | None = None
    text_columns: list[str] = field(default_factory=list)
    group_column: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 2048
    max_length: int = 128
    packing: bool = True
    num_proc: int = 1
    pretokenized_path: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 10_000
    validation_fraction: float = 0.05
    max_bytes: int | None = None
    mlm_probability: float = 0.3


@dataclass
class TrainingSection:
    """How long and how fast the model learns.

    Attributes:
        max_steps: optimizer steps; give this or ``epochs``.
        epochs: passes over the data; give this or ``max_steps``.
        batch_size: packed rows per forward pass and device.
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
        eval_steps: optimizer steps between evaluations; None evaluates at the end only.
        save_total_limit: checkpoints to keep.
        budgets_per_step: budgets in one optimizer step.
        budget_sampling: sandwich (largest, smallest, some in between) or fixed (all).
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
    budgets_per_step: int = 4
    budget_sampling: str = "sandwich"
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    report_to: str = "none"
    use_cpu: bool = False
    dataloader_num_workers: int = 0


@dataclass
class LossSection:
    """Weights of the loss terms of a Delta-Matryoshka encoder.

    Attributes:
        masked_lm_weight: weight of the masked-LM term.
        kd_weight: weight of the distillation term; 0 switches it off.
        kd_temperature: softmax temperature of the distillation term.
        teacher: external teacher, a folder or a Hub name; None distils from the largest budget of
            the same step.
    """

    masked_lm_weight: float = 1.0
    kd_weight: float = 1.0
    kd_temperature: float = 1.0
    teacher: str | None = None


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
    """

    budgets: list[str] = field(default_factory=lambda: ["all"])
    batches: int | None = None
    batch_size: int = 16
    sequence_length: int | None = None
    latency: bool = True
    bootstrap_samples: int = 1000
    calibration_fraction: float = 0.5


@dataclass
class ExportSection:
    """What is written for others to load.

    Attributes:
        budgets: budgets as quoted text, or smallest, middle, largest, all; empty exports nothing.
        format: auto (stock architecture where the slice is one), native, remote or state-dict.
        verify: load each folder in a clean process and compare its outputs.
    """

    budgets: list[str] = field(default_factory=lambda: ["smallest", "middle", "largest"])
    format: str = "auto"
    verify: bool = True


@dataclass
class DeltaEncoderRecipe:
    """A run of the Delta-Matryoshka encoder: train, evaluate, export.

    Attributes:
        output_dir: receives model/, metrics.json, events.jsonl, recipe.yaml and checkpoints.
    """

    family: str = "delta_encoder"
    seed: int = 0
    output_dir: str = "runs/delta_encoder"
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    loss: LossSection = field(default_factory=LossSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    export: ExportSection = field(default_factory=ExportSection)


# Family -> the dataclass of its recipes. Another family's recipe joins the union with `|`.
RECIPE_SCHEMAS: dict[str, type[Any]] = {"delta_encoder": DeltaEncoderRecipe}
Recipe = DeltaEncoderRecipe

DATA_SOURCES = ("embedded", "files", "hub", "ecommerce")
EXPORT_FORMATS = ("auto", "native", "remote", "state-dict")
BUDGET_SAMPLINGS = ("sandwich", "fixed")
ATTENTION_IMPLEMENTATIONS = ("auto", "sdpa", "eager", "flash_attention_2", "flex_attention")
