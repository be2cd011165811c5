"""export_meta_graph: its arguments, what is registered, and that TensorFlow can import everything written."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format

import torch_tfckpt as tfckpt
from torch_tfckpt import (
    Collections,
    DataType,
    GraphKeys,
    PartitionedVariable,
    SaveableObject,
    Saver,
    SaverDef,
    SaveSliceInfo,
    SaveSpec,
    Variable,
    add_to_collection,
    export_meta_graph,
    import_meta_graph,
)
from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.variable_pb2 import VariableDef


class Pair(SaveableObject):
    """A tensor and a string, given by functions that are called when they are saved."""

    def __init__(self, name: str) -> None:
        number = SaveSpec(lambda: torch.ones(2), "", f"{name}-number", torch.float32, "cpu")
        text = SaveSpec(lambda: b"x", "", f"{name}-text", DataType.DT_STRING, "cpu")
        super().__init__(self, [number, text], name)


def exported(*values: object, key: str = GraphKeys.GLOBAL_VARIABLES) -> MetaGraphDef:
    """Return the meta graph of default collections with these values in one."""
    with Collections().as_default():
        for value in values:
            add_to_collection(key, value)
        return export_meta_graph()


def variables_of(meta: MetaGraphDef, key: str = GraphKeys.GLOBAL_VARIABLES) -> list[str]:
    return [VariableDef.FromString(each).variable_name for each in meta.collection_def[key].bytes_list.value]


def handles(meta: MetaGraphDef) -> list[str]:
    return [node.name for node in meta.graph_def.node if node.op == "VarHandleOp"]


def ops_of(meta: MetaGraphDef) -> list[str]:
    return [op.name for op in meta.meta_info_def.stripped_op_list.op]


def assert_names_only_nodes(meta: MetaGraphDef) -> None:
    """Assert that all inputs and collections name existing nodes: otherwise TensorFlow cannot import the graph."""
    names = {node.name for node in meta.graph_def.node}
    named = [name for node in meta.graph_def.node for name in node.input]
    named += [name for each in meta.collection_def.values() for name in each.node_list.value]
    assert {name.removeprefix("^").partition(":")[0] for name in named} <= names


# Registered objects.


def test_nothing_registered() -> None:
    """A graph without nodes, and the versions."""
    with Collections().as_default():
        meta = export_meta_graph()
    assert (len(meta.graph_def.node), len(meta.collection_def), meta.HasField("saver_def")) == (0, 0, False)
    assert meta.meta_info_def.tensorflow_version == "2.21.0"
    assert meta.meta_info_def.tensorflow_git_version.startswith("torch_tfckpt")


def test_kinds_of_variables() -> None:
    """Variables, (name, tensor) pairs, partitioned variables, saveables: each tensor has a node."""
    parts = [Variable(torch.ones(2), f"w/{n}", SaveSliceInfo("w", [4], [2 * n], [2])) for n in (0, 1)]
    meta = exported(
        Variable(torch.ones(3), "a", device="/gpu:1"),
        ("scope/b", torch.nn.Parameter(torch.ones(2))),
        PartitionedVariable("w", parts),
    )
    assert variables_of(meta) == ["a:0", "scope/b:0", "w/0:0", "w/1:0"]
    definitions = [VariableDef.FromString(each) for each in meta.collection_def["variables"].bytes_list.value]
    assert [each.save_slice_info_def.full_name for each in definitions] == ["", "", "w", "w"]
    nodes = {node.name: node for node in meta.graph_def.node}
    assert nodes["a"].device == "/device:GPU:1" and int(nodes["a"].attr["dtype"].type) == DataType.DT_FLOAT
    assert [dim.size for dim in nodes["a"].attr["shape"].shape.dim] == [3]
    assert_names_only_nodes(meta)


@pytest.mark.parametrize("key", ["variables", "trainable_variables", "local_variables", "model_variables"])
def test_collections_of_variables(key: str) -> None:
    """Each is written with its values."""
    meta = exported(Variable(torch.ones(1), "v", trainable=False), key=key)
    assert list(meta.collection_def) == [key] and variables_of(meta, key) == ["v:0"]


def test_a_tensor_is_one_variable() -> None:
    """However often and under whatever names it is registered, and in any number of savers."""
    tensor = torch.ones(2)
    with Collections().as_default():
        for key in ("variables", "trainable_variables", "variables"):
            add_to_collection(key, Variable(tensor, "v"))
        add_to_collection("savers", Saver({"key": tensor}))
        meta = Saver({"other": tensor}).export_meta_graph()
    assert len(handles(meta)) == 1 and len(variables_of(meta)) == 1
    assert len(meta.collection_def["savers"].bytes_list.value) == 1


def test_names_are_made_unique() -> None:
    """Two tensors with one name, invalid node names, names of a saver's nodes."""
    meta = exported(*[Variable(torch.ones(1), name) for name in ("a", "a", "a b", "a_b", "a:0", "_", "")])
    assert variables_of(meta) == ["a:0", "a_1:0", "a_b:0", "a_b_1:0", "a_2:0", "v_:0", "v:0"]
    assert_names_only_nodes(meta)


