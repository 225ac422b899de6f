"""Static shapes, proven without a Neuron host; compiling without one is one clear line."""

import importlib.util
from pathlib import Path

import pytest
import torch
from nestling.hub_cards import neuron
from nestling.hub_cards.complete_folder import ExportError


@pytest.mark.parametrize("name", ["w050-h03-d03", "w100-h04-d04"])
def test_slices_export_at_static_shapes(slices_folder: Path, name: str) -> None:
    report = neuron.check(slices_folder / name, batch_size=2, sequence_length=24)
    assert report.operators > 50 and report.difference <= 1e-5
    assert "all shapes static at 2 x 24" in str(report)


class DataDependent(torch.nn.Module):
    """What must be refused: the size of the result depends on the values of the mask."""

    class config:
        vocab_size = 96

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return input_ids[attention_mask.bool()]


def test_data_dependent_shape_is_found(
    slices_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuron, "_load", lambda folder: DataDependent())
    with pytest.raises(ExportError, match="size depends on data"):
        neuron.check(slices_folder / "w050-h03-d03", 2, 8)


class Unexportable(DataDependent):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if input_ids.sum() > 0:
            return input_ids
        return attention_mask


def test_model_that_does_not_export_is_one_line(
    slices_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuron, "_load", lambda folder: Unexportable())
    with pytest.raises(ExportError, match="does not export at static shapes") as caught:
        neuron.check(slices_folder / "w050-h03-d03", 2, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    importlib.util.find_spec("neuronx_distributed") is not None,
    reason="this is a Neuron host, where compiling works",
)
def test_compiling_elsewhere_names_the_host_and_the_extra(slices_folder: Path) -> None:
    with pytest.raises(ExportError, match=r"Neuron host.*nestling\[neuron\]") as caught:
        neuron.compile_folder(slices_folder / "w050-h03-d03")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    importlib.util.find_spec("optimum") is None,
    reason="optimum-neuron is not installed (it pins transformers 4.57)",
)
def test_registration_gives_static_dummy_inputs(slices_folder: Path) -> None:
    from nestling.modeling.families import FAMILIES, resolve
    from optimum.exporters.neuron.base import InputShapesArguments
    from optimum.exporters.tasks import TasksManager

    neuron.register_neuron_configs()
    made = TasksManager.get_exporter_config_constructor(
        "neuron", model_type="delta_encoder", task="fill-mask", library_name="transformers"
    )
    config = resolve(FAMILIES["delta_encoder"].config).from_pretrained(
        slices_folder / "w050-h03-d03"
    )
    shapes = InputShapesArguments(batch_size=2, sequence_length=16)
    inputs = made(config, task="fill-mask", input_shapes=shapes).generate_dummy_inputs()
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "input_ids": (2, 16),
        "attention_mask": (2, 16),
    }
