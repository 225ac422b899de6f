"""Masks depend on seed and position only, and on nothing else in the batch."""

import numpy as np
import pytest
import torch
from nestling.trainers.masked_lm_collator import IGNORED, MaskedLMCollator

PAD, CLS, SEP, MASK, VOCAB = 0, 2, 3, 4, 100
SPECIAL = (PAD, 1, CLS, SEP, MASK)


def make_collator(**options) -> MaskedLMCollator:
    settings = {
        "mask_token_id": MASK,
        "pad_token_id": PAD,
        "vocab_size": VOCAB,
        "special_token_ids": SPECIAL,
        **options,
    }
    return MaskedLMCollator(**settings)


def make_example(position: int, words: int = 30) -> dict:
    generator = np.random.default_rng(position)
    first = generator.integers(5, VOCAB, words).tolist()
    return {
        "input_ids": [CLS, *first, SEP, CLS, 7, 8, SEP],
        "document_ids": [1] * (words + 2) + [2] * 4,
        "position": position,
    }


def test_shapes_and_padding() -> None:
    batch = make_collator()([make_example(0, 10), make_example(1, 20)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (2, 26),
        "attention_mask": (2, 26),
        "labels": (2, 26),
    }
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["attention_mask"][0].tolist() == [1] * 12 + [2] * 4 + [0] * 10
    assert (batch["input_ids"][0, 16:] == PAD).all() and (batch["labels"][0, 16:] == IGNORED).all()


@pytest.mark.parametrize("probability", [0.01, 0.15, 0.3, 0.9])
@pytest.mark.parametrize("words", [1, 2, 9, 30, 200])
def test_count_is_fixed_by_the_length(probability: float, words: int) -> None:
    collator = make_collator(mlm_probability=probability)
    labels = collator([make_example(position, words) for position in range(20)])["labels"]
    expected = max(1, round(probability * (words + 2)))
    assert ((labels != IGNORED).sum(1) == expected).all()


def test_special_tokens_are_never_predicted() -> None:
    examples = [make_example(position) for position in range(50)]
    batch = make_collator(mlm_probability=0.99)(examples)
    original = torch.tensor([example["input_ids"] for example in examples])
    special = torch.isin(original, torch.tensor(SPECIAL))
    assert (batch["labels"][special] == IGNORED).all()
    assert (batch["input_ids"][special] == original[special]).all()
    predicted = batch["labels"] != IGNORED
    assert (batch["labels"][predicted] == original[predicted]).all()
    assert (batch["input_ids"][~predicted] == original[~predicted]).all()


def test_80_10_10() -> None:
    examples = [make_example(position, 100) for position in range(200)]
    batch = make_collator()(examples)
    predicted = batch["labels"] != IGNORED
    inputs, labels = batch["input_ids"][predicted], batch["labels"][predicted]
    total = len(labels)
    masked, kept = int((inputs == MASK).sum()), int((inputs == labels).sum())
    assert masked / total == pytest.approx(0.8, abs=0.02)
    assert kept / total == pytest.approx(0.1, abs=0.02)
    drawn = inputs[(inputs != MASK) & (inputs != labels)]
    assert len(drawn) / total == pytest.approx(0.1, abs=0.02)
    assert not torch.isin(drawn, torch.tensor(SPECIAL)).any()
    assert len(drawn.unique()) > 80


def test_masks_depend_on_seed_and_position_only() -> None:
    examples = [make_example(position) for position in range(6)]
    batch = make_collator()(examples)
    mixed = make_collator(pad_to_length=64)([examples[4], make_example(9, 50), examples[1]])
    for row, position in ((0, 4), (2, 1)):
        assert torch.equal(mixed["input_ids"][row, :36], batch["input_ids"][position])
        assert torch.equal(mixed["labels"][row, :36], batch["labels"][position])
    again = {**examples[4], "position": 4 + 6}
    assert not torch.equal(make_collator()([again])["labels"][0], batch["labels"][4])
    assert not torch.equal(make_collator(seed=1)(examples)["labels"], batch["labels"])


def test_no_global_random_state() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    make_collator()([make_example(0)])
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_static_shape() -> None:
    collator = make_collator(pad_to_length=64)
    assert collator([make_example(0, 3)])["input_ids"].shape == (1, 64)
    with pytest.raises(ValueError, match=r"a row has 76 tokens, but pad_to_length is 64"):
        collator([make_example(0, 70)])


def test_row_of_special_tokens_has_no_labels() -> None:
    example = {"input_ids": [CLS, SEP], "document_ids": [1, 1], "position": 0}
    batch = make_collator()([example])
    assert (batch["labels"] == IGNORED).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlm_probability": 0.0}, r"outside \(0, 1\)"),
        ({"mlm_probability": 1.0}, r"outside \(0, 1\)"),
        ({"seed": -1}, "negative"),
        ({"vocab_size": 5}, "leaves no token"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_collator(**options)


def test_missing_position() -> None:
    with pytest.raises(ValueError, match="PositionedRows"):
        make_collator()([{"input_ids": [5], "document_ids": [1]}])


class TokenizerStub:
    mask_token_id: int | None = MASK
    pad_token_id = PAD
    all_special_ids = list(SPECIAL)

    def __len__(self) -> int:
        return VOCAB


def test_from_tokenizer() -> None:
    example = make_example(3)
    collator = MaskedLMCollator.from_tokenizer(TokenizerStub(), seed=5)
    assert torch.equal(collator([example])["labels"], make_collator(seed=5)([example])["labels"])
    without_mask = TokenizerStub()
    without_mask.mask_token_id = None
    with pytest.raises(ValueError, match="no mask or no pad token"):
        MaskedLMCollator.from_tokenizer(without_mask)
