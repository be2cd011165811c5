"""Variables of TF2 SavedModels: what TensorFlow's functions capture is what our nodes and functions are bound to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tensorflow_process import RawTensor, TensorFlowProcess

from torch_tfckpt import ImportedMetaGraph, import_meta_graph
from torch_tfckpt.meta_graph.saver_values import called_function
from torch_tfckpt.values import Value

KINDS = ("keras export", "keras in a module", "keras 2", "module", "slots", "expanded")
HEAVY = ("keras endpoints", "keras saved", "keras recurrent", "mirrored")
ALL = (*KINDS, *(pytest.param(kind, marks=pytest.mark.heavy) for kind in HEAVY))


class SavedModel(NamedTuple):
    """A SavedModel, and what TensorFlow found in it."""

    directory: Path
    signatures: dict[str, Any]
    variables: Sequence[RawTensor]

    @property
    def prefix(self) -> Path:
        return self.directory / "variables" / "variables"


class Models:
    """SavedModels by kind; each is written when it is first used."""

    def __init__(self, tensorflow: TensorFlowProcess, folder: Path) -> None:
        self._tensorflow, self._folder = tensorflow, folder
        self._made: dict[str, SavedModel] = {}

    def __getitem__(self, kind: str) -> SavedModel:
        if kind not in self._made:
            directory = self._folder / kind.replace(" ", "_")
            found = self._tensorflow.call("tensorflow_saved_models.write", kind, str(directory))
            self._made[kind] = SavedModel(directory, *found)
        return self._made[kind]


@pytest.fixture(scope="module")
def models(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tensorflow, tmp_path_factory.mktemp("models"))


def captured(imported: ImportedMetaGraph, signature: str) -> list[str | None]:
    """The variables that a signature captures, by the nodes that its call passes."""
    [name] = {info.name.partition(":")[0] for info in imported.signatures[signature].outputs.values()}
    graph = imported._meta.graph
    node = graph.nodes[name]
    function = called_function(graph.functions, node)
    assert function is not None
    count = len(imported._bindings.of_function(function.name))
    inputs = [each for each in node.inputs if not each.startswith("^")]
    found = [imported._bindings.of_node(each.removesuffix(":0")) for each in inputs[len(inputs) - count :]]
    assert found == list(imported._bindings.of_function(function.name))
    return found


def raw(imported: ImportedMetaGraph, names: Sequence[str | None]) -> list[RawTensor | None]:
    return [None if name is None else RawTensor.of(imported.variables[name]) for name in names]


def change(value: Value) -> None:
    """Change a value in place."""
    if isinstance(value, np.ndarray):
        value[...] = np.frompyfunc(lambda text: text + b"!", 1, 1)(value)
    else:
        value.mul_(2).add_(1)


@pytest.mark.parametrize("scope", [None, "imp"], ids=["", "scope"])
@pytest.mark.parametrize("kind", ALL)
def test_captured_variables(models: Models, kind: str, scope: str | None) -> None:
    """Each argument that a function captures has the value that TensorFlow passes, or is not a variable in both; the
    values are read from the SavedModel at the first use, and the trainable flags are TensorFlow's."""
    model = models[kind]
    imported = import_meta_graph(model.directory, import_scope=scope)
    imported._bindings.require(imported.variables)
    assert model.signatures.keys() <= imported.signatures.keys() and model.signatures
    for name, expected in model.signatures.items():
        found = captured(imported, name)
        assert raw(imported, found) == expected.values
        trainable = {each for each in found if each is not None and imported._bindings.trainable[each]}
        assert len(trainable) == len(expected.trainable)
        for each in trainable:
            variable = each.removeprefix("imp/")
            assert variable in expected.trainable or variable not in _own_names(imported)


def _own_names(imported: ImportedMetaGraph) -> set[str]:
    """Names that only one variable of the program has."""
    objects = imported._meta.object_graph
    assert objects is not None
    names = [node.variable.name for node in objects.nodes if node.HasField("variable")]
    return {name for name in names if names.count(name) == 1}


@pytest.mark.parametrize("kind", ALL)
def test_restored_and_handed_back(models: Models, tensorflow: TensorFlowProcess, tmp_path: Path, kind: str) -> None:
    """The saver restores the values, and TensorFlow loads those that it writes: all variables, all functions."""
    model = models[kind]
    imported = import_meta_graph(model.directory)
    assert imported.saver is not None
    assert set(imported.checkpoint_keys) == set(imported.variables)
    imported.saver.restore(model.prefix)
    before = {_identity(value): name for name, value in imported.variables.items()}
    assert before.keys() == {_identity(value) for value in model.variables}
    for value in imported.variables.values():
        change(value)
    after = {before_value: _identity(imported.variables[name]) for before_value, name in before.items()}
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes((model.directory / "saved_model.pb").read_bytes())
    imported.saver.save(tmp_path / "variables" / "variables", write_meta_graph=False, write_state=False)
    signatures, variables = tensorflow.call("tensorflow_saved_models.load", str(tmp_path))
    assert [_identity(value) for value in variables] == [after[_identity(value)] for value in model.variables]
    for name, expected in model.signatures.items():
        assert [value and _identity(value) for value in signatures[name].values] == [
            value and after[_identity(value)] for value in expected.values
        ]


def _identity(value: Value | RawTensor) -> tuple[str, tuple[int, ...], bytes]:
    found = RawTensor.of(value)
    return found.dtype, found.shape, found.data


@pytest.mark.parametrize("kind", ["module", "slots"])
def test_handed_back_to_objects(models: Models, tensorflow: TensorFlowProcess, tmp_path: Path, kind: str) -> None:
    """tf.train.Checkpoint restores what the saver writes into a new model of the same program."""
    imported = import_meta_graph(models[kind].directory)
    assert imported.saver is not None
    imported.saver.restore(models[kind].prefix)
    path = imported.saver.save(tmp_path / "m")
    values = tensorflow.call("tensorflow_saved_models.restored_by_checkpoint", kind, path)
    assert {_identity(value) for value in values} == {_identity(value) for value in imported.variables.values()}


def test_names(models: Models) -> None:
    """A variable has the name that it has in the program; if several have one name, the paths of their objects."""
    names = {kind: list(import_meta_graph(models[kind].directory).variables) for kind in KINDS}
    assert names["module"] == ["one", "two", "bias", "unshaped", "text", "unused", "parts/0", "parts/1/a.Sb"]
    assert names["slots"] == ["w", "SGD/iter", "SGD/decay", "SGD/learning_rate", "SGD/momentum", "SGD/w/momentum"]
    kernels = {"shared/kernel", "first/norm/gamma", "second/norm/gamma", "batch/moving_mean", "frozen/kernel"}
    for kind in ("keras export", "keras in a module"):
        assert kernels <= set(names[kind]), kind
        assert not any(name.startswith(("Variable", "_all_variables")) for name in names[kind])
    # Keras 2 calls both layers "norm/gamma"; its checkpoint stores them as variables/2 and variables/6.
    assert {"shared/kernel", "variables/2", "variables/6", "batch/moving_mean"} <= set(names["keras 2"])
