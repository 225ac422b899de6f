"""What a delta update is made of: direction, value and strength, from one sublayer's output.

Source: Deep Delta Learning, https://arxiv.org/abs/2601.00417, appendix A; the published code and
ddl-rs make other choices of the value, which `DdlConfig.preset` names.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .carried_state import CarriedState
from .deferred_rewrite import Channels, Deferred, defer_rewrite, with_rewrites
from .delta_residual import StateTape, at_least_fp32, direction_of, rewrite, rewrite_on_tape
from .nested_layers import NestedLinear
from .token_sums import compiled_dots


class Update(NamedTuple):
    """One delta update, for diagnostics.

    Attributes:
        direction: (batch, tokens, d), k in fp32.
        beta: (batch, tokens, 1), in fp32.
        before: (batch, tokens, d_v), |X k - v| before.
        after: (batch, tokens, d_v), the same afterwards.
    """

    direction: Tensor
    beta: Tensor
    before: Tensor
    after: Tensor


class WideLinear(nn.Linear):
    """A linear map computed in fp32, whatever the precision around it; fp64 stays fp64."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out), fp32 or fp64."""
        input = at_least_fp32(input)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input, self.weight.to(input.dtype), bias)


class FixedLinear(nn.Linear):
    """A linear map that is never trained, however its weight got there.

    Loading makes every parameter trainable, so both the parameter and its use say it.
    """

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Take a parameter as one without a gradient."""
        if param is not None:
            param.requires_grad_(False)
        super().register_parameter(name, param)

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(input, self.weight.detach())


class BetaLogit(WideLinear):
    """The last layer of a gate, which starts at zero weights and the bias of ``beta_init``."""

    def __init__(self, size: int, beta_init: float) -> None:
        super().__init__(size, 1)
        self.beta_init = beta_init
        self.reset()

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., 1), fp32 or fp64."""
        if not torch.compiler.is_compiling():
            return super().forward(input)
        input = at_least_fp32(input)
        (logit,) = compiled_dots(input, self.weight.to(input.dtype))
        return logit + self.bias.to(input.dtype)

    def reset(self) -> None:
        """Set the weights of a gate that gives ``beta_init`` to every token."""
        nn.init.zeros_(self.weight)
        share = self.beta_init / 2
        nn.init.constant_(self.bias, math.log(share / (1 - share)))


class ValueMap(NestedLinear):
    """The linear map to the value, (..., d) to the first of d_v value channels."""

    def forward(self, input: Tensor, values: int) -> Tensor:  # type: ignore[override]
        """Map (..., d) to (..., values), in fp32 or fp64."""
        return at_least_fp32(super().forward(input, values))

    def apart(self, input: Tensor, values: int) -> tuple[Tensor, ...]:
        """Do as `forward`, for compiled code: a tensor (..., 1) a value channel."""
        if input.device.type != "cpu":
            return self(input, values).split(1, dim=-1)
        input = at_least_fp32(input)
        found = compiled_dots(input, self.weight[:values].to(input.dtype))
        if self.bias is None:
            return found
        return tuple(v + b for v, b in zip(found, self.bias.to(input.dtype), strict=False))


class BetaGate(nn.Module):
    """``beta = 2 sigmoid(W c + b)``, or with two layers ``2 sigmoid(W2 tanh(W1 c + b1) + b2)``.

    The last weights start at zero and the bias at logit(beta_init / 2), so beta starts at
    ``beta_init`` for every token. Logits are in fp32.
    """

    def __init__(self, size: int, hidden: int | None, beta_init: float) -> None:
        super().__init__()
        self.inner = None if hidden is None else WideLinear(size, hidden)
        self.gate = BetaLogit(hidden or size, beta_init)

    def forward(self, context: Tensor) -> Tensor:
        """Map (..., d) to (..., 1) in (0, 2), fp32."""
        if self.inner is not None:
            context = torch.tanh(self.inner(context))
        beta: Tensor = 2 * torch.sigmoid(self.gate(context))
        return beta


