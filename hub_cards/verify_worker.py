"""Loads exported folders the way a stranger would. Run by path, in a process of its own.

``python -P verify_worker.py request.json result.json``. This file imports nothing of the package;
its first act is to make the package unimportable, because an installed copy would otherwise answer
for the code in the folder and the proof would prove nothing.
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    REQUEST = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.modules[REQUEST["blocked"]] = None  # type: ignore[assignment]

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

TEXTS = ["one sentence", "another sentence that is longer than the first"]
_NAME = re.compile(r'^name = "[^"]*"', flags=re.MULTILINE)
_BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
Outcome = tuple[float, str]


class FolderProof:
    """All checks of one folder; each returns the largest difference and a remark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = json.loads((folder / "nestling.json").read_text(encoding="utf-8"))
        self.remote = self.about["format"] != "native"
        self.reference = load_file(folder / "reference.safetensors")
        self.models: dict[str, Any] = {}

    def checks(self) -> Iterator[tuple[str, Callable[[], Outcome]]]:
        """Yield the name of each check and how to run it."""
        yield "weights", self.weights
        # Its own class first: on 4.57 a file cached for one class hides its absence for another.
        own = self.about["auto_class"]
        for auto_class in [own, *(name for name in self.about["auto_classes"] if name != own)]:
            yield auto_class, partial(self.auto_class, auto_class)
        if self.about["kind"] == "elastic":
            yield "slice", self.cuts_itself
        text = (self.folder / "README.md").read_text(encoding="utf-8")
        for block in _BLOCK.findall(text):
            yield _title(block), partial(self.snippet, block)

    def weights(self) -> Outcome:
        """Compare size and parameter count of the file with the formulas."""
        path = self.folder / "model.safetensors"
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        stored = path.stat().st_size - 8 - header
        with safe_open(path, framework="pt") as file:
            count = sum(_size(file.get_slice(key).get_shape()) for key in file.keys())
        _require(stored == self.about["bytes"], f"{stored} bytes, formula {self.about['bytes']}")
        _require(
            count == self.about["parameters"],
            f"{count} parameters, formula {self.about['parameters']}",
        )
        return 0.0, f"{stored} bytes, {count} parameters"

    def auto_class(self, name: str) -> Outcome:
        """Load through one Auto class and compare with the reference."""
        model, report = getattr(transformers, name).from_pretrained(
            self.folder,
            trust_remote_code=self.remote,
            dtype=torch.float32,
            output_loading_info=True,
        )
        home = "transformers_modules." if self.remote else "transformers.models."
        module = type(model).__module__
        _require(module.startswith(home), f"class comes from {module}, not from {home}")
        is_own = name == self.about["auto_class"]
        lost = [k for k in report["missing_keys"] if is_own or not k.startswith("classifier.")]
        wanted = is_own or name == "AutoModel" or self.about["auto_class"] == "AutoModelForMaskedLM"
        _require(not (lost and wanted), f"weights missing: {', '.join(sorted(lost)[:3])}")
        self.models[name] = model.eval()
        return self.compare(model, with_head=is_own), module

    @torch.no_grad()
    def compare(self, model: Any, with_head: bool) -> float:
        """Return the largest difference to the reference at real tokens."""
        inputs = {key: self.reference[key] for key in ("input_ids", "attention_mask")}
        real = inputs["attention_mask"].bool()
        hidden = model.base_model(**inputs).last_hidden_state
        worst = _distance(hidden[real], self.reference["last_hidden_state"][real])
        if not with_head or "logits" not in self.reference:
            return worst
        logits, expected = model(**inputs).logits, self.reference["logits"]
        if "logit_positions" in self.reference:
            rows, columns = self.reference["logit_positions"].unbind(dim=1)
            logits = logits[rows, columns]
        elif logits.dim() == 3:
            logits, expected = logits[real], expected[real]
        return max(worst, _distance(logits, expected))

    @torch.no_grad()
    def cuts_itself(self) -> Outcome:
        """Cut the loaded elastic model to its smallest and its largest budget."""
        model = self.models[self.about["auto_class"]]
        inputs = {"input_ids": self.reference["input_ids"][:1]}
        worst = 0.0
        for budget in (model.config.budgets[0], model.config.budgets[-1]):
            model.set_budget(budget)
            expected = model.base_model(**inputs).last_hidden_state
            model.set_budget(None)
            got = model.slice(budget).base_model(**inputs).last_hidden_state
            worst = max(worst, _distance(got, expected))
        return worst, f"{len(model.config.budgets)} budgets"

    def snippet(self, block: str) -> Outcome:
        """Run the card's own loading lines and compare what they load."""
        names: dict[str, Any] = {}
        lines = _NAME.sub(lambda _: f"name = {str(self.folder)!r}", block)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(lines, f"{self.folder.name}/README.md", "exec"), names)
        if "fill" in names:
            return self.fill_mask(names["fill"])
        if "encoder" in names:
            return self.sentences(names["encoder"])
        model = names["model"].float().eval()
        return self.compare(model, with_head=True), type(model).__name__

    @torch.no_grad()
    def fill_mask(self, fill: Any) -> Outcome:
        """Compare the scores of the pipeline with the model's own."""
        fill.model.float()
        text = f"one {fill.tokenizer.mask_token} sentence"
        answers = fill(text)
        inputs = fill.tokenizer(text, return_tensors="pt")
        where = int((inputs["input_ids"][0] == fill.tokenizer.mask_token_id).nonzero()[0, 0])
        model = self.models["AutoModelForMaskedLM"]
        scores = model(**inputs).logits[0, where].softmax(dim=-1)
        worst = max(abs(answer["score"] - float(scores[answer["token"]])) for answer in answers)
        return worst, f"{len(answers)} answers"

    @torch.no_grad()
    def sentences(self, encoder: Any) -> Outcome:
        """Compare sentence embeddings with the mean of the last hidden states."""
        embeddings = encoder.float().encode(TEXTS, convert_to_tensor=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
        hidden = self.models["AutoModel"](**inputs).last_hidden_state
        real = inputs["attention_mask"].unsqueeze(-1)
        expected = (hidden * real).sum(dim=1) / real.sum(dim=1)
        return _distance(embeddings.cpu(), expected), f"{embeddings.shape[1]} dimensions"


def run_check(check: Callable[[], Outcome], tolerance: float) -> dict[str, Any]:
    """Run one check; an exception is a failure with its first line as the remark."""
    try:
        difference, remark = check()
    except ModuleNotFoundError as error:
        if error.name == "sentence_transformers":
            return {"status": "skipped", "difference": None, "remark": str(error)}
        return {"status": "failed", "difference": None, "remark": f"{error}"}
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return {
            "status": "failed",
            "difference": None,
            "remark": f"{type(error).__name__}: {first}",
        }
    status = "passed" if difference <= tolerance else "failed"
    return {"status": status, "difference": difference, "remark": remark}


def prove(folder: Path, tolerance: float) -> list[dict[str, Any]]:
    """Run all checks of one folder."""
    where = {"folder": folder.name}
    try:
        proof = FolderProof(folder)
        checks = list(proof.checks())
    except Exception as error:
        failure = {"status": "failed", "difference": None, "remark": f"{error}"}
        return [{**where, "check": "files", **failure}]
    return [{**where, "check": name, **run_check(check, tolerance)} for name, check in checks]


def _title(block: str) -> str:
    for name, title in (("pipeline", 'pipeline("fill-mask")'), ("Sentence", "SentenceTransformer")):
        if name in block:
            return title
    return "card"


def _distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    _require(got.shape == expected.shape, f"shape {tuple(got.shape)}, not {tuple(expected.shape)}")
    distance = float((got.float() - expected.float()).abs().max())
    _require(distance == distance, "not a number in the outputs")
    return distance


def _size(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def main() -> None:
    """Prove every folder of the request and write the results."""
    results = [
        result
        for folder in REQUEST["folders"]
        for result in prove(Path(folder), REQUEST["tolerance"])
    ]
    content = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "blocked": REQUEST["blocked"],
        "results": results,
    }
    Path(sys.argv[2]).write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
