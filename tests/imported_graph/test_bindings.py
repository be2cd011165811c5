"""Which variables the nodes of an imported graph are, and when they have values: for running the graph."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, copytree

import numpy as np
import pytest
import torch
from meta_graph_files import SAVER, graph, node, part, restoring, variable
from object_graph_files import ObjectMetaGraph, Saved, key
from tensorflow_process import RawTensor

import torch_tfckpt as tfckpt
from torch_tfckpt import DataType, FailedPreconditionError, ImportedMetaGraph, Saver, import_meta_graph
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.saved_model_pb2 import SavedModel
from torch_tfckpt.values import Value

KERNEL = Saved("k", "kernel", "Variable", "kernel_1", (2,), trainable=True)
BIAS = Saved("b", "bias", "Variable_1", "bias", (3,))
TEXT = Saved("t", "text", "text", "text", (2,), dtype=DataType.DT_STRING)
VALUES: dict[str, Value] = {
    key("k"): torch.tensor([1.0, 2.0]),
    key("b"): torch.tensor([0.0, 0.0, 0.0]),
    key("t"): np.array([b"", b""], dtype=object),
}


def saved_model(directory: Path, form: int = 2, text: bool = False) -> Path:
    """Write a SavedModel of TensorFlow 1 or 2, with its values."""
    meta = ObjectMetaGraph([KERNEL, BIAS, TEXT], {"f": [0, 1, 2]}).message()
    if form == 1:
        meta.ClearField("object_graph_def")
    meta.meta_info_def.tags.append("serve")
    directory.mkdir()
    (directory / "variables").mkdir()
    message = SavedModel(saved_model_schema_version=1, meta_graphs=[meta])
    (directory / "saved_model.pb").write_bytes(message.SerializeToString())
    if text:
        import_meta_graph(directory).export_meta_graph(directory / "saved_model.pbtxt", as_text=True)
        (directory / "saved_model.pb").unlink()
    stored = meta.graph_def.node
    [constant] = [each for each in stored if each.name == "save/graph"]
    encoded = np.array(constant.attr["value"].tensor.string_val[0], dtype=object)
    tfckpt.save_file({**VALUES, "_CHECKPOINTABLE_OBJECT_GRAPH": encoded}, directory / "variables" / "variables")
    return directory


def tensor(imported: ImportedMetaGraph, name: str) -> torch.Tensor:
    value = imported.variables[name]
    assert isinstance(value, torch.Tensor)
    return value


def unset(imported: ImportedMetaGraph) -> list[str]:
    return [name for name in imported.variables if not imported._bindings.is_set(name)]


@pytest.mark.parametrize("scope", [None, "imp"], ids=["", "scope"])
def test_nodes_and_functions(tmp_path: Path, scope: str | None) -> None:
    """Names of nodes and functions are those in the file; names of variables are those in `variables`."""
    imported = import_meta_graph(saved_model(tmp_path / "m"), import_scope=scope)
    prefix = f"{scope}/" if scope else ""
    bindings = imported._bindings
    assert [bindings.of_node(name) for name in ("Variable", "kernel_1", "bias", "x", "absent")] == [
        f"{prefix}kernel", f"{prefix}kernel", f"{prefix}bias", None, None,
    ]  # fmt: skip
    assert bindings.of_function("f") == (f"{prefix}kernel", f"{prefix}bias", f"{prefix}text")
    assert bindings.of_function("absent") == ()
    assert bindings.value("kernel_1") is imported.variables[f"{prefix}kernel"] and bindings.value("x") is None
    assert bindings.part("kernel_1") is None
    assert bindings.trainable == {f"{prefix}kernel": True, f"{prefix}bias": False, f"{prefix}text": False}


def test_parts() -> None:
    """A part of a partitioned variable is a slice of the whole variable."""
    parts = [part("w/0", "w", [4, 3], [0, 0], [1, 3]), part("w/1", "w", [4, 3], [1, 0], [3, 3])]
    nodes = [variable("w/0", [1, 3]), variable("w/1", [3, 3]), variable("b", [2])]
    imported = import_meta_graph(graph(nodes, [*parts, "b"]), import_scope="s")
    bindings = imported._bindings
    assert [bindings.of_node(name) for name in ("w/0", "w/1", "b")] == ["s/w", "s/w", "s/b"]
    assert [bindings.part(name) for name in ("w/1", "b")] == [(slice(1, 4), slice(0, 3)), None]
    imported.variables["s/w"][1:] = 5.0
    value = bindings.value("w/1")
    assert isinstance(value, torch.Tensor) and value.tolist() == [[5.0] * 3] * 3
    assert unset(imported) == ["s/b"]


def test_parts_of_strings(tmp_path: Path) -> None:
    """They belong to the whole variable, too, which is set when it is restored, even to empty strings."""
    parts = [part(f"t/{n}", "t", [4], [2 * n], [2]) for n in range(2)]
    nodes = [variable(f"t/{n}", [2], DataType.DT_STRING) for n in range(2)]
    imported = import_meta_graph(graph(nodes, parts), import_scope="s")
    bindings = imported._bindings
    assert (bindings.of_node("t/1"), bindings.part("t/1")) == ("s/t", (slice(2, 4),))
    assert imported.checkpoint_keys == {"s/t": "s/t"} and unset(imported) == ["s/t"]
    prefix = tfckpt.save_file({"s/t": np.full(4, b"", dtype=object)}, tmp_path / "m")
    assert imported.saver is not None
    imported.saver.restore(prefix)
    bindings.require(["s/t"])


def test_variables_without_a_tensor() -> None:
    """Neither a local variable nor one of a type that torch lacks is a variable here."""
    nodes = [variable("w"), variable("local"), variable("v", dtype=DataType.DT_VARIANT), node("n", "NoOp")]
    bindings = import_meta_graph(graph(nodes, ["w", "v"]))._bindings
    assert [bindings.of_node(name) for name in ("w", "local", "v", "n")] == ["w", None, None, None]


@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize("spelling", ["", "saved_model.pb", "text"])
def test_a_saved_model_brings_its_values(tmp_path: Path, form: int, spelling: str) -> None:
    """They are read at the first use, also zeros and empty strings, and not again."""
    model = saved_model(tmp_path / "m", form, text=spelling == "text")
    imported = import_meta_graph(model if spelling == "text" else model / spelling)
    names = list(imported.variables)
    assert unset(imported) == names
    imported._bindings.require(names[:1])
    assert unset(imported) == []
    assert tensor(imported, names[0]).tolist() == [1, 2]
    tensor(imported, names[0]).zero_()
    (model / "variables" / "variables.index").unlink()
    imported._bindings.require(names)
    assert tensor(imported, names[0]).tolist() == [0, 0]


def test_saved_after_the_first_use(tmp_path: Path) -> None:
    """The values that were read can be saved, including those without a variable."""
    imported = import_meta_graph(saved_model(tmp_path / "m"))
    imported._bindings.require(["kernel"])
    assert imported.saver is not None
    path = imported.saver.save(tmp_path / "new" / "m")
    stored = tfckpt.load_file(path)
    assert len(stored) == 4 and RawTensor.of(stored[key("k")]) == RawTensor.of(VALUES[key("k")])


def set_item(imported: ImportedMetaGraph) -> None:
    imported.variables["bias"] = torch.zeros(3)


def fill(imported: ImportedMetaGraph) -> None:
    tensor(imported, "bias").fill_(7.0)


def zero(imported: ImportedMetaGraph) -> None:
    tensor(imported, "bias").zero_()


def a_view(imported: ImportedMetaGraph) -> None:
    imported.variables["bias"][1] = 3.0


def a_parameter(imported: ImportedMetaGraph) -> None:
    with torch.no_grad():
        torch.nn.Parameter(tensor(imported, "bias")).mul_(0.0)


def data(imported: ImportedMetaGraph) -> None:
    tensor(imported, "bias").data.fill_(1.0)


def from_numpy(imported: ImportedMetaGraph) -> None:
    tensor(imported, "bias").numpy()[:] = 2.0


@pytest.mark.parametrize("change", [set_item, fill, zero, a_view, a_parameter, data, from_numpy])
def test_what_was_set_before_is_kept(tmp_path: Path, change: Callable[[ImportedMetaGraph], None]) -> None:
    """However it was set, and also if it was set to zeros; the other values are read."""
    model = saved_model(tmp_path / "m")
    other = {name: torch.full_like(value, 9.0) for name, value in VALUES.items() if isinstance(value, torch.Tensor)}
    tfckpt.save_file({**tfckpt.load_file(model), **other}, model / "variables" / "variables")
    imported = import_meta_graph(model)
    change(imported)
    before = tensor(imported, "bias").clone()
    assert unset(imported) == ["kernel", "text"]
    imported._bindings.require(["kernel"])
    assert torch.equal(tensor(imported, "bias"), before)
    assert imported.variables["kernel"].tolist() == [9, 9]


def test_strings_that_were_set_before_are_kept(tmp_path: Path) -> None:
    imported = import_meta_graph(saved_model(tmp_path / "m"))
    imported.variables["text"] = np.array([b"", b"a"], dtype=object)
    imported._bindings.require(imported.variables)
    assert imported.variables["text"].tolist() == [b"", b"a"]


def test_what_was_restored_before_is_kept(tmp_path: Path) -> None:
    """Values of the SavedModel are not mixed with those of another checkpoint: what is missing there is an error."""
    model = saved_model(tmp_path / "m")
    path = Saver({key("k"): torch.tensor([5.0, 6.0])}).save(tmp_path / "other", write_meta_graph=False)
    imported = import_meta_graph(model)
    assert imported.saver is not None
    imported.saver.restore(path, strict=False)
    imported._bindings.require(["kernel"])
    assert imported.variables["kernel"].tolist() == [5, 6]
    with pytest.raises(
        FailedPreconditionError, match=r'value "bias", "text": neither restored nor set\. .*restore\(pre'
    ):
        imported._bindings.require(imported.variables)
    imported.variables["bias"] = torch.zeros(3)
    imported._bindings.require(["kernel", "bias"])


def meta_file(directory: Path) -> ImportedMetaGraph:
    path = Saver({"w": torch.tensor([0.0, 0.0]), "b": torch.tensor([1.0])}).save(directory / "m.ckpt")
    return import_meta_graph(f"{path}.meta")


def test_a_meta_file_has_no_values(tmp_path: Path) -> None:
    """Only the variables that are asked for must have values; a restored zero is a value."""
    imported = meta_file(tmp_path)
    with pytest.raises(FailedPreconditionError, match=r'uninitialized value "w": neither restored nor set'):
        imported._bindings.require(["w"])
    imported.variables["b"] = torch.tensor([3.0])
    imported._bindings.require(["b"])
    with pytest.raises(FailedPreconditionError, match=r'"w"'):
        imported._bindings.require(["b", "w"])
    assert imported.saver is not None
    imported.saver.restore(tmp_path / "m.ckpt")
    imported._bindings.require(["w", "b"])
    assert imported.variables["b"].tolist() == [1.0]


def test_missing_and_damaged_values(tmp_path: Path) -> None:
    """The error names the SavedModel's checkpoint, and nothing is set."""
    model = saved_model(tmp_path / "m")
    copytree(model, tmp_path / "cut")
    data = tmp_path / "cut" / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    copytree(model, tmp_path / "none", ignore=lambda *_: {"variables"})
    for name in ("cut", "none"):
        imported = import_meta_graph(tmp_path / name)
        with pytest.raises(tfckpt.CheckpointError, match=rf"SavedModel.*{name}/variables/variables"):
            imported._bindings.require(["kernel"])
        assert unset(imported) == ["kernel", "bias", "text"]


