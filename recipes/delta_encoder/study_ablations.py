"""What an ablation changes in the nested recipe: one part at a time, by keys anyone can set."""

# Name -> changes to the recipe of the study. The weights are those of the original.
ABLATION_CHANGES: dict[str, tuple[str, ...]] = {
    "equal-shares": ("loss.largest_share=null",),
    "no-distillation": ("loss.kd_weight=0",),
    "distillation-as-original": ("loss.kd_weight=1.0",),
    # Eight atoms of rank 8 hold as many numbers as thin matrices of rank 16 in four layers.
    "dictionary": ("model.delta=dictionary", "model.delta_atoms=8", "model.delta_rank=8"),
    "low-rank": ("model.delta=low_rank", "model.delta_rank=16"),
    "conditioned-norms": ("model.conditioned_norms=true",),
    "exit-affine": ("model.exit_affine=true",),
    "largest-first": ("training.largest_alone=0.5",),
    "depth-dropout": ("training.survival_alpha=0.5",),
    "drop-path": ("model.drop_path=0.2",),
    "token-routing": (
        "model.token_routing=true",
        "loss.preview_weight=1.0",
        "loss.budget_penalty_weight=1.0",
    ),
    "delta-residual": ("loss.delta_weight=0.7",),
    "monotone-upgrade": ("loss.mug_weight=0.1",),
    "cross-scale-features": ("loss.cscf_weight=0.1",),
    "packing": ("loss.packing_weight=1.0e-3",),
    "three-phases": ("training.three_phase=true", "training.survival_alpha=0"),
}
