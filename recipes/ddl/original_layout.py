"""Writes a finished run as the original tool lays it out, beside our own files.

    RUN/manifest.json                 variant, configuration, parameters, stem of the weights
    RUN/model.safetensors             the weights of RUN/model (a hard link where possible)
    RUN/training_report.json          what training measured
    RUN/optimizer_state.safetensors   the original has a pickle-free binary of its own here
    RUN/best_validation/              the same files for the evaluation with the lowest loss

Torch is needed only for the optimizer's state.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli_errors import DataError
from ..evaluation_file import write_json
from ..whole_file import write_whole
from .original_config import TRAINING_KEYS, VARIANT_ENUMS, rust_config, variant_slug
from .original_report import (
    BEST_VALIDATION,
    COMPARISON,
    MANIFEST,
    OPTIMIZER_STATE,
    REPORT,
    WEIGHTS_STEM,
    TrainingReport,
)
from .original_spectrum import TrainingSpectralSnapshot, snapshot_of

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = WEIGHTS_STEM + ".safetensors"


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation measured.

    Attributes:
        step: Optimizer steps taken.
        train: Metrics on training batches, at least ``loss``; None where they were not measured.
        validation: Metrics on the held-out data, at least ``loss``.
        train_layers: ``layers`` of the `spectral` event on training batches.
        validation_layers: The same on held-out data.
    """

    step: int
    train: Mapping[str, float] | None = None
    validation: Mapping[str, float] | None = None
    train_layers: Sequence[Mapping[str, Any]] | None = None
    validation_layers: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class FinishedRun:
    """A finished run in our terms.

    Attributes:
        variant: Slug.
        config: ``DdlConfig.to_dict()``.
        training: The original's ten training keys (`TRAINING_KEYS`).
        num_params: Parameters, tied ones once.
        steps_completed: Optimizer steps taken.
        train_dataset: Summary of the training data, such as sequences and tokens.
        validation_dataset: Summary of the held-out data, if there is any.
        log: Training lines in order, each with ``step`` and ``loss``, and ``learning_rate`` where
            it was logged.
        evaluations: In order of steps; the first is before training, the last at its end.
    """

    variant: str
    config: Mapping[str, Any]
    training: Mapping[str, Any]
    num_params: int
    steps_completed: int
    train_dataset: Mapping[str, Any]
    validation_dataset: Mapping[str, Any] | None
    log: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Evaluation]


def write_original_layout(
    run_dir: Path,
    run: FinishedRun,
    model_dir: Path | None = None,
    best_model_dir: Path | None = None,
    optimizer_state: "Mapping[str, Tensor] | None" = None,
) -> TrainingReport:
    """Write the files of one run.

    Args:
        run_dir: The run's folder.
        run: What to write.
        model_dir: Folder with ``model.safetensors``; None means run_dir/model.
        best_model_dir: The model of the best evaluation; None writes no best_validation.
        optimizer_state: Name -> tensor; None writes no optimizer_state.safetensors.

    Returns:
        The report as it was written, for `write_training_comparison`.

    Raises:
        DataError: If a needed number is missing or not finite, or the weights are not one file.
    """
    report = training_report(run, has_best_model=best_model_dir is not None)
    manifest = {
        "variant": report["variant"],
        "config": report["config"],
        "num_params": report["num_params"],
        "weights_stem": WEIGHTS_STEM,
    }
    folders = [(run_dir, model_dir or run_dir / "model")]
    if best_model_dir is not None:
        folders.append((run_dir / BEST_VALIDATION, best_model_dir))
    for folder, source in folders:
        _place_weights(source / WEIGHTS, folder / WEIGHTS)
        write_json(folder / MANIFEST, manifest)
        write_json(folder / REPORT, report)
    if optimizer_state is not None:
        _write_tensors(run_dir / OPTIMIZER_STATE, optimizer_state)
    return report


def write_training_comparison(out_dir: Path, reports: Sequence[TrainingReport]) -> Path:
    """Write the reports of a sweep as OUT_DIR/training_comparison.json.

    They are not ranked: one run a variant says nothing about the variants, `nestling compare` does.

    Raises:
        DataError: If there are none.
    """
    if not reports:
        raise DataError(f"{out_dir / COMPARISON} needs at least one report, got none")
    written = [{**one, "variant": VARIANT_ENUMS[variant_slug(one["variant"])]} for one in reports]
    write_json(out_dir / COMPARISON, {"reports": written})
    return out_dir / COMPARISON


