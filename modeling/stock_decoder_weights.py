"""Weights and configuration of a baseline decoder in the layout of the stock Qwen3 or Llama class.

A baseline adds what its sublayers give, so its state is a vector and stock classes compute the
same: Qwen3 where queries and keys are normalised before they are rotated, Llama where they are not.
Only names differ.
"""

from typing import Any

from torch import Tensor

from ..configuration.configuration_ddl import DdlConfig
from ..configuration.stock_shapes import stock_decoder_obstacle

_SHARED_KEYS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads head_dim intermediate_size "
    "max_position_embeddings rms_norm_eps initializer_range use_cache tie_word_embeddings "
    "pad_token_id bos_token_id eos_token_id"
).split()

_RENAMED = {
    "embeddings.": "embed_tokens.",
    "final_norm.": "norm.",
    ".attention_norm.": ".input_layernorm.",
    ".mlp_norm.": ".post_attention_layernorm.",
    ".attention.query.": ".self_attn.q_proj.",
    ".attention.key.": ".self_attn.k_proj.",
    ".attention.value.": ".self_attn.v_proj.",
    ".attention.output.": ".self_attn.o_proj.",
    ".attention.query_norm.": ".self_attn.q_norm.",
    ".attention.key_norm.": ".self_attn.k_norm.",
    ".mlp.gate.": ".mlp.gate_proj.",
    ".mlp.up.": ".mlp.up_proj.",
    ".mlp.down.": ".mlp.down_proj.",
}


def to_stock_decoder_config(config: DdlConfig, class_name: str) -> dict[str, Any]:
    """Return a stock ``config.json`` that transformers 4.57 and 5.x both read.

    Args:
        config: configuration of a baseline.
        class_name: our class, such as ``DdlForCausalLM``.

    Raises:
        ValueError: if no stock class computes it, saying why.
    """
    obstacle = stock_decoder_obstacle(config)
    if obstacle is not None:
        raise ValueError(f"no stock decoder: {obstacle}; export it with format=remote")
    stock = "Qwen3" if config.qk_norm else "Llama"
    return {
        "architectures": [class_name.replace("Ddl", stock)],
        "model_type": stock.lower(),
        **{name: getattr(config, name) for name in _SHARED_KEYS},
        "num_key_value_heads": config.num_attention_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        # Transformers 4.57 knows only this one.
        "rope_theta": config.rope_theta,
    }


def to_stock_decoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors; keys keep the prefix (``model.`` or none) they came with."""
    return {_rename(name): tensor for name, tensor in state.items()}


def _rename(name: str) -> str:
    for ours, theirs in _RENAMED.items():
        name = name.replace(ours, theirs)
    return name
