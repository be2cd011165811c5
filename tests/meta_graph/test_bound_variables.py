"""Variables of a SavedModel: bound by objects, whatever the nodes are called; contradictions and damage are errors."""

import logging

import pytest
from meta_graph_files import SAVER, graph, restoring, variable
from object_graph_files import ObjectMetaGraph, Saved, key

from torch_tfckpt._proto.meta_graph_pb2 import MetaGraphDef
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.meta_graph.bound_variables import BoundVariables, bound_variables
from torch_tfckpt.meta_graph.files import meta_graph_of

KERNEL = Saved("layers/0", "dense/kernel", "Variable_1", "dense/kernel_1", trainable=True)
BIAS = Saved("layers/1", "dense/bias", "Variable", "dense/bias", (5,))


def bound(meta: MetaGraphDef) -> BoundVariables:
    return bound_variables(meta_graph_of(meta))


def names(found: BoundVariables) -> list[str]:
    return [each.name for each in found.variables]


def stored(found: BoundVariables) -> list[tuple[str, tuple[str, ...], bool]]:
    assert found.stored is not None
    return [(each.key, each.variables, each.is_copy) for each in found.stored if each.constant is None]


def test_nodes_of_other_names() -> None:
    """The saver restores one node, and calls pass another: both are the variable. Flags and shapes are the object's."""
    found = bound(ObjectMetaGraph([KERNEL, BIAS], {"f": [1, 0], "g": [0]}).message())
    assert [(each.name, each.shape, each.trainable) for each in found.variables] == [
        ("dense/kernel", (4, 5), True),
        ("dense/bias", (5,), False),
    ]
    assert found.of_nodes == {
        "Variable_1": "dense/kernel",
        "dense/kernel_1": "dense/kernel",
        "Variable": "dense/bias",
        "dense/bias": "dense/bias",
    }
    assert found.of_functions == {"f": ["dense/bias", "dense/kernel"], "g": ["dense/kernel"]}
    assert stored(found) == [(key("layers/0"), ("dense/kernel",), False), (key("layers/1"), ("dense/bias",), False)]


def test_swapped_nodes() -> None:
    """The node "a" is the variable "b" and the other way around."""
    found = bound(ObjectMetaGraph([Saved("x", "a", "b", "b"), Saved("y", "b", "a", "a")], {"f": [0, 1]}).message())
    assert found.of_nodes == {"b": "a", "a": "b"} and found.of_functions == {"f": ["a", "b"]}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["norm", "norm", "bias"], ["x", "y", "bias"]),
        (["a", "a", "x"], ["x", "y", "z"]),  # "x" could mean the variable at x, too
        (["", "", ""], ["x", "y", "z"]),
        (["z", "x", "y"], ["x", "y", "z"]),
        (["x", "b", "c:0"], ["x", "b", "c"]),
    ],
)
def test_names(own: list[str], expected: list[str]) -> None:
    """A name that several variables have, or that is the path of another variable, is not used."""
    objects = [Saved(path, name, f"n{path}", f"n{path}") for path, name in zip("xyz", own, strict=True)]
    assert names(bound(ObjectMetaGraph(objects, {"f": [0, 1, 2]}).message())) == expected


def test_stored_twice() -> None:
    """Keras 3 stores a variable under the object that functions read and again: it is one variable with two values."""
    first = Saved("variables/0", "kernel", "Variable", "kernel_1", trainable=True)
    again = Saved("all/0", "kernel", "kernel_1", "unused")
    for objects, number in ((first, again), 0), ((again, first), 1):
        found = bound(ObjectMetaGraph(objects, {"f": [number]}).message())
        assert names(found) == ["kernel"] and found.variables[0].trainable
        assert set(stored(found)) == {
            (key("variables/0"), ("kernel",), False),
            (key("all/0"), ("kernel",), True),
        }
        assert found.of_nodes == {"Variable": "kernel", "kernel_1": "kernel"}


def test_captured_but_not_stored() -> None:
    """It is a variable without a key. An object that is neither stored nor captured is omitted."""
    found = bound(
        ObjectMetaGraph([KERNEL, Saved("a", "a", None, "a"), Saved("b", "b", None, "b")], {"f": [1]}).message()
    )
    assert names(found) == ["dense/kernel", "a"] and found.of_nodes["a"] == "a" and "b" not in found.of_nodes