def training_report(run: FinishedRun, has_best_model: bool = False) -> TrainingReport:
    """Return the original's report of a run.

    The best evaluation is the one with the lowest validation loss, the first of equal ones. Where
    the first or last evaluation has no training metrics, the first or last logged loss stands in:
    a mean over the steps of that line, not a measurement of one state.

    Args:
        run: What to report.
        has_best_model: Whether the trainer kept the best model. It never keeps that of step 0, so
            the report does not name it either.

    Raises:
        DataError: If a needed number is missing or not finite.
    """
    slug = variant_slug(run.variant)
    missing = [name for name in TRAINING_KEYS if name not in run.training]
    if missing:
        raise DataError(
            f"training settings lack {', '.join(missing)}; needed: {', '.join(TRAINING_KEYS)}"
        )
    if not run.evaluations:
        raise DataError("a report needs an evaluation, got none; evaluate at the end at least")
    first, last = run.evaluations[0], run.evaluations[-1]
    validated = [
        (_metrics(one.validation, f"validation at step {one.step}"), one)
        for one in run.evaluations
        if one.validation is not None
    ]
    eligible = [pair for pair in validated if pair[1].step > 0 or not has_best_model]
    best_metrics, best = min(eligible, key=lambda pair: pair[0]["loss"], default=(None, None))
    d_value = int(run.config["d_value"])

    def spectrum(layers: Sequence[Mapping[str, Any]] | None) -> TrainingSpectralSnapshot | None:
        return snapshot_of(layers, d_value) if layers else None

    return {
        "variant": VARIANT_ENUMS[slug],
        "config": rust_config(run.config),
        "training": {name: run.training[name] for name in TRAINING_KEYS},
        "num_params": run.num_params,
        "train_dataset": dict(run.train_dataset),
        "validation_dataset": _plain(run.validation_dataset),
        "steps_completed": run.steps_completed,
        "initial_train": _metrics(first.train or _logged(run.log, 0), "initial_train"),
        "initial_validation": _optional(first.validation, "initial_validation"),
        "final_train": _metrics(last.train or _logged(run.log, -1), "final_train"),
        "final_validation": _optional(last.validation, "final_validation"),
        "best_validation": best_metrics,
        "initial_train_spectral": spectrum(first.train_layers),
        "initial_validation_spectral": spectrum(first.validation_layers),
        "final_train_spectral": spectrum(last.train_layers),
        "final_validation_spectral": spectrum(last.validation_layers),
        "best_validation_spectral": spectrum(best.validation_layers if best else None),
        "best_validation_step": best.step if best else None,
        "history": _history(run, d_value),
    }


def _history(run: FinishedRun, d_value: int) -> list[dict[str, Any]]:
    """Return a line for every step that was logged or evaluated."""
    lines: dict[int, dict[str, Any]] = {}
    for logged in run.log:
        line = lines.setdefault(int(logged["step"]), {"step": int(logged["step"])})
        line["train_loss"] = logged.get("loss")
        line["learning_rate"] = logged.get("learning_rate")
    for one in run.evaluations:
        line = lines.setdefault(one.step, {"step": one.step})
        if one.validation is not None:
            line["validation_loss"] = one.validation["loss"]
        layers = one.validation_layers or one.train_layers
        if layers:
            line["spectral"] = snapshot_of(layers, d_value)
    return [lines[step] for step in sorted(lines)]


def _logged(log: Sequence[Mapping[str, Any]], index: int) -> Mapping[str, Any]:
    if not log:
        raise DataError(
            "a report needs the training loss, but no evaluation has train metrics and the log "
            "is empty; log at least once"
        )
    return {"loss": log[index].get("loss")}


def _metrics(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    loss = metrics.get("loss")
    if not isinstance(loss, int | float) or not math.isfinite(loss):
        raise DataError(
            f"{name}.loss is {loss!r}, not a finite number; lower the learning rate and train again"
        )
    # Beyond the range of a float a perplexity says no more than its loss.
    perplexity = math.exp(loss) if loss < 700 else None
    return {"perplexity": perplexity, **metrics}


def _optional(metrics: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    return None if metrics is None else _metrics(metrics, name)


def _plain(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if summary is None else dict(summary)


def _place_weights(source: Path, target: Path) -> None:
    if not source.is_file():
        raise DataError(
            f"{source} does not exist; save the model as one safetensors file (a larger "
            "max_shard_size) and write the layout again"
        )

    def link(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, temporary)

    write_whole(target, link)


def _write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    from safetensors.torch import save_file

    # A copy each: safetensors refuses tensors that share memory.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: save_file(plain, temporary))
