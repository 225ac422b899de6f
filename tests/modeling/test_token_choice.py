"""Which tokens get the delta, through what gate, and what a routed pass costs."""

import math
from typing import Any

import pytest
import torch
from delta_models import packed_rows, tiny_config
from nestling.configuration import BudgetError, DeltaBudget
from nestling.configuration.delta_budget import share_of
from nestling.modeling import DeltaEncoderForMaskedLM
from nestling.modeling.token_routing import choose_by_share, route_tokens
from torch.utils.flop_counter import FlopCounterMode

ROUTED: dict[str, Any] = {"token_routing": True}
UNEVEN = {"intermediate_size": [48, 40, 30, 48], "base_intermediate_size": [24, 40, 10, 1]}


@pytest.mark.parametrize("ratio", [0.0, 0.07, 0.35, 0.5, 0.999, 1.0])
def test_each_row_gets_its_share_of_its_real_tokens(ratio: float) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [0, 1, 2, 3, 7, 10, 19, 20]
    is_real = torch.stack([torch.arange(20) < length for length in lengths]).flip(1)
    scores = torch.randn(len(lengths), 20, generator=generator)
    scores[:, 0] = 100.0  # a pad, except in the last row
    chosen = choose_by_share(scores, is_real, ratio)
    assert not (chosen & ~is_real).any()
    for row, length in enumerate(lengths):
        wanted = math.ceil(round(ratio * length, 6))
        assert chosen[row].sum() == wanted
        if 0 < wanted < length:
            left_out = scores[row][is_real[row] & ~chosen[row]]
            assert scores[row][chosen[row]].min() > left_out.max()


def test_a_share_is_exact() -> None:
    """Rounding errors of ``ratio x tokens`` must not add a token or lose one."""
    for tokens in (1, 10, 100, 1000, 3000, 8192):
        for hundredths in range(101):
            wanted = -(-hundredths * tokens // 100)
            assert share_of(tokens, hundredths / 100) == wanted
            assert share_of(torch.tensor([tokens]), hundredths / 100).item() == wanted


def test_equal_scores_are_chosen_in_order() -> None:
    chosen = choose_by_share(torch.zeros(1, 6), torch.ones(1, 6, dtype=torch.bool), 0.5)
    assert chosen.tolist() == [[True, True, True, False, False, False]]


def test_the_gate_is_exactly_one_and_lets_a_gradient_through() -> None:
    scores = torch.tensor([[3.0, -2.0, 40.0, 0.1]], requires_grad=True)
    chosen = torch.tensor([[True, False, True, True]])
    route = route_tokens(chosen, scores, most=4)
    assert route.columns.tolist() == [[0, 2, 3, 1]]
    assert route.gate.squeeze(-1).tolist() == [[1.0, 1.0, 1.0, 0.0]]
    (gradient,) = torch.autograd.grad(route.gate.sum(), scores)
    soft = torch.sigmoid(scores.detach())
    torch.testing.assert_close(gradient, soft * (1 - soft) * chosen)
    assert not route_tokens(chosen, None, most=4).gate.requires_grad


RATIOS = (0.0, 0.1, 0.35, 0.5, 0.99)


@pytest.mark.parametrize("first", [0, 2])
def test_flops_of_a_routed_pass_are_those_of_the_formula(first: int) -> None:
    """Measured, of the nested model and of its slices: what is not chosen is not computed."""
    config = tiny_config(**ROUTED, **UNEVEN, routing_layer=first)
    model = DeltaEncoderForMaskedLM._from_config(config, attn_implementation="eager").eval()
    ids = packed_rows()[0][:2]
    for ratio in RATIOS:
        for text in ("1.0:4:4", "0.75:3:3:20", "1.0:2:4", "0.5:4:4", "0.02:2:4", "1.0:4:2"):
            budget = DeltaBudget.parse(text)
            model.config.delta_token_ratio = ratio
            wanted = budget.flops(model.config, 12, batch_size=2, delta_ratio=ratio)
            for runner, chosen in ((model, budget), (model.slice(budget), None)):
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    runner.model(ids, budget=chosen)
                assert counter.get_total_flops() == wanted, (ratio, text)


def test_flops_fall_with_the_share() -> None:
    config = tiny_config(**ROUTED)
    full = DeltaBudget.full(config)
    costs = [full.flops(config, 64, delta_ratio=ratio) for ratio in (0.0, 0.2, 0.5, 0.9)]
    assert costs == sorted(set(costs))
    assert costs[-1] < full.flops(config, 64) == full.flops(config, 64, delta_ratio=1.0)
    base = DeltaBudget.parse("0.5:2:4")
    assert base.flops(config, 64, delta_ratio=0.5) == base.flops(config, 64)
    with pytest.raises(BudgetError, match="delta_ratio 0.5 needs a model with token_routing=True"):
        base.flops(tiny_config(), 64, delta_ratio=0.5)


def test_flops_of_a_routed_pass_by_hand() -> None:
    config = tiny_config(**ROUTED, routing_layer=1)
    tokens, chosen, n, head, channels, units = 10, 4, 32, 8, 24, 8
    plain = 4 * tokens * n * 4 * head + 2 * tokens**2 * 4 * head + 3 * tokens * n * 2 * channels
    base = 4 * tokens * n * 2 * head + 2 * tokens**2 * 2 * head + 3 * tokens * n * channels
    delta = 2 * tokens * n * 2 * head  # keys and values of all tokens
    delta += 2 * chosen * n * 2 * head + 2 * chosen * tokens * 2 * head + 3 * chosen * n * channels
    preview = tokens * n * units + tokens * units
    wanted = 2 * (plain + 3 * (base + delta) + preview)
    assert DeltaBudget.full(config).flops(config, tokens, delta_ratio=0.35) == wanted
