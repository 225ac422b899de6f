"""The stream: complete, shuffled, and after a resume the same row by row."""

import json
from collections import Counter
from itertools import islice

import pytest
from nestling.recipes.data import streaming
from nestling.recipes.data.documents import DataError, SplitRule
from nestling.recipes.data.row_windows import RowSettings
from nestling.recipes.data.streaming import StreamingPackedRows
from nestling.recipes.data.tokenizer_training import encode_texts, special_tokens
from torch.utils.data import DataLoader


@pytest.fixture
def make_stream(list_source, make_texts, tokenizer):
    texts = make_texts(150)

    def make(packing: bool = True, fraction: float = 0.2, **options) -> StreamingPackedRows:
        settings = RowSettings(special_tokens(tokenizer), max_length=24, packing=packing)
        options = {"seed": 3, "shuffle_buffer": 40, "epochs": 2, **options}
        return StreamingPackedRows(
            list_source(texts), tokenizer, settings, SplitRule(fraction), **options
        )

    make.texts = texts
    return make


def tokens_of(rows) -> Counter:
    return Counter(token for row in rows for token in row["input_ids"] if token > 4)


@pytest.mark.parametrize("packing", [True, False])
def test_each_pass_holds_every_token_of_the_split(make_stream, tokenizer, packing) -> None:
    rows = list(make_stream(packing=packing))
    rule = SplitRule(0.2)
    texts = [text for text in make_stream.texts if rule.split_of(text) == "train"]
    wanted = Counter(token for ids in encode_texts(tokenizer, texts) for token in ids)
    assert tokens_of(rows) == Counter({token: 2 * count for token, count in wanted.items()})
    assert [row["position"] for row in rows] == list(range(len(rows)))
    assert all(len(row["input_ids"]) == len(row["document_ids"]) <= 24 for row in rows)
    if packing:
        assert sum(len(row["input_ids"]) for row in rows) / (24 * len(rows)) > 0.9


def test_order_depends_on_seed_and_epoch(make_stream) -> None:
    def first(**options) -> list[list[int]]:
        return [row["input_ids"] for row in make_stream(packing=False, **options)]

    one = first(epochs=1)
    assert first(epochs=1) == one
    assert first(epochs=1, seed=4) != one
    both = first(epochs=2)
    assert both[: len(one)] == one and both[len(one) :] != one
    assert sorted(both[len(one) :]) == sorted(one)


def test_buffer_of_one_keeps_the_order(make_stream, tokenizer) -> None:
    rows = list(make_stream(packing=False, fraction=0.0, shuffle_buffer=1, epochs=1))
    found = [token for row in rows for token in row["input_ids"] if token > 4]
    wanted = [token for ids in encode_texts(tokenizer, make_stream.texts) for token in ids]
    assert found == wanted


@pytest.mark.parametrize("packing", [True, False])
def test_resume_gives_the_same_rows(make_stream, packing) -> None:
    rows = list(make_stream(packing=packing))
    for stop in (0, 1, 7, len(rows) // 2, len(rows) - 3, len(rows)):
        interrupted = make_stream(packing=packing)
        assert list(islice(interrupted, stop)) == rows[:stop]
        state = json.loads(json.dumps(interrupted.state_dict()))
        resumed = make_stream(packing=packing)
        resumed.load_state_dict(state)
        assert list(resumed) == rows[stop:]


def test_states_of_consumed_rows(make_stream) -> None:
    rows = list(make_stream())
    stream = make_stream()
    loader = iter(DataLoader(stream, batch_size=4, collate_fn=list))
    read_ahead = [next(loader) for _ in range(5)]
    assert read_ahead[2] == rows[8:12]
    resumed = make_stream()
    resumed.load_state_dict(stream.state_at(rows[11]["position"] + 1))
    assert list(resumed) == rows[12:]


def test_a_resumed_stream_can_be_interrupted_again(make_stream) -> None:
    rows = list(make_stream())
    stream = make_stream()
    for stop in range(0, 40, 8):
        assert list(islice(stream, 8)) == rows[stop : stop + 8]
        state = stream.state_dict()
        stream = make_stream()
        stream.load_state_dict(state)


def test_endless_stream(make_stream) -> None:
    count = len(list(make_stream(epochs=1)))
    assert len(list(islice(make_stream(epochs=None), 5 * count))) == 5 * count


def test_states_that_are_gone(make_stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEPT_STATES", 4)
    stream = make_stream()
    list(islice(stream, 10))
    with pytest.raises(DataError, match=r"no stream state for position 2; kept are 7 to 10"):
        stream.state_at(2)


def test_damaged_state(make_stream) -> None:
    with pytest.raises(DataError, match="is damaged"):
        make_stream().load_state_dict({"position": 3})


def test_no_text_for_the_split(make_stream) -> None:
    with pytest.raises(DataError, match="no text for the split 'validation'"):
        next(iter(make_stream(fraction=0.0, split="validation", epochs=None)))


def test_bad_settings(make_stream) -> None:
    with pytest.raises(DataError, match="shuffle_buffer=0"):
        make_stream(shuffle_buffer=0)
    with pytest.raises(DataError, match="epochs=0"):
        make_stream(epochs=0)


def test_loader_workers_are_refused(make_stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "get_worker_info", lambda: object())
    with pytest.raises(DataError, match="dataloader_num_workers=0"):
        next(iter(make_stream()))
