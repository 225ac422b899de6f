"""Continue a text or token ids with a saved decoder."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli_errors import CommandError, ModelFolderError, UsageError
from .data.token_ids import parse_token_ids, require_vocabulary
from .nearest_match import did_you_mean
from .saved_model import model_folder

logger = logging.getLogger(__name__)

# Settings of which GenerationConfig accepts a value of any type, to fail deep inside `generate`.
_WHOLE = (
    "max_new_tokens", "min_new_tokens", "max_length", "min_length", "num_beams",
    "num_return_sequences", "top_k", "no_repeat_ngram_size", "prompt_lookup_num_tokens",
)  # fmt: skip
_REAL = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty")
_SWITCHES = ("do_sample", "use_cache")


@dataclass(frozen=True)
class Request:
    """What to generate.

    Attributes:
        prompt: text; or
        prompt_tokens: token ids, "1,2,3".
        budget: budget to cut the model to first; None runs it whole.
        seed: seed of the draws.
        max_new_tokens: tokens to add at most.
        do_sample: draw from the distribution; else the likeliest token.
        temperature: divides the logits, > 0.
        top_k: draw from the k likeliest.
        top_p: draw from the likeliest tokens that hold this share, in (0, 1].
        num_beams: beams.
        settings: further ``key=value`` of transformers' GenerationConfig.
    """

    prompt: str | None = None
    prompt_tokens: str | None = None
    budget: str | None = None
    seed: int = 0
    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1
    settings: Sequence[str] = ()

    def check(self) -> None:
        """Check the values before anything is loaded.

        Raises:
            UsageError: for the first one out of range, or a combination without meaning.
        """
        if (self.prompt is None) == (self.prompt_tokens is None):
            raise UsageError("give --prompt TEXT or --prompt-tokens 1,2,3, one of the two")
        if self.prompt == "":
            raise UsageError("--prompt is empty; give at least one character")
        if self.temperature is not None and not self.temperature > 0:
            raise UsageError(f"--temperature is {self.temperature}, it must be above 0")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p is {self.top_p}, it must be in (0, 1]")
        draws = {"temperature": self.temperature, "top-k": self.top_k, "top-p": self.top_p}
        given = [f"--{name}" for name, value in draws.items() if value is not None]
        if given and not self.do_sample:
            raise UsageError(f"{' and '.join(given)} shape draws; add --do-sample, or drop them")


def generate_text(folder: Path, request: Request) -> list[str]:
    """Run a request.

    Args:
        folder: a model folder, a run, or an exported slice.
        request: what to generate.

    Returns:
        Lines to print: the text where there is a tokenizer, and the ids.

    Raises:
        UsageError: for values or settings that cannot be used.
        ModelFolderError: if the folder holds no decoder, or it predicts what is not finite.
        DataError: for a prompt that is not made of the model's tokens.
    """
    request.check()
    given = _settings(request)
    from transformers import GenerationConfig, set_seed

    model, tokenizer = _load(folder, request.budget)
    ids = _prompt_ids(request, tokenizer, model.config.vocab_size)
    ends = {name: vars(model.config).get(name) for name in ("pad_token_id", "eos_token_id")}
    if ends["pad_token_id"] is None:
        ends["pad_token_id"] = ends["eos_token_id"] or 0
    set_seed(request.seed)
    try:
        outputs = _continue(model, ids, GenerationConfig(**{**ends, **given}))
    except CommandError:
        raise
    except (TypeError, ValueError) as error:
        cause = " ".join(str(error).split())
        shown = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UsageError(f"cannot generate with {shown}: {cause}") from error
    lines = []
    for row in outputs:
        if tokenizer is not None:
            lines.append(tokenizer.decode(row, skip_special_tokens=True))
        lines.append(f"ids: {' '.join(map(str, row))}")
    return lines


def _continue(model: Any, ids: list[int], settings: Any) -> list[list[int]]:
    import torch

    wanted, longest = len(ids) + settings.max_new_tokens, model.config.max_position_embeddings
    if wanted > longest:
        logger.warning(
            "%d tokens of prompt and %d new ones are more than the %d positions of the model: what "
            "lies beyond is likely to be poor; lower --max-new-tokens",
            len(ids),
            settings.max_new_tokens,
            longest,
        )
    batch = torch.tensor([ids])
    with torch.inference_mode():
        # The likeliest of NaN is token 0, so a broken model would go on without a word.
        if not model(batch, use_cache=False).logits[:, -1].isfinite().all():
            raise ModelFolderError(
                "the model predicts what is not finite after the prompt; take an earlier checkpoint"
            )
        outputs = model.generate(
            batch, attention_mask=torch.ones_like(batch), generation_config=settings
        )
    return [list(row) for row in outputs.tolist()]


def _settings(request: Request) -> dict[str, Any]:
    """Return the settings of GenerationConfig that were given, by name.

    Raises:
        UsageError: for one that does not exist, or whose value is of another type.
    """
    from transformers import GenerationConfig

    known = vars(GenerationConfig())
    options = ("max_new_tokens", "do_sample", "num_beams", "temperature", "top_k", "top_p")
    values: dict[str, Any] = {name: getattr(request, name) for name in options}
    values.update(_setting(word) for word in request.settings)
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise UsageError(
            f"GenerationConfig has no setting {unknown!r}{did_you_mean(unknown, known)}"
        )
    given = {name: value for name, value in values.items() if value is not None}
    for names, types, allowed in (
        (_WHOLE, (int,), "a whole number"),
        (_REAL, (int, float), "a number"),
        (_SWITCHES, (bool,), "true or false"),
    ):
        # A bool is an int to isinstance.
        wrong = next((n for n in names if n in given and type(given[n]) not in types), None)
        if wrong is not None:
            raise UsageError(f"{wrong} is {given[wrong]!r}, it must be {allowed}; set {wrong}=…")
    return given


def _setting(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise UsageError(f"argument {word!r} is not key=value; write for example min_p=0.05")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _load(folder: Path, budget: str | None) -> tuple[Any, Any]:
    found = model_folder(folder)
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..modeling.families import register_families

    register_families()
    try:
        model = AutoModelForCausalLM.from_pretrained(found).eval()
    except SafetensorError as error:
        raise ModelFolderError(
            f"{_damaged_weights(found)} is damaged: {error}; copy or export the model again"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        cause = str(error).splitlines()[0]
        raise ModelFolderError(f"{found} holds no decoder that can be loaded: {cause}") from error
    if budget is not None:
        if "nestling" not in type(model).__module__:
            raise UsageError(f"--budget {budget}: {found} holds a model without budgets")
        model = model.slice(budget)
    has_tokenizer = (found / "tokenizer_config.json").is_file()
    return model, AutoTokenizer.from_pretrained(found) if has_tokenizer else None


def _damaged_weights(folder: Path) -> Path:
    """Return the file of weights that cannot be opened; the folder where all can."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return path
    return folder


def _prompt_ids(request: Request, tokenizer: Any, vocab_size: int) -> list[int]:
    if request.prompt_tokens is not None:
        numbers = parse_token_ids(request.prompt_tokens, "--prompt-tokens")
        require_vocabulary(numbers, vocab_size, "--prompt-tokens", "give ids in that range")
        return [int(number) for number in numbers]
    if tokenizer is None:
        raise UsageError(
            "the model was trained on token ids and has no tokenizer; give --prompt-tokens 1,2,3"
        )
    ids: list[int] = tokenizer(request.prompt, add_special_tokens=False)["input_ids"]
    return ids
