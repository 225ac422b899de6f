"""What the contract tests are parametrised over: every family, every Auto class it names.

Nothing here knows a family. Batches are made from ``config.vocab_size`` and labels from the name
of the Auto class, so a new row of the table is tested without a new line here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from nestling.modeling.families import FAMILIES, Family, resolve
from torch import Tensor

LANGUAGE_MODELS = ("AutoModelForMaskedLM", "AutoModelForCausalLM")


@dataclass(frozen=True)
class Case:
    """One Auto class of one family, plain or in one of its variants."""

    family: Family
    auto_class: str
    variant: str | None = None

    def __str__(self) -> str:
        name = f"{self.family.model_type}-{self.auto_class}"
        return name if self.variant is None else f"{name}-{self.variant}"

    @property
    def model_class(self) -> Any:
        return resolve(self.family.auto_classes[self.auto_class])

    def config(self, **overrides: Any) -> Any:
        floor = self.family.transformers_floor
        if tuple(map(int, transformers.__version__.split(".")[:2])) < floor:
            pytest.skip(f"{self.family.model_type} needs transformers >= {floor[0]}.{floor[1]}")
        changes = {} if self.variant is None else self.family.variants[self.variant]
        return resolve(self.family.config)(**{**self.family.tiny, **changes, **overrides})

    def model(self, seed: int = 0, **overrides: Any) -> Any:
        """A seeded model in evaluation mode, every parameter moved away from zeros and ones."""
        torch.manual_seed(seed)
        model = self.model_class(self.config(**overrides))
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.1)
        return model.eval()

    def language_model(self) -> Any:
        """What `model` gives, as the language model of the family."""
        auto = next(auto for auto in self.family.auto_classes if auto in LANGUAGE_MODELS)
        return replace(self, auto_class=auto).model()


CASES = [Case(family, auto) for family in FAMILIES.values() for auto in family.auto_classes]
VARIANTS = [
    Case(family, auto, variant)
    for family in FAMILIES.values()
    for auto in family.auto_classes
    if auto in LANGUAGE_MODELS
    for variant in family.variants
]
TRUNKS = [case for case in CASES if case.auto_class == "AutoModel"]
LANGUAGE_CASES = [case for case in CASES if case.auto_class in LANGUAGE_MODELS]
HEADED_CASES = [case for case in CASES if case.auto_class != "AutoModel"]


def token_ids(config: Any, rows: int = 3, tokens: int = 20, seed: int = 0) -> Tensor:
    """Seeded ids from the upper part of the vocabulary, where no special tokens are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        config.vocab_size // 8, config.vocab_size, (rows, tokens), generator=generator
    )


def padded_batch(config: Any, rows: int = 3, tokens: int = 20) -> dict[str, Tensor]:
    """A batch whose second row ends in padding."""
    ids, mask = token_ids(config, rows, tokens), torch.ones(rows, tokens, dtype=torch.long)
    mask[1, tokens - 7 :] = 0
    ids[1, tokens - 7 :] = config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def labels_for(case: Case, config: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Labels in the form the head of the Auto class wants; none for a trunk."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    classes = ids % config.num_labels
    per_token = {
        "AutoModelForMaskedLM": ids,
        "AutoModelForCausalLM": ids,
        "AutoModelForTokenClassification": classes,
    }
    if case.auto_class in per_token:
        return {"labels": per_token[case.auto_class].masked_fill(mask == 0, -100)}
    if case.auto_class == "AutoModelForSequenceClassification":
        return {"labels": classes[:, 0]}
    return {}


def main_output(outputs: Any) -> Tensor:
    """The logits, or the last hidden state of a trunk."""
    return outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]


def compute(model: Any, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
    """The main output without a graph; outputs per token lose those of padding."""
    with torch.no_grad():
        output = main_output(model(**batch, **kwargs))
    mask = batch["attention_mask"]
    return output[mask > 0] if output.shape[:2] == mask.shape else output


def training_loss(case: Case, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The loss of the head; for a trunk a fixed random projection of its output."""
    outputs = model(**batch, **labels_for(case, model.config, batch))
    if "loss" in outputs:
        return outputs["loss"]
    output = main_output(outputs)
    generator = torch.Generator().manual_seed(7)
    return (output * torch.randn(output.shape[-1], generator=generator)).mean()


def ends(config: Any) -> tuple[Any, Any]:
    """The smallest and the largest budget of a configuration."""
    from nestling.configuration.budget import ends_of

    return ends_of(config.budget_list())


def named_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """All parameters and all buffers, persistent or not."""
    yield from model.named_parameters()
    yield from model.named_buffers()
