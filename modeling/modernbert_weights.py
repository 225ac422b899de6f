"""Weights and configuration to and from the stock ModernBERT layout.

The nested encoder computes what ModernBERT computes; only the order of rows differs. ModernBERT
stores queries, keys and values as (3, heads, head_dim) and both halves of its gated MLP in one
matrix; here heads come first and the halves are separate, so that slices are leading corners.
"""

from typing import Any

import torch
from torch import Tensor

from ..configuration.configuration_delta_encoder import GLOBAL, LOCAL, DeltaEncoderConfig
from ..configuration.delta_settings import delta_share
from ..configuration.stock_shapes import encoder_shape_obstacle
from .delta_encoder_heads import DeltaEncoderForMaskedLM

SUPPORTED = "modernbert (ModernBERT, RexBERT and Ettin encoders)"

_SHARED_KEYS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "hidden_activation max_position_embeddings local_attention norm_eps norm_bias attention_bias "
    "mlp_bias decoder_bias classifier_bias classifier_activation classifier_pooling "
    "classifier_dropout embedding_dropout attention_dropout mlp_dropout initializer_range "
    "initializer_cutoff_factor pad_token_id cls_token_id sep_token_id tie_word_embeddings"
).split()

_RENAMED = {
    "embeddings.token.": "embeddings.tok_embeddings.",
    ".attention_norm.": ".attn_norm.",
    ".attention.query_key_value.": ".attn.Wqkv.",
    ".attention.output.": ".attn.Wo.",
    ".mlp.down.": ".mlp.Wo.",
}


def stock_obstacle(config: DeltaEncoderConfig) -> str | None:
    """Return why the stock class cannot express a shape, or None if it can."""
    every = config.global_attn_every_n_layers
    regular = [LOCAL if i % every else GLOBAL for i in range(config.num_hidden_layers)]
    obstacle = encoder_shape_obstacle(
        config.num_attention_heads,
        config.head_dim,
        config.hidden_size,
        config.intermediate_sizes(),
    )
    if obstacle is not None:
        return obstacle
    if config.layer_types != regular:
        return f"global layers do not come every {every} layers: {config.layer_types}"
    if config.delta_token_threshold is not None or delta_share(config) < 1.0:
        return "delta_token_ratio or delta_token_threshold is set, so tokens are routed"
    return None


def is_modernbert_shape(config: DeltaEncoderConfig) -> bool:
    """Whether the stock class can express this shape without remote code."""
    return stock_obstacle(config) is None


def to_modernbert_config(config: DeltaEncoderConfig) -> dict[str, Any]:
    """Return a stock ``config.json`` that transformers 4.57 and 5.x both read.

    Raises:
        ValueError: if the shape is not ModernBERT's, saying why.
    """
    obstacle = stock_obstacle(config)
    if obstacle is not None:
        raise ValueError(f"not a ModernBERT shape: {obstacle}; export it with format=remote")
    values = {key: getattr(config, key) for key in _SHARED_KEYS}
    values["intermediate_size"] = config.intermediate_sizes()[0]
    thetas = {GLOBAL: config.global_rope_theta, LOCAL: config.local_rope_theta}
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        **values,
        "layer_types": list(config.layer_types),
        "rope_parameters": {
            name: {"rope_type": "default", "rope_theta": theta} for name, theta in thetas.items()
        },
        # Transformers 4.57 knows only these three.
        "global_attn_every_n_layers": config.global_attn_every_n_layers,
        "global_rope_theta": config.global_rope_theta,
        "local_rope_theta": config.local_rope_theta,
        "bos_token_id": config.cls_token_id,
        "eos_token_id": config.sep_token_id,
        "id2label": {str(key): label for key, label in (config.id2label or {}).items()},
        "label2id": dict(config.label2id or {}),
        "dtype": "float32",
    }


