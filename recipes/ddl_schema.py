"""The keys of a Deep Delta Learning recipe. Imports neither torch nor Hydra."""

from dataclasses import dataclass, field

from .recipe_sections import EvaluationSection, ExportSection, OptimizerSection, TextSection


@dataclass
class DdlModelSection:
    """Shape of the decoder and its residual.

    Attributes:
        preset: paper, reference-code or ddl-rs: where the value comes from, beta_init, k_eps, the
            order of rotation and norm and how the width of the MLP is rounded, unless a key below
            says otherwise. None means the defaults of the configuration, which are those of ddl-rs.
        variant: baseline, ddl, ddl-tokenconv, ddl-ec, ddl-cc, ddl-cc-ec, or the paper's name.
        d_value: value channels of the state; None means 4 for a matrix state and 1 for a vector.
        vocab_size: rows of the embedding; None takes the tokenizer's size.
        hidden_size: channels.
        num_hidden_layers: blocks.
        num_attention_heads: heads.
        head_dim: channels per head; None means hidden_size // num_attention_heads.
        intermediate_size: channels of the gated MLP; None means ceil(8 hidden_size / 3), rounded
            down instead with the presets paper and reference-code.
        max_position_embeddings: longest sequence, in tokens; None takes data.max_length, but 128 at
            least.
        rope_theta: base of the rotary positions.
        qk_norm: normalise queries and keys.
        rope_before_qk_norm: rotate first; None asks the preset.
        conv_kernel: columns of the causal convolutions.
        residual_update: delta, or a control of it (docs/ddl.md lists them).
        sinkhorn_iterations: alternations of the control mhc.
        value_residual: mix the attention values of the first layer into the others.
        mapping: k_map or v_map.
        v_source: context, input or backbone; None asks the preset, as for the next five.
        v_activation: none or sigmoid.
        v_scale: largest value with the sigmoid.
        v_bias: give the value a bias.
        beta_init: beta at the start, in the open interval (0, 2).
        k_eps: guard of the direction's norm.
        beta_hidden: hidden units of a two-layer gate; None is a single linear map.
        rebuild_state: keep one state in training and rebuild the others.
        tie_word_embeddings: the head is the embedding.
        initializer_range: standard deviation of initial weights.
        value_budgets: value channels that are budgets; empty means all of them only.
        depth_budgets: depths that are budgets; empty means all layers only.
        init_from: folder to start from: a model of this family, or an official checkpoint in
            safetensors. Its shape replaces the keys above.
        attn_implementation: auto, sdpa, eager, flash_attention_2 or flex_attention.
    """

    preset: str | None = None
    variant: str = "ddl-cc"
    d_value: int | None = None
    vocab_size: int | None = None
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    head_dim: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int | None = None
    rope_theta: float = 10_000.0
    qk_norm: bool = True
    rope_before_qk_norm: bool | None = None
    conv_kernel: int = 4
    residual_update: str = "delta"
    sinkhorn_iterations: int = 20
    value_residual: bool = False
    mapping: str = "k_map"
    v_source: str | None = None
    v_activation: str | None = None
    v_scale: float | None = None
    v_bias: bool | None = None
    beta_init: float | None = None
    k_eps: float | None = None
    beta_hidden: int | None = None
    rebuild_state: bool = False
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    value_budgets: list[int] = field(default_factory=list)
    depth_budgets: list[int] = field(default_factory=list)
    init_from: str | None = None
    attn_implementation: str = "auto"


@dataclass
class DdlDataSection(TextSection):
    """Where the tokens come from: text of any kind, or numbers.

    Attributes:
        tokenizer: bytes (256 bytes and an end mark), train (a byte-level BPE of vocab_size), ids
            (``path`` and ``valid_path`` hold token ids), or a folder or Hub name. With bytes a
            .txt file of numbers is read as ids, too, unless ``source`` says files.
        valid_path: file or folder of the validation split; None holds out part of ``path``.
        train_tokens: token ids as text, such as "1 2 3", instead of a path.
        valid_tokens: token ids of the validation split.
    """

    tokenizer: str = "bytes"
    valid_path: str | None = None
    train_tokens: str | None = None
    valid_tokens: str | None = None


@dataclass
class DdlTrainingSection(OptimizerSection):
    """How long and how fast the model learns, with the original's optimizer.

    Attributes:
        warmup_steps: optimizer steps that warm up; None uses ``warmup_ratio``.
        adam_beta1: decay of the first moment, in [0, 1).
        adam_beta2: decay of the second moment, in [0, 1).
        adam_epsilon: added to the root of the second moment.
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    min_lr_ratio: float = 0.0
    warmup_ratio: float = 0.0
    warmup_steps: int | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-5


@dataclass
class DdlLossSection:
    """Weights of the loss terms; 0 leaves a term out.

    Attributes:
        next_token_weight: weight of the next-token cross-entropy.
        largest_share: share of the largest budget in that term, in (0, 1); None gives all the same.
        kd_weight: weight of the distillation from the largest budget of the step to the others.
        kd_temperature: softmax temperature of the distillation.
    """

    next_token_weight: float = 1.0
    largest_share: float | None = None
    kd_weight: float = 0.0
    kd_temperature: float = 1.0


@dataclass
class DdlEvaluationSection(EvaluationSection):
    """What is measured after training.

    Attributes:
        spectral_batches: batches of each snapshot of gates and spectrum; 0 takes none.
    """

    calibration_fraction: float = 0.0
    spectral_batches: int = 1


@dataclass
class DdlRecipe:
    """A run of a Deep Delta Learning decoder: train, evaluate, export.

    Attributes:
        output_dir: receives model/, best/ (with training.eval_steps), metrics.json, events.jsonl,
            recipe.yaml, checkpoints and the layout of the original tool.
    """

    family: str = "ddl"
    seed: int = 0
    output_dir: str = "runs/ddl"
    model: DdlModelSection = field(default_factory=DdlModelSection)
    data: DdlDataSection = field(default_factory=DdlDataSection)
    training: DdlTrainingSection = field(default_factory=DdlTrainingSection)
    loss: DdlLossSection = field(default_factory=DdlLossSection)
    evaluation: DdlEvaluationSection = field(default_factory=DdlEvaluationSection)
    export: ExportSection = field(default_factory=ExportSection)
