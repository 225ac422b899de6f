"""Packed rows straight from a source, without a prepared folder, with exact resume.

source -> windows of `shuffle_buffer` documents, permuted by (seed, epoch, window) -> tokens ->
greedy packer with a few open rows. The order is a pure function of seed and numbers, so a state is
small: where the current window starts, how far it is read, and the open rows. Shuffled documents
need not be stored, they are read again.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from .documents import DataError, DocumentSource, Split, SplitRule
from .packing import PackedRow
from .row_windows import RowSettings
from .tokenizer_training import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OPEN_ROWS = 16  # rows that wait for a fitting piece; more fill better and lengthen the state
ENCODED_AT_ONCE = 64
KEPT_STATES = 1024


class StreamRow(TypedDict):
    """One row of the stream; `position` counts the rows since the start of the training."""

    input_ids: list[int]
    document_ids: list[int]
    position: int


@dataclass(frozen=True, slots=True)
class StreamState:
    """Where the stream is. The row at `position` is the next one.

    Attributes:
        position: Rows given so far.
        epoch: Passes over the source that are complete.
        window: Number of the current window in this pass.
        source_row: Source row at which the current window starts.
        document: Documents of the shuffled window that are used up.
        piece: Pieces of the next document that are used up.
        open_rows: Pieces in the rows that are not full.
    """

    position: int = 0
    epoch: int = 0
    window: int = 0
    source_row: int = 0
    document: int = 0
    piece: int = 0
    open_rows: tuple[tuple[tuple[int, ...], ...], ...] = ()


class StreamingPackedRows(IterableDataset[StreamRow]):
    """Rows of one split of a source, shuffled in windows and packed greedily.

    Each `iter()` starts at the loaded state (or the beginning), so load the state before the
    trainer builds its loader, and do not let the trainer skip batches
    (`ignore_data_skip=True`). Runs in the main process only (`dataloader_num_workers=0`): a state
    inside a worker could not be saved.

    Args:
        source: Documents.
        tokenizer: Tokenizer.
        settings: Row length, special tokens, packing.
        rule: Split rule.
        split: Which side of it to give.
        seed: Seed of the shuffling.
        shuffle_buffer: Documents that are shuffled together; 1 keeps the order.
        epochs: Passes over the source; None repeats for ever.

    Raises:
        DataError: If `shuffle_buffer` or `epochs` is below 1.
    """

    def __init__(
        self,
        source: DocumentSource,
        tokenizer: "PreTrainedTokenizerFast",
        settings: RowSettings,
        rule: SplitRule,
        split: Split = "train",
        *,
        seed: int = 0,
        shuffle_buffer: int = 10_000,
        epochs: int | None = None,
    ) -> None:
        """Check the settings; nothing is read yet."""
        if shuffle_buffer < 1:
            raise DataError(f"data.shuffle_buffer={shuffle_buffer} must be at least 1 (no shuffle)")
        if epochs is not None and epochs < 1:
            raise DataError(f"epochs={epochs} must be at least 1, or None to repeat for ever")
        settings.special.room(settings.max_length)
        self.source = source
        self.tokenizer = tokenizer
        self.settings = settings
        self.rule = rule
        self.split = split
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.epochs = epochs
        self.kept_states = KEPT_STATES
        self._first = StreamState()
        self._states: deque[StreamState] = deque([self._first], maxlen=self.kept_states)

    def keep_states(self, rows_ahead: int) -> None:
        """Keep enough states for a reader that fetches so many rows before it uses them."""
        self.kept_states = max(KEPT_STATES, 2 * rows_ahead + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last row that was given; JSON can hold it."""
        return asdict(self._states[-1])

    def state_at(self, position: int) -> dict[str, Any]:
        """Return the state in which the row at `position` is the next one.

        A loader reads ahead of the trainer. To resume after the last row that was trained on,
        save `state_at(that row's position + 1)`.

        Raises:
            DataError: If that is not among the last `KEPT_STATES` rows.
        """
        oldest, newest = self._states[0].position, self._states[-1].position
        if not oldest <= position <= newest:
            raise DataError(
                f"no stream state for position {position}; kept are {oldest} to {newest}: save "
                f"more often, or start from the position that the trainer has reached"
            )
        return asdict(self._states[position - oldest])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; it must come from a stream with equal settings.

        Raises:
            DataError: If the state lacks an entry.
        """
        try:
            rows = tuple(tuple(tuple(piece) for piece in row) for row in state["open_rows"])
            self._first = StreamState(**{**state, "open_rows": rows})
        except (KeyError, TypeError) as error:
            raise DataError(
                f"the state of the data stream is damaged ({error!r}); take an older checkpoint"
            ) from error
        self._states = deque([self._first], maxlen=self.kept_states)

    def __iter__(self) -> Iterator[StreamRow]:
        """Yield rows from the loaded state on.

        Raises:
            DataError: In a loader's worker, or when the source has no text for this split.
        """
        if get_worker_info() is not None:
            raise DataError(
                "a stream cannot run in loader workers; set training.dataloader_num_workers=0"
            )
        self._states = deque([self._first], maxlen=self.kept_states)
        position = self._first.position
        for row, state in self._rows(self._first):
            # The state goes first: a reader may stop right after it has the row.
            self._states.append(state)
            yield StreamRow(
                input_ids=row.input_ids, document_ids=row.document_ids, position=position
            )
            position = state.position

    def _rows(self, start: StreamState) -> Iterator[tuple[PackedRow, StreamState]]:
        """Yield each row with the state after it."""
        open_rows = [list(row) for row in start.open_rows]
        position = start.position
        limit = self.settings.max_length
        cursor = start
        for cursor, piece in self._pieces(start):
            fitting = [row for row in open_rows if _size(row) + len(piece) <= limit]
            if self.settings.packing and fitting:
                # Best fit: the fullest row that still has room.
                max(fitting, key=_size).append(piece)
                continue
            open_rows.append([piece])
            if len(open_rows) > (OPEN_ROWS if self.settings.packing else 0):
                row = open_rows.pop(max(range(len(open_rows)), key=lambda i: _size(open_rows[i])))
                position += 1
                yield PackedRow.join(row), _state(cursor, position, open_rows)
        end = StreamState(epoch=self.epochs or 0)
        while open_rows:
            row = open_rows.pop(0)
            position += 1
            yield PackedRow.join(row), _state(end, position, open_rows)

    def _pieces(self, start: StreamState) -> Iterator[tuple[StreamState, tuple[int, ...]]]:
        """Yield each piece with the cursor after it (position and open rows are not set)."""
        cursor = start
        while self.epochs is None or cursor.epoch < self.epochs:
            has_text = cursor != start
            for after, piece in self._pieces_of_pass(cursor):
                has_text = True
                yield after, piece
            if not has_text and start == StreamState():
                raise DataError(
                    f"the source has no text for the split '{self.split}'; give other data or "
                    f"another data.validation_fraction"
                )
            cursor = StreamState(epoch=cursor.epoch + 1)

    def _pieces_of_pass(self, start: StreamState) -> Iterator[tuple[StreamState, tuple[int, ...]]]:
        documents = self.source.documents(start.source_row)
        cursor = start
        while window := list(islice(documents, self.shuffle_buffer)):
            texts = [
                document.text
                for document in window
                if document.text.strip() and self.rule.split_of(document.group) == self.split
            ]
            yield from self._pieces_of_window(texts, cursor)
            cursor = StreamState(
                epoch=cursor.epoch,
                window=cursor.window + 1,
                source_row=cursor.source_row + len(window),
            )

    def _pieces_of_window(
        self, texts: list[str], cursor: StreamState
    ) -> Iterator[tuple[StreamState, tuple[int, ...]]]:
        key = np.random.SeedSequence([self.seed, cursor.epoch, cursor.window])
        order = np.random.Generator(np.random.Philox(key)).permutation(len(texts)).tolist()
        if self.shuffle_buffer == 1:
            order = list(range(len(texts)))
        remaining = order[cursor.document :]
        batches = (
            encode_texts(self.tokenizer, [texts[i] for i in remaining[at : at + ENCODED_AT_ONCE]])
            for at in range(0, len(remaining), ENCODED_AT_ONCE)
        )
        skipped = cursor.piece
        for number, tokens in enumerate(chain.from_iterable(batches), cursor.document):
            pieces = list(self.settings.special.pieces(tokens, self.settings.max_length))
            for index, piece in enumerate(pieces[skipped:], skipped + 1):
                is_last = index == len(pieces)
                after = StreamState(
                    epoch=cursor.epoch,
                    window=cursor.window,
                    source_row=cursor.source_row,
                    document=number + 1 if is_last else number,
                    piece=0 if is_last else index,
                )
                yield after, tuple(piece)
            skipped = 0


def _size(row: list[tuple[int, ...]]) -> int:
    return sum(len(piece) for piece in row)


def _state(
    cursor: StreamState, position: int, open_rows: list[list[tuple[int, ...]]]
) -> StreamState:
    return StreamState(
        position=position,
        epoch=cursor.epoch,
        window=cursor.window,
        source_row=cursor.source_row,
        document=cursor.document,
        piece=cursor.piece,
        open_rows=tuple(tuple(row) for row in open_rows),
    )
