"""The values of savers in hand-made graphs: keys, slices, types and variables."""

from dataclasses import replace

import pytest
from meta_graph_files import SAVER, node, restoring, texts, variable
from stored_value_graphs import FLOAT, STRING, found, of, restore_one, restore_v2, saving, text

from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.meta_graph.saver_values import StoredValue, stored_values

# Graphs.


@pytest.mark.parametrize("name", ["", "absent", "save/Assign"])
def test_a_saver_without_nodes(name: str) -> None:
    """The result is None. It is an empty list if its node exists but restores nothing."""
    assert stored_values(Graph(memoryview(b"")), SaverDef(restore_op_name=name)) is None
    assert found([node("r", "NoOp")], SaverDef(restore_op_name="r")) == []


def test_version_1() -> None:
    """The module's example: reference variables, with keys that differ from their names."""
    nodes = [
        variable("w"),
        variable("b"),
        texts("save/RestoreV2/tensor_names", [b"layer/w", b"layer/b"]),
        texts("save/RestoreV2/shape_and_slices", [b"", b""]),
        restore_v2("save/RestoreV2", "save/RestoreV2/tensor_names", "save/RestoreV2/shape_and_slices", 1, 9),
        node("save/Assign", "Assign", "w", "save/RestoreV2"),
        node("save/Assign_1", "Assign", "b", "save/RestoreV2:1"),
        node("save/restore_all", "NoOp", "^save/Assign", "^save/Assign_1"),
    ]
    for each in nodes[:2]:
        each.op = "VariableV2"
    for each in nodes[5:7]:
        each.attr["validate_shape"].b = False
    assert found(nodes) == [of("layer/w", "w"), of("layer/b", "b", dtype=DataType.DT_INT64)]


@pytest.mark.parametrize("assign", ["Assign", "AssignVariableOp"])
@pytest.mark.parametrize("kind", ["Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable"])
def test_kinds_of_variables(kind: str, assign: str) -> None:
    """Each operation that is a variable, and each that assigns."""
    nodes = [variable("v"), *restoring([("v", 0)], [b"k"])]
    nodes[0].op, nodes[4].op = kind, assign
    assert found(nodes) == [of("k", "v")]


def test_values_without_a_variable() -> None:
    """A value that is used by another operation, or not even read, is stored without a variable."""
    nodes = [node("v", "Placeholder"), *restoring([("v", 0), ("absent", 1), ("v", 2)], [b"a", b"b", b"c"])]
    nodes.append(node("save/more", "AssignVariableOp", "v"))  # without a value
    nodes[-2].input.append("^save/more")
    assert found(nodes) == [of("a"), of("b"), of("c")]


@pytest.mark.parametrize("op", ["Restore", "RestoreSlice"])
def test_one_node_for_each_value(op: str) -> None:
    """The oldest graphs: no lists of types, and slices only in RestoreSlice."""
    slices = {"Restore": [], "RestoreSlice": ["slices"]}[op]
    nodes = [variable("a"), variable("b"), texts("slices", [b"4 5 0,2:-"])]
    for name, dtype in (("a", FLOAT), ("b", DataType.DT_INT32)):
        nodes += [
            text(f"{name}/key", f"key of {name}".encode()),
            restore_one(f"{name}/restore", op, f"{name}/key", *slices, dtype=dtype),
            node(f"{name}/assign", "Assign", name, f"{name}/restore"),
        ]
    nodes.append(node("save/restore_all", "NoOp", "^b/assign", "^a/assign"))
    spec = "4 5 0,2:-" if slices else ""
    assert found(nodes, SAVER) == [
        StoredValue("key of a", spec, FLOAT, ("a",)),
        StoredValue("key of b", spec, DataType.DT_INT32, ("b",)),
    ]


@pytest.mark.parametrize("version", [SaverDef.LEGACY, SaverDef.V1, SaverDef.V2])
def test_the_version_in_the_saver_def_is_ignored(version: SaverDef.CheckpointFormatVersion) -> None:
    """Only the graph counts."""
    saver = SaverDef(restore_op_name=SAVER.restore_op_name, version=version)
    assert found([variable("v"), *restoring([("v", 0)], [b"k"])], saver) == [of("k", "v")]


