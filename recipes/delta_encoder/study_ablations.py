"""What an ablation changes in the nested recipe: one part at a time, by keys anyone can set."""

_DICTIONARY = ("model.delta=dictionary", "model.delta_atoms=8", "model.delta_rank=8")
_SMALL_ATOMS = ("loss.sparsity_weight=1.0e-4", "loss.orthogonality_weight=1.0e-4")
_ROUTING = (
    "model.token_routing=true", "loss.preview_weight=1.0", "loss.budget_penalty_weight=1.0",
)  # fmt: skip
_BUDGET_TERMS = (
    "loss.delta_weight=0.7", "loss.mug_weight=0.1", "loss.cscf_weight=0.1",
    "loss.packing_weight=1.0e-3",
)  # fmt: skip

# Name -> changes to the recipe of the study. The weights are those of the original.
ABLATION_CHANGES: dict[str, tuple[str, ...]] = {
    "constant-share": ("loss.largest_share_end=null",),
    "equal-shares": ("loss.largest_share=null", "loss.largest_share_end=null"),
    "larger-share": ("loss.largest_share=0.8",),
    "no-distillation": ("loss.kd_weight=0",),
    "distillation-as-original": ("loss.kd_weight=1.0",),
    # Eight atoms of rank 8 hold as many numbers as thin matrices of rank 16 in four layers.
    "dictionary": _DICTIONARY,
    "dictionary-regularised": (*_DICTIONARY, *_SMALL_ATOMS),
    "low-rank": ("model.delta=low_rank", "model.delta_rank=16"),
    "conditioned-norms": ("model.conditioned_norms=true",),
    "exit-affine": ("model.exit_affine=true",),
    "largest-first": ("training.largest_alone=0.5", "loss.largest_share_end=null"),
    "depth-dropout": ("training.survival_alpha=0.5",),
    "drop-path": ("model.drop_path=0.2",),
    "token-routing": _ROUTING,
    "delta-residual": ("loss.delta_weight=0.7",),
    "monotone-upgrade": ("loss.mug_weight=0.1",),
    "cross-scale-features": ("loss.cscf_weight=0.1",),
    "packing": ("loss.packing_weight=1.0e-3",),
    # The order of the phases alone, then with the terms that they weigh.
    "three-phases": ("training.three_phase=true", "training.survival_alpha=0"),
    "phases-and-terms": ("training.three_phase=true", *_BUDGET_TERMS),
    "all-parts": (
        "training.three_phase=true",
        "model.conditioned_norms=true",
        "model.exit_affine=true",
        "model.drop_path=0.2",
        *_DICTIONARY,
        *_SMALL_ATOMS,
        *_ROUTING,
        *_BUDGET_TERMS,
    ),
}
