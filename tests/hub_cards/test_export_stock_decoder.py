"""Baseline decoders leave as stock Qwen3 or Llama folders that need no code of ours."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from nestling.configuration.configuration_ddl import TRANSFORMERS_FLOOR, DdlConfig
from nestling.configuration.stock_shapes import stock_decoder_obstacle
from nestling.hub_cards.complete_folder import ExportError, read_json
from nestling.hub_cards.export_slices import export, export_elastic
from nestling.hub_cards.model_files import has_native_class
from nestling.hub_cards.verify_export import run_worker
from nestling.modeling.families import FAMILIES
from nestling.modeling.modeling_ddl import DdlForCausalLM, DdlModel
from nestling.modeling.stock_decoder_weights import (
    to_stock_decoder_config,
    to_stock_decoder_state,
)
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < TRANSFORMERS_FLOOR,
    reason="Deep Delta Learning decoders need transformers >= 5.17",
)
FAMILY = FAMILIES["ddl"]
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-4,
    "variant": "baseline",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "budgets": ["1:2", "1:3"],
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", {}),
    "qwen3_untied": ("Qwen3ForCausalLM", {"tie_word_embeddings": False}),
    "llama": ("LlamaForCausalLM", {"qk_norm": False}),
    "llama_untied": ("LlamaForCausalLM", {"qk_norm": False, "tie_word_embeddings": False}),
}


def lively(config: DdlConfig, model_class: Any = DdlForCausalLM) -> Any:
    """Return a model in which every part shows in the output."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> dict[str, tuple[Any, Path]]:
    found = {}
    for kind, (_, changes) in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        model = lively(DdlConfig(**{**SHAPE, **changes}))
        elastic = export_elastic(model, tiny_tokenizer, folder / "model")
        export(elastic, ["all"], folder / "slices", verify=False)
        found[kind] = model, folder
    return found


def test_folders_prove_themselves_in_a_clean_process(
    exported: dict[str, tuple[Any, Path]],
) -> None:
    names = ("v01-d02", "v01-d03")
    folders = [folder / "slices" / name for _, folder in exported.values() for name in names]
    report = run_worker(folders, sys.executable, tolerance=1e-5)
    for check in report.checks:
        assert check.status == "passed", check
    homes = [check.remark for check in report.checks if check.check == "AutoModelForCausalLM"]
    assert homes == [
        *["transformers.models.qwen3.modeling_qwen3"] * 4,
        *["transformers.models.llama.modeling_llama"] * 4,
    ]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("budget", ["1:2", "1:3"])
def test_logits_of_prompts_and_of_cached_generation(
    exported: dict[str, tuple[Any, Path]], kind: str, budget: str
) -> None:
    model, root = exported[kind]
    folder = root / "slices" / f"v01-d0{budget[-1]}"
    assert not list(folder.glob("*.py"))
    stock = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    assert type(stock).__name__ == KINDS[kind][0]
    ours = model.slice(budget)
    ids = torch.randint(4, 96, (2, 20), generator=torch.Generator().manual_seed(2))
    padded = torch.ones_like(ids)
    padded[1, :6] = 0
    with torch.no_grad():
        for mask in (None, padded):
            difference = stock(ids, attention_mask=mask).logits - ours(
                ids, attention_mask=mask
            ).logits
            real = torch.ones_like(ids) if mask is None else mask
            assert difference[real.bool()].abs().max() <= 1e-5
        for prompt in (1, 5):
            whole = ours(ids).logits
            cache = stock(ids[:, :prompt], use_cache=True).past_key_values
            for at in range(prompt, 12):
                step = stock(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
                cache = step.past_key_values
                assert (step.logits[:, 0] - whole[:, at]).abs().max() <= 1e-5
    options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
    written = stock.generate(ids[:, :5], output_logits=True, **options)
    expected = ours.generate(ids[:, :5], output_logits=True, **options)
    assert torch.equal(written.sequences, expected.sequences)
    for got, wanted in zip(written.logits, expected.logits, strict=True):
        assert (got - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_file_has_the_size_of_the_formula(
    exported: dict[str, tuple[Any, Path]], kind: str
) -> None:
    model, root = exported[kind]
    for budget in model.config.budget_list():
        folder = root / "slices" / budget.folder_name
        path = folder / "model.safetensors"
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        stored = path.stat().st_size - 8 - header
        assert stored == budget.weight_bytes(model.config) == 4 * budget.parameters(model.config)
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
        assert ("lm_head.weight" in names) is (not model.config.tie_word_embeddings)
        assert read_json(folder / "nestling.json")["format"] == "native"
        card = (folder / "README.md").read_text()
        stock = "Qwen3" if model.config.qk_norm else "Llama"
        assert f"{stock} model" in " ".join(card.split()) and "trust_remote_code" not in card
        assert "rewrite" not in card


def test_both_spellings_of_the_rotary_base(exported: dict[str, tuple[Any, Path]]) -> None:
    _, root = exported["qwen3"]
    config = read_json(root / "slices" / "v01-d02" / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0


def test_a_trunk_alone(tmp_path: Path) -> None:
    model = lively(DdlConfig(**SHAPE), DdlModel)
    folder = export_elastic(model, None, tmp_path / "model")
    options = {"format": "native", "verify": False, "single": True}
    (sliced,) = export(folder, ["1:2"], tmp_path / "slice", **options)
    stock = AutoModel.from_pretrained(sliced, trust_remote_code=False)
    assert type(stock).__name__ == "Qwen3Model"
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = model(ids, budget="1:2").last_hidden_state
        assert (stock(ids).last_hidden_state - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"variant": "ddl"}, "'ddl' rewrites its state"),
        ({"variant": "ddl-cc"}, "'ddl-cc' rewrites its state"),
        ({"rope_before_qk_norm": True}, "before their norm"),
        ({"value_residual": True}, "across layers"),
        ({"qk_norm": False, "hidden_size": 26}, "does not divide hidden_size 26"),
    ],
)
def test_what_no_stock_class_computes(changes: dict[str, Any], named: str) -> None:
    config = DdlConfig(**{**SHAPE, "budgets": None, **changes})
    assert named in str(stock_decoder_obstacle(config))
    assert not has_native_class(config, config.budget_list()[0], FAMILY)
    with pytest.raises(ValueError, match="export it with format=remote"):
        to_stock_decoder_config(config, "DdlForCausalLM")


def test_the_order_of_rotation_matters_only_where_there_is_a_norm() -> None:
    config = DdlConfig(**{**SHAPE, "qk_norm": False, "rope_before_qk_norm": True})
    assert to_stock_decoder_config(config, "DdlForCausalLM")["model_type"] == "llama"


def test_a_delta_variant_asked_for_as_stock_is_one_line(tmp_path: Path) -> None:
    model = lively(DdlConfig(**{**SHAPE, "variant": "ddl"}))
    folder = export_elastic(model, None, tmp_path / "model")
    with pytest.raises(ExportError, match="1:2 has no stock class; use format=auto") as caught:
        export(folder, ["1:2"], tmp_path / "slices", format="native")
    assert "\n" not in str(caught.value)


def test_no_tensor_keeps_our_name() -> None:
    model = lively(DdlConfig(**SHAPE))
    config = to_stock_decoder_config(model.config, "DdlForCausalLM")
    stock = AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), trust_remote_code=False
    )
    assert set(to_stock_decoder_state(model.state_dict())) == set(stock.state_dict())