def test_shards() -> None:
    """Several restore nodes are in the order of the graph, not in the order of the dependencies."""
    nodes = [variable("a"), variable("b"), texts("ka", [b"a"]), texts("kb", [b"b"]), texts("s", [b""])]
    for name in ("b", "a"):
        nodes += [
            restore_v2(f"read_{name}", f"k{name}", "s", 1),
            node(f"set_{name}", "AssignVariableOp", name, f"read_{name}"),
            node(f"shard_{name}", "NoOp", f"^set_{name}"),
        ]
    nodes.append(node("save/restore_all", "NoOp", "^shard_a", "^shard_b"))
    assert found(nodes) == [of("b", "b"), of("a", "a")]
    assert found(nodes, SaverDef(restore_op_name="shard_a")) == [of("a", "a")]


def test_other_savers_are_ignored() -> None:
    """Nodes that the restore operation does not depend on do not belong to the saver."""
    other = [texts("other/k", [b"\xff"]), node("other/read", "RestoreV2", "save/Const", "other/k", "absent")]
    assert found([variable("v"), *other, *restoring([("v", 0)], [b"k"])]) == [of("k", "v")]


# Between reading and assigning.


@pytest.mark.parametrize("op", ["Identity", "Reshape", "EnsureShape", "Cast", "ReadVariableOp", "CheckNumerics"])
def test_operations_that_pass_on_their_input(op: str) -> None:
    """A value and a variable are traced through each; Reshape is reported as reshaping."""
    nodes = [
        variable("v"),
        node("v/1", op, "v"),
        node("v/2", "Identity", "v/1:0"),
        node("value", op, "save/RestoreV2:1", "shape"),
        node("value/1", "Identity", "value"),
        *restoring([("v/2", 0)], [b"a", b"b"]),
    ]
    nodes[-2].input[1] = "value/1"
    assert found(nodes) == [of("a"), replace(of("b", "v"), reshaped=op == "Reshape")]


def test_computed_values() -> None:
    """A sum is not a value of a checkpoint: the variables that it is assigned to are reported separately, once each."""
    nodes = [
        variable("v"),
        variable("w"),
        node("half", "Identity", "save/RestoreV2:1"),
        node("product", "Mul", "half", "save/RestoreV2/keys"),
        node("sum", "Add", "save/RestoreV2", "product", "absent"),
        *restoring([("v", 0), ("w", 0), ("w", 1), ("v", 0)], [b"a", b"b", b"c"]),
    ]
    for index in (-5, -4, -2):
        nodes[index].input[1] = "sum"
    assert found(nodes) == [
        replace(of("a"), computing=("v", "w")),
        replace(of("b", "w"), computing=("v", "w")),
        of("c"),
    ]


@pytest.mark.parametrize("length", [1, 50, 5000])
def test_a_long_computation(length: int) -> None:
    """It is traced for a limited number of steps, and cycles end."""
    chain = [node(f"n{number}", "Neg", f"n{number - 1}", f"n{length - 1}") for number in range(1, length)]
    nodes = [variable("v"), node("n0", "Neg", "save/RestoreV2"), *chain, *restoring([("v", 0)], [b"k"])]
    nodes[-2].input[1] = f"n{length - 1}"
    [value] = found(nodes)
    assert (value.key, value.variables) == ("k", ()) and value.computing == (("v",) if length <= 50 else ())


def test_each_value_is_reshaped_or_not() -> None:
    """Two values share a chain, and one of them leaves it before the Reshape."""
    nodes = [
        variable("a"),
        variable("b"),
        node("i", "Identity", "save/RestoreV2:1"),
        node("r", "Reshape", "save/RestoreV2:0", "shape"),
        node("ri", "Identity", "r"),
        *restoring([("a", 0), ("b", 0)], [b"a", b"b"]),
    ]
    nodes[-3].input[1], nodes[-2].input[1] = "ri", "i"
    assert found(nodes) == [replace(of("a", "a"), reshaped=True), of("b", "b")]