def test_a_contradiction(caplog: pytest.LogCaptureFixture) -> None:
    """The saver restores a node into one variable, a call passes it as another of another shape: the call is right."""
    other = Saved("other", "other", "n", "m", (2,))
    with caplog.at_level(logging.WARNING):
        found = bound(ObjectMetaGraph([Saved("k", "k", None, "n"), other], {"f": [0]}).message())
    assert names(found) == ["other", "k"] and found.of_nodes == {"n": "k"}
    assert [record.getMessage() for record in caplog.records] == [
        'the saver restores node "n" into a variable that no function reads'
    ]


def test_nodes_without_an_object() -> None:
    """A node that the saver restores, but whose key no object has, is a variable under that key."""
    meta = ObjectMetaGraph([KERNEL, BIAS], {"f": [0]}).message()
    del meta.object_graph_def.nodes[0].children[1]
    assert names(bound(meta)) == ["dense/kernel", "layers/1"]


def test_slot_variables() -> None:
    """They have no path in the object graph, and are found through their optimizer."""
    maker = ObjectMetaGraph([KERNEL, Saved("m", "Adam/m", "slot", "slot")], {"f": [0]})
    meta, stored_graph = maker.message(), maker.checkpoint_graph()
    root = meta.object_graph_def.nodes[0]
    del root.children[1]
    root.slot_variables.add(original_variable_node_id=1, slot_name="m", slot_variable_node_id=2)
    del stored_graph.nodes[0].children[1]
    stored_graph.nodes[0].slot_variables.add(original_variable_node_id=2, slot_name="m", slot_variable_node_id=3)
    [constant] = [node for node in meta.graph_def.node if node.name == "save/graph"]
    constant.attr["value"].tensor.string_val[:] = [stored_graph.SerializeToString()]
    assert bound(meta).of_nodes["slot"] == "Adam/m"


def test_handles_of_one_resource() -> None:
    """In a graph without objects, nodes with one container and shared name are one variable."""
    same, other = variable("w_1"), variable("w_2")
    same.attr["shared_name"].s = b"w"
    other.attr["shared_name"].s, other.attr["container"].s = b"w", b"c"
    found = bound(graph([variable("w"), same, other, *restoring([("w", 0)], [b"w"])], "w", SAVER))
    assert found.of_nodes == {"w": "w", "w_1": "w"}


def damaged(how: str) -> MetaGraphDef:
    meta = ObjectMetaGraph([KERNEL, BIAS], {"f": [0, 1]}).message()
    objects, nodes = meta.object_graph_def, {node.name: node for node in meta.graph_def.node}
    if how == "child":
        objects.nodes[0].children[0].node_id = 99
    elif how == "negative child":
        objects.nodes[0].children[0].node_id = -1
    elif how == "captured":
        objects.concrete_functions["f"].bound_inputs[0] = 99
    elif how == "inputs":
        del nodes["f"].input[:2]
    elif how == "dtype":
        objects.nodes[1].variable.dtype = 0  # type: ignore[assignment]
    elif how == "graph":
        nodes["save/graph"].attr["value"].tensor.string_val[:] = [b"\xff"]
    elif how == "node":
        nodes["Variable_1"].ClearField("attr")
    return meta


@pytest.mark.parametrize(
    ("how", "finding"),
    [
        ("child", "node 0 has a child 99 that does not exist"),
        ("negative child", "node 0 has a child -1 that does not exist"),
        ("captured", 'function "f" captures an object that the object graph does not have'),
        ("inputs", 'node "f" calls a function with 1 inputs, but the function captures 2 objects'),
        ("dtype", '"dense/kernel" has no dtype'),
        ("graph", "the saver's object graph is damaged: "),
        ("node", '"Variable_1": its node .* has no dtype'),
    ],
)
def test_damage(how: str, finding: str) -> None:
    """The error names the place."""
    with pytest.raises(DataLossError, match=f"^MetaGraphDef: .*{finding}"):
        bound(damaged(how))


def test_a_cycle_of_objects() -> None:
    """Objects may be their own ancestors; long chains of them need no recursion."""
    meta = ObjectMetaGraph([KERNEL], {"f": [0]}).message()
    nodes = meta.object_graph_def.nodes
    for number in range(2, 5000):
        nodes.add().children.add(node_id=number - 1 if number > 2 else 0, local_name="up")
    nodes[0].children.add(node_id=4999, local_name="down")
    assert names(bound(meta)) == ["dense/kernel"]
