"""Weight decay and learning-rate groups."""

import re
from typing import Any

import pytest
import torch
from nestling.trainers.parameter_groups import build_parameter_groups
from torch import nn


class Net(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        """Build the parameters."""
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.attn_norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, 8)
        self.depth_norm = nn.Parameter(torch.ones(3, 4))
        self.gain = nn.Parameter(torch.ones(4))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def settings(net: Net, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return name -> (learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in groups:
        assert group["params"]
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


def test_decay_only_on_matrices() -> None:
    """Not on norms (of any shape), biases and vectors; frozen parameters are left out."""
    net = Net()
    found = settings(net, build_parameter_groups(net.named_parameters(), 0.1, 0.01))
    assert {name for name, (_, decay) in found.items() if decay == 0.01} == {
        "embedding.weight",
        "up.weight",
    }
    expected = {name for name, p in net.named_parameters() if p.requires_grad}
    assert set(found) == expected
    assert {rate for rate, _ in found.values()} == {0.1}


def test_the_first_matching_pattern_counts() -> None:
    """Patterns are searched in the order given."""
    net = Net()
    multipliers = {r"^up\.weight$": 3.0, "up": 0.5, "norm": 0.0}
    groups = build_parameter_groups(net.named_parameters(), 0.1, 0.01, multipliers)
    rates = {name: rate for name, (rate, _) in settings(net, groups).items()}
    assert rates["up.weight"] == pytest.approx(0.3) and rates["up.bias"] == pytest.approx(0.05)
    assert rates["attn_norm.weight"] == 0.0 and rates["embedding.weight"] == 0.1
    torch.optim.AdamW(groups, lr=0.1)


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ({"embeding": 2.0}, "'embeding' matches no trainable parameter; nearest names: embedding"),
        ({"frozen": 2.0}, "matches no trainable parameter"),
        ({"up": -1.0}, re.escape("lr_multipliers['up'] is -1.0")),
        ({"up(": 1.0}, "is no regular expression"),
    ],
)
def test_patterns_are_checked(multipliers: dict[str, float], message: str) -> None:
    """A typing error would otherwise train with the wrong rate in silence."""
    with pytest.raises(ValueError, match=message):
        build_parameter_groups(Net().named_parameters(), 0.1, 0.01, multipliers)
