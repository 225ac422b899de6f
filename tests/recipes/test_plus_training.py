"""What a step of Delta-Matryoshka++ runs, whom it trains, and that nothing in it is dead."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nestling.configuration.budget import ends_of
from nestling.recipes.delta_encoder.step_flops import forward_flops
from nestling.recipes.evaluation.row_split import split_rows
from nestling.trainers.delta_encoder_trainer import DeltaEncoderTrainer
from nestling.trainers.event_log import read_events
from nestling.trainers.step_plan import StepPlan
from nestling.trainers.training_phases import TrainingPhases
from tiny_plus import KINDS, PHASES, TOTAL, StopAt, batch_of, plus_trainer, tiny_plus
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

UPGRADES = ("delta_residual", "monotone_upgrade")


def plan_of(trainer: DeltaEncoderTrainer, step: int) -> StepPlan:
    return trainer.planner.plan(step, TOTAL, trainer.term_weights(step))


def total_loss(trainer: DeltaEncoderTrainer, step: int, only: tuple[str, ...] = ()) -> Tensor:
    """The weighted sum of the terms of one micro-batch, as the trainer forms it."""
    weights = trainer.term_weights(step)
    losses = trainer.step_losses(trainer.model, batch_of(trainer), step)
    wanted = [name for name in losses if weights[name] and (not only or name in only)]
    assert wanted
    return torch.stack([weights[n] * losses[n].total / losses[n].count for n in wanted]).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", PHASES)
def test_every_parameter_is_alive_within_two_steps(
    kind: str, phase: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """A non-zero finite gradient; packing alone leaves the preview network out."""
    trainer = plus_trainer(tiny_plus(tmp_path, *KINDS[kind]), tiny_tokenizer)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-3)
    alive: set[str] = set()
    for step in PHASES[phase]:
        optimizer.zero_grad()
        total_loss(trainer, step).backward()
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
                alive |= {name} if parameter.grad.any() else set()
        optimizer.step()
    dead = {name for name, _ in trainer.model.named_parameters()} - alive
    assert {name for name in dead if phase != "packing" or ".preview." not in name} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_upgrade_terms_train_what_lies_outside_the_smaller_budget(
    kind: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    """A step on these terms alone leaves the smaller slice as it was, bit by bit."""
    trainer = plus_trainer(tiny_plus(tmp_path, *KINDS[kind]), tiny_tokenizer)
    model = trainer.model
    # The largest budget lacks nothing, so an upgrade to it has one of the two terms only.
    upgrades = {step: plan_of(trainer, step).upgrade for step in range(4, TOTAL)}
    whole = ends_of(model.config.budget_list())[1]
    step, (larger, smaller) = next(
        (step, pair) for step, pair in upgrades.items() if pair and pair[0] != whole
    )
    with torch.no_grad():  # away from the start, where deltas and changes of norms are zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    slices = {b: model.slice(b).state_dict() for b in (smaller, larger)}
    before = {b: {n: t.clone() for n, t in state.items()} for b, state in slices.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    total_loss(trainer, step, UPGRADES).backward()
    optimizer.step()
    assert all(
        torch.equal(t, before[smaller][n]) for n, t in model.slice(smaller).state_dict().items()
    )
    moved = [n for n, t in model.slice(larger).state_dict().items()
             if not torch.equal(t, before[larger][n])]  # fmt: skip
    assert any("mlp" in name for name in moved) or any("attention" in name for name in moved)


def test_the_monotone_term_lowers_the_larger_loss(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Its gradient goes to the larger budget, and downhill."""
    trainer = plus_trainer(
        tiny_plus(tmp_path, "model.drop_path=0", "loss.mug_margin=5"), tiny_tokenizer
    )
    model, step = trainer.model, 5
    larger, _ = plan_of(trainer, step).upgrade or (None, None)
    batch = batch_of(trainer)

    def loss() -> float:
        with torch.no_grad():
            output = model(**batch, budgets=(larger,))
        return F.cross_entropy(output.budget_logits[0], output.labels).item()

    before = loss()
    total_loss(trainer, step, ("monotone_upgrade",)).backward()
    torch.optim.SGD(model.parameters(), lr=10.0).step()
    assert loss() < before - 1e-4