def test_saver_names_are_made_unique() -> None:
    """Those with one name get _1, _2, ...; the saver whose meta graph it is keeps its name."""
    with Collections().as_default():
        savers = [Saver({f"v{number}": torch.ones(1)}) for number in range(3)]
        for saver in savers:
            add_to_collection("savers", saver)
        metas = [savers[0].export_meta_graph(), savers[2].export_meta_graph()]
    for meta, order in zip(metas, (["save", "save_1", "save_2"], ["save_1", "save_2", "save"]), strict=True):
        found = [SaverDef.FromString(each).restore_op_name for each in meta.collection_def["savers"].bytes_list.value]
        assert found == [f"{scope}/restore_all" for scope in order]
        assert meta.saver_def.restore_op_name == "save/restore_all"
        assert set(found) <= {node.name for node in meta.graph_def.node}
        assert_names_only_nodes(meta)


def test_a_saver_that_is_registered_twice() -> None:
    """It is in the collection twice, and in the graph once."""
    saver = Saver({"v": torch.ones(1)})
    meta = exported(saver, saver, key="savers")
    found = [SaverDef.FromString(each) for each in meta.collection_def["savers"].bytes_list.value]
    assert found == [saver.as_saver_def()] * 2
    assert [node.op for node in meta.graph_def.node].count("RestoreV2") == 1


@pytest.mark.parametrize("key", ["saveable_objects", "mine"])
def test_saveables_are_not_nodes(key: str) -> None:
    """An object whose name is not the name of a node is not written."""
    with Collections().as_default():
        add_to_collection(key, Pair("pair"))
        add_to_collection(
            key, PartitionedVariable("w", [Variable(torch.ones(1), "w/0", SaveSliceInfo("w", [1], [0], [1]))])
        )
        saver = Saver([Pair("pair")])
        for meta in (export_meta_graph(), saver.export_meta_graph()):
            assert_names_only_nodes(meta)


def test_callable_values_have_no_shape() -> None:
    """The function is not called to write a graph: TensorFlow gets the shape when it restores."""
    meta = Saver([Pair("pair")]).export_meta_graph()
    nodes = {node.name: node.attr for node in meta.graph_def.node if node.op == "VarHandleOp"}
    assert sorted(nodes) == ["pair-number", "pair-text"]
    assert all(attrs["shape"].shape.unknown_rank for attrs in nodes.values())


NOT_WRITTEN: dict[str, tuple[object, ...]] = {
    "two kinds": (3, 3.5),
    "a bool": (True,),
    "a large int": (1 << 70,),
    "a float and a large int": (2.5, 10**400),
    "half a character": ("\udcff",),
    "a string and a number": ("a", 3),
    "None": (None,),
    "a list": ([1],),
    "a tensor": (torch.ones(2),),
    "an object": (object(),),
    "a string and a variable": ("a", Variable(torch.ones(1), "v")),
}


