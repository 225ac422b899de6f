"""What a recipe says of its decoder before anything is loaded is what the configuration says."""

from typing import Any

import pytest
import transformers
from nestling.configuration.budget import NAMED_BUDGETS, select_budgets
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR, DdlConfig
from nestling.recipes import ddl_validation
from nestling.recipes.ddl_schema import DdlRecipe
from nestling.recipes.ddl_validation import check_decoder_budgets, lattice_of, model_settings
from nestling.recipes.recipe_loader import load_recipe, of_family

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)

TINY = "recipe=ddl/tiny"


@pytest.mark.parametrize(
    "changes",
    [
        ["loss.kd_weight=1", "training.budgets_per_step=2"],
        # A fixed list does not count budgets_per_step.
        ["loss.kd_weight=1", "training.budgets_per_step=1", "training.budget_sampling=fixed"],
        ["training.budget_sampling=random", "training.budgets_per_step=1"],
        ["training.budgets=['1:2','2:1',largest]", "training.budget_sampling=fixed"],
        ["evaluation.sequence_length=128"],
        ["export.format=native", "model.variant=baseline", "model.d_value=null",
         "model.value_budgets=[]"],
        ["export.format=native", "export.budgets=[]"],
        ["seed=4294967295"],
    ],
)
def test_what_can_be_done_is_let_through(changes: list[str]) -> None:
    assert isinstance(load_recipe([TINY, *changes]), DdlRecipe)


def test_the_model_of_an_unopened_checkpoint_is_not_judged() -> None:
    start = ["model.init_from=start", "model.value_budgets=[]", "model.depth_budgets=[]"]
    changes = ["training.budgets=[smallest,largest]", "loss.kd_weight=1", "export.format=native",
               "evaluation.sequence_length=999"]  # fmt: skip
    assert isinstance(load_recipe([TINY, *start, *changes]), DdlRecipe)


@pytest.mark.parametrize("preset", [None, "paper", "reference-code", "ddl-rs"])
@pytest.mark.parametrize("variant", ["baseline", "ddl", "ddl-cc"])
def test_planned_budgets_are_those_of_the_configuration(
    variant: str, preset: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []

    def note(recipe: DdlRecipe, config: Any) -> None:
        planned.append(config)
        check_decoder_budgets(recipe, config)

    monkeypatch.setattr(ddl_validation, "check_decoder_budgets", note)
    value_budgets = "[1,3]" if variant == "ddl-cc" else "[]"
    recipe = of_family(
        load_recipe(
            [
                "recipe=ddl/nested", f"model.variant={variant}", "model.hidden_size=56",
                f"model.preset={'null' if preset is None else preset}",
                f"model.value_budgets={value_budgets}",
            ]
        ),
        DdlRecipe,
    )  # fmt: skip
    settings = {**model_settings(recipe.model, recipe.data.max_length), "vocab_size": 1}
    config = DdlConfig(**settings) if preset is None else DdlConfig.preset(preset, **settings)
    config.budgets = [str(budget) for budget in lattice_of(recipe.model, config)]
    assert planned[0].budget_list() == config.budget_list()
    assert planned[0].intermediate_size == config.intermediate_size
    for budget in config.budget_list():
        assert budget.flops(planned[0], 64) == budget.flops(config, 64)
    named = select_budgets(NAMED_BUDGETS, config)
    assert select_budgets(NAMED_BUDGETS, planned[0]) == named