def from_modernbert_config(source: Any, budgets: list[str] | None = None) -> DeltaEncoderConfig:
    """Translate a stock configuration, of transformers 4.57 or 5.x.

    Args:
        source: a ``ModernBertConfig``.
        budgets: nested budgets of the new model; None takes the default lattice.

    Raises:
        ValueError: for another architecture, or for scaled rotary positions.
    """
    if source.model_type != "modernbert":
        raise ValueError(
            f"cannot start from a {source.model_type!r} checkpoint; supported: {SUPPORTED}"
        )
    raw = source.to_dict()
    rope = raw.get("rope_parameters") or {}
    for name, parameters in rope.items():
        if parameters and parameters.get("rope_type", "default") != "default":
            raise ValueError(
                f"rope_type {parameters['rope_type']!r} of {name} is not supported; only 'default'"
            )
    thetas = {
        f"{new}_rope_theta": (rope.get(old) or {}).get("rope_theta") or raw[f"{new}_rope_theta"]
        for new, old in (("global", GLOBAL), ("local", LOCAL))
    }
    every = raw.get("global_attn_every_n_layers") or 3
    return DeltaEncoderConfig(
        **{key: raw[key] for key in _SHARED_KEYS if key in raw},
        **thetas,
        layer_types=raw.get("layer_types"),
        global_attn_every_n_layers=every,
        id2label=source.id2label,
        label2id=source.label2id,
        budgets=budgets,
    )


def to_modernbert_state(
    state: dict[str, Tensor], config: DeltaEncoderConfig
) -> dict[str, Tensor]:
    """Translate our tensors; keys keep the prefix (``model.`` or none) they came with."""
    heads, size = config.num_attention_heads, config.head_dim
    translated: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _rename(key, _RENAMED)
        if ".attn.Wqkv." in name:
            tensor = tensor.unflatten(0, (heads, 3, size)).transpose(0, 1).flatten(0, 2)
        if ".mlp.gate." in name or name.removeprefix("model.").startswith("preview."):
            continue
        if ".mlp.up." in name:
            tensor = torch.cat((tensor, state[key.replace(".mlp.up.", ".mlp.gate.")]))
            name = name.replace(".mlp.up.", ".mlp.Wi.")
        translated[name] = tensor.contiguous()
    return translated


def from_modernbert_state(
    state: dict[str, Tensor], config: DeltaEncoderConfig
) -> dict[str, Tensor]:
    """Translate stock tensors; the inverse of `to_modernbert_state`."""
    heads, size = config.num_attention_heads, config.head_dim
    back = {stock: ours for ours, stock in _RENAMED.items()}
    translated: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _rename(key, back)
        if ".query_key_value." in name:
            tensor = tensor.unflatten(0, (3, heads, size)).transpose(0, 1).flatten(0, 2)
        if ".mlp.Wi." in name:
            up, gate = tensor.chunk(2)
            translated[name.replace(".mlp.Wi.", ".mlp.up.")] = up.clone()
            name, tensor = name.replace(".mlp.Wi.", ".mlp.gate."), gate.clone()
        translated[name] = tensor.contiguous()
    return translated


def load_modernbert(
    source: str, budgets: list[str] | None = None, revision: str = "main"
) -> DeltaEncoderForMaskedLM:
    """Build a nested encoder that equals a ModernBERT-family checkpoint at its full budget.

    Args:
        source: local path or Hub name.
        budgets: nested budgets; None takes the default lattice.
        revision: Hub revision.

    Raises:
        ValueError: for another architecture, or a checkpoint that lacks weights.
    """
    from transformers import AutoConfig, ModernBertForMaskedLM

    stock_config = AutoConfig.from_pretrained(source, revision=revision)
    config = from_modernbert_config(stock_config, budgets)
    loaded: Any = ModernBertForMaskedLM.from_pretrained(
        source, revision=revision, dtype=torch.float32, output_loading_info=True
    )
    stock, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"{source} has no {', '.join(sorted(report['missing_keys'])[:3])}; "
            "start from a checkpoint with its masked-LM head (ModernBertForMaskedLM)"
        )
    with torch.device("meta"):
        model = DeltaEncoderForMaskedLM(config)
    model.load_state_dict(from_modernbert_state(stock.state_dict(), config), assign=True)
    model.tie_weights()
    return model.eval()


def _rename(key: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        key = key.replace(old, new)
    return key
