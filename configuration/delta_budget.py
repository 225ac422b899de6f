"""The budget of a Delta-Matryoshka encoder: MLP width, heads, depth and hidden width.

Prefix nesting: a smaller budget uses the *first* channels, heads and layers of a larger one. The
cost formulas count what is really computed; tests hold them against
``torch.utils.flop_counter`` and against files on disk.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from .budget import (
    BudgetError,
    format_ratio,
    parse_count,
    parse_ratio,
    ratio_digits,
    require_text,
)

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
HEADS = ("none", "masked_lm", "classification")


def share_of(tokens: Any, ratio: float) -> Any:
    """Return ``ceil(ratio x tokens)`` of a number, or of each entry of an integer tensor.

    The ratio counts to six decimals, as in a budget, so that the result is exact.
    """
    return -(-tokens * round(ratio * 1_000_000) // 1_000_000)


def exact_width(channels: int, size: int) -> float:
    """Return the share of ``size`` channels that resolves to ``channels`` again.

    Rounded *up* to the six decimals a budget prints: 1152 of 2624 channels are 0.439025, because
    0.439024 would be 1151.
    """
    return -(-channels * 1_000_000 // size) / 1_000_000


class SliceShape(NamedTuple):
    """The sizes a budget resolves to in one configuration."""

    hidden: int
    heads: int
    layers: int
    intermediate: tuple[int, ...]


@dataclass(frozen=True)
class DeltaBudget:
    """How much of a `DeltaEncoderModel` runs.

    Text form ``w:h:d`` or ``w:h:d:n``; a per-layer width list (Mix'n'Match) separates its ratios
    by commas, one for each kept layer: ``0.5,0.5,1.0:4:3``.

    Attributes:
        width: share of the MLP channels of each layer, in (0, 1]; or one share per kept layer.
        heads: number of attention heads.
        depth: number of layers, counted from the first.
        hidden: number of hidden channels; None keeps all of them.
    """

    width: float | tuple[float, ...]
    heads: int
    depth: int
    hidden: int | None = None

    def __post_init__(self) -> None:
        """Reject values no model could have, so that a bad budget fails where it is written.

        Widths are rounded to the six decimals a budget prints, and equal widths of all layers
        become one, so that budgets are equal exactly when they print alike.
        """
        given = self.width if isinstance(self.width, tuple) else (self.width,)
        widths = tuple(round(float(width), 6) for width in given)
        if not widths or not all(0.0 < width <= 1.0 for width in widths):
            raise BudgetError(f"width {self.width!r} must be in (0, 1], at least 0.000001")
        for axis in ("heads", "depth", "hidden"):
            value = self.__dict__[axis]
            if value is None and axis == "hidden":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BudgetError(f"{axis} {value!r} must be a whole number >= 1")
        if isinstance(self.width, tuple) and len(self.width) != self.depth:
            raise BudgetError(
                f"{len(self.width)} widths for {self.depth} layers; "
                "give one width for each kept layer, or a single width for all"
            )
        object.__setattr__(self, "width", widths if len(set(widths)) > 1 else widths[0])

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read ``w:h:d`` or ``w:h:d:n``.

        Raises:
            BudgetError: naming the part that cannot be read.
        """
        budget = require_text(text, "0.5:6:6")
        parts = budget.split(":")
        if len(parts) not in (3, 4):
            raise BudgetError(
                f"budget {budget!r} has {len(parts)} parts; "
                "write width:heads:depth or width:heads:depth:hidden, such as 0.5:6:6"
            )
        ratios = tuple(parse_ratio(part, "width", budget) for part in parts[0].split(","))
        return cls(
            width=ratios if len(ratios) > 1 else ratios[0],
            heads=parse_count(parts[1], "heads", budget),
            depth=parse_count(parts[2], "depth", budget),
            hidden=parse_count(parts[3], "hidden", budget) if len(parts) == 4 else None,
        )

    @classmethod
    def full(cls, config: Any) -> Self:
        """Return the budget that keeps everything of ``config``."""
        return cls(1.0, config.num_attention_heads, config.num_hidden_layers)

    def __str__(self) -> str:
        """Return the text form that `parse` reads."""
        widths = self.width if isinstance(self.width, tuple) else (self.width,)
        text = f"{','.join(map(format_ratio, widths))}:{self.heads}:{self.depth}"
        return text if self.hidden is None else f"{text}:{self.hidden}"

    @property
    def folder_name(self) -> str:
        """Return for example ``w050-h06-d06``, ``w050x2_100x1-h04-d03`` or ``…-n256``."""
        if isinstance(self.width, tuple):
            runs: list[list[Any]] = []
            for ratio in self.width:
                if runs and runs[-1][0] == ratio:
                    runs[-1][1] += 1
                else:
                    runs.append([ratio, 1])
            width = "_".join(f"{ratio_digits(ratio)}x{count}" for ratio, count in runs)
        else:
            width = ratio_digits(self.width)
        name = f"w{width}-h{self.heads:02d}-d{self.depth:02d}"
        return name if self.hidden is None else f"{name}-n{self.hidden:03d}"

    @property
    def trunk(self) -> tuple[float | tuple[float, ...], int, int | None]:
        """Return what budgets share that differ in depth only: one pass serves them all."""
        return self.width, self.heads, self.hidden

    def layer_widths(self) -> tuple[float, ...]:
        """Return one width for each kept layer."""
        return self.width if isinstance(self.width, tuple) else (self.width,) * self.depth

    def __le__(self, other: "DeltaBudget") -> bool:
        """Whether every axis of this budget fits inside ``other`` (partial order)."""
        if not isinstance(other, DeltaBudget):
            return NotImplemented
        hidden_fits = other.hidden is None or (
            self.hidden is not None and self.hidden <= other.hidden
        )
        sizes_fit = self.heads <= other.heads and self.depth <= other.depth
        pairs = zip(self.layer_widths(), other.layer_widths(), strict=False)
        return hidden_fits and sizes_fit and all(mine <= theirs for mine, theirs in pairs)

    def __lt__(self, other: "DeltaBudget") -> bool:
        """Whether this budget is contained in ``other`` and differs from it."""
        return self != other and self <= other

    def check(self, config: Any) -> "DeltaBudget":
        """Return this budget in the one form it has in a model of ``config``.

        All of the hidden channels, written as a number, become None: otherwise one model would
        have two budgets, two folders and two names.

        Raises:
            BudgetError: with the value, the allowed range and the nearest possible budget.
        """
        limits = {
            "heads": (self.heads, config.num_attention_heads),
            "depth": (self.depth, config.num_hidden_layers),
            "hidden": (self.hidden or 1, config.hidden_size),
        }
        wrong = [
            f"{axis} {value} is not in 1..{limit}"
            for axis, (value, limit) in limits.items()
            if value > limit
        ]
        if wrong:
            raise BudgetError(
                f"budget {self} does not fit this model: {'; '.join(wrong)}; "
                f"the nearest possible budget is {self.nearest(config)}"
            )
        if self.hidden != config.hidden_size:
            return self
        return DeltaBudget(self.width, self.heads, self.depth)

    def nearest(self, config: Any) -> "DeltaBudget":
        """Return this budget with every axis clamped to what ``config`` has."""
        depth = min(self.depth, config.num_hidden_layers)
        return DeltaBudget(
            self.width[:depth] if isinstance(self.width, tuple) else self.width,
            min(self.heads, config.num_attention_heads),
            depth,
            None if self.hidden is None else min(self.hidden, config.hidden_size),
        )

    def shape(self, config: Any) -> SliceShape:
        """Resolve the ratios: ``floor(width * intermediate_size)`` channels, at least 1."""
        sizes = config.intermediate_sizes()[: self.depth]
        widths = self.layer_widths()
        channels = (max(1, int(w * size + 1e-4)) for w, size in zip(widths, sizes, strict=True))
        hidden = self.hidden or config.hidden_size
        return SliceShape(hidden, self.heads, self.depth, tuple(channels))

    def base_shape(self, config: Any) -> SliceShape:
        """Resolve the part of this budget that lies in the base slice; all of it without one."""
        whole = self.shape(config)
        if config.base_attention_heads is None:
            return whole
        channels = map(min, whole.intermediate, config.base_intermediate_sizes())
        heads = min(whole.heads, config.base_attention_heads)
        return SliceShape(whole.hidden, heads, whole.layers, tuple(channels))

    def base_budget(self, config: Any) -> "DeltaBudget":
        """Return the budget whose shape is `base_shape`; this one where no delta is left in it.

        Several ratios may give the same channels; one that the model was trained with comes first.
        """
        base = self.base_shape(config)
        if base == self.shape(config):
            return self
        listed = (budget for budget in config.budget_list() if budget.shape(config) == base)
        widths = tuple(map(exact_width, base.intermediate, config.intermediate_sizes()))
        return next(listed, DeltaBudget(widths, base.heads, base.layers, self.hidden))

    def has_routed_delta(self, config: Any) -> bool:
        """Whether tokens are routed: some delta is left in a layer from ``routing_layer`` on."""
        if not config.token_routing or config.routing_layer >= self.depth:
            return False
        whole, base = self.shape(config), self.base_shape(config)
        first = config.routing_layer
        return base.heads < whole.heads or base.intermediate[first:] != whole.intermediate[first:]

    def parameters(self, config: Any, head: str = "masked_lm") -> int:
        """Count the parameters of the slice; tied tensors count once.

        Built deltas and changes of norms are worked into the weights of a slice. Where there are
        tokens to route a preview network stays, and the changes of norms stay as a table.

        Args:
            config: a `DeltaEncoderConfig`.
            head: ``"none"`` (base model), ``"masked_lm"`` or ``"classification"``.

        Raises:
            BudgetError: for another head.
        """
        if head not in HEADS:
            raise BudgetError(f"head {head!r} must be one of {', '.join(HEADS)}")
        n, heads, _, intermediate = self.shape(config)
        attention = heads * config.head_dim
        norm = n * (1 + config.norm_bias)
        total = config.vocab_size * n + norm
        for layer, k in enumerate(intermediate):
            total += 4 * attention * n + (3 * attention + n) * config.attention_bias
            total += 3 * k * n + (2 * k + n) * config.mlp_bias
            total += norm * (1 if layer == 0 else 2)
        total += norm
        if self.has_routed_delta(config):
            total += (n + 2) * config.preview_size + 1
            if config.conditioned_norms or config.norm_table:
                total += 2 * (2 * len(intermediate) + 1) * norm
        if head != "none":
            total += n * n + n * config.classifier_bias + norm
        if head == "masked_lm":
            total += config.vocab_size * config.decoder_bias
            total += 0 if config.tie_word_embeddings else config.vocab_size * n
        if head == "classification":
            total += (n + 1) * config.num_labels
        return total

    def flops(
        self,
        config: Any,
        sequence_length: int,
        batch_size: int = 1,
        predicted_tokens: int = 0,
        delta_ratio: float = 1.0,
    ) -> int:
        """Count the matrix-product operations of one forward pass (2 per multiply-add).

        With T tokens, n hidden channels, h heads of p channels and k_l MLP channels::

            2 B [ sum_l 4 T n h p + 2 T^2 h p + 3 T n k_l ] + 2 M (n^2 + n V)

        Local layers are counted as full T^2: with a dense mask that is what runs. Building deltas
        and conditioning norms, once per pass whatever the batch, is not counted; a slice does
        neither.

        Where the delta runs on K = ceil(ratio T) tokens a row, the heads and channels of a layer
        outside the base slice cost ``2 T n h p + 2 K n h p + 2 K T h p`` (the keys and values are
        those of all tokens) and ``3 K n k``; the preview network of m units adds ``T n m + T m``.

        Args:
            config: a `DeltaEncoderConfig`.
            sequence_length: T.
            batch_size: B.
            predicted_tokens: M, positions on which the masked-LM head runs (0: trunk only).
            delta_ratio: share of the tokens that get the delta; see ``delta_token_ratio``.

        Raises:
            BudgetError: if ``delta_ratio`` is below 1 in a model that does not route tokens.
        """
        tokens = sequence_length
        whole, base = self.shape(config), self.base_shape(config)
        n, p = whole.hidden, config.head_dim
        if delta_ratio < 1.0 and not config.token_routing:
            raise BudgetError(f"delta_ratio {delta_ratio} needs a model with token_routing=True")
        is_routed = delta_ratio < 1.0 and self.has_routed_delta(config)
        chosen = share_of(tokens, delta_ratio)
        trunk = tokens * (n + 1) * config.preview_size if is_routed else 0
        for layer, channels in enumerate(whole.intermediate):
            heads = whole.heads
            if is_routed and layer >= config.routing_layer:
                more_heads, more_channels = heads - base.heads, channels - base.intermediate[layer]
                heads, channels = base.heads, base.intermediate[layer]
                if chosen:
                    trunk += 2 * (tokens * n + chosen * n + chosen * tokens) * more_heads * p
                    trunk += 3 * chosen * n * more_channels
            trunk += 4 * tokens * n * heads * p + 2 * tokens**2 * heads * p
            trunk += 3 * tokens * n * channels
        return 2 * (batch_size * trunk + predicted_tokens * n * (n + config.vocab_size))

    def weight_bytes(self, config: Any, dtype: str = "float32", head: str = "masked_lm") -> int:
        """Return the bytes of all tensors of the slice in a safetensors file (header excluded).

        Raises:
            BudgetError: for a dtype without a known size.
        """
        if dtype not in BYTES_PER_VALUE:
            raise BudgetError(f"dtype {dtype!r} must be one of {', '.join(BYTES_PER_VALUE)}")
        return self.parameters(config, head) * BYTES_PER_VALUE[dtype]