def test_passes_of_each_phase(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """One upgrade a step while packing; later upgrade and routing take turns."""
    trainer = plus_trainer(tiny_plus(tmp_path), tiny_tokenizer)
    smallest, largest = ends_of(trainer.model.config.budget_list())
    found: dict[int, tuple[bool, bool, bool]] = {}
    for step in range(TOTAL):
        plan = plan_of(trainer, step)
        assert plan.budgets[0] == largest and smallest in plan.budgets
        found[step] = (plan.upgrade is not None, plan.routed is not None, bool(plan.tap_layers))
        if plan.routed:
            assert plan.routed == (largest, 0.35)
        if plan.upgrade:
            larger, smaller = plan.upgrade
            assert smaller < larger and {larger, smaller} <= set(plan.budgets)
    assert not any(routed or taps for _, routed, taps in list(found.values())[:4])
    assert any(upgraded for upgraded, _, _ in list(found.values())[:4])
    assert all(found[step] == (False, True, True) for step in (4, 6, 8, 10))
    assert all(found[step] == (True, False, True) for step in (9, 11))
    fixed = {b for step in range(8, TOTAL) for b in plan_of(trainer, step).budgets}
    assert len(fixed) == 3


@pytest.mark.parametrize("step", [1, 4, 5, 8, 9])
def test_a_step_runs_as_many_trunks_as_planned(
    step: int, tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Budgets that differ in depth share one; an upgrade and the routed passes have their own."""
    trainer = plus_trainer(tiny_plus(tmp_path), tiny_tokenizer)
    plan, trunk = plan_of(trainer, step), trainer.model.model
    runs: list[int] = []
    run = trunk._run

    def counted(*arguments: Any, **named: Any) -> Any:
        runs.append(1)
        return run(*arguments, **named)

    monkeypatch.setattr(trunk, "_run", counted)
    trainer.step_losses(trainer.model, batch_of(trainer), step)
    trunks = {budget.trunk for budget in plan.budgets}
    assert len(runs) == len(trunks) + (plan.upgrade is not None) + 2 * (plan.routed is not None)


@pytest.mark.parametrize("step", [1, 4, 5, 8, 9])
def test_flops_of_a_step_count_every_pass(step: int, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """The formula equals the counter."""
    changes = [*KINDS["dense"], "model.conditioned_norms=false", "model.attn_implementation=eager"]
    trainer = plus_trainer(tiny_plus(tmp_path, *changes), tiny_tokenizer)
    plan, config = plan_of(trainer, step), trainer.model.config
    ids = torch.randint(5, 96, (4, 32), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(32) % 3 != 0, -100)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trainer.model(input_ids=ids, labels=labels, **plan.arguments())
    expected = forward_flops(
        plan.budgets, config, 32, 4, int((labels != -100).sum()),
        routed=plan.routed, upgrade=plan.upgrade[0] if plan.upgrade else None,
    )  # fmt: skip
    assert counter.get_total_flops() == expected
    assert expected > forward_flops(plan.budgets, config, 32, 4, int((labels != -100).sum()))


def test_the_step_does_not_depend_on_how_it_is_cut(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Micro-batches of 2 x 4 and of 8 give the same weights through all phases.

    Left out: stochastic depth draws anew per micro-batch, the budget penalty couples its rows, and
    the power iteration of the packing term advances with every micro-batch.
    """
    changes = ["model.drop_path=0", "loss.budget_penalty_weight=0", "loss.packing_weight=0",
               "training.save_steps=100"]  # fmt: skip
    whole = plus_trainer(tiny_plus(tmp_path / "whole", *changes), tiny_tokenizer)
    cut = plus_trainer(
        tiny_plus(
            tmp_path / "cut", *changes,
            "training.batch_size=2", "training.gradient_accumulation_steps=4",
        ),
        tiny_tokenizer,
    )  # fmt: skip
    for trainer in (whole, cut):
        trainer.train()
    for left, right in zip(whole.state.log_history, cut.state.log_history, strict=True):
        for key in left:
            if key.startswith("loss"):
                assert right[key] == pytest.approx(left[key], rel=1e-3, abs=1e-6), (key, left)
    assert cut.threshold.threshold.item() == pytest.approx(
        whole.threshold.threshold.item(), abs=1e-4
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Any:
    trainer = plus_trainer(tiny_plus(tmp_path_factory.mktemp("whole")), tiny_tokenizer)
    trainer.train()
    return trainer


@pytest.mark.parametrize("stop", [2, 6, 9])
def test_a_run_resumes_exactly_in_the_middle_of_a_phase(
    stop: int, tmp_path: Path, tiny_tokenizer: Any, uninterrupted: DeltaEncoderTrainer
) -> None:
    """Weights, routing threshold and power-iteration vectors, bit by bit."""
    first = plus_trainer(tiny_plus(tmp_path), tiny_tokenizer)
    first.add_callback(StopAt(stop))
    first.train()
    torch.manual_seed(999)
    second = plus_trainer(tiny_plus(tmp_path), tiny_tokenizer)
    second.train(resume_from_checkpoint=True)
    expected = uninterrupted.model.state_dict()
    for name, tensor in second.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert torch.equal(second.threshold.threshold, uninterrupted.threshold.threshold)
    vectors = uninterrupted.terms["packing_regularizer"].term.state_dict()
    for name, tensor in second.terms["packing_regularizer"].term.state_dict().items():
        assert torch.equal(tensor, vectors[name]), name
    assert (
        second.state.log_history[-2]["loss"] == uninterrupted.state.log_history[-2]["loss"]
    )


def test_terms_phases_and_learning_rate_are_logged(uninterrupted: DeltaEncoderTrainer) -> None:
    lines = [line for line in uninterrupted.state.log_history if "loss" in line]
    assert len(lines) == TOTAL
    for line in lines:
        terms = [key.removeprefix("weight/") for key in line if key.startswith("weight/")]
        total = sum(line[f"weight/{name}"] * line[f"loss/{name}"] for name in terms)
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert {key for line in lines for key in line if key.startswith("weight/")} == {
        f"weight/{name}" for name in uninterrupted.terms
    }
    assert lines[0]["weight/packing_regularizer"] == 1e-3
    # Upgrade and routing take turns, as do the largest budget and the one below; over the four
    # steps every term weighs what the recipe says.
    expected = {"preview_benefit": [2.0, 0.0, 2.0, 0.0], "delta_residual": [0.0, 0.0, 0.0, 2.8]}
    for name, weights in expected.items():
        assert [line.get(f"weight/{name}", 0.0) for line in lines[4:8]] == pytest.approx(weights)
    events, _ = read_events(Path(str(uninterrupted.args.output_dir)) / "events.jsonl")
    begun = [(e["step"], e["name"]) for e in events if e["event"] == "phase"]
    assert begun == [(0, "packing"), (4, "residualization"), (8, "calibration")]
    folder = Path(str(uninterrupted.args.output_dir)) / f"checkpoint-{TOTAL}"
    hooks = json.loads((folder / "hook_state.json").read_text())
    assert {"routing_threshold", "packing_regularizer"} <= set(hooks)


def test_events_have_the_expected_depth_while_depths_are_drawn(
    uninterrupted: DeltaEncoderTrainer,
) -> None:
    """Four layers, of which the first two stay; calibration runs a fixed list."""
    events, _ = read_events(Path(str(uninterrupted.args.output_dir)) / "events.jsonl")
    found = {e["step"]: e.get("expected_depth") for e in events if "loss" in e}
    alpha = TrainingPhases(lr_ramp_ratio=0.01).survival_alpha()
    for step in range(TOTAL):
        third, last = (1 - alpha(step, TOTAL) * layer / 3 for layer in (2, 3))
        draws = step < PHASES["calibration"][0]
        wanted = pytest.approx(2 + third + third * last) if draws else None
        assert found[step + 1] == wanted


def test_calibration_has_three_tenths_of_the_learning_rate(
    uninterrupted: DeltaEncoderTrainer,
) -> None:
    """On top of one step of warm-up to 4e-3 and a cosine down to a tenth; the ramp is one step."""
    rates = [line["learning_rate"] for line in uninterrupted.state.log_history if "loss" in line]
    cosine = [4e-3 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 10))) for step in range(11)]
    factors = [rate / plain for rate, plain in zip(rates[1:], cosine, strict=True)]
    assert rates[0] == pytest.approx(2e-3)
    assert factors == pytest.approx([1.0] * 8 + [0.3] * 3)


