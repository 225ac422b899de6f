"""Turn the sections of a Deep Delta Learning recipe into a model and a trainer."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedTokenizerFast

from ...configuration.budget import NAMED_BUDGETS, select_budgets
from ...configuration.configuration_ddl import DdlConfig
from ...configuration.ddl_budget import DdlBudget
from ...hub_cards.loadable_checkpoint import make_checkpoint_loadable
from ...modeling.modeling_ddl import DdlForCausalLM
from ...trainers.budget_sampling import BudgetSampler, RandomSampler, SandwichSampler
from ...trainers.ddl_trainer import DdlTrainer
from ...trainers.labelled_rows import LabelledRows
from ...trainers.loss_term import WeightedTerm
from ...trainers.losses.distillation import DistillationLoss
from ...trainers.losses.next_token import NextTokenLoss
from ...trainers.schedules import Constant
from ...trainers.spectral_callback import SpectralCallback
from ...trainers.stream_sampler import PositionSampler
from ...trainers.training_arguments import NestlingTrainingArguments
from .. import precision
from ..cli_errors import DataError, ModelFolderError
from ..compiler import compiles
from ..data.causal_rows import CausalRows, collate_rows, spread_rows
from ..data.documents import SPLITS, Split
from ..data.token_ids import require_vocabulary
from ..data.token_stream import TokenStreams, end_token_of
from ..ddl_schema import DdlRecipe
from ..ddl_validation import lattice_of, model_settings
from ..shared_arguments import shared_arguments
from .starting_point import load_start

logger = logging.getLogger(__name__)


def rows_of(recipe: DdlRecipe, streams: TokenStreams, split: Split) -> CausalRows:
    """Return the rows of one split.

    Raises:
        DataError: if there is nothing to predict, or training has no whole row.
    """
    length, found = recipe.data.max_length, len(streams.ids[split])
    if split == "train" and found <= length:
        raise DataError(
            f"the train split has {found} tokens, a row of data.max_length={length} needs "
            f"{length + 1}; give more data or lower data.max_length"
        )
    fix = "give more data or raise data.validation_fraction"
    return CausalRows(streams.ids[split], length, f"the {split} split", fix)


def build_model(recipe: DdlRecipe, streams: TokenStreams) -> DdlForCausalLM:
    """Initialise from scratch or from a checkpoint.

    Raises:
        DataError: if an id has no row in the embedding.
        ModelFolderError: if a checkpoint cannot be loaded.
    """
    section = recipe.model
    if section.init_from is None:
        model = DdlForCausalLM(scratch_config(recipe, streams))
    else:
        model = load_start(section.init_from)
        model.config.budgets = [str(budget) for budget in lattice_of(section, model.config)]
    training = recipe.training
    model.set_attn_implementation(
        precision.attention_of(section.attn_implementation, uses_bf16(recipe), training.use_cpu)
    )
    require_fitting(streams, model.config, recipe.data.max_length)
    return model


def require_fitting(streams: TokenStreams, config: Any, max_length: int) -> None:
    """Check that the tokens fit a model.

    Raises:
        DataError: if a token has no row in the embedding.
        ModelFolderError: if the rows are longer than the model takes.
    """
    tokenizer = streams.tokenizer
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise DataError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}; use the "
            "tokenizer of the checkpoint (data.tokenizer=…) or raise model.vocab_size"
        )
    if tokenizer is None:
        for split in SPLITS:
            require_vocabulary(streams.ids[split], config.vocab_size, f"the {split} split")
    if max_length > config.max_position_embeddings:
        raise ModelFolderError(
            f"data.max_length is {max_length}, the model takes at most "
            f"{config.max_position_embeddings} tokens; lower it"
        )


def scratch_config(recipe: DdlRecipe, streams: TokenStreams) -> DdlConfig:
    """Return the configuration that the ``model`` keys describe."""
    section = recipe.model
    settings = {
        **model_settings(section, recipe.data.max_length),
        "vocab_size": section.vocab_size or _vocabulary(streams),
        **_special_tokens(streams.tokenizer),
    }
    # The keys of a preset are among the settings; the width of the MLP follows from it.
    named = section.preset
    config = DdlConfig(**settings) if named is None else DdlConfig.preset(named, **settings)
    config.budgets = [str(budget) for budget in lattice_of(section, config)]
    return config


def _vocabulary(streams: TokenStreams) -> int:
    """Return the tokenizer's size, or one more than the largest id."""
    if streams.tokenizer is not None:
        return len(streams.tokenizer)
    return 1 + max(int(ids.max(initial=0)) for ids in streams.ids.values())


