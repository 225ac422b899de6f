"""Trainium and Inferentia: what can be proven anywhere, and the compilation itself.

`check` proves on any machine that the forward pass exports at static shapes. `compile_folder` needs
a Neuron host. Unverified here, because no Neuron hardware was available: the compiled artefact, its
speed, and `compile_folder` past its import errors.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..modeling.families import FAMILIES, register_families
from .complete_folder import ExportError, read_json

ATOL = 1e-3
_TASKS = {
    "AutoModel": "feature-extraction",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


@dataclass(frozen=True)
class StaticShapeReport:
    """What `check` found.

    Attributes:
        folder: name of the folder.
        batch_size: rows of the exported graph.
        sequence_length: tokens of the exported graph.
        operators: number of operator calls in the graph.
        difference: largest difference between the exported graph and the model.
    """

    folder: str
    batch_size: int
    sequence_length: int
    operators: int
    difference: float

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{self.folder}: {self.operators} operators, all shapes static at "
            f"{self.batch_size} x {self.sequence_length}, equal to {self.difference:.1e}"
        )


def check(
    folder: str | Path, batch_size: int = 1, sequence_length: int = 128
) -> StaticShapeReport:
    """Export the model in ``folder`` with `torch.export` and look for shapes that are not static.

    A Neuron graph is compiled for one shape; a size that depends on the data would mean a
    recompilation per batch, or a fall-back to the host.

    Args:
        folder: what `export` or `export_elastic` wrote.
        batch_size: rows.
        sequence_length: tokens.

    Raises:
        ExportError: if the model does not export, or a node has a symbolic dimension.
    """
    folder = Path(folder)
    model = _load(folder)
    generator = torch.Generator().manual_seed(0)
    size = (batch_size, sequence_length)
    inputs = {
        "input_ids": torch.randint(0, model.config.vocab_size, size, generator=generator),
        "attention_mask": torch.ones(size, dtype=torch.long),
    }
    inputs["attention_mask"][-1, sequence_length // 2 :] = 0
    try:
        program = torch.export.export(model, (), inputs)
    except Exception as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{folder} does not export at static shapes: {cause}") from error
    symbolic = [node.name for node in program.graph.nodes if _has_symbolic_size(node)]
    if symbolic:
        raise ExportError(
            f"{folder} has {len(symbolic)} results whose size depends on data: {symbolic[:3]}"
        )
    calls = sum(node.op == "call_function" for node in program.graph.nodes)
    with torch.no_grad():
        got, expected = program.module()(**inputs)[0], model(**inputs)[0]
    real = inputs["attention_mask"].bool()
    distance = (got[real] - expected[real]).abs().max() if got.dim() == 3 else got - expected
    return StaticShapeReport(
        folder.name, batch_size, sequence_length, calls, float(distance.abs().max())
    )


def compile_folder(
    folder: str | Path,
    batch_size: int = 1,
    sequence_length: int = 128,
    output: str | Path | None = None,
) -> Path:
    """Compile an exported folder with optimum-neuron, on a Neuron host.

    Matrix products are cast to bfloat16. One call compiles one shape; compile a few lengths.

    Args:
        folder: what `export` wrote; it is loaded as remote code where it has some.
        batch_size: rows of the compiled graph.
        sequence_length: tokens of the compiled graph.
        output: where the compiled model goes; None means ``<folder>-neuron-<batch>x<tokens>``.

    Raises:
        ExportError: without optimum-neuron or the Neuron compiler.
    """
    folder = Path(folder)
    about = read_json(folder / "nestling.json")
    task = _TASKS[about["auto_class"]]
    output = Path(output or f"{folder}-neuron-{batch_size}x{sequence_length}")
    main_export = _neuron_module("optimum.exporters.neuron.__main__").main_export
    register_neuron_configs()
    main_export(
        str(folder),
        output=str(output),
        task=task,
        trust_remote_code=about["format"] != "native",
        batch_size=batch_size,
        sequence_length=sequence_length,
        compiler_kwargs={"auto_cast": "matmul", "auto_cast_type": "bf16"},
    )
    return output


def register_neuron_configs() -> None:
    """Tell optimum-neuron how to trace our encoders. It knows stock ModernBERT by itself.

    Raises:
        ExportError: without optimum-neuron.
    """
    base = _neuron_module("optimum.exporters.neuron.base")
    tasks = _neuron_module("optimum.exporters.tasks").TasksManager
    utils = _neuron_module("optimum.utils")

    class EncoderNeuronConfig(base.NeuronDefaultConfig):  # type: ignore[name-defined]
        """Static token ids and mask in; hidden states or logits out."""

        NORMALIZED_CONFIG_CLASS = utils.NormalizedTextConfig
        DUMMY_INPUT_GENERATOR_CLASSES = (utils.DummyTextInputGenerator,)
        INPUT_ARGS = ("batch_size", "sequence_length")
        ATOL_FOR_VALIDATION = ATOL

        @property
        def inputs(self) -> list[str]:
            """Names of the inputs, in order."""
            return ["input_ids", "attention_mask"]

        @property
        def outputs(self) -> list[str]:
            """Name of the output of the task."""
            return ["last_hidden_state" if self.task == "feature-extraction" else "logits"]

    register = tasks.create_register("neuron", overwrite_existing=True)
    for family in FAMILIES.values():
        if family.is_encoder:
            register(family.model_type, *_TASKS.values())(EncoderNeuronConfig)


def _load(folder: Path) -> Any:
    import transformers

    register_families()
    about = read_json(folder / "nestling.json")
    auto_class = getattr(transformers, about["auto_class"])
    return auto_class.from_pretrained(folder, dtype=torch.float32).eval()


def _has_symbolic_size(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    tensors = value if isinstance(value, (tuple, list)) else [value]
    return any(
        isinstance(size, torch.SymInt)
        for tensor in tensors
        if isinstance(tensor, torch.Tensor)
        for size in tensor.shape
    )


def _neuron_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"{name} cannot be imported ({error}); compiling needs a Neuron host (Inferentia 2 or "
            'Trainium) with the Neuron SDK and `pip install "nestling[neuron]"`; '
            "`nestling compile --check` works on any machine"
        ) from error
