"""Pushing, against a recorder that holds every call to the real signatures of `HfApi`."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from nestling.hub_cards import publish
from nestling.hub_cards.complete_folder import ExportError, read_json
from nestling.hub_cards.export_slices import export
from nestling.hub_cards.publish import push
from nestling.hub_cards.verify_export import verify_folder


class Collection:
    slug = "acme/toy-0123"


class RecorderApi:
    """Accepts what the real `HfApi` would accept, does nothing, and keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, method: str) -> Any:
        signature = inspect.signature(getattr(HfApi, method))

        def record(**arguments: Any) -> Any:
            signature.bind(self, **arguments)
            self.calls.append((method, arguments))
            return Collection() if "collection" in method else None

        return record


@pytest.fixture
def two_slices(elastic_folder: Path, tmp_path: Path) -> Path:
    export(elastic_folder, ["smallest", "largest"], tmp_path / "slices", verify=False)
    return tmp_path / "slices"


def test_one_repository_per_slice_and_one_collection(two_slices: Path) -> None:
    api: Any = RecorderApi()
    push(two_slices, "acme/toy", api=api, private=True, tag="v1", verify=False)
    assert [method for method, _ in api.calls] == [
        *("create_repo", "upload_folder", "create_tag") * 2,
        "create_collection",
        *("add_collection_item",) * 2,
    ]
    uploads = {a["repo_id"]: a for m, a in api.calls if m == "upload_folder"}
    assert set(uploads) == {"acme/toy-w050-h02-d02", "acme/toy-w100-h04-d04"}
    for arguments in uploads.values():
        assert "*.py" in arguments["delete_patterns"], "code of an older upload must not stay"
    made = [a for m, a in api.calls if m == "create_repo"]
    assert all(a["exist_ok"] and a["private"] for a in made)
    items = [a for m, a in api.calls if m == "add_collection_item"]
    assert {a["collection_slug"] for a in items} == {Collection.slug}
    assert {a["item_id"] for a in items} == set(uploads)


def test_every_repository_gets_the_ladder_and_where_its_siblings_are(
    elastic_folder: Path, evaluation_file: Path, tmp_path: Path
) -> None:
    """The alias of 0.5:2:3 is 0.5:2:2: whoever has its repository must find the other one."""
    slices = tmp_path / "slices"
    budgets = ["0.5:2:3", "0.5:2:2"]
    export(elastic_folder, budgets, slices, evaluation=evaluation_file, verify=False)
    export(elastic_folder, ["1.0:4:4"], slices, format="state-dict", verify=False)
    api: Any = RecorderApi()
    calls = push(slices, "acme/toy", api=api, verify=False)
    uploaded = [a for m, a in api.calls if m == "upload_folder"]
    assert [a["repo_id"] for a in uploaded] == ["acme/toy-w050-h02-d02", "acme/toy-w050-h02-d03"]
    for arguments in uploaded:
        content = read_json(Path(arguments["folder_path"]) / "budgets.json")
        assert content["kind"] == "budgets"
        home = {entry["budget"]: entry["repository"] for entry in content["budgets"]}
        assert home["1.0:4:4"] is None, "bare weights are not pushed"
        alias = {entry["budget"]: entry["safe_alias"] for entry in content["budgets"]}
        assert home[alias["0.5:2:3"]] == "acme/toy-w050-h02-d02"
    assert any("budgets.json" in str(c) and "(2)" in str(c) for c in calls)
    assert all("repository" not in e for e in read_json(slices / "budgets.json")["budgets"])
    verify_folder(slices)
    push(slices / "w050-h02-d03", "acme/other", api=api, verify=False)
    entries = read_json(slices / "w050-h02-d03" / "budgets.json")["budgets"]
    assert [e["repository"] for e in entries] == ["acme/toy-w050-h02-d02", "acme/other", None]


def test_card_names_the_repository_it_is_in(two_slices: Path) -> None:
    push(two_slices, "acme/toy", api=RecorderApi(), verify=False)  # type: ignore[arg-type]
    card = (two_slices / "w050-h02-d02" / "README.md").read_text()
    assert card.count('name = "acme/toy-w050-h02-d02"') == 3


def test_single_folder_is_one_repository_without_collection(two_slices: Path) -> None:
    api: Any = RecorderApi()
    push(two_slices / "w050-h02-d02", "acme/toy", api=api, verify=False)
    assert [method for method, _ in api.calls] == ["create_repo", "upload_folder"]
    assert api.calls[1][1]["repo_id"] == "acme/toy"
    push(two_slices / "w050-h02-d02", "acme/toy", api=api, verify=False, collection="Small ones")
    assert api.calls[-2][1]["title"] == "Small ones"


def test_dry_run_calls_nothing_and_lists_everything(two_slices: Path) -> None:
    api: Any = RecorderApi()
    before = (two_slices / "w050-h02-d02" / "README.md").read_text()
    calls = push(two_slices, "acme/toy", api=api, tag="v1", dry_run=True, verify=False)
    assert api.calls == []
    assert (two_slices / "w050-h02-d02" / "README.md").read_text() == before
    for call in calls:
        inspect.signature(getattr(HfApi, call.method)).bind(api, **call.arguments)
    assert len(calls) == 9
    assert [str(c).count("budgets.json") for c in calls if c.method == "upload_folder"] == [1, 1]
    assert not (two_slices / "w050-h02-d02" / "budgets.json").exists()
    assert str(calls[0]).startswith("create_repo(repo_id='acme/toy-w050-h02-d02', private=False")


def test_verification_comes_first(two_slices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise RuntimeError(f"{folder.name} differs")

    monkeypatch.setattr(publish, "verify_folder", refuse)
    api: Any = RecorderApi()
    with pytest.raises(RuntimeError, match="slices differs"):
        push(two_slices, "acme/toy", api=api)
    assert api.calls == []


@pytest.mark.parametrize("repo_id", ["toy", "acme/", "/toy", "acme/toy/x"])
def test_bad_repository_name_is_refused(two_slices: Path, repo_id: str) -> None:
    with pytest.raises(ExportError, match="must be owner/name"):
        push(two_slices, repo_id, api=RecorderApi())  # type: ignore[arg-type]


def test_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    with pytest.raises(ExportError, match="neither"):
        push(tmp_path, "acme/toy", api=RecorderApi())  # type: ignore[arg-type]
