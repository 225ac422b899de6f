"""Fixtures shared by all tests: quiet libraries, no network, a tiny model and a tiny tokenizer."""

import os
import shutil
import string
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from nestling.modeling.families import FAMILIES, register_families, resolve

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FREQUENT_PAIRS = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le "
    "ve co me de hi ri ro ic ne ea ra ce li ch ll be ma si om ur"
).split()


@pytest.fixture(scope="session", autouse=True)
def _registered_families() -> None:
    torch.set_num_threads(1)
    register_families()


@pytest.fixture(scope="session", autouse=True)
def allocator_options() -> Iterator[list[tuple[int, int]]]:
    """Collect the options that would change the allocator of the process for all later tests.

    For the whole session: fixtures of a module run before those of a test. What finds the allocator
    is replaced, not what asks for the change, which has many importers.
    """
    options: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        options.append((parameter, value))
        return 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nestling.recipes.steady_memory.find_mallopt", lambda: mallopt)
        yield options


@pytest.fixture(scope="session")
def cpp_compiler() -> str:
    """Path of the C++ compiler that torch.compile needs; skips where there is none."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++ or clang++) on PATH, and torch.compile needs one on CPU")
    return compiler


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A character tokenizer with some merges whose special ids are those of the tiny configs.

    Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4. Its length is the tiny vocabulary size.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    size = FAMILIES["delta_encoder"].tiny["vocab_size"]
    single = [*SPECIAL_TOKENS, *string.ascii_lowercase, *string.digits, *".,;:!?'()-_="]
    pairs = FREQUENT_PAIRS[: size - len(single)]
    vocabulary = {token: index for index, token in enumerate([*single, *pairs])}
    model = models.BPE(vocabulary, [(pair[0], pair[1]) for pair in pairs], unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=FAMILIES["delta_encoder"].tiny["max_position_embeddings"],
    )


@pytest.fixture
def tiny_delta_encoder() -> Any:
    """A seeded tiny `DeltaEncoderForMaskedLM` in evaluation mode."""
    family = FAMILIES["delta_encoder"]
    torch.manual_seed(0)
    model_class = resolve(family.auto_classes["AutoModelForMaskedLM"])
    return model_class(resolve(family.config)(**family.tiny)).eval()
