"""Every trainable parameter of every shipped preset has a gradient within two steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nestling.configuration.delta_budget import DeltaBudget
from nestling.recipes.delta_encoder.study_ablations import ABLATION_CHANGES
from nestling.recipes.delta_encoder.study_methods import METHODS, stages_of
from nestling.recipes.recipe_catalogue import catalogue
from nestling.recipes.recipe_loader import load_recipe
from nestling.trainers.delta_encoder_trainer import DeltaEncoderTrainer
from nestling.trainers.schedules import Constant
from tiny_plus import PHASES, TOTAL, batch_of, plus_trainer
from transformers import ModernBertConfig, ModernBertForMaskedLM

SMALL = [
    "recipe=delta_encoder/demo",
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.max_position_embeddings=64",
    "data.max_length=32",
    "training.bf16=false",
    "training.use_cpu=true",
    f"training.max_steps={TOTAL}",
    "training.batch_size=8",
]
NAMED = {
    "smallest": DeltaBudget.parse("0.5:2:2"),
    "middle": DeltaBudget.parse("0.5:2:4"),
    "largest": DeltaBudget.parse("1.0:4:4"),
}


def dead_parameters(trainer: DeltaEncoderTrainer, begin: int = 0) -> set[str]:
    """Take two steps that run the largest budget; return what got no gradient."""
    model = trainer.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    whole = DeltaBudget.full(model.config)
    sampler = trainer.planner.sampler
    steps = [step for step in range(begin, 200) if whole in sampler.sample(step, TOTAL)]
    dead = {name for name, _ in model.named_parameters()}
    for step in steps[:2]:
        optimizer.zero_grad()
        weights = trainer.term_weights(step)
        losses = trainer.step_losses(model, batch_of(trainer), step)
        total = [weights[name] * loss.total / loss.count for name, loss in losses.items()]
        torch.stack(total).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                dead -= {name} if parameter.grad.any() else set()
        optimizer.step()
    return dead


@pytest.mark.parametrize("method", METHODS)
def test_rules_of_the_study(method: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Every run; a later one starts from the model of the one before, which is also its teacher."""
    stages = stages_of(
        method, load_recipe(SMALL), NAMED, steps=TOTAL, seed=0, folder=tmp_path / "cell"
    )
    assert len(stages) == (3 if method == "dynabert" else 1)
    for index, recipe in enumerate(stages):
        trainer = plus_trainer(recipe, tiny_tokenizer)
        assert (trainer.teacher is not None) == (index > 0)
        assert dead_parameters(trainer) == set(), index
        trainer.model.save_pretrained(Path(recipe.output_dir) / "model")


