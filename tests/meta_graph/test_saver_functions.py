"""The values that a saver stores whose nodes are in functions, as in SavedModels of TensorFlow 2."""

from collections.abc import Sequence

import pytest
from meta_graph_files import node, texts, variable
from stored_value_graphs import FLOAT, found, of, restore_v2, text

from torch_tfckpt._proto.function_pb2 import FunctionDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.meta_graph.saver_values import StoredValue

# Functions that contain savers, as in SavedModels of TensorFlow 2.


def function(name: str, arguments: Sequence[str], *nodes: NodeDef, **results: str) -> FunctionDef:
    made = FunctionDef(node_def=nodes, ret=results)
    made.signature.name = name
    for argument in arguments:
        made.signature.input_arg.add(name=argument)
    for result in results:
        made.signature.output_arg.add(name=result)
    return made


def call(name: str, callee: str, *inputs: str, op: str = "StatefulPartitionedCall") -> NodeDef:
    made = node(name, op, *inputs)
    made.attr["f"].func.name = callee
    return made


def traced(name: str, keys: Sequence[bytes], handles: Sequence[str]) -> FunctionDef:
    """A restore function as TensorFlow 2 traces it: the path and the variables are arguments."""
    reads = [
        texts("RestoreV2/tensor_names", keys),
        texts("RestoreV2/shape_and_slices", [b""]),
        restore_v2(
            "RestoreV2",
            "RestoreV2/tensor_names:output:0",
            "RestoreV2/shape_and_slices:output:0",
            *[FLOAT] * len(keys),
            path="file_prefix",
        ),
    ]
    for index, handle in enumerate(handles):
        reads += [
            node(f"Identity_{index}", "Identity", f"RestoreV2:tensors:{index}"),
            node(f"Assign_{index}", "AssignVariableOp", handle, f"Identity_{index}:output:0"),
        ]
    return function(name, ["file_prefix", *handles], *reads, done="Identity_0:output:0")


SAVED_MODEL = SaverDef(
    filename_tensor_name="saver_filename:0",
    save_tensor_name="StatefulPartitionedCall_1:0",
    restore_op_name="StatefulPartitionedCall_2",
)
HANDLES = [variable("a"), variable("b"), node("saver_filename", "Placeholder")]


def test_a_saved_model() -> None:
    """The variables are those passed to the function, whatever their names in it."""
    restore = call("StatefulPartitionedCall_2", "f", "saver_filename", "b", "a", "^a")
    values = found([*HANDLES, restore], SAVED_MODEL, [traced("f", [b"one", b"two"], ["x", "y"])])
    assert values == [of("one", "b"), of("two", "a")]


def test_strings_of_a_saved_model() -> None:
    """The object graph is a constant in the graph or in the function, and is not restored into a variable."""
    inside = [
        texts("names", [b"a", b"graph", b"more"]),
        texts("slices", [b""]),
        text("Const", b"in the function"),
        node("read", "ReadVariableOp", "handle"),
        node("S", "SaveV2", "path", "names:output:0", "slices:output:0", "read:value:0", "const", "Const:output:0"),
    ]
    restore = call("StatefulPartitionedCall_2", "f", "saver_filename", "a")
    save = call("StatefulPartitionedCall_1", "g", "saver_filename", "a", "Const")
    functions = [traced("f", [b"a", b"graph", b"more"], ["x"]), function("g", ["path", "handle", "const"], *inside)]
    values = found([*HANDLES, text("Const", b"in the graph"), restore, save], SAVED_MODEL, functions)
    assert [(value.key, value.variables, value.constant) for value in values] == [
        ("a", ("a",), None),
        ("graph", (), b"in the graph"),
        ("more", (), b"in the function"),
    ]


@pytest.mark.parametrize("op", ["StatefulPartitionedCall", "PartitionedCall", "f"])
def test_function_calls(op: str) -> None:
    """By an operation with the function as attribute, or as an operation itself."""
    restore = call("StatefulPartitionedCall_2", "f" if op != "f" else "", "saver_filename", "a", op=op)
    assert found([*HANDLES, restore], SAVED_MODEL, [traced("f", [b"k"], ["x"])]) == [of("k", "a")]


def test_functions_that_call_functions() -> None:
    """Arguments are traced back through all of them; names are local to each."""
    outer = function(
        "outer", ["a", "file_prefix"], call("b", "f", "file_prefix", "i:output:0"), node("i", "Identity", "a")
    )
    outermost = function("outermost", ["p", "v"], call("a", "outer", "v", "p"))
    restore = call("StatefulPartitionedCall_2", "outermost", "saver_filename", "b")
    values = found([*HANDLES, restore], SAVED_MODEL, [outermost, outer, traced("f", [b"k"], ["b"])])
    assert values == [of("k", "b")]


