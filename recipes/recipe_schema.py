"""The keys of a recipe, with their types and defaults. Imports neither torch nor Hydra.

A recipe is one nested dataclass. Hydra merges a YAML file and the ``section.key=value`` overrides
into it, so a wrong type or an unknown key fails before anything runs. `recipe_validation` checks
the values against each other.
"""

from dataclasses import dataclass, field
from typing import Any

from .ddl_schema import DdlRecipe
from .recipe_sections import EvaluationSection, ExportSection, OptimizerSection, TextSection


@dataclass
class ModelSection:
    """Shape of a Delta-Matryoshka encoder and the budgets it is trained for.

    Attributes:
        vocab_size: rows of the embedding; None takes the tokenizer's size.
        hidden_size: hidden channels.
        num_hidden_layers: layers.
        num_attention_heads: heads per layer.
        head_dim: channels per head; None means hidden_size // num_attention_heads.
        intermediate_size: MLP channels.
        max_position_embeddings: longest sequence, in tokens.
        width_budgets: shares of the MLP channels, in (0, 1]; the full shape of the model must be
            among its budgets, and one that all others contain.
        head_budgets: numbers of heads; empty means about half, three quarters and all.
        depth_budgets: numbers of layers; empty means about half, three quarters and all.
        extra_budgets: further budgets as quoted text, such as "0.5:2:2:64" (hidden width 64).
        init_from: checkpoint to start from, a folder or a Hub name, of the ModernBERT family or a
            Delta-Matryoshka encoder; its sizes, and those of its delta, replace those given here.
        reorder_by_importance: sort heads, MLP channels and hidden channels of ``init_from`` by
            importance before training, so that prefixes keep what matters. None does so unless
            the checkpoint is nested: its units are in order.
        initializer_range: standard deviation of the initial weights; narrow models learn faster
            with more than ModernBERT's 0.02.
        attn_implementation: sdpa, eager, flash_attention_2 or flex_attention; auto takes eager for
            bfloat16 on a CPU, where its backward pass is faster, and sdpa elsewhere.
        base_ratio: share of the MLP channels that the base slice has, in (0, 1); what lies outside
            the base slice is the delta.
        base_heads: heads of the base slice; None means half.
        delta: dense (the rest of each matrix), dictionary (built from atoms that all layers share)
            or low_rank (two thin matrices a layer).
        delta_atoms: atoms of each dictionary.
        delta_rank: rank of an atom, or of the thin matrices.
        convert_delta: give the delta of ``init_from`` the form, sizes and base slice of the keys
            above: exactly where it becomes dense, as well as they can hold it elsewhere.
        conditioned_norms: let the gains of the norms depend on the budget.
        exit_affine: give each depth its own change of the final norm.
        token_routing: train a preview network that can send chosen tokens only through the delta.
        routing_layer: layers before this one run on all tokens.
        delta_token_ratio: share of the tokens that get the delta in the routed passes of training,
            in (0, 1); None means 0.35. ``export.delta_token_ratio`` is that of the slices.
        drop_path: stochastic depth of the smaller budgets in training, 0 at the first layer to this
            rate at the last, in [0, 1).
        tap_layers: layers, counted from 0, after which budgets are compared with the largest one;
            a model of another depth is compared at the same relative depths. They are layers of
            ``num_hidden_layers``, also beside ``init.target``, or of ``init_from``. Empty means
            the depths of the layers 4, 8 and 11 of 12.
    """

    vocab_size: int | None = None
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    head_dim: int | None = None
    intermediate_size: int = 256
    max_position_embeddings: int = 512
    width_budgets: list[float] = field(default_factory=lambda: [0.5, 0.75, 1.0])
    head_budgets: list[int] = field(default_factory=list)
    depth_budgets: list[int] = field(default_factory=list)
    extra_budgets: list[str] = field(default_factory=list)
    init_from: str | None = None
    reorder_by_importance: bool | None = None
    initializer_range: float = 0.02
    attn_implementation: str = "auto"
    base_ratio: float = 0.5
    base_heads: int | None = None
    delta: str = "dense"
    delta_atoms: int = 16
    delta_rank: int = 64
    convert_delta: bool = False
    conditioned_norms: bool = False
    exit_affine: bool = False
    token_routing: bool = False
    routing_layer: int = 1
    delta_token_ratio: float | None = None
    drop_path: float = 0.0
    tap_layers: list[int] = field(default_factory=list)


@dataclass
class InitSection:
    """Start from a small checkpoint inside a larger model: mini inside base inside large.

    Attributes:
        base: checkpoint to grow, a folder or a Hub name; it becomes one of the budgets, exactly.
            The full shape, and the budget that all others contain, join where they are missing.
            None grows nothing.
        target: checkpoint whose sizes the grown model takes, a folder or a Hub name; None takes
            the sizes of ``model``.
        delta_from_target: fill what lies outside ``base`` from the weights of ``target``.
    """

    base: str | None = None
    target: str | None = None
    delta_from_target: bool = False


@dataclass
class DataSection(TextSection):
    """Where the text comes from and how it becomes packed rows.

    Attributes:
        tokenizer: tokenizer to use, a folder or a Hub name; None trains one on the corpus.
        packing: several documents per row, each attending to itself only.
        streaming: tokenize while training instead of beforehand.
        shuffle_buffer: documents held for shuffling when streaming.
        mlm_probability: share of the tokens to predict, in (0, 1).
    """

    tokenizer: str | None = None
    packing: bool = True
    streaming: bool = False
    shuffle_buffer: int = 10_000
    mlm_probability: float = 0.3


