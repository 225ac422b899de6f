"""Turn the sections of a delta_encoder recipe into a model and a trainer."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from ...configuration.configuration_delta_encoder import (
    DeltaEncoderConfig,
    build_lattice,
    default_steps,
)
from ...configuration.delta_budget import DeltaBudget
from ...hub_cards.loadable_checkpoint import make_checkpoint_loadable
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.importance_ordering import measure_importance, reorder_by_importance
from ...modeling.modernbert_weights import load_modernbert
from ...trainers.budget_sampling import SandwichSampler
from ...trainers.delta_encoder_trainer import DeltaEncoderTrainer
from ...trainers.loss_term import WeightedTerm
from ...trainers.losses.distillation import DistillationLoss
from ...trainers.losses.masked_lm import MaskedLmLoss
from ...trainers.masked_lm_collator import MaskedLMCollator
from ...trainers.schedules import Constant
from ...trainers.stream_sampler import PositionedRows, PositionSampler
from ...trainers.training_arguments import NestlingTrainingArguments
from ..cli_errors import DataError, ModelFolderError, UsageError
from ..data.corpus import PreparedData
from ..data.streaming import StreamingPackedRows
from ..precision import has_accelerator, has_fast_bf16
from ..recipe_schema import DeltaEncoderRecipe, ModelSection

IMPORTANCE_BATCHES = 8


def build_model(recipe: DeltaEncoderRecipe, data: PreparedData) -> DeltaEncoderForMaskedLM:
    """Initialise from scratch or from a ModernBERT-family checkpoint.

    Raises:
        DataError: if the tokenizer does not fit the model.
        ValueError: for impossible sizes or another architecture.
    """
    section, tokenizer = recipe.model, data.tokenizer
    if section.init_from is None:
        config = scratch_config(section, tokenizer)
        config._attn_implementation = attention_of(recipe)
        model = DeltaEncoderForMaskedLM(config)
    else:
        model = _load_source(section.init_from)
        config = model.config
        config.budgets = [str(budget) for budget in lattice_of(section, config)]
        model.set_attn_implementation(attention_of(recipe))
        if section.reorder_by_importance:
            reorder_by_importance(model, measure_importance(model, first_batches(recipe, data)))
    if len(tokenizer) > config.vocab_size:
        raise DataError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}; "
            "use the tokenizer of model.init_from (data.tokenizer=…) or raise model.vocab_size"
        )
    for budget in config.budget_list():
        budget.check(config)
    return model


def _load_source(name: str) -> DeltaEncoderForMaskedLM:
    try:
        return load_modernbert(name)
    except OSError as error:
        raise ModelFolderError(
            f"model.init_from={name} is neither a folder with a checkpoint nor a name that can be "
            f"loaded ({str(error).splitlines()[0]}); check the path or the network"
        ) from error


def scratch_config(
    section: ModelSection, tokenizer: PreTrainedTokenizerFast
) -> DeltaEncoderConfig:
    """Return the configuration that the ``model`` keys describe."""
    config = DeltaEncoderConfig(
        vocab_size=section.vocab_size or len(tokenizer),
        hidden_size=section.hidden_size,
        num_hidden_layers=section.num_hidden_layers,
        num_attention_heads=section.num_attention_heads,
        head_dim=section.head_dim,
        intermediate_size=section.intermediate_size,
        max_position_embeddings=section.max_position_embeddings,
        initializer_range=section.initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    config.budgets = [str(budget) for budget in lattice_of(section, config)]
    return config


def lattice_of(section: ModelSection, config: DeltaEncoderConfig) -> list[DeltaBudget]:
    """Return the budgets a recipe names; empty axes take about half, three quarters and all.

    Raises:
        BudgetError: for a budget that does not fit, naming the nearest one that does.
    """
    budgets = build_lattice(
        list(section.width_budgets),
        list(section.head_budgets) or default_steps(config.num_attention_heads),
        list(section.depth_budgets) or default_steps(config.num_hidden_layers),
        list(section.extra_budgets),
    )
    for budget in budgets:
        budget.check(config)
    return budgets


def build_trainer(
    recipe: DeltaEncoderRecipe, model: DeltaEncoderForMaskedLM, data: PreparedData
) -> DeltaEncoderTrainer:
    """Wire the model, the data and the loss terms into a trainer."""
    loss = recipe.loss
    terms = [WeightedTerm(MaskedLmLoss(), Constant(loss.masked_lm_weight))]
    teacher = None
    if loss.kd_weight:
        terms.append(WeightedTerm(DistillationLoss(loss.kd_temperature), Constant(loss.kd_weight)))
        if loss.teacher is not None:
            teacher = AutoModelForMaskedLM.from_pretrained(loss.teacher)
    if recipe.training.gradient_checkpointing:
        # Transformers 4.57 and 5 name the training argument differently; the model's method, not.
        model.gradient_checkpointing_enable()
    rows = (
        data.train_rows
        if isinstance(data.train_rows, StreamingPackedRows)
        else PositionedRows(data.train_rows)
    )
    trainer = DeltaEncoderTrainer(
        model,
        training_arguments(recipe, isinstance(rows, StreamingPackedRows)),
        planner=sampler_of(recipe, model.config),
        terms=terms,
        teacher=teacher,
        train_dataset=rows,
        eval_dataset=PositionedRows(data.validation_rows) if recipe.training.eval_steps else None,
        train_sampler=PositionSampler(rows, recipe.seed)
        if isinstance(rows, PositionedRows)
        else None,
        data_collator=collator_of(recipe, data, recipe.seed),
        processing_class=data.tokenizer,
        complete_checkpoint=make_checkpoint_loadable,
    )
    if isinstance(rows, StreamingPackedRows):
        if trainer.accelerator.num_processes > 1:
            raise UsageError(
                f"data.streaming=true runs in one process, not {trainer.accelerator.num_processes};"
                " prepare the data first (nestling prepare) and train on the prepared rows"
            )
        rows.keep_states(trainer.rows_per_step())
        trainer.stateful["stream"] = StreamPosition(rows, trainer)
    return trainer


def sampler_of(recipe: DeltaEncoderRecipe, config: Any) -> SandwichSampler[DeltaBudget]:
    """Return what draws the budgets of each step."""
    budgets = config.budget_list()
    flops = [budget.flops(config, recipe.data.max_length) for budget in budgets]
    mode: Any = recipe.training.budget_sampling
    per_step = recipe.training.budgets_per_step
    return SandwichSampler(
        budgets, flops, per_step, recipe.seed, mode, trunk_of=lambda budget: budget.trunk
    )


class StreamPosition:
    """The place in a stream that belongs to a checkpoint: after the last row trained on."""

    def __init__(self, rows: StreamingPackedRows, trainer: DeltaEncoderTrainer) -> None:
        """Keep both; the trainer knows how many rows it has used."""
        self.rows = rows
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream after the completed optimizer steps."""
        used = self.trainer.state.global_step * self.trainer.rows_per_step()
        return self.rows.state_at(used)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the stream from a saved state."""
        self.rows.load_state_dict(state)


def training_arguments(recipe: DeltaEncoderRecipe, streaming: bool) -> NestlingTrainingArguments:
    """Translate the ``training`` keys."""
    section = recipe.training
    return NestlingTrainingArguments(
        output_dir=recipe.output_dir,
        seed=recipe.seed,
        max_steps=section.max_steps or -1,
        num_train_epochs=section.epochs or 1.0,
        per_device_train_batch_size=section.batch_size,
        per_device_eval_batch_size=section.batch_size,
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        learning_rate=section.lr,
        weight_decay=section.weight_decay,
        lr_warmup_ratio=section.warmup_ratio,
        min_lr_ratio=section.min_lr_ratio,
        lr_multipliers=dict(section.lr_multipliers),
        max_grad_norm=section.max_grad_norm,
        bf16=uses_bf16(recipe),
        torch_compile=section.torch_compile,
        logging_steps=section.logging_steps,
        save_steps=section.save_steps,
        save_total_limit=section.save_total_limit,
        eval_strategy="steps" if section.eval_steps else "no",
        eval_steps=section.eval_steps,
        prediction_loss_only=True,
        report_to=section.report_to,
        use_cpu=section.use_cpu or not has_accelerator(),
        dataloader_num_workers=section.dataloader_num_workers,
        ignore_data_skip=streaming,
    )


def uses_bf16(recipe: DeltaEncoderRecipe) -> bool:
    """Whether the run computes in bfloat16; unset means where the hardware is fast at it."""
    wanted = recipe.training.bf16
    return has_fast_bf16(recipe.training.use_cpu) if wanted is None else wanted


def attention_of(recipe: DeltaEncoderRecipe) -> str:
    """Resolve ``auto``: eager for bfloat16 on a CPU, whose fused backward is slower, else sdpa."""
    if recipe.model.attn_implementation != "auto":
        return recipe.model.attn_implementation
    on_cpu = recipe.training.use_cpu or not has_accelerator()
    return "eager" if on_cpu and uses_bf16(recipe) else "sdpa"


def collator_of(recipe: DeltaEncoderRecipe, data: PreparedData, seed: int) -> MaskedLMCollator:
    """Return a collator whose masks depend on ``seed`` and the position alone."""
    return MaskedLMCollator.from_tokenizer(
        data.tokenizer, mlm_probability=recipe.data.mlm_probability, seed=seed
    )


def first_batches(recipe: DeltaEncoderRecipe, data: PreparedData) -> Iterator[dict[str, Tensor]]:
    """Yield the batches that importance is measured on."""
    collate = collator_of(recipe, data, recipe.seed)
    size = recipe.training.batch_size
    if isinstance(data.train_rows, StreamingPackedRows):
        stream: Iterator[Any] = iter(data.train_rows)
    else:
        rows = PositionedRows(data.train_rows)
        stream = (rows[index] for index in range(len(rows)))
    for _ in range(IMPORTANCE_BATCHES):
        batch = list(islice(stream, size))
        if batch:
            yield collate(batch)

