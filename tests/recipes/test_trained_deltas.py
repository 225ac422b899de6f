"""``training.only=deltas``: a second upgrade pack for a base that stays as it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.hub_cards.delta_pack import export_delta_pack, load_delta_pack
from nestling.modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from nestling.recipes import cli
from nestling.recipes.cli_errors import DataError, UsageError
from nestling.recipes.delta_encoder.build import build_model
from nestling.recipes.delta_encoder.model_config import check_checkpoints
from nestling.recipes.delta_encoder.train import train
from nestling.recipes.recipe_loader import load_recipe, of_family
from nestling.recipes.recipe_schema import DeltaEncoderRecipe
from nestling.trainers.delta_encoder_trainer import DeltaEncoderTrainer
from safetensors.torch import load_file
from tiny_plus import KINDS, StopAt, plus_trainer, prepared, tiny_plus
from torch import Tensor

ONLY = "training.only=deltas"
WITHOUT_UPGRADES = ["loss.delta_weight=0", "loss.mug_weight=0"]
AXES = ["model.width_budgets=[0.5,1.0]", "model.head_budgets=[2,4]", "model.depth_budgets=[2,4]"]
RUN = [
    *AXES, "data.vocab_size=600", "data.max_bytes=60000", "training.max_steps=3",
    "training.save_steps=3", "evaluation.batches=1", "evaluation.bootstrap_samples=2",
    "evaluation.latency=false", "evaluation.budgets=[smallest,largest]", "export.budgets=[]",
]  # fmt: skip


def is_delta(name: str) -> bool:
    return ".deltas." in name


def weights_of(model_dir: Path) -> dict[str, Tensor]:
    return load_file(model_dir / "model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run A, and run B that trained the deltas of A on other text."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = folder / "a", folder / "b"
    train(tiny_plus(first, *RUN))
    text = folder / "text.txt"
    sentences = (f"Nest {i} holds {i % 7} eggs of bird {i % 5}." for i in range(900))
    text.write_text("\n\n".join(sentences))
    # As the page of the family says.
    start = [f"model.init_from={first}/model", f"data.tokenizer={first}/model", ONLY]
    rows = [f"data.path={text}", "data.pretokenized_path=null", "seed=1"]
    recipe = load_recipe([f"recipe={first}/recipe.yaml", f"output_dir={second}", *start, *rows])
    train(of_family(recipe, DeltaEncoderRecipe))
    return first, second


@pytest.fixture(scope="module")
def pack(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of B, written by the command line."""
    folder = tmp_path_factory.mktemp("pack")
    arguments = ["export", str(runs[1]), "--budgets", "largest", "--output", str(folder / "b")]
    arguments += ["--format", "state-dict", "--delta-pack", str(folder / "b.safetensors")]
    assert cli._run([*arguments, "--with-atoms"]) == 0
    return folder / "b.safetensors"


def test_everything_but_the_delta_stays_bit_for_bit(runs: tuple[Path, Path]) -> None:
    before, after = (weights_of(run / "model") for run in runs)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(map(is_delta, moved))
    # Every block has moved, its atoms as well.
    assert moved == {name for name in before if is_delta(name)}


def test_slices_with_the_pack_are_those_of_the_run_that_made_it(
    runs: tuple[Path, Path], pack: Path, tmp_path: Path
) -> None:
    stored = weights_of(runs[0] / "model")
    arguments = ["export", str(runs[0]), "--budgets", "largest", "smallest", "--format"]
    arguments += ["state-dict", "--output", str(tmp_path / "a"), "--load-delta-pack", str(pack)]
    assert cli._run(arguments) == 0
    (folder,) = (tmp_path / "a").glob("w100-h04-d04*")
    theirs = pack.parent / "b" / folder.name
    ids = torch.randint(5, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    places = (folder, theirs, runs[0] / "model")
    models = [DeltaEncoderForMaskedLM.from_pretrained(path).eval() for path in places]
    with torch.no_grad():
        ours, expected, without = (model(input_ids=ids).logits for model in models)
    assert torch.equal(ours, expected) and not torch.equal(ours, without)
    untouched = weights_of(runs[0] / "model")
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in stored.items())


