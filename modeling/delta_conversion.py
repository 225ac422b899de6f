"""The delta of a trained model in another form: stored densely, from a dictionary, or of low rank.

What an encoder has outside its base slice is the same five matrices a layer in each form (see
`delta_blocks`), so a model trained with one can go on, or be packed, with another. Base slice,
norms, head and every other part stay as they are, bit for bit.

* To ``dense``: exact, what was built is stored.
* To ``low_rank``: the nearest matrices of that rank, a truncated singular value decomposition a
  layer (Eckart and Young, Psychometrika 1, 1936). Exact where the rank suffices.
* To ``dictionary``: one atom after the other, each the best for what the others leave, then all
  coefficients at once, in turns. Every move is a least-squares solution, so the error never grows;
  which of the local minima is reached is not known. Exact from a dictionary around the same base
  slice with no more atoms and no higher rank.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..configuration.delta_budget import DeltaBudget
from .delta_blocks import RESIDUAL_KINDS, DictionaryBlock, LowRankBlock

MATRICES = {
    "query_key_value": "attention.query_key_value",
    "output": "attention.output",
    "up": "mlp.up",
    "gate": "mlp.gate",
    "down": "mlp.down",
}
SETTINGS = (
    "delta_kind", "delta_atoms", "delta_rank", "base_attention_heads", "base_intermediate_size",
)  # fmt: skip
# A fit of a dictionary ends after a turn that takes less than this share off its squared error.
LEAST_GAIN = 1e-3
MOST_TURNS = 60
# Of the factors that a fit leaves as they were drawn: a conversion gives the same twice.
SEED = 0

# Coefficients (layers, atoms), V (atoms, rows, rank) and U (atoms, rank, columns).
Factors = tuple[Tensor, Tensor, Tensor]


class ConvertedDelta(NamedTuple):
    """A model with another form of delta.

    Attributes:
        model: of the class of the model that was converted, in its dtype, mode and budget. Which
            of its parameters are trained starts anew.
        lost: matrix -> share of the squared norm of what lies outside the base slice that the new
            form does not hold; 0 is exact. Empty where nothing was fitted.
    """

    model: Any
    lost: dict[str, float]


def delta_form(config: Any) -> tuple[Any, ...]:
    """Return what tells the form of one delta from that of another."""
    if config.base_attention_heads is None:
        return ("dense",)
    kind = config.delta_kind
    rank = None if kind == "dense" else config.delta_rank
    atoms = config.delta_atoms if kind == "dictionary" else None
    return kind, rank, atoms, config.base_attention_heads, tuple(config.base_intermediate_sizes())


@torch.no_grad()
def convert_delta(model: Any, *, fits: bool = True, **settings: Any) -> ConvertedDelta:
    """Return a copy of a model whose delta has another form; the model stays as it is.

    Args:
        model: a `DeltaEncoderModel` or a model with a head on it.
        fits: whether a delta that is built gets what the old one held; else it starts as fresh
            factors do, without effect.
        **settings: values of its configuration, of `SETTINGS`: ``delta_kind``, ``delta_rank``
            (of an atom, or of the thin matrices), ``delta_atoms``, and the base slice. What is not
            given stays.

    Raises:
        ValueError: for another setting, one that the configuration does not allow, or a weight
            that is not finite.
    """
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise ValueError(f"{unknown[0]} is no setting of a delta; give {', '.join(SETTINGS)}")
    config = type(model.config)(**{**model.config.to_dict(), **settings})
    config._attn_implementation = model.config._attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        new = type(model)(config)
    new.to(device=model.device, dtype=model.dtype)
    if fits and delta_form(config) == delta_form(model.config):
        new.load_state_dict(model.state_dict())
        lost: dict[str, float] = {}
    else:
        lost = _take_over(new, model, fits)
    new.set_budget(model.active_budget)
    new.train(model.training)
    return ConvertedDelta(new, lost)


def _take_over(new: Any, model: Any, fits: bool) -> dict[str, float]:
    """Give a new model the weights of another, and its delta what that of the other holds."""
    changing = {f"{part}.weight" for part in MATRICES.values()}

    def changes(name: str) -> bool:
        parts = name.split(".")
        return "deltas" in parts or ".".join(parts[-3:]) in changing

    kept = {name: tensor for name, tensor in model.state_dict().items() if not changes(name)}
    missing, unexpected = new.load_state_dict(kept, strict=False)
    assert not unexpected and all(map(changes, missing)), (missing, unexpected)
    source, trunk = model.base_model, new.base_model
    wholes = _whole_matrices(source)
    for kind, layers in wholes.items():
        for index, whole in enumerate(layers):
            stored = _linear(trunk, index, kind).weight
            stored.copy_(whole[tuple(slice(size) for size in stored.shape)])
    if trunk.deltas is None or not fits:
        return {}
    same_tails = delta_form(source.config)[3:] == delta_form(trunk.config)[3:]
    lost = {}
    for kind, block in trunk.deltas.blocks.items():
        old = source.deltas.blocks[kind] if same_tails and source.deltas is not None else None
        lost[kind] = _fit_matrix(trunk, kind, block, wholes[kind], old)
    return lost


def _linear(trunk: Any, layer: int, kind: str) -> Any:
    return trunk.get_submodule(f"layers.{layer}.{MATRICES[kind]}")


def _whole_matrices(trunk: Any) -> dict[str, list[Tensor]]:
    """Return the five matrices of each layer, whole: as stored, followed by what is built."""
    built: list[dict[str, Tensor]] = [{} for _ in trunk.layers]
    if trunk.deltas is not None:
        built = trunk.deltas(DeltaBudget.full(trunk.config).shape(trunk.config))
    wholes = {
        kind: [_linear(trunk, i, kind).joined(tails.get(kind)) for i, tails in enumerate(built)]
        for kind in MATRICES
    }
    for kind, layers in wholes.items():
        for index, whole in enumerate(layers):
            if not bool(torch.isfinite(whole).all()):
                raise ValueError(
                    f"{MATRICES[kind]} of layer {index} has a value that is not finite (NaN or "
                    "infinite): training diverged; convert an earlier checkpoint"
                )
    return wholes


def _fit_matrix(
    trunk: Any, kind: str, block: Any, wholes: list[Tensor], old: Any
) -> float:
    """Fit one block to what its matrix has outside the base slice; return what is lost of it."""
    axis = 1 if kind in RESIDUAL_KINDS else 0
    tails = []
    for index, whole in enumerate(wholes):
        first, size = _linear(trunk, index, kind).weight.shape[axis], whole.shape[axis]
        tails.append(whole.narrow(axis, first, size - first))
    sizes = [tail.shape[axis] for tail in tails]
    wanted = torch.stack([_padded(tail, axis, max(sizes)) for tail in tails]).double()
    error = fit_block(block, wanted, old)
    for layer, size in enumerate(sizes):
        # Nothing reads what a block holds beyond the channels of a layer.
        error[layer].narrow(axis, size, max(sizes) - size).zero_()
    return float(error.square().sum() / wanted.square().sum().clamp_min(1e-300))


def _padded(tail: Tensor, axis: int, size: int) -> Tensor:
    shape = list(tail.shape)
    shape[axis] = size - shape[axis]
    return torch.cat((tail, tail.new_zeros(shape)), dim=axis)


def fit_block(block: Any, wanted: Tensor, old: Any = None) -> Tensor:
    """Set the factors of a freshly initialised block so that it builds nearly ``wanted``.

    Ranks and atoms that have nothing to hold are zero on one side and stay random on the other, so
    that training can use them.

    Args:
        block: a `LowRankBlock` or `DictionaryBlock` of the same sizes.
        wanted: (layers, rows, columns), in float64.
        old: the block that builds ``wanted`` now, if one does.

    Returns:
        What it does not hold, of the same shape.
    """
    layers, rows, columns = wanted.shape
    if isinstance(block, LowRankBlock):
        left, values, right = torch.linalg.svd(wanted, full_matrices=False)
        for layer in range(layers):
            _store(block.factor_out[layer], block.factor_in[layer], left[layer],
                   values[layer], right[layer])  # fmt: skip
    else:
        _fit_dictionary(block, wanted, old)
    return wanted - block(layers, rows, columns).double()


def _store(out: Tensor, inside: Tensor, left: Tensor, values: Tensor, right: Tensor) -> None:
    """Write ``left diag(values) right`` as two factors, the root of the values in each."""
    used = int((values > values.max() * 1e-12).sum().clamp_max(out.shape[1]))
    root = values[:used].sqrt()
    out.zero_()
    out[:, :used] = (left[:, :used] * root).to(out)
    inside[:used] = (root[:, None] * right[:used]).to(inside)


def _fit_dictionary(block: DictionaryBlock, wanted: Tensor, old: Any) -> None:
    factors = _start(block, wanted, old)
    coefficients, out, inside = factors
    least = 1e-24 * float(wanted.square().sum())
    left = wanted - _built(factors)
    error = float(left.square().sum())
    for _ in range(MOST_TURNS):
        if error <= least:
            break
        for atom in range(len(out)):
            left += coefficients[:, atom, None, None] * (out[atom] @ inside[atom])
            weights = coefficients[:, atom]
            if float(left.square().sum()) <= least:
                weights.zero_()
                out[atom].zero_()
                continue
            if not bool(weights.any()):
                weights = _shared_direction(left)
            weights = weights / weights.norm()
            out[atom], inside[atom] = _nearest(torch.einsum("l,lrc->rc", weights, left), out)
            coefficients[:, atom] = weights
            left -= weights[:, None, None] * (out[atom] @ inside[atom])
        flat = (out @ inside).flatten(1)
        gram = torch.linalg.pinv(flat @ flat.T, hermitian=True)
        coefficients.copy_(wanted.flatten(1) @ flat.T @ gram)
        left = wanted - _built(factors)
        before, error = error, float(left.square().sum())
        if before - error <= LEAST_GAIN * before:
            break
    for atom, matrix in enumerate(out @ inside):
        values = torch.linalg.svd(matrix, full_matrices=False)
        if bool(values.S.any()):
            _store(block.atoms_out[atom], block.atoms_in[atom], *values)
    block.coefficients.copy_(coefficients)


def _start(block: DictionaryBlock, wanted: Tensor, old: Any) -> Factors:
    """Return nothing, or what the old block has where all of it finds a place."""
    (atoms, rows, rank), (layers, _, columns) = block.atoms_out.shape, wanted.shape
    factors = (
        wanted.new_zeros(layers, atoms),
        wanted.new_zeros(atoms, rows, rank),
        wanted.new_zeros(atoms, rank, columns),
    )
    if isinstance(old, DictionaryBlock):
        held, _, size = old.atoms_out.shape
        if held <= atoms and size <= rank:
            factors[0][:, :held] = old.coefficients
            factors[1][:held, :, :size] = old.atoms_out
            factors[2][:held, :size] = old.atoms_in
    return factors


def _built(factors: Factors) -> Tensor:
    coefficients, out, inside = factors
    return torch.einsum("ln,nrc->lrc", coefficients, out @ inside)


def _shared_direction(left: Tensor) -> Tensor:
    """Return (layers,) the weights whose sum of the matrices has the largest norm."""
    flat = left.flatten(1)
    return torch.linalg.eigh(flat @ flat.T).eigenvectors[:, -1]


def _nearest(matrix: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of the nearest matrix of the rank of the atoms, padded with zeros."""
    rank = out.shape[-1]
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    spare = rank - len(root)
    sides = left[:, :rank] * root, root[:, None] * right[:rank]
    pad = torch.nn.functional.pad
    return pad(sides[0], (0, spare)), pad(sides[1], (0, 0, 0, spare))
