"""Turn the sections of a delta_encoder recipe into a model and a trainer."""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Subset
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel

from ...configuration.budget import NAMED_BUDGETS, select_budgets
from ...configuration.configuration_delta_encoder import DeltaEncoderConfig
from ...hub_cards.loadable_checkpoint import make_checkpoint_loadable
from ...modeling.delta_conversion import SETTINGS, convert_delta
from ...modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from ...modeling.hierarchical_growth import grow_from_checkpoints, is_ours, load_encoder
from ...modeling.importance_ordering import measure_importance, reorder_by_importance
from ...trainers.delta_encoder_trainer import DeltaEncoderTrainer
from ...trainers.delta_weights import WEIGHT_TERMS
from ...trainers.event_callback import PhaseCallback
from ...trainers.masked_lm_collator import MaskedLMCollator
from ...trainers.schedules import Constant, LateRise, Schedule
from ...trainers.stream_sampler import PositionedRows, PositionSampler
from ...trainers.training_arguments import NestlingTrainingArguments
from .. import precision
from ..budget_validation import check_trained_budgets
from ..cli_errors import DataError, UsageError
from ..data.corpus import PreparedData
from ..data.streaming import StreamingPackedRows
from ..evaluation.row_split import split_rows
from ..planned_sizes import lattice_of
from ..recipe_schema import DeltaEncoderRecipe, LossSection
from ..shared_arguments import shared_arguments
from .budget_plan import planner_of
from .loss_terms import WEIGHT_KEYS, loss_terms, phases_of, weight_schedules
from .model_config import (
    added_parts,
    delta_settings,
    grown_budgets,
    read_checkpoint,
    scratch_config,
    unreadable,
)

logger = logging.getLogger(__name__)

IMPORTANCE_BATCHES = 8
# Share of the run over which `loss.largest_share_end` is reached.
RISING_PART = 0.5


def build_model(recipe: DeltaEncoderRecipe, data: PreparedData) -> DeltaEncoderForMaskedLM:
    """Initialise from scratch, from a checkpoint, or around a smaller checkpoint.

    Raises:
        DataError: if the tokenizer does not fit the model, or is another one than that of a
            model whose delta alone is trained.
        ModelFolderError: if a checkpoint cannot be loaded.
        UsageError: for budgets that its sizes do not allow.
        ValueError: for impossible sizes or another architecture.
    """
    section, tokenizer = recipe.model, data.tokenizer
    if recipe.init.base is not None:
        model = _grow_around_base(recipe, data)
    elif section.init_from is not None:
        model = _continue_from(recipe, data)
    else:
        model = DeltaEncoderForMaskedLM(scratch_config(recipe, tokenizer))
    model.set_attn_implementation(attention_of(recipe))
    config = model.config
    if len(tokenizer) > config.vocab_size:
        raise DataError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}; "
            "use the tokenizer of the checkpoint (data.tokenizer=…) or raise model.vocab_size"
        )
    check_trained_budgets(recipe, config)
    if recipe.training.only is not None:
        _train_deltas_alone(model, str(section.init_from), tokenizer)
    return model


def _train_deltas_alone(model: DeltaEncoderForMaskedLM, source: str, tokenizer: Any) -> None:
    """Freeze all but the built delta; the embedding stays, so its tokenizer must stay as well."""
    if (Path(source) / "tokenizer.json").is_file():
        theirs: Any = AutoTokenizer.from_pretrained(source)
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise DataError(
                f"training.only leaves the embedding of {source} as it is, and the data have "
                f"another tokenizer; set data.tokenizer={source}"
            )
    model.requires_grad_(False)
    model.base_model.deltas.requires_grad_(True)


def _continue_from(recipe: DeltaEncoderRecipe, data: PreparedData) -> DeltaEncoderForMaskedLM:
    """Load a ModernBERT-family checkpoint or a nested model, sort units, add missing parts."""
    section = recipe.model
    name = str(section.init_from)
    added_parts(recipe, read_checkpoint("model.init_from", name))
    try:
        model = load_encoder(name)
    except OSError as error:
        raise unreadable("model.init_from", name, error) from error
    sorts = section.reorder_by_importance
    if sorts or (sorts is None and not is_ours(name)):
        model.set_attn_implementation(attention_of(recipe))
        reorder_by_importance(model, measure_importance(model, first_batches(recipe, data)))
    parts = added_parts(recipe, model.config)
    form = {key: parts.pop(key) for key in SETTINGS if section.convert_delta and key in parts}
    if form:
        model, lost = convert_delta(model, **form)
        for matrix, share in lost.items():
            logger.info("%s: the new delta holds %.1f %% of it", matrix, 100 * (1 - share))
    if parts:
        model = _with_parts(model, type(model.config)(**{**model.config.to_dict(), **parts}))
    model.config.budgets = [str(budget) for budget in lattice_of(section, model.config)]
    return model


def _with_parts(
    model: DeltaEncoderForMaskedLM, config: DeltaEncoderConfig
) -> DeltaEncoderForMaskedLM:
    """Return the model with further parts, which start without effect."""
    extended: Any = DeltaEncoderForMaskedLM(config)
    extended.to(dtype=model.dtype)
    _, unknown = extended.load_state_dict(model.state_dict(), strict=False)
    assert not unknown, unknown
    result: DeltaEncoderForMaskedLM = extended.train(model.training)
    return result


