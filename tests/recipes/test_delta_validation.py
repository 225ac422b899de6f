"""Keys of Delta-Matryoshka++ that do not go together fail before anything is read or built."""

from dataclasses import replace

import pytest
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.delta_encoder.budget_plan import planner_of
from nestling.recipes.delta_encoder.model_config import sized_config
from nestling.recipes.recipe_loader import load_recipe, of_family
from nestling.recipes.recipe_schema import DeltaEncoderRecipe

TINY, PLUS = "recipe=delta_encoder/tiny", "recipe=delta_encoder/plus"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([TINY, "model.delta=dds"], ["model.delta", "dense, dictionary, low_rank"]),
        ([TINY, "model.base_ratio=1"], ["model.base_ratio", "(0, 1)"]),
        ([TINY, "model.base_heads=5"], ["model.base_heads is 5", "1..4"]),
        ([TINY, "model.drop_path=1"], ["model.drop_path", "[0, 1)"]),
        ([TINY, "model.tap_layers=[3]"], ["model.tap_layers has 3", "0..2"]),
        ([TINY, "model.delta_token_ratio=0.5"], ["delta_token_ratio", "token_routing=true"]),
        ([TINY, "model.delta_token_ratio=1"], ["delta_token_ratio", "(0, 1)"]),
        ([TINY, "export.delta_token_ratio=0.5"],
         ["export.delta_token_ratio is 0.5", "token_routing=true"]),
        ([PLUS, "export.delta_token_ratio=0"], ["export.delta_token_ratio is 0", "(0, 1]"]),
        ([PLUS, "export.delta_token_ratio=1.5"], ["export.delta_token_ratio", "(0, 1]"]),
        ([PLUS, "export.delta_token_ratio=0.5", "export.format=native"],
         ["export.delta_token_ratio is 0.5", "export.format is native", "export.format=auto"]),
        # Half of the heads do not fill the hidden width; the widths of a layer must be alike.
        ([TINY, "export.format=native"],
         ["export.format is native", "budget 0.5:2:1 of export.budgets",
          "heads x head_dim = 2 x 16 is not the hidden size 64", "export.format=auto",
          "some that have one: 0.5:4:1, 0.5:4:2"]),
        ([TINY, "export.format=native", "export.budgets=[largest,'0.5,1.0:4:2']"],
         ["budget 0.5,1.0:4:2", "intermediate_size differs between layers: [48, 96]"]),
        ([TINY, "export.format=native", "model.head_dim=8"],
         ["2 x 8 is not the hidden size 64", "set export.format=auto"]),
        ([TINY, "loss.preview_weight=1"], ["loss.preview_weight", "token_routing=true"]),
        ([TINY, "loss.budget_penalty_weight=1"], ["budget_penalty_weight", "token_routing=true"]),
        ([TINY, "model.token_routing=true"], ["preview_weight", "would learn nothing"]),
        ([PLUS, "model.routing_layer=4"], ["model.routing_layer is 4", "0..3"]),
        ([PLUS, "model.attn_implementation=flex_attention"], ["token routing", "auto, sdpa"]),
        ([TINY, "loss.sparsity_weight=1e-4"], ["sparsity_weight", "model.delta=dictionary"]),
        ([TINY, "loss.orthogonality_weight=1"], ["orthogonality_weight", "dictionary"]),
        ([PLUS, "training.budgets_per_step=2"], ["loss.delta_weight", "budgets_per_step>=3"]),
        (
            [TINY, "loss.cscf_weight=1", "training.budgets_per_step=1", "loss.kd_weight=0"],
            ["loss.cscf_weight", "budgets_per_step>=2"],
        ),
        ([PLUS, "training.gradient_checkpointing=true"], ["gradient_checkpointing", "upgrade"]),
        ([TINY, "loss.mug_margin=0.1"], ["loss.mug_margin", "loss.mug_weight is 0"]),
        ([TINY, "loss.cscf_cosine_weight=1"], ["loss.cscf_cosine_weight is 1.0", "cscf_weight"]),
        ([TINY, "loss.delta_weight=-1"], ["loss.delta_weight", ">= 0"]),
        ([TINY, "training.phase_ratios=[0.5,0.5]"], ["phase_ratios", "three numbers"]),
        ([TINY, "training.phase_ratios=[0.5,0.5,0.5]"], ["phase_ratios", "sum to"]),
        (
            [TINY, "training.budget_sampling=random"],
            ["loss.kd_weight is 1.0", "largest budget at every step", "sandwich or fixed"],
        ),
        (
            [TINY, "training.budget_sampling=random", "loss.kd_weight=0", "loss.cscf_weight=0.1"],
            ["loss.cscf_weight is 0.1", "random"],
        ),
        (
            [TINY, "training.budget_sampling=random", "loss.kd_weight=0",
             "loss.largest_share=0.5"],
            ["loss.largest_share is 0.5", "need not run the largest budget"],
        ),
        (
            [PLUS, "training.budget_sampling=random", "loss.kd_weight=0", "loss.delta_weight=0",
             "loss.mug_weight=0", "loss.cscf_weight=0"],
            ["loss.preview_weight is 1.0", "largest budget at every step"],
        ),
        ([TINY, "loss.masked_lm_weight=0"],
         ["loss.masked_lm_weight is 0", "loss.teacher is null", "above 0, or give loss.teacher"]),
        ([TINY, "loss.teacher=org/teacher", "loss.kd_weight=0"],
         ["loss.teacher is org/teacher", "loss.kd_weight is 0", "loss.teacher=null"]),
        ([TINY, "data.streaming=true", "training.epochs=2", "training.max_steps=null"],
         ["training.epochs is 2.0", "data.streaming is true", "training.max_steps=…"]),
        ([TINY, "data.streaming=true", "training.dataloader_num_workers=2"],
         ["training.dataloader_num_workers is 2", "training.dataloader_num_workers=0"]),
        ([TINY, "evaluation.sequence_length=129"],
         ["evaluation.sequence_length is 129", "at most 128", "model.max_position_embeddings"]),
        ([TINY, "seed=-1"], ["seed is -1", "0..4294967295"]),
        ([TINY, "seed=4294967296"], ["seed is 4294967296", "0..4294967295"]),
        ([TINY, "loss.largest_share=1"], ["loss.largest_share", "(0, 1)"]),
        ([TINY, "loss.largest_share_end=1"], ["loss.largest_share_end", "(0, 1)"]),
        (
            [TINY, "loss.largest_share=null", "loss.largest_share_end=0.9"],
            ["loss.largest_share_end is 0.9", "set loss.largest_share too"],
        ),
        ([TINY, "training.survival_alpha=1.5"], ["survival_alpha", "[0, 1]"]),
        ([TINY, "training.largest_alone=1"], ["largest_alone", "[0, 1)"]),
        (
            [TINY, "training.largest_alone=0.5", "training.three_phase=true"],
            ["training.largest_alone", "three_phase=false"],
        ),
        (
            [TINY, "training.largest_alone=0.5", "training.budget_sampling=random",
             "loss.kd_weight=0", "loss.largest_share=null"],
            ["training.largest_alone", "budget_sampling=sandwich"],
        ),
        ([PLUS, "training.budget_sampling=fixed"], ["training.three_phase", "sandwich"]),
        (
            [TINY, "training.survival_alpha=0.5", "training.budget_sampling=fixed"],
            ["training.survival_alpha", "sandwich"],
        ),
        ([TINY, "init.target=a/b"], ["init.target", "init.base=…"]),
        ([TINY, "init.delta_from_target=true"], ["init.delta_from_target", "init.base=…"]),
        ([TINY, "init.base=a/b", "model.init_from=c/d"], ["init.base=a/b", "model.init_from=c/d"]),
        ([TINY, "init.base=a/b", "init.delta_from_target=true"], ["init.target=…"]),
        ([PLUS, "training.only=delta"], ["training.only is 'delta'", "one of deltas"]),
        ([PLUS, "training.only=deltas"], ["training.only is deltas", "model.init_from=RUN/model"]),
        (
            [TINY, "training.only=deltas", "model.init_from=a/b"],
            ["training.only is deltas", "model.delta is dense", "training.only=null"],
        ),
        (
            [PLUS, "training.only=deltas", "init.base=a/b"],
            ["training.only is deltas", "model.init_from=RUN/model"],
        ),
        (
            [PLUS, "init.base=a/b", "init.target=c/d", "init.delta_from_target=true"],
            ["model.delta is dictionary", "model.delta=dense"],
        ),
    ],
)
def test_one_line_with_value_and_fix(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(arguments)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_delta_of_an_unopened_checkpoint_is_not_judged() -> None:
    recipe = load_recipe([PLUS, "model.init_from=a/b"])
    assert (recipe.model.init_from, recipe.model.delta) == ("a/b", "dictionary")


@pytest.mark.parametrize(
    "changes",
    [
        ["loss.masked_lm_weight=0", "loss.teacher=org/teacher"],
        ["data.streaming=true", "training.max_steps=5"],
        # `nestling prepare` of a recipe that streams.
        ["data.streaming=true", "data.pretokenized_path=rows"],
        ["training.epochs=2", "training.max_steps=null", "training.dataloader_num_workers=2"],
        ["evaluation.sequence_length=128"],
        ["evaluation.sequence_length=4096", "model.init_from=org/model"],
        ["export.format=native", "export.budgets=[]"],
        ["export.format=native", "export.budgets=[largest,'0.5:4:2','0.5:2:2:32']"],
        # The sizes of a checkpoint are judged when its configuration has been read.
        ["export.format=native", "model.init_from=org/model"],
        ["export.format=native", "init.base=org/model"],
        ["seed=4294967295"],
    ],
)
def test_what_can_be_done_is_let_through(changes: list[str]) -> None:
    assert load_recipe([TINY, *changes]).family == "delta_encoder"


def test_impossible_calibration_budgets_fail_early() -> None:
    with pytest.raises(ValueError, match=r"training\.calibration_budgets"):
        load_recipe([PLUS, "training.calibration_budgets=['0.5:9:9']"])


def test_sizes_of_an_unopened_checkpoint_are_not_judged() -> None:
    grown = ["init.base=a/b", "init.target=c/d", "model.delta=dense",
             "loss.sparsity_weight=0", "loss.orthogonality_weight=0"]  # fmt: skip
    recipe = load_recipe([PLUS, *grown, "model.base_heads=6", "model.extra_budgets=['1:9:9']"])
    assert recipe.model.base_heads == 6
    # Taps count the layers that the recipe states, whatever the depth of the checkpoint.
    stated = [*grown, "model.num_hidden_layers=12", "model.tap_layers=[11]"]
    assert load_recipe([PLUS, *stated]).model.tap_layers == [11]
    with pytest.raises(UsageError, match=r"has 11, .* 0\.\.3 \(model\.num_hidden_layers\)"):
        load_recipe([PLUS, *grown, "model.tap_layers=[11]"])
    assert load_recipe([PLUS, "model.init_from=a/b", "model.tap_layers=[11]"])


@pytest.mark.parametrize(
    ("start", "depth"), [(["init.base=a/b", "init.target=c/d"], 12), (["model.init_from=a/b"], 24)]
)
def test_taps_are_shares_of_the_depth_they_were_given_for(start: list[str], depth: int) -> None:
    """Layers 4, 8 and 11 of the stated 12, beside a target; layers of the checkpoint itself."""
    changes = ["model.num_hidden_layers=12", "model.tap_layers=[4,8,11]", "model.delta=dense",
               "loss.sparsity_weight=0", "loss.orthogonality_weight=0"]  # fmt: skip
    recipe = of_family(load_recipe([PLUS, *start, *changes]), DeltaEncoderRecipe)
    config = sized_config(replace(recipe.model, num_hidden_layers=24), 96)
    config.budgets = [str(DeltaBudget.full(config)), "1.0:4:12", "0.5:2:12"]
    recipe.training.calibration_budgets = ["largest"]
    taps = planner_of(recipe, config).taps
    assert taps == pytest.approx([5 / depth, 9 / depth, 12 / depth])
