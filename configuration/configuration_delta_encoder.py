"""Configuration of the Delta-Matryoshka encoder.

The shape is ModernBERT's (pre-norm, rotary positions, gated MLP, alternating local and global
attention, tied head), with two freedoms a slice needs: ``head_dim`` is stated, so heads x head_dim
may differ from the hidden size, and ``intermediate_size`` may be a list with one entry a layer.
"""

from typing import Any

from transformers import PretrainedConfig

from .delta_budget import DeltaBudget
from .delta_lattice import default_lattice
from .delta_settings import validate_delta_settings

GLOBAL, LOCAL = "full_attention", "sliding_attention"

_COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_POSITIVE = (
    "norm_eps",
    "global_rope_theta",
    "local_rope_theta",
    "initializer_range",
    "initializer_cutoff_factor",
)


class DeltaEncoderConfig(PretrainedConfig):
    """Sizes, budgets and initialisation of a `DeltaEncoderModel`.

    Args:
        vocab_size: rows of the token embedding.
        hidden_size: hidden channels.
        num_hidden_layers: layers.
        num_attention_heads: heads per layer; need not divide the hidden size.
        head_dim: channels per head (even, for rotary positions); None means
            ``hidden_size // num_attention_heads``.
        intermediate_size: MLP channels, one number for all layers or one per layer.
        max_position_embeddings: longest sequence the model is meant for.
        hidden_activation: activation of the gated MLP.
        layer_types: ``"full_attention"`` or ``"sliding_attention"`` per layer; None makes every
            ``global_attn_every_n_layers``-th layer global, beginning with the first.
        global_attn_every_n_layers: distance between global layers.
        local_attention: window of local layers in tokens, both sides together.
        global_rope_theta: rotary base of global layers.
        local_rope_theta: rotary base of local layers.
        budgets: the nested budgets the model is trained for, as text; None means three widths x
            three head counts x three depths (about 0.5, 0.75 and 1 of each).
        sparse_prediction: with labels, run the masked-LM head on labelled positions only, as
            ModernBERT does; logits then have shape (labelled tokens, vocabulary).
        classifier_pooling: ``"mean"`` or ``"cls"``.
        base_intermediate_size: MLP channels of the base slice, one number or one per layer; what
            lies outside is the delta. None means half, where a delta setting needs it.
        base_attention_heads: heads of the base slice; None likewise.
        delta_kind: ``"dense"`` stores the delta as the rest of each matrix, ``"dictionary"``
            builds it from shared atoms, ``"low_rank"`` from two thin matrices a layer.
        delta_atoms: atoms of each dictionary.
        delta_rank: rank of an atom, or of the thin matrices.
        conditioned_norms: let the gains of the norms depend on the budget.
        conditioner_size: hidden units of the network that does it.
        exit_affine: give each depth its own change of the final norm.
        norm_table: look the changes of the norms up for the base slice and for the whole, instead
            of computing them; slicing sets it where norms that know their budget meet routing.
        token_routing: have a preview network that can send chosen tokens only through the delta.
        preview_size: hidden units of the preview network.
        routing_layer: layers before this one run on all tokens; the preview reads their output.
        delta_token_ratio: share of the real tokens that get the delta; None means all. May be
            changed at any time, as may the next one.
        delta_token_threshold: choose tokens by score instead, one by one; overrides the ratio.
        learned_token_threshold: the score above which the share of tokens lies that training asked
            for; training sets it. It does nothing by itself: copy it to ``delta_token_threshold``.
        drop_path: stochastic depth in training, 0 at the first layer to this rate at the last.

    Raises:
        ValueError: from `validate`, with the value, the allowed range and the fix.
    """

    model_type = "delta_encoder"
    budget_class = DeltaBudget

    def __init__(
        self,
        vocab_size: int = 50368,
        hidden_size: int = 768,
        num_hidden_layers: int = 22,
        num_attention_heads: int = 12,
        head_dim: int | None = None,
        intermediate_size: int | list[int] = 1152,
        max_position_embeddings: int = 8192,
        hidden_activation: str = "gelu",
        layer_types: list[str] | None = None,
        global_attn_every_n_layers: int = 3,
        local_attention: int = 128,
        global_rope_theta: float = 160000.0,
        local_rope_theta: float = 10000.0,
        norm_eps: float = 1e-5,
        norm_bias: bool = False,
        attention_bias: bool = False,
        mlp_bias: bool = False,
        decoder_bias: bool = True,
        classifier_bias: bool = False,
        classifier_activation: str = "gelu",
        classifier_pooling: str = "mean",
        classifier_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        mlp_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_cutoff_factor: float = 2.0,
        sparse_prediction: bool = True,
        base_intermediate_size: int | list[int] | None = None,
        base_attention_heads: int | None = None,
        delta_kind: str = "dense",
        delta_atoms: int = 16,
        delta_rank: int = 64,
        conditioned_norms: bool = False,
        conditioner_size: int = 64,
        exit_affine: bool = False,
        norm_table: bool = False,
        token_routing: bool = False,
        preview_size: int = 128,
        routing_layer: int = 1,
        delta_token_ratio: float | None = None,
        delta_token_threshold: float | None = None,
        learned_token_threshold: float | None = None,
        drop_path: float = 0.0,
        budgets: list[str] | None = None,
        pad_token_id: int | None = None,
        cls_token_id: int | None = None,
        sep_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        # None is filled in by `validate`, as for `layer_types` and `budgets`.
        self.head_dim: Any = head_dim
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.hidden_activation = hidden_activation
        self.global_attn_every_n_layers = global_attn_every_n_layers
        self.layer_types: Any = layer_types
        self.local_attention = local_attention
        self.global_rope_theta = global_rope_theta
        self.local_rope_theta = local_rope_theta
        self.norm_eps = norm_eps
        self.norm_bias = norm_bias
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.decoder_bias = decoder_bias
        self.classifier_bias = classifier_bias
        self.classifier_activation = classifier_activation
        self.classifier_pooling = classifier_pooling
        self.classifier_dropout = classifier_dropout
        self.embedding_dropout = embedding_dropout
        self.attention_dropout = attention_dropout
        self.mlp_dropout = mlp_dropout
        self.initializer_range = initializer_range
        self.initializer_cutoff_factor = initializer_cutoff_factor
        self.sparse_prediction = sparse_prediction
        self.base_intermediate_size: Any = base_intermediate_size
        self.base_attention_heads: Any = base_attention_heads
        self.delta_kind = delta_kind
        self.delta_atoms = delta_atoms
        self.delta_rank = delta_rank
        self.conditioned_norms = conditioned_norms
        self.conditioner_size = conditioner_size
        self.exit_affine = exit_affine
        self.norm_table = norm_table
        self.token_routing = token_routing
        self.preview_size = preview_size
        self.routing_layer = routing_layer
        self.delta_token_ratio = delta_token_ratio
        self.delta_token_threshold = delta_token_threshold
        self.learned_token_threshold = learned_token_threshold
        self.drop_path = drop_path
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.pad_token_id = pad_token_id
        self.budgets: Any = budgets
        self.validate()
        kwargs.update(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings)
        super().__init__(**kwargs)

    def intermediate_sizes(self) -> list[int]:
        """Return the MLP channels of each layer."""
        if isinstance(self.intermediate_size, int):
            return [self.intermediate_size] * self.num_hidden_layers
        return list(self.intermediate_size[: self.num_hidden_layers])

    def base_intermediate_sizes(self) -> list[int]:
        """Return the MLP channels of the base slice of each layer."""
        if isinstance(self.base_intermediate_size, int):
            return [self.base_intermediate_size] * self.num_hidden_layers
        return list(self.base_intermediate_size[: self.num_hidden_layers])

    def budget_list(self) -> list[DeltaBudget]:
        """Return the trained budgets that fit this (perhaps overridden) shape, each once.

        A model loaded with ``num_hidden_layers=6`` no longer has its deeper budgets; if none is
        left, the full shape is the only budget.
        """
        parsed = [DeltaBudget.parse(text) for text in self.budgets]
        fitting = [b.check(self) for b in parsed if b.nearest(self) == b]
        return list(dict.fromkeys(fitting)) or [DeltaBudget.full(self)]

    def validate(self) -> None:
        """Check every value and fill in ``head_dim``, ``layer_types`` and ``budgets`` if None.

        Models call this again, because overrides are set after construction. Per-layer lists
        longer than ``num_hidden_layers`` are cut to their first entries, so that
        ``from_pretrained(folder, num_hidden_layers=6)`` is a prefix of the model.

        Raises:
            ValueError: for the first value out of range.
        """
        for name in (*_COUNTS, "max_position_embeddings", "local_attention"):
            _require_count(name, getattr(self, name))
        if self.head_dim is None:
            self._require_divisible()
            self.head_dim = self.hidden_size // self.num_attention_heads
        if not _is_count(self.head_dim) or self.head_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim!r} must be an even number >= 2, because rotary positions "
                f"pair channels; set it, or change num_attention_heads ({self.num_attention_heads})"
            )
        for name in ("attention", "embedding", "mlp", "classifier"):
            rate = getattr(self, f"{name}_dropout")
            if not _is_number(rate) or not 0.0 <= rate < 1.0:
                raise ValueError(f"{name}_dropout {rate!r} must be in [0, 1)")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not _is_number(value) or not value > 0.0:
                raise ValueError(f"{name} {value!r} must be a number above 0")
        if self.classifier_pooling not in ("mean", "cls"):
            raise ValueError(f"classifier_pooling {self.classifier_pooling!r} must be mean or cls")
        self._validate_pad()
        self._validate_activations()
        self._validate_layers()
        validate_delta_settings(self)
        self._validate_budgets()

    def _require_divisible(self) -> None:
        heads, hidden = self.num_attention_heads, self.hidden_size
        if hidden % heads:
            fitting = [n for n in range(1, hidden // 2 + 1) if hidden % (2 * n) == 0]
            near = sorted(fitting, key=lambda n: abs(n - heads))[:2]
            raise ValueError(
                f"num_attention_heads {heads} does not divide hidden_size {hidden}; "
                f"use {' or '.join(map(str, sorted(near)))}, or set head_dim"
            )

    def _validate_pad(self) -> None:
        pad = self.pad_token_id
        if pad is not None and not (pad == 0 or (_is_count(pad) and pad < self.vocab_size)):
            raise ValueError(
                f"pad_token_id {pad!r} must be in 0..{self.vocab_size - 1}; "
                "take both from the tokenizer (pad_token_id and len(tokenizer))"
            )

    def _validate_activations(self) -> None:
        from transformers.activations import ACT2FN

        for name in ("hidden_activation", "classifier_activation"):
            value = getattr(self, name)
            if value not in ACT2FN:
                raise ValueError(f"{name} {value!r} must be one of {', '.join(sorted(ACT2FN))}")

    def _validate_layers(self) -> None:
        layers = self.num_hidden_layers
        if self.layer_types is None:
            every = self.global_attn_every_n_layers
            _require_count("global_attn_every_n_layers", every)
            self.layer_types = [LOCAL if i % every else GLOBAL for i in range(layers)]
        unknown = set(self.layer_types) - {GLOBAL, LOCAL}
        if unknown:
            raise ValueError(f"layer_types {sorted(unknown)} must be {GLOBAL} or {LOCAL}")
        sizes = self.intermediate_size
        for size in sizes if isinstance(sizes, list | tuple) else [sizes]:
            _require_count("intermediate_size", size)
        for name in ("layer_types", "intermediate_size"):
            values = getattr(self, name)
            if isinstance(values, int):
                continue
            if len(values) < layers:
                raise ValueError(
                    f"{name} has {len(values)} entries for {layers} layers; give one per layer"
                )
            setattr(self, name, list(values[:layers]))

    def _validate_budgets(self) -> None:
        if self.budgets is None:
            lattice = default_lattice(self.num_attention_heads, self.num_hidden_layers)
            self.budgets = [str(budget) for budget in lattice]
        if isinstance(self.budgets, str):
            raise ValueError(f"budgets {self.budgets!r} must be a list of texts such as '0.5:6:6'")
        self.budgets = [str(DeltaBudget.parse(text)) for text in self.budgets]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_count(name: str, value: object) -> None:
    if not _is_count(value):
        raise ValueError(f"{name} {value!r} must be a whole number >= 1")
