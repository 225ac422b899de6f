"""What a recipe is refused before training is what its slices would be refused after it."""

from typing import Any

import pytest
from nestling.configuration.configuration_delta_encoder import DeltaEncoderConfig
from nestling.configuration.delta_budget import DeltaBudget
from nestling.hub_cards.model_files import native_obstacle
from nestling.modeling.families import FAMILIES
from nestling.recipes.delta_encoder.model_config import delta_settings, sized_config
from nestling.recipes.native_validation import encoder_obstacle
from nestling.recipes.planned_sizes import planned_sizes
from nestling.recipes.recipe_loader import load_recipe

TINY, PLUS = "recipe=delta_encoder/tiny", "recipe=delta_encoder/plus"


@pytest.mark.parametrize(
    "arguments",
    [
        [TINY],
        [TINY, "model.head_dim=8"],
        [TINY, "model.head_dim=32"],
        [TINY, "model.num_hidden_layers=5", "model.depth_budgets=[1,2,5]"],
        [TINY, "model.extra_budgets=['0.5:2:1:32','0.5:2:2:32','0.5,1.0:4:2','0.5,0.505:4:2']"],
        [PLUS],
    ],
)
def test_obstacles_of_slices_are_those_of_the_export(arguments: list[str]) -> None:
    recipe: Any = load_recipe(arguments)
    planned, family = planned_sizes(recipe), FAMILIES["delta_encoder"]
    sizes = sized_config(recipe.model, 96)
    config: DeltaEncoderConfig = sized_config(recipe.model, 96, **delta_settings(recipe, sizes))
    for budget in (*planned.budgets, DeltaBudget.full(config)):
        found = native_obstacle(config, budget, family)
        assert encoder_obstacle(planned, budget) == encoder_obstacle(config, budget) == found
