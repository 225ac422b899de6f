"""Growth: the small model stays inside the larger one exactly, and everything new can learn."""

from typing import Any

import pytest
import torch
from growing_models import (
    BIASES,
    LARGER,
    assert_same,
    inputs,
    logits,
    random_model,
    randomise,
    small_config,
)
from nestling.configuration import DeltaBudget, DeltaEncoderConfig
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.hierarchical_growth import grow, small_budget
from torch import Tensor

GROWTHS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "hidden": {"hidden_size": 44},
    "heads": {"num_attention_heads": 7},
    "mlp": {"intermediate_size": 77},
    "mlp by layer": {"intermediate_size": [48, 60, 49]},
    "depth": {"num_hidden_layers": 6},
    "all": LARGER,
}
# layers, hidden, heads, MLP channels of the published family; head_dim is 64 everywhere.
FAMILY_SIZES = {
    "micro": (7, 256, 4, 384),
    "mini": (19, 512, 8, 768),
    "base": (22, 768, 12, 1152),
    "large": (28, 1024, 16, 2624),
}


def _family_config(name: str, scale: int = 1, **overrides: Any) -> DeltaEncoderConfig:
    layers, hidden, heads, channels = FAMILY_SIZES[name]
    return DeltaEncoderConfig(
        **{
            "num_hidden_layers": layers,
            "hidden_size": hidden // scale,
            "num_attention_heads": heads,
            "intermediate_size": channels // scale,
            "head_dim": 64 // scale,
            **overrides,
        }
    )


@pytest.mark.parametrize("new_units", ["zero_output", "random"])
@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize(
    "extra", [{}, BIASES, {"tie_word_embeddings": False}], ids=["plain", "biases", "untied"]
)
def test_the_small_model_is_inside(growth: str, extra: dict[str, Any], new_units: Any) -> None:
    small = random_model(small_config(**extra))
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    config = small_config(**extra, **GROWTHS[growth])
    grown = grow(small, config, new_units=new_units)
    budget = small_budget(small.config, config)
    for kind in ("padded", "packed"):
        assert_same(logits(grown, kind, budget=budget), logits(small, kind))
    tied = grown.decoder.weight is grown.get_input_embeddings().weight
    assert tied is config.tie_word_embeddings
    # What trains, saves and slices is the small model's weights, bit by bit.
    for name, tensor in grown.slice(budget).state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["plain", "padded", "packed"])
def test_with_every_attention_and_every_kind_of_batch(attention: str, kind: str) -> None:
    small = random_model(small_config())
    config = small_config(**GROWTHS["all"])
    grown = grow(small, config)
    for model in (small, grown):
        model.set_attn_implementation(attention)
    assert_same(logits(grown, kind, budget=small_budget(small.config, config)), logits(small, kind))


def test_the_loss_of_the_small_model_is_unchanged() -> None:
    small = random_model(small_config())
    config = small_config(**GROWTHS["all"])
    grown = grow(small, config)
    batch = inputs("padded")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        expected = small(**batch, labels=labels).loss
        actual = grown(**batch, labels=labels, budget=small_budget(small.config, config)).loss
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("extra", [{}, BIASES], ids=["plain", "biases"])
@pytest.mark.parametrize("growth", ["heads", "mlp", "mlp by layer", "depth"])
def test_new_heads_channels_and_layers_start_silent(growth: str, extra: dict[str, Any]) -> None:
    """At the small hidden width, every budget between the two sizes computes the small model."""
    small = random_model(small_config(**extra))
    config = small_config(**extra, **GROWTHS[growth])
    expected = logits(small)
    grown = grow(small, config)
    assert_same(logits(grown), expected)
    between = DeltaBudget(1.0, small.config.num_attention_heads, config.num_hidden_layers)
    assert_same(logits(grown, budget=between), expected)
    config.initializer_range = 0.2  # above the noise of so few units
    random = grow(small, config, new_units="random")
    assert (logits(random) - expected).abs().max() > 1e-3


