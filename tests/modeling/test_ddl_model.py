"""Deep Delta Learning decoders: slices = budgets, costs = formulas, identities at the start."""

from typing import Any

import pytest
import torch
import transformers
from ddl_models import MODELS, build, lively, tokens
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.configuration.ddl_budget import DdlBudget
from nestling.configuration.ddl_settings import MATRIX_UPDATES, UPDATES, VARIANTS
from nestling.modeling.modeling_ddl import DdlForCausalLM, DdlModel
from nestling.modeling.state_reading import ConvHistory, state_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)

MATRIX = [name for name, (is_matrix, _, _) in VARIANTS.items() if is_matrix]
TOLERANCE = 1e-5
GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize("variant", MATRIX)
@torch.no_grad()
def test_the_first_sublayer_reads_the_embedding_at_the_start(variant: str) -> None:
    model = build(variant).model
    seen: list[Tensor] = []
    model.layers[0].attention_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids = tokens()
    for budget in ("4:3", "2:2", "1:1"):
        model(ids, budget=budget, use_cache=False)
        torch.testing.assert_close(seen.pop(), model.embeddings(ids), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_slice_computes_what_its_budget_computes(name: str) -> None:
    model, ids = lively(name), tokens()
    values = (1, 2, 4) if model.config.is_matrix else (1,)
    seen = []
    for value_size in values:
        for depth in (1, 2, 3):
            budget = f"{value_size}:{depth}"
            expected = model(ids, budget=budget, use_cache=False).logits
            smaller = model.slice(budget)
            assert smaller.config.sliced_from == budget
            found = smaller(ids, use_cache=False).logits
            assert float((found - expected).abs().max()) <= TOLERANCE, budget
            assert torch.equal(
                smaller.generate(ids, **GREEDY),
                smaller.generate(ids, use_cache=False, **GREEDY),
            )
            model.set_budget(budget)
            assert torch.equal(model(ids, use_cache=False).logits, expected)
            model.set_budget(None)
            seen.append(expected)
    for index, one in enumerate(seen):
        assert all(float((one - other).abs().max()) > 1e-3 for other in seen[:index])


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient_within_two_steps(name: str) -> None:
    for changes in ({}, {"beta_hidden": 8, "v_activation": "sigmoid", "v_bias": True}):
        model = build(name, **changes).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        alive: set[str] = set()
        for _ in range(2):
            optimizer.zero_grad()
            model(tokens(), labels=tokens()).loss.backward()
            for path, parameter in model.named_parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), path
                alive |= {path} if parameter.grad.any() else set()
            optimizer.step()
        assert {path for path, _ in model.named_parameters()} == alive


# An erasing value map would not use the sublayer at all: the configuration refuses it.
DELTA_CONTROLS = [
    (update, mapping)
    for update in UPDATES
    for mapping in ("k_map", "v_map")
    if (update, mapping) != ("erase_only", "v_map") and update not in MATRIX_UPDATES
]


