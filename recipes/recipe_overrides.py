"""``section.key=value`` arguments: aliases, unknown keys, literal text values.

Hydra reads the values. Before that, the key names of the original projects are translated, their
switches become the keys they stand for, and values of text keys are quoted, so that a path may
hold ``=``, ``~``, commas or spaces.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from .cli_errors import UsageError
from .nearest_match import did_you_mean

logger = logging.getLogger(__name__)

# The options of the original training scripts that carry a value.
KEY_ALIASES: dict[str, str] = {
    "train_steps": "training.max_steps",
    "max_steps": "training.max_steps",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "grad_accum": "training.gradient_accumulation_steps",
    "sample_per_step": "training.budgets_per_step",
    "phase_ratios": "training.phase_ratios",
    "eval_steps": "training.eval_steps",
    "save_steps": "training.save_steps",
    "log_steps": "training.logging_steps",
    "lr": "training.lr",
    "learning_rate": "training.lr",
    "weight_decay": "training.weight_decay",
    "warmup_ratio": "training.warmup_ratio",
    "bf16": "training.bf16",
    "fp16": "training.bf16",
    "hidden_size": "model.hidden_size",
    "num_hidden_layers": "model.num_hidden_layers",
    "num_attention_heads": "model.num_attention_heads",
    "intermediate_size": "model.intermediate_size",
    "max_position_embeddings": "model.max_position_embeddings",
    "vocab_size": "model.vocab_size",
    "width_budgets": "model.width_budgets",
    "head_budgets": "model.head_budgets",
    "depth_budgets": "model.depth_budgets",
    "base_ratio": "model.base_ratio",
    "base_heads": "model.base_heads",
    "dds_num_atoms": "model.delta_atoms",
    "dds_rank": "model.delta_rank",
    "budget_cond_ln": "model.conditioned_norms",
    "drop_path": "model.drop_path",
    "token_delta_ratio": "model.delta_token_ratio",
    "tap_layers": "model.tap_layers",
    "init_from": "model.init_from",
    "base_model_path": "init.base",
    "target_model_path": "init.target",
    "init_delta_from_target": "init.delta_from_target",
    "dataset": "data.name",
    "dataset_name": "data.name",
    "tokenizer": "data.tokenizer",
    "max_length": "data.max_length",
    "num_proc": "data.num_proc",
    "text_column": "data.text_column",
    "streaming": "data.streaming",
    "shuffle_buffer": "data.shuffle_buffer",
    "use_packing": "data.packing",
    "pretokenized_path": "data.pretokenized_path",
    "mlm_probability": "data.mlm_probability",
    "kd_weight": "loss.kd_weight",
    "alpha_kd": "loss.kd_weight",
    "kd_temperature": "loss.kd_temperature",
    "teacher_model_path": "loss.teacher",
    "beta_delta": "loss.delta_weight",
    "rho_mug": "loss.mug_weight",
    "zeta_cscf": "loss.cscf_weight",
    "eta_dds_sparsity": "loss.sparsity_weight",
    "gamma_packing": "loss.packing_weight",
    "export_budgets": "export.budgets",
}
# Its options without a key here, and what to do instead.
WITHOUT_KEY: dict[str, str] = {
    "warmup_steps": "give the share of the steps instead, training.warmup_ratio",
    "depth_floor": "depth dropout keeps the smallest of model.depth_budgets; set that",
    "dropout": "there is none in a ModernBERT block; set model.drop_path for stochastic depth",
    "attention_dropout": "there is none here; set model.drop_path for stochastic depth",
    "ln_hyper_hidden": "the network behind model.conditioned_norms has one size; leave it out",
    "residual_preview_hidden": "the network behind model.token_routing has one size; leave it out",
}


class Switch(NamedTuple):
    """Keys and values that a switch of an original script stands for."""

    on: dict[str, str]
    off: dict[str, str]


# Turned on, a part has the original's defaults, and the weights of `delta_encoder/plus` for terms
# that the original has and never runs. Keys given beside a switch win.
SWITCHES: dict[str, Switch] = {
    # First, so that the switch of a single term wins. The phases turn these terms on.
    "enable_three_phase": Switch(
        {
            "training.three_phase": "true",
            "loss.delta_weight": "0.7",
            "loss.mug_weight": "0.1",
            "loss.cscf_weight": "0.1",
            "loss.packing_weight": "1.0e-3",
        },
        {"training.three_phase": "false"},
    ),
    "enable_kd": Switch(
        {"loss.kd_weight": "1.0", "loss.kd_temperature": "2.0"}, {"loss.kd_weight": "0"}
    ),
    "enable_mug": Switch(
        {"loss.mug_weight": "0.1"}, {"loss.mug_weight": "0", "loss.mug_margin": "0"}
    ),
    "enable_cscf": Switch(
        {"loss.cscf_weight": "0.1"}, {"loss.cscf_weight": "0", "loss.cscf_cosine_weight": "0"}
    ),
    "enable_delta_depth": Switch(
        {"training.survival_alpha": "0.5"}, {"training.survival_alpha": "0"}
    ),
    "enable_dds": Switch(
        {
            "model.delta": "dictionary",
            "loss.sparsity_weight": "1.0e-4",
            "loss.orthogonality_weight": "1.0e-4",
        },
        {
            "model.delta": "dense",
            "loss.sparsity_weight": "0",
            "loss.orthogonality_weight": "0",
        },
    ),
    "enable_token_delta": Switch(
        {
            "model.token_routing": "true",
            "loss.preview_weight": "1.0",
            "loss.budget_penalty_weight": "1.0",
        },
        {
            "model.token_routing": "false",
            "model.delta_token_ratio": "null",
            "export.delta_token_ratio": "null",
            "loss.preview_weight": "0",
            "loss.budget_penalty_weight": "0",
        },
    ),
}


class Override(NamedTuple):
    """One argument, split at its first ``=``; the key is a full recipe key."""

    key: str
    value: str


def recipe_keys(schema: type[Any], prefix: str = "") -> dict[str, Any]:
    """Return every dotted key of a recipe dataclass with its type.

    Sections themselves are left out; a key whose values have free names (``dict``) is listed once.
    """
    keys: dict[str, Any] = {}
    for name, hint in get_type_hints(schema).items():
        if isinstance(hint, type) and is_dataclass(hint):
            keys.update(recipe_keys(hint, f"{prefix}{name}."))
        else:
            keys[prefix + name] = hint
    return keys


def split_arguments(arguments: Sequence[str]) -> list[Override]:
    """Split ``key=value`` arguments and translate aliases and switches.

    Raises:
        UsageError: for an argument that is not ``key=value``, or a switch neither on nor off.
    """
    overrides: list[Override] = []
    switches: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        key = key.strip().lstrip("+")
        if not equals or not key or key.startswith("~"):
            raise UsageError(
                f"argument {argument!r} is not key=value; write for example training.lr=5e-4"
            )
        if key in SWITCHES:
            switches[key] = value
        else:
            if key == "fp16" and value.lower() == "true":
                logger.warning("fp16=true: computes in bf16, which needs no scaling of the loss")
            overrides.append(Override(KEY_ALIASES.get(key, key), value))
    switched: dict[str, str] = {}
    for name in sorted(switches, key=list(SWITCHES).index):
        switched |= _keys_of_switch(name, switches[name])
    given = {override.key for override in overrides}
    return [*(Override(*item) for item in switched.items() if item[0] not in given), *overrides]


def _keys_of_switch(name: str, value: str) -> dict[str, str]:
    if value.lower() not in ("true", "false"):
        raise UsageError(f"{name} is {value!r}, it must be true or false; set {name}=true")
    return SWITCHES[name].on if value.lower() == "true" else SWITCHES[name].off


def hydra_overrides(overrides: Sequence[Override], schema: type[Any]) -> list[str]:
    """Return the overrides in Hydra's grammar.

    Raises:
        UsageError: for a key the recipe does not have, with the nearest one.
    """
    keys = recipe_keys(schema)
    return [_in_hydra_grammar(override, keys) for override in overrides]


def check_key(key: str, keys: dict[str, Any]) -> str:
    """Return the recipe key that ``key`` sets: itself, or the free-named key it lies under.

    Raises:
        UsageError: for an unknown key, with the nearest one.
    """
    if key in keys:
        return key
    parent = key.rpartition(".")[0]
    if parent in keys and get_origin(keys[parent]) is dict:
        return parent
    if any(known.startswith(f"{key}.") for known in keys):
        raise UsageError(f"{key} is a section of the recipe; set one of its keys: {key}.<key>=…")
    if key in WITHOUT_KEY and "model.token_routing" in keys:  # the original of the encoder
        raise UsageError(f"{key} is an option of the original without a key: {WITHOUT_KEY[key]}")
    hint = did_you_mean(key, [*keys, *KEY_ALIASES, *SWITCHES])
    raise UsageError(f"unknown recipe key {key!r}{hint or '; --dry-run prints all keys'}")


def _in_hydra_grammar(override: Override, keys: dict[str, Any]) -> str:
    key, value = override
    home = check_key(key, keys)
    if home != key:
        return f"++{key}={value}"
    if _is_text(keys[key]) and not _is_quoted_or_special(value):
        return f"{key}={_quote(value)}"
    if get_origin(keys[key]) is list and not value.startswith(("[", "$")):
        return f"{key}=[{value}]"
    return f"{key}={value}"


def _is_text(hint: Any) -> bool:
    is_union = get_origin(hint) is UnionType
    return hint is str or (is_union and str in get_args(hint))


def _is_quoted_or_special(value: str) -> bool:
    return value in ("null", "???") or (len(value) > 1 and value[0] == value[-1] in ("'", '"'))


def _quote(value: str) -> str:
    # In Hydra's grammar a backslash is special only in front of a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"
