"""Inputs that do not fit are refused instead of computing something else."""

import pytest
import torch
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.configuration.delta_budget import DeltaBudget
from nestling.modeling.delta_encoder_heads import (
    DeltaEncoderForMaskedLM,
    DeltaEncoderForTokenClassification,
)
from nestling.modeling.families import FAMILIES

CONFIG = FAMILIES["delta_encoder"].tiny
IDS = torch.arange(4, 24).view(2, 10)


@pytest.mark.parametrize("shape", [(2, 5), (1, 10), (20,)])
def test_labels_must_lie_on_the_tokens(shape: tuple[int, ...]) -> None:
    labels = torch.zeros(shape, dtype=torch.long)
    config = DeltaEncoderConfig(**CONFIG)
    masked_lm = DeltaEncoderForMaskedLM(config)
    for call in (
        lambda: masked_lm(IDS, labels=labels),
        lambda: masked_lm(IDS, labels=labels, budgets=(DeltaBudget.full(config),)),
        lambda: DeltaEncoderForTokenClassification(config)(IDS, labels=labels),
    ):
        with pytest.raises(ValueError, match=r"labels have shape .*, the tokens \(2, 10\)"):
            call()


def test_embeddings_of_another_width_are_refused() -> None:
    model = DeltaEncoderForMaskedLM(DeltaEncoderConfig(**CONFIG))
    with pytest.raises(ValueError, match="inputs_embeds have 16 channels; give all 32"):
        model(inputs_embeds=torch.zeros(2, 10, 16))


@pytest.mark.parametrize("auto_class", list(FAMILIES["delta_encoder"].auto_classes))
def test_tuples_on_request_by_the_configuration(auto_class: str) -> None:
    from nestling.modeling.families import resolve

    model = resolve(FAMILIES["delta_encoder"].auto_classes[auto_class])(
        DeltaEncoderConfig(**CONFIG, return_dict=False)
    )
    assert isinstance(model(IDS), tuple)


def test_a_checkpoint_without_head_is_refused(tmp_path: object) -> None:
    from nestling.modeling.modernbert_weights import load_modernbert
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="masked-LM head"):
        load_modernbert(str(tmp_path))