def test_one_function_for_several_variables() -> None:
    """Each call restores into its own variable."""
    calls = [call("one", "f", "saver_filename", "a"), call("two", "f", "saver_filename", "b")]
    nodes = [*HANDLES, *calls, node("StatefulPartitionedCall_2", "NoOp", "^one", "^two")]
    values = found(nodes, SAVED_MODEL, [traced("f", [b"k"], ["x"])])
    assert sorted(value.variables for value in values) == [("a",), ("b",)]
    assert {value.key for value in values} == {"k"}


@pytest.mark.parametrize("inputs", [[], ["saver_filename"], ["saver_filename", "^a"], ["saver_filename", "absent"]])
def test_missing_arguments(inputs: list[str]) -> None:
    """The target is missing: the value has no variable, or that of a node before it by name; no error."""
    restore = call("StatefulPartitionedCall_2", "f", *inputs)
    [value] = found([*HANDLES, restore], SAVED_MODEL, [traced("f", [b"k"], ["x"])])
    assert (value.key, set(value.variables) - {"a"}) == ("k", set())


def test_a_missing_function() -> None:
    """No values are found, and there is no error."""
    calls = [call("c", "absent"), node("d", "StatefulPartitionedCall"), call("e", "f", op="Other")]
    nodes = [*HANDLES, *calls, node("StatefulPartitionedCall_2", "NoOp", "^c", "^d", "^e")]
    assert found(nodes, SAVED_MODEL, [traced("f", [b"k"], ["x"])]) == []


def test_names_passed_as_arguments() -> None:
    """Keys and slices may be constants of the caller."""
    inside = [restore_v2("R", "keys", "slices", FLOAT, path="p"), node("A", "AssignVariableOp", "v", "R:tensors:0")]
    restore = call("StatefulPartitionedCall_2", "f", "saver_filename", "a", "k", "s")
    nodes = [*HANDLES, texts("k", [b"key"]), texts("s", [b"4 5 0,2:-"]), restore]
    values = found(nodes, SAVED_MODEL, [function("f", ["p", "v", "keys", "slices"], *inside)])
    assert values == [StoredValue("key", "4 5 0,2:-", FLOAT, ("a",))]


def test_results_of_functions() -> None:
    """A value or variable returned by a function is traced into it, and an argument back to the caller."""
    reading = function(
        "reading",
        ["p", "names", "passed"],
        texts("slices", [b""]),
        restore_v2("R", "names", "slices:output:0", FLOAT, FLOAT, path="p"),
        first="R:tensors:0",
        second="i:output:0",
        same="passed",
    )
    reading.node_def.append(node("i", "Identity", "R:tensors:1"))
    nodes = [
        *HANDLES,
        texts("names", [b"one", b"two"]),
        call("call", "reading", "saver_filename", "names", "b"),
        node("set_a", "AssignVariableOp", "a", "call:1"),
        node("set_b", "AssignVariableOp", "call:2", "call"),
        node("beyond", "AssignVariableOp", "a", "call:3"),
        node("StatefulPartitionedCall_2", "NoOp", "^set_a", "^set_b", "^beyond"),
    ]
    assert found(nodes, SAVED_MODEL, [reading]) == [of("one", "b"), of("two", "a")]


def test_missing_results() -> None:
    """A function without declared results returns nothing."""
    silent = function("f", [], texts("k", [b"k"]))
    silent.signature.output_arg.add(name="out")
    nodes = [*HANDLES, call("c", "f"), node("StatefulPartitionedCall_2", "AssignVariableOp", "a", "c")]
    assert found(nodes, SAVED_MODEL, [silent]) == []


def test_functions_that_call_themselves() -> None:
    """Rejected: no saver does that."""
    itself = function("f", ["x"], call("again", "f", "x"), node("a", "AssignVariableOp", "x", "x"))
    with pytest.raises(DataLossError, match=r'^node "StatefulPartitionedCall_2" calls functions .*more than any saver'):
        found([*HANDLES, call("StatefulPartitionedCall_2", "f", "a")], SAVED_MODEL, [itself])


def test_the_walk_over_functions_is_limited() -> None:
    """A small graph with hundreds of calls of a large function would otherwise take minutes and gigabytes."""
    many = function("f", [], *[node(f"n{number}", "NoOp") for number in range(3_000)])
    calls = [call(f"c{number}", "f") for number in range(990)]
    nodes = [*calls, node("StatefulPartitionedCall_2", "NoOp", *[f"^{each.name}" for each in calls])]
    with pytest.raises(DataLossError, match=r"calls functions .*more than any saver"):
        found(nodes, SAVED_MODEL, [many])