@dataclass
class TrainingSection(OptimizerSection):
    """How long and how fast the model learns, and which budgets each step runs.

    Attributes:
        three_phase: packing, residualization, calibration. The weights of ``loss`` are then those
            of the original's phases, each in proportion to the value given.
        phase_ratios: share of the run of each phase; three numbers that sum to 1.
        calibration_budgets: with three_phase, the fixed list of the last phase, as quoted text, or
            smallest, middle, largest, all.
        survival_alpha: prefix depth dropout: budgets in between run to a random depth, and the
            last layer fails with this chance, in [0, 1]. With three_phase it falls to 0.6 and 0.4
            of it. None means 0.5 with three_phase and else no dropout: each runs to its own depth.
        largest_alone: share of the steps, the first ones, that run the largest budget alone, in
            [0, 1); they cost about half.
        only: deltas trains the built delta of model.init_from (atoms and coefficients, or the thin
            matrices) and leaves every other weight as it is, bit for bit, so that an upgrade pack
            of the result fits the model it started from. None trains all weights.
    """

    three_phase: bool = False
    phase_ratios: list[float] = field(default_factory=lambda: [0.33, 0.33, 0.34])
    calibration_budgets: list[str] = field(
        default_factory=lambda: ["smallest", "middle", "largest"]
    )
    survival_alpha: float | None = None
    largest_alone: float = 0.0
    only: str | None = None


@dataclass
class LossSection:
    """Weights of the loss terms of a Delta-Matryoshka encoder; 0 leaves a term out.

    Attributes:
        masked_lm_weight: weight of the masked-LM term.
        largest_share: share of the largest budget in that term, in (0, 1); the other budgets of a
            step divide the rest. None gives all the same.
        largest_share_end: that share at the last step, in (0, 1); it moves there over the second
            half of the run. None keeps it.
        kd_weight: weight of the distillation term (alpha_kd, originally 1.0).
        kd_temperature: softmax temperature of the distillation term (originally 2.0).
        teacher: external teacher, a folder or a Hub name; None distils from the largest budget of
            the same step.
        delta_weight: weight of the delta residual, what a larger budget adds should be what the
            nearest smaller budget of the step lacks (beta_delta, originally 0.7).
        mug_weight: weight of the monotone upgrade, a larger budget must not do worse on any token
            (rho_mug, originally 0.1).
        mug_margin: by how many nats the larger budget should do better.
        cscf_weight: weight of the cross-scale feature alignment (zeta_cscf, originally 0.1).
        cscf_cosine_weight: inside that term, weight of the cosine distance token by token beside
            the distance of means and deviations.
        preview_weight: weight of the regression that trains the preview network.
        budget_penalty_weight: weight of the penalty that keeps the share of routed tokens.
        sparsity_weight: weight of the L1 norm of dictionary coefficients (originally 1e-4).
        orthogonality_weight: weight of the similarity of dictionary atoms.
        packing_weight: weight of the hinge that keeps the delta from outgrowing the base slice
            (gamma_packing, originally 1e-3).
    """

    masked_lm_weight: float = 1.0
    largest_share: float | None = None
    largest_share_end: float | None = None
    kd_weight: float = 1.0
    kd_temperature: float = 1.0
    teacher: str | None = None
    delta_weight: float = 0.0
    mug_weight: float = 0.0
    mug_margin: float = 0.0
    cscf_weight: float = 0.0
    cscf_cosine_weight: float = 0.0
    preview_weight: float = 0.0
    budget_penalty_weight: float = 0.0
    sparsity_weight: float = 0.0
    orthogonality_weight: float = 0.0
    packing_weight: float = 0.0


@dataclass
class DeltaExportSection(ExportSection):
    """What is written for others to load.

    Attributes:
        delta_token_ratio: share of the tokens that get the delta in the exported slices that have
            one, in (0, 1], and in the evaluation after training, whose numbers their cards show;
            None means all. model/ runs the delta on all tokens until its configuration says
            otherwise. ``nestling evaluate`` and ``nestling export`` choose their own share.
    """

    delta_token_ratio: float | None = None


@dataclass
class DeltaEncoderRecipe:
    """A run of the Delta-Matryoshka encoder: train, evaluate, export.

    Attributes:
        output_dir: receives model/, best/ (with training.eval_steps), metrics.json, events.jsonl,
            recipe.yaml and checkpoints.
    """

    family: str = "delta_encoder"
    seed: int = 0
    output_dir: str = "runs/delta_encoder"
    model: ModelSection = field(default_factory=ModelSection)
    init: InitSection = field(default_factory=InitSection)
    data: DataSection = field(default_factory=DataSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    loss: LossSection = field(default_factory=LossSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    export: DeltaExportSection = field(default_factory=DeltaExportSection)


# Family -> the dataclass of its recipes. Another family's recipe joins the union with `|`.
RECIPE_SCHEMAS: dict[str, type[Any]] = {"delta_encoder": DeltaEncoderRecipe, "ddl": DdlRecipe}
Recipe = DeltaEncoderRecipe | DdlRecipe

DELTA_KINDS = ("dense", "dictionary", "low_rank")
TRAINED_PARTS = ("deltas",)
