"""The trained tokenizer is deterministic and complete; unusable ones are refused."""

from pathlib import Path

import pytest
from nestling.recipes.data.documents import DataError
from nestling.recipes.data.encoding_pool import text_encoder
from nestling.recipes.data.packing import SpecialTokens
from nestling.recipes.data.tokenizer_training import (
    encode_texts,
    load_tokenizer,
    special_tokens,
    tokenizer_hash,
    train_tokenizer,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def test_training_is_deterministic(make_texts, tokenizer) -> None:
    again = train_tokenizer(make_texts(300), vocab_size=300, max_length=64)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    assert tokenizer_hash(train_tokenizer(make_texts(300), 301, 64)) != tokenizer_hash(tokenizer)


def test_template_and_names(tokenizer) -> None:
    cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    encoded = tokenizer("oak", "lamp")
    assert list(encoded) == ["input_ids", "attention_mask"]
    ids = encoded["input_ids"]
    assert (ids[0], ids[-1], ids.count(sep_id)) == (cls_id, sep_id, 2)
    assert tokenizer.model_max_length == 64
    assert tokenizer.convert_ids_to_tokens(range(5)) == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]


@pytest.mark.parametrize("text", ["naïve café", "日本語 🙂", " two  spaces\n\ttab", "[MASK] x"])
def test_any_text_round_trips(tokenizer, text: str) -> None:
    (ids,) = encode_texts(tokenizer, [text])
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_long_texts_are_not_cut(tokenizer) -> None:
    tokenizer("warm up", truncation=True, max_length=4, padding="max_length")
    (ids,) = encode_texts(tokenizer, ["oak lamp " * 200])
    assert tokenizer.decode(ids) == "oak lamp " * 200


def test_hash_ignores_how_it_was_called(tokenizer) -> None:
    before = tokenizer_hash(tokenizer)
    tokenizer("warm up", truncation=True, max_length=4, padding="max_length")
    assert tokenizer_hash(tokenizer) == before


def test_saved_tokenizer_loads(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    assert special_tokens(loaded) == SpecialTokens((2,), (3,))


def test_small_vocabulary(make_texts) -> None:
    with pytest.raises(DataError, match=r"vocab_size=260 is too small; at least 261"):
        train_tokenizer(make_texts(3), vocab_size=260, max_length=64)


def test_small_corpus_warns(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = train_tokenizer(["ab ab"], vocab_size=4000, max_length=64)
    assert len(tokenizer) < 4000
    assert "fewer than data.vocab_size=4000" in caplog.text


@pytest.mark.parametrize("given", [{}, {"pad_token": "a"}, {"mask_token": "a"}])
def test_missing_tokens_are_named(tmp_path: Path, given: dict[str, str]) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, **given).save_pretrained(tmp_path)
    missing = {"mask_token", "pad_token"} - given.keys()
    with pytest.raises(DataError, match="masked LM needs") as error:
        load_tokenizer(tmp_path)
    assert all(f"no {name.removesuffix('_token')}" in str(error.value) for name in missing)


def test_tokenizer_without_special_tokens_around_text() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    plain = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert special_tokens(plain) == SpecialTokens((), ())


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.tokenizer=.* cannot be loaded"):
        load_tokenizer(tmp_path / "missing")


def test_processes_give_the_same_tokens(make_texts, tokenizer) -> None:
    texts = make_texts(700, seed=5)
    with text_encoder(tokenizer, num_proc=2) as encode:
        assert encode(texts) == encode_texts(tokenizer, texts)


def test_bad_num_proc(tokenizer) -> None:
    with pytest.raises(DataError, match="num_proc=0"), text_encoder(tokenizer, num_proc=0):
        pass
