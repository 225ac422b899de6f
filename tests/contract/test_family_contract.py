"""Contract, part 1: configurations, initial weights, saving and loading."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_cases import (
    CASES,
    LANGUAGE_CASES,
    TRUNKS,
    VARIANTS,
    Case,
    compute,
    ends,
    main_output,
    named_tensors,
    padded_batch,
    training_loss,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

by_case = pytest.mark.parametrize("case", [*CASES, *VARIANTS], ids=str)
by_family = pytest.mark.parametrize("case", TRUNKS, ids=lambda case: case.family.model_type)
by_language_model = pytest.mark.parametrize("case", [*LANGUAGE_CASES, *VARIANTS], ids=str)

WRITTEN_BY_TRANSFORMERS = {"transformers_version", "model_type", "_name_or_path", "architectures"}


def _saved_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _edit_config(folder: Path, drop: set[str], **changes: Any) -> dict[str, Any]:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values = {key: value for key, value in values.items() if key not in drop} | changes
    path.write_text(json.dumps(values))
    return values


def _comparable(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in WRITTEN_BY_TRANSFORMERS}


@by_family
def test_config_survives_a_round_trip(case: Case, tmp_path: Path) -> None:
    config = case.config()
    config.save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(config)
    assert again.model_type == case.family.model_type
    assert _comparable(again) == _comparable(config)
    assert again.budget_list() == config.budget_list()
    assert type(config.budget_list()[0]).__name__ == case.family.budget.split(":")[1]


@by_family
@pytest.mark.parametrize("bad", [0, -3, "12", 1.5, True, [0]], ids=repr)
def test_config_rejects_bad_sizes(case: Case, bad: Any) -> None:
    whole = [key for key, value in case.family.tiny.items() if type(value) is int]
    for key in (key for key in whole if not key.endswith("token_id")):
        with pytest.raises(ValueError, match=key):
            case.config(**{key: bad})


@by_family
def test_config_keeps_a_key_it_does_not_know(case: Case, tmp_path: Path) -> None:
    """A folder written by a newer version keeps its extra key when it is saved again."""
    case.config().save_pretrained(tmp_path)
    _edit_config(tmp_path, set(), key_of_a_later_version=[1, 2])
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["key_of_a_later_version"] == [1, 2]


@by_family
def test_folder_of_an_older_version_loads(case: Case, tmp_path: Path) -> None:
    """Any key that has a default may be absent from an older config.json."""
    model = case.model()
    model.save_pretrained(tmp_path)
    batch = padded_batch(model.config)
    expected, wanted = compute(model, batch), _comparable(model.config)
    needed = {*case.family.tiny, "model_type"}
    original = json.loads((tmp_path / "config.json").read_text())
    for key in sorted(set(original) - needed):
        _edit_config(tmp_path, {key})
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        loaded = _comparable(config)
        assert {k: loaded[k] for k in wanted if k in loaded and k != key} == {
            k: wanted[k] for k in wanted if k in loaded and k != key
        }, key
        (tmp_path / "config.json").write_text(json.dumps(original))
    _edit_config(tmp_path, set(original) - needed)
    older = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(compute(older, batch), expected)


@by_case
def test_same_seed_same_weights(case: Case) -> None:
    def build(seed: int) -> Any:
        torch.manual_seed(seed)
        return case.model_class(case.config())

    first, second, other = build(3), build(3), build(4)
    assert all(
        torch.equal(a, b)
        for (_, a), (_, b) in zip(named_tensors(first), named_tensors(second), strict=True)
    )
    assert any(
        not torch.equal(a, b)
        for (_, a), (_, b) in zip(named_tensors(first), named_tensors(other), strict=True)
    )


@by_case
def test_save_and_load_are_bit_equal(case: Case, tmp_path: Path) -> None:
    model = case.model()
    model.save_pretrained(tmp_path)
    again = getattr(transformers, case.auto_class).from_pretrained(tmp_path).eval()
    assert type(again) is case.model_class
    before, after = dict(named_tensors(model)), dict(named_tensors(again))
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    if case.variant is not None:
        # Out of the mapped file: the last bit of a product of a matrix and a vector, as in a
        # conditioner, depends on where in memory the matrix begins.
        for parameter in again.parameters():
            parameter.data = parameter.data.clone()
    batch = padded_batch(model.config)
    assert torch.equal(compute(model, batch), compute(again, batch))


@by_case
def test_every_auto_class_loads_the_language_model_folder(case: Case, tmp_path: Path) -> None:
    """The trunk's weights arrive under every head, whatever the folder was saved from."""
    source = case.language_model()
    source.save_pretrained(tmp_path)
    loaded = getattr(transformers, case.auto_class).from_pretrained(tmp_path)
    wanted = dict(source.base_model.named_parameters())
    got = dict(loaded.base_model.named_parameters())
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], got[name])] == []


