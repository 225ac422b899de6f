"""Writes the progress of a Trainer run to its event file, from rank 0 only."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .event_log import EventLog
from .loss_term import WeightedTerm
from .training_phases import TrainingPhases


class EventCallback(TrainerCallback):
    """Turns Trainer callbacks into events.

    Args:
        event_log: The event file.
        terms: Loss terms by name; a batch-coupled one is declared as such in `train_start`.
    """

    def __init__(self, event_log: EventLog, terms: Mapping[str, WeightedTerm]) -> None:
        self.event_log = event_log
        self.terms = [
            {
                "name": name,
                "unit": weighted.term.unit,
                "batch_coupled": weighted.term.batch_coupled,
                "weight": repr(weighted.weight),
            }
            for name, weighted in terms.items()
        ]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write `train_start`, or `resume` where steps were already taken."""
        if not state.is_world_process_zero:
            return
        if state.global_step > 0:
            checkpoint = f"checkpoint-{state.global_step}"
            self.event_log.write("resume", step=state.global_step, checkpoint=checkpoint)
            return
        self.event_log.write(
            "train_start",
            total_steps=state.max_steps,
            rows_per_micro_batch=args.per_device_train_batch_size,
            accumulation_steps=args.gradient_accumulation_steps,
            world_size=args.world_size,
            terms=self.terms,
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write `log`."""
        if state.is_world_process_zero:
            self.event_log.write("log", step=state.global_step, **(logs or {}))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write `checkpoint`."""
        if state.is_world_process_zero:
            path = f"checkpoint-{state.global_step}"
            self.event_log.write("checkpoint", step=state.global_step, path=path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write `train_end`."""
        if state.is_world_process_zero:
            self.event_log.write("train_end", step=state.global_step)


class PhaseCallback(TrainerCallback):
    """Writes `phase` where a phase of training begins, or where a run resumes inside one.

    Args:
        event_log: The event file.
        phases: The phases of the run.
    """

    def __init__(self, event_log: EventLog, phases: TrainingPhases) -> None:
        self.event_log = event_log
        self.phases = phases
        self._current: str | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the name of a phase that has just begun."""
        name = self.phases.phase_name(state.global_step, state.max_steps)
        if name != self._current and state.is_world_process_zero:
            self.event_log.write("phase", step=state.global_step, name=name)
        self._current = name
