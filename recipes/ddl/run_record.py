"""From what a finished run wrote and holds to the files of the original tool."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...trainers.ddl_trainer import DdlTrainer
from ...trainers.event_log import read_events
from ...trainers.spectral_callback import measure_spectrum
from ..data.documents import SPLITS, Split
from ..data.token_stream import TokenStreams
from ..ddl_schema import DdlRecipe
from ..evaluation.budget_scoring import predict_next, score_budgets
from ..evaluation_file import write_json
from ..explorer.run_state import RunState
from ..training_run import BEST_FOLDER, MODEL_FOLDER
from .build import batches_of, rows_of
from .original_layout import Evaluation, FinishedRun, write_original_layout
from .original_report import TrainingReport

START_FILE = "start.json"


def write_run_record(
    recipe: DdlRecipe, trainer: DdlTrainer, streams: TokenStreams
) -> TrainingReport:
    """Write the original's layout into ``output_dir``, beside what was published there.

    Args:
        recipe: the resolved recipe.
        trainer: the trainer after its last step.
        streams: the tokens it trained on.
    """
    output_dir = Path(recipe.output_dir)
    state = RunState()
    state.apply(read_events(trainer.event_log.path)[0])
    config = trainer.model.config
    start = output_dir / START_FILE
    ends = [json.loads(start.read_text(encoding="utf-8"))] if start.is_file() else []
    ends.append(measure_state(recipe, trainer, streams))
    run = FinishedRun(
        variant=config.variant,
        config=config.to_dict(),
        training=_training_keys(recipe, trainer),
        num_params=config.budget_class.full(config).parameters(config),
        steps_completed=trainer.state.global_step,
        train_dataset=_summary(recipe, streams, "train"),
        validation_dataset=_summary(recipe, streams, "validation"),
        log=[
            {"step": line.step, **line.values}
            for line in state.lines.values()
            if "loss" in line.values
        ],
        evaluations=_evaluations(state, [_as_evaluation(end) for end in ends]),
    )
    best = output_dir / BEST_FOLDER
    return write_original_layout(
        output_dir,
        run,
        model_dir=output_dir / MODEL_FOLDER,
        best_model_dir=best if best.is_dir() else None,
        optimizer_state=optimizer_tensors(trainer),
    )


def measure_state(recipe: DdlRecipe, trainer: DdlTrainer, streams: TokenStreams) -> dict[str, Any]:
    """Measure the model as it is on rows of both splits, at full size.

    Returns:
        Loss, accuracy and, for a model with delta updates, gates and spectrum of each split, as
        JSON can hold them.
    """
    # Without the casts of training, as finished models are measured.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    full = model.config.budget_class.full(model.config)
    state: dict[str, Any] = {"step": trainer.state.global_step}
    for split in SPLITS:
        rows = rows_of(recipe, streams, split)
        scores = score_budgets(model, batches_of(recipe, rows)(), [full], predict=predict_next)
        tokens = float(scores.row_tokens.sum())
        state[split] = {
            "loss": float(scores.losses[0]),
            "accuracy": scores.by_budget[0].correct / tokens,
            "tokens": int(tokens),
        }
        spectrum = None
        if recipe.evaluation.spectral_batches:
            batches = batches_of(recipe, rows, spectral=True)
            was_training = model.training
            spectrum = measure_spectrum(model.eval(), batches())
            model.train(was_training)
        state[f"{split}_layers"] = None if spectrum is None else spectrum["layers"]
    return state


def measure_start(recipe: DdlRecipe, trainer: DdlTrainer, streams: TokenStreams) -> None:
    """Measure the model before its first step and keep that for a run that is interrupted."""
    write_json(Path(recipe.output_dir) / START_FILE, measure_state(recipe, trainer, streams))


def _as_evaluation(state: dict[str, Any]) -> Evaluation:
    return Evaluation(
        state["step"],
        state["train"],
        state["validation"],
        state["train_layers"],
        state["validation_layers"],
    )


def _evaluations(state: RunState, ends: list[Evaluation]) -> list[Evaluation]:
    """Return the evaluations of the events, with what was measured at the ends of the run.

    Losses of validation are means over the budgets that training evaluates; a model with one
    budget has that one.
    """
    by_step: dict[int, Evaluation] = {}
    for line in state.lines.values():
        # The best model is chosen by the mean over the budgets, so that is what is reported.
        loss = line.values.get("eval_loss")
        if loss is not None:
            layers = (state.spectral.get(line.step) or {}).get("layers") or None
            metrics = {"loss": loss}
            by_step[line.step] = Evaluation(line.step, None, metrics, None, layers)
    for one in ends:
        during = by_step.get(one.step)
        by_step[one.step] = one if during is None else replace(one, validation=during.validation)
    return [by_step[step] for step in sorted(by_step)]


def _training_keys(recipe: DdlRecipe, trainer: DdlTrainer) -> dict[str, Any]:
    section, steps = recipe.training, trainer.state.max_steps
    return {
        "max_steps": steps,
        "eval_interval": section.eval_steps or steps,
        "learning_rate": section.lr,
        "min_learning_rate": section.lr * section.min_lr_ratio,
        "warmup_steps": trainer.args.get_warmup_steps(steps),
        "weight_decay": section.weight_decay,
        "beta1": section.adam_beta1,
        "beta2": section.adam_beta2,
        "epsilon": section.adam_epsilon,
        "grad_clip": section.max_grad_norm,
    }


def _summary(recipe: DdlRecipe, streams: TokenStreams, split: Split) -> dict[str, Any]:
    rows = rows_of(recipe, streams, split)
    return {
        "num_sequences": len(rows),
        "seq_len": rows.length,
        "num_tokens": len(streams.ids[split]),
        "sha256": streams.description["sha256"][split],
    }


def optimizer_tensors(trainer: DdlTrainer) -> dict[str, Tensor]:
    """Return the state of the optimizer as ``NAME.exp_avg`` and so on."""
    optimizer: Any = trainer.optimizer
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {
        f"{names[id(parameter)]}.{key}": value.detach().cpu().contiguous()
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
