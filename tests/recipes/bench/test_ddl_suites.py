"""The suites of the delta residual at toy size: complete files, true bounds, equal functions."""

import json
from dataclasses import replace

import pytest
import torch
from nestling.configuration.ddl_settings import VARIANTS
from nestling.modeling.state_reading import ChannelRead, TokenRead
from nestling.recipes.bench import (
    block,
    compressor,
    ddl_cases,
    model,
    model_width,
    normalization,
    operator,
    spectral_snapshot,
)
from nestling.recipes.bench.bench_report import torch_threads
from nestling.recipes.bench.case_measurement import clock_of
from nestling.recipes.bench.ddl_cases import Case, DdlBenchSettings
from nestling.recipes.bench.unfolded_reads import (
    folded_channel_weight,
    unfolded_channel_read,
    unfolded_token_read,
)
from nestling.recipes.bench_regression import MACHINE
from nestling.recipes.bench_summary import case_rows
from nestling.recipes.cli_errors import UsageError
from nestling.recipes.recipe_loader import load_recipe, save_recipe

QUICK = {
    "rounds": 2,
    "warmup": 0,
    "modes": ("eager",),
    "memory": False,
    "device": "cpu",
    # It would change the allocator of the tests behind this one.
    "keeps_freed_memory": False,
}
TOY = {
    "operator": replace(operator.SHORT, hidden_size=8, state_numbers=256, **QUICK),
    "block": replace(
        block.SHORT, hidden_size=8, num_attention_heads=2, rows=1, sequence_length=4, **QUICK
    ),
    "compressor": replace(
        compressor.SHORT, hidden_size=8, rows=1, sequence_length=8, **QUICK
    ),
    "normalization": replace(normalization.SHORT, hidden_size=8, tokens=16, **QUICK),
    "model": replace(
        model.SHORT,
        vocab_size=32,
        hidden_size=8,
        sequence_length=8,
        batch_size=1,
        precisions=("fp32",),
        **QUICK,
    ),
}
MODULES = {
    "operator": operator,
    "block": block,
    "compressor": compressor,
    "normalization": normalization,
    "model": model,
}


@pytest.mark.parametrize("suite", TOY)
def test_a_suite_measures_all_its_cases(suite, tmp_path):
    path = tmp_path / "x.json"
    content = MODULES[suite].run(path, TOY[suite])
    assert json.loads(path.read_text()) == json.loads(json.dumps(content))
    assert (content["kind"], content["suite"], content["threads"]) == ("benchmark", suite, 1)
    expected = MODULES[suite].cases(TOY[suite])
    assert [row["case"] for row in content["results"]] == list(expected)
    assert MACHINE in expected and content["summary"]
    for row in content["results"]:
        if not expected[row["case"]].is_timed:
            assert "latency_ms" not in row
            continue
        latency = row["latency_ms"]
        assert latency["iterations"] == len(row["samples_ms"]) == 2
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["tokens"] / latency["p50"])
        if row["least_bytes"]:
            assert row["gigabytes_per_second"] == pytest.approx(
                row["share_of_copy"] * row["copy_gigabytes_per_second"]
            )
    assert len(case_rows(content)) == len(content["results"])


def test_the_cost_of_a_state_is_predicted_from_one_width(tmp_path):
    """An overhead of a quarter at d = 8 is an eighth at d = 16."""
    settings = replace(
        model_width.SHORT, vocab_size=32, hidden_size=8, hidden_sizes=(8, 16), head_dim=4,
        sequence_length=8, batch_size=1, **QUICK,
    )  # fmt: skip
    summary = model_width.run(tmp_path / "x.json", settings)["summary"]
    at_8, at_16 = summary.values()
    assert "predicted" not in at_8
    overhead = 1 / at_8["measured"] - 1
    assert at_16["predicted"] == pytest.approx(1 / (1 + overhead / 2))
    assert model_width.predicted_ratio(0.8, 8, 16) == pytest.approx(1 / 1.125)
    with pytest.raises(ValueError, match="hidden_size 9"):
        model_width.run(None, replace(settings, hidden_size=9))


