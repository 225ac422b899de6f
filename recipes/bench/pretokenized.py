"""Rows per second read from prepared Arrow files against tokenizing and packing on the fly."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..data.corpus import build_data, prepare_data
from ..data.pretokenize import TOKENIZER_FOLDER
from ..interleaved_timing import time_interleaved
from ..recipe_schema import DataSection
from .bench_report import report, torch_threads
from .bench_settings import BenchSettings


@dataclass(frozen=True, kw_only=True)
class PretokenizedSettings(BenchSettings):
    """The text and how it is cut.

    Attributes:
        source: ``data.source`` of a recipe.
        path: ``data.path`` of a recipe.
        max_bytes: text to read.
        vocab_size: size of the trained tokenizer.
        max_length: tokens per row.
    """

    rounds: int = 3
    source: str = "embedded"
    path: str | None = None
    max_bytes: int = 2_000_000
    vocab_size: int = 2048
    max_length: int = 128


DEFAULT = PretokenizedSettings()


def run(output: Path | None = None, settings: PretokenizedSettings = DEFAULT) -> dict[str, Any]:
    """Read the same number of rows of the same text both ways, in turn.

    Training the tokenizer is in neither time. Preparing the rows once is timed apart.

    Args:
        output: JSON file; None writes nothing.
        settings: the text and rounds.
    """
    with TemporaryDirectory() as folder, torch_threads(settings.threads):
        section = DataSection(
            source=settings.source,
            path=settings.path,
            max_bytes=settings.max_bytes,
            vocab_size=settings.vocab_size,
            max_length=settings.max_length,
            pretokenized_path=str(Path(folder) / "rows"),
        )
        start = time.perf_counter()
        prepare_data(section, progress=False)
        preparation = time.perf_counter() - start
        prepared = build_data(section, settings.seed, progress=False)
        tokenizer = str(Path(folder) / "rows" / TOKENIZER_FOLDER)
        streamed = build_data(
            replace(section, pretokenized_path=None, tokenizer=tokenizer, streaming=True),
            settings.seed,
        )
        count = sum(1 for _ in prepared.train_rows)
        actions = {
            "prepared": _read(prepared.train_rows, count),
            "on the fly": _read(streamed.train_rows, count),
        }
        clocks = {n: t.summary() for n, t in time_interleaved(actions, settings.rounds).items()}
        speed = {name: 1e3 * count / clock["cpu_ms"]["median"] for name, clock in clocks.items()}
        results = [
            {"way": name, "rows": count, "rows_per_second": speed[name], **clock}
            for name, clock in clocks.items()
        ]
        summary = {
            "prepared over on the fly": {"measured": speed["prepared"] / speed["on the fly"]},
            "preparing once, seconds": preparation,
        }
        return report("pretokenized", settings, results, summary, output)


def _read(rows: Iterable[Any], count: int) -> Callable[[], object]:
    def action() -> int:
        return sum(len(row["input_ids"]) for row in islice(rows, count))

    return action