@pytest.mark.parametrize("values", NOT_WRITTEN.values(), ids=NOT_WRITTEN.keys())
def test_collections_that_are_not_written(caplog: pytest.LogCaptureFixture, values: tuple[object, ...]) -> None:
    """CASES 63: a warning is logged; everything else is written."""
    with caplog.at_level(logging.WARNING), Collections().as_default():
        for value in values:
            add_to_collection("mine", value)
        add_to_collection("number", 1)
        meta = export_meta_graph()
    assert list(meta.collection_def) == ["number"]
    assert ['"mine" is not written' in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("key", [5, None, b"bytes", "\udcff", ("a",)], ids=repr)
def test_invalid_names_of_collections(caplog: pytest.LogCaptureFixture, key: str) -> None:
    """CASES 63: they are not written, with a warning."""
    with caplog.at_level(logging.WARNING):
        meta = exported(1, key=key)
    assert not meta.collection_def and len(caplog.records) == 1


@pytest.mark.parametrize(
    "value", [torch.ones(2), torch.nn.Linear(1, 1), 3, "v"], ids=["tensor", "module", "int", "str"]
)
def test_a_value_that_is_not_a_variable(caplog: pytest.LogCaptureFixture, value: object) -> None:
    """It is left out of a collection of variables, with a warning."""
    with caplog.at_level(logging.WARNING):
        meta = exported(Variable(torch.ones(1), "v"), value)
    assert variables_of(meta) == ["v:0"] and len(caplog.records) == 1


# Arguments.


def test_the_file(tmp_path: Path) -> None:
    """Directories are created; binary and text files contain the returned message; an existing file is replaced."""
    saver = Saver({"v": torch.ones(2)})
    for name, as_text in (("a/b/binary", False), ("c/text", True), ("c/text", False)):
        meta = saver.export_meta_graph(tmp_path / name, as_text=as_text)
        content = (tmp_path / name).read_bytes()
        if as_text:
            assert text_format.Parse(content.decode(), MetaGraphDef()) == meta
        else:
            assert content == meta.SerializeToString(deterministic=True)
    saver.save(tmp_path / "m")
    assert (tmp_path / "m.meta").read_bytes() == (tmp_path / "a/b/binary").read_bytes()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """OSError, and no file is left over."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "m.meta", tmp_path / "folder"):
        with pytest.raises(OSError):
            Saver({"v": torch.ones(1)}).export_meta_graph(path)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["file", "folder"]


def test_meta_info_def() -> None:
    """It is included, with the versions of this file's writer, and with the graph's operations if it has none."""
    info = MetaGraphDef.MetaInfoDef(meta_graph_version="mine", tags=["a", "b"], tensorflow_version="0.1")
    with Collections().as_default():
        add_to_collection("variables", Variable(torch.ones(1), "v"))
        meta = export_meta_graph(meta_info_def=info)
    assert (meta.meta_info_def.meta_graph_version, list(meta.meta_info_def.tags)) == ("mine", ["a", "b"])
    assert meta.meta_info_def.tensorflow_version == "2.21.0" and "VarHandleOp" in ops_of(meta)
    assert info.tensorflow_version == "0.1" and not info.HasField("stripped_op_list")


def test_graph_def() -> None:
    """It replaces the graph and its operations."""
    graph_def = GraphDef(node=[NodeDef(name="x", op="NoOp")])
    with Collections().as_default():
        add_to_collection("variables", Variable(torch.ones(1), "v"))
        meta = export_meta_graph(graph_def=graph_def)
    assert meta.graph_def == graph_def and ops_of(meta) == ["NoOp"]


def test_saver_def() -> None:
    """It is included if the graph has its nodes, and rejected otherwise."""
    saver = Saver({"v": torch.ones(1)}, name="mine", filename="default")
    saver_def = saver.as_saver_def()
    with Collections().as_default():
        add_to_collection("savers", saver)
        assert export_meta_graph(saver_def=saver_def) == saver.export_meta_graph()
    with Collections().as_default(), pytest.raises(tfckpt.InvalidArgumentError, match=r'"mine/Const".* not a node'):
        export_meta_graph(saver_def=saver_def)


@pytest.mark.parametrize(("wanted", "found"), [([], []), (["a"], ["a"]), (["b", "absent", "a"], ["a", "b"])])
def test_collection_list(wanted: list[str], found: list[str]) -> None:
    """Only the listed collections that exist are exported."""
    with Collections().as_default():
        for name in ("a", "b", "c"):
            add_to_collection(name, 1)
        assert sorted(export_meta_graph(collection_list=wanted).collection_def) == found
        assert sorted(Saver({"v": torch.ones(1)}).export_meta_graph(collection_list=wanted).collection_def) == found


def test_graph() -> None:
    """An imported graph or a message replaces the registered objects."""
    meta = Saver({"v": torch.ones(1)}).export_meta_graph()
    with Collections().as_default():
        add_to_collection("mine", 1)
        assert export_meta_graph(graph=meta) == export_meta_graph(graph=import_meta_graph(meta)) == meta


def test_export_scope() -> None:
    """Only nodes in the scope, without its name; the saver is unchanged. An unknown scope gives an empty graph."""
    saver = Saver({"a/b/v": torch.ones(1), "a/w": torch.ones(1), "ab": torch.ones(1)}, name="a/save")
    with Collections().as_default():
        for text in ("a/text", "text", "ab"):
            add_to_collection("strings", text)
        add_to_collection("numbers", 1)
        meta = saver.export_meta_graph(export_scope="a")
        nothing = saver.export_meta_graph(export_scope="absent")
    assert variables_of(meta) == ["b/v:0", "w:0"] and handles(meta) == ["b/v", "w"]
    assert list(meta.collection_def["strings"].bytes_list.value) == [b"a/text"]
    assert list(meta.collection_def["numbers"].int64_list.value) == [1]
    assert meta.saver_def == saver.as_saver_def()
    assert not nothing.graph_def.node and list(nothing.collection_def) == ["numbers"]


def test_strip_default_attrs() -> None:
    """Attributes with default values are removed; the file records it, and the graph is equivalent."""
    saver = Saver({"v": torch.ones(2000)}, sharded=True)
    plain, stripped = saver.export_meta_graph(), saver.export_meta_graph(strip_default_attrs=True)
    assert (plain.meta_info_def.stripped_default_attrs, stripped.meta_info_def.stripped_default_attrs) == (False, True)
    attrs = {node.name: set(node.attr) for node in stripped.graph_def.node}
    removed = {name for node in plain.graph_def.node for name in set(node.attr) - attrs[node.name]}
    assert "container" in removed and "dtype" not in removed and not [name for name in removed if name.startswith("_")]
    assert import_meta_graph(stripped).variables["v"].shape == (2000,)


EXPORTS: dict[str, Callable[[], object]] = {
    "module": lambda: export_meta_graph(save_debug_info=True),
    "saver": lambda: Saver({"v": torch.ones(1)}).export_meta_graph(save_debug_info=True),
    "imported": lambda: import_meta_graph(MetaGraphDef()).export_meta_graph(save_debug_info=True),
}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS.keys())
def test_debug_info_is_rejected(export: Callable[[], object]) -> None:
    """There is no graph with source locations."""
    with pytest.raises(tfckpt.UnimplementedError, match="save_debug_info"):
        export()


@pytest.mark.parametrize("argument", ["filename", "meta_info_def", "graph_def", "saver_def", "graph"])
def test_arguments_of_a_wrong_type(argument: str) -> None:
    """InvalidArgumentError or TypeError is raised."""
    with pytest.raises((tfckpt.InvalidArgumentError, TypeError)):
        export_meta_graph(**{argument: 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["my saver", "_x", "\u00fc", "x:0"])
def test_a_saver_whose_name_is_not_a_valid_node_name(name: str) -> None:
    """It is rejected, or its nodes get valid names: the result can be imported."""
    try:
        meta = Saver({"v": torch.ones(1)}, name=name).export_meta_graph()
    except ValueError as error:
        assert name in str(error)
    else:
        assert all(node.name.isascii() and not set(node.name) & set(" :") for node in meta.graph_def.node)
        assert not [node.name for node in meta.graph_def.node if node.name.startswith("_")]


def test_the_name_of_a_saved_model_decides_its_form(tmp_path: Path) -> None:
    """As in TensorFlow: saved_model.pbtxt is text, and saved_model.pb cannot be."""
    saver = Saver({"v": torch.zeros(2)})
    saver.export_meta_graph(tmp_path / "a" / "saved_model.pb")
    saver.export_meta_graph(tmp_path / "b" / "saved_model.pbtxt")
    assert (tmp_path / "b" / "saved_model.pbtxt").read_text().startswith("saved_model_schema_version: 1\nmeta_graphs {")
    found = [import_meta_graph(tmp_path / each).meta_graph_def for each in "ab"]
    assert found[0] == found[1] == saver.export_meta_graph()
    with pytest.raises(
        tfckpt.InvalidArgumentError, match=r"expects saved_model.pb to be binary. For text, name it saved_model.pbtxt"
    ):
        saver.export_meta_graph(tmp_path / "c" / "saved_model.pb", as_text=True)
    assert not (tmp_path / "c").exists()