@pytest.mark.parametrize("circle", [["i"], ["j", "i"], ["j", "k", "i"]], ids=len)
def test_cycles(circle: list[str]) -> None:
    """Nodes in a cycle have no origin, whichever node the search starts from."""
    names = [circle[-1], *circle[:-1]]
    nodes = [node(name, "Identity", after) for name, after in zip(names, circle, strict=True)]
    assigned = [("v", 0), *[(name, 0) for name in names]]
    nodes = [variable("v"), *nodes, node("into", "Identity", "i"), *restoring(assigned, [b"k"])]
    nodes[-len(assigned) - 1].input[1] = "into"
    assert found(nodes) == [of("k")]


@pytest.mark.parametrize(("output", "index"), [("", 0), (":0", 0), (":1", 1), (":tensors:1", 1), (":tensors:0", 0)])
def test_names_of_outputs(output: str, index: int) -> None:
    """Names in graphs and in functions are parsed."""
    nodes = [variable("v"), *restoring([("v", 0)], [b"0", b"1"])]
    nodes[-2].input[1] = f"save/RestoreV2{output}"
    assert [value.variables for value in found(nodes)] == [("v",) if each == index else () for each in range(2)]


@pytest.mark.parametrize("output", [":7", ":x", ":\u0661", ":99999999999999999999", ":-1"], ids=ascii)
def test_a_missing_output(output: str) -> None:
    """No error; only the first value is found."""
    nodes = [variable("v"), *restoring([("v", 0)], [b"0", b"1"])]
    nodes[-2].input[1] = f"save/RestoreV2{output}"
    assert [value.key for value in found(nodes)] == ["0", "1"]
    assert found(nodes)[1].variables == ()


def test_several_variables_get_one_value() -> None:
    """In the order of the graph, each once."""
    nodes = [variable("v/replica_1"), variable("v")]
    nodes += restoring([("v", 0), ("v/replica_1", 0), ("v", 0)], [b"v"])
    assert found(nodes) == [of("v", "v", "v/replica_1")]


def test_tables() -> None:
    """Two values that one operation uses have no variable, and keep their own types."""
    nodes = [
        node("table", "MutableHashTableV2"),
        texts("keys", [b"t-keys", b"t-values"]),
        texts("slices", [b"", b""]),
        restore_v2("read", "keys", "slices", STRING, FLOAT),
        node("save/restore_all", "LookupTableImportV2", "table", "read", "read:1"),
    ]
    assert found(nodes) == [of("t-keys", dtype=STRING), of("t-values")]


# Names and types.


def test_equal_names_at_the_end_are_written_once() -> None:
    """As in a TensorProto: its last element is repeated for the rest."""
    nodes = restoring([], [b"a", b"b", b"b"])
    nodes[0] = texts("save/RestoreV2/keys", [b"a", b"b"])
    nodes[1] = texts("save/RestoreV2/slices", [b""])
    nodes[-1].input.append("^save/RestoreV2")
    assert [value.key for value in found(nodes)] == ["a", "b", "b"]


def test_names_passed_through_other_nodes() -> None:
    """A constant may be passed on by other nodes."""
    nodes = [variable("v"), *restoring([("v", 0)], [b"k"]), node("i", "Identity", "save/RestoreV2/keys")]
    nodes[3].input[1] = "i:0"
    assert found(nodes) == [of("k", "v")]


def test_types() -> None:
    """Any number is accepted, even one that is unknown."""
    nodes = restoring([], [b"a", b"b"], dtype=12345)
    nodes[-1].input.append("^save/RestoreV2")
    assert [int(value.dtype) for value in found(nodes)] == [12345] * 2


@pytest.mark.parametrize("op", ["RestoreV2", "Restore", "RestoreSlice"])
def test_nodes_that_read_nothing(op: str) -> None:
    """Without types there are no values, and names are not needed."""
    assert found([node("save/restore_all", op, "p", "absent", "absent")]) == []


def test_slices_are_returned_unchanged() -> None:
    """They are not validated here."""
    nodes = restoring([], [b"a"] * 3, [b"4 5 0,2:-", b"4 5 -:-", b"hello \xc3\xa4"])
    nodes[-1].input.append("^save/RestoreV2")
    assert [value.slice_spec for value in found(nodes)] == ["4 5 0,2:-", "4 5 -:-", "hello \u00e4"]