def test_the_pack_is_measured_in_the_untouched_model(
    runs: tuple[Path, Path], pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the weights of B are, on the rows of A."""
    copied = tmp_path / "copied"
    shutil.copytree(runs[0], copied, symlinks=True)
    shutil.copy(runs[1] / "model" / "model.safetensors", copied / "model" / "model.safetensors")
    found: dict[str, Any] = {}
    for name, run, more in (
        ("own", runs[0], []),
        ("packed", runs[0], ["--delta-pack", str(pack)]),
        ("theirs", copied, []),
    ):
        file = tmp_path / f"{name}.json"
        assert cli._run(["evaluate", str(run), "--output", str(file), *more]) == 0
        found[name] = json.loads(file.read_text())
    shown = capsys.readouterr().out
    losses = {
        name: [entry["cross_entropy"] for entry in content["budgets"]]
        for name, content in found.items()
    }
    assert losses["packed"] == losses["theirs"] != losses["own"]
    recorded = found["packed"]["delta_pack"]
    assert recorded["file"] == "b.safetensors" and len(recorded["sha256"]) == 64
    assert "delta_pack" not in found["own"]
    assert f"Delta of the upgrade pack b.safetensors (SHA-256 {recorded['sha256']})." in shown


def trained(recipe: Any, tokenizer: Any, stop: int | None = None) -> DeltaEncoderTrainer:
    trainer = plus_trainer(recipe, tokenizer)
    if stop is not None:
        trainer.add_callback(StopAt(stop))
    trainer.train()
    return trainer


def start_of(kind: str, folder: Path, tokenizer: Any, *changes: str) -> Any:
    """Save a model with a delta that is not zero."""
    torch.manual_seed(1)
    model = build_model(tiny_plus(folder, *KINDS[kind], *AXES, *changes), prepared(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "start")
    return model


def again(kind: str, folder: Path, *changes: str) -> Any:
    start = [f"model.init_from={folder / 'start'}", ONLY, "training.max_steps=4"]
    return tiny_plus(folder / "run", *KINDS[kind], *AXES, *start, *changes)


@pytest.mark.parametrize("kind", ["dictionary", "low_rank"])
def test_the_pack_needs_no_atoms_where_they_stay(
    kind: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    start = start_of(kind, tmp_path, tiny_tokenizer)
    fixed = ["training.lr_multipliers.atoms=0"] if kind == "dictionary" else []
    model = trained(again(kind, tmp_path, *fixed), tiny_tokenizer).model.eval()
    moved = [n for n, t in start.state_dict().items() if not torch.equal(t, model.state_dict()[n])]
    parts = {name.rpartition(".")[2] for name in moved}
    assert all(map(is_delta, moved))
    assert parts == ({"coefficients"} if kind == "dictionary" else {"factor_out", "factor_in"})
    export_delta_pack(model, tmp_path / "p.safetensors")
    load_delta_pack(start, tmp_path / "p.safetensors")
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in start.state_dict().items())


def test_a_run_resumes_exactly(tmp_path: Path, tiny_tokenizer: Any) -> None:
    start_of("dictionary", tmp_path, tiny_tokenizer)
    whole = trained(again("dictionary", tmp_path), tiny_tokenizer).model.state_dict()
    shutil.rmtree(tmp_path / "run")
    trained(again("dictionary", tmp_path), tiny_tokenizer, stop=2)
    second = plus_trainer(again("dictionary", tmp_path), tiny_tokenizer)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 4
    assert all(torch.equal(t, whole[n]) for n, t in second.model.state_dict().items())
    learned = {id(p) for group in second.optimizer.param_groups for p in group["params"]}
    deltas = second.model.base_model.deltas.parameters()
    assert learned == {id(parameter) for parameter in deltas}


def test_recomputed_activations_give_the_same_gradients(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    start_of("dictionary", tmp_path, tiny_tokenizer)
    kept = trained(again("dictionary", tmp_path, *WITHOUT_UPGRADES), tiny_tokenizer)
    shutil.rmtree(tmp_path / "run")
    changes = [*WITHOUT_UPGRADES, "training.gradient_checkpointing=true"]
    recomputed = trained(again("dictionary", tmp_path, *changes), tiny_tokenizer)
    expected = kept.model.state_dict()
    for name, tensor in recomputed.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


def test_an_added_part_is_refused_before_data_are_prepared(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    start_of("dictionary", tmp_path, tiny_tokenizer, "model.exit_affine=false")
    with pytest.raises(UsageError, match=r"only is deltas, but model\.exit_affine is true.*false"):
        check_checkpoints(again("dictionary", tmp_path))
    check_checkpoints(again("dictionary", tmp_path, "model.exit_affine=false"))


def test_another_tokenizer_is_refused(
    runs: tuple[Path, Path], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    source = runs[0] / "model"
    recipe = tiny_plus(tmp_path, *RUN, f"model.init_from={source}", ONLY)
    with pytest.raises(DataError, match=f"another tokenizer; set data.tokenizer={source}"):
        build_model(recipe, prepared(tiny_tokenizer))


def test_all_weights_train_without_the_key(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = build_model(tiny_plus(tmp_path), prepared(tiny_tokenizer))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert load_recipe(["recipe=delta_encoder/plus"]).training.only is None
