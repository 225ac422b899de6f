"""Where compiled code keeps a state that the recipe asks to rebuild, one line says so."""

import logging

import pytest
from nestling.recipes import compiler
from nestling.recipes.ddl.build import training_arguments
from nestling.recipes.ddl_schema import DdlRecipe
from nestling.recipes.recipe_loader import load_recipe, of_family


@pytest.mark.parametrize(("variant", "says"), [("ddl", True), ("ddl-cc", False)])
def test_a_vector_state_is_not_rebuilt_in_compiled_code(
    variant: str, says: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiler, "has_cpp_compiler", lambda: True)
    words = [
        "recipe=ddl/study", f"model.variant={variant}", "model.rebuild_state=true",
        "training.torch_compile=true",
    ]  # fmt: skip
    recipe = of_family(load_recipe(words), DdlRecipe)
    with caplog.at_level(logging.WARNING):
        training_arguments(recipe)
    assert ("does nothing for the vector state" in caplog.text) == says
