"""Fine-tuning any head with the stock Trainer does not depend on gradient accumulation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.modeling.families import FAMILIES, resolve
from transformers import Trainer, TrainingArguments

FAMILY = FAMILIES["delta_encoder"]


def gradient(auto_class: str, rows: list[dict[str, Any]], size: int, path: Path) -> torch.Tensor:
    """The gradient of one optimizer step over all rows, in micro-batches of ``size``."""
    torch.manual_seed(0)
    config = resolve(FAMILY.config)(**FAMILY.tiny)
    model = resolve(FAMILY.auto_classes[auto_class])(config)
    arguments = TrainingArguments(
        output_dir=str(path), per_device_train_batch_size=size, use_cpu=True, max_steps=1,
        gradient_accumulation_steps=len(rows) // size, report_to="none", learning_rate=1.0,
        optim="sgd", max_grad_norm=0.0, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return before - torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "auto_class", [name for name in FAMILY.auto_classes if name != "AutoModel"]
)
def test_one_step_is_the_same_in_any_micro_batches(auto_class: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(8):
        ids = torch.randint(4, 96, (10,), generator=generator)
        labels = torch.randint(0, 2, (10,), generator=generator)
        labels[: number + 1] = -100  # every row has another number of labels
        if auto_class == "AutoModelForSequenceClassification":
            labels = labels[-1]
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    whole = gradient(auto_class, rows, 8, tmp_path)
    assert whole.abs().max() > 1e-4
    torch.testing.assert_close(gradient(auto_class, rows, 2, tmp_path), whole, rtol=1e-3, atol=1e-5)