def _grow_around_base(recipe: DeltaEncoderRecipe, data: PreparedData) -> DeltaEncoderForMaskedLM:
    """Grow the checkpoint ``init.base``; its own shape becomes one of the budgets."""
    init = recipe.init
    target = scratch_config(recipe, data.tokenizer) if init.target is None else init.target
    try:
        grown = grow_from_checkpoints(
            str(init.base),
            target,
            delta_from_target=init.delta_from_target,
            batches=first_batches(recipe, data) if init.delta_from_target else None,
            settings=lambda config: delta_settings(recipe, config),
        )
    except OSError as error:
        names = f"{init.base} or init.target={init.target}"
        raise unreadable("init.base", names, error) from error
    config = grown.model.config
    config.budgets = grown_budgets(recipe.model, config, grown.small)
    return grown.model


def build_trainer(
    recipe: DeltaEncoderRecipe, model: DeltaEncoderForMaskedLM, data: PreparedData
) -> DeltaEncoderTrainer:
    """Wire the model, the data and the loss terms into a trainer."""
    loss, phases = recipe.loss, phases_of(recipe)
    teacher = None
    if loss.kd_weight and loss.teacher is not None:
        teacher = _load_teacher(loss.teacher)
    if recipe.training.gradient_checkpointing:
        # Transformers 4.57 and 5 name the training argument differently; the model's method, not.
        # The reentrant kind, the default of 4.57, gives no gradient where the embedding is frozen.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = (
        data.train_rows
        if isinstance(data.train_rows, StreamingPackedRows)
        else PositionedRows(data.train_rows)
    )
    trainer = DeltaEncoderTrainer(
        model,
        training_arguments(recipe, isinstance(rows, StreamingPackedRows)),
        planner=planner_of(recipe, model.config),
        terms=loss_terms(recipe, model.config),
        teacher=teacher,
        largest_share=largest_share_of(loss),
        eval_budgets=select_budgets(NAMED_BUDGETS, model.config)
        if recipe.training.eval_steps
        else (),
        lr_factor=phases.learning_rate_factor() if phases else None,
        train_dataset=rows,
        eval_dataset=watched_rows(recipe, data) if recipe.training.eval_steps else None,
        train_sampler=PositionSampler(rows, recipe.seed)
        if isinstance(rows, PositionedRows)
        else None,
        data_collator=collator_of(recipe, data, recipe.seed),
        processing_class=data.tokenizer,
        complete_checkpoint=make_checkpoint_loadable,
    )
    check_processes(recipe, trainer.accelerator.num_processes)
    if phases:
        trainer.add_callback(PhaseCallback(trainer.event_log, phases))
    if isinstance(rows, StreamingPackedRows):
        rows.keep_states(trainer.rows_per_step())
        trainer.stateful["stream"] = StreamPosition(rows, trainer)
    return trainer


def largest_share_of(loss: LossSection) -> Schedule | None:
    """Return the share of the largest budget in the masked-LM term, step by step."""
    if loss.largest_share is None:
        return None
    if loss.largest_share_end is None:
        return Constant(loss.largest_share)
    return LateRise(loss.largest_share, loss.largest_share_end, RISING_PART)


def watched_rows(recipe: DeltaEncoderRecipe, data: PreparedData) -> Dataset[dict[str, Any]]:
    """Return the rows that evaluations during training measure, at most ``evaluation.batches``.

    They are rows for calibration: the evaluation at the end measures others, so it has no part in
    the choice of the best model.

    Raises:
        DataError: if there are no rows.
    """
    settings, rows = recipe.evaluation, data.validation_rows
    if len(rows) == 0:
        raise DataError(
            "the validation split has 0 rows; raise data.validation_fraction, give more data, or "
            "set training.eval_steps=null"
        )
    calibration, others = split_rows(len(rows), settings.calibration_fraction)
    limit = None if settings.batches is None else settings.batches * settings.batch_size
    return Subset(PositionedRows(rows), (calibration or others)[:limit])


def _load_teacher(name: str) -> PreTrainedModel:
    try:
        teacher: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(name)
    except OSError as error:
        raise unreadable("loss.teacher", name, error) from error
    return teacher


def check_processes(recipe: DeltaEncoderRecipe, processes: int) -> None:
    """Refuse what several processes cannot do.

    Raises:
        UsageError: naming the keys.
    """
    if processes == 1:
        return
    if recipe.data.streaming:
        raise UsageError(
            f"data.streaming=true runs in one process, not {processes}; prepare the data first "
            "(nestling prepare) and train on the prepared rows"
        )
    keys = [WEIGHT_KEYS[name] for name in weight_schedules(recipe) if name in WEIGHT_TERMS]
    if keys and recipe.training.budget_sampling == "random":
        # DistributedDataParallel takes a weight that no pass of a step reaches as done.
        raise UsageError(
            f"loss.{keys[0]} looks at weights that a step with training.budget_sampling=random "
            f"may not run, which {processes} processes cannot train; set it to 0, or sandwich "
            "sampling, or run one process"
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
    shared = shared_arguments(recipe.output_dir, recipe.seed, section, section.batch_size)
    # The preview network has no part in steps without a routed pass.
    shared["ddp_find_unused_parameters"] |= recipe.model.token_routing
    return NestlingTrainingArguments(**shared, ignore_data_skip=streaming)


def uses_bf16(recipe: DeltaEncoderRecipe) -> bool:
    """Whether the run computes in bfloat16."""
    return precision.uses_bf16(recipe.training.bf16, recipe.training.use_cpu)


def attention_of(recipe: DeltaEncoderRecipe) -> str:
    """Resolve the attention implementation ``auto``."""
    wanted = recipe.model.attn_implementation
    return precision.attention_of(wanted, uses_bf16(recipe), recipe.training.use_cpu)


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