def broken(index: int, constant: NodeDef | None, inputs: int = 3) -> list[NodeDef]:
    """A graph whose saver reads two values, with one input of its restore node replaced."""
    nodes = restoring([], [b"a", b"b"])
    nodes[-1].input.append("^save/RestoreV2")
    del nodes[2].input[inputs:]
    if constant is not None:
        constant.name = "instead"
        nodes[2].input[index] = "instead"
        nodes.append(constant)
    return nodes


def test_empty_names() -> None:
    """In TensorFlow, a constant with a shape but without elements consists of empty strings."""
    nodes = restoring([], [b"a", b"b"], [])
    nodes[1].attr["value"].tensor.tensor_shape.dim.add(size=2)
    nodes[-1].input.append("^save/RestoreV2")
    assert [value.slice_spec for value in found(nodes)] == ["", ""]


@pytest.mark.parametrize(
    ("nodes", "finding"),
    [
        (broken(1, texts("", [b"a", b"b", b"c"])), "input 1 should be a constant of 2 strings, but has 3"),
        (broken(2, texts("", [b"", b"", b""])), "input 2 should be a constant of 2 strings, but has 3"),
        (broken(1, node("", "Const")), "input 1 should be a constant of 2 strings, but has 0"),
        (broken(1, node("", "Placeholder")), "input 1 should be a constant of 2 strings, but has 0"),
        (broken(1, node("", "Identity", "instead")), "input 1 should be a constant of 2 strings, but has 0"),
        (broken(2, None, inputs=2), "input 2 should be a constant of 2 strings, but has 0"),
        (broken(1, None, inputs=0), "input 1 should be a constant of 2 strings, but has 0"),
        (broken(1, texts("", [b"a", b"\xff"])), r"the tensor name b'\\xff' is not UTF-8"),
        (broken(2, texts("", [b"\xff"])), r"the tensor name b'\\xff' is not UTF-8"),
    ],
    ids=["many keys", "many slices", "no value", "no constant", "circle", "no slices", "no inputs", "key", "slice"],
)
def test_damaged_names(nodes: list[NodeDef], finding: str) -> None:
    """DataLossError with the name of the node."""
    with pytest.raises(DataLossError, match=f'^node "save/RestoreV2": {finding}'):
        found(nodes)


# Strings about the checkpoint itself.


@pytest.mark.parametrize("op", ["Save", "SaveSlices", "SaveV2"])
def test_constants_that_are_saved(op: str) -> None:
    """A string constant is returned if no variable gets it; lists of strings and numbers are not."""
    nodes = [variable("v"), *restoring([("v", 0)], [b"v", b"graph", b"list", b"number", b"alone"])]
    number = node("number", "Const")
    number.attr["value"].tensor.float_val.append(1.5)
    several = texts("list", [b"x"])
    several.attr["value"].tensor.tensor_shape.dim.add(size=1)
    constants = [text("v/text", b"of v"), text("graph", b"\x0a\xff"), several, number]
    nodes += [*constants, *saving(op, [b"v", b"graph", b"list", b"number"], "v/text", "graph", "list", "number")]
    assert [(value.key, value.constant) for value in found(nodes)] == [
        ("v", None),
        ("graph", b"\x0a\xff"),
        ("list", None),
        ("number", None),
        ("alone", None),
    ]


def test_a_saver_that_only_restores() -> None:
    """Without a save operation there are no constants."""
    nodes = [variable("v"), *restoring([("v", 0)], [b"k"])]
    assert found(nodes, SaverDef(restore_op_name="save/restore_all", save_tensor_name="absent:0")) == [of("k", "v")]


def test_damaged_names_of_saved_values() -> None:
    """They also raise DataLossError."""
    nodes = [*restoring([], []), *saving("SaveV2", [b"a", b"b", b"c"], "x", "y")]
    with pytest.raises(DataLossError, match=r'^node "s": input 1 should be a constant of 2 strings, but has 3'):
        found(nodes)
    nodes = [*restoring([], []), text("x", b"x"), *saving("SaveV2", [b"\xff"], "x")]
    with pytest.raises(DataLossError, match=r"^node \"s\": the tensor name b'\\xff'"):
        found(nodes)
