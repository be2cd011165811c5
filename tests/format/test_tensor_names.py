"""All names of a tensor in an object-based checkpoint: which tensor each means, and that none is guessed."""

import pytest

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import (
    VARIABLE_VALUE,
    ObjectGraph,
    ObjectReference,
    SerializedTensor,
    SlotVariable,
    TrackableObject,
)
from torch_tfckpt.format.tensor_names import TensorNames, short_key

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def variable(name: str, short: str) -> TrackableObject:
    return TrackableObject(attributes=(SerializedTensor(VARIABLE_VALUE, name, short + SUFFIX),))


def children(*edges: tuple[str, int]) -> tuple[ObjectReference, ...]:
    return tuple(ObjectReference(node_id, name) for name, node_id in edges)


# 0 --model--> 1 --kernel--> 3 and --a/b.c--> 5; 0 --optimizer--> 2, whose "m" of 3 is 4; 0 --tied--> 1;
# 0 --table--> 6, with two tensors; 0 --state--> 7, with one that is not a variable.
GRAPH = ObjectGraph(
    (
        TrackableObject(children(("model", 1), ("optimizer", 2), ("tied", 1), ("table", 6), ("state", 7))),
        TrackableObject(children(("kernel", 3), ("a/b.c", 5))),
        TrackableObject(slot_variables=(SlotVariable(3, "m", 4),)),
        variable("dense/kernel", "model/kernel"),
        variable("", "model/kernel/.OPTIMIZER_SLOT/optimizer/m"),
        variable("odd", "model/a.Sb..c"),
        TrackableObject(attributes=(SerializedTensor("table", "", "table/.ATTRIBUTES/table"),)),
        TrackableObject(attributes=(SerializedTensor("py_state", "", "state/.ATTRIBUTES/py_state"),)),
    )
)
KERNEL = "model/kernel" + SUFFIX
SLOT = "model/kernel/.OPTIMIZER_SLOT/optimizer/m" + SUFFIX
ODD = "model/a.Sb..c" + SUFFIX
TABLE = ("table/.ATTRIBUTES/table-keys", "table/.ATTRIBUTES/table-values")
STATE = "state/.ATTRIBUTES/py_state"
NAMES = TensorNames(GRAPH, [KERNEL, SLOT, ODD, *TABLE, STATE, "loose", "_CHECKPOINTABLE_OBJECT_GRAPH"])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (KERNEL, KERNEL),
        ("model/kernel", KERNEL),
        ("model.kernel", KERNEL),
        ("(root).model.kernel", KERNEL),
        ("tied.kernel", KERNEL),
        ("(root).tied.kernel", KERNEL),
        ("dense/kernel", KERNEL),
        ("dense/kernel:0", KERNEL),
        (f"{KERNEL}:0", KERNEL),
        ("optimizer.m of model.kernel", SLOT),
        ("model/kernel/.OPTIMIZER_SLOT/optimizer/m", SLOT),
        ("model.a/b.c", ODD),
        ("model/a.Sb..c", ODD),
        ("odd", ODD),
        ("state", STATE),
        (TABLE[0], TABLE[0]),
        ("loose", "loose"),
        ("loose:0", "loose"),
    ],
)
def test_every_name_of_a_tensor(name: str, key: str) -> None:
    """Its key, with or without the suffix, each path to its object, its full name; all with ":0", too."""
    assert NAMES.find(name) == [key]
    assert NAMES.resolve(name) == key


@pytest.mark.parametrize(
    "name",
    ["", "model", "kernel", "model.", ".kernel", "model..kernel", "table", "table.table", "Dense/kernel", "(root)"],
)
def test_what_is_not_a_name(name: str) -> None:
    """Neither a part of a path or name nor the path of an object with two tensors is a name of a tensor."""
    assert NAMES.find(name) == [] and NAMES.resolve(name) is None


