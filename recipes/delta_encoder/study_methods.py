"""The methods a study compares: each is the nested recipe with other keys, so anyone can run one.

Rivals follow the training rule of their paper on this encoder and this lattice. What a rival does
not train can still be cut from its model; a study measures every budget of all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...configuration.delta_budget import DeltaBudget
from ...configuration.delta_lattice import default_steps
from ..cli_errors import UsageError
from ..recipe_schema import DeltaEncoderRecipe, LossSection

NESTED, POST_HOC, SEPARATE = "nested", "post-hoc", "separate"
SHAPES = ("largest", "middle", "smallest")
LARGEST_ALONE = f"{SEPARATE}-largest"
LARGEST_FIRST, CONSTANT_SHARE = "largest-first", "constant-share"
# Ours and its variants; the others are rivals.
OURS = (NESTED, LARGEST_FIRST, CONSTANT_SHARE)
FIRST_RUN = "run-1"
# Each stage of a rival sees other rows first.
STAGE_SEED = 1000


@dataclass(frozen=True)
class Method:
    """One way to get models of several sizes.

    Attributes:
        title: for tables and plots.
        runs: gives its training runs, one after the other, each with the share of the steps it
            takes. A run that continues has ``init_from``; `stages_of` fills in the folders.
        source: where the rule comes from.
    """

    title: str
    runs: Callable[[DeltaEncoderRecipe, Mapping[str, DeltaBudget]], list["Run"]]
    source: str


@dataclass(frozen=True)
class Run:
    """One training run of a method.

    Attributes:
        recipe: what is trained; folder, seed and steps are set by `stages_of`.
        share: share of the steps of the method.
        continues: start from the model of the run before.
        sorts: sort its units by importance first.
        teacher: distil from the model of the run before, which stays as it was.
    """

    recipe: DeltaEncoderRecipe
    share: float = 1.0
    continues: bool = False
    sorts: bool = False
    teacher: bool = False


def stages_of(
    method: str,
    recipe: DeltaEncoderRecipe,
    named: Mapping[str, DeltaBudget],
    *,
    steps: int,
    seed: int,
    folder: Path,
) -> list[DeltaEncoderRecipe]:
    """Return the recipes of the training runs of one cell.

    The last run leaves model and metrics in the folder of the cell. That of post-hoc slices does
    not: its model is sorted and measured afterwards.

    Args:
        method: a name in `METHODS`.
        recipe: the nested recipe on prepared rows.
        named: budgets that ``smallest``, ``middle`` and ``largest`` stand for.
        steps: optimizer steps of all runs together.
        seed: seed of initialisation, order and masks.
        folder: folder of the cell.
    """
    runs = METHODS[method].runs(recipe, named)
    stages: list[DeltaEncoderRecipe] = []
    taken = 0
    for index, run in enumerate(runs):
        is_last = index == len(runs) - 1
        own = steps - taken if is_last else round(steps * run.share)
        taken += own
        is_cell = is_last and method != POST_HOC
        here = folder if is_cell else folder / f"run-{index + 1}"
        before = None if index == 0 else str(Path(stages[-1].output_dir) / "model")
        model, loss, evaluation = run.recipe.model, run.recipe.loss, recipe.evaluation
        if run.continues:
            model = replace(model, init_from=before, reorder_by_importance=run.sorts)
        if run.teacher:
            loss = replace(loss, teacher=before)
        if not is_cell:
            evaluation = replace(evaluation, budgets=["largest"], batches=1)
        stages.append(
            replace(
                run.recipe,
                seed=seed + STAGE_SEED * index,
                output_dir=str(here),
                model=model,
                loss=loss,
                # A study compares models after the last step; a best one would only cost time.
                training=replace(
                    run.recipe.training, max_steps=own, epochs=None, eval_steps=None
                ),
                export=replace(recipe.export, budgets=[], delta_token_ratio=None),
                evaluation=replace(evaluation, latency=False),
            )
        )
    return stages


def plain(
    recipe: DeltaEncoderRecipe, budgets: Sequence[DeltaBudget], sampling: str, per_step: int
) -> DeltaEncoderRecipe:
    """Return the recipe with masked LM alone, on these budgets, without any part of ours."""
    model = replace(
        recipe.model,
        delta="dense",
        conditioned_norms=False,
        exit_affine=False,
        token_routing=False,
        delta_token_ratio=None,
        drop_path=0.0,
        tap_layers=[],
    )
    training = replace(
        recipe.training,
        budgets=[str(budget) for budget in budgets],
        budget_sampling=sampling,
        budgets_per_step=per_step,
        three_phase=False,
        survival_alpha=None,
    )
    loss = LossSection(masked_lm_weight=recipe.loss.masked_lm_weight, kd_weight=0.0)
    return replace(recipe, model=model, training=training, loss=loss)


def separate(shape: str) -> Callable[..., list[Run]]:
    """Return the rule that trains a model of one named shape alone."""

    def runs(recipe: DeltaEncoderRecipe, named: Mapping[str, DeltaBudget]) -> list[Run]:
        budget, section = named[shape], recipe.model
        alone = plain(recipe, [], "fixed", 1)
        model = replace(
            alone.model,
            hidden_size=budget.hidden or section.hidden_size,
            head_dim=section.head_dim or section.hidden_size // section.num_attention_heads,
            num_attention_heads=budget.heads,
            num_hidden_layers=budget.depth,
            intermediate_size=single_width(budget, section.intermediate_size),
            width_budgets=[1.0],
            head_budgets=[budget.heads],
            depth_budgets=[budget.depth],
            extra_budgets=[],
        )
        training = replace(alone.training, budgets=["all"])
        return [Run(replace(alone, model=model, training=training))]

    return runs


def single_width(budget: DeltaBudget, channels: int) -> int:
    """Return the MLP channels of a budget whose layers are alike.

    Raises:
        UsageError: if they are not: a model of the study has one width.
    """
    if isinstance(budget.width, tuple):
        raise UsageError(
            f"budget {budget} has a width per layer; the study trains models of one width, so no "
            "named budget may have several: drop it from model.extra_budgets"
        )
    return max(1, int(budget.width * channels + 1e-4))


def nested(recipe: DeltaEncoderRecipe, named: Mapping[str, DeltaBudget]) -> list[Run]:
    """Ours: the recipe as it is."""
    return [Run(recipe)]


def largest_first(recipe: DeltaEncoderRecipe, named: Mapping[str, DeltaBudget]) -> list[Run]:
    """Ours with the largest budget alone for the first half, which leaves FLOPs for more steps.

    Its share does not rise: the others, which begin late, would hardly be trained.
    """
    alone = replace(recipe.training, largest_alone=0.5)
    return [Run(replace(recipe, training=alone, loss=_constant(recipe.loss)))]


def constant_share(recipe: DeltaEncoderRecipe, named: Mapping[str, DeltaBudget]) -> list[Run]:
    """Ours, whose largest budget keeps its first share of the masked-LM loss to the end."""
    return [Run(replace(recipe, loss=_constant(recipe.loss)))]


def _constant(loss: LossSection) -> LossSection:
    return replace(loss, largest_share_end=None)


def post_hoc(recipe: DeltaEncoderRecipe, named: Mapping[str, DeltaBudget]) -> list[Run]:
    """Train the largest budget only; the study then sorts the units and slices."""
    return [Run(plain(recipe, [named["largest"]], "fixed", 1))]


def matformer(recipe: DeltaEncoderRecipe, named: Mapping[str, DeltaBudget]) -> list[Run]:
    """Every MLP width at every step, all heads and layers, no distillation."""
    largest = named["largest"]
    widths = [replace(largest, width=width) for width in recipe.model.width_budgets]
    return [Run(plain(recipe, widths, "fixed", len(widths)))]


def depth_exits(recipe: DeltaEncoderRecipe, named: Mapping[str, DeltaBudget]) -> list[Run]:
    """Every depth at every step, full width, no distillation.

    The original's pre-training also nests the width of the output and trains a decoder; its
    distillation belongs to fine-tuning. 2DMSE trains the last and one random depth instead.
    """
    largest = named["largest"]
    exits = [replace(largest, depth=depth) for depth in depths_of(recipe)]
    return [Run(plain(recipe, exits, "fixed", len(exits)))]


def sorted_net(recipe: DeltaEncoderRecipe, named: Mapping[str, DeltaBudget]) -> list[Run]:
    """Budgets of the lattice drawn at random, as many a step as ours, no distillation.

    The original accumulates the gradients of several random sub-models before an update. Here all
    of them see the whole batch, which at equal tokens is the stronger form.
    """
    rule = plain(recipe, [], "random", recipe.training.budgets_per_step)
    return [Run(replace(rule, training=replace(rule.training, budgets=["all"])))]


def dyna_bert(recipe: DeltaEncoderRecipe, named: Mapping[str, DeltaBudget]) -> list[Run]:
    """A trained model, its units sorted; then width, then width and depth, from a fixed teacher.

    Heads and MLP channels shrink together, and a step runs every budget of its stage. Half of the
    steps train the first model, a quarter each stage, each with a warm-up and a decay of its own.
    Unlike the original, which distils while it fine-tunes, this keeps the masked-LM loss beside
    the distillation, keeps the first layers rather than every other one, distils logits only, and
    augments no data.
    """
    largest = named["largest"]
    wide = [
        DeltaBudget(width, heads, largest.depth)
        for width, heads in zip(recipe.model.width_budgets, paired_heads(recipe), strict=True)
    ]
    both = [replace(budget, depth=depth) for depth in depths_of(recipe) for budget in wide]

    def distilled(budgets: Sequence[DeltaBudget]) -> DeltaEncoderRecipe:
        rule = plain(recipe, budgets, "fixed", len(budgets))
        return replace(rule, loss=replace(rule.loss, kd_weight=1.0))

    return [
        Run(plain(recipe, [largest], "fixed", 1), share=0.5),
        Run(distilled(wide), share=0.25, continues=True, sorts=True, teacher=True),
        Run(distilled(both), share=0.25, continues=True, teacher=True),
    ]


def depths_of(recipe: DeltaEncoderRecipe) -> list[int]:
    """Return the depths of the lattice."""
    layers = recipe.model.num_hidden_layers
    return list(recipe.model.depth_budgets) or default_steps(layers)


def paired_heads(recipe: DeltaEncoderRecipe) -> list[int]:
    """Return for each MLP width the number of heads whose share is nearest."""
    model = recipe.model
    heads = list(model.head_budgets) or default_steps(model.num_attention_heads)
    return [
        min(heads, key=lambda h: abs(h / model.num_attention_heads - width))
        for width in model.width_budgets
    ]


METHODS: dict[str, Method] = {
    NESTED: Method("ours", nested, "this repository"),
    LARGEST_FIRST: Method("ours, largest first", largest_first, "this repository"),
    CONSTANT_SHARE: Method("ours, constant share", constant_share, "this repository"),
    POST_HOC: Method("post-hoc slices", post_hoc, "no training of slices"),
    "matformer": Method("MatFormer", matformer, "https://arxiv.org/abs/2310.07707"),
    "dynabert": Method("DynaBERT", dyna_bert, "https://arxiv.org/abs/2004.04037"),
    "sortednet": Method("SortedNet", sorted_net, "https://arxiv.org/abs/2309.00255"),
    "starbucks": Method("Starbucks (depth exits)", depth_exits, "https://arxiv.org/abs/2410.13230"),
    **{
        f"{SEPARATE}-{shape}": Method(f"separate, {shape}", separate(shape), "one model each")
        for shape in SHAPES
    },
}
