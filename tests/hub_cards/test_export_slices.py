"""What an export writes, and that it writes all of it or nothing."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration import BudgetError, DeltaBudget
from nestling.hub_cards import export_slices, slice_folder
from nestling.hub_cards.complete_folder import ExportError, read_json
from nestling.hub_cards.export_slices import export, export_elastic
from nestling.modeling.families import FAMILIES, resolve
from safetensors.torch import load_file

COMPANIONS = {
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling",
    "README.md",
    "reference.safetensors",
    "nestling.json",
}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_code_and_map_are_never_apart(slices_folder: Path, elastic_folder: Path) -> None:
    """A folder has both the code and an ``auto_map``, or neither."""
    for folder in [*(p for p in slices_folder.iterdir() if p.is_dir()), elastic_folder]:
        config = read_json(folder / "config.json")
        code = {name for name in names(folder) if name.endswith(".py")}
        # Transformers 4.57 writes the special tokens a second time, in a file of their own.
        assert names(folder) - code - {"special_tokens_map.json"} == COMPANIONS
        if config["model_type"] == "modernbert":
            assert "auto_map" not in config and not code
        else:
            mapped = {entry.split(".")[0] + ".py" for entry in config["auto_map"].values()}
            assert mapped <= code
            assert set(config["auto_map"]) == {
                "AutoConfig",
                *FAMILIES["delta_encoder"].auto_classes,
            }


def test_no_path_of_this_machine_is_written(slices_folder: Path, elastic_folder: Path) -> None:
    text = {
        path: path.read_text()
        for folder in (slices_folder, elastic_folder)
        for path in folder.rglob("*")
        if path.suffix in {".json", ".md", ".py"}
    }
    for path, content in text.items():
        for part in ("/home/", "/tmp/", str(Path.home()) + "/", "/somewhere/"):
            assert part not in content, path
    about = read_json(slices_folder / "w050-h02-d02" / "nestling.json")
    assert about["source"] == "model" and about["base_model"] == "ettin-encoder-17m"
    assert about["command"].endswith("data.path=text.txt")


def test_tied_weights_are_stored_once(slices_folder: Path) -> None:
    for name in ("w050-h02-d02", "w100-h04-d04"):
        keys = load_file(slices_folder / name / "model.safetensors")
        assert "decoder.weight" not in keys and "decoder.bias" in keys


def test_tokenizer_is_readable_by_both_generations(slices_folder: Path) -> None:
    """transformers 5 writes ``TokenizersBackend``, which 4.57 refuses."""
    config = read_json(slices_folder / "w050-h02-d02" / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert config["model_max_length"] == 64


def test_ladder_lists_costs_and_measurements(slices_folder: Path, lively_encoder: Any) -> None:
    content = read_json(slices_folder / "budgets.json")
    assert (content["schema_version"], content["kind"]) == (1, "budgets")
    assert (content["flops_tokens"], content["flops_predicted_tokens"]) == (32, 10)
    assert content["evaluation"]["predicted_tokens_per_sequence"] == 10
    flops = [entry["flops"] for entry in content["budgets"]]
    assert flops == sorted(flops)
    for entry in content["budgets"]:
        budget = DeltaBudget.parse(entry["budget"])
        assert entry["folder"] == budget.folder_name
        assert entry["parameters"] == budget.parameters(lively_encoder.config)
        flops = budget.flops(lively_encoder.config, 32, predicted_tokens=10)
        assert entry["flops"] == flops, "as the evaluation counts them: with the head"
        assert entry["bytes"] == budget.weight_bytes(lively_encoder.config)
    by_budget = {entry["budget"]: entry for entry in content["budgets"]}
    assert by_budget["0.5:2:3"]["measured"]["cross_entropy"] == pytest.approx(3.49)
    assert by_budget["0.5:2:3"]["safe_alias"] == "0.5:2:2"
    assert by_budget["1.0:2:4:16"]["measured"] is None
    assert by_budget["1.0:2:4:16"]["safe_alias"] == "1.0:2:4:16"


def test_alias_does_not_change_the_folder(slices_folder: Path) -> None:
    assert read_json(slices_folder / "w050-h02-d03" / "config.json")["num_hidden_layers"] == 3
    assert "safe_alias" not in read_json(slices_folder / "w050-h02-d03" / "nestling.json")


def test_single_budget_goes_straight_into_output(elastic_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "small"
    assert export(elastic_folder, ["smallest"], output, single=True, verify=False) == [output]
    assert COMPANIONS | {"budgets.json"} <= names(output)
    export(elastic_folder, ["largest"], output, single=True, verify=False)
    assert read_json(output / "nestling.json")["budget"] == "1.0:4:4"
    assert [e["budget"] for e in read_json(output / "budgets.json")["budgets"]] == ["1.0:4:4"]
    assert names(tmp_path) == {"small"}
    assert not [name for name in names(output) if name.endswith(".py")], "stale code is gone"


def test_single_folder_is_proven_with_what_was_measured(
    elastic_folder: Path,
    evaluation_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proven: list[set[str]] = []
    monkeypatch.setattr(export_slices, "verify_folder", lambda folder: proven.append(names(folder)))
    export(elastic_folder, ["0.5:2:3"], tmp_path / "one", evaluation=evaluation_file, single=True)
    assert proven == [names(tmp_path / "one")] and "budgets.json" in proven[0]
    content = read_json(tmp_path / "one" / "budgets.json")
    assert content["kind"] == "budgets" and content["flops_tokens"] == 32
    (entry,) = content["budgets"]
    assert entry["budget"] == "0.5:2:3" and entry["folder"] == "w050-h02-d03"
    assert entry["measured"]["cross_entropy"] == pytest.approx(3.49)
    assert entry["safe_alias"] == "0.5:2:2"


def test_state_dict_is_weights_and_configuration_only(
    elastic_folder: Path, lively_encoder: Any, tmp_path: Path
) -> None:
    output = tmp_path / "bare"
    for _ in range(2):
        export(elastic_folder, ["0.5:3:3"], output, format="state-dict", single=True)
    assert names(output) == {"model.safetensors", "config.json", "budgets.json"}
    with pytest.raises(ExportError, match="single model"):
        export(elastic_folder, ["smallest"], output)
    assert "auto_map" not in read_json(output / "config.json")
    model = type(lively_encoder).from_pretrained(output).eval()
    ids = torch.arange(5, 25)[None]
    expected = lively_encoder(ids, budget="0.5:3:3").logits
    assert torch.allclose(model(ids).logits, expected, atol=1e-5)


def test_all_hidden_channels_written_as_a_number_are_no_second_budget(
    elastic_folder: Path, tmp_path: Path
) -> None:
    folders = export(elastic_folder, ["1.0:4:4:32", "1.0:4:4"], tmp_path / "out", verify=False)
    assert folders == [tmp_path / "out" / "w100-h04-d04"]
    assert read_json(folders[0] / "nestling.json")["budget"] == "1.0:4:4"


def test_formats(elastic_folder: Path, tmp_path: Path) -> None:
    export(elastic_folder, ["1.0:4:4"], tmp_path / "r", format="remote", verify=False)
    assert (tmp_path / "r" / "w100-h04-d04" / "modeling_delta_encoder.py").is_file()
    export(elastic_folder, ["0.5:4:2"], tmp_path / "n", format="native", verify=False)
    assert read_json(tmp_path / "n" / "w050-h04-d02" / "config.json")["model_type"] == "modernbert"
    with pytest.raises(ExportError, match=r"0\.5:2:2 has no stock class.*0\.5:4:2") as caught:
        export(elastic_folder, ["0.5:2:2", "1.0:4:4"], tmp_path / "x", format="native")
    assert str(caught.value).count(":4:") >= 9
    assert not (tmp_path / "x").exists()


def test_later_slices_join_earlier_ones(elastic_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "slices"
    export(elastic_folder, ["smallest"], output, verify=False)
    folders = export(elastic_folder, ["largest", "0.5:2:2"], output, verify=False)
    assert folders == [output / "w100-h04-d04", output / "w050-h02-d02"]
    listed = [entry["folder"] for entry in read_json(output / "budgets.json")["budgets"]]
    assert listed == ["w050-h02-d02", "w100-h04-d04"]


@pytest.mark.parametrize(
    ("budgets", "options", "message"),
    [
        ([], {}, "0 budgets given"),
        (["0.5:2:2", "1.0:4:4"], {"single": True}, "exactly one"),
        (["0.5:2:2"], {"format": "onnx"}, "auto, native, remote, state-dict"),
        (["0.5:9:2"], {}, r"nearest possible budget is 0\.5:4:2"),
        (["0.5-2-2"], {}, "width:heads:depth"),
    ],
)
def test_bad_requests_are_one_line(
    elastic_folder: Path, tmp_path: Path, budgets: list[str], options: Any, message: str
) -> None:
    with pytest.raises((ExportError, BudgetError), match=message) as caught:
        export(elastic_folder, budgets, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == set()


def test_output_that_is_not_ours_is_refused(elastic_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for single in (True, False):
        with pytest.raises(ExportError, match="not an export of ours"):
            export(elastic_folder, ["smallest"], tmp_path, single=single)
    with pytest.raises(ExportError, match="is a file"):
        export(elastic_folder, ["smallest"], tmp_path / "notes.txt")
    with pytest.raises(ExportError, match="the model itself"):
        export(elastic_folder, ["smallest"], elastic_folder, single=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_one_slice_and_several_do_not_overwrite_each_other(
    elastic_folder: Path, slices_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="several slices; choose another"):
        export(elastic_folder, ["smallest"], slices_folder, single=True)
    export(elastic_folder, ["smallest"], tmp_path / "one", single=True, verify=False)
    with pytest.raises(ExportError, match="single model"):
        export(elastic_folder, ["smallest"], tmp_path / "one")


@pytest.mark.parametrize("failing", ["write_reference", "write_card"])
def test_full_disk_leaves_everything_as_it_was(
    elastic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    output = tmp_path / "slices"
    export(elastic_folder, ["smallest"], output, verify=False)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(slice_folder, failing, full)
    with pytest.raises(ExportError, match="the disk is full") as caught:
        export(elastic_folder, ["smallest", "largest"], output, verify=False)
    assert "\n" not in str(caught.value)
    after = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert after == before and leftovers(tmp_path) == []


def test_nothing_is_put_in_place_unproven(
    elastic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proven: list[set[str]] = []

    def refuse(folder: Path) -> None:
        proven.append(names(folder))
        raise RuntimeError("outputs differ")

    monkeypatch.setattr(export_slices, "verify_folder", refuse)
    with pytest.raises(RuntimeError, match="outputs differ"):
        export(elastic_folder, ["smallest"], tmp_path / "slices")
    assert proven == [{"w050-h02-d02", "budgets.json"}]
    assert names(tmp_path) == set()


def test_truncated_and_incomplete_models_are_one_line(
    elastic_folder: Path, lively_encoder: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    lively_encoder.save_pretrained(broken)
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match="cannot load the weights") as caught:
        export(broken, ["smallest"], tmp_path / "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="does not exist"):
        export(tmp_path / "nowhere", ["smallest"], tmp_path / "out")
    (broken / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ExportError, match="'bert' model; known families: delta_encoder"):
        export(broken, ["smallest"], tmp_path / "out")
    (broken / "config.json").write_text("{")
    with pytest.raises(ExportError, match="not valid JSON"):
        export(broken, ["smallest"], tmp_path / "out")


def test_evaluation_of_something_else_is_refused(
    elastic_folder: Path, evaluation_file: Path, tmp_path: Path
) -> None:
    content = json.loads(evaluation_file.read_text())
    for change, message in (
        ({"kind": "bench"}, "kind 'bench'"),
        ({"schema_version": 9}, "schema_version 9"),
        ({"family": "ddl"}, "measures 'ddl'"),
    ):
        path = tmp_path / "other.json"
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ExportError, match=message):
            export(elastic_folder, ["smallest"], tmp_path / "out", evaluation=path)


def test_tokenizer_larger_than_the_model_is_refused(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    family = FAMILIES["delta_encoder"]
    config = resolve(family.config)(**{**family.tiny, "vocab_size": 50})
    model = resolve(family.auto_classes["AutoModelForMaskedLM"])(config)
    with pytest.raises(ExportError, match=f"{len(tiny_tokenizer)} tokens, the model 50"):
        export_elastic(model, tiny_tokenizer, tmp_path / "model")


@pytest.mark.parametrize("auto_class", sorted(FAMILIES["delta_encoder"].auto_classes))
def test_every_head_is_exported_and_counted(
    auto_class: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elastic model in bfloat16 without a tokenizer: sizes follow the formula of its own head."""
    family = FAMILIES["delta_encoder"]
    config = resolve(family.config)(**family.tiny, num_labels=5)
    model = resolve(family.auto_classes[auto_class])(config).to(torch.bfloat16).train()
    folder = export_elastic(model, None, tmp_path / "model")
    assert model.training and model.dtype == torch.bfloat16
    for budget in ("0.5:2:2", "1.0:4:4"):
        (sliced,) = export(folder, [budget], tmp_path / "out", verify=False)
        about = read_json(sliced / "nestling.json")
        tensors = load_file(sliced / "model.safetensors")
        assert about["auto_class"] == auto_class and about["dtype"] == "bfloat16"
        assert sum(t.numel() for t in tensors.values()) == about["parameters"]
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
        assert "modules.json" not in names(sliced)