def test_names_of() -> None:
    """The key first, then short key, path and full name; what has no others has its key."""
    assert NAMES.names_of(KERNEL) == (KERNEL, "model/kernel", "model.kernel", "dense/kernel")
    assert NAMES.names_of(SLOT) == (SLOT, SLOT.removesuffix(SUFFIX), "optimizer.m of model.kernel")
    assert NAMES.names_of("loose") == ("loose",) and NAMES.names_of("unknown") == ("unknown",)
    assert {"loose", "dense/kernel", "model.kernel", KERNEL} <= set(NAMES.known())


def test_notes() -> None:
    """The variable's full name; of a slot variable without one, whose it is."""
    assert NAMES.note(KERNEL) == 'variable "dense/kernel"' and NAMES.variable(KERNEL) == "dense/kernel"
    assert NAMES.note(SLOT) == "m of model.kernel" and NAMES.variable(SLOT) is None
    assert NAMES.note("loose") == ""


def test_several_variables_of_one_name() -> None:
    """An error lists them, even if the name is the full name of one and the short key of another; keys are exact."""
    graph = ObjectGraph(
        (
            TrackableObject(children(("a", 1), ("b", 2), ("c", 3))),
            variable("total", "a"),
            variable("total", "b"),
            variable("a", "c"),
        )
    )
    names = TensorNames(graph, ["a" + SUFFIX, "b" + SUFFIX, "c" + SUFFIX])
    assert names.find("total") == ["a" + SUFFIX, "b" + SUFFIX]
    with pytest.raises(InvalidArgumentError, match=f'"total:0" is the name of 2 tensors: "a{SUFFIX}", "b{SUFFIX}"'):
        names.resolve("total:0")
    with pytest.raises(InvalidArgumentError, match='"a" is the name of 2 tensors'):
        names.resolve("a")
    assert TensorNames(graph, ["a" + SUFFIX, "c" + SUFFIX, "a"]).resolve("a") == "a"


def test_a_name_that_is_another_key_is_not_listed() -> None:
    """Looked up, it means the tensor of that key."""
    graph = ObjectGraph((TrackableObject(children(("a", 1))), variable("w", "a")))
    names = TensorNames(graph, ["a" + SUFFIX, "w"])
    assert names.names_of("a" + SUFFIX) == ("a" + SUFFIX, "a") and names.resolve("w") == "w"


def test_paths_of_hostile_graphs() -> None:
    """Loops end; long paths are not listed, and are understood; an empty graph has no names."""
    loop = ObjectGraph((TrackableObject(children(("c", 0), ("c", 1), ("", 0))), variable("w", "v")))
    assert TensorNames(loop, ["v" + SUFFIX]).resolve("c.c.c.c.c") == "v" + SUFFIX
    links = [TrackableObject(children(("c", i + 1))) for i in range(20_000)]
    deep = TensorNames(ObjectGraph((*links, variable("w", "v"))), ["v" + SUFFIX])
    assert deep.names_of("v" + SUFFIX) == ("v" + SUFFIX, "v", "w")
    assert deep.resolve(".".join("c" * 20_000)) == "v" + SUFFIX
    assert TensorNames(ObjectGraph(()), ["v"]).resolve("w") is None


def test_one_tensor_claimed_by_many() -> None:
    """It gets a few names, not one for each of the objects that a file may list."""
    nodes = [variable(f"w{i}", "v") for i in range(1000)]
    graph = ObjectGraph((TrackableObject(children(*((f"c{i}", i + 1) for i in range(1000)))), *nodes))
    assert len(TensorNames(graph, ["v" + SUFFIX]).names_of("v" + SUFFIX)) < 12


def test_parts_of_keys() -> None:
    """The suffix of variables alone goes; a table's tensors belong to the attribute that their keys begin with."""
    assert (short_key(KERNEL), short_key(STATE)) == ("model/kernel", STATE)
    assert GRAPH.attribute_keys([KERNEL, *TABLE, "loose"]) == {
        KERNEL: KERNEL,
        **dict.fromkeys(TABLE, "table/.ATTRIBUTES/table"),
    }
