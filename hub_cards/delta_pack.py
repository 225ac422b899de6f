"""Upgrade packs: the delta of a model as one small safetensors file, swapped without reloading.

A pack of a dictionary model holds the coefficients; it fits any model with the same base weights
and the same atoms, so after the first delivery an upgrade costs a few kilobytes. A pack of a
low-rank model holds its factors; a dense model's pack holds the blocks outside the base slice.
``with_atoms`` adds the atoms themselves, for a model that has others.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .complete_folder import ExportError, write_tensors
from .elastic_folder import load_elastic

FORMAT = "nestling-delta-pack-1"


class DeltaPackError(ValueError):
    """A pack that does not fit the model."""


class PackFileError(DeltaPackError):
    """A file that is missing, cannot be read, or is no pack."""


class PackSize(NamedTuple):
    """Bytes of a delta.

    Attributes:
        pack: what an upgrade carries.
        atoms: what has to be there before, once; 0 where the pack is complete.
        dense: the same blocks stored densely.
    """

    pack: int
    atoms: int
    dense: int


def export_delta_pack(model: Any, file: Path | str, *, with_atoms: bool = False) -> PackSize:
    """Write the delta of ``model``; the file appears whole or not at all.

    Args:
        model: a `DeltaEncoderModel` or a model with a head on it; dense ones need a base slice.
        file: where to write, ending in ``.safetensors``.
        with_atoms: also write the atoms of a dictionary model.

    Raises:
        DeltaPackError: if the model has no base slice and so no delta, or if a number of it is
            not finite.
    """
    trunk = model.base_model
    tensors = {name: t.detach().contiguous().cpu() for name, t in delta_tensors(trunk).items()}
    if with_atoms:
        tensors.update({n: t.detach().contiguous().cpu() for n, t in atom_tensors(trunk).items()})
    _require_finite(tensors, "the model", "training diverged; export an earlier checkpoint")
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    metadata = {"format": FORMAT, "kind": trunk.config.delta_kind, "base": base_fingerprint(trunk)}
    metadata["atoms"] = fingerprint(atom_tensors(trunk))
    try:
        write_tensors(part, tensors, metadata)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return pack_size(model)


def export_folder_pack(model_dir: Path, file: Path, *, with_atoms: bool = False) -> PackSize:
    """Write the delta of the nested model in ``model_dir``, in the dtype it is stored in.

    Args:
        model_dir: folder that training wrote.
        file: as for `export_delta_pack`.
        with_atoms: likewise.

    Raises:
        ExportError: if the folder holds no nested encoder.
        DeltaPackError: if the model has no delta, or one that is not finite.
    """
    elastic = load_elastic(model_dir)
    if elastic.family.model_type != "delta_encoder":
        raise ExportError(
            f"{model_dir} holds a {elastic.family.model_type} model, which has no delta to pack; "
            "give a delta_encoder"
        )
    return export_delta_pack(elastic.model.to(elastic.dtype), file, with_atoms=with_atoms)


@torch.no_grad()
def load_delta_pack(model: Any, file: Path | str) -> None:
    """Put the delta of a pack into ``model``, in place.

    Nothing is changed unless everything fits.

    Raises:
        PackFileError: if the file is missing, unreadable or no pack.
        DeltaPackError: if it was made for other base weights, atoms or sizes, or holds a number
            that is not finite.
    """
    trunk = model.base_model
    metadata, tensors = _read(file)
    if metadata.get("kind") != trunk.config.delta_kind:
        raise DeltaPackError(
            f"{file} is of delta_kind {metadata.get('kind')}, "
            f"the model of {trunk.config.delta_kind}"
        )
    deltas, atoms = delta_tensors(trunk), atom_tensors(trunk)
    places = {**deltas, **atoms}
    brings_atoms = not atoms.keys().isdisjoint(tensors)
    needed = places if brings_atoms else deltas
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in needed.items()}
    differing = sorted(n for n in {*shapes, *wanted} if shapes.get(n) != wanted.get(n))
    if differing:
        name = differing[0]
        raise DeltaPackError(
            f"{file} does not fit: {name} has shape {shapes.get(name)} in it and "
            f"{wanted.get(name)} in the model, and {len(differing) - 1} more differ"
        )
    if metadata.get("base") != base_fingerprint(trunk):
        raise DeltaPackError(f"{file} was made for other base weights than those of this model")
    if not brings_atoms and metadata.get("atoms") != fingerprint(atoms):
        raise DeltaPackError(
            f"{file} was made for other atoms; export it with --with-atoms (with_atoms=True) and "
            "load that"
        )
    _require_finite(tensors, str(file), "copy it again, or export an earlier checkpoint")
    for name, tensor in tensors.items():
        places[name].copy_(tensor)


def load_pack_as_stored(model: Any, file: Path | str, dtype: torch.dtype) -> None:
    """Put the delta of a pack into a model that runs in float32 and is stored in ``dtype``.

    Fingerprints are those of the stored weights. Float32 holds all of their values exactly, so the
    way there and back changes none.

    Raises:
        DeltaPackError: as for `load_delta_pack`.
    """
    model.to(dtype)
    load_delta_pack(model, file)
    model.to(torch.float32)


def pack_identity(file: Path | str) -> dict[str, str]:
    """Return what tells a pack from others: its ``file`` name and the ``sha256`` of the file.

    Raises:
        PackFileError: if the file is missing, unreadable or no pack.
    """
    _read(file)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return {"file": Path(file).name, "sha256": digest}


def _read(file: Path | str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a pack."""
    fix = "give a file that nestling export --delta-pack wrote"
    if not Path(file).exists():
        raise PackFileError(f"{file} does not exist; {fix}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except Exception as error:
        cause = f"{file} is not a readable safetensors file ({error})"
        raise PackFileError(f"{cause}; {fix}") from error
    if metadata.get("format") != FORMAT:
        raise PackFileError(f"{file} is not a delta pack; {fix}")
    return metadata, tensors


def _require_finite(tensors: dict[str, Tensor], where: str, fix: str) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DeltaPackError(
                f"{name} of {where} has a value that is not finite (NaN or infinite); {fix}"
            )


def pack_size(model: Any) -> PackSize:
    """Return the bytes of the delta of ``model``."""
    trunk = model.base_model
    config = trunk.config
    pack = sum(tensor.nbytes for tensor in delta_tensors(trunk).values())
    atoms = sum(tensor.nbytes for tensor in atom_tensors(trunk).values())
    inner = (config.num_attention_heads - config.base_attention_heads) * config.head_dim
    pairs = zip(config.intermediate_sizes(), config.base_intermediate_sizes(), strict=True)
    entries = sum(4 * inner + 3 * (full - base) for full, base in pairs) * config.hidden_size
    return PackSize(pack, atoms, entries * trunk.embeddings.token.weight.element_size())


def describe_delta(model: Any, dtype: torch.dtype | None = None) -> dict[str, Any] | None:
    """Return how the delta is stored and its `PackSize` as JSON values.

    Args:
        model: as for `export_delta_pack`.
        dtype: what the bytes are stated for; None takes that of the weights.

    Returns:
        ``kind``, ``pack_bytes``, ``atom_bytes`` and ``dense_bytes``; None without a base slice.
    """
    if model.config.base_attention_heads is None:
        return None
    size = pack_size(model)
    stored, wanted = model.dtype.itemsize, (dtype or model.dtype).itemsize
    counts = {"pack": size.pack, "atom": size.atoms, "dense": size.dense}
    return {
        "kind": model.config.delta_kind,
        **{f"{name}_bytes": count // stored * wanted for name, count in counts.items()},
    }


def delta_tensors(trunk: Any) -> dict[str, Tensor]:
    """Return what a pack of this model holds; views of the weights themselves."""
    config = trunk.config
    if trunk.deltas is not None:
        return {
            f"{kind}.{name}": tensor
            for kind, block in trunk.deltas.blocks.items()
            for name, tensor in block.packed().items()
        }
    if config.base_attention_heads is None:
        raise DeltaPackError(
            "the model has no base slice; set base_attention_heads and base_intermediate_size"
        )
    tensors: dict[str, Tensor] = {}
    inner = config.base_attention_heads * config.head_dim
    for index, channels in enumerate(config.base_intermediate_sizes()):
        attention, mlp = trunk.layers[index].attention, trunk.layers[index].mlp
        blocks = {
            "query_key_value": attention.query_key_value.weight[3 * inner :],
            "output": attention.output.weight[:, inner:],
            "up": mlp.up.weight[channels:],
            "gate": mlp.gate.weight[channels:],
            "down": mlp.down.weight[:, channels:],
        }
        tensors.update({f"{index}.{kind}": block for kind, block in blocks.items()})
    return tensors


def atom_tensors(trunk: Any) -> dict[str, Tensor]:
    """Return the atoms of a dictionary model; empty for the other kinds."""
    if trunk.config.delta_kind != "dictionary":
        return {}
    return {
        f"{kind}.{name}": getattr(block, name)
        for kind, block in trunk.deltas.blocks.items()
        for name in ("atoms_out", "atoms_in")
    }


def base_fingerprint(trunk: Any) -> str:
    """Return a hash of all weights a pack does not carry and that change what is computed.

    That leaves out atoms, which are checked by themselves, and the preview network, which only
    says for which tokens it is computed.
    """
    config = trunk.config
    inner = config.base_attention_heads * config.head_dim
    sizes = config.base_intermediate_sizes()
    weights = {}
    for name, tensor in trunk.state_dict().items():
        first, *others = name.split(".")
        if first in ("deltas", "preview"):
            continue
        if first == "layers":
            channels = sizes[int(others[0])]
            corners = {
                "query_key_value": (slice(3 * inner),),
                "output": (slice(None), slice(inner)),
                "up": (slice(channels),),
                "gate": (slice(channels),),
                "down": (slice(None), slice(channels)),
            }
            tensor = tensor[corners.get(others[-2], ())]
        weights[name] = tensor
    return fingerprint(weights)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return a hash of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        described = json.dumps([name, list(tensor.shape), str(tensor.dtype)])
        digest.update(described.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
