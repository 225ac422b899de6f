"""Budgets that cannot be trained together fail before anything is read or built."""

from typing import Any

import pytest
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.delta_encoder.model_config import delta_settings
from nestling.recipes.planned_sizes import planned_sizes
from nestling.recipes.recipe_loader import load_recipe
from nestling.recipes.recipe_schema import DeltaEncoderRecipe

TINY, PLUS = "recipe=delta_encoder/tiny", "recipe=delta_encoder/plus"
ALONE = "training.budgets=[largest]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # The full shape would stay untrained.
        ([TINY, "width_budgets=0.5,0.75"], ["model.width_budgets is [0.5, 0.75]", "add 1.0"]),
        ([PLUS, "head_budgets=2"], ["model.head_budgets is [2]", "add 4", "1.0:4:4"]),
        ([PLUS, "depth_budgets=1", "model.routing_layer=3"], ["model.depth_budgets is [1]"]),
        (
            [PLUS, "training.budgets=['0.5:2:2','0.5:2:3','0.5:2:4']"],
            ["training.budgets is", "without the largest budget 1.0:4:4", "add largest"],
        ),
        ([TINY, "training.budgets=[]"], ["training.budgets is []", "add largest"]),
        # No budget is inside all others.
        ([TINY, "model.extra_budgets=['0.25:4:3']"], ["extra_budgets", "add 0.25:2:1"]),
        (
            [TINY, "training.budgets=['1.0:2:2','0.5:4:2',largest]"],
            ["training.budgets is", "sandwich", "add 0.5:2:2", "fixed"],
        ),
        # Terms that compare budgets have none to compare.
        ([TINY, ALONE], ["loss.kd_weight is 1.0", "compares 2 budgets", "1.0:4:3"]),
        ([TINY, "training.budgets_per_step=1"], ["loss.kd_weight is 1.0", "budgets_per_step>=2"]),
        (
            [TINY, "loss.delta_weight=0.7", "training.budgets=[smallest,largest]"],
            ["loss.delta_weight is 0.7", "compares 3 budgets", "0.5:2:1, 1.0:4:3"],
        ),
        (
            [TINY, "loss.delta_weight=0.7", "training.budgets_per_step=2"],
            ["loss.delta_weight is 0.7", "budgets_per_step>=3"],
        ),
        (
            [PLUS, "training.calibration_budgets=['1.0:4:4']"],
            ["loss.kd_weight is 1.0", "training.calibration_budgets has 1.0:4:4"],
        ),
        # Nothing is left outside the base slice.
        (
            [PLUS, "base_heads=4", "base_ratio=0.9999999"],
            ["model.delta is dictionary", "base slice is the whole model", "model.delta=dense"],
        ),
        (
            [TINY, "enable_token_delta=true", "base_heads=4", "base_ratio=0.9999999"],
            ["model.token_routing is true", "no delta to route", "model.token_routing=false"],
        ),
        (
            [PLUS, "export.delta_token_ratio=0.5", "export.budgets=[smallest]"],
            ["export.delta_token_ratio is 0.5", "no delta is left", "add 1.0:4:4"],
        ),
    ],
)
def test_one_line_with_value_and_fix(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(arguments)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        # The fixes that the messages above name.
        [TINY, "width_budgets=0.5,0.75", "model.extra_budgets=['1.0:4:3']"],
        [TINY, "model.extra_budgets=['0.25:4:3','0.25:2:1']"],
        [TINY, "training.budgets=['1.0:2:2','0.5:4:2',largest]", "training.budget_sampling=fixed"],
        [TINY, ALONE, "loss.kd_weight=0"],
        [TINY, ALONE, "loss.teacher=org/teacher"],
        # Two budgets are enough for an upgrade; a fixed list does not count budgets_per_step.
        [TINY, "loss.mug_weight=0.1", "training.budgets_per_step=2"],
        [TINY, "loss.mug_weight=0.1", "training.budgets=[smallest,largest]"],
        [
            TINY, "loss.delta_weight=0.7", "training.budget_sampling=fixed",
            "training.budgets_per_step=1",
        ],
        [
            PLUS, "export.delta_token_ratio=1", "export.format=native",
            "export.budgets=[largest]",
        ],
        [PLUS, "export.delta_token_ratio=0.5", "export.budgets=[]"],
        # The sizes of a checkpoint are judged when its configuration has been read.
        [TINY, "init_from=org/model", "width_budgets=0.5,0.75"],
        [TINY, "init.base=org/model", "width_budgets=0.5,0.75"],
    ],
)  # fmt: skip
def test_what_can_be_trained_is_let_through(arguments: list[str]) -> None:
    assert isinstance(load_recipe(arguments), DeltaEncoderRecipe)


@pytest.mark.parametrize("name", ["tiny", "plus", "ablations", "ecommerce"])
def test_planned_sizes_are_those_of_the_configuration(name: str) -> None:
    """Every budget costs the same, has the same base slice and the same delta to route."""
    recipe: Any = load_recipe([f"recipe=delta_encoder/{name}", "model.vocab_size=96"])
    planned, section = planned_sizes(recipe), recipe.model
    sizes = {
        key: getattr(section, key)
        for key in (
            "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size"
        ).split()
    }
    config = DeltaEncoderConfig(**sizes, **delta_settings(recipe, DeltaEncoderConfig(**sizes)))
    assert len(planned.budgets) == 27 + len(section.extra_budgets)
    for budget in (*planned.budgets, DeltaBudget.full(config)):
        assert budget.flops(planned, 64) == budget.flops(config, 64)
        assert budget.base_shape(planned) == budget.base_shape(config)
        assert budget.has_routed_delta(planned) == budget.has_routed_delta(config)
