"""The trainer all families share: it owns mechanics, a family trainer only sums loss terms.

Loss of one optimizer step, over the window W of all micro-batches on all ranks:
`L = sum_terms weight(step) * sum_{b in W} total(b) / sum_{b in W} units(b)`.
So L does not depend on how the rows are cut into micro-batches, accumulation steps and ranks
(a batch-coupled term excepted: it says so in the `train_start` event).
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    SchedulerType,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .checkpoint_files import CheckpointError, CheckpointWriteError
from .checkpointing_trainer import CheckpointingTrainer
from .event_callback import EventCallback
from .event_log import EventLog
from .hook_state import CapturedHookState, Stateful, capture_hook_state
from .loss_term import UNITS, LossSum, WeightedTerm
from .loss_window import LossLog, LossWindow, StepSums, count_batch_units
from .parameter_groups import build_parameter_groups
from .random_state import RandomState
from .schedules import Constant, Schedule, WarmupCosine
from .training_arguments import NestlingTrainingArguments
from .whole_step_sampler import TrainSampler, WholeStepSampler

logger = logging.getLogger(__name__)

_LOSS_LOG_NAME, _ROWS_NAME = "loss_log", "rows_per_step"


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient became NaN or infinite; the run stopped before the update."""


class HookedTrainer(CheckpointingTrainer):
    """Trainer of weighted loss terms. A family trainer implements `step_losses`.

    Args:
        model: The model.
        args: Training arguments.
        terms: Loss terms with their weight schedules; names must differ.
        train_sampler: Order of the training rows, a pure function of its seed and the epoch. Only
            with it are resume, accumulation and world size exact; None leaves the order to
            transformers.
        stateful: Objects whose state is saved with each checkpoint, by name.
        event_log: Event file; by default `args.output_dir/events.jsonl`.
        lr_factor: Multiplies the cosine of the learning rate, by step.
        kwargs: Further arguments of `transformers.Trainer`.

    Raises:
        ValueError: If names repeat or are reserved, a term has parameters of its own, or one
            process would drive several GPUs.
    """

    model: PreTrainedModel
    args: NestlingTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel,
        args: NestlingTrainingArguments,
        *,
        terms: Sequence[WeightedTerm],
        train_sampler: TrainSampler | None = None,
        stateful: Mapping[str, Stateful] | None = None,
        event_log: EventLog | None = None,
        lr_factor: Schedule | None = None,
        **kwargs: Any,
    ) -> None:
        self.terms = _terms_by_name(terms)
        self._loss_log = LossLog()
        own: dict[str, Stateful] = {_LOSS_LOG_NAME: self._loss_log, _ROWS_NAME: _RowsPerStep(self)}
        for name in own:
            if name in (stateful or {}):
                raise ValueError(f"the hook name {name!r} is taken; choose another one")
        hooks = {**(stateful or {}), **own}
        super().__init__(model=model, args=args, stateful=hooks, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process would drive {self.args.n_gpu} GPUs; start with `accelerate launch` "
                "or set CUDA_VISIBLE_DEVICES to one GPU"
            )
        for weighted in self.terms.values():
            weighted.term.to(self.args.device)
        # Our loss is already divided by the units of the whole window. transformers 5 asks the
        # first flag, 4.57 the second one together with a count from get_batch_samples.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        self.train_sampler = train_sampler
        self.event_log = event_log or EventLog(Path(str(self.args.output_dir)) / "events.jsonl")
        self.lr_factor = lr_factor or Constant(1.0)
        self._window: LossWindow | None = None
        self._step_start: tuple[RandomState, CapturedHookState] | None = None
        self.add_callback(_StepCallback(self))
        self.add_callback(EventCallback(self.event_log, self.terms))

    # --- what a family trainer fills in and asks ---

    def step_losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, LossSum]:
        """Run the forwards of one micro-batch and sum the loss terms.

        Args:
            model: The model as wrapped for training; call it once, so that DDP stays in step.
            batch: One micro-batch on the device.
            step: Optimizer step, from 0.

        Returns:
            Term name -> sum and count. A term of weight 0 may be left out, or given to be logged.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement step_losses")

    def term_weights(self, step: int) -> dict[str, float]:
        """Return the weight of each term at an optimizer step."""
        total_steps = self.state.max_steps
        return {name: float(term.weight(step, total_steps)) for name, term in self.terms.items()}

    # --- loss of a window ---

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """Fetch the micro-batches of one optimizer step and count their units on all ranks."""
        if self.state.global_step >= self.state.max_steps:
            # transformers asks whether a run is over only after a step, and a resumed one may be.
            self.control.should_training_stop = True
            return [], None
        batches = list(islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        local = torch.stack([count_batch_units(batch) for batch in batches]).sum(0).to(device)
        counts = self.accelerator.reduce(local, reduction="sum")
        self._window = LossWindow(
            counts=dict(zip(UNITS, counts.unbind(), strict=True)),
            weights=self.term_weights(self.state.global_step),
        )
        return batches, self._window.counts["token"]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the share of one micro-batch in the loss of its window.

        Outside training this is the loss of the model itself, for `evaluate` and `predict`.
        """
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs)
        if self._window is None:
            raise RuntimeError("compute_loss was called outside the training loop; use train()")
        losses = self.step_losses(model, inputs, self.state.global_step)
        # DDP averages gradients over the ranks; the window sums over them.
        return self._window.add(self.terms, losses) * self.accelerator.num_processes

    def _begin_step(self) -> None:
        """Remember what a bad step would have to take back."""
        self._step_start = (RandomState.capture(), capture_hook_state(self.stateful))

    def _end_window(self) -> None:
        """Check and log the window, just before the optimizer step; one device sync."""
        window = self._window
        if window is None:
            return
        names = [name for name in self.terms if name in window.totals]
        sums_on_device = self.accelerator.reduce(window.as_vector(names), reduction="sum")
        extras = torch.stack([*window.counts.values(), self._gradient_norm()])
        values = torch.cat([sums_on_device, extras.to(sums_on_device)]).tolist()
        sums = StepSums.from_vector(names, values[: 2 * len(names)])
        *counts, gradient_norm = values[2 * len(names) :]
        sums.check_counts(self.terms, dict(zip(window.counts, counts, strict=True)))
        bad = [n for n in names if window.weights[n] != 0 and not math.isfinite(sums.totals[n])]
        if bad or not math.isfinite(gradient_norm):
            self._stop_before_update(bad)
        self._loss_log.add(sums, window.weights)

    def _gradient_norm(self) -> Tensor:
        # With fp16 the gradient scaler skips overflowing steps itself.
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.args.fp16 or not gradients:
            return torch.zeros((), device=self.args.device)
        return torch.nn.utils.get_total_norm(gradients).detach().to(self.args.device)

    def _stop_before_update(self, bad: list[str]) -> None:
        """Save the state before this step and stop."""
        step = self.state.global_step
        if self._step_start is None:
            raise RuntimeError("a step ended that never began")
        random_state, hook_state = self._step_start
        random_state.restore()
        try:
            saved = f"the last good state is in {self._write_checkpoint(None, hook_state)}"
        except CheckpointWriteError as error:
            saved = f"and the last good state was lost: {error}"
        if self.is_world_process_zero():
            self.event_log.write("non_finite_loss", step=step, terms=bad, outcome=saved)
        what = f"loss term {', '.join(bad)}" if bad else "the gradient (every loss term is finite)"
        raise NonFiniteLossError(
            f"{what} is not finite at step {step}: stopped before the update, {saved}. Resumed, "
            "this run would stop again; start a new one, from those weights if you like, with a "
            f"lower learning_rate (now {self.args.learning_rate}) or max_grad_norm (now "
            f"{self.args.max_grad_norm})"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms to a training log line."""
        if "loss" in logs and self._window is not None:
            logs.update(self._loss_log.drain())
        super().log(logs, start_time)

    # --- order, optimizer and learning rate ---

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.train_sampler is None:
            return super()._get_train_sampler(train_dataset)
        return WholeStepSampler(self.train_sampler, self.rows_per_step())

    def rows_per_step(self) -> int:
        """Return the rows of one optimizer step over all micro-batches and ranks."""
        rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return int(rows * self.accelerator.num_processes)

    def _begin_epoch(self) -> None:
        # accelerate does not reach the sampler of a resumed, sharded loader.
        if self.train_sampler is not None:
            steps_per_epoch = len(self.train_sampler) // self.rows_per_step()
            self.train_sampler.set_epoch(self.state.global_step // steps_per_epoch)

    def create_optimizer(self, model: PreTrainedModel | None = None) -> torch.optim.Optimizer:
        """Create the optimizer with one parameter group per learning rate and decay."""
        if self.optimizer is None:
            source = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, source)
            groups = build_parameter_groups(
                source.named_parameters(),
                self.args.learning_rate,
                self.args.weight_decay,
                self.args.lr_multipliers,
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Create the cosine with warm-up and floor; other shapes are left to transformers.

        The floor is that of the cosine: a `lr_factor` below 1 goes below it.
        """
        if self.lr_scheduler is None and self.args.lr_scheduler_type == SchedulerType.COSINE:
            warmup_steps = self.args.get_warmup_steps(num_training_steps)
            if self.args.warmup_steps >= num_training_steps and self.is_world_process_zero():
                logger.warning(
                    "warmup_steps is %d and the run has %d steps: the learning rate only reaches "
                    "%.3g of %.3g; lower warmup_steps",
                    warmup_steps,
                    num_training_steps,
                    self.args.learning_rate * num_training_steps / (warmup_steps + 1),
                    self.args.learning_rate,
                )
            cosine, factor = WarmupCosine(warmup_steps, self.args.min_lr_ratio), self.lr_factor
            self.lr_scheduler = LambdaLR(
                optimizer or self.create_optimizer(),
                lambda step: cosine(step, num_training_steps) * factor(step, num_training_steps),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)


class _RowsPerStep:
    """Part of a checkpoint, so that nobody goes on with steps of another size unawares."""

    def __init__(self, trainer: HookedTrainer) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._trainer.rows_per_step()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = state_dict["rows"], self._trainer.rows_per_step()
        if before != now:
            raise CheckpointError(
                f"the checkpoint was written with {before} rows per optimizer step, this run has "
                f"{now} ({self._trainer.accelerator.num_processes} processes); resume with the "
                "same number of processes, batch size and accumulation"
            )


class _StepCallback(TrainerCallback):
    """Calls the trainer back at the right moments of the training loop."""

    def __init__(self, trainer: HookedTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._begin_epoch()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer._end_window()


def _terms_by_name(terms: Sequence[WeightedTerm]) -> dict[str, WeightedTerm]:
    by_name = {weighted.term.name: weighted for weighted in terms}
    if len(by_name) != len(terms) or not terms:
        raise ValueError(
            f"loss terms are {[weighted.term.name for weighted in terms]}: give at least one and "
            "each name once"
        )
    for name, weighted in by_name.items():
        if any(parameter.requires_grad for parameter in weighted.term.parameters()):
            raise ValueError(
                f"loss term {name} has trainable parameters, which no optimizer would see; make "
                "them part of the model"
            )
    return by_name