@pytest.mark.parametrize("suite", ["operator", "block", "compressor"])
def test_compiled_cases_compute_what_eager_ones_do(suite, monkeypatch):
    """Compiled, a state is a tensor a value channel; here the same functions run as they are."""
    monkeypatch.setattr(ddl_cases, "compiled", lambda function: function)
    # Not what a machine without a compiler would leave.
    monkeypatch.setattr(ddl_cases.DdlBenchSettings, "usable_modes", ("eager", "compiled"))
    cases = MODULES[suite].cases(TOY[suite])
    pairs = [(name, name.replace(" eager", " compiled")) for name in cases if " eager" in name]
    assert pairs
    for eager, compiled in pairs:
        expected, found = (cases[name].prepare()() for name in (eager, compiled))
        if "backward" in eager:
            assert all(bool(gradient.isfinite().all()) for gradient in found)
            continue
        [expected] = ddl_cases.as_tuple(expected)
        found = ddl_cases.as_tuple(found)
        whole = torch.stack(found, dim=-2) if found[0].dim() < expected.dim() else found[0]
        torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize("suite", TOY)
def test_a_suite_without_the_full_sizes_has_no_targets(suite):
    assert MODULES[suite].SHORT.has_targets is False and MODULES[suite].DEFAULT.has_targets
    assert MODULES[suite].DEFAULT.variants == tuple(VARIANTS)


def test_one_variant_narrows_the_cases():
    narrow = {"variants": ("baseline", "ddl")}
    names = operator.cases(replace(TOY["operator"], **narrow))
    assert {name.split(" forward")[0] for name in names} == {"add d_v=1", "delta d_v=1", MACHINE}
    assert list(compressor.cases(replace(TOY["compressor"], **narrow))) == [MACHINE]
    found = model.cases(replace(TOY["model"], **narrow)).values()
    assert {case.labels.get("variant") for case in found} == {"baseline", "ddl", None}


def bytes_of(function, inputs):
    """Count what a forward and a backward pass must move: inputs, outputs, gradients, once."""
    leaves = [tensor.requires_grad_() for tensor in inputs]
    output = function(*leaves)
    gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
    size = sum(t.nbytes for t in leaves) + output.nbytes
    return size, size + output.nbytes + sum(t.nbytes for t in (*leaves, *gradients))


@pytest.mark.parametrize("value_size", [1, 3])
def test_the_byte_bound_of_the_operator_counts_every_tensor_once(value_size):
    tokens, size = 5, 8
    shapes = ((tokens, value_size, size), (tokens, size), (tokens, value_size), (tokens, 1))
    forward, both = bytes_of(operator.delta_update, [torch.rand(*shape) for shape in shapes])
    bound = [
        tokens * operator.least_bytes(operator.OURS, size, value_size, direction, "fp32")
        for direction in ddl_cases.PASSES
    ]
    assert bound == [forward, both]


@pytest.mark.parametrize("norm", [normalization.TORCH, normalization.DIRECTION])
def test_the_byte_bound_of_a_norm(norm):
    function = normalization._direction if norm == normalization.DIRECTION else torch.tanh
    forward, both = bytes_of(function, [torch.rand(5, 8)])
    bound = [5 * normalization.least_bytes(norm, 8, p, "fp32") for p in ddl_cases.PASSES]
    assert bound == [forward, both]


def test_the_byte_bound_of_a_read():
    forward, both = bytes_of(lambda state: state.sum(-2), [torch.rand(5, 3, 8)])
    bound = [5 * compressor.least_bytes(8, 3, p, "fp32") for p in ddl_cases.PASSES]
    assert bound == [forward, both]


def test_both_layouts_compute_the_same_update():
    torch.manual_seed(0)
    state, output = torch.randn(4, 3, 8), torch.randn(4, 8)
    value, beta = torch.randn(4, 3), torch.rand(4, 1)
    ours = operator.delta_update(state, output, value, beta)
    other = operator.innermost_update(state.transpose(1, 2), output, value, beta)
    assert torch.allclose(ours, other.transpose(1, 2), atol=1e-6)


def test_two_steps_read_what_the_folded_reads_do():
    torch.manual_seed(0)
    state, weight = torch.randn(2, 6, 3, 8), torch.randn(3)
    kernel = torch.randn(4, 3, 8)
    token = TokenRead(3, 8, 4)
    with torch.no_grad():
        token.weight.copy_(weight.unsqueeze(-1))
        token.kernel_change.copy_(kernel)
        token.kernel_change[0] -= 1
        assert torch.allclose(token(state), unfolded_token_read(state, kernel, weight), atol=1e-5)
        channel, taps = ChannelRead(3, 8), torch.randn(4, 8)
        channel.weight.copy_(folded_channel_weight(taps, weight))
        two_steps = unfolded_channel_read(state, taps, weight)
        assert torch.allclose(channel(state), two_steps, atol=1e-5)


def rows(**milliseconds):
    return {
        name.replace("_", " "): {
            "what": "training step",
            "variant": name.split("_")[2],
            "precision": name.split("_")[3],
            "mode": "compiled",
            "case": name.replace("_", " "),
            "tokens": 10,
            "latency_ms": {"p50": value},
            "samples_ms": [value] * 5,
        }
        for name, value in milliseconds.items()
    }


