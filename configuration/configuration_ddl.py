"""Configuration of Deep Delta Learning decoders: one class, six variants, and its controls."""

from typing import Any

import transformers
from transformers import PretrainedConfig

from .ddl_budget import DdlBudget
from .ddl_settings import (
    PAPER_NAMES,
    VARIANTS,
    preset_of,
    preset_settings,
    validate_ddl_settings,
)

# The first release whose caches hold convolution histories beside keys and values.
TRANSFORMERS_FLOOR = (5, 17)


class DdlConfig(PretrainedConfig):
    """Sizes of a Llama-style decoder and the residual it uses.

    Attributes:
        vocab_size: tokens of the vocabulary.
        hidden_size: d, width of the sublayers.
        num_hidden_layers: blocks; each updates the state twice.
        num_attention_heads: heads; must divide ``hidden_size`` unless ``head_dim`` is given.
        head_dim: channels per head; None means hidden_size // num_attention_heads.
        intermediate_size: channels of the gated MLP; None means ceil(8 d / 3), and the floor of it
            for the presets of the paper and of its code.
        max_position_embeddings: longest sequence.
        rope_theta: base of the rotary positions.
        rms_norm_eps: floor of the mean square in every norm.
        qk_norm: normalise queries and keys per head, with learned gains.
        rope_before_qk_norm: rotate first, as the reference code does.
        initializer_range: standard deviation of initial weights.
        variant: a slug of `VARIANTS`, or the paper's name of one.
        d_value: d_v, value channels of the state; 1 for a vector state, above 1 for a matrix.
        conv_kernel: columns of the causal convolutions over time.
        residual_update: what a sublayer does to the state, one of `UPDATES`.
        mapping: k_map (the sublayer's output is the direction) or v_map (it gives the value).
        v_source: what the value is read from in k_map: the normed input of the sublayer, the
            input itself, or its output.
        v_activation: none or sigmoid; the sigmoid is multiplied by ``v_scale``.
        v_scale: largest value with the sigmoid.
        v_bias: give the value a bias.
        beta_init: beta at the start, in the open interval (0, 2).
        beta_hidden: hidden units of a two-layer gate; None is a single linear map.
        k_eps: guard of the direction's norm: k = h / sqrt(|h|^2 + k_eps^2).
        sinkhorn_iterations: of the mixing matrix of ``residual_update="mhc"``.
        value_residual: mix the attention values of later layers with those of the first.
        rebuild_state: in training, keep one state and rebuild the others backwards. Compiled code
            does so for matrix states; a vector state is kept by the norms that read it anyway.
        budgets: budgets the model is trained for, as text.
        sliced_from: budget this model was cut at, if it was.

    Raises:
        ValueError: from `validate`, with the value, the allowed range and the fix.
        ImportError: with a transformers that is too old.
    """

    model_type = "ddl"
    budget_class = DdlBudget
    # A list, because the Trainer of transformers adds one to it.
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 50304,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 6,
        head_dim: int | None = None,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 1024,
        rope_theta: float = 10000.0,
        rms_norm_eps: float = 1e-5,
        qk_norm: bool = True,
        rope_before_qk_norm: bool = False,
        initializer_range: float = 0.02,
        variant: str = "ddl",
        d_value: int | None = None,
        conv_kernel: int = 4,
        residual_update: str = "delta",
        mapping: str = "k_map",
        v_source: str = "context",
        v_activation: str = "none",
        v_scale: float = 1.0,
        v_bias: bool = False,
        beta_init: float = 0.5,
        beta_hidden: int | None = None,
        k_eps: float = 1e-6,
        sinkhorn_iterations: int = 20,
        value_residual: bool = False,
        rebuild_state: bool = False,
        budgets: list[str] | None = None,
        sliced_from: str | None = None,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        # None is filled in by `validate`, as for the next one, `d_value` and `budgets`.
        self.head_dim: Any = head_dim
        self.intermediate_size: Any = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.qk_norm = qk_norm
        self.rope_before_qk_norm = rope_before_qk_norm
        self.initializer_range = initializer_range
        self.variant = PAPER_NAMES.get(variant, variant)
        self.d_value: Any = d_value
        self.conv_kernel = conv_kernel
        self.residual_update = residual_update
        self.mapping = mapping
        self.v_source = v_source
        self.v_activation = v_activation
        self.v_scale = v_scale
        self.v_bias = v_bias
        self.beta_init = beta_init
        self.beta_hidden = beta_hidden
        self.k_eps = k_eps
        self.sinkhorn_iterations = sinkhorn_iterations
        self.value_residual = value_residual
        self.rebuild_state = rebuild_state
        self.budgets: Any = budgets
        self.sliced_from = sliced_from
        self.use_cache = use_cache
        self.validate()
        super().__init__(
            **{
                "pad_token_id": pad_token_id,
                "bos_token_id": bos_token_id,
                "eos_token_id": eos_token_id,
                "tie_word_embeddings": tie_word_embeddings,
                **kwargs,
            }
        )

    @classmethod
    def preset(cls, name: str, **values: Any) -> "DdlConfig":
        """Return a configuration with the choices of one public source.

        Args:
            name: paper, reference-code or ddl-rs.
            **values: everything else; a value given here wins.

        Raises:
            ValueError: for another name.
        """
        return cls(**preset_settings(name, values))

    @property
    def preset_name(self) -> str | None:
        """The preset whose choices these are, whatever the sizes; None if there is none."""
        return preset_of(self)

    @property
    def is_matrix(self) -> bool:
        """Whether the variant has a matrix state."""
        return VARIANTS[self.variant][0]

    @property
    def compression(self) -> str | None:
        """How a matrix state is read: token, channel, or None for a vector."""
        return VARIANTS[self.variant][1]

    @property
    def embed_conv(self) -> bool:
        """Whether a convolution over time spreads the embedding over the value channels."""
        return VARIANTS[self.variant][2]

    @property
    def conv_slots(self) -> int:
        """Convolution histories that each layer of a cache holds; 0 where keys and values do."""
        if self.conv_kernel == 1:
            return 0  # No convolution looks back.
        if self.compression == "token":
            # Both reads of a block, the embedding in the first layer and the last read in the last.
            return 3 + self.embed_conv
        return int(self.embed_conv)

    @property
    def layer_types(self) -> list[str]:
        """Kind of cache of each layer, as transformers names them."""
        kind = "hybrid" if self.conv_slots else "full_attention"
        return [kind] * self.num_hidden_layers

    @layer_types.setter
    def layer_types(self, value: object) -> None:
        """Ignore what an older file says: it follows from the variant."""

    @property
    def number_of_conv_states(self) -> int:
        """What a hybrid layer of a cache is built for."""
        return max(1, self.conv_slots)

    @number_of_conv_states.setter
    def number_of_conv_states(self, value: object) -> None:
        """Ignore what an older file says: it follows from the variant."""

    def budget_list(self) -> list[DdlBudget]:
        """Return the trained budgets that fit this shape, each once; else the full one.

        A model loaded with fewer layers no longer has its deeper budgets.
        """
        full = DdlBudget.full(self)
        parsed = [DdlBudget.parse(text) for text in self.budgets]
        return list(dict.fromkeys(budget for budget in parsed if budget <= full)) or [full]

    def validate(self) -> None:
        """Check the values and fill in what follows from others.

        Raises:
            ValueError: with the value, the allowed range and the fix.
        """
        _require_transformers()
        validate_ddl_settings(self)
        if self.budgets is None:
            self.budgets = [str(DdlBudget.full(self))]
        if isinstance(self.budgets, str):
            raise ValueError(f"budgets {self.budgets!r} must be a list of texts such as '4:6'")
        self.budgets = [str(DdlBudget.parse(text)) for text in self.budgets]


def _require_transformers() -> None:
    """Refuse releases whose caches cannot hold what generation needs."""
    found = tuple(map(int, transformers.__version__.split(".")[:2]))
    if found < TRANSFORMERS_FLOOR:
        floor = ".".join(map(str, TRANSFORMERS_FLOOR))
        raise ImportError(
            f"Deep Delta Learning decoders need transformers >= {floor}, this is "
            f"{transformers.__version__}: pip install 'transformers>={floor}'"
        )
