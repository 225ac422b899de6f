"""Grow a small encoder into a larger one that contains it: mini inside base inside large.

A model nested in a larger one is its leading corner, and norms take their statistics over the
channels present. So a small model copied into the leading corners of a larger one is still there,
exactly: ``budget(small)`` of the result computes what the small model computes. Training starts
from there with the small model as one of the budgets.

What fills the rest (`grow`): new units read with random weights and write with zeros. The full
model then starts as the small one, too, where only heads, MLP channels and layers are new. New
hidden channels change the statistics of every norm, so with them the full model starts near the
small one at best, and only ``budget(small)`` is exact.

Or an independently trained larger checkpoint fills the rest (`init_delta_from_target`), after its
units have been permuted to match the small model's. The full model then computes neither
checkpoint's function: it is a starting point, whose worth has to be measured.

The other valid way to nest two sizes does not grow: start from the *larger* checkpoint alone, sort
its units (`reorder_by_importance`) and train the smaller budgets with the full model as teacher.
That keeps the larger model's quality at step 0; growing keeps the smaller model's.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from ..configuration.configuration_delta_encoder import DeltaEncoderConfig
from ..configuration.delta_budget import DeltaBudget, exact_width
from .delta_encoder_heads import DeltaEncoderForMaskedLM
from .importance_ordering import reorder_units
from .modernbert_weights import from_modernbert_config, load_modernbert
from .nested_layers import NestedLinear
from .unit_alignment import align_by_activations, align_by_weights

MUST_AGREE = (
    "vocab_size head_dim local_attention global_rope_theta local_rope_theta hidden_activation "
    "classifier_activation norm_eps norm_bias attention_bias mlp_bias decoder_bias "
    "classifier_bias tie_word_embeddings"
).split()
MAY_GROW = ("hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")
# The modules every encoder has; anything else is a part that only one shape of model has.
PLAIN_MODULES = {"embeddings", "layers", "final_norm", "head", "decoder"}
WRITERS = ("output", "down")
READERS = ("query_key_value", "up", "gate", "dense")


class GrownEncoder(NamedTuple):
    """A grown model and the budget at which it is the model it was grown from."""

    model: DeltaEncoderForMaskedLM
    small: DeltaBudget


def small_budget(small: DeltaEncoderConfig, large: DeltaEncoderConfig) -> DeltaBudget:
    """Return the budget that cuts a model of ``large`` to the shape of ``small``.

    Raises:
        ValueError: if ``large`` cannot contain ``small``, naming every reason.
    """
    require_containment(small, large)
    widths = tuple(map(exact_width, small.intermediate_sizes(), large.intermediate_sizes()))
    hidden = None if small.hidden_size == large.hidden_size else small.hidden_size
    return DeltaBudget(widths, small.num_attention_heads, small.num_hidden_layers, hidden)


def require_containment(small: DeltaEncoderConfig, large: DeltaEncoderConfig) -> None:
    """Refuse a larger shape of which the smaller one is not a leading corner.

    The vocabulary must be the same, not merely start the same: further tokens would take part in
    the softmax of the small model, whose loss would no longer be its own.

    Raises:
        ValueError: naming every value that stands in the way.
    """
    wrong = []
    for name in MUST_AGREE:
        mine, theirs = getattr(small, name), getattr(large, name)
        if mine != theirs:
            wrong.append(f"{name} {theirs!r} must be {mine!r}, as in the small model")
    for name in MAY_GROW:
        mine, theirs = getattr(small, name), getattr(large, name)
        if mine > theirs:
            wrong.append(f"{name} {theirs} must be at least {mine}")
    layers = zip(small.layer_types, large.layer_types, strict=False)
    for index, (mine, theirs) in enumerate(layers):
        if mine != theirs:
            wrong.append(f"layer_types[{index}] {theirs!r} must be {mine!r}")
            break
    sizes = zip(small.intermediate_sizes(), large.intermediate_sizes(), strict=False)
    for index, (mine, theirs) in enumerate(sizes):
        if mine > theirs:
            wrong.append(f"intermediate_size {theirs} of layer {index} must be at least {mine}")
            break
    if wrong:
        raise ValueError(f"the larger model cannot contain the small one: {'; '.join(wrong)}")


def _require_base_slice(small: DeltaEncoderConfig, large: DeltaEncoderConfig) -> None:
    """Refuse a base slice without room for the small model: a built delta stores none of it."""
    if large.delta_kind == "dense":
        return
    held = [large.base_attention_heads, *large.base_intermediate_sizes()]
    needed = [small.num_attention_heads, *small.intermediate_sizes()]
    names = ["base_attention_heads", *["base_intermediate_size"] * large.num_hidden_layers]
    for name, have, need in zip(names, held, needed, strict=False):
        if have < need:
            raise ValueError(
                f"{name} {have} must be at least {need}: the base slice of the larger model must "
                f"hold the small one, because a {large.delta_kind} delta is built; or use "
                "delta_kind='dense'"
            )


@torch.no_grad()
def grow(
    small: DeltaEncoderForMaskedLM,
    config: DeltaEncoderConfig,
    *,
    new_units: Literal["zero_output", "random"] = "zero_output",
) -> DeltaEncoderForMaskedLM:
    """Return a model of a larger shape that is ``small`` at ``small_budget(small.config, config)``.

    Args:
        small: the model to keep; not changed.
        config: shape and budgets of the larger model; copied.
        new_units: ``"zero_output"``: what new units (and whole new layers) add to the residual
            stream, and what old units read from new hidden channels, starts at zero; everything
            else that is new starts at random. Every new weight has a gradient within two steps.
            ``"random"``: everything new starts at random, as in a model trained from scratch.

    Raises:
        ValueError: if the shapes do not nest, or ``small`` has parts that do not.
    """
    if new_units not in ("zero_output", "random"):
        raise ValueError(f"new_units {new_units!r} must be 'zero_output' or 'random'")
    require_containment(small.config, config)
    _require_base_slice(small.config, config)
    corner = _plain_state(small, "the small model")
    with small.device:
        model: Any = DeltaEncoderForMaskedLM(deepcopy(config))
    model.to(dtype=small.dtype)
    if new_units == "zero_output":
        _silence_new_units(model, corner)
    _copy_corner(model, corner)
    grown: DeltaEncoderForMaskedLM = model.train(small.training)
    return grown


@torch.no_grad()
def init_delta_from_target(
    grown: DeltaEncoderForMaskedLM,
    target: DeltaEncoderForMaskedLM,
    small: DeltaEncoderForMaskedLM,
    *,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
) -> None:
    """Fill everything outside the small corner of ``grown`` from a larger checkpoint, in place.

    A copy of ``target`` is permuted so that its leading hidden channels, heads and MLP channels
    are those most like the small model's, which changes nothing of what it computes; then its
    blocks outside the corner are taken. At its small budget ``grown`` stays exactly the small
    model. At its full budget it computes neither model's function, because two models trained
    apart agree at best roughly, whatever the permutation: it is a starting point.

    Args:
        grown: from `grow`.
        target: an independently trained model of the same shape; not changed.
        small: the model that ``grown`` was grown from.
        batches: arguments of the trunk, to match units by their activations; None matches weights.

    Raises:
        ValueError: if the shapes differ, or parts of a model are built instead of stored.
    """
    require_containment(grown.config, target.config)
    require_containment(target.config, grown.config)
    require_containment(small.config, grown.config)
    corner, theirs = _plain_state(small, "the small model"), _plain_state(target, "the target")
    state = grown.state_dict()
    built = [key for key in theirs if state[key].shape != theirs[key].shape]
    if built:
        raise ValueError(
            f"{built[0]} of the grown model is {tuple(state[built[0]].shape)}, in the target "
            f"{tuple(theirs[built[0]].shape)}; blocks are taken only where the delta is stored, "
            "so use delta_kind='dense'"
        )
    order = (
        align_by_weights(small, target)
        if batches is None
        else align_by_activations(small, target, batches)
    )
    aligned = deepcopy(target)
    reorder_units(aligned, *order)
    for key, tensor in aligned.state_dict().items():
        state[key].copy_(tensor)
    _copy_corner(grown, corner)


def grow_from_checkpoints(
    base: str,
    target: DeltaEncoderConfig | str,
    *,
    delta_from_target: bool = False,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    new_units: Literal["zero_output", "random"] = "zero_output",
    settings: Callable[[DeltaEncoderConfig], Mapping[str, Any]] | None = None,
) -> GrownEncoder:
    """Grow the checkpoint ``base`` to the shape of ``target``.

    Args:
        base: folder or Hub name of the smaller model, ModernBERT-family or ours.
        target: the larger configuration, or folder or Hub name of a larger checkpoint, of which
            only the configuration is read unless ``delta_from_target``.
        delta_from_target: fill what is new from the checkpoint ``target``; see
            `init_delta_from_target`.
        batches: for the alignment with ``target``; None aligns by weights.
        new_units: see `grow`.
        settings: given the configuration of ``target``, returns values to change in it, such as
            ``delta_kind``.

    Raises:
        ValueError: if the shapes do not nest, or there is no checkpoint to fill from.
    """
    if delta_from_target and not isinstance(target, str):
        raise ValueError(
            "delta_from_target needs a checkpoint to take blocks from, and target is a "
            "configuration; name a folder, or leave delta_from_target off"
        )
    small = load_encoder(base)
    larger = load_encoder(target) if delta_from_target and isinstance(target, str) else None
    config = larger.config if larger else read_config(target)
    if settings is not None:
        config = type(config)(**{**config.to_dict(), **settings(config)})
    budget = small_budget(small.config, config)
    model = grow(small, config, new_units=new_units)
    if larger is not None:
        init_delta_from_target(model, larger, small, batches=batches)
    return GrownEncoder(model, budget)


def load_encoder(source: str) -> DeltaEncoderForMaskedLM:
    """Load a ModernBERT-family checkpoint, or one of ours."""
    if is_ours(source):
        loaded: Any = DeltaEncoderForMaskedLM.from_pretrained(source)
        return loaded.eval()
    return load_modernbert(source)


def read_config(source: DeltaEncoderConfig | str) -> DeltaEncoderConfig:
    """Return the configuration of a checkpoint, ModernBERT-family or ours, without its weights."""
    if not isinstance(source, str):
        return source
    if is_ours(source):
        ours: Any = DeltaEncoderConfig.from_pretrained(source)
        return ours
    return from_modernbert_config(AutoConfig.from_pretrained(source))


def is_ours(source: str) -> bool:
    """Whether a checkpoint, a folder or a Hub name, is a Delta-Matryoshka encoder."""
    values, _ = PretrainedConfig.get_config_dict(source)
    return values.get("model_type") == DeltaEncoderConfig.model_type


def _plain_state(model: DeltaEncoderForMaskedLM, name: str) -> dict[str, Tensor]:
    state = model.state_dict()
    for key in state:
        module = key.removeprefix("model.").split(".")[0]
        if module not in PLAIN_MODULES:
            raise ValueError(
                f"{name} has {key}, which is no corner of a larger model; "
                "turn token_routing off and slice it to its full budget first, which leaves plain "
                "weights only"
            )
    return state


def _silence_new_units(model: DeltaEncoderForMaskedLM, corner: Mapping[str, Tensor]) -> None:
    """Zero what new units write to old ones; the corners themselves are copied afterwards.

    The prediction head's ``dense`` is a reader although its output has the width of the residual
    stream: rows of zeros there would have no gradient under a ReLU.
    """
    for name, module in model.named_modules():
        if not isinstance(module, NestedLinear):
            continue
        leaf, old = name.rsplit(".", 1)[-1], corner.get(f"{name}.weight")
        if leaf in WRITERS:
            module.weight.zero_()
        elif leaf in READERS and old is not None:
            rows, columns = old.shape
            module.weight[:rows, columns:].zero_()
        elif leaf == "decoder" and old is not None and not model.config.tie_word_embeddings:
            module.weight[:, old.shape[1] :].zero_()


def _copy_corner(model: nn.Module, corner: Mapping[str, Tensor]) -> None:
    """Write every tensor of a smaller model into the leading corner of the same tensor here."""
    state = model.state_dict()
    for key, source in corner.items():
        whole = state.get(key)
        if whole is None or any(a > b for a, b in zip(source.shape, whole.shape, strict=True)):
            kept = "none" if whole is None else tuple(whole.shape)
            raise ValueError(
                f"{key} of the small model is {tuple(source.shape)}, stored in the larger one: "
                f"{kept}; the base slice of the larger model must hold the small one"
            )
        whole[tuple(slice(0, size) for size in source.shape)].copy_(source)
