"""A transformers Trainer whose checkpoints are atomic, verified and carry hook state."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, TrainOutput

from .checkpoint_files import (
    CheckpointError,
    CheckpointWriteError,
    last_complete_checkpoint,
    partial_path,
    publish_directory,
    remove_leftovers,
    rotate_checkpoints,
    start_directory,
    verify_checkpoint,
    write_error,
)
from .hook_state import (
    CapturedHookState,
    Stateful,
    capture_hook_state,
    load_hook_state,
    save_hook_state,
)

# File names that transformers uses in a checkpoint.
_OPTIMIZER_NAME = "optimizer.pt"
_TRAINER_STATE_NAME = "trainer_state.json"


class CheckpointingTrainer(Trainer):
    """Saves and resumes; `HookedTrainer` adds the losses.

    Args:
        stateful: Hooks whose state belongs to a checkpoint, by name.
        complete_checkpoint: Called with the folder of a checkpoint before it is published, to add
            files (the code that makes it loadable elsewhere, for example).
        kwargs: Arguments of `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        stateful: Mapping[str, Stateful] | None = None,
        complete_checkpoint: Callable[[Path], object] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.complete_checkpoint = complete_checkpoint
        self.stateful: dict[str, Stateful] = dict(stateful or {})
        self._checkpoint_limit = self.args.save_total_limit

    # --- resuming ---

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, from a checkpoint if asked.

        Args:
            resume_from_checkpoint: A checkpoint folder, or True for the newest one in
                `args.output_dir`.
            trial: See `transformers.Trainer.train`.
            ignore_keys_for_eval: Likewise.

        Returns:
            Steps, loss and metrics of the run.

        Raises:
            CheckpointError: If the checkpoint is missing, damaged or of another model.
        """
        output_dir = Path(str(self.args.output_dir))
        if self.args.should_save:
            remove_leftovers(output_dir)
        self.accelerator.wait_for_everyone()
        checkpoint = self._find_checkpoint(resume_from_checkpoint, output_dir)
        if checkpoint is not None:
            verify_checkpoint(checkpoint)
        resume = None if checkpoint is None else str(checkpoint)
        # With a limit of one transformers ends by deleting every checkpoint but the best, the
        # newest too, and then there is nothing to resume from. So it sees no limit.
        self._checkpoint_limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super().train(resume, trial, ignore_keys_for_eval)
        finally:
            self.args.save_total_limit = self._checkpoint_limit

    @staticmethod
    def _find_checkpoint(
        requested: str | os.PathLike[str] | bool | None, output_dir: Path
    ) -> Path | None:
        if requested is None or requested is False:
            return None
        found = last_complete_checkpoint(output_dir) if requested is True else Path(requested)
        if found is None or not found.is_dir():
            where = output_dir if found is None else found
            raise CheckpointError(
                f"no complete checkpoint in {where}: check the path or start without resuming"
            )
        return found

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except RuntimeError as error:
            raise _mismatch(resume_from_checkpoint, error) from error

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn of missing weights, but not of one that is tied to another and never saved."""
        model: Any = self.model
        is_tied = vars(model.config).get("tie_word_embeddings", True)
        tied = set(model._tied_weights_keys or ()) if is_tied else set()
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if not sharded and not (Path(checkpoint) / _OPTIMIZER_NAME).is_file():
            raise CheckpointError(
                f"{checkpoint} holds no {_OPTIMIZER_NAME} (save_only_model?): an exact resume is "
                "impossible; load its weights as a model and start a new run"
            )
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (RuntimeError, ValueError, KeyError) as error:
            raise _mismatch(checkpoint, error) from error
        load_hook_state(Path(checkpoint), self.stateful)

    # --- saving ---

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._write_checkpoint(trial, capture_hook_state(self.stateful))

    def _write_checkpoint(self, trial: Any, hook_state: CapturedHookState) -> Path:
        """Write the checkpoint of the current step; it appears only when complete.

        Returns:
            The checkpoint folder.

        Raises:
            CheckpointWriteError: On all ranks, if writing failed on any of them.
        """
        self.store_flos()
        run_dir = Path(self._get_output_dir(trial=trial))
        target = run_dir / f"checkpoint-{self.state.global_step}"
        self._note_best_checkpoint(run_dir, target)
        is_writer = self.args.should_save
        self._on_all_ranks(target, lambda: start_directory(target) if is_writer else None)
        self._on_all_ranks(target, lambda: self._write_files(partial_path(target), hook_state))
        self._on_all_ranks(target, lambda: publish_directory(target) if is_writer else None)
        if is_writer:
            rotate_checkpoints(
                run_dir, self._checkpoint_limit, self.state.best_model_checkpoint
            )
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        return target

    def _on_all_ranks(self, target: Path, action: Callable[[], object]) -> None:
        """Run one part of a save; if it fails on one rank, raise on all instead of hanging."""
        error: Exception | None = None
        try:
            action()
        except Exception as caught:
            error = caught
        failed = torch.tensor([float(error is not None)], device=self.args.device)
        if self.accelerator.reduce(failed, reduction="sum").item() == 0:
            return
        if self.args.should_save:
            shutil.rmtree(partial_path(target), ignore_errors=True)
        if error is None:
            raise CheckpointWriteError(f"could not write {target}: another process failed")
        raise write_error(target, error) from error

    def _write_files(self, folder: Path, hook_state: CapturedHookState) -> None:
        self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        if self.args.should_save:
            if self.complete_checkpoint is not None:
                self.complete_checkpoint(folder)
            if not self.args.save_only_model:
                save_hook_state(folder, hook_state)
            self._collect_callback_states()
            self.state.save_to_json(str(folder / _TRAINER_STATE_NAME))

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Save whenever an evaluation is the best so far, whatever `save_steps` says.

        Otherwise transformers would forget the best model between two saves.
        """
        is_best: bool = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.save_strategy == SaveStrategy.STEPS:
            self.control.should_save = True
        return is_best

    def _note_best_checkpoint(self, run_dir: Path, target: Path) -> None:
        if not self.state.best_global_step:
            return
        best = run_dir / f"checkpoint-{self.state.best_global_step}"
        if best == target or best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _collect_callback_states(self) -> None:
        states: dict[str, list[Any]] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        # transformers declares a list of callbacks here and keeps a dict.
        saved = cast(dict[str, Any], self.state.stateful_callbacks)
        saved.update({name: v[0] if len(v) == 1 else v for name, v in states.items()})


def _mismatch(checkpoint: str, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return CheckpointError(
        f"{checkpoint} does not fit this model: {' '.join(lines[:2])}; resume with the recipe "
        "that wrote the checkpoint"
    )
