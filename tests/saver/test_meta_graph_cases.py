"""CASES 62-67, 71-73, 79: TensorFlow's tests of meta graphs, run here and in TensorFlow on our files."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from tensorflow_process import TensorFlowProcess

import torch_tfckpt as tfckpt
from torch_tfckpt import (
    Collections,
    GraphKeys,
    Saver,
    SaveSliceInfo,
    Variable,
    add_to_collection,
    export_meta_graph,
    import_meta_graph,
)
from torch_tfckpt._proto.control_flow_pb2 import CondContextDef, ValuesDef, WhileContextDef
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.queue_runner_pb2 import QueueRunnerDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import VariableDef

V0 = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
# In TensorFlow these come from a graph; here they name nodes of our graph, so that TensorFlow accepts them.
PREDICATE = "v0/IsInitialized/VarIsInitializedOp:0"
RUNNER = QueueRunnerDef(
    queue_name="v0",
    enqueue_op_name=["v0/Assign"],
    close_op_name="v0/Assign",
    cancel_op_name="v0/Assign",
    queue_closed_exception_types=["OUT_OF_RANGE"],
)
COND = CondContextDef(
    context_name="cond/cond_text", pred_name=PREDICATE, pivot_name=PREDICATE, branch=1, values_def=ValuesDef()
)
WHILE = WhileContextDef(
    context_name="while/while_context",
    parallel_iterations=10,
    back_prop=True,
    pivot_name=PREDICATE,
    pivot_for_pred_name=PREDICATE,
    pivot_for_body_name=PREDICATE,
    values_def=ValuesDef(),
)


def names_of(message: MetaGraphDef, key: str = "variables") -> list[str]:
    return [VariableDef.FromString(each).variable_name for each in message.collection_def[key].bytes_list.value]


def nodes_of(message: MetaGraphDef) -> list[str]:
    return [node.name for node in message.graph_def.node]


def write(path: Path, message: Message) -> Path:
    path.write_bytes(message.SerializeToString())
    return path


def assert_same_nodes(ours: MetaGraphDef, theirs: MetaGraphDef) -> None:
    """Assert that both graphs have equal nodes.

    On import TensorFlow gives a colocated node the device of the node that it is colocated with, even if the exported
    graph had none.
    """
    for one, other in zip(ours.graph_def.node, theirs.graph_def.node, strict=True):
        if not one.device and "_class" in one.attr:
            other.device = ""
        assert str(one) == str(other)


def two_savers() -> tuple[Saver, Saver]:
    """Return two savers of one variable each, both in the collection "savers"."""
    savers = Saver({"v0": torch.tensor(V0)}, name="saver0"), Saver({"v1": torch.tensor(11.0)}, name="saver1")
    for saver in savers:
        add_to_collection(GraphKeys.SAVERS, saver)
    return savers


# CASES 62.


def collections_of_all_kinds() -> MetaGraphDef:
    """Return collections like those of the meta graph in testAddCollectionDef: twelve of them."""
    v0 = Variable(torch.tensor(1.0), "v0")
    with Collections().as_default():
        any_value = Any()
        any_value.Pack(RUNNER)
        for key, value in {
            "int_collection": 3,
            "float_collection": 3.5,
            "string_collection": "hello",
            "variable_collection": v0,
            "user_defined_string_collection": str(RUNNER),
            "user_defined_bytes_collection": RUNNER.SerializeToString(),
            "user_defined_any_collection": any_value,
            "queue_runners": RUNNER,
            "cond_context": COND,
            "while_context": WHILE,
        }.items():
            add_to_collection(key, value)
        return Saver({"v0": v0}).export_meta_graph()


def test_collections_of_all_kinds() -> None:
    """CASES 62: saver, graph and versions are exported, and each of the twelve collections.

    Each collection has the kind that TensorFlow writes and contains what was added to it.
    """
    meta = collections_of_all_kinds()
    assert meta.HasField("saver_def") and meta.HasField("graph_def") and meta.HasField("meta_info_def")
    assert meta.meta_info_def.tensorflow_version and meta.meta_info_def.tensorflow_git_version
    found = meta.collection_def
    assert {key: each.WhichOneof("kind") for key, each in found.items()} == {
        "variables": "bytes_list",
        "trainable_variables": "bytes_list",
        "int_collection": "int64_list",
        "float_collection": "float_list",
        "string_collection": "bytes_list",
        "variable_collection": "node_list",
        "user_defined_string_collection": "bytes_list",
        "user_defined_bytes_collection": "bytes_list",
        "user_defined_any_collection": "any_list",
        "queue_runners": "bytes_list",
        "cond_context": "bytes_list",
        "while_context": "bytes_list",
    }
    assert list(found["int_collection"].int64_list.value) == [3]
    assert list(found["float_collection"].float_list.value) == [3.5]
    assert list(found["string_collection"].bytes_list.value) == [b"hello"]
    assert list(found["variable_collection"].node_list.value) == ["v0:0"]
    assert names_of(meta) == names_of(meta, "trainable_variables") == ["v0:0"]
    assert list(found["user_defined_string_collection"].bytes_list.value) == [str(RUNNER).encode()]
    assert list(found["user_defined_bytes_collection"].bytes_list.value) == [RUNNER.SerializeToString()]
    unpacked = QueueRunnerDef()
    assert found["user_defined_any_collection"].any_list.value[0].Unpack(unpacked) and unpacked == RUNNER
    assert [QueueRunnerDef.FromString(each) for each in found["queue_runners"].bytes_list.value] == [RUNNER]
    assert [CondContextDef.FromString(each) for each in found["cond_context"].bytes_list.value] == [COND]
    assert [WhileContextDef.FromString(each) for each in found["while_context"].bytes_list.value] == [WHILE]


@pytest.mark.parametrize("again", ["saver", "meta graph", "module"])
def test_collections_of_all_kinds_are_exported_unchanged(tmp_path: Path, again: str) -> None:
    """CASES 62: an imported meta graph is exported as an equal message, with values added later."""
    meta = collections_of_all_kinds()
    imported = import_meta_graph(write(tmp_path / "m.meta", meta))
    assert imported.saver is not None

    def exported() -> MetaGraphDef:
        assert imported.saver is not None
        exports: dict[str, Callable[[], MetaGraphDef]] = {
            "saver": imported.saver.export_meta_graph,
            "meta graph": imported.export_meta_graph,
            "module": lambda: export_meta_graph(graph=imported),
        }
        return exports[again]()

    assert exported() == meta
    imported.collections.add_to_collection("int_collection", 4)
    imported.collections.add_to_collection("queue_runners", QueueRunnerDef(queue_name="other"))
    imported.collections.add_to_collection("new", "text")
    changed = exported()
    assert list(changed.collection_def["int_collection"].int64_list.value) == [3, 4]
    assert [
        QueueRunnerDef.FromString(each).queue_name for each in changed.collection_def["queue_runners"].bytes_list.value
    ] == ["v0", "other"]
    assert list(changed.collection_def["new"].bytes_list.value) == [b"text"]
    for key in ("int_collection", "queue_runners", "new"):
        changed.collection_def.pop(key)
        meta.collection_def.pop(key, None)
    assert changed == meta


def test_tensorflow_imports_collections_of_all_kinds(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """CASES 62: TensorFlow imports our collections and exports them as we wrote them."""
    meta = collections_of_all_kinds()
    found = tensorflow.call("tensorflow_meta_graphs.imported", str(write(tmp_path / "m.meta", meta)))
    theirs = MetaGraphDef.FromString(found["exported"])
    assert {key: str(each) for key, each in theirs.collection_def.items()} == {
        key: str(each) for key, each in meta.collection_def.items()
    }
    assert_same_nodes(meta, theirs)


def test_values_are_decoded_by_kind(tmp_path: Path) -> None:
    """CASES 62: an importer gets the decoded values of each kind of collection."""
    found = import_meta_graph(write(tmp_path / "m.meta", collections_of_all_kinds()))
    values = {key: found.collections.get_collection(key) for key in found.collections.get_all_collection_keys()}
    assert values["int_collection"] == [3] and values["float_collection"] == [3.5]
    assert values["string_collection"] == [b"hello"] and values["variable_collection"] == ["v0:0"]
    assert values["queue_runners"] == [RUNNER]
    assert values["cond_context"] == [COND] and values["while_context"] == [WHILE]
    assert [type(each) for each in values["user_defined_any_collection"]] == [Any]
    [v0] = values["variables"]
    assert isinstance(v0, Variable) and v0.tensor is found.variables["v0"]


# CASES 63.


def test_collections_that_cannot_be_written(caplog: pytest.LogCaptureFixture) -> None:
    """CASES 63: a non-string name and values of two kinds are left out and logged."""
    with Collections().as_default():
        add_to_collection(42, "value")
        for value in (3, 3.5):
            add_to_collection("mixed", value)
        with caplog.at_level(logging.WARNING):
            meta = export_meta_graph()
    assert not meta.collection_def
    assert [record.getMessage().partition(" is not written")[0] for record in caplog.records] == [
        "collection 42",
        'collection "mixed"',
    ]


# CASES 64, 65.


def test_two_savers(tmp_path: Path) -> None:
    """CASES 64: the meta graph contains the settings of its saver; the collection has both savers."""
    with Collections().as_default():
        saver0, saver1 = two_savers()
        meta, meta0, meta1 = export_meta_graph(), saver0.export_meta_graph(), saver1.export_meta_graph()
    assert not meta.HasField("saver_def")
    assert (meta0.saver_def, meta1.saver_def) == (saver0.as_saver_def(), saver1.as_saver_def())
    for each in (meta, meta0, meta1):
        assert each.collection_def["savers"].WhichOneof("kind") == "bytes_list"
        savers = [SaverDef.FromString(value) for value in each.collection_def["savers"].bytes_list.value]
        assert savers == [saver0.as_saver_def(), saver1.as_saver_def()]
        assert sorted(names_of(each)) == ["v0:0", "v1:0"]
        assert sorted(nodes_of(each)) == sorted(nodes_of(meta))


def test_each_of_two_savers_restores_its_own(tmp_path: Path) -> None:
    """CASES 64: after an import one saver restores only v0, the other only v1; names and shapes match."""
    with Collections().as_default():
        saver0, saver1 = two_savers()
        paths = saver0.save(tmp_path / "0.ckpt", write_state=False), saver1.save(tmp_path / "1.ckpt", write_state=False)
        export_meta_graph(tmp_path / "metafile")
    imported = import_meta_graph(tmp_path / "metafile")
    first, second = imported.collections.get_collection(GraphKeys.SAVERS)
    v0, v1 = imported.variables["v0"], imported.variables["v1"]
    assert isinstance(first, Saver) and isinstance(second, Saver)
    assert (tuple(v0.shape), tuple(v1.shape)) == ((3, 2), ())
    first.restore(paths[0])
    assert v0.tolist() == V0 and v1.tolist() == 0.0
    second.restore(paths[1])
    assert v0.tolist() == V0 and v1.tolist() == 11.0
    with pytest.raises(tfckpt.NotFoundError):
        first.restore(paths[1])


def test_each_of_two_savers_restores_its_own_in_tensorflow(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """CASES 64: TensorFlow finds the two savers that we registered, and each restores its own variable."""
    both = Saver({"v0": torch.tensor(V0), "v1": torch.tensor(11.0)})
    path = both.save(tmp_path / "both", write_meta_graph=False)
    with Collections().as_default():
        two_savers()
        export_meta_graph(tmp_path / "metafile")
    found = tensorflow.call("tensorflow_meta_graphs.restore_each", str(tmp_path / "metafile"), path)
    zeros = "[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]"
    assert found == [{"v0": str(V0), "v1": "0.0"}, {"v0": zeros, "v1": "11.0"}]


def test_other_savers_are_left_out(tmp_path: Path) -> None:
    """CASES 65: with clear_extraneous_savers the collection has one saver, and the graph only its nodes."""
    with Collections().as_default():
        saver0, saver1 = two_savers()
        meta0, meta1 = saver0.export_meta_graph(), saver1.export_meta_graph(clear_extraneous_savers=True)
        alone = export_meta_graph(clear_extraneous_savers=True)
    assert len(meta0.collection_def["savers"].bytes_list.value) == 2
    assert len(meta1.collection_def["savers"].bytes_list.value) == 1
    assert meta1.saver_def == saver1.as_saver_def()
    kept = set(nodes_of(meta0)) - set(nodes_of(meta1))
    assert kept and all(name.startswith("saver0/") for name in kept)
    assert not [name for name in nodes_of(meta1) if name.startswith("saver0/")]
    # Two variables, of five nodes each, and a saver of 13; TensorFlow has four nodes for a variable in that test.
    assert (len(meta0.graph_def.node), len(meta1.graph_def.node)) == (10 + 2 * 13, 10 + 13)
    assert not alone.HasField("saver_def") and len(alone.graph_def.node) == 10


# CASES 66.


def test_binary_and_text(tmp_path: Path) -> None:
    """CASES 66: both formats are read; another message and a missing file raise system errors."""
    binary, text = tmp_path / "metafile", tmp_path / "metafile.text"
    saver = Saver({"v0": torch.tensor(10.0)})
    meta = saver.export_meta_graph(binary)
    first = import_meta_graph(binary)
    assert first.saver is not None
    assert first.saver.export_meta_graph(text, as_text=True) == meta
    assert import_meta_graph(text).meta_graph_def == import_meta_graph(str(binary)).meta_graph_def == meta
    text.write_text(str(saver.as_saver_def()))
    with pytest.raises(OSError, match=r"Cannot parse file .*metafile\.text"):
        import_meta_graph(text)
    text.unlink()
    with pytest.raises(OSError, match="does not exist"):
        import_meta_graph(text)


def test_the_text_format_equals_tensorflows(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """CASES 66: the text format equals TensorFlow's as_text byte for byte, with collections of all kinds."""
    with Collections().as_default():
        two_savers()
        for key, value in (("c", "text \n \xe9"), ("i", 3), ("f", 0.1)):
            add_to_collection(key, value)
        meta = Saver({"w": torch.ones(2000)}, sharded=True).export_meta_graph(tmp_path / "text", as_text=True)
    theirs = tensorflow.call("tensorflow_meta_graphs.as_text", meta.SerializeToString())
    assert (tmp_path / "text").read_text() == theirs
    assert tensorflow.call("tensorflow_meta_graphs.imported", str(tmp_path / "text"))["saver"] == str(meta.saver_def)


