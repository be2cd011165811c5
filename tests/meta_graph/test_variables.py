"""The variables of hand-made graphs: which are found, and their properties."""

import pytest
from meta_graph_files import SAVER, graph, node, part, restoring, variable

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt._proto.variable_pb2 import SaveSliceInfoDef, VariableDef
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.meta_graph.model import GraphVariable
from torch_tfckpt.meta_graph.raw import RawMetaGraph
from torch_tfckpt.meta_graph.saver_values import StoredValue
from torch_tfckpt.meta_graph.variables import (
    graph_variables,
    saver_values,
    slice_info_def,
    values_by_name,
    variable_defs,
    variable_of,
)
from torch_tfckpt.saveables.slice_info import SaveSliceInfo

FLOAT = DataType.DT_FLOAT
ROWS = SaveSliceInfoDef(full_name="w", full_shape=[8, 5], var_offset=[4, 0], var_shape=[4, 5])


def encoded(meta: MetaGraphDef) -> RawMetaGraph:
    return RawMetaGraph(memoryview(meta.SerializeToString(deterministic=True)), "m.meta")


def listed(meta: MetaGraphDef, key: str, *definitions: str | VariableDef) -> MetaGraphDef:
    """Return `meta` with one more collection of variables."""
    for each in definitions:
        definition = VariableDef(variable_name=f"{each}:0") if isinstance(each, str) else each
        meta.collection_def[key].bytes_list.value.append(definition.SerializeToString())
    return meta


def variables(meta: MetaGraphDef) -> list[GraphVariable]:
    """Return the variables as import_meta_graph finds them."""
    raw = encoded(meta)
    return graph_variables(raw, saver_values(raw))


def names(meta: MetaGraphDef) -> list[str]:
    return [each.name for each in variables(meta)]


# Which variables are found.


def test_collections_of_the_model() -> None:
    """In their order, each once; variables of a session do not belong to the model."""
    meta = graph([variable(name) for name in "abcdefgh"], ["b", "a"])
    listed(meta, "trainable_variables", "a", "c")
    listed(meta, "model_variables", "d", "b")
    listed(meta, "moving_average_variables", "e")
    listed(meta, "global_step", "f")
    listed(meta, "local_variables", "g")
    listed(meta, "metric_variables", "h")
    assert names(meta) == ["b", "a", "c", "d", "e", "f"]


def test_variables_that_the_saver_restores() -> None:
    """After those in collections; all variables that get one value."""
    nodes = [variable(name) for name in "abcd"] + restoring([("c", 0), ("d", 0), ("a", 1)], [b"k", b"l"])
    assert names(graph(nodes, ["b"], SAVER)) == ["b", "c", "d", "a"]
    assert names(graph(nodes, [], SAVER)) == ["c", "d", "a"]


@pytest.mark.parametrize("kind", ["Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable"])
def test_without_collections_and_saver(kind: str) -> None:
    """All variable nodes, in the graph's order."""
    nodes = [variable(name) for name in "bca"]
    nodes[0].op, nodes[1].op = kind, "Placeholder"
    assert names(graph(nodes)) == ["b", "a"]
    assert names(graph(nodes, [], SAVER)) == ["b", "a"]  # the graph lacks the saver's nodes


def test_a_saver_that_restores_no_variable() -> None:
    """Variables that it does not restore are not found; a saver that restores nothing at all is ignored."""
    nodes = [variable("a"), *restoring([], [b"table"])]
    assert names(graph(nodes, [], SAVER)) == ["a"]
    nodes[-1].input.append("^save/RestoreV2")
    assert names(graph(nodes, [], SAVER)) == []


def test_variables_computed_from_restored_values() -> None:
    """They are not found, even if a collection lists them: their values cannot be computed here."""
    nodes = [variable("a"), variable("b"), node("half", "Mul", "save/RestoreV2", "b")]
    nodes += restoring([("a", 0), ("b", 0)], [b"k"])
    nodes[-3].input[1] = "half"
    assert names(graph(nodes, ["a", "b"], SAVER)) == ["b"]


def test_no_graph() -> None:
    """No variables."""
    assert variables(MetaGraphDef()) == []


