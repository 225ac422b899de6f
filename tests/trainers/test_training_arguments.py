"""Defaults that differ from transformers, and the two additions."""

from pathlib import Path

import pytest
from nestling.trainers.training_arguments import NestlingTrainingArguments


def test_defaults(tmp_path: Path) -> None:
    """Nothing is reported anywhere, NaN is not filtered, the optimizer runs on any device."""
    args = NestlingTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert args.report_to == [] and args.optim == "adamw_torch"
    assert args.logging_nan_inf_filter is False and args.dataloader_pin_memory is False
    assert args.remove_unused_columns is False and args.save_total_limit == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 50),
        ({"lr_warmup_ratio": 0.0}, 0),
        ({"lr_warmup_ratio": 0.0101}, 11),
        ({"warmup_steps": 7}, 7),
    ],
)
def test_warmup(tmp_path: Path, options: dict[str, float], expected: int) -> None:
    """The same on both versions of transformers."""
    args = NestlingTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    assert args.get_warmup_steps(1000) == expected


@pytest.mark.parametrize("options", [{"min_lr_ratio": 1.5}, {"lr_warmup_ratio": 1.0}])
def test_ratios_are_checked(tmp_path: Path, options: dict[str, float]) -> None:
    """The error gives the value and the range."""
    with pytest.raises(ValueError, match="must lie in"):
        NestlingTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
