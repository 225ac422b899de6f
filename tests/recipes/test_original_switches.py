"""The switches of the original's command set what they switch, at the original's values."""

from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.delta_encoder.loss_terms import weight_schedules
from nestling.recipes.recipe_catalogue import RECIPES_FOLDER
from nestling.recipes.recipe_loader import load_recipe
from nestling.recipes.recipe_overrides import KEY_ALIASES, SWITCHES, WITHOUT_KEY, recipe_keys
from nestling.recipes.recipe_schema import DeltaEncoderRecipe

TINY, PLUS = "recipe=delta_encoder/tiny", "recipe=delta_encoder/plus"
DEMO = "recipe=delta_encoder/demo"  # a kd_weight of its own, and no other part
ON = {
    "enable_kd": {"loss.kd_weight": 1.0, "loss.kd_temperature": 2.0},
    "enable_mug": {"loss.mug_weight": 0.1},
    "enable_cscf": {"loss.cscf_weight": 0.1},
    "enable_delta_depth": {"training.survival_alpha": 0.5},
    "enable_dds": {
        "model.delta": "dictionary",
        "model.delta_atoms": 16,
        "model.delta_rank": 64,
        "loss.sparsity_weight": 1e-4,
        "loss.orthogonality_weight": 1e-4,
    },
    "enable_token_delta": {
        "model.token_routing": True,
        "loss.preview_weight": 1.0,
        "loss.budget_penalty_weight": 1.0,
    },
    "enable_three_phase": {
        "training.three_phase": True,
        "loss.delta_weight": 0.7,
        "loss.mug_weight": 0.1,
        "loss.cscf_weight": 0.1,
        "loss.packing_weight": 1e-3,
    },
}
OFF = {
    "enable_kd": {"loss.kd_weight": 0.0},
    "enable_mug": {"loss.mug_weight": 0.0},
    "enable_cscf": {"loss.cscf_weight": 0.0},
    "enable_delta_depth": {"training.survival_alpha": 0.0},
    "enable_dds": {"model.delta": "dense"},
    "enable_token_delta": {
        "model.token_routing": False,
        "loss.preview_weight": 0.0,
        "export.delta_token_ratio": None,
    },
    "enable_three_phase": {"training.three_phase": False},
}


def values_of(recipe: Any, keys: Any) -> dict[str, Any]:
    content = asdict(recipe)
    return {key: reduce(lambda part, name: part[name], key.split("."), content) for key in keys}


@pytest.mark.parametrize("name", ON)
def test_each_switch_works_alone(name: str) -> None:
    """On in a recipe without the part, off in a recipe that has every part."""
    on = load_recipe([DEMO, f"{name}=true"])
    assert values_of(on, ON[name]) == ON[name]
    off = load_recipe([PLUS, f"{name}=False"])
    assert values_of(off, OFF[name]) == OFF[name]


def test_without_routing_slices_have_no_share_either(tmp_path: Path) -> None:
    routed = tmp_path / "routed.yaml"
    plus = RECIPES_FOLDER / "delta_encoder" / "plus.yaml"
    routed.write_text(f"{plus.read_text()}\nexport: {{delta_token_ratio: 0.5}}\n")
    recipe: Any = load_recipe([f"recipe={routed}"])
    assert recipe.export.delta_token_ratio == 0.5
    recipe = load_recipe([f"recipe={routed}", "enable_token_delta=false"])
    assert recipe.export.delta_token_ratio is None


@pytest.mark.parametrize("recipe", ["demo", "ecommerce", "tiny"])
def test_all_switches_give_any_recipe_the_terms_of_plus(recipe: str) -> None:
    """Everything of its loss that the original has a switch for; so each part is trained."""
    switched = load_recipe([f"recipe=delta_encoder/{recipe}", *(f"{name}=true" for name in ON)])
    plus = load_recipe([PLUS])
    # The original has no switch for the shares.
    shares = {key: getattr(switched.loss, key) for key in ("largest_share", "largest_share_end")}
    assert asdict(switched.loss) == {**asdict(plus.loss), **shares}
    ours, theirs = (weight_schedules(loaded) for loaded in (switched, plus))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert [ours[name](step, 9) for step in range(9)] == [weight(step, 9) for step in range(9)]


def test_the_switch_of_one_term_wins_over_that_of_the_phases() -> None:
    for arguments in (
        ["enable_three_phase=true", "enable_mug=false"],
        ["enable_mug=false", "enable_three_phase=true"],
    ):
        loss = load_recipe([DEMO, *arguments]).loss
        assert (loss.mug_weight, loss.cscf_weight) == (0.0, 0.1)


def test_fp16_computes_in_bf16_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert load_recipe([TINY, "fp16=true"]).training.bf16 is True
    [record] = caplog.records
    assert "fp16=true" in record.getMessage() and "bf16" in record.getMessage()
    assert "\n" not in record.getMessage()
    caplog.clear()
    assert load_recipe([TINY, "fp16=false"]).training.bf16 is False
    load_recipe([TINY, "bf16=true"])
    assert not caplog.records


def test_a_key_given_beside_its_switch_wins() -> None:
    """In either order: the original has a switch and a weight for the same term."""
    for arguments in (["alpha_kd=0.5", "enable_kd=true"], ["enable_kd=true", "alpha_kd=0.5"]):
        assert load_recipe([TINY, *arguments]).loss.kd_weight == 0.5


def test_the_original_names_of_two_weights() -> None:
    loss = load_recipe([PLUS, "eta_dds_sparsity=0.5", "gamma_packing=0.25"]).loss
    assert (loss.sparsity_weight, loss.packing_weight) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("enable_mug=0.1", ["enable_mug is '0.1'", "true or false"]),
        ("enable_mugg=true", ["did you mean enable_mug?"]),
        ("enable_ddss=true", ["did you mean enable_dds?"]),
        ("warmup_steps=100", ["without a key", "training.warmup_ratio"]),
        ("dropout=0.1", ["without a key", "model.drop_path"]),
    ],
)
def test_mistakes_are_one_line(argument: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe([TINY, argument])
    assert all(word in str(caught.value) for word in words)


def test_options_of_the_encoder_are_not_explained_to_a_decoder() -> None:
    with pytest.raises(UsageError, match="unknown recipe key 'dropout'"):
        load_recipe(["recipe=ddl/tiny", "dropout=0.1"])


def test_options_of_the_script_reach_their_keys() -> None:
    recipe = load_recipe(
        [PLUS, "token_delta_ratio=0.25", "sample_per_step=3", "grad_accum=2", "log_steps=7",
         "phase_ratios=0.2,0.3,0.5", "text_column=body", "use_packing=false", "vocab_size=512"]
    )  # fmt: skip
    training = recipe.training
    assert recipe.model.delta_token_ratio == 0.25 and recipe.model.vocab_size == 512
    assert (training.budgets_per_step, training.gradient_accumulation_steps) == (3, 2)
    assert training.logging_steps == 7 and training.phase_ratios == [0.2, 0.3, 0.5]
    assert recipe.data.text_column == "body" and not recipe.data.packing


def test_switches_set_keys_that_exist() -> None:
    keys = recipe_keys(DeltaEncoderRecipe)
    assert not set(WITHOUT_KEY) & {*keys, *KEY_ALIASES, *SWITCHES}
    named = {key for switch in SWITCHES.values() for side in switch for key in side}
    assert named <= set(keys) and not set(SWITCHES) & set(KEY_ALIASES)