# Properties of a variable.


def test_properties_from_the_node() -> None:
    """Type, shape and device; also for a node of another operation."""
    made = variable("a", [2, 3], DataType.DT_QINT8)
    made.device, made.op = "/job:ps/gpu:1", "CustomVariable"
    assert variables(graph([made], ["a"])) == [
        GraphVariable("a", DataType.DT_QINT8, (2, 3), "/job:ps/device:GPU:1", trainable=False)
    ]


@pytest.mark.parametrize(
    ("written", "known"), [(None, None), ([], ()), ([0], (0,)), ([-1, 3], (-1, 3)), ([-7, 1 << 62], (-1, 1 << 62))]
)
def test_shapes(written: list[int] | None, known: tuple[int, ...] | None) -> None:
    """Of unknown rank, scalar, empty, partly known."""
    assert [each.shape for each in variables(graph([variable("a", written)]))] == [known]


def test_a_node_without_a_shape() -> None:
    """The shape is unknown."""
    made = variable("a")
    del made.attr["shape"]
    assert [each.shape for each in variables(graph([made]))] == [None]


def test_a_scalar_of_the_first_version() -> None:
    """The operation "Variable" did not distinguish a scalar from an unknown shape; its successor does."""
    made = variable("a", [])
    made.op = "Variable"
    assert [each.shape for each in variables(graph([made]))] == [None]
    made.op = "VariableV2"
    assert [each.shape for each in variables(graph([made]))] == [()]


@pytest.mark.parametrize(
    "device",
    ["/planet:1", "cpu:-1", "/cpu:0/gpu:1", "a\x00b", ":", "/task:" + "1" * 5000, "/device:GPU:" + "1" * 5000],
    ids=lambda device: ascii(device)[:20],
)
def test_an_invalid_device(device: str) -> None:
    """It is ignored: a variable's former device is not needed."""
    made = variable("a")
    made.device = device
    assert [each.device for each in variables(graph([made], ["a"]))] == [""]


def test_a_variable_without_a_node() -> None:
    """DataLossError with the file (once), the name, and the problem."""
    with pytest.raises(DataLossError, match=r'^m.meta: variable "absent" is in a collection, but no node'):
        variables(graph([variable("a")], ["a", "absent"]))
    meta = encoded(graph([node("a", "NoOp")]))
    with pytest.raises(DataLossError, match=r'^variable "a": its node \(operation "NoOp"\) has no dtype'):
        variable_of(meta, "a", trainable=False, part=None)
    with pytest.raises(DataLossError, match="has no dtype"):
        variables(graph([variable("a", dtype=0)], ["a"]))


def test_variable_of_uses_its_arguments() -> None:
    """Trainability and slice are not in the node."""
    meta = encoded(graph([variable("a", [4, 5])]))
    assert variable_of(meta, "a", trainable=True, part=ROWS) == GraphVariable("a", FLOAT, (4, 5), "", True, ROWS)


@pytest.mark.parametrize(
    ("version", "by_definition"),
    [
        ("", False),
        ("unknown", False),
        ("v2.0", False),
        ("0.12.1", False),
        ("1.0.0", False),
        ("1.8.0-rc1", False),
        ("1.9.0", True),
        ("1.9", True),
        ("1.10.0", True),
        ("1.15.5", True),
        ("2.0.0-dev20191002", True),
        ("2.21.0", True),
        ("10.0", True),
    ],
)
def test_trainable(version: str, by_definition: bool) -> None:
    """Before TensorFlow 1.9 the collection decides, since then the definition."""
    says_so = VariableDef(variable_name="a:0", trainable=True)
    meta = listed(graph([variable("a"), variable("b")], [says_so, "b"]), "trainable_variables", "b")
    meta.meta_info_def.tensorflow_version = version
    assert {each.name: each.trainable for each in variables(meta)} == {"a": by_definition, "b": not by_definition}


# Parts.