# CASES 67.


def test_a_slice_under_another_name(tmp_path: Path) -> None:
    """CASES 67: a variable marked as a part of v1 and saved whole under its own key survives a round trip."""
    part = Variable(torch.tensor([20.0]), "v2", SaveSliceInfo("v1", [1], [0], [1]))
    saver = Saver({"first": Variable(torch.tensor([10.0]), "v1"), "second": part})
    meta = saver.export_meta_graph(tmp_path / "metafile")
    definitions = [VariableDef.FromString(each) for each in meta.collection_def["variables"].bytes_list.value]
    assert [each.variable_name for each in definitions] == ["v1:0", "v2:0"]
    assert not definitions[0].HasField("save_slice_info_def")
    info = definitions[1].save_slice_info_def
    assert (info.full_name, list(info.full_shape), list(info.var_offset), list(info.var_shape)) == ("v1", [1], [0], [1])
    imported = import_meta_graph(tmp_path / "metafile")
    assert imported.saver is not None and imported.saver.export_meta_graph() == meta
    path = saver.save(tmp_path / "m")
    imported.saver.restore(path)
    assert {name: value.tolist() for name, value in imported.variables.items()} == {"v1": [10.0], "v2": [20.0]}


def test_tensorflow_imports_a_slice_under_another_name(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """CASES 67: TensorFlow imports such a variable and exports it unchanged."""
    part = Variable(torch.tensor([20.0]), "v2", SaveSliceInfo("v1", [1], [0], [1]))
    meta = Saver({"first": Variable(torch.tensor([10.0]), "v1"), "second": part}).export_meta_graph(tmp_path / "m")
    found = tensorflow.call("tensorflow_meta_graphs.imported", str(tmp_path / "m"))
    theirs = MetaGraphDef.FromString(found["exported"])
    assert theirs.collection_def["variables"] == meta.collection_def["variables"]


# CASES 71, 72.


def test_import_into_a_scope(tmp_path: Path) -> None:
    """CASES 71: an import scope is added to variables and nodes, but not to the keys in the checkpoint.

    The values are restored, saved by the imported saver, and restored by the first saver again.
    """
    weights, bias = torch.rand(7, 5), torch.rand(5)
    saver = Saver({"weights": weights, "hidden/bias": bias})
    path = saver.save(tmp_path / "m")
    imported = import_meta_graph(tmp_path / "m.meta", import_scope="new_model")
    assert imported.saver is not None and imported.import_scope == "new_model"
    assert list(imported.variables) == ["new_model/hidden/bias", "new_model/weights"]
    imported.saver.restore(path)
    restored = imported.variables["new_model/weights"]
    assert isinstance(restored, torch.Tensor) and torch.equal(restored, weights)
    meta = imported.saver.export_meta_graph()
    assert meta.saver_def.restore_op_name == "new_model/save/restore_all"
    assert all(name.startswith("new_model/") for name in nodes_of(meta))
    assert names_of(meta) == ["new_model/hidden/bias:0", "new_model/weights:0"]
    restored.mul_(2)
    saver.restore(imported.saver.save(tmp_path / "n"))
    assert torch.equal(restored, weights)


def test_an_import_scope_gives_the_same_graph_as_tensorflow(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """CASES 71: our export of a graph imported into a scope equals TensorFlow's, node by node."""
    path = tmp_path / "m.meta"
    with Collections().as_default():
        saver0, _ = two_savers()
        for key, value in (("text", "hi"), ("number", 3)):
            add_to_collection(key, value)
        saver0.export_meta_graph(path)
    theirs = MetaGraphDef.FromString(tensorflow.call("tensorflow_meta_graphs.imported", str(path), "new")["exported"])
    ours = import_meta_graph(path, import_scope="new").export_meta_graph()
    assert_same_nodes(ours, theirs)
    assert {key: str(each) for key, each in ours.collection_def.items()} == {
        key: str(each) for key, each in theirs.collection_def.items()
    }


def test_import_without_variables(tmp_path: Path) -> None:
    """CASES 72: without variables to restore, an import returns no saver.

    Variables registered in another scope do not count; one in the import scope gives a saver of registered variables.
    """
    graph = MetaGraphDef()
    graph.graph_def.node.add(name="x", op="NoOp")
    path = write(tmp_path / "m.meta", graph)
    with Collections().as_default():
        assert import_meta_graph(path, import_scope="subgraph_1").saver is None
        assert import_meta_graph(path).saver is None
        my_var = torch.zeros(10)
        add_to_collection(GraphKeys.GLOBAL_VARIABLES, Variable(my_var, "my_scope/my_var"))
        assert import_meta_graph(path, import_scope="subgraph_2").saver is None
        assert import_meta_graph(path, import_scope="my").saver is None
        found = import_meta_graph(path, import_scope="my_scope").saver
        assert isinstance(found, Saver)
    saved = Saver({"my_scope/my_var": torch.ones(10)}).save(tmp_path / "m")
    found.restore(saved)
    assert my_var.tolist() == [1.0] * 10


# CASES 73.


def on_devices() -> Saver:
    """Return variables on two devices, saved as two shards."""
    return Saver(
        [
            Variable(torch.tensor([1.0]), "a", device="/cpu:0"),
            Variable(torch.tensor([2.0]), "b", device="/job:ps/gpu:3"),
        ],
        sharded=True,
    )


def test_devices_are_cleared_on_import(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """CASES 73: clear_devices removes the device of each node, as in TensorFlow; otherwise each is kept."""
    saver = on_devices()
    path = saver.save(tmp_path / "m")
    plain, cleared = import_meta_graph(tmp_path / "m.meta"), import_meta_graph(tmp_path / "m.meta", clear_devices=True)
    devices = {node.name: node.device for node in plain.export_meta_graph().graph_def.node}
    assert (devices["a"], devices["b"]) == ("/device:CPU:0", "/job:ps/device:GPU:3")
    assert {node.device for node in cleared.export_meta_graph().graph_def.node} == {""}
    assert cleared.saver is not None
    cleared.saver.restore(path)
    assert {name: value.tolist() for name, value in cleared.variables.items()} == {"a": [1.0], "b": [2.0]}
    assert tensorflow.call("tensorflow_meta_graphs.imported", str(tmp_path / "m.meta"))["devices"] != [""]


def test_devices_are_cleared_on_export(tmp_path: Path, tensorflow: TensorFlowProcess) -> None:
    """CASES 73: devices are cleared in the file, so that TensorFlow, which lacks them, restores from it."""
    saver = on_devices()
    path = saver.save(tmp_path / "m")
    meta = saver.export_meta_graph(tmp_path / "cleared", clear_devices=True)
    assert {node.device for node in meta.graph_def.node} == {""}
    assert {node.device for node in saver.export_meta_graph().graph_def.node} != {""}
    assert tensorflow.call("tensorflow_meta_graphs.imported", str(tmp_path / "cleared"))["devices"] == [""]
    trained = tensorflow.call("tensorflow_meta_graphs.train", str(tmp_path / "cleared"), path, str(tmp_path / "n"))
    assert trained.restored["b"].data == torch.tensor([2.0]).numpy().tobytes()


# CASES 79.


@pytest.mark.parametrize("to_scope", ["hidden1", "other/scope", None])
def test_savers_in_scopes(tmp_path: Path, to_scope: str | None) -> None:
    """CASES 79: exporting a scope writes only its own saver to "savers", without the scope.

    Imported into another scope, it restores its variable.
    """
    with Collections().as_default():
        for number in (1, 2):
            value = torch.tensor([float(number)])
            saver = Saver([Variable(value, f"hidden{number}/variable{number}")], name=f"hidden{number}/save")
            add_to_collection(GraphKeys.SAVERS, saver)
            saver.save(tmp_path / f"{number}.ckpt", write_state=False)
        meta = export_meta_graph(tmp_path / "m.meta", export_scope="hidden1")
    [saver_def] = [SaverDef.FromString(each) for each in meta.collection_def["savers"].bytes_list.value]
    assert saver_def.restore_op_name == "save/restore_all"
    assert names_of(meta) == ["variable1:0"]
    assert not [name for name in nodes_of(meta) if "hidden" in name]
    imported = import_meta_graph(tmp_path / "m.meta", import_scope=to_scope)
    [found] = imported.collections.get_collection(GraphKeys.SAVERS)
    assert isinstance(found, Saver)
    found.restore(tmp_path / "1.ckpt")
    prefix = f"{to_scope}/" if to_scope else ""
    assert {name: value.tolist() for name, value in imported.variables.items()} == {f"{prefix}variable1": [1.0]}