@pytest.mark.parametrize("name", ABLATION_CHANGES)
def test_changes_of_the_study(name: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    recipe = load_recipe([*SMALL, *ABLATION_CHANGES[name], f"output_dir={tmp_path}"])
    if not recipe.training.three_phase:
        assert dead_parameters(plus_trainer(recipe, tiny_tokenizer)) == set()
        return
    for phase in PHASES:
        live_but_for_the_preview(plus_trainer(recipe, tiny_tokenizer), phase)


def test_the_share_of_the_largest_budget_reaches_the_trainer(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    changes = ("loss.largest_share=0.625", "loss.largest_share_end=null")
    recipe = load_recipe([*SMALL, *changes, f"output_dir={tmp_path}"])
    assert plus_trainer(recipe, tiny_tokenizer).largest_share == Constant(0.625)


def test_a_rising_share_ends_at_its_end(tmp_path: Path, tiny_tokenizer: Any) -> None:
    changes = ("loss.largest_share=0.6", "loss.largest_share_end=0.9")
    share = plus_trainer(
        load_recipe([*SMALL, *changes, f"output_dir={tmp_path}"]), tiny_tokenizer
    ).largest_share
    assert share is not None
    assert [share(step, 101) for step in (0, 50, 75, 100)] == pytest.approx(
        [0.6, 0.6, 0.75, 0.9]
    )


# The sizes of every shipped recipe, cut down; what a recipe has beside its sizes stays.
SIZES = [
    "init.base=null", "init.target=null", "model.hidden_size=32", "model.head_dim=8",
    "model.num_hidden_layers=4", "model.num_attention_heads=4", "model.intermediate_size=48",
    "model.vocab_size=96", "model.max_position_embeddings=64", "model.head_budgets=[2,3,4]",
    "model.depth_budgets=[2,3,4]", "model.base_heads=2", "model.tap_layers=[1,2,3]",
    "model.delta_atoms=3", "model.delta_rank=2", "data.max_length=32", "data.streaming=false",
    "training.batch_size=8", "training.bf16=false", "training.use_cpu=true",
]  # fmt: skip
PLAIN = {"tiny": [], "demo": [], "ecommerce": ["model.extra_budgets=['0.5:2:2:16','1.0:3:4:24']"]}
PHASED = ("plus", "ablations", "mini_to_base", "mini_to_large", "base_to_large")


def test_every_shipped_recipe_is_named_here() -> None:
    shipped = {entry.name for entry in catalogue() if entry.name.startswith("delta_encoder/")}
    assert shipped == {f"delta_encoder/{name}" for name in (*PLAIN, *PHASED)}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_recipes_at_small_sizes(name: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    recipe = load_recipe(
        [f"recipe=delta_encoder/{name}", *SIZES, *PLAIN[name], f"output_dir={tmp_path}"]
    )
    trainer = plus_trainer(recipe, tiny_tokenizer)
    assert dead_parameters(trainer) == set()


def live_but_for_the_preview(trainer: DeltaEncoderTrainer, phase: str) -> None:
    """All parts have a gradient in the phase; packing routes nothing."""
    dead = dead_parameters(trainer, begin=PHASES[phase][0])
    config = trainer.model.config
    names = [name for name, _ in trainer.model.named_parameters()]
    preview = {name for name in names if ".preview." in name}
    assert len(preview) == (4 if config.token_routing else 0)
    assert any(".deltas." in name for name in names) == (config.delta_kind != "dense")
    assert dead == (preview if phase == "packing" else set())


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", PHASED)
def test_phased_recipes_at_small_sizes(
    name: str, phase: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """All their parts in each phase; the checkpoints of those that grow are left out."""
    recipe = load_recipe([f"recipe=delta_encoder/{name}", *SIZES, f"output_dir={tmp_path}"])
    live_but_for_the_preview(plus_trainer(recipe, tiny_tokenizer), phase)


@pytest.mark.parametrize("phase", PHASES)
def test_a_grown_model_with_a_dictionary(
    phase: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """What a small checkpoint leaves at zero when it grows moves too."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 24}  # fmt: skip
    small = ModernBertConfig(
        vocab_size=96, max_position_embeddings=64, pad_token_id=0, cls_token_id=2, sep_token_id=3,
        bos_token_id=2, eos_token_id=3, initializer_range=0.3, **sizes,
    )  # fmt: skip
    ModernBertForMaskedLM(small).save_pretrained(tmp_path / "small")
    grown = [*SIZES, f"init.base={tmp_path / 'small'}", f"output_dir={tmp_path / 'run'}"]
    recipe = load_recipe(["recipe=delta_encoder/mini_to_base", *grown])
    trainer = plus_trainer(recipe, tiny_tokenizer)
    assert trainer.model.config.delta_kind == "dictionary"
    assert "0.5:2:2:16" in trainer.model.config.budgets
    live_but_for_the_preview(trainer, phase)


@pytest.mark.parametrize("name", PHASED)
def test_no_token_is_the_base_slice_in_every_recipe_and_all_are_the_whole(
    name: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    recipe = load_recipe([f"recipe=delta_encoder/{name}", *SIZES, f"output_dir={tmp_path}"])
    trainer = plus_trainer(recipe, tiny_tokenizer)
    model = trainer.model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the start, where deltas and changes of norms are zero
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    batch = batch_of(trainer)
    whole, ids = DeltaBudget.full(model.config), batch["input_ids"]
    base, mask = whole.base_budget(model.config), batch["attention_mask"]
    with torch.no_grad():
        none = model(ids, mask, delta_tokens=torch.zeros_like(ids)).logits
        assert torch.equal(none, model(ids, mask, budget=base).logits)
        every = model(ids, mask, delta_tokens=torch.ones_like(ids)).logits[mask > 0]
        full = model(ids, mask, budget=whole).logits[mask > 0]
    torch.testing.assert_close(every, full, atol=1e-5, rtol=1e-5)
    assert (none[mask > 0] - full).abs().max() > 1e-2
