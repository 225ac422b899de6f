import itertools
import json

import matplotlib
import pytest
from nestling.recipes import label_placement
from nestling.recipes.cli_errors import DataError, UsageError
from nestling.recipes.ladder_plot import pareto_front, plot_ladder
from nestling.recipes.plot_style import format_flops


def test_pareto_front_by_hand():
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 3.5), (2.0, 2.0), (4.0, 1.0)]
    assert pareto_front(points) == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    flipped = [(cost, -value) for cost, value in points]
    assert pareto_front(flipped, higher_is_better=True) == [(1.0, -3.0), (2.0, -2.0), (3.0, -1.0)]


def test_the_same_evaluation_gives_the_same_bytes(example_evaluation, tmp_path):
    content = example_evaluation()
    source = tmp_path / "metrics.json"
    source.write_text(json.dumps(content))
    settings = dict(matplotlib.rcParams)
    first = plot_ladder(content, tmp_path / "a" / "ladder.json")
    second = plot_ladder(source, tmp_path / "b" / "ladder.json")
    assert [path.name for path in first] == ["ladder.png", "ladder.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in first[1].read_bytes()
    assert dict(matplotlib.rcParams) == settings  # nothing global is left behind


@pytest.mark.parametrize("quality", ["cross_entropy", "perplexity", "accuracy"])
def test_labels_cover_nothing(example_evaluation, tmp_path, monkeypatch, quality):
    drawn = []

    def record(axes, labels, obstacles):
        place(axes, labels, obstacles)
        drawn.append((axes, obstacles))

    place = label_placement.place_labels
    monkeypatch.setattr("nestling.recipes.ladder_plot.place_labels", record)
    references = {"post-hoc slicing": example_evaluation(0.5, 1)}
    plot_ladder(example_evaluation(), tmp_path / "x.json", quality=quality, references=references)
    (axes, obstacles) = drawn[0]
    renderer = axes.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) == 3
    boxes.append(axes.get_legend().get_window_extent(renderer))
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for point in obstacles:
        x, y = axes.transData.transform(point)
        assert not any(box.contains(x, y) for box in boxes[:3])


def test_the_axis_says_what_is_counted(example_evaluation, tmp_path):
    content = example_evaluation()
    _, drawn = plot_ladder(content, tmp_path / "x.json")
    assert "sequence of 128 tokens, head on 38" in drawn.read_text()
    del content["predicted_tokens_per_sequence"]  # a file from before the head was counted
    _, drawn = plot_ladder(content, tmp_path / "y.json")
    assert "sequence of 128 tokens, without the head" in drawn.read_text()


def test_a_single_budget_and_missing_numbers(example_evaluation, tmp_path):
    content = example_evaluation()
    only = content["summary"]["largest"]
    content["budgets"] = [e for e in content["budgets"] if e["budget"] == only]
    assert len(plot_ladder(content, tmp_path / "one.json")) == 2
    content = example_evaluation()
    content["budgets"][3]["perplexity"] = None  # overflowed to infinity, null in JSON
    assert len(plot_ladder(content, tmp_path / "gap.json", quality="perplexity")) == 2


def test_errors(example_evaluation, tmp_path):
    with pytest.raises(UsageError, match="cross_entropy, perplexity, accuracy"):
        plot_ladder(example_evaluation(), tmp_path / "x.json", quality="loss")
    with pytest.raises(DataError, match="does not exist"):
        plot_ladder(tmp_path / "none.json", tmp_path / "x.json")
    with pytest.raises(DataError, match="kind 'benchmark'"):
        plot_ladder({"kind": "benchmark"}, tmp_path / "x.json")
    with pytest.raises(DataError, match="schema version 9"):
        plot_ladder({**example_evaluation(), "schema_version": 9}, tmp_path / "x.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        plot_ladder(broken, tmp_path / "x.json")


def test_units():
    assert [format_flops(f) for f in (5e7, 1.5e9, 2e12, 2500, 7)] == [
        "50 M",
        "1.5 G",
        "2 T",
        "2.5 k",
        "7",
    ]
