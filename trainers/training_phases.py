"""The three phases of Delta-Matryoshka++ training, as schedules. Torch-free.

Packing presses the model into its smallest budget, residualization trains what larger budgets add
and the router, calibration settles a fixed list of budgets at a low learning rate.

The original has two sets of loss weights. Without phases they are constants
(`WEIGHTS_WITHOUT_PHASES`). With phases, alpha_kd stays and the others take the values below. Our
terms and its weights:

| term | original weight |
|---|---|
| `distillation` | alpha_kd |
| `delta_residual` | beta_delta |
| `monotone_upgrade` | rho_mug |
| `cross_scale_features` | zeta_cscf |
| `coefficient_sparsity` | eta_dds_sparsity |
| `packing_regularizer` | gamma_packing |
| `atom_orthogonality`, `preview_benefit`, `budget_penalty` | none: it never ran these |

The numbers were set for its formulas, which differ from ours in scale, and it summed over budgets
where we average; they are a starting point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

from .schedules import Constant, CosineInterpolation, Phase, Phases, Schedule

# The last three are ours.
WEIGHTS_WITHOUT_PHASES: Mapping[str, float] = {
    "masked_lm": 1.0,
    "distillation": 1.0,
    "delta_residual": 0.7,
    "monotone_upgrade": 0.1,
    "cross_scale_features": 0.1,
    "coefficient_sparsity": 1e-4,
    "packing_regularizer": 1e-3,
    "atom_orthogonality": 1e-4,
    "preview_benefit": 1.0,
    "budget_penalty": 1.0,
}

BudgetMode = Literal["oversample_smallest", "sandwich", "fixed"]


@dataclass(frozen=True)
class TrainingPhase:
    """One phase.

    Args:
        name: for logs.
        ratio: share of the run in (0, 1].
        weights: weight of each loss term by its name; a term not named has weight 0.
        survival_alpha: alpha of the prefix depth dropout where the phase begins.
        learning_rate_factor: multiplies the learning rate.
        budget_mode: how budgets are drawn: small ones more often, the sandwich rule over the whole
            lattice, or a fixed list.

    Raises:
        ValueError: If alpha, a weight, the factor or the mode is out of range.
    """

    name: str
    ratio: float
    weights: Mapping[str, float] = field(default_factory=dict)
    survival_alpha: float = 0.0
    learning_rate_factor: float = 1.0
    budget_mode: BudgetMode = "sandwich"

    def __post_init__(self) -> None:
        """Check the numbers; `TrainingPhases` checks the ratios together."""
        if not 0.0 <= self.survival_alpha <= 1.0:
            raise ValueError(
                f"phase {self.name}: survival_alpha is {self.survival_alpha}, it must lie in [0, 1]"
            )
        if self.learning_rate_factor <= 0.0:
            raise ValueError(
                f"phase {self.name}: learning_rate_factor is {self.learning_rate_factor}, it must "
                "be above 0"
            )
        negative = {name: weight for name, weight in self.weights.items() if weight < 0}
        if negative:
            raise ValueError(f"phase {self.name}: weights {negative} must be 0 or more")
        if self.budget_mode not in get_args(BudgetMode):
            raise ValueError(
                f"phase {self.name}: budget_mode is {self.budget_mode!r}, it must be one of "
                f"{', '.join(get_args(BudgetMode))}"
            )


PACKING = TrainingPhase(
    name="packing",
    ratio=0.33,
    weights={
        "masked_lm": 1.0,
        "distillation": 1.0,
        "delta_residual": 0.3,
        "coefficient_sparsity": 1e-4,
        "atom_orthogonality": 1e-4,
        "packing_regularizer": 1e-3,
    },
    survival_alpha=0.5,
    budget_mode="oversample_smallest",
)
RESIDUALIZATION = TrainingPhase(
    name="residualization",
    ratio=0.33,
    weights={
        "masked_lm": 1.0,
        "distillation": 1.0,
        "delta_residual": 0.7,
        "monotone_upgrade": 0.05,
        "cross_scale_features": 0.1,
        "coefficient_sparsity": 1e-4,
        "atom_orthogonality": 1e-4,
        "preview_benefit": 1.0,
        "budget_penalty": 1.0,
    },
    survival_alpha=0.3,
)
CALIBRATION = TrainingPhase(
    name="calibration",
    ratio=0.34,
    weights={
        "masked_lm": 1.0,
        "distillation": 1.0,
        "delta_residual": 0.5,
        "monotone_upgrade": 0.1,
        "cross_scale_features": 0.2,
        "coefficient_sparsity": 5e-5,
        "atom_orthogonality": 1e-4,
        "preview_benefit": 1.0,
        "budget_penalty": 1.0,
    },
    survival_alpha=0.2,
    learning_rate_factor=0.3,
    budget_mode="fixed",
)


@dataclass(frozen=True)
class TrainingPhases:
    """Phases one after the other, read as schedules of the step.

    Change numbers with `dataclasses.replace(PACKING, ratio=0.5)` and so on. The defaults are those
    of the original, except the fixed list of budgets in calibration and the weights it lacks.

    Args:
        phases: in order; the ratios sum to 1.
        lr_ramp_ratio: share of the run, at the start of a phase with another learning-rate factor,
            over which the factor moves there along half a cosine. The original steps at once, and
            so does a run too short for the ramp to have several steps.

    Raises:
        ValueError: If ratios do not sum to 1, names repeat, or the ramp is not shorter than every
            phase.
    """

    phases: Sequence[TrainingPhase] = (PACKING, RESIDUALIZATION, CALIBRATION)
    lr_ramp_ratio: float = 0.05

    def __post_init__(self) -> None:
        """Check the arguments."""
        self._constants([0.0] * len(self.phases))  # the ratios
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phase names are {names}, each may occur once")
        shortest = min(phase.ratio for phase in self.phases)
        if not 0.0 < self.lr_ramp_ratio < shortest:
            raise ValueError(
                f"lr_ramp_ratio is {self.lr_ramp_ratio}, it must lie between 0 and the ratio of "
                f"the shortest phase, {shortest}"
            )

    def weights(self) -> dict[str, Schedule]:
        """Return the weight schedule of every term that some phase names."""
        names = dict.fromkeys(name for phase in self.phases for name in phase.weights)
        return {
            name: self._constants([phase.weights.get(name, 0.0) for phase in self.phases])
            for name in names
        }

    def survival_alpha(self) -> Schedule:
        """Return alpha of the prefix depth dropout.

        Inside a phase it moves along half a cosine to the value of the next; in the last it stays.
        """
        values = [phase.survival_alpha for phase in self.phases]
        ends = [*values[1:], values[-1]]
        return Phases(
            [
                Phase(phase.ratio, CosineInterpolation(start, end))
                for phase, start, end in zip(self.phases, values, ends, strict=True)
            ]
        )

    def learning_rate_factor(self) -> Schedule:
        """Return the factor on top of warm-up and decay, without jumps (see `lr_ramp_ratio`)."""
        first = self.phases[0]
        parts = [Phase(first.ratio, Constant(first.learning_rate_factor))]
        for before, phase in pairwise(self.phases):
            ramp = CosineInterpolation(before.learning_rate_factor, phase.learning_rate_factor)
            parts.append(Phase(self.lr_ramp_ratio, ramp))
            rest = phase.ratio - self.lr_ramp_ratio
            parts.append(Phase(rest, Constant(phase.learning_rate_factor)))
        return Phases(parts)

    def phase_name(self, step: int, total_steps: int) -> str:
        """Return the name of the phase that `step` falls in."""
        return self._phase_at(step, total_steps).name

    def budget_mode(self, step: int, total_steps: int) -> BudgetMode:
        """Return how budgets are drawn at `step`."""
        return self._phase_at(step, total_steps).budget_mode

    def _phase_at(self, step: int, total_steps: int) -> TrainingPhase:
        index, _, _ = self._constants([0.0] * len(self.phases)).phase_at(step, total_steps)
        return self.phases[index]

    def _constants(self, values: Sequence[float]) -> Phases:
        return Phases(
            [
                Phase(phase.ratio, Constant(value))
                for phase, value in zip(self.phases, values, strict=True)
            ]
        )
