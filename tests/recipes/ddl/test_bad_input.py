"""Every mistake gives one line with the value, what is allowed and the fix, and its exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR
from nestling.recipes import cli
from nestling.recipes.cli_arguments import rewrite_arguments

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)

TOKENS = "--train-tokens=1 2 3 4 5 6 7 8 9 10 11 12 --valid-tokens=3 4 5 6 7".split(" --valid")
TRAIN = ["train", TOKENS[0], "--valid" + TOKENS[1], "--seq-len", "4", "--max-steps", "1"]

USAGE = {
    "heads do not divide": (["--d-model", "30", "--heads", "4"], "num_attention_heads 4"),
    "head size is odd": (["--d-model", "12", "--heads", "4"], "head_dim 3"),
    "one value channel": (
        ["--variant", "ddl-cc", "--d-value", "1"],
        "d_value must be 2 or more",
    ),
    "several for a vector": (["--variant", "ddl", "--d-value", "4"], "needs a matrix variant"),
    "gate at 0": (["--beta-init", "0"], r"open interval (0, 2)"),
    "gate at 2": (["--beta-init", "2"], r"open interval (0, 2)"),
    "gate is no number": (["--beta-init", "nan"], "finite"),
    "unknown variant": (["--variant", "ddl-cx"], "did you mean ddl-"),
    "unknown preset": (["model.preset=papr"], "did you mean paper"),
    "no steps": (["--max-steps", "0"], "training.max_steps is 0"),
    "not a number": (["--layers", "two"], "model.num_hidden_layers"),
    "value missing": (["--layers"], "--layers needs a value"),
    "negative rate": (["--learning-rate", "-1"], "training.lr is -1"),
    "guard of 0": (["--k-eps", "0"], "model.k_eps is 0"),
    "update that does not exist": (["model.residual_update=erase"], "residual_update 'erase'"),
    "baseline with a control": (
        ["--variant", "baseline", "model.residual_update=write_only"],
        "baseline adds",
    ),
    "depth beyond the layers": (["model.depth_budgets=[3]", "--layers", "2"], "in 1..2"),
    "budget that cannot be read": (["training.budgets=[big]"], "training.budgets"),
    "longer than the model": (["--max-seq-len", "3"], "takes at most 3 tokens"),
    "measured longer than the model": (
        ["evaluation.sequence_length=129"],
        "evaluation.sequence_length is 129, the model takes at most 128 tokens",
    ),
    "budget of no channel": (["model.value_budgets=[0]"], "model.value_budgets is [0]"),
    "no budget to train": (["training.budgets=[]"], "training.budgets is []"),
    "no budget to measure": (["evaluation.budgets=[]"], "nothing would be measured"),
    "no budget to train from a checkpoint": (
        ["model.init_from=start", "training.budgets=[]"],
        "training.budgets is []",
    ),
    "largest budget untrained": (
        ["model.depth_budgets=[1]", "training.budgets=[smallest]"],
        "training.budgets is ['smallest'], without the largest budget 4:2",
    ),
    "no smallest budget": (
        ["model.value_budgets=[1]", "training.budgets=['1:2','4:1',largest]"],
        "training.budget_sampling=sandwich needs; add 1:1",
    ),
    "share of a budget that need not run": (
        ["training.budget_sampling=random", "loss.largest_share=0.5"],
        "loss.largest_share is 0.5, but with training.budget_sampling=random",
    ),
    "teacher that need not run": (
        ["training.budget_sampling=random", "model.depth_budgets=[1]", "loss.kd_weight=0.5"],
        "loss.kd_weight is 0.5, which needs the largest budget at every step",
    ),
    "teacher alone in a step": (
        ["training.budgets_per_step=1", "model.depth_budgets=[1]", "loss.kd_weight=1"],
        "training.budgets_per_step>=2",
    ),
    "teacher alone in a step from a checkpoint": (
        ["training.budgets_per_step=1", "model.init_from=start", "loss.kd_weight=1"],
        "training.budgets_per_step>=2",
    ),
    "teacher alone in the list": (
        ["training.budgets=[largest]", "model.depth_budgets=[1]", "loss.kd_weight=1"],
        "training.budgets has 4:2; add budgets such as smallest",
    ),
    "teacher alone in the model": (["loss.kd_weight=1"], "4:2; give model.depth_budgets"),
    "no stock class for the state": (
        ["export.format=native", "export.budgets=[largest]"],
        "budget 4:2 of export.budgets: variant 'ddl-cc' rewrites its state",
    ),
    "no stock class for mixed values": (
        ["--variant", "baseline", "model.value_residual=true", "export.format=native",
         "export.budgets=[all]"],
        "value_residual mixes attention values across layers; set export.format=auto",
    ),
    "negative seed": (["--seed", "-1"], "seed is -1, it must be a whole number in 0..4294967295"),
    "seed too large for NumPy": (["seed=4294967296"], "in 0..4294967295"),
}


def _line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed as error, which must be one line."""
    said = capsys.readouterr().err.strip()
    # A progress bar may stand before it on the same line.
    _, *errors = said.split("nestling: error:")
    assert len(errors) == 1 and "Traceback" not in said, said
    assert "\n" not in errors[0].strip()
    return errors[0]