@pytest.mark.parametrize(("update", "mapping"), DELTA_CONTROLS)
@pytest.mark.parametrize("variant", ["ddl", "ddl-cc"])
def test_controls_differ_and_learn(variant: str, mapping: str, update: str) -> None:
    """With the weights of a delta residual it computes something else; all it trains moves."""
    ids, plain = tokens(), lively(variant)
    model = lively(variant, residual_update=update, mapping=mapping)
    model.load_state_dict(plain.state_dict(), strict=False)
    if (update, mapping) != ("delta", "k_map"):
        with torch.no_grad():
            found, expected = (m(ids, use_cache=False).logits for m in (model, plain))
        assert (found - expected).abs().max() > 1e-3
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(5):
        loss = model.train()(ids, labels=ids).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    for name, parameter in model.named_parameters():
        is_fixed = update == "random_k" and name.endswith("update.key.weight")
        assert torch.equal(parameter, before[name]) == is_fixed, name


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_hidden": 8}, {"v_bias": True}, {"mapping": "v_map"}, {"qk_norm": False},
        {"residual_update": "frozen_beta"}, {"residual_update": "erase_only"},
        {"residual_update": "random_k"}, {"tie_word_embeddings": False}, {"conv_kernel": 2},
        {"residual_update": "additive"}, {"residual_update": "mhc"}, {"value_residual": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("variant", ["ddl", "ddl-ec", "ddl-cc-ec"])
@torch.no_grad()
def test_cost_formulas_count_every_setting(variant: str, changes: dict[str, Any]) -> None:
    if variant == "ddl" and changes.get("residual_update") in MATRIX_UPDATES:
        pytest.skip("a vector state has no streams")
    model = build(variant, **changes)
    model.set_attn_implementation("eager")
    for budget in (f"{value}:{depth}" for value in (1, model.config.d_value) for depth in (1, 3)):
        parsed = DdlBudget.parse(budget)
        cut = model.slice(budget)
        assert parsed.parameters(model.config) == sum(p.numel() for p in cut.parameters())
        with FlopCounterMode(display=False) as counter:
            model(tokens(), budget=budget, use_cache=False)
        assert counter.get_total_flops() == parsed.flops(model.config, 14, 2, 2 * 14)


def test_traffic_of_the_state_by_hand() -> None:
    """Two layers: four sublayers read and write v x d values, and the last read reads them."""
    config = build("ddl-cc").config
    assert DdlBudget(4, 2).state_bytes(config) == (4 * 2 + 1) * 4 * 32 * 4
    assert DdlBudget(1, 2).state_bytes(config, "bfloat16") == (4 * 2 + 1) * 32 * 2


def test_labels_are_shifted_by_the_model() -> None:
    model, ids = lively("ddl"), tokens()
    output = model(ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    torch.testing.assert_close(output.loss, expected)


def test_rebuilt_states_train_the_same() -> None:
    """The closed form, with one state kept, gives the gradients of autograd."""
    ids = tokens()
    for variant in ("ddl", "ddl-cc", "ddl-cc-ec"):
        for update in ("delta", "erase_only", "frozen_beta", "random_k"):
            grads = []
            for rebuild in (False, True):
                model = lively(variant, rebuild_state=rebuild, residual_update=update).train()
                model(ids, labels=ids).loss.backward()
                named = model.named_parameters()
                grads.append({n: p.grad for n, p in named if p.requires_grad})
            for name, gradient in grads[0].items():
                rebuilt = grads[1][name]
                torch.testing.assert_close(rebuilt, gradient, atol=2e-5, rtol=1e-3, msg=name)


@torch.no_grad()
def test_notes_tell_what_every_update_did() -> None:
    model = lively("ddl-cc")
    notes: list[Any] = []
    model(tokens(), use_cache=False, notes=notes)
    assert len(notes) == 2 * 3
    for note in notes:
        assert note.direction.shape == (2, 14, 32) and note.beta.shape == (2, 14, 1)
        assert ((note.beta > 0) & (note.beta < 2)).all()
        squared = note.direction.square().sum(-1, keepdim=True)
        expected = (1 - note.beta * squared).abs() * note.before
        torch.testing.assert_close(note.after, expected, atol=1e-4, rtol=1e-3)


def test_beta_starts_where_it_is_told() -> None:
    for beta in (0.1, 0.5, 1.9):
        notes: list[Any] = []
        with torch.no_grad():
            build("ddl", beta_init=beta).model(tokens(), use_cache=False, notes=notes)
        for note in notes:
            torch.testing.assert_close(note.beta, torch.full_like(note.beta, beta))


def test_save_and_load(tmp_path: Any) -> None:
    for name in MODELS:
        model = lively(name)
        model.save_pretrained(tmp_path / name)
        again = DdlForCausalLM.from_pretrained(tmp_path / name)
        with torch.no_grad():
            assert torch.equal(
                again(tokens(), use_cache=False).logits, model(tokens(), use_cache=False).logits
            )
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        DdlModel(model.config)()


def test_the_first_state_is_no_copy_of_the_embedding() -> None:
    embeds = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    state = state_of(None, embeds, 4, ConvHistory())
    assert state.shape == (1, 3, 4, 16)
    assert state.stride(-2) == 0 and state.data_ptr() == embeds.data_ptr()
