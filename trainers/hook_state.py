"""State of training hooks in a checkpoint: JSON for plain values, safetensors for tensors.

A hook is anything that remembers something between steps (a running mean, a controller). No
pickle: a checkpoint from elsewhere cannot run code through these files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from .checkpoint_files import CheckpointError

STATE_NAME = "hook_state.json"
TENSORS_NAME = "hook_state.safetensors"
_TENSOR_KEY = "__tensor__"

# States with each tensor replaced by {"__tensor__": key}, and the tensors by key.
CapturedHookState = tuple[dict[str, Any], dict[str, torch.Tensor]]


class Stateful(Protocol):
    """An object whose state is saved with each checkpoint and restored on resume.

    The state must be equal on all ranks (rank 0 writes it) and small: it is copied once per
    optimizer step, so that a step that turns out to be non-finite can be taken back. It is a
    nested dict or list of JSON values and tensors; dict keys are strings.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Restore the state."""
        ...


def capture_hook_state(stateful: Mapping[str, Stateful]) -> CapturedHookState:
    """Copy the state of all hooks.

    Returns:
        The states with each tensor replaced by `{"__tensor__": key}`, and the tensors by key.

    Raises:
        TypeError: If a state holds something that is neither a tensor nor a JSON value.
    """
    tensors: dict[str, torch.Tensor] = {}
    states = {name: _split(hook.state_dict(), name, tensors) for name, hook in stateful.items()}
    return states, tensors


def save_hook_state(folder: Path, captured: CapturedHookState) -> None:
    """Write what `capture_hook_state` returned."""
    states, tensors = captured
    (folder / STATE_NAME).write_text(json.dumps(states, indent=1) + "\n")
    save_file(tensors, str(folder / TENSORS_NAME))


def load_hook_state(folder: Path, stateful: Mapping[str, Stateful]) -> None:
    """Restore the state of all hooks.

    Raises:
        CheckpointError: If a file is unreadable or the hooks are not those of the checkpoint.
    """
    try:
        states = json.loads((folder / STATE_NAME).read_text())
        tensors = load_file(str(folder / TENSORS_NAME))
    except Exception as error:
        raise CheckpointError(
            f"{folder / STATE_NAME} or {TENSORS_NAME} cannot be read: {error}; resume from an "
            "earlier checkpoint"
        ) from error
    if set(states) != set(stateful):
        raise CheckpointError(
            f"{folder / STATE_NAME} holds the hooks {sorted(states)}, this run has "
            f"{sorted(stateful)}; resume with the recipe that wrote the checkpoint"
        )
    for name, hook in stateful.items():
        hook.load_state_dict(_join(states[name], tensors))


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR_KEY: path}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"hook state {path}: dict keys must be strings, got {list(value)!r}")
        return {key: _split(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"hook state {path} is a {type(value).__name__}; only tensors, numbers, strings, lists "
        "and dicts can be saved"
    )


def _join(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR_KEY}:
            return tensors[value[_TENSOR_KEY]]
        return {key: _join(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    return value
