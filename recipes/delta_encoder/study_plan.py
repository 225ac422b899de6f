"""What the cells of a study train: recipes, steps and costs, before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from ...configuration.configuration_delta_encoder import DeltaEncoderConfig
from ...configuration.delta_budget import DeltaBudget
from ..cli_errors import UsageError
from ..data.corpus import build_data
from ..evaluation.evaluation_summary import named_budgets
from ..recipe_loader import load_recipe, of_family
from ..recipe_schema import DeltaEncoderRecipe
from .model_config import scratch_config
from .study_ablations import ABLATION_CHANGES
from .study_cells import (
    ABLATIONS,
    COMPUTE,
    RATES,
    TABLES,
    TOKENS,
    cell_folder,
    finished_steps,
    reference_table,
)
from .study_costs import TrainingCost, total_cost, total_steps, training_cost
from .study_methods import LARGEST_ALONE, METHODS, NESTED, POST_HOC, SEPARATE, SHAPES, stages_of
from .study_rates import method_of, split_rate_name
from .train import prepare

# FLOPs are not quite proportional to steps where budgets are drawn at random.
CORRECTIONS = 3
ALONE = tuple(f"{SEPARATE}-{shape}" for shape in SHAPES)
# Tables that may be shorter than the study.
OWN_LENGTH = (ABLATIONS, RATES)


class Study(NamedTuple):
    """A study ready to run.

    Attributes:
        arguments: what the recipe was loaded from; an ablation adds its changes.
        recipe: the nested recipe on the prepared rows.
        tokenizer: of the rows.
        config: configuration of the nested model.
        counts: ``rows`` and ``tokens`` of the training split.
        folder: folder of the study.
        lengths: table -> optimizer steps of ours in it.
        known_steps: steps of the cells counted so far.
    """

    arguments: tuple[str, ...]
    recipe: DeltaEncoderRecipe
    tokenizer: PreTrainedTokenizerFast
    config: DeltaEncoderConfig
    counts: dict[str, int]
    folder: Path
    lengths: dict[str, int]
    known_steps: dict[tuple[str, str], int]

    def named(self) -> dict[str, DeltaBudget]:
        """Return the budgets that have a name."""
        found = named_budgets(self.config)
        return {name: DeltaBudget.parse(budget) for name, budget in found.items()}

    def knows(self, table: str, name: str) -> bool:
        """Whether a table may have cells of this name."""
        if name == NESTED:
            return table == reference_table(table, self.lengths)
        if table == RATES:
            return split_rate_name(name) is not None
        return name in (ABLATION_CHANGES if table == ABLATIONS else METHODS)

    def stages(self, table: str, name: str, seed: int, steps: int) -> list[DeltaEncoderRecipe]:
        """Return the recipes of the training runs of a cell.

        Post-hoc slices have one even where they take the model of their twin, since it costs the
        same.
        """
        recipe, rule = self.recipe, name
        if table == ABLATIONS and name != NESTED:
            recipe, rule = self.changed(name), NESTED
        rated = split_rate_name(name) if table == RATES else None
        if rated is not None:
            rule, factor = rated
            recipe = replace(recipe, training=replace(recipe.training, lr=factor * self.lr))
        folder = cell_folder(self.folder, table, name, seed)
        return stages_of(rule, recipe, self.named(), steps=steps, seed=seed, folder=folder)

    def changed(self, ablation: str) -> DeltaEncoderRecipe:
        """Return the recipe with one part changed, on the same rows."""
        changed = load_recipe([*self.arguments, *ABLATION_CHANGES[ablation]])
        return replace(of_family(changed, DeltaEncoderRecipe), data=self.recipe.data)

    @property
    def lr(self) -> float:
        """The learning rate that all methods share."""
        return self.recipe.training.lr

    def cost(self, stages: Sequence[DeltaEncoderRecipe]) -> TrainingCost:
        """Return what the runs of a cell cost."""
        return total_cost(
            [
                training_cost(stage, scratch_config(stage, self.tokenizer), self.counts)
                for stage in stages
            ]
        )

    def steps(self, table: str, name: str) -> int:
        """Return the optimizer steps of a cell, all its runs together."""
        known = self.known_steps.get((table, name))
        if known is None:
            known = self.known_steps[table, name] = self._count_steps(table, name)
        return known

    def _count_steps(self, table: str, name: str) -> int:
        steps = self.lengths[table]
        if table != COMPUTE or name == NESTED:
            return steps
        sharing = ALONE if name in ALONE else (name,)
        ours = self.cost(self.stages(TOKENS, NESTED, 0, steps)).flops
        for _ in range(CORRECTIONS):
            theirs = sum(self.cost(self.stages(TOKENS, m, 0, steps)).flops for m in sharing)
            steps = max(1, round(steps * ours / theirs))
        return steps

    def twin_of(self, table: str, name: str) -> str | None:
        """Return the cell whose model post-hoc slices are cut from; None where they train one.

        The largest model alone is trained by the same rule, with the same seed, on the same rows.
        Only at equal compute it has fewer steps, since it shares them with two other models.
        """
        if method_of(name) != POST_HOC:
            return None
        twin = f"{LARGEST_ALONE}{name.removeprefix(POST_HOC)}"
        return twin if self.steps(table, twin) == self.steps(table, name) else None


def open_study(
    arguments: Sequence[str], folder: Path, lengths: Mapping[str, int] | None = None
) -> Study:
    """Prepare the rows of a study, once.

    Args:
        arguments: ``recipe=NAME`` and ``key=value`` changes.
        folder: folder of the study.
        lengths: optimizer steps of ours in ``ablations`` and ``rates``. A table that is not named
            has the length of its finished cells, or else that of the recipe.

    Raises:
        UsageError: if a length is below 1.
    """
    recipe = of_family(load_recipe(arguments), DeltaEncoderRecipe)
    data_folder = prepare(replace(recipe, output_dir=str(folder)))
    recipe = replace(recipe, data=replace(recipe.data, pretokenized_path=str(data_folder)))
    prepared = build_data(recipe.data, recipe.seed)
    config = scratch_config(recipe, prepared.tokenizer)
    counts = prepared.manifest["counts"]["train"]
    chosen = dict.fromkeys(TABLES, total_steps(recipe, counts))
    for table in OWN_LENGTH:
        asked = (lengths or {}).get(table)
        if asked is not None and asked < 1:
            raise UsageError(f"the table {table} has {asked} steps; give 1 or more")
        chosen[table] = asked or finished_steps(folder, table) or chosen[table]
    return Study(
        tuple(arguments), recipe, prepared.tokenizer, config, counts, folder, chosen, {}
    )