def test_a_message_and_a_copied_file_have_no_values(tmp_path: Path) -> None:
    """A message has no directory; a SavedModel's meta graph that was saved as `.meta` is a `.meta` file."""
    model = saved_model(tmp_path / "m")
    message = SavedModel.FromString((model / "saved_model.pb").read_bytes()).meta_graphs[0]
    copyfile(model / "saved_model.pb", tmp_path / "copy.pb")
    assert isinstance(message, MetaGraphDef)
    for source in (message, tmp_path / "copy.pb"):
        with pytest.raises(FailedPreconditionError, match="neither restored nor set"):
            import_meta_graph(source)._bindings.require(["kernel"])


def test_an_unshaped_variable(tmp_path: Path) -> None:
    """It is empty until it is restored or set, and an empty tensor is not a value."""
    nodes = [variable("w", [-1, 2]), *restoring([("w", 0)], [b"w"])]
    imported = import_meta_graph(graph(nodes, "w", SAVER))
    assert unset(imported) == ["w"] and imported.saver is not None
    path = Saver({"w": torch.ones(3, 2)}).save(tmp_path / "m")
    imported.saver.restore(path)
    assert unset(imported) == [] and imported.variables["w"].shape == (3, 2)


def test_saved_models_of_public_projects(corpus: Path) -> None:
    """Each variable has the value that TensorFlow read under its key, and everything that functions read is bound."""
    count = 0
    for file in sorted(corpus.glob("**/saved_model.pb")):
        imported = import_meta_graph(
            file.parent, tags=None if file.parent.name != "tslnihao-saved_model" else ["serve"]
        )
        objects = imported._meta.object_graph
        if objects is None or not imported.variables:
            continue
        count += 1
        bindings = imported._bindings
        bindings.require(imported.variables)
        expected = json.loads((file.parent / "expected.json").read_text())["tensors"]
        for name, stored_as in imported.checkpoint_keys.items():
            assert RawTensor.of(imported.variables[name]).sha256 == expected[stored_as]["sha256"], (file, name)
        assert not any(name.startswith("Variable_") for name in imported.variables)
        for function, captured in objects.concrete_functions.items():
            kinds = [objects.nodes[number].WhichOneof("kind") for number in captured.bound_inputs]
            assert [name is not None for name in bindings.of_function(function)] == [k == "variable" for k in kinds]
    assert count >= 10