def test_parts() -> None:
    """From the definition, or else from the saver, in any spelling of the slice."""
    nodes = [variable(name) for name in "abc"]
    nodes += restoring([("a", 0), ("b", 1), ("c", 2)], [b"k", b"w", b"c"], [b"8 5 0,4:-", b"8 5 4,4:0,5", b""])
    meta = graph(nodes, [part("a", "w", [8, 5], [4, 0], [4, 5]), "b", "c"], SAVER)
    assert [each.part for each in variables(meta)] == [ROWS, ROWS, None]
    del meta.collection_def["variables"]
    first = SaveSliceInfoDef(full_name="k", full_shape=[8, 5], var_offset=[0, 0], var_shape=[4, 5])
    assert [each.part for each in variables(meta)] == [first, ROWS, None]


@pytest.mark.parametrize("slice_spec", [b"hello", b"4 5 3,2:-", b"4 5 0,0:-", b"4 5 -", b" "])
def test_an_invalid_slice(slice_spec: bytes) -> None:
    """DataLossError with the file (once) and the key."""
    nodes = [variable("a"), *restoring([("a", 0)], [b"k"], [slice_spec])]
    with pytest.raises(DataLossError, match=r'^m.meta: tensor "k": '):
        variables(graph(nodes, [], SAVER))


def test_a_slice_without_a_variable_is_not_validated() -> None:
    """It is kept unchanged with its value."""
    nodes = [variable("a"), *restoring([("a", 1)], [b"k", b"a"], [b"hello", b""])]
    assert names(graph(nodes, [], SAVER)) == ["a"]


def test_slice_info_def() -> None:
    """Encode a slice as a message and decode it again."""
    info = SaveSliceInfo("w", [8, 5], [4, 0], [4, 5])
    assert slice_info_def(info) == ROWS
    assert slice_info_def(SaveSliceInfo.of_spec("w", info.spec)) == ROWS


# Stored values.


def test_saver_values() -> None:
    """Of the saver's nodes, if there are any; errors name the file."""
    assert saver_values(encoded(graph([variable("a")]))) is None
    assert saver_values(encoded(graph([variable("a")], [], SAVER))) is None
    nodes = [variable("a"), *restoring([("a", 0)], [b"k"])]
    assert saver_values(encoded(graph(nodes))) is None
    assert saver_values(encoded(graph(nodes, [], SaverDef()))) is None
    assert saver_values(encoded(graph(nodes, [], SAVER))) == [StoredValue("k", "", FLOAT, ("a",))]
    nodes[1].attr.clear()
    with pytest.raises(DataLossError, match=r'^m.meta: node "save/RestoreV2"'):
        saver_values(encoded(graph(nodes, [], SAVER)))


@pytest.mark.parametrize(("scope", "prefix"), [("", ""), ("s", "s/")])
def test_values_by_name(scope: str, prefix: str) -> None:
    """A whole variable by its name, a part by the name of the whole; with the scope, which node names lack."""
    whole, rows = GraphVariable("a", FLOAT, (2,)), GraphVariable("b", DataType.DT_STRING, (4, 5), part=ROWS)
    assert values_by_name([whole, rows], scope) == [
        StoredValue(f"{prefix}a", "", FLOAT, ("a",)),
        StoredValue(f"{prefix}w", "8 5 4,4:0,5", DataType.DT_STRING, ("b",)),
    ]


# Definitions.


def test_variable_defs() -> None:
    """By the name of the node; the last of those with one name; empty if the collection is of another kind."""
    last = VariableDef(variable_name="a:0", trainable=True)
    meta = listed(MetaGraphDef(), "variables", "a", "b", last)
    meta.collection_def["global_step"].node_list.value.append("step:0")
    assert variable_defs(encoded(meta), "variables") == {"a": last, "b": VariableDef(variable_name="b:0")}
    assert variable_defs(encoded(meta), "global_step") == variable_defs(encoded(meta), "absent") == {}


@pytest.mark.parametrize("key", ["variables", "trainable_variables", "global_step"])
def test_an_invalid_definition(key: str) -> None:
    """DataLossError with file and collection."""
    meta = graph([variable("a")], ["a"])
    meta.collection_def[key].bytes_list.value.append(b"\xff")
    with pytest.raises(DataLossError, match=f'^m.meta: collection "{key}": invalid VariableDef'):
        variables(meta)