@pytest.mark.parametrize("name", list(USAGE))
def test_bad_values_are_refused_before_anything_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = USAGE[name]
    code = cli._run([*TRAIN, f"--out={tmp_path / 'run'}", *arguments])
    assert code == 2
    assert words in _line(capsys)
    assert not (tmp_path / "run").exists()


DATA = {
    "too few for a row": (["--seq-len", "64"], "has 12 tokens, a row of data.max_length=64"),
    "id beyond the vocabulary": (["--vocab-size", "9"], "id 9 at place 8"),
    "no id": (["data.train_tokens=one two"], "'one', which is no token id"),
    "empty validation": (["data.valid_tokens=7"], "has 1 tokens"),
    "missing file": (
        ["data.train_tokens=null", "data.valid_tokens=null", "--train-file", "absent.txt"],
        "absent.txt",
    ),
}


@pytest.mark.parametrize("name", list(DATA))
def test_bad_data_are_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = DATA[name]
    command = rewrite_arguments([*TRAIN, f"--out={tmp_path / 'run'}", *arguments])
    for verb in ("train", "prepare"):
        assert cli._run([verb, *command[1:]]) == 3
        assert words in _line(capsys)
        # The corrected command finds nothing that stands in its way.
        assert not (tmp_path / "run").exists()


def test_channel_reads_have_no_kernel_that_could_be_too_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The original slides a kernel over the value channels, which must not be longer than those;
    # here every channel has a weight of its own for each of them.
    shape = ["--variant", "ddl-cc", "--d-value", "2", "--shortconv-kernel-size", "4"]
    assert cli._run([*TRAIN, *shape, f"--out={tmp_path}", "--dry-run"]) == 0
    capsys.readouterr()


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hot = ["--learning-rate", "1e30", "--grad-clip", "0", "--max-steps", "6"]
    code = cli._run([*TRAIN, *hot, f"--out={tmp_path}", "training.use_cpu=true"])
    said = _line(capsys)
    assert code == 5 and "not finite" in said and "learning_rate" in said


def test_resuming_what_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["train", "--resume", str(tmp_path)]) == 2
    assert "recipe.yaml" in _line(capsys)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--prompt-tokens", "1,999"], "id 999 at place 1", 3),
        (["--prompt-tokens", ""], "no token id", 3),
        (["--prompt-tokens", "1,x"], "'x'", 3),
        (["--prompt", ""], "--prompt is empty", 2),
        ([], "one of the two", 2),
        (["--prompt", "a", "--prompt-tokens", "1"], "one of the two", 2),
        (["--prompt", "a", "--do-sample", "--temperature", "0"], "above 0", 2),
        (["--prompt", "a", "--do-sample", "--top-p", "1.5"], "(0, 1]", 2),
        (["--prompt", "a", "--temperature", "0.5"], "add --do-sample", 2),
        (["--prompt", "a", "--budget", "9:9"], "nearest possible budget is 2:2", 2),
        (["--prompt", "a", "min_pp=0.1"], "did you mean min_p", 2),
        (["--prompt", "a", "--max-new-tokens", "0"], "max-new-tokens", 2),
    ],
)
def test_generate_names_what_it_cannot_use(
    ddl_run: Path,
    arguments: list[str],
    words: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli._run(["generate", str(ddl_run), *arguments]) == code
    assert words in _line(capsys)


def test_generate_without_a_model_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["generate", str(tmp_path), "--prompt", "a"]) == 4
    assert "no config.json" in _line(capsys)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ddl"})[:-3])
    assert cli._run(["generate", str(tmp_path), "--prompt", "a"]) == 4
    _line(capsys)


def test_usage_errors_import_nothing_heavy() -> None:
    script = (
        "import sys; from nestling.recipes.cli import _run\n"
        "code = _run(['train', '--train-tokens', '1 2', '--beta-init', '2'])\n"
        "heavy = [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "print(code, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == "2 []", done.stderr