def test_the_targets_of_a_model_hang_on_compiled_bf16_training():
    measured = rows(
        training_step_baseline_bf16_compiled=10.0,
        training_step_ddl_bf16_compiled=10.2,
        training_step_baseline_fp32_compiled=19.0,
        training_step_ddl_fp32_compiled=40.0,
    )
    ratios = model._over_baseline(measured, model.DEFAULT)
    ours = ratios["training step ddl bf16 compiled, speed over baseline"]
    assert ours["measured"] == pytest.approx(10 / 10.2)
    assert (ours["target"], ours["met"]) == (0.97, True)
    assert "target" not in ratios["training step ddl fp32 compiled, speed over baseline"]
    gains = model._bf16_gain(measured, replace(model.DEFAULT, device="cpu"))
    assert gains["training step baseline compiled, speed of bf16 over fp32"]["met"] is False
    assert gains["training step ddl compiled, speed of bf16 over fp32"]["met"] is True
    toy = model._over_baseline(measured, replace(model.DEFAULT, has_targets=False))
    assert all("target" not in row for row in toy.values())


def test_without_a_compiler_the_cases_are_eager_and_a_line_says_so(monkeypatch, tmp_path, caplog):
    both = replace(TOY["operator"], modes=("eager", "compiled"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not any(case.is_compiled for case in operator.cases(both).values())
    assert "C++ compiler" in caplog.text
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert both.usable_modes == ("eager",)
    monkeypatch.undo()
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert any(case.is_compiled for case in operator.cases(both).values())


def test_a_compiled_copy_has_code_of_its_own(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: seen.append(f) or f)

    def double(x):
        return 2 * x

    assert ddl_cases.compiled(double)(3) == ddl_cases.compiled(double)(3) == 6
    assert len({double.__code__, *(function.__code__ for function in seen)}) == 3
    with pytest.raises(TypeError, match="plain function"):
        ddl_cases.compiled(torch.nn.Identity())


def test_one_thread_is_timed_by_what_it_used():
    settings = DdlBenchSettings(rounds=1, device="cpu")
    with torch_threads(1):
        assert clock_of(settings) == "cpu"
    with torch_threads(2):
        assert clock_of(settings) == "wall"


def test_a_recipe_without_snapshots_has_no_rhythm(tmp_path):
    recipe = load_recipe(["recipe=ddl/tiny", "training.eval_steps=null"])
    path = save_recipe(recipe, tmp_path)
    with pytest.raises(UsageError, match="takes no snapshots while it trains"):
        spectral_snapshot.snapshot_rhythm(str(path))


def test_names_tell_cases_apart():
    labels = {"what": "delta", "d_v": 4, "mode": "eager"}
    assert Case(labels=labels, tokens=1, prepare=lambda: print).name == "delta d_v=4 eager"


def test_a_snapshot_is_weighed_against_a_training_step(tmp_path):
    settings = spectral_snapshot.SpectralSnapshotSettings(
        rounds=2, variants=("ddl-cc",), sizes=TOY["model"]
    )
    report = spectral_snapshot.run(tmp_path / "spectral.json", settings)
    clocks = {row["what"]: row["cpu_ms"]["median"] for row in report["results"]}
    step, snapshot = clocks["training step"], clocks["snapshot"]
    summary = report["summary"]
    added = summary["ddl-cc, added to a forward pass, over one training step"]
    assert added["measured"] == pytest.approx((snapshot - clocks["forward pass"]) / step)
    assert (added["target"], added["better"]) == (0.05, "lower")
    whole = summary["ddl-cc, whole snapshot over one training step"]
    assert whole == {"measured": pytest.approx(snapshot / step)}
    # What a run pays: the demo takes 16 rows every 30 steps of 8 rows, the study every 100 of 16.
    paid = "ddl-cc, whole snapshots over the {} steps between them, recipe ddl/{}"
    for steps, name, rows in ((30, "demo", 2), (100, "study", 1), (200, "nested", 1)):
        share = summary[paid.format(steps, name)]
        assert share["measured"] == pytest.approx(rows * snapshot / step / steps)
        assert (share["target"], share["met"]) == (0.05, share["measured"] <= 0.05)
    toy = summary[paid.format(4, "original")]
    assert toy == {"measured": pytest.approx(4 * snapshot / step / 4)}
    assert json.loads((tmp_path / "spectral.json").read_text())["settings"]["sizes"]["d_value"] == 4
