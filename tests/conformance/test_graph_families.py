"""Whole models that Keras and TensorFlow write give TensorFlow's outputs, by `run` and by `module`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from op_rows import torch_of
from tensorflow_process import RawTensor, TensorFlowProcess

import torch_tfckpt as tfckpt

QUICK = ["mlp", "lstm"]
HEAVY = [
    "lenet", "resnet50", "mobilenet_v2", "mobilenet_v3", "efficientnet_b0", "inception_v3", "densenet121", "convnext",
    "u_net", "gru", "bilstm_mask", "transformer", "conv_lstm", "conv1d", "conv3d",
]  # fmt: skip
QUICK_GRAPHS = ["slim"]
HEAVY_GRAPHS = ["seq2seq", "bert", "perceptron", "digits"]
SUPPORT = "tensorflow_graph_families"


def rows(quick: list[str], heavy: list[str]) -> list[Any]:
    return [*quick, *(pytest.param(name, marks=pytest.mark.heavy) for name in heavy)]


def check(found: torch.Tensor, raw: RawTensor) -> None:
    """Compare with TensorFlow's value: errors are relative to the largest number."""
    expected = torch_of(raw)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if not expected.dtype.is_floating_point:
        assert torch.equal(found, expected)
        return
    largest = expected.abs().max().item()
    assert largest > 1e-3, "a model whose outputs vanish shows nothing"
    error = (found - expected).abs().max().item() / largest
    assert error <= 1e-4, f"differs by {error:.2g} of the largest value"


def check_signature(path: str, inputs: dict[str, RawTensor], outputs: dict[str, RawTensor]) -> None:
    """Run a SavedModel's signature both ways."""
    imported = tfckpt.import_meta_graph(path)
    signature = imported.signatures["serving_default"]
    values = {name: torch_of(raw) for name, raw in inputs.items()}
    feeds = {signature.inputs[name].name: value for name, value in values.items()}
    found = imported.run({name: signature.outputs[name].name for name in outputs}, feeds)
    module = imported.module(signature="serving_default")
    with torch.no_grad():
        returned = module(**values)
    assert returned.keys() == outputs.keys()
    for name, raw in outputs.items():
        check(found[name], raw)
        check(returned[name], raw)


@pytest.mark.parametrize("name", rows(QUICK, HEAVY))
def test_saved_model_of_keras(name: str, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A model that Keras exports."""
    path, inputs, outputs, _ = tensorflow.call(f"{SUPPORT}.saved_model", name, str(tmp_path / "model"))
    check_signature(path, inputs, outputs)


@pytest.mark.parametrize("name", rows(QUICK_GRAPHS, HEAVY_GRAPHS))
def test_meta_graph(name: str, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A graph of TensorFlow 1 for training, as `.meta` file and checkpoint, with its placeholders set for inference."""
    path, inputs, outputs, constants = tensorflow.call(f"{SUPPORT}.meta_graph", name, str(tmp_path))
    imported = tfckpt.import_meta_graph(path)
    assert imported.saver is not None
    imported.saver.restore(path.removesuffix(".meta"))
    values = {each: torch_of(raw) for each, raw in inputs.items()}
    found = imported.run(list(outputs), {**values, **constants})
    module = imported.module(list(inputs), list(outputs), constants)
    with torch.no_grad():
        returned = module(*values.values())
    for raw, value, of_module in zip(outputs.values(), found, returned, strict=True):
        check(value, raw)
        check(of_module, raw)


@pytest.mark.parametrize("name", rows([], ["seq2seq", "bert", "digits"]))
def test_saved_model_of_tensorflow_1(name: str, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """The same graphs as SavedModels."""
    path, inputs, outputs, _ = tensorflow.call(f"{SUPPORT}.meta_graph", name, str(tmp_path), as_saved_model=True)
    check_signature(path, inputs, outputs)
