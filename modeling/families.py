"""THE table of families. Registration, ``auto_map``, contract tests and the CLI all read it.

Classes are named by dotted strings, so that reading the table imports neither torch nor
transformers. This module is never exported. To add a family, add a row.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

PACKAGE = __package__.rsplit(".", 1)[0]


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        model_type: ``config.model_type``.
        title: name used in cards and tables.
        axes: what a user can cut, for the list of families.
        config: ``module:Class`` of the configuration, relative to the package.
        budget: ``module:Class`` of the budget.
        auto_classes: Auto class name -> ``module:Class`` of the model.
        tiny: configuration values of a model small enough for tests.
        is_encoder: whether exports are sentence-transformers folders too.
        transformers_floor: the oldest transformers that runs it, as (major, minor).
        variants: name -> what it changes in ``tiny``: settings that are tested like the plain one.
    """

    model_type: str
    title: str
    axes: str
    config: str
    budget: str
    auto_classes: dict[str, str]
    tiny: dict[str, Any]
    is_encoder: bool
    transformers_floor: tuple[int, int] = (4, 57)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)


_HEADS = "modeling.delta_encoder_heads"

FAMILIES: dict[str, Family] = {
    "delta_encoder": Family(
        model_type="delta_encoder",
        title="Delta-Matryoshka encoder",
        axes="MLP width, heads, depth, hidden width",
        config="configuration.configuration_delta_encoder:DeltaEncoderConfig",
        budget="configuration.delta_budget:DeltaBudget",
        auto_classes={
            "AutoModel": "modeling.modeling_delta_encoder:DeltaEncoderModel",
            "AutoModelForMaskedLM": f"{_HEADS}:DeltaEncoderForMaskedLM",
            "AutoModelForSequenceClassification": f"{_HEADS}:DeltaEncoderForSequenceClassification",
            "AutoModelForTokenClassification": f"{_HEADS}:DeltaEncoderForTokenClassification",
        },
        tiny={
            "vocab_size": 96,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "local_attention": 8,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
        },
        is_encoder=True,
        variants={
            "dictionary": {
                "delta_kind": "dictionary",
                "delta_atoms": 3,
                "delta_rank": 4,
                "conditioned_norms": True,
                "conditioner_size": 8,
                "exit_affine": True,
            },
            "low_rank": {"delta_kind": "low_rank", "delta_rank": 4},
            "routed": {
                "token_routing": True,
                "preview_size": 8,
                "delta_token_ratio": 0.5,
                "conditioned_norms": True,
                "conditioner_size": 8,
            },
            "drop_path": {"drop_path": 0.2},
        },
    ),
    "ddl": Family(
        model_type="ddl",
        title="Deep Delta Learning decoder",
        axes="state width d_v, depth",
        config="configuration.configuration_ddl:DdlConfig",
        budget="configuration.ddl_budget:DdlBudget",
        auto_classes={
            "AutoModel": "modeling.modeling_ddl:DdlModel",
            "AutoModelForCausalLM": "modeling.modeling_ddl:DdlForCausalLM",
        },
        tiny={
            "vocab_size": 96,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "variant": "ddl-cc",
            "d_value": 4,
            "beta_init": 1.0,
            "budgets": ["1:1", "1:2", "1:3", "2:1", "2:2", "2:3", "4:1", "4:2", "4:3"],
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        is_encoder=False,
        transformers_floor=(5, 17),
        variants={
            "vector": {"variant": "ddl", "d_value": 1, "budgets": ["1:1", "1:2", "1:3"]},
            "token": {"variant": "ddl-tokenconv"},
            "token_spread": {"variant": "ddl-ec"},
            "channel_spread": {"variant": "ddl-cc-ec"},
            "additive": {"residual_update": "additive"},
            # Spread, since the first read of equal streams has no gradient to compare.
            "mhc": {"variant": "ddl-cc-ec", "residual_update": "mhc"},
            "value_residual": {"value_residual": True},
            "baseline": {"variant": "baseline", "d_value": 1, "budgets": ["1:1", "1:2", "1:3"]},
        },
    ),
}


def resolve(dotted: str) -> Any:
    """Import ``module:Class``, named relative to the package."""
    module, name = dotted.split(":")
    return getattr(import_module(f"{PACKAGE}.{module}"), name)


def register_families() -> None:
    """Make every family known to the Auto classes of transformers, for work inside the package."""
    import transformers

    for family in FAMILIES.values():
        config_class = resolve(family.config)
        transformers.AutoConfig.register(family.model_type, config_class, exist_ok=True)
        for auto_class, dotted in family.auto_classes.items():
            auto = getattr(transformers, auto_class)
            auto.register(config_class, resolve(dotted), exist_ok=True)
