"""Uses a repository the way a stranger does. Run by path with the package blocked.

``python -P stranger.py <repo id> <revision> <folder to save in> <facts.json>``.
"""

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["nestling"] = None  # type: ignore[assignment]

import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(5, 35)[None])[0]


def main() -> None:
    repo, revision, saved = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    facts: dict[str, Any] = {}
    model = AutoModelForMaskedLM.from_pretrained(repo, trust_remote_code=True)
    facts["config_is_one_class"] = type(model.config) is type(model).config_class
    facts["budgets"] = len(model.config.budgets)
    expected = outputs(model)
    older = AutoModelForMaskedLM.from_pretrained(repo, revision=revision, trust_remote_code=True)
    facts["revision"] = float((outputs(older) - expected).abs().max())
    facts["tokenizer"] = type(AutoTokenizer.from_pretrained(repo)).__name__
    try:
        AutoModel.from_pretrained(repo, trust_remote_code=False)
        facts["refused_without_trust"] = False
    except ValueError:
        facts["refused_without_trust"] = True

    model.save_pretrained(saved / "head")
    again = AutoModelForMaskedLM.from_pretrained(saved / "head", trust_remote_code=True)
    facts["resaved_head"] = float((outputs(again) - expected).abs().max())
    local = type(again.config) is type(again).config_class
    facts["local_config_is_one_class"] = local
    trunk = AutoModel.from_pretrained(repo, trust_remote_code=True)
    states = outputs(trunk)
    trunk.save_pretrained(saved / "trunk")
    again = AutoModel.from_pretrained(saved / "trunk", trust_remote_code=True)
    facts["resaved_trunk"] = float((outputs(again) - states).abs().max())
    smaller = model.slice(model.config.budgets[0])
    smaller.save_pretrained(saved / "cut")
    again = AutoModelForMaskedLM.from_pretrained(saved / "cut", trust_remote_code=True)
    facts["resaved_slice"] = float((outputs(again) - outputs(smaller)).abs().max())
    for name in ("head", "trunk", "cut"):
        config = json.loads((saved / name / "config.json").read_text())
        facts[f"{name}_map"] = sorted(config.get("auto_map", {}))
        facts[f"{name}_dangling"] = sorted(
            auto
            for auto, entry in config.get("auto_map", {}).items()
            if not (saved / name / f"{entry.split('.')[0]}.py").is_file()
        )
    shallow = AutoModelForMaskedLM.from_pretrained(
        repo, trust_remote_code=True, num_hidden_layers=2
    )
    facts["override_layers"] = len(shallow.model.layers)
    Path(sys.argv[4]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