class DeltaUpdate(nn.Module):
    """The residual of one sublayer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size = config.hidden_size
        self.kind: str = config.residual_update
        self.source: str = config.v_source
        self.activation: str = config.v_activation
        self.scale: float = config.v_scale
        self.eps: float = config.k_eps
        self.beta_init: float = config.beta_init
        needs_beta = config.residual_update != "frozen_beta"
        self.beta = BetaGate(size, config.beta_hidden, config.beta_init) if needs_beta else None
        needs_value = config.residual_update != "erase_only"
        self.value = ValueMap(size, config.d_value, config.v_bias) if needs_value else None
        # The direction of its own that a value map needs; at random it is never trained.
        self.key: nn.Linear | None = None
        if config.residual_update == "random_k":
            self.key = FixedLinear(size, size, bias=False)
        elif config.mapping == "v_map":
            self.key = nn.Linear(size, size, bias=False)

    def forward(
        self,
        state: Any,
        output: Tensor,
        context: Tensor,
        read: Tensor,
        tape: StateTape | None = None,
        notes: list[Update] | None = None,
    ) -> Any:
        """Update the state.

        Args:
            state: (batch, tokens, v, d), or v tensors (batch, tokens, d) in compiled code.
            output: (batch, tokens, d) of the sublayer.
            context: (batch, tokens, d), its normed input.
            read: (batch, tokens, d), its input before the norm.
            tape: keeps the state where states are rebuilt.
            notes: receives what was done.
        """
        if isinstance(state, tuple):
            return with_rewrites(state, self.deferred(state, output, context, read))
        beta = self._beta(context)
        value = self._value(output, context, read, state.shape[-2])
        direction = direction_of(self._raw(output, context), self.eps)
        if self.kind == "write_only":
            written = (beta * value).unsqueeze(-1) * direction.unsqueeze(-2)
            updated = (state + written).to(state.dtype)
        elif tape is not None:
            updated = rewrite_on_tape(state, direction, value, beta, tape)
        else:
            updated = rewrite(state, direction, value, beta)
        if notes is not None:
            notes.append(_note(state, updated, direction, beta, value))
        return updated

    def defers(self) -> bool:
        """Whether rewrites are done as compiled code does them best."""
        return torch.compiler.is_compiling()

    def deferred(
        self,
        state: Channels,
        output: Tensor,
        context: Tensor,
        read: Tensor,
        earlier: Deferred | None = None,
        carried: CarriedState | None = None,
    ) -> Deferred:
        """Return the update as a rewrite that is not in the state yet.

        Args:
            state: v tensors (batch, tokens, d).
            output: see `forward`, as for the next two.
            context: see there.
            read: see there.
            earlier: a rewrite of the same state before this one.
            carried: see `defer_rewrite`.
        """
        # The products come first, so that a compiler can fuse all that follows on the state.
        beta = self._beta(context)
        value = self._value_apart(output, context, read, len(state))
        raw = self._raw(output, context)
        erases = self.kind != "write_only"
        return defer_rewrite(state, raw, value, beta, self.eps, earlier, carried, erases)

    def _raw(self, output: Tensor, context: Tensor) -> Tensor:
        """Return what gives the direction, (batch, tokens, d)."""
        return output if self.key is None else self.key(context)

    def _beta(self, context: Tensor) -> Tensor:
        if self.beta is None:
            shape = (*context.shape[:-1], 1)
            return torch.full(shape, self.beta_init, device=context.device)
        beta: Tensor = self.beta(context)
        return beta

    def _value(self, output: Tensor, context: Tensor, read: Tensor, values: int) -> Tensor:
        if self.value is None:
            return torch.zeros((*context.shape[:-1], values), device=context.device)
        return self._activated(self.value(self._source_of(output, context, read), values))

    def _value_apart(
        self, output: Tensor, context: Tensor, read: Tensor, values: int
    ) -> tuple[Tensor, ...]:
        """Do as `_value`, a tensor (batch, tokens, 1) a value channel."""
        if self.value is None:
            return (torch.zeros((*context.shape[:-1], 1), device=context.device),) * values
        source = self._source_of(output, context, read)
        if isinstance(self.value, ValueMap):
            found = self.value.apart(source, values)
        else:
            # An adapter around it.
            found = self.value(source, values).split(1, dim=-1)
        return tuple(map(self._activated, found))

    def _source_of(self, output: Tensor, context: Tensor, read: Tensor) -> Tensor:
        # Where the direction has a map of its own, the backbone gives the value.
        source = "backbone" if self.key is not None else self.source
        return {"context": context, "input": read, "backbone": output}[source]

    def _activated(self, value: Tensor) -> Tensor:
        return value if self.activation == "none" else self.scale * torch.sigmoid(value)


@torch.no_grad()
def _note(state: Tensor, updated: Tensor, direction: Tensor, beta: Tensor, value: Tensor) -> Update:
    before, after = (
        ((x.float() * direction.unsqueeze(-2)).sum(-1) - value).abs() for x in (state, updated)
    )
    return Update(direction.detach(), beta.detach(), before, after)
