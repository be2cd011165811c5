"""Modules of graphs go through torch's own tools with a batch of any size: export, compile, and ONNX."""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from op_rows import torch_of
from tensorflow_process import TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt

SUPPORT = "tensorflow_graph_families"
QUICK = ["mlp"]
HEAVY = ["lstm", "lenet", "mobilenet_v2", "resnet50", "u_net", "transformer", "gru", "conv1d", "conv3d", "convnext"]
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.heavy) for name in HEAVY)]
has_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="onnx, onnxruntime or onnxscript is not installed; `scripts/install onnx` installs them",
)


class Family(NamedTuple):
    """A module of a SavedModel, and TensorFlow's output for two batches."""

    module: nn.Module
    inputs: list[dict[str, torch.Tensor]]
    outputs: list[dict[str, torch.Tensor]]

    @property
    def dynamic(self) -> dict[str, dict[int, torch.export.Dim]]:
        return {name: {0: torch.export.Dim("batch", min=1, max=64)} for name in self.inputs[0]}


Families = Callable[[str], Family]


@pytest.fixture(scope="module")
def families(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Families:
    """Models by name; each is written once. The second batch has rows of the first in another order."""

    @functools.cache
    def find(name: str) -> Family:
        folder = tmp_path_factory.mktemp(name) / "model"
        path, inputs, outputs, _ = tensorflow.call(f"{SUPPORT}.saved_model", name, str(folder), 3)
        rows = torch.tensor([2, 0, 1, 1, 2])
        given = {key: torch_of(raw) for key, raw in inputs.items()}
        found = {key: torch_of(raw) for key, raw in outputs.items()}
        return Family(
            tfckpt.import_meta_graph(path).module(signature="serving_default").eval(),
            [given, {key: value[rows] for key, value in given.items()}],
            [found, {key: value[rows] for key, value in found.items()}],
        )

    return find


def check(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert (found[key] - value).abs().max().item() <= 1e-4 * value.abs().max().item()


@pytest.mark.parametrize("name", NAMES)
def test_export(name: str, families: Families) -> None:
    """torch.export with a symbolic batch; the program computes another batch."""
    one = families(name)
    program = torch.export.export(one.module, (), one.inputs[0], dynamic_shapes=one.dynamic)
    for inputs, outputs in zip(one.inputs, one.outputs, strict=True):
        with torch.no_grad():
            check(program.module()(**inputs), outputs)


@pytest.mark.parametrize("name", NAMES)
def test_compile(name: str, families: Families) -> None:
    """torch.compile of the whole graph, as one piece."""
    one = families(name)
    torch.compiler.reset()
    compiled = torch.compile(one.module, fullgraph=True, dynamic=True, backend="aot_eager")
    for inputs, outputs in zip(one.inputs, one.outputs, strict=True):
        with torch.no_grad():
            check(compiled(**inputs), outputs)


@has_onnx
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx(name: str, families: Families, tmp_path: Path) -> None:
    """A SavedModel becomes an ONNX model without TensorFlow; ONNX Runtime computes other batches."""
    import onnxruntime

    one = families(name)
    program: Any = torch.onnx.export(
        one.module, (), kwargs=one.inputs[0], dynamic_shapes=one.dynamic, dynamo=True, verbose=False
    )
    path = str(tmp_path / "model.onnx")
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for inputs, outputs in zip(one.inputs, one.outputs, strict=True):
        feeds = {key.name: inputs[key.name].numpy() for key in session.get_inputs()}
        found = [torch.from_numpy(value) for value in session.run(None, feeds)]
        check(dict(zip(outputs, found, strict=True)), outputs)


@pytest.mark.parametrize("name", ["seq2seq", "slim"])
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_refused(name: str, strict: bool, tensorflow: TensorFlowProcess, tmp_path: Path) -> None:
    """A loop whose length is an input, and a condition on an input, cannot be exported: an error, not one fixed way."""
    path, inputs, outputs, _ = tensorflow.call(f"{SUPPORT}.meta_graph", name, str(tmp_path))
    imported = tfckpt.import_meta_graph(path)
    assert imported.saver is not None
    imported.saver.restore(path.removesuffix(".meta"))
    values = {key: torch_of(raw) for key, raw in inputs.items()}
    if name == "slim":
        values["is_training:0"] = torch.tensor(False)
    module = imported.module(list(values), list(outputs), allow_assign=True)
    with pytest.raises(Exception, match=r"[Dd]ata-dependent|data_dependent|_local_scalar_dense|item\(\)"):
        torch.export.export(module, tuple(values.values()), strict=strict)
