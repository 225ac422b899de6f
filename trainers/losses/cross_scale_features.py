"""Cross-scale feature alignment: sub-models keep the feature statistics of the largest one."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..loss_term import LossSum, LossTerm

_VARIANCE_FLOOR = 1e-6  # inside the root: one token has variance 0, where the root has no slope


class CrossScaleFeatureLoss(LossTerm):
    """Distance of per-sequence feature means and deviations, summed over sequences.

    At each tap the states of student and teacher are cut to their common leading n channels and
    layer-normalised over these, without affine. With mu and sigma the mean and the standard
    deviation of each channel over the real tokens of one sequence, the loss of a sequence is
    `mean_taps (||mu_S - sg(mu_T)||^2 + ||sigma_S - sg(sigma_T)||^2) / n
     + c * mean_taps mean_t (1 - cos(x_S,t, sg(x_T,t)))`, in fp32.

    Statistics are per sequence, so the loss does not depend on the other rows of the batch. A
    packed row is one sequence. Taps are matched by position: take them with `tap_depths` at the
    same relative depths on both sides, whatever the number of layers.

    Args:
        token_cosine_weight: c >= 0, weight of the token-wise cosine distance.

    Raises:
        ValueError: If the weight is negative or not finite.

    Source: the cross-scale feature alignment (CSCF) of Delta-Matryoshka++, on normalised features
    and without padding. Matching the full covariance would be CORAL, Sun and Saenko,
    https://arxiv.org/abs/1607.01719.
    """

    name = "cross_scale_features"
    unit = "sequence"

    def __init__(self, token_cosine_weight: float = 0.0) -> None:
        super().__init__()
        if not math.isfinite(token_cosine_weight) or token_cosine_weight < 0:
            raise ValueError(
                f"token_cosine_weight is {token_cosine_weight}, it must be a finite number from 0 "
                "up"
            )
        self.token_cosine_weight = token_cosine_weight

    def forward(
        self,
        student_taps: Sequence[Tensor],
        teacher_taps: Sequence[Tensor],
        attention_mask: Tensor,
    ) -> LossSum:
        """Sum the distance over the rows.

        Args:
            student_taps: one `(batch, tokens, n_S)` per tap.
            teacher_taps: as many `(batch, tokens, n_T)`, at the same relative depths; detached
                here.
            attention_mask: `(batch, tokens)`, 0 for padding, anything above 0 (1, or the document
                number in a packed row) for a real token.

        Returns:
            The sum and the number of rows. A row without real tokens adds 0.

        Raises:
            ValueError: If the taps do not pair up or do not fit the mask.
        """
        self._check_shapes(student_taps, teacher_taps, attention_mask)
        is_real = attention_mask.gt(0)[..., None].float()
        pairs = zip(student_taps, teacher_taps, strict=True)
        per_tap = [self._tap_distance(student, teacher, is_real) for student, teacher in pairs]
        return LossSum(torch.stack(per_tap).mean(0).sum(), len(attention_mask))

    def _tap_distance(self, student: Tensor, teacher: Tensor, is_real: Tensor) -> Tensor:
        """Distance of each row at one tap: `(batch,)`."""
        channels = min(student.shape[-1], teacher.shape[-1])
        own = F.layer_norm(student[..., :channels].float(), (channels,))
        goal = F.layer_norm(teacher[..., :channels].detach().float(), (channels,))
        distance = torch.zeros(len(own), device=own.device)
        for ours, theirs in zip(_moments(own, is_real), _moments(goal, is_real), strict=True):
            distance = distance + (ours - theirs).square().mean(-1)
        if self.token_cosine_weight:
            apart = 1 - F.cosine_similarity(own, goal, dim=-1)[..., None]
            distance = distance + self.token_cosine_weight * _token_mean(apart, is_real)[:, 0]
        return distance

    def _check_shapes(
        self, student_taps: Sequence[Tensor], teacher_taps: Sequence[Tensor], mask: Tensor
    ) -> None:
        if not student_taps or len(student_taps) != len(teacher_taps):
            raise ValueError(
                f"cross_scale_features: {len(student_taps)} student taps and {len(teacher_taps)} "
                "teacher taps, there must be as many and at least 1; take both with tap_depths"
            )
        for tap in (*student_taps, *teacher_taps):
            if tap.dim() != 3 or tap.shape[:2] != mask.shape:
                raise ValueError(
                    f"cross_scale_features: tap {tuple(tap.shape)} does not fit the attention mask "
                    f"{tuple(mask.shape)}; taps are (batch, tokens, hidden), masks (batch, tokens)"
                )

    def extra_repr(self) -> str:
        """Show the weight in `repr`."""
        return f"token_cosine_weight={self.token_cosine_weight}"


def _token_mean(values: Tensor, is_real: Tensor) -> Tensor:
    """Mean over real tokens: `(batch, tokens, n)` -> `(batch, n)`; 0 where there are none."""
    return (values * is_real).sum(1) / is_real.sum(1).clamp(min=1)


def _moments(features: Tensor, is_real: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over real tokens, each `(batch, n)`."""
    mean = _token_mean(features, is_real)
    variance = _token_mean((features - mean[:, None]).square(), is_real)
    return mean, (variance + _VARIANCE_FLOOR).sqrt()


def relative_taps(layers: Sequence[int], total_layers: int) -> tuple[float, ...]:
    """Turn layer indices of one model into relative depths.

    Args:
        layers: indices from 0, as the original lists them: 11 is the output of the last of 12.
        total_layers: number of layers of that model.

    Returns:
        `(index + 1) / total_layers` for each, in (0, 1].

    Raises:
        ValueError: If an index is not a layer of the model.
    """
    for layer in layers:
        if not 0 <= layer < total_layers:
            raise ValueError(
                f"tap layer {layer} does not exist, the model has layers 0 to {total_layers - 1}"
            )
    return tuple((layer + 1) / total_layers for layer in layers)


def tap_depths(taps: Sequence[float], depth: int) -> tuple[int, ...]:
    """Place relative taps in a model of any depth.

    Args:
        taps: relative depths in (0, 1].
        depth: number of layers, >= 1.

    Returns:
        For each tap the number of layers that have run, in 1..depth: `tap * depth` rounded, halves
        up, at least 1. There is one for each tap, even where a shallow model repeats a layer.

    Raises:
        ValueError: If a tap or the depth is out of range.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}, a model with taps has 1 layer or more")
    for tap in taps:
        if not 0.0 < tap <= 1.0:
            raise ValueError(
                f"tap {tap} must lie in (0, 1], a share of the depth; relative_taps converts "
                "layer indices"
            )
    # The small shift keeps a half that binary fractions miss by a hair on the upper side.
    return tuple(max(1, math.floor(tap * depth + 0.5 + 1e-9)) for tap in taps)
