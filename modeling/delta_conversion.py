"""The delta of a trained model in another form: stored densely, from a dictionary, or of low rank.

What an encoder has outside its base slice is the same five matrices a layer in each form (see
`delta_blocks`), so a model trained with one can go on, or be packed, with another. Base slice,
norms, head and every other part stay as they are, bit for bit.

* To ``dense``: exact, what was built is stored.
* To ``low_rank``: the nearest matrices of that rank, a truncated singular value decomposition a
  layer (Eckart and Young, Psychometrika 1, 1936). Exact where the rank suffices.
* To ``dictionary``: atom by atom, each the best for what is left, then all in turns again while
  the others stay. Every turn is a least-squares solution, so the error never grows; which of the
  local minima is reached is not known.
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
    "delta_kind delta_atoms delta_rank base_attention_heads base_intermediate_size"
).split()
# Turns of all atoms after the first; the error of a fit changes little after them.
TURNS = 5


class ConvertedDelta(NamedTuple):
    """A model with another form of delta.

    Attributes:
        model: of the class of the model that was converted, in its dtype and mode.
        lost: matrix -> share of the squared norm of what lies outside the base slice that the new
            form does not hold; 0 is exact.
    """

    model: Any
    lost: dict[str, float]


@torch.no_grad()
def convert_delta(model: Any, **settings: Any) -> ConvertedDelta:
    """Return a copy of a model whose delta has another form; the model stays as it is.

    Args:
        model: a `DeltaEncoderModel` or a model with a head on it.
        **settings: values of its configuration, of `SETTINGS`: ``delta_kind``, ``delta_rank``
            (of an atom, or of the thin matrices), ``delta_atoms``, and the base slice. What is not
            given stays.

    Raises:
        ValueError: for another setting, or one that the configuration does not allow.
    """
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise ValueError(f"{unknown[0]} is no setting of a delta; give {', '.join(SETTINGS)}")
    config = type(model.config)(**{**model.config.to_dict(), **settings})
    new = type(model)(config)
    new.to(device=model.device, dtype=model.dtype)
    wholes = _whole_matrices(model.base_model)
    changing = {f"{part}.weight" for part in MATRICES.values()}

    def stays(name: str) -> bool:
        parts = name.split(".")
        return "deltas" not in parts and ".".join(parts[-3:]) not in changing

    kept = {name: tensor for name, tensor in model.state_dict().items() if stays(name)}
    new.load_state_dict(kept, strict=False)
    trunk = new.base_model
    for kind, layers in wholes.items():
        for index, whole in enumerate(layers):
            stored = trunk.get_submodule(f"layers.{index}.{MATRICES[kind]}").weight
            stored.copy_(whole[tuple(slice(size) for size in stored.shape)])
    lost = {} if trunk.deltas is None else _fit_all(trunk, wholes)
    new.train(model.training)
    return ConvertedDelta(new, lost)


def _whole_matrices(trunk: Any) -> dict[str, list[Tensor]]:
    """Return the five matrices of each layer, whole: as stored, followed by what is built."""
    built: list[dict[str, Tensor]] = [{} for _ in trunk.layers]
    if trunk.deltas is not None:
        built = trunk.deltas(DeltaBudget.full(trunk.config).shape(trunk.config))
    return {
        kind: [
            layer.get_submodule(part).joined(tails.get(kind)).detach()
            for layer, tails in zip(trunk.layers, built, strict=True)
        ]
        for kind, part in MATRICES.items()
    }


def _fit_all(trunk: Any, wholes: dict[str, list[Tensor]]) -> dict[str, float]:
    """Fit the blocks of a model to what its matrices have outside the base slice."""
    lost = {}
    for kind, block in trunk.deltas.blocks.items():
        axis = 1 if kind in RESIDUAL_KINDS else 0
        tails = []
        for index, whole in enumerate(wholes[kind]):
            stored = trunk.get_submodule(f"layers.{index}.{MATRICES[kind]}").weight
            first, size = stored.shape[axis], whole.shape[axis]
            tails.append(whole.narrow(axis, first, size - first))
        largest = max(tail.shape[axis] for tail in tails)
        # Layers may have fewer channels than the widest one; what a block holds there is not read.
        wanted = torch.stack([_padded(tail, axis, largest) for tail in tails]).double()
        error = fit_block(block, wanted)
        lost[kind] = float(error.square().sum() / wanted.square().sum().clamp_min(1e-300))
    return lost


def _padded(tail: Tensor, axis: int, size: int) -> Tensor:
    shape = list(tail.shape)
    shape[axis] = size - shape[axis]
    return torch.cat((tail, tail.new_zeros(shape)), dim=axis)


def fit_block(block: LowRankBlock | DictionaryBlock, wanted: Tensor) -> Tensor:
    """Set the factors of a freshly initialised block so that it builds nearly ``wanted``.

    Factors that have nothing to hold keep a random side, so that training can use them.

    Args:
        block: of the same sizes.
        wanted: (layers, rows, columns), in float64.

    Returns:
        What it does not hold, of the same shape.
    """
    if isinstance(block, LowRankBlock):
        return _fit_low_rank(block, wanted)
    return _fit_dictionary(block, wanted)


def _fit_low_rank(block: LowRankBlock, wanted: Tensor) -> Tensor:
    """Both factors take the root of the singular values, so that neither is out of scale."""
    left, values, right = torch.linalg.svd(wanted, full_matrices=False)
    rank = min(block.factor_in.shape[1], values.shape[-1])
    for layer, values_of in enumerate(values[:, :rank]):
        used = int((values_of > values_of.max() * 1e-12).sum())
        root = values_of[:used].sqrt()
        block.factor_out[layer].zero_()
        block.factor_out[layer, :, :used] = (left[layer, :, :used] * root).to(block.factor_out)
        block.factor_in[layer, :used] = (root[:, None] * right[layer, :used]).to(block.factor_in)
    return wanted - (block.factor_out.double() @ block.factor_in.double())


def _fit_dictionary(block: DictionaryBlock, wanted: Tensor) -> Tensor:
    """Alternate between single atoms and all coefficients."""
    atoms, rows, rank = block.atoms_out.shape
    layers, columns = len(wanted), wanted.shape[-1]
    sides = wanted.new_zeros(atoms, rows, rank), wanted.new_zeros(atoms, rank, columns)
    coefficients = wanted.new_zeros(layers, atoms)
    least = 1e-24 * wanted.square().sum()
    for _ in range(1 + TURNS):
        for atom in range(atoms):
            left = wanted - _built(coefficients, sides)
            own = coefficients[:, atom, None, None] * (sides[0][atom] @ sides[1][atom])
            left = left + own
            if left.square().sum() <= least:
                continue
            # The first turn takes what the layers share most, later ones the weights they have.
            weights = coefficients[:, atom]
            if not bool(weights.any()):
                weights = _shared_direction(left)
            shared = torch.einsum("l,lrc->rc", weights / weights.norm(), left)
            sides[0][atom], sides[1][atom] = _nearest(shared, rank)
            coefficients = _best_coefficients(wanted, sides)
    _store_dictionary(block, coefficients, sides)
    return wanted - _built(
        block.coefficients.double(), (block.atoms_out.double(), block.atoms_in.double())
    )


def _built(coefficients: Tensor, sides: tuple[Tensor, Tensor]) -> Tensor:
    return torch.einsum("ln,nrc->lrc", coefficients, sides[0] @ sides[1])


def _shared_direction(left: Tensor) -> Tensor:
    """Return (layers,) the weights whose sum of the matrices has the largest norm."""
    flat = left.flatten(1)
    return torch.linalg.eigh(flat @ flat.T).eigenvectors[:, -1]


def _nearest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the nearest matrix of a rank, padded with zeros."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    spare = rank - len(root)
    out = torch.nn.functional.pad(left[:, :rank] * root, (0, spare))
    return out, torch.nn.functional.pad(root[:, None] * right[:rank], (0, 0, 0, spare))


def _best_coefficients(wanted: Tensor, sides: tuple[Tensor, Tensor]) -> Tensor:
    """Return (layers, atoms) by least squares; 0 for an atom without anything in it."""
    flat = (sides[0] @ sides[1]).flatten(1)
    gram, along = flat @ flat.T, wanted.flatten(1) @ flat.T
    return along @ torch.linalg.pinv(gram, hermitian=True)


def _store_dictionary(
    block: DictionaryBlock, coefficients: Tensor, sides: tuple[Tensor, Tensor]
) -> None:
    """Write what was fitted; atoms that hold nothing stay as they were drawn, with weight 0."""
    for atom, (out, inside) in enumerate(zip(*sides, strict=True)):
        block.coefficients[:, atom] = coefficients[:, atom].to(block.coefficients)
        if bool(out.any()):
            block.atoms_out[atom] = out.to(block.atoms_out)
            block.atoms_in[atom] = inside.to(block.atoms_in)
