"""The manifest of a folder of prepared rows: what is in it, and from what it was made.

`manifest.json` is written before the first shard and again after each window, always by renaming
a complete file. What it names is therefore always whole on disk; anything else is left over from
an interruption and is made again.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..whole_file import write_whole_file
from .documents import SPLITS, DataError, Split
from .packing import fill_rate

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class PreparationSettings:
    """Everything that decides the bytes of the shards.

    Attributes:
        input_hash: SHA-256 over the texts and groups of the source.
        tokenizer_hash: SHA-256 of the tokenizer.
        vocab_size: Number of tokens of the tokenizer.
        max_length: Longest row.
        packing: Whether documents share rows.
        window_documents: Source rows per window.
        validation_fraction: Share of the groups in the validation split.
    """

    input_hash: str
    tokenizer_hash: str
    vocab_size: int
    max_length: int
    packing: bool
    window_documents: int
    validation_fraction: float

    def require_equal(self, other: "PreparationSettings", folder: Path) -> None:
        """Compare with the settings that `folder` was made with.

        Raises:
            DataError: If a setting differs; the message names each one with both values.
        """
        here, there = asdict(self), asdict(other)
        differing = [
            f"{name} is {there[name]} there and {here[name]} here"
            for name in here
            if here[name] != there[name]
        ]
        if differing:
            raise DataError(
                f"{folder} was prepared with other settings: {'; '.join(differing)}; pass another "
                f"output (data.pretokenized_path) or remove that folder"
            )


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One Arrow file: the rows of one split out of one window.

    Attributes:
        split: The split.
        window: Number of the window.
        file: Path inside the folder.
        documents: Documents in it.
        tokens: Tokens in it, special tokens included.
        rows: Rows in it.
        bytes: Size of the file.
        max_token_id: Largest token id.
    """

    split: Split
    window: int
    file: str
    documents: int
    tokens: int
    rows: int
    bytes: int
    max_token_id: int


@dataclass(slots=True)
class Manifest:
    """Contents of `manifest.json`.

    Attributes:
        settings: What the rows were made with.
        source: Description of the source, for people.
        versions: Versions of the packages that took part.
        shards: The files that are whole.
        windows: Number of windows that are done.
        complete: Whether the source was read to its end.
    """

    settings: PreparationSettings
    source: dict[str, str]
    versions: dict[str, str]
    shards: list[ShardRecord] = field(default_factory=list)
    windows: int = 0
    complete: bool = False

    def counts(self) -> dict[str, dict[str, int | float]]:
        """Sum documents, tokens and rows of each split and give the fill rate."""
        result: dict[str, dict[str, int | float]] = {}
        for split in SPLITS:
            shards = [shard for shard in self.shards if shard.split == split]
            rows, tokens = sum(s.rows for s in shards), sum(s.tokens for s in shards)
            result[split] = {
                "documents": sum(s.documents for s in shards),
                "tokens": tokens,
                "rows": rows,
                "fill_rate": round(fill_rate(tokens, rows, self.settings.max_length), 6),
            }
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; equal input gives equal bytes (there is no date in it)."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "counts": self.counts()}

    def save(self, folder: Path) -> None:
        """Write `manifest.json` by writing a new file and renaming it.

        Raises:
            DataError: If the disk is full.
        """
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True) + "\n"
        write_whole_file(folder / MANIFEST_FILE, text)

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder.

        Raises:
            DataError: If there is none, or it is of another version or damaged.
        """
        file = folder / MANIFEST_FILE
        if not file.is_file():
            raise DataError(f"{folder} has no {MANIFEST_FILE}; make it with `nestling prepare`")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            version = content.get("schema_version")
            if version != SCHEMA_VERSION:
                raise DataError(
                    f"{file} has schema version {version}, this program reads {SCHEMA_VERSION}; "
                    f"prepare the data again"
                )
            return cls(
                settings=PreparationSettings(**content["settings"]),
                source=content["source"],
                versions=content["versions"],
                shards=[ShardRecord(**shard) for shard in content["shards"]],
                windows=content["windows"],
                complete=content["complete"],
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is damaged ({error!r}); prepare the data again") from error
