"""A Deep Delta Learning decoder in plain words: slow, in float64, every variant and control.

It reads a model's configuration and its tensors by name, and shares no code with the package. The
state is (batch, tokens, d, d_v) here, transposed to ours, as the formulas of the paper have it.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def logits_of(config: Any, weights: State, ids: Tensor) -> Tensor:
    """Return (batch, tokens, vocabulary) in float64.

    Args:
        config: of the model; only plain settings are read.
        weights: ``state_dict`` of a causal language model.
        ids: (batch, tokens).
    """
    wide = {name: tensor.detach().double() for name, tensor in weights.items()}
    embeds = wide["model.embeddings.weight"][ids]
    x = embeds.unsqueeze(-1).repeat(1, 1, 1, config.d_value)
    if "model.spread.kernel_change" in wide:
        x = over_time(x, wide["model.spread.kernel_change"])
    first_values: list[Tensor] = []
    for layer in range(config.num_hidden_layers):
        for name, sublayer in (("attention", attention), ("mlp", gated_mlp)):
            part = inside(wide, f"model.layers.{layer}.")
            update = inside(part, f"{name}_update.")
            if config.residual_update == "mhc":
                weigh, write, mix = streams(config, update, x)
                read = torch.einsum("btdj,btj->btd", x, weigh)
            else:
                read = compressed(x, inside(part, "read."))
            context = normed(read, part[f"{name}_norm.weight"], config.rms_norm_eps)
            output = sublayer(config, inside(part, f"{name}."), context, first_values)
            if config.variant == "baseline":
                x = x + output.unsqueeze(-1)
            elif config.residual_update == "additive":
                x = x + output.unsqueeze(-1) * update["channel_gain"]
            elif config.residual_update == "mhc":
                x = torch.einsum("btij,btdj->btdi", mix, x)
                x = x + torch.einsum("btd,bti->btdi", output, write)
            else:
                x = rewritten(config, update, x, output, read, context)
    last = compressed(x, inside(wide, "model.last_read."))
    last = normed(last, wide["model.final_norm.weight"], config.rms_norm_eps)
    return last @ wide["lm_head.weight"].T


def inside(weights: State, place: str) -> State:
    """Return the tensors under a name."""
    return {n.removeprefix(place): t for n, t in weights.items() if n.startswith(place)}


def rewritten(
    config: Any, update: State, x: Tensor, output: Tensor, read: Tensor, context: Tensor
) -> Tensor:
    """Return ``X + beta k (v - k^T X)``, or what a control makes of it."""
    kind = config.residual_update
    # Where the direction has a map of its own, the value is read from the sublayer's output.
    mapped = "key.weight" in update
    h = context @ update["key.weight"].T if mapped else output
    k = h / (h.square().sum(-1, keepdim=True) + config.k_eps**2).sqrt()
    if kind == "frozen_beta":
        beta = torch.full((*ids_shape(x), 1), config.beta_init).double()
    else:
        beta = 2 / (1 + torch.exp(-gate_logit(config, update, context)))
    value = torch.zeros(*ids_shape(x), x.shape[-1]).double()
    if kind != "erase_only":
        sources = {"context": context, "input": read, "backbone": output}
        source = output if mapped else sources[config.v_source]
        value = source @ update["value.weight"].T + update.get("value.bias", 0.0)
        if config.v_activation == "sigmoid":
            value = config.v_scale / (1 + torch.exp(-value))
    stored = torch.einsum("btd,btdv->btv", k, x)
    if kind == "write_only":
        stored = torch.zeros_like(stored)
    return x + torch.einsum("btd,btv->btdv", k, beta * (value - stored))


def ids_shape(x: Tensor) -> tuple[int, int]:
    """Return batch and tokens."""
    return x.shape[0], x.shape[1]


def gate_logit(config: Any, update: State, context: Tensor) -> Tensor:
    """Return (batch, tokens, 1)."""
    if config.beta_hidden:
        context = torch.tanh(context @ update["beta.inner.weight"].T + update["beta.inner.bias"])
    return context @ update["beta.gate.weight"].T + update["beta.gate.bias"]


def over_time(x: Tensor, change: Tensor) -> Tensor:
    """Convolve over time; the kernel is stored as its difference to a copy of the present token."""
    result = x.clone()
    for back, taps in enumerate(change):
        for token in range(back, x.shape[1]):
            result[:, token] += taps.T * x[:, token - back]
    return result


def compressed(x: Tensor, read: State) -> Tensor:
    """Read (batch, tokens, d, d_v) to (batch, tokens, d); a vector state has no weights."""
    if not read:
        return x.squeeze(-1)
    if "kernel_change" in read:
        return over_time(x, read["kernel_change"]) @ read["weight"].squeeze(-1)
    return torch.einsum("btdv,vd->btd", x, read["weight"])


def streams(config: Any, update: State, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how a sublayer reads, writes and mixes d_v streams."""
    flat = x.transpose(-1, -2).flatten(-2)
    flat = normed(flat, torch.ones(()).double(), config.rms_norm_eps)

    def mapped(name: str, scale: Tensor) -> Tensor:
        weight, bias = update[f"{name}_map"], update[f"{name}_bias"]
        logit = scale * (flat @ weight.reshape(bias.numel(), -1).T)
        return logit.unflatten(-1, bias.shape) + bias

    read, write, mix = (
        mapped(name, scale)
        for name, scale in zip(("read", "write", "mix"), update["scales"], strict=True)
    )
    mix = mix.softmax(-1) + 1e-6
    for _ in range(config.sinkhorn_iterations):
        mix = mix / mix.sum(-2, keepdim=True)
        mix = mix / mix.sum(-1, keepdim=True)
    return torch.sigmoid(read) + 1e-6, 2 * torch.sigmoid(write), mix


def normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square."""
    return gain * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def attention(config: Any, part: State, context: Tensor, first_values: list[Tensor]) -> Tensor:
    """Attend to the past; the first call leaves its values for those after it."""
    heads, size = config.num_attention_heads, config.head_dim

    def projected(name: str) -> Tensor:
        return (context @ part[f"{name}.weight"].T).unflatten(-1, (heads, size))

    def placed(name: str) -> Tensor:
        states = projected(name)
        if config.rope_before_qk_norm:
            states = rotated(states, config.rope_theta)
        if config.qk_norm:
            states = normed(states, part[f"{name}_norm.weight"], config.rms_norm_eps)
        return states if config.rope_before_qk_norm else rotated(states, config.rope_theta)

    value = projected("value")
    if config.value_residual:
        first_values.append(value)
        if len(first_values) > 1:
            own, first = part["value_residual.shares"]
            value = own * value + first * first_values[0]
    scores = torch.einsum("bthc,bshc->bhts", placed("query"), placed("key")) / math.sqrt(size)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    shares = scores.masked_fill(future, -math.inf).softmax(-1)
    mixed = torch.einsum("bhts,bshc->bthc", shares, value).flatten(-2)
    return mixed @ part["output.weight"].T


def rotated(x: Tensor, base: float) -> Tensor:
    """Turn channel i with channel i + size / 2 as complex numbers."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1]).double()[:, None]
    angles = angles * base ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat((turned.real, turned.imag), -1)


def gated_mlp(config: Any, part: State, context: Tensor, first_values: list[Tensor]) -> Tensor:
    """SwiGLU."""
    gate, up = (context @ part[f"{name}.weight"].T for name in ("gate", "up"))
    return (F.silu(gate) * up) @ part["down.weight"].T
