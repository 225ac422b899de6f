"""Deep Delta Learning decoders: cached = uncached, slices = budgets, identities at the start."""

from typing import Any

import pytest
import torch
import transformers
from nestling.configuration.configuration_ddl import (
    TRANSFORMERS_FLOOR,
    UPDATES,
    VARIANTS,
    DdlConfig,
)
from nestling.configuration.ddl_budget import DdlBudget
from nestling.modeling.modeling_ddl import DdlForCausalLM, DdlModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)

MATRIX = [name for name, (is_matrix, _, _) in VARIANTS.items() if is_matrix]
TOLERANCE = 1e-5


def build(variant: str, **changes: Any) -> DdlForCausalLM:
    config = DdlConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        variant=variant, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    return DdlForCausalLM(config).eval()


def lively(variant: str, **changes: Any) -> DdlForCausalLM:
    model = build(variant, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def tokens(rows: int = 2, length: int = 14) -> Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "parts", [[1] * 14, [2, 12], [3, *[1] * 11], [5, 7, 2], [14]],
    ids=["one by one", "2 then the rest", "3 then one by one", "chunks", "at once"],
)  # fmt: skip
@torch.no_grad()
def test_cached_equals_uncached(variant: str, parts: list[int]) -> None:
    model, ids = lively(variant), tokens()
    expected = model(ids, use_cache=False).logits
    cache, found, first = None, [], 0
    for length in parts:
        output = model(ids[:, first : first + length], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
        first += length
    assert float((torch.cat(found, dim=1) - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pads", [1, 5])
@torch.no_grad()
def test_left_padding_changes_nothing(variant: str, pads: int) -> None:
    model, ids = lively(variant), tokens()
    padded = torch.cat([torch.zeros(2, pads, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(padded.shape[1]) >= pads).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, attention_mask=mask, position_ids=positions, use_cache=False).logits
    expected = model(ids, use_cache=False).logits
    assert float((found[:, pads:] - expected).abs().max()) <= TOLERANCE
    generated = model.generate(padded, attention_mask=mask, **GREEDY)[:, pads:]
    assert torch.equal(generated, model.generate(ids, **GREEDY))


GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}],
    ids=["greedy", "beams", "static cache", "prompt lookup"],
)
@pytest.mark.parametrize("length", [1, 2, 3, 14])
def test_generation_equals_generation_without_a_cache(
    variant: str, options: dict[str, Any], length: int
) -> None:
    model, ids = lively(variant), tokens(1, length)
    plain = {name: value for name, value in options.items() if name == "num_beams"}
    expected = model.generate(ids, use_cache=False, **GREEDY, **plain)
    assert torch.equal(model.generate(ids, **GREEDY, **options), expected)


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


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_slice_computes_what_its_budget_computes(variant: str) -> None:
    model, ids = lively(variant), tokens()
    values = (1, 2, 4) if VARIANTS[variant][0] else (1,)
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_a_gradient_within_two_steps(variant: str) -> None:
    for changes in ({}, {"beta_hidden": 8, "v_activation": "sigmoid", "v_bias": True}):
        model = build(variant, **changes).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        alive: set[str] = set()
        for _ in range(2):
            optimizer.zero_grad()
            model(tokens(), labels=tokens()).loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
                alive |= {name} if parameter.grad.any() else set()
            optimizer.step()
        assert {name for name, _ in model.named_parameters()} == alive


# An erasing value map would not use the sublayer at all: the configuration refuses it.
CONTROLS = [
    (update, mapping)
    for update in UPDATES
    for mapping in ("k_map", "v_map")
    if (update, mapping) != ("erase_only", "v_map")
]


@pytest.mark.parametrize(("update", "mapping"), CONTROLS)
@pytest.mark.parametrize("variant", ["ddl", "ddl-cc"])
def test_controls_differ_and_learn(variant: str, mapping: str, update: str) -> None:
    model = lively(variant, residual_update=update, mapping=mapping).train()
    loss = model(tokens(), labels=tokens()).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "attention_update.value" not in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    if update == "random_k":
        assert not model.model.layers[0].mlp_update.key.weight.requires_grad
    if (update, mapping) != ("delta", "k_map"):
        with torch.no_grad():
            plain = lively(variant)(tokens(), use_cache=False).logits
            assert (model.eval()(tokens(), use_cache=False).logits - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_hidden": 8}, {"v_bias": True}, {"mapping": "v_map"}, {"qk_norm": False},
        {"residual_update": "frozen_beta"}, {"residual_update": "erase_only"},
        {"residual_update": "random_k"}, {"tie_word_embeddings": False}, {"conv_kernel": 2},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("variant", ["ddl", "ddl-ec", "ddl-cc-ec"])
@torch.no_grad()
def test_cost_formulas_count_every_setting(variant: str, changes: dict[str, Any]) -> None:
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
    for variant in VARIANTS:
        model = lively(variant)
        model.save_pretrained(tmp_path / variant)
        again = DdlForCausalLM.from_pretrained(tmp_path / variant)
        with torch.no_grad():
            assert torch.equal(
                again(tokens(), use_cache=False).logits, model(tokens(), use_cache=False).logits
            )
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        DdlModel(model.config)()
