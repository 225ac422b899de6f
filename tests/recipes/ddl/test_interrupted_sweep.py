"""A sweep that was interrupted: a command that may not go on with it changes nothing."""

from pathlib import Path

import pytest
import transformers
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.ddl.train import train_all_variants, variant_recipe, with_data_folder
from nestling.recipes.ddl_schema import DdlRecipe
from nestling.recipes.recipe_loader import load_recipe, of_family, save_recipe
from nestling.trainers.checkpoint_files import MANIFEST_NAME

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)


def sweep(folder: Path, *changes: str) -> DdlRecipe:
    recipe = load_recipe(["recipe=ddl/tiny", f"output_dir={folder}", *changes])
    return with_data_folder(of_family(recipe, DdlRecipe))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Also where only a later variant refuses it.
@pytest.mark.parametrize("slug", ["baseline", "ddl"])
@pytest.mark.parametrize(
    ("resume", "said"), [(True, r"training\.lr was 0\.001 and is now 0\.002"), (False, "--resume")]
)
def test_a_refused_sweep_keeps_the_recipe_of_the_first(
    slug: str, resume: bool, said: str, tmp_path: Path
) -> None:
    recipe = sweep(tmp_path, "training.lr=0.001")
    one = variant_recipe(recipe, slug)
    checkpoint = tmp_path / slug / "checkpoint-10"
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST_NAME).write_text("{}")
    save_recipe(recipe, tmp_path)
    save_recipe(one, tmp_path / slug)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=said):
        train_all_variants(sweep(tmp_path, "training.lr=0.002"), resume=resume)
    assert contents(tmp_path) == before