def test_old_units_do_not_hear_new_hidden_channels_at_first() -> None:
    small = random_model(small_config())
    grown = grow(small, small_config(hidden_size=48))
    for name, old in small.state_dict().items():
        new = grown.state_dict()[name]
        if ".query_key_value." in name or ".up." in name or ".gate." in name or "dense" in name:
            assert not new[: len(old), old.shape[1] :].any(), name


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("new_units", ["zero_output", "random"])
def test_every_new_weight_has_a_gradient_within_two_steps(
    new_units: Any, tied: bool, activation: str
) -> None:
    extra = {**BIASES, "tie_word_embeddings": tied, "classifier_activation": activation}
    small = random_model(small_config(**extra))
    grown = grow(small, small_config(**extra, **GROWTHS["all"]), new_units=new_units)
    ids = torch.arange(96).repeat(2).view(8, 24)  # every token, for the untied embedding
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.1)
    alive: dict[str, Tensor] = {}
    for step in range(2):
        labels = ids[:, torch.randperm(24, generator=torch.Generator().manual_seed(step))]
        optimizer.zero_grad()
        grown(input_ids=ids, labels=labels).loss.backward()
        for name, parameter in grown.named_parameters():
            assert parameter.grad is not None, name
            has_gradient = parameter.grad != 0
            alive[name] = alive.get(name, torch.zeros_like(has_gradient)) | has_gradient
        optimizer.step()
    old = small.state_dict()
    for name, is_alive in alive.items():
        is_new = torch.ones_like(is_alive)
        if name in old:
            is_new[tuple(slice(0, size) for size in old[name].shape)] = False
        assert bool(is_alive[is_new].all()), f"{name}: {int((~is_alive & is_new).sum())} dead"


def test_chains_contain_every_model_they_grew_from() -> None:
    """Mini inside base inside large, at the published proportions with head_dim 8."""
    extra = {"vocab_size": 96, "pad_token_id": 0, "local_attention": 8}
    configs = {name: _family_config(name, scale=8, **extra) for name in FAMILY_SIZES}
    mini = random_model(configs["mini"])
    base = grow(mini, configs["base"])
    large = grow(base, configs["large"])
    inner = small_budget(mini.config, large.config)
    outer = small_budget(base.config, large.config)
    assert inner < outer < DeltaBudget.full(large.config)
    assert_same(logits(large, budget=inner), logits(mini))
    assert_same(logits(large, budget=outer), logits(base))
    # The base has been trained before it grows: what moved must be found in the large one.
    trained = randomise(base, seed=3)
    large = grow(trained, configs["large"])
    inside = small_budget(mini.config, base.config)
    assert_same(logits(large, budget=inner), logits(trained, budget=inside))
    assert_same(logits(large, budget=outer), logits(trained))


@pytest.mark.parametrize(
    "pair", [("micro", "mini"), ("mini", "base"), ("base", "large"), ("micro", "large")]
)
def test_the_published_sizes_nest(pair: tuple[str, str]) -> None:
    small, large = (_family_config(name) for name in pair)
    budget = small_budget(small, large)
    assert DeltaBudget.parse(str(budget)) == budget
    shape = budget.shape(large)
    layers, hidden, heads, channels = FAMILY_SIZES[pair[0]]
    assert (shape.layers, shape.hidden, shape.heads) == (layers, hidden, heads)
    assert set(shape.intermediate) == {channels}
    assert budget.parameters(large) == DeltaBudget.full(small).parameters(small)


def test_true_sizes_have_true_shapes() -> None:
    """The published mini and base, without memory for their weights."""
    with torch.device("meta"):
        mini = DeltaEncoderForMaskedLM(_family_config("mini"))
    grown = grow(mini, _family_config("base"))
    assert all(parameter.is_meta for parameter in grown.parameters())
    assert sum(parameter.numel() for parameter in grown.parameters()) == 149_655_232
    cut = grown.slice(small_budget(mini.config, grown.config))
    assert {k: v.shape for k, v in cut.state_dict().items()} == {
        k: v.shape for k, v in mini.state_dict().items()
    }