def _special_tokens(tokenizer: PreTrainedTokenizerFast | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    end = end_token_of(tokenizer)
    return {
        "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end,
    }


def build_trainer(
    recipe: DdlRecipe, model: DdlForCausalLM, streams: TokenStreams, resuming: bool = False
) -> DdlTrainer:
    """Wire the model, the rows and the loss terms into a trainer.

    Args:
        recipe: a validated recipe.
        model: the model to train.
        streams: its tokens.
        resuming: a run that goes on is not evaluated again before its first step.
    """
    loss, evaluation = recipe.loss, recipe.evaluation
    rows = LabelledRows(rows_of(recipe, streams, "train"))
    evaluates = bool(recipe.training.eval_steps)
    held_out = rows_of(recipe, streams, "validation") if evaluates else None
    terms = [WeightedTerm(NextTokenLoss(), Constant(loss.next_token_weight))]
    if loss.kd_weight:
        terms.append(
            WeightedTerm(DistillationLoss(loss.kd_temperature), Constant(loss.kd_weight))
        )
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    trainer = DdlTrainer(
        model,
        training_arguments(with_fitting_batch(recipe, len(rows)), resuming),
        budget_sampler=sampler_of(recipe, model.config),
        terms=terms,
        largest_share=loss.largest_share,
        eval_budgets=select_budgets(NAMED_BUDGETS, model.config),
        train_dataset=rows,
        eval_dataset=None if held_out is None else LabelledRows(_measured_rows(held_out, recipe)),
        train_sampler=PositionSampler(rows, recipe.seed),
        data_collator=collate_rows,
        processing_class=streams.tokenizer,
        complete_checkpoint=make_checkpoint_loadable,
    )
    if held_out is not None and evaluation.spectral_batches:
        trainer.add_callback(
            SpectralCallback(
                trainer.event_log,
                batches_of(recipe, held_out, spectral=True),
                max_batches=evaluation.spectral_batches,
            )
        )
    return trainer


def with_fitting_batch(recipe: DdlRecipe, rows: int) -> DdlRecipe:
    """Return the recipe with a batch that a small data set can fill; others are left alone.

    Raises:
        DataError: if there are fewer rows than micro-batches in a step.
    """
    section = recipe.training
    steps = section.gradient_accumulation_steps
    if rows < steps:
        raise DataError(
            f"the training split has {rows} rows of {recipe.data.max_length} tokens, a step has "
            f"{steps} micro-batches; lower training.gradient_accumulation_steps or data.max_length"
        )
    if rows >= section.batch_size * steps:
        return recipe
    size = rows // steps
    logger.warning("batches have %d rows, not %d: there are %d", size, section.batch_size, rows)
    return replace(recipe, training=replace(section, batch_size=size))


def _measured_rows(rows: CausalRows, recipe: DdlRecipe) -> Any:
    """Return the rows that evaluations during training measure."""
    section = recipe.evaluation
    wanted = None if section.batches is None else section.batches * section.batch_size
    return Subset(rows, spread_rows(len(rows), wanted))  # type: ignore[arg-type]


def batches_of(
    recipe: DdlRecipe, rows: CausalRows, *, spectral: bool = False
) -> Callable[[], Iterable[dict[str, Tensor]]]:
    """Return a function that yields batches of rows that are spread over all of them.

    Args:
        recipe: says how many and how large.
        rows: rows of a split.
        spectral: as many as a snapshot of gates takes, not as an evaluation takes.
    """
    section = recipe.evaluation
    limit = section.spectral_batches if spectral else section.batches
    size = section.batch_size
    chosen = spread_rows(len(rows), None if limit is None else limit * size)

    def batches() -> Iterable[dict[str, Tensor]]:
        subset: Any = Subset(rows, chosen)  # type: ignore[arg-type]
        return DataLoader(subset, batch_size=size, collate_fn=collate_rows)

    return batches


def sampler_of(recipe: DdlRecipe, config: Any) -> BudgetSampler[DdlBudget]:
    """Return what draws the budgets of each step."""
    training, seed = recipe.training, recipe.seed
    budgets = select_budgets(training.budgets, config)
    length = recipe.data.max_length
    flops = [budget.flops(config, length, predicted_tokens=length) for budget in budgets]
    if training.budget_sampling == "random":
        return RandomSampler(budgets, flops, training.budgets_per_step, seed)
    mode: Any = training.budget_sampling
    return SandwichSampler(
        budgets,
        flops,
        training.budgets_per_step,
        seed,
        mode,
        trunk_of=lambda budget: budget.trunk,
    )


def uses_bf16(recipe: DdlRecipe) -> bool:
    """Whether the run computes in bfloat16."""
    return precision.uses_bf16(recipe.training.bf16, recipe.training.use_cpu)


def training_arguments(recipe: DdlRecipe, resuming: bool = False) -> NestlingTrainingArguments:
    """Translate the ``training`` keys; with ``eval_steps`` a run begins with an evaluation."""
    section = recipe.training
    shared = shared_arguments(
        recipe.output_dir, recipe.seed, section, recipe.evaluation.batch_size
    )
    device = "cpu" if shared["use_cpu"] else "accelerator"
    if section.torch_compile:
        shared["torch_compile"] = compiles(device)
        if shared["torch_compile"] and recipe.model.rebuild_state and recipe.model.variant == "ddl":
            logger.warning(
                "model.rebuild_state=true does nothing for the vector state of variant ddl in "
                "compiled code, where the norms keep it anyway; set training.torch_compile=false "
                "to rebuild it"
            )
    if section.warmup_steps is not None:
        shared.update(warmup_steps=section.warmup_steps, lr_warmup_ratio=0.0)
    return NestlingTrainingArguments(
        **shared,
        adam_beta1=section.adam_beta1,
        adam_beta2=section.adam_beta2,
        adam_epsilon=section.adam_epsilon,
        eval_on_start=section.eval_steps is not None and not resuming,
        # The Trainer writes this into the configuration that is published, where False makes
        # `generate` compute the whole text again for every token. Training makes no cache anyway.
        use_cache=True,
    )