@by_case
@pytest.mark.parametrize("dropped", [0, 1], ids=["even keys missing", "odd keys missing"])
def test_parameters_missing_from_a_checkpoint_are_initialised(
    case: Case, dropped: int, tmp_path: Path
) -> None:
    model = case.model()
    model.save_pretrained(tmp_path)
    weights = _saved_weights(tmp_path)
    missing = set(sorted(weights)[dropped::2])
    marked = {k: torch.full_like(v, 7.0) for k, v in weights.items() if k not in missing}
    save_file(marked, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    fresh = dict(case.model_class(case.config()).named_parameters())
    loaded = dict(case.model_class.from_pretrained(tmp_path).named_parameters())
    for name, parameter in loaded.items():
        assert torch.isfinite(parameter).all(), name
        if name in marked:
            assert (parameter == 7.0).all(), name
        elif (fresh[name] == fresh[name].flatten()[0]).all():
            assert torch.equal(parameter, fresh[name]), name
        elif name in missing:
            spread = (parameter.std() / fresh[name].std()).item()
            assert 0.6 < spread < 1.6, f"{name}: {spread}"


@by_language_model
def test_tied_weights_are_shared_and_stored_once(case: Case, tmp_path: Path) -> None:
    model = case.model()
    embedding, decoder = model.get_input_embeddings(), model.get_output_embeddings()
    assert model.config.tie_word_embeddings
    assert decoder.weight is embedding.weight
    model.save_pretrained(tmp_path)
    stored = sum(tensor.numel() for tensor in _saved_weights(tmp_path).values())
    assert stored == sum(parameter.numel() for parameter in model.parameters())
    again = case.model_class.from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


@by_case
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    """Summed over the smallest and the largest budget, at the first step of a fresh model.

    In a variant a factor may be zero at first; then its partner must wake up at the second step.
    """
    torch.manual_seed(0)
    model = case.model_class(case.config()).train()
    batch = padded_batch(model.config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reached: set[str] = set()
    for _ in range(1 if case.variant is None else 2):
        optimizer.zero_grad()
        for budget in ends(model.config):
            model.set_budget(budget)
            training_loss(case, model, batch).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert [name for name, g in gradients.items() if g is None] == []
        assert [name for name, g in gradients.items() if not torch.isfinite(g).all()] == []
        reached |= {name for name, g in gradients.items() if g.abs().max() > 0}
        optimizer.step()
    assert [name for name in gradients if name not in reached] == []


@by_case
def test_the_initial_loss_is_that_of_a_guess(case: Case) -> None:
    """A sane initial scale: cross-entropy begins near the logarithm of the number of classes."""
    torch.manual_seed(0)
    model = case.model_class(case.config()).eval()
    batch = padded_batch(model.config)
    output = main_output(model(**batch))
    assert torch.isfinite(output).all()
    if case.auto_class != "AutoModel":
        guess = math.log(output.shape[-1])
        assert training_loss(case, model, batch).item() == pytest.approx(guess, abs=0.6)