def test_evaluation_is_the_mean_over_named_budgets(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Over all labelled tokens of the calibration rows; and the model goes on training."""
    changes = ["training.eval_steps=4", "training.save_steps=100"]
    trainer = plus_trainer(tiny_plus(tmp_path, *changes), tiny_tokenizer)
    metrics = trainer.evaluate()
    assert trainer.model.training
    model = trainer.model.eval()
    rows = trainer.eval_dataset
    assert sorted(rows.indices) == sorted(split_rows(10, 0.5)[0])
    batch = trainer.data_collator([rows[number] for number in range(len(rows))])
    assert len(trainer.eval_budgets) == 3
    expected = []
    for budget in trainer.eval_budgets:
        output = model(**batch, budget=budget)
        expected.append(output.loss.item())
        assert metrics[f"eval_loss/{budget}"] == pytest.approx(expected[-1], rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_evaluations_in_training_are_as_short_as_the_recipe_says(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    changes = ["training.eval_steps=4", "evaluation.batches=1", "evaluation.batch_size=3"]
    trainer = plus_trainer(tiny_plus(tmp_path, *changes), tiny_tokenizer)
    assert len(trainer.eval_dataset) == 3
    whole = [*changes, "evaluation.calibration_fraction=0", "evaluation.batches=null"]
    assert len(plus_trainer(tiny_plus(tmp_path, *whole), tiny_tokenizer).eval_dataset) == 10


def test_the_best_evaluation_has_a_checkpoint_that_stays(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever save_steps and save_total_limit say."""
    changes = ["training.eval_steps=2", "training.save_steps=5", "training.save_total_limit=2"]
    trainer = plus_trainer(tiny_plus(tmp_path, *changes), tiny_tokenizer)
    losses = iter([3.0, 2.0, 2.5, 2.7, 2.6, 2.9])

    def evaluate(**_: Any) -> dict[str, float]:
        trainer.control.should_evaluate = False  # as the real one leaves it
        return {"eval_loss": next(losses)}

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert kept == {"checkpoint-4", f"checkpoint-{TOTAL}"}
