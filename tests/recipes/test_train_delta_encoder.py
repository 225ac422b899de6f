"""The main job end to end, as a user runs it: the tiny recipe in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nestling.recipes.evaluation_file import read_evaluation
from nestling.trainers.event_log import read_events
from safetensors.torch import load_file

RunNestling = Callable[..., subprocess.CompletedProcess[str]]


def test_a_run_leaves_what_the_documentation_names(tiny_run: Path) -> None:
    for name in (
        "model/config.json",
        "model/model.safetensors",
        "best/model.safetensors",
        "metrics.json",
        "metrics.png",
        "metrics.svg",
        "metrics.md",
        "events.jsonl",
        "recipe.yaml",
        "data/manifest.json",
        "slices/budgets.json",
    ):
        assert (tiny_run / name).is_file(), name
    evaluation = read_evaluation(tiny_run / "metrics.json")
    assert len(evaluation["budgets"]) == 27
    assert evaluation["summary"]["monotonicity"]["alias_violations_calibration"] == 0
    assert evaluation["data"]["calibration_rows"] > 0
    printed = (tiny_run / "printed.txt").read_text()
    assert "0.5:2:1" in printed and "slices" in printed


def test_a_checkpoint_loads_without_the_package(tiny_run: Path) -> None:
    script = (
        "import sys; sys.modules['nestling'] = None\n"
        "from transformers import AutoModelForMaskedLM, AutoTokenizer\n"
        "model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "batch = AutoTokenizer.from_pretrained(sys.argv[1])('import os', return_tensors='pt')\n"
        "assert model(**batch).logits.isfinite().all()"
    )
    folder = str(tiny_run / "checkpoint-20")
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_term_is_logged_in_both_places(tiny_run: Path) -> None:
    events, _ = read_events(tiny_run / "events.jsonl", 0)
    logged = [event for event in events if event["event"] == "log" and "loss" in event]
    state = json.loads((tiny_run / "checkpoint-40" / "trainer_state.json").read_text())
    history = [entry for entry in state["log_history"] if "loss" in entry]
    assert [e["step"] for e in logged] == [h["step"] for h in history] == [10, 20, 30, 40]
    for event, entry in zip(logged, history, strict=True):
        for key in ("loss/masked_lm", "loss/distillation", "weight/masked_lm"):
            assert event[key] == entry[key]


def test_the_run_leaves_the_best_of_its_evaluations(tiny_run: Path) -> None:
    """Beside the last model; evaluations leave training as it was (the resumed run is equal)."""
    events, _ = read_events(tiny_run / "events.jsonl", 0)
    losses = {event["step"]: event["eval_loss"] for event in events if "eval_loss" in event}
    assert sorted(losses) == [20, 40]
    best = min(losses, key=lambda step: losses[step])
    for name, step in (("best", best), ("model", 40), ("last", 40)):
        weights = load_file(tiny_run / name / "model.safetensors")
        kept = load_file(tiny_run / f"checkpoint-{step}" / "model.safetensors")
        assert all(torch.equal(weights[key], kept[key]) for key in weights), name
    assert "best" in (tiny_run / "printed.txt").read_text()


def test_the_loss_falls(tiny_run: Path) -> None:
    events, _ = read_events(tiny_run / "events.jsonl", 0)
    losses = [e["loss/masked_lm"] for e in events if "loss/masked_lm" in e]
    assert losses[-1] < losses[0] - 0.3


def test_a_killed_run_resumes_to_the_same_weights(
    tiny_run: Path, tmp_path: Path, run_nestling: RunNestling
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run / "data", folder / "data")
    arguments = ("train", "recipe=delta_encoder/tiny", f"output_dir={folder}")
    process = subprocess.Popen(
        [sys.executable, "-m", "nestling.recipes", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (folder / "checkpoint-20").is_dir():
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline, "no checkpoint after 300 s"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "model").exists()
    refused = run_nestling(*arguments)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    done = run_nestling(*arguments, "--resume", "export.budgets=[]")
    assert done.returncode == 0, done.stderr[-2000:]
    expected = load_file(tiny_run / "checkpoint-40" / "model.safetensors")
    resumed = load_file(folder / "checkpoint-40" / "model.safetensors")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_truncated_checkpoint_is_named(
    tiny_run: Path, tmp_path: Path, run_nestling: RunNestling
) -> None:
    folder = tmp_path / "run"
    for name in ("data", "checkpoint-20"):
        shutil.copytree(tiny_run / name, folder / name)
    weights = folder / "checkpoint-20" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = run_nestling("train", "recipe=delta_encoder/tiny", f"output_dir={folder}", "--resume")
    assert done.returncode == 4
    assert "model.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_streaming_trains_and_resumes_to_the_same_weights(
    tmp_path: Path, run_nestling: RunNestling
) -> None:
    shared = (
        "recipe=delta_encoder/tiny", "data.streaming=true", "data.shuffle_buffer=100",
        "data.max_bytes=200000", "training.max_steps=6", "training.save_steps=3",
        "export.budgets=[]", "evaluation.batches=1", "evaluation.bootstrap_samples=2",
    )  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_nestling("train", *shared, f"output_dir={whole}").returncode == 0
    shutil.copytree(whole / "checkpoint-3", cut / "checkpoint-3")
    done = run_nestling("train", *shared, f"output_dir={cut}", "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    expected = load_file(whole / "checkpoint-6" / "model.safetensors")
    resumed = load_file(cut / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    # Finished, it is not read any further.
    done = run_nestling("train", *shared, f"output_dir={cut}", "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (cut / "checkpoint-7").exists()


def test_a_stream_does_not_read_prepared_rows(tmp_path: Path, run_nestling: RunNestling) -> None:
    done = run_nestling(
        "train", "recipe=delta_encoder/tiny", "data.streaming=true",
        "data.pretokenized_path=rows", f"output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode != 0 and "data.pretokenized_path is rows" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_modernbert_checkpoint_is_cut_and_verified(
    tmp_path: Path, run_nestling: RunNestling
) -> None:
    from nestling.recipes.data.embedded_corpus import EmbeddedCorpus
    from nestling.recipes.data.tokenizer_training import train_tokenizer
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    texts = [document.text for document in EmbeddedCorpus(100_000).documents()]
    tokenizer = train_tokenizer(texts, 600, 64)
    source = tmp_path / "source"
    tokenizer.save_pretrained(source)
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id, sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    ModernBertForMaskedLM(config).save_pretrained(source)
    done = run_nestling(
        "train", "recipe=delta_encoder/tiny", f"output_dir={tmp_path / 'run'}",
        f"model.init_from={source}", f"data.tokenizer={source}", "training.max_steps=2",
        "data.max_bytes=100000", "evaluation.batches=1", "evaluation.bootstrap_samples=2",
        "model.depth_budgets=[2,3,4]", "model.extra_budgets=['0.5:2:2:16','1.0:3:4:24']",
        "export.budgets=[all]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    ladder = json.loads((tmp_path / "run" / "slices" / "budgets.json").read_text())["budgets"]
    assert len(ladder) == 29
    assert sum(entry["native"] for entry in ladder) == 11


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ("model.num_attention_heads=5", 2, "head"),
        ("model.extra_budgets=['0.5:9:2']", 2, "nearest"),
        ("data.path=missing.txt", 3, "missing.txt"),
        ("training.lr=nan", 2, "lr"),
        ("model.hiden_size=64", 2, "hidden_size"),
    ],
)
def test_bad_input_is_one_line(
    change: str, code: int, message: str, tmp_path: Path, run_nestling: RunNestling
) -> None:
    done = run_nestling("train", "recipe=delta_encoder/tiny", f"output_dir={tmp_path}/run", change)
    assert done.returncode == code, done.stderr[-2000:]
    error = done.stderr.strip().splitlines()[-1]
    assert message in error and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "one line\n"])
def test_data_too_small_to_train_on_is_one_line(
    text: str, tmp_path: Path, run_nestling: RunNestling
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text)
    done = run_nestling(
        "train", "recipe=delta_encoder/tiny", f"output_dir={tmp_path}/run", f"data.path={path}"
    )
    assert done.returncode == 3, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
