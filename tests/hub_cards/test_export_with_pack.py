"""Slices cut from a model with the delta of an upgrade pack, and what does not fit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from delta_models import lively_model
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.hub_cards.complete_folder import ExportError, read_json
from nestling.hub_cards.delta_pack import (
    atom_tensors,
    delta_tensors,
    export_delta_pack,
    pack_identity,
)
from nestling.hub_cards.export_slices import export, export_elastic, planned_slices
from nestling.modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from nestling.modeling.families import FAMILIES, resolve
from nestling.recipes import cli
from nestling.recipes.delta_encoder import evaluation_inputs
from safetensors.torch import load_file, save_file
from torch import Tensor

WHOLE, BASE = "1.0:4:4", "0.5:2:4:16"  # more than the base slice; the base slice


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def upgraded() -> Any:
    """The model below with another delta, atoms and all."""
    model = lively_model(delta_kind="dictionary")
    generator = torch.Generator().manual_seed(11)
    trunk = model.base_model
    with torch.no_grad():
        for tensor in {**delta_tensors(trunk), **atom_tensors(trunk)}.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.3)
    return model


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = lively_model(delta_kind="dictionary")
    return export_elastic(model, tiny_tokenizer, tmp_path_factory.mktemp("nested") / "model")


@pytest.fixture(scope="module")
def pack(upgraded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pack") / "p.safetensors"
    export_delta_pack(upgraded, file, with_atoms=True)
    return file


def test_slices_have_the_delta_of_the_pack_and_name_it(
    folder: Path, pack: Path, upgraded: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    before = weights_of(folder)
    slices = export(folder, [WHOLE, BASE], tmp_path / "out", delta_pack=pack, verify=False)
    theirs = export_elastic(upgraded, tiny_tokenizer, tmp_path / "upgraded")
    expected = export(theirs, [WHOLE, BASE], tmp_path / "theirs", verify=False)
    own = export(folder, [WHOLE, BASE], tmp_path / "own", verify=False)
    for ours, other in zip(slices, expected, strict=True):
        assert same(weights_of(ours), weights_of(other))
        references = [load_file(each / "reference.safetensors") for each in (ours, other)]
        assert same(*references)
    unchanged = [same(weights_of(a), weights_of(b)) for a, b in zip(slices, own, strict=True)]
    assert unchanged == [False, True]
    assert same(weights_of(folder), before)
    named = f"p.safetensors (SHA-256 {pack_identity(pack)['sha256']})"
    assert read_json(slices[0] / "nestling.json")["delta_pack"] == named
    assert f"- delta of the upgrade pack: `{named}`" in (slices[0] / "README.md").read_text()
    assert "delta_pack" not in read_json(own[0] / "nestling.json")


def test_a_folder_in_half_precision_takes_its_pack(
    upgraded: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Fingerprints are those of the stored weights, though slices are cut in float32."""
    half = lively_model(delta_kind="dictionary").to(torch.bfloat16)
    export_elastic(half, tiny_tokenizer, tmp_path / "model")
    half.save_pretrained(tmp_path / "model")
    file = tmp_path / "p.safetensors"
    with torch.no_grad():
        for tensor in delta_tensors(half.base_model).values():
            tensor.mul_(2)
    export_delta_pack(half, file)
    cut = export(tmp_path / "model", [WHOLE], tmp_path / "out", "state-dict", delta_pack=file)
    half.save_pretrained(tmp_path / "doubled")
    shutil.copy(tmp_path / "model" / "nestling.json", tmp_path / "doubled")
    expected = export(tmp_path / "doubled", [WHOLE], tmp_path / "theirs", "state-dict")
    assert same(weights_of(cut[0]), weights_of(expected[0]))