def test_widths_cut_to_the_exact_channels() -> None:
    """A ratio of six decimals must give every number of channels back, at any size."""
    for full in (3, 7, 48, 1152, 2624, 8192):
        for size in {1, 2, 3, full // 3 or 1, full // 2, full - 1, full} | set(
            range(1, full, 1 + full // 60)
        ):
            small = small_config(num_hidden_layers=1, intermediate_size=size)
            large = small_config(num_hidden_layers=1, intermediate_size=full)
            if size <= full:
                assert small_budget(small, large).shape(large).intermediate == (size,)
    assert str(small_budget(small_config(), small_config())) == "1.0:4:3"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"head_dim": 16}, "head_dim 16 must be 8"),
        ({"vocab_size": 97}, "vocab_size 97 must be 96"),
        ({"local_attention": 16}, "local_attention 16 must be 8"),
        ({"global_rope_theta": 5000.0}, "global_rope_theta 5000.0 must be 160000.0"),
        ({"local_rope_theta": 5000.0}, "local_rope_theta 5000.0 must be 10000.0"),
        ({"hidden_activation": "silu"}, "hidden_activation 'silu' must be 'gelu'"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06 must be 1e-05"),
        ({"mlp_bias": True}, "mlp_bias True must be False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False must be True"),
        ({"layer_types": ["full_attention"] * 3}, r"layer_types\[1\] 'full_attention' must be"),
        ({"hidden_size": 24}, "hidden_size 24 must be at least 32"),
        ({"num_attention_heads": 3}, "num_attention_heads 3 must be at least 4"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 2 must be at least 3"),
        ({"intermediate_size": [48, 47, 90]}, "intermediate_size 47 of layer 1 must be at least"),
    ],
)
def test_shapes_that_do_not_nest_are_refused(overrides: dict[str, Any], message: str) -> None:
    small = DeltaEncoderForMaskedLM(small_config())
    with pytest.raises(ValueError, match=message):
        grow(small, small_config(**overrides))
    with pytest.raises(ValueError, match=message):
        small_budget(small.config, small_config(**overrides))


def test_all_obstacles_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="head_dim.*hidden_size"):
        small_budget(small_config(), small_config(head_dim=16, hidden_size=16))


def test_new_units_has_two_values() -> None:
    small = DeltaEncoderForMaskedLM(small_config())
    with pytest.raises(ValueError, match="'zeros' must be 'zero_output' or 'random'"):
        grow(small, small_config(), new_units="zeros")  # type: ignore[arg-type]


def test_growing_keeps_mode_precision_and_the_given_configuration() -> None:
    small = random_model(small_config()).to(torch.bfloat16).train()
    config = small_config(**GROWTHS["all"])
    grown = grow(small, config)
    assert grown.training
    assert {parameter.dtype for parameter in grown.parameters()} == {torch.bfloat16}
    assert grown.config is not config
    assert grown.config.budgets == config.budgets


BUILT = {"delta_kind": "dictionary", "delta_atoms": 3, "delta_rank": 2}


@pytest.mark.parametrize("kind", ["dictionary", "low_rank"])
def test_a_built_delta_grows_around_the_base_slice(kind: str) -> None:
    """The small model as base slice, what is new from few numbers, norms that know the budget."""
    small = random_model(small_config())
    config = small_config(
        **{**BUILT, "delta_kind": kind},
        **GROWTHS["all"],
        conditioned_norms=True,
        exit_affine=True,
        base_attention_heads=4,
        base_intermediate_size=[48, 48, 48, 10, 10],
    )
    grown = grow(small, config)
    assert_same(logits(grown, budget=small_budget(small.config, config)), logits(small))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"base_attention_heads": 3}, "base_attention_heads 3 must be at least 4: the base slice"),
        ({"base_intermediate_size": 40}, "base_intermediate_size 40 must be at least 48"),
    ],
)
def test_a_base_slice_too_small_for_the_small_model_is_refused(
    sizes: dict[str, int], message: str
) -> None:
    base: dict[str, Any] = {"base_attention_heads": 4, "base_intermediate_size": 48, **sizes}
    config = small_config(**{**BUILT, **LARGER, "intermediate_size": 72, **base})
    with pytest.raises(ValueError, match=message):
        grow(random_model(small_config()), config)
    # A dense delta stores what does not fit.
    grow(random_model(small_config()), small_config(**{**LARGER, "intermediate_size": 72, **base}))


def test_a_small_model_grows_after_its_own_parts_are_folded() -> None:
    small = random_model(small_config(**BUILT, conditioned_norms=True, exit_affine=True))
    config = small_config(**GROWTHS["all"])
    with pytest.raises(ValueError, match="slice it to its full budget first"):
        grow(small, config)
    plain = small.slice(DeltaBudget.full(small.config))
    grown = grow(plain, config)
    assert_same(logits(grown, budget=small_budget(plain.config, config)), logits(plain))
