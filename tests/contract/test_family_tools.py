"""Contract, part 4: the tools of the field (PEFT, accelerate, vocabulary and depth changes)."""

from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
from family_cases import (
    CASES,
    HEADED_CASES,
    LANGUAGE_CASES,
    VARIANTS,
    Case,
    compute,
    ends,
    padded_batch,
    token_ids,
    training_loss,
)

by_case = pytest.mark.parametrize("case", CASES, ids=str)
# Weights that are kept elsewhere must be found by every path through the model.
PATHS = [*CASES, *(case for case in VARIANTS if case.variant in ("dictionary", "routed"))]
by_path = pytest.mark.parametrize("case", PATHS, ids=str)
by_head = pytest.mark.parametrize("case", HEADED_CASES, ids=str)
by_language_model = pytest.mark.parametrize("case", LANGUAGE_CASES, ids=str)


def _with_lora(model: Any) -> Any:
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    return peft.get_peft_model(model, settings)


def _train(case: Case, model: Any, steps: int) -> list[float]:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    batch, losses = padded_batch(model.config), []
    model.train()
    for _ in range(steps):
        loss = training_loss(case, model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@by_head
@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "slice"])
def test_lora_trains_saves_reloads_and_merges(case: Case, sliced: bool, tmp_path: Path) -> None:
    def source() -> Any:
        model = case.model()
        return model.slice(ends(model.config)[0]) if sliced else model

    base, batch = source(), padded_batch(case.config())
    untouched = compute(base, batch)
    adapted = _with_lora(base)
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    losses = _train(case, adapted, steps=8)
    assert losses[-1] < losses[0] - 0.05
    tuned = compute(adapted, batch)
    assert not torch.allclose(tuned, untouched, atol=1e-3)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(source(), tmp_path).eval()
    torch.testing.assert_close(compute(again, batch), tuned, atol=1e-5, rtol=1e-4)
    merged = again.merge_and_unload()
    assert type(merged) is case.model_class
    torch.testing.assert_close(compute(merged, batch), tuned, atol=1e-4, rtol=1e-4)
    budget = ends(merged.config)[0]
    torch.testing.assert_close(
        compute(merged.slice(budget), batch),
        compute(merged, batch, budget=budget),
        atol=1e-5,
        rtol=1e-5,
    )


@by_case
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map_loads_the_same_model(case: Case, device_map: Any, tmp_path: Path) -> None:
    model = case.model()
    model.save_pretrained(tmp_path)
    batch = padded_batch(model.config)
    placed = case.model_class.from_pretrained(tmp_path, device_map=device_map).eval()
    assert {p.device.type for p in placed.parameters()} <= {"cpu", "cuda"}
    torch.testing.assert_close(compute(placed, batch).cpu(), compute(model, batch))


@by_path
def test_cpu_offload_computes_the_same(case: Case) -> None:
    """Accelerate keeps weights on the meta device until the module that owns them is called."""
    model = case.model()
    batch = padded_batch(model.config)
    expected = {b: compute(model, batch, budget=b) for b in ends(model.config)}
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert any(parameter.is_meta for parameter in model.parameters())
    for budget, output in expected.items():
        torch.testing.assert_close(compute(model, batch, budget=budget), output)


@by_path
def test_disk_offload_computes_the_same(case: Case, tmp_path: Path) -> None:
    model = case.model()
    batch = padded_batch(model.config)
    expected = compute(model, batch)
    weights = model.state_dict()
    every = model.named_parameters(remove_duplicate=False)  # a head may own a tied weight only
    owners = {name.split(".")[0] for name, _ in every}
    first, *others = [name for name, _ in model.named_children() if name in owners]
    device_map = {first: "cpu", **dict.fromkeys(others, "disk")}
    model = accelerate.dispatch_model(
        model, device_map, main_device="cpu", offload_dir=tmp_path, state_dict=weights
    )
    torch.testing.assert_close(compute(model, batch), expected)


@by_language_model
def test_resized_vocabulary_keeps_tying_and_works(case: Case, tmp_path: Path) -> None:
    model = case.model()
    size = model.config.vocab_size
    known = padded_batch(model.config)
    before = compute(model, known)
    model.resize_token_embeddings(size + 8, mean_resizing=False)
    assert model.config.vocab_size == size + 8
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    torch.testing.assert_close(compute(model, known)[..., :size], before, atol=1e-5, rtol=1e-5)
    smaller = model.slice(ends(model.config)[0])
    assert smaller.get_output_embeddings().weight is smaller.get_input_embeddings().weight
    assert smaller.get_input_embeddings().weight.shape[0] == size + 8
    model.save_pretrained(tmp_path)
    again = case.model_class.from_pretrained(tmp_path).eval()
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(compute(again, known), compute(model, known))


@by_path
@pytest.mark.parametrize("change", [8, -8])
def test_resized_vocabulary_is_the_one_that_is_checked(case: Case, change: int) -> None:
    """New ids run, and ids that are gone are refused by name, not by an index error."""
    model = case.model()
    last = model.config.vocab_size - 1
    model.resize_token_embeddings(last + 1 + change, mean_resizing=False)
    ids = token_ids(case.config(), rows=1)
    ids[0, 3] = last + max(change, 0)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if change > 0:
        assert torch.isfinite(compute(model, batch)).all()
    else:
        with pytest.raises(ValueError, match=f"token id {last} .*0..{last + change}"):
            compute(model, batch)


@by_case
def test_fewer_layers_at_load_give_the_prefix(case: Case, tmp_path: Path) -> None:
    model = case.model()
    model.save_pretrained(tmp_path)
    depth = model.config.num_hidden_layers // 2
    shallow = case.model_class.from_pretrained(tmp_path, num_hidden_layers=depth).eval()
    source, kept = model.state_dict(), shallow.state_dict()
    assert len(kept) < len(source)
    assert all(torch.equal(kept[name], source[name]) for name in kept)
    batch = padded_batch(model.config)
    output = compute(shallow, batch)
    assert torch.isfinite(output).all()
    assert all(b.depth <= depth for b in shallow.config.budget_list())
    torch.testing.assert_close(
        compute(shallow.slice(ends(shallow.config)[1]), batch), output, atol=1e-5, rtol=1e-5
    )