def test_cards_do_not_show_numbers_of_another_delta(
    folder: Path, pack: Path, evaluation_file: Path, tmp_path: Path
) -> None:
    output, packed = tmp_path / "out", tmp_path / "packed.json"
    content = json.loads(evaluation_file.read_text())
    packed.write_text(json.dumps({**content, "delta_pack": pack_identity(pack)}))
    digest = pack_identity(pack)["sha256"][:8]
    for file, loaded, text in (
        (evaluation_file, pack, rf"of the model itself, .* of p.safetensors \({digest}\);"),
        (packed, None, rf"of p.safetensors \({digest}\), the slices have that of the model itself"),
    ):
        for run in (export, planned_slices):
            with pytest.raises(ExportError, match=text):
                run(folder, [WHOLE], output, evaluation=file, delta_pack=loaded)
    assert not output.exists()
    export(folder, [BASE], output, evaluation=evaluation_file, delta_pack=pack, verify=False)
    export(folder, [WHOLE], output, evaluation=packed, delta_pack=pack, verify=False)
    assert read_json(output / "budgets.json")["evaluation"]["delta_pack"] == pack_identity(pack)


def _other_base(model: Any) -> None:
    model.model.layers[1].mlp_norm.weight.data[3] += 1e-3


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("absent", 3, ["absent.safetensors does not exist", "nestling export --delta-pack"]),
        ("text", 3, ["text.safetensors is not a readable safetensors file"]),
        ("weights", 3, ["weights.safetensors is not a delta pack"]),
        ("base", 4, ["base.safetensors was made for other base weights"]),
        ("atoms", 4, ["atoms.safetensors was made for other atoms", "--with-atoms"]),
        ("dense", 4, ["dense.safetensors is of delta_kind dense, the model of dictionary"]),
    ],
)
@pytest.mark.parametrize("verb", ["export", "evaluate"])
def test_what_does_not_fit_is_one_line(
    verb: str,
    case: str,
    code: int,
    words: list[str],
    folder: Path,
    upgraded: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / f"{case}.safetensors"
    if case == "text":
        file.write_text("no pack")
    elif case == "weights":
        save_file({"weight": torch.ones(3)}, file)
    elif case == "atoms":
        export_delta_pack(upgraded, file)
    elif case != "absent":
        other = lively_model(delta_kind="dense" if case == "dense" else "dictionary")
        if case == "base":
            _other_base(other)
        export_delta_pack(other, file)
    arguments = [verb, str(folder), "--budgets", WHOLE, "--output", str(tmp_path / "out")]
    if verb == "export":
        arguments += ["--load-delta-pack", str(file)]
    else:
        arguments += ["--delta-pack", str(file)]
        _open_without_data(monkeypatch)
    assert cli._run(arguments) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("nestling: error:") and all(word in line for word in words)
    assert not (tmp_path / "out").exists()


def _open_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an evaluation come as far as the pack without a corpus."""

    def open_run(model_dir: Path, overrides: Any) -> Any:
        return SimpleNamespace(model=DeltaEncoderForMaskedLM.from_pretrained(model_dir))

    monkeypatch.setattr(evaluation_inputs, "open_run", open_run)


@pytest.mark.parametrize("verb", ["export", "evaluate"])
def test_models_without_a_delta_are_refused(
    verb: str,
    elastic_folder: Path,
    pack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dense = tmp_path / "dense.safetensors"
    export_delta_pack(lively_model(delta_kind="dense"), dense)
    _open_without_data(monkeypatch)
    flag = "--load-delta-pack" if verb == "export" else "--delta-pack"
    tail = ["--budgets", "1.0:4:4", "--output", str(tmp_path / "out"), flag]
    for file, words in ((pack, "of delta_kind dictionary"), (dense, "model has no base slice")):
        assert cli._run([verb, str(elastic_folder), *tail, str(file)]) == 4
        assert words in capsys.readouterr().err
    decoder = tmp_path / "decoder"
    decoder.mkdir()
    (decoder / "config.json").write_text('{"model_type": "ddl"}')
    assert cli._run(["evaluate", str(decoder), *tail[:4], "--delta-pack", str(pack)]) == 4
    assert "--delta-pack is for a delta_encoder, not ddl; drop it" in capsys.readouterr().err


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)
def test_a_decoder_has_no_delta(pack: Path, tmp_path: Path) -> None:
    family = FAMILIES["ddl"]
    decoder = resolve(family.auto_classes["AutoModelForCausalLM"])
    export_elastic(decoder(resolve(family.config)(**family.tiny)), None, tmp_path / "model")
    with pytest.raises(ExportError, match="pack of family delta_encoder, the model is of ddl, "):
        export(tmp_path / "model", ["largest"], tmp_path / "out", delta_pack=pack)
    assert not (tmp_path / "out").exists()
