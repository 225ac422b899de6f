"""``init``: a small checkpoint inside a larger model, with the parts of Delta-Matryoshka++."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.budget import ends_of
from nestling.modeling.delta_encoder_heads import DeltaEncoderForMaskedLM
from nestling.modeling.modernbert_weights import load_modernbert
from nestling.recipes.cli_errors import ModelFolderError, UsageError
from nestling.recipes.data.corpus import build_data
from nestling.recipes.delta_encoder.build import build_model, build_trainer
from nestling.recipes.delta_encoder.model_config import check_checkpoints
from nestling.recipes.delta_encoder.train import train
from nestling.recipes.evaluation_file import read_evaluation
from nestling.recipes.recipe_loader import load_recipe
from tiny_plus import KINDS, prepared, tiny_plus
from torch import Tensor
from transformers import AutoModelForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24}  # fmt: skip
LARGE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "intermediate_size": 48}  # fmt: skip
AXES = ["model.width_budgets=[0.5,1.0]", "model.head_budgets=[2,4]", "model.depth_budgets=[2,4]"]

# No part whose units have no order of their own.
PLAIN = ["model.conditioned_norms=false", "model.exit_affine=false", "model.token_routing=false",
         "model.delta_token_ratio=null", "loss.preview_weight=0",
         "loss.budget_penalty_weight=0"]  # fmt: skip


def save_modernbert(folder: Path, sizes: dict[str, int], seed: int) -> Path:
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=96, max_position_embeddings=64, pad_token_id=0, cls_token_id=2, sep_token_id=3,
        bos_token_id=2, eos_token_id=3, initializer_range=0.3, **sizes,
    )  # fmt: skip
    ModernBertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_modernbert(tmp_path_factory.mktemp("small"), SMALL, 0)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_modernbert(tmp_path_factory.mktemp("large"), LARGE, 1)


def logits(model: DeltaEncoderForMaskedLM, **budget: Any) -> Tensor:
    ids = torch.randint(5, 96, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=ids, **budget).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [True, False])
def test_the_small_checkpoint_is_one_of_the_budgets_and_trains(
    kind: str, named: bool, tmp_path: Path, tiny_tokenizer: Any, small: Path, large: Path
) -> None:
    """Exactly, with sizes from the target checkpoint or from ``model``; routing and norms too."""
    target = [f"init.target={large}"] if named else ["model.vocab_size=96"]
    recipe = tiny_plus(tmp_path, *KINDS[kind], *AXES, f"init.base={small}", *target,
                       "training.save_steps=100", "training.max_steps=2")  # fmt: skip
    data = prepared(tiny_tokenizer)
    model = build_model(recipe, data)
    budget = ends_of(model.config.budget_list())[0]
    assert str(budget) == "0.5:2:2:16" and model.config.delta_kind == recipe.model.delta
    assert model.config.token_routing and model.config.base_attention_heads == 2
    torch.testing.assert_close(
        logits(model, budget=budget), logits(load_modernbert(str(small))), rtol=1e-5, atol=1e-5
    )
    trainer = build_trainer(recipe, model, data)
    trainer.train()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_delta_comes_from_the_target(
    tmp_path: Path, tiny_tokenizer: Any, small: Path, large: Path
) -> None:
    """What lies outside the base are weights of the target, whose units were put in order."""
    changes = [*KINDS["dense"], *AXES, f"init.base={small}", f"init.target={large}"]
    data = prepared(tiny_tokenizer)
    grown = build_model(tiny_plus(tmp_path, *changes), data)
    filled = build_model(tiny_plus(tmp_path, *changes, "init.delta_from_target=true"), data)
    budget = ends_of(filled.config.budget_list())[0]
    assert torch.equal(logits(filled, budget=budget), logits(grown, budget=budget))
    theirs = load_modernbert(str(large)).model.layers[3].mlp.down.weight
    ours = filled.model.layers[3].mlp.down.weight
    # Layer 4 lies outside the base as a whole: the same numbers in another order.
    torch.testing.assert_close(ours.flatten().sort().values, theirs.flatten().sort().values)
    assert not grown.model.layers[3].mlp.down.weight.any()


def test_parts_are_added_to_a_loaded_checkpoint_without_changing_it(
    tmp_path: Path, tiny_tokenizer: Any, large: Path
) -> None:
    """``model.init_from`` with routing, conditioned norms and exits starts as the checkpoint."""
    changes = [*KINDS["dense"], *AXES, f"model.init_from={large}"]
    data = prepared(tiny_tokenizer)
    model = build_model(tiny_plus(tmp_path, *changes), data)
    assert model.config.token_routing and model.config.conditioned_norms and model.config.drop_path
    torch.testing.assert_close(
        logits(model), logits(load_modernbert(str(large))), rtol=1e-4, atol=1e-4
    )
    build_trainer(tiny_plus(tmp_path, *changes), model, data)


def test_the_recipe_in_the_middle_of_the_chain_has_no_norms_of_its_own() -> None:
    """An export folds them at one budget, so the model inside it would change."""
    model = load_recipe(["recipe=delta_encoder/mini_to_base"]).model
    assert not model.conditioned_norms and not model.exit_affine


# The other parts of `mini_to_base`, which an export folds or leaves out.
CHAIN_PARTS = [
    "model.delta=dictionary", "model.delta_atoms=2", "model.delta_rank=2", "model.drop_path=0.2",
    "model.token_routing=true", "model.delta_token_ratio=0.35", "loss.preview_weight=1",
    "loss.budget_penalty_weight=1",
]  # fmt: skip
BASE_SLICES = {
    "base": ["model.base_ratio=0.5", "model.base_heads=2"],
    "large": ["model.base_ratio=0.666667", "model.base_heads=4"],
}


@pytest.mark.parametrize("parts", [[], CHAIN_PARTS], ids=["plain", "parts"])
def test_a_model_trained_by_a_recipe_grows_twice(tmp_path: Path, parts: list[str]) -> None:
    """Mini inside base inside large: train, export as ModernBERT, grow, train, grow again."""
    common = [
        "recipe=delta_encoder/tiny", "data.max_bytes=100000", "training.max_steps=4",
        "training.save_steps=4", "evaluation.batches=1", "evaluation.bootstrap_samples=2",
        "evaluation.latency=false", "model.extra_budgets=[]",
    ]  # fmt: skip
    sizes = {"mini": (16, 2, 2, 24), "base": (32, 3, 4, 48), "large": (48, 4, 6, 72)}
    budgets = {"base": "0.5:2:2:16", "large": "0.666667:4:3:32"}
    # Every budget contains the model inside.
    axes = {
        "mini": ("[0.5,1.0]", "[1,2]", "[1,2]"),
        "base": ("[0.5,1.0]", "[2,4]", "[2,3]"),
        "large": ("[0.666667,1.0]", "[4,6]", "[3,4]"),
    }
    # Where mini lies in each of the larger ones.
    mini = {"base": "0.5:2:2:16", "large": "0.333334:2:2:16"}
    before = None
    for name, (hidden, layers, heads, channels) in sizes.items():
        folder = tmp_path / name
        changes = [
            f"output_dir={folder}", f"model.hidden_size={hidden}", f"model.head_dim={8}",
            f"model.num_hidden_layers={layers}", f"model.num_attention_heads={heads}",
            f"model.intermediate_size={channels}", "export.format=native",
            "export.budgets=[largest]", f"model.width_budgets={axes[name][0]}",
            f"model.head_budgets={axes[name][1]}", f"model.depth_budgets={axes[name][2]}",
        ]  # fmt: skip
        if before is not None:
            source = before / "slices" / native_folder(before)
            changes += [f"init.base={source}", f"data.tokenizer={source}"]
            changes += [*parts, *(BASE_SLICES[name] if parts else ())]
        if name == "large":
            changes.append(f"model.extra_budgets=['{mini['large']}']")
        recipe = load_recipe([*common, *changes])
        if before is not None:
            data = build_data(replace(recipe.data, pretokenized_path=None), recipe.seed)
            grown = build_model(recipe, data)
            assert budgets[name] in grown.config.budgets
            ids = torch.randint(5, 300, (3, 20), generator=torch.Generator().manual_seed(0))
            stock = AutoModelForMaskedLM.from_pretrained(source)
            with torch.no_grad():
                expected = stock(ids, torch.ones_like(ids)).logits
                found = grown.train(False)(ids, budget=budgets[name]).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        if name == "large":
            inner = DeltaEncoderForMaskedLM.from_pretrained(before / "model").train(False)
            with torch.no_grad():
                expected = inner(ids, budget=mini["base"]).logits
                found = grown(ids, budget=mini["large"]).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        train(recipe)
        measured = read_evaluation(folder / "metrics.json")["budgets"]
        assert name == "mini" or budgets[name] in {entry["budget"] for entry in measured}
        assert name == "mini" or mini[name] in {entry["budget"] for entry in measured}
        before = folder


def native_folder(run: Path) -> str:
    """The one slice that was exported."""
    [folder] = [path.name for path in (run / "slices").iterdir() if path.is_dir()]
    return folder


def test_training_goes_on_from_a_nested_encoder(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """``model.init_from`` takes our own folder; its units keep their order unless asked."""
    plain = [*KINDS["dense"], *AXES, *PLAIN]
    data = prepared(tiny_tokenizer)
    torch.manual_seed(1)
    start = build_model(tiny_plus(tmp_path, *plain), data)
    start.save_pretrained(tmp_path / "start")
    again = [*plain, f"model.init_from={tmp_path / 'start'}"]
    model = build_model(tiny_plus(tmp_path, *again), data)
    for name, value in start.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    asked = [*again, "model.reorder_by_importance=true"]
    sorted_model = build_model(tiny_plus(tmp_path, *asked), data)
    assert not torch.equal(
        sorted_model.model.layers[0].mlp.down.weight, start.model.layers[0].mlp.down.weight
    )
    torch.testing.assert_close(logits(sorted_model), logits(start), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dictionary", "low_rank"])
def test_training_goes_on_from_a_built_delta(
    kind: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """With the delta of the folder, whatever sizes the recipe gives deltas; parts may be added."""
    common = [*KINDS[kind], *AXES, "model.exit_affine=false", "training.save_steps=100"]
    data = prepared(tiny_tokenizer)
    torch.manual_seed(1)
    start = build_model(tiny_plus(tmp_path, *common), data)
    with torch.no_grad():  # away from the start, where deltas are zero
        for parameter in start.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    start.save_pretrained(tmp_path / "start")
    again = [*common, f"model.init_from={tmp_path / 'start'}", "model.delta_rank=5",
             "model.base_heads=3", "training.max_steps=2"]  # fmt: skip
    for exits in ("false", "true"):
        recipe = tiny_plus(tmp_path, *again, f"model.exit_affine={exits}")
        check_checkpoints(recipe)
        model = build_model(recipe, data)
        assert model.config.delta_kind == kind and model.config.delta_rank == 2
        assert model.config.base_attention_heads == 2
        assert (model.model.exit_affine is not None) == (exits == "true")
        for name, value in start.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        for budget in start.config.budgets:
            assert torch.equal(logits(model, budget=budget), logits(start, budget=budget))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build_trainer(recipe, model, data).train()
    moved = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert any(".deltas." in name for name in moved)


def test_the_kind_of_delta_of_a_checkpoint_stays(
    tmp_path: Path, tiny_tokenizer: Any, large: Path
) -> None:
    """Both ways, before data are prepared; each message names the value that works."""
    build_model(tiny_plus(tmp_path, *AXES), prepared(tiny_tokenizer)).save_pretrained(
        tmp_path / "built"
    )
    for source, asked, has in ((large, "dictionary", "dense"), (tmp_path / "built", "dense",
                               "dictionary")):  # fmt: skip
        changes = [*KINDS[asked], *AXES, f"model.init_from={source}"]
        with pytest.raises(UsageError, match=rf"model\.delta is {asked}.*set model\.delta={has}"):
            check_checkpoints(tiny_plus(tmp_path, *changes))
        check_checkpoints(tiny_plus(tmp_path, *[*changes, *KINDS[has]]))


@pytest.mark.parametrize("asked", ["dense", "dictionary", "low_rank"])
@pytest.mark.parametrize("source", ["dense", "dictionary", "low_rank"])
def test_the_delta_of_a_checkpoint_is_converted_where_asked(
    source: str, asked: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """To every form, in the sizes of the recipe; the base slice of the recipe stays exactly."""
    data = prepared(tiny_tokenizer)
    torch.manual_seed(1)
    start = build_model(tiny_plus(tmp_path, *KINDS[source], *AXES, *PLAIN), data).eval()
    with torch.no_grad():  # away from the start, where deltas are zero
        for parameter in start.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    start.save_pretrained(tmp_path / "start")
    changes = [*KINDS[asked], *AXES, *PLAIN, "model.delta_rank=3", "model.convert_delta=true",
               f"model.init_from={tmp_path / 'start'}"]  # fmt: skip
    recipe = tiny_plus(tmp_path, *changes)
    check_checkpoints(recipe)
    model = build_model(recipe, data)
    assert model.config.delta_kind == asked
    if asked != "dense":
        assert model.config.delta_rank == 3
    torch.testing.assert_close(
        logits(model, budget="0.5:2:3"), logits(start, budget="0.5:2:3"), rtol=1e-5, atol=1e-5
    )
    is_exact = torch.allclose(logits(model), logits(start), rtol=1e-4, atol=1e-4)
    # Rank 3 instead of 2 holds what its own kind held, and a part of what another did.
    assert is_exact == (asked in ("dense", source))
    build_trainer(recipe, model, data).train()


def test_a_converted_delta_is_trained_alone(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """A dense model becomes the base of upgrade packs, its other weights bit for bit the same."""
    data = prepared(tiny_tokenizer)
    torch.manual_seed(1)
    start = build_model(tiny_plus(tmp_path, *KINDS["dense"], *AXES, *PLAIN), data)
    start.save_pretrained(tmp_path / "start")
    asked = [*KINDS["low_rank"], *AXES, *PLAIN, f"model.init_from={tmp_path / 'start'}",
             "training.only=deltas"]  # fmt: skip
    with pytest.raises(UsageError, match=r"set model\.delta=dense, or model\.convert_delta=true"):
        check_checkpoints(tiny_plus(tmp_path, *asked))
    recipe = tiny_plus(tmp_path, *asked, "model.convert_delta=true")
    with pytest.raises(UsageError, match=r"base_heads is 9, .* 1\.\.4.*set model\.base_heads=2"):
        check_checkpoints(
            tiny_plus(tmp_path, *asked, "model.convert_delta=true", "model.base_heads=9")
        )
    check_checkpoints(recipe)
    model = build_model(recipe, data)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all(".deltas." in name for name in trained)
    norm = "model.final_norm.weight"
    assert torch.equal(model.state_dict()[norm], start.state_dict()[norm])
    with pytest.raises(UsageError, match=r"convert_delta is true.*give model\.init_from=RUN/model"):
        tiny_plus(tmp_path, *KINDS["low_rank"], "model.convert_delta=true")


def test_units_of_a_checkpoint_with_parts_are_not_sorted(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """Parts were trained for the order there is: refused before data are prepared."""
    build_model(tiny_plus(tmp_path, *AXES), prepared(tiny_tokenizer)).save_pretrained(tmp_path)
    asked = [*AXES, f"model.init_from={tmp_path}", "model.reorder_by_importance=true"]
    with pytest.raises(UsageError, match=r"reorder_by_importance is true.*=false"):
        check_checkpoints(tiny_plus(tmp_path, *asked))


def test_a_slice_that_routes_keeps_its_table_of_norms(tmp_path: Path, tiny_tokenizer: Any) -> None:
    whole = build_model(tiny_plus(tmp_path, *AXES), prepared(tiny_tokenizer))
    whole.slice("1.0:4:4").save_pretrained(tmp_path)
    asked = [*AXES, *KINDS["dense"], "model.exit_affine=false", f"model.init_from={tmp_path}"]
    with pytest.raises(UsageError, match=r"conditioned_norms is true.*a table; .*=false"):
        check_checkpoints(tiny_plus(tmp_path, *asked))
    check_checkpoints(tiny_plus(tmp_path, *asked, "model.conditioned_norms=false"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["model.base_heads=1"], ["model.base_heads is 1", "has 2", "set model.base_heads=2"]),
        (
            ["model.base_ratio=0.4"],
            ["model.base_ratio is 0.4", "19 MLP channels in layer 0", "has 24",
             "set model.base_ratio=0.5"],
        ),
        (["model.tap_layers=[1]", "training.budgets=[smallest,middle]"], ["without the largest"]),
        (["model.extra_budgets=['0.5:2:9']"], ["0.5:2:9", "nearest"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_checkpoints_names_the_key(
    changes: list[str], words: list[str], tmp_path: Path, small: Path, large: Path
) -> None:
    recipe = tiny_plus(tmp_path, *AXES, f"init.base={small}", f"init.target={large}", *changes)
    with pytest.raises(ValueError) as caught:
        check_checkpoints(recipe)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("key", ["init.base", "model.init_from", "loss.teacher"])
@pytest.mark.parametrize("place", ["nowhere", "/no/where", "org/nowhere"])
def test_an_unreadable_checkpoint_is_one_line_before_data_are_prepared(
    key: str, place: str, tmp_path: Path
) -> None:
    recipe = tiny_plus(tmp_path / "run", f"{key}={place}")
    with pytest.raises(ModelFolderError) as caught:
        train(recipe)
    assert f"{key}={place} is neither" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "data").exists()


def test_a_teacher_without_weights_is_one_line(
    tmp_path: Path, tiny_tokenizer: Any, large: Path
) -> None:
    folder = tmp_path / "teacher"
    ModernBertConfig.from_pretrained(large).save_pretrained(folder)
    recipe = tiny_plus(tmp_path, f"loss.teacher={folder}")
    data = prepared(tiny_tokenizer)
    with pytest.raises(ModelFolderError, match=r"loss\.teacher=.*teacher is neither"):
        build_trainer(recipe, build_model(recipe, data), data)


def test_a_missing_checkpoint_is_one_line(tmp_path: Path, tiny_tokenizer: Any) -> None:
    recipe = tiny_plus(tmp_path, f"init.base={tmp_path / 'nowhere'}")
    with pytest.raises(ModelFolderError, match=r"init\.base=.*nowhere"):
        build_model(recipe, prepared(tiny_tokenizer))


def test_taps_beyond_the_layers_of_a_checkpoint_name_the_key(tmp_path: Path, large: Path) -> None:
    """Before data are prepared: the depth is that of the checkpoint, not of the recipe."""
    plain = [*PLAIN, "model.delta=dense", "loss.sparsity_weight=0", "loss.orthogonality_weight=0"]
    start = [f"model.init_from={large}", "model.tap_layers=[9]"]
    recipe = tiny_plus(tmp_path, *plain, *AXES, *start)
    with pytest.raises(UsageError, match=r"tap_layers has 9, .*\(model\.init_from\)"):
        check_checkpoints(recipe)
