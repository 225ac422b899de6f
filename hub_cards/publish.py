"""Puts exported folders on the Hub: a repository per slice, one commit each, one Collection.

Every call goes through an `HfApi` that is handed in, so tests pass a recorder and ``dry_run``
only lists what would be called.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from .complete_folder import LADDER, MARKER, ExportError, read_json, write_json
from .ladder_file import with_repositories
from .loading_snippets import rename_in_snippets
from .verify_export import exported_folders, verify_folder

logger = logging.getLogger(__name__)

# Code of an earlier upload that the new one no longer has would still be executed.
STALE_FILES = ["*.py", "model*.safetensors*"]


@dataclass(frozen=True)
class HubCall:
    """One call of `HfApi`: its name and its keyword arguments."""

    method: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        """Return the call as Python text."""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{self.method}({arguments})"


@dataclass
class Uploader:
    """Makes calls, or only notes them, and keeps the list."""

    api: HfApi | None
    calls: list[HubCall] = field(default_factory=list)

    def call(self, method: str, **arguments: Any) -> Any:
        """Note the call and, unless this is a dry run, make it."""
        self.calls.append(HubCall(method, arguments))
        if self.api is None:
            return None
        logger.info("%s", self.calls[-1])
        return getattr(self.api, method)(**arguments)


def push(
    folder: str | Path,
    repo_id: str,
    api: HfApi | None = None,
    private: bool = False,
    tag: str | None = None,
    collection: str | None = None,
    dry_run: bool = False,
    verify: bool = True,
) -> list[HubCall]:
    """Upload one exported folder, or a folder of slices.

    A folder of slices becomes one repository per slice, ``repo_id`` + ``-`` + folder name, each
    with the ``budgets.json`` of all of them, in which every slice names its repository. Each
    upload is a single commit that also deletes code and weights the folder no longer has.

    Args:
        folder: what `export` or `export_elastic` wrote.
        repo_id: ``owner/name``.
        api: the Hub client; None makes one from the stored login.
        private: create the repositories as private.
        tag: name of a tag set on every upload.
        collection: title of a Collection of the same owner, made if it does not exist. A folder of
            slices gets one named after the repository if none is given.
        dry_run: make no call.
        verify: prove the folder first.

    Returns:
        The calls, in order; of a dry run, those that would be made.

    Raises:
        ExportError: if ``folder`` is no export or ``repo_id`` is not ``owner/name``.
        VerifyError: if the folder does not reproduce its model.
    """
    folder = Path(folder)
    owner, slash, name = repo_id.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise ExportError(f"repo id {repo_id!r} must be owner/name")
    folders = exported_folders(folder)
    if verify:
        verify_folder(folder)
    uploader = Uploader(None if dry_run else api or HfApi())
    is_single = (folder / MARKER).is_file()
    repositories = {
        repo_id if is_single else f"{repo_id}-{each.name}": each for each in folders
    }
    ladder = _ladder_on_the_hub(folder, repositories)
    for repository, each in repositories.items():
        _upload(uploader, repository, each, ladder, private, tag)
    title = collection or (None if is_single else name)
    if title is not None:
        _collect(uploader, owner, title, list(repositories), private)
    return uploader.calls


def _ladder_on_the_hub(folder: Path, repositories: dict[str, Path]) -> dict[str, Any] | None:
    """Return the ladder in ``folder`` with a repository per slice; None for an elastic model."""
    if not (folder / LADDER).is_file():
        return None
    homes = {
        str(read_json(each / MARKER)["folder"]): repository
        for repository, each in repositories.items()
    }
    return with_repositories(read_json(folder / LADDER), homes)


def _upload(
    uploader: Uploader,
    repository: str,
    folder: Path,
    ladder: dict[str, Any] | None,
    private: bool,
    tag: str | None,
) -> None:
    about = read_json(folder / MARKER)
    uploader.call("create_repo", repo_id=repository, private=private, exist_ok=True)
    description = None
    if ladder is not None:
        placed = sum(entry["repository"] is not None for entry in ladder["budgets"])
        description = f"With {LADDER}: every slice and its repository ({placed})"
    if uploader.api is not None:
        card = folder / "README.md"
        card.write_text(rename_in_snippets(card.read_text(encoding="utf-8"), repository), "utf-8")
        if ladder is not None:
            write_json(folder / LADDER, ladder)
    uploader.call(
        "upload_folder",
        repo_id=repository,
        folder_path=str(folder),
        commit_message=f"Upload {about['family']} {about['kind']} {about['budget']}",
        commit_description=description,
        delete_patterns=STALE_FILES,
    )
    if tag is not None:
        uploader.call("create_tag", repo_id=repository, tag=tag, exist_ok=True)


def _collect(
    uploader: Uploader, owner: str, title: str, repositories: list[str], private: bool
) -> None:
    made = uploader.call(
        "create_collection", title=title, namespace=owner, private=private, exists_ok=True
    )
    slug = "<slug of the collection>" if made is None else made.slug
    for repository in repositories:
        uploader.call(
            "add_collection_item",
            collection_slug=slug,
            item_id=repository,
            item_type="model",
            exists_ok=True,
        )
