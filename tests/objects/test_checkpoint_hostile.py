"""Checkpoint with damaged, invented and unrelated files: an error or a reported difference.

Nothing is restored partly.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.format.object_graph import (
    OBJECT_GRAPH_KEY,
    VARIABLE_VALUE,
    ObjectGraph,
    ObjectReference,
    SerializedTensor,
    SlotVariable,
    TrackableObject,
)
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.values import WritableValue

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def write_graph(prefix: Path, graph: WritableValue, **tensors: WritableValue) -> str:
    """Write a checkpoint with this graph, encoded or as given bytes, and tensors under VALUE keys."""
    named = {f"{name}{VALUE}": value for name, value in tensors.items()}
    return tfckpt.save_file({**named, OBJECT_GRAPH_KEY: graph}, prefix)


def encoded(*nodes: TrackableObject) -> bytes:
    return ObjectGraph(nodes).encode()


def parent(*children: tuple[str, int], slots: Sequence[SlotVariable] = ()) -> TrackableObject:
    return TrackableObject(
        tuple(ObjectReference(place, name) for name, place in children), (), tuple(slots), None, True
    )


def variable(key: str, name: str = VARIABLE_VALUE) -> TrackableObject:
    return TrackableObject(attributes=(SerializedTensor(name, key, f"{key}{VALUE}"),), has_checkpoint_values=True)


class Untouched:
    """A model, an optimizer and values that must be unchanged after a failed restore."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.1)
        self.model(torch.ones(4, 2)).sum().backward()
        self.optimizer.step()
        self.extra: dict[str, object] = {"lr": 0.5, "ema": torch.ones(2)}
        self.checkpoint: Any = Checkpoint(model=self.model, optimizer=self.optimizer, extra=self.extra, epoch=3)
        self._before = self.state()

    def state(self) -> list[object]:
        """Return all values in a comparable form."""
        tensors = [*self.model.state_dict().values(), self.extra["ema"]]
        for state in self.optimizer.state.values():
            tensors += state.values()
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        return [*[torch.as_tensor(t).tolist() for t in tensors], groups, self.extra["lr"], self.checkpoint.epoch]

    def change(self) -> None:
        """Make all values different from the saved ones."""
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                tensor.add_(1)
        torch.as_tensor(self.extra["ema"]).add_(1)
        self.extra["lr"] = 0.25
        self.checkpoint.epoch = 4
        self.optimizer.param_groups[0]["lr"] = 0.75
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.add_(1)
        self._before = self.state()

    def assert_as_before(self) -> None:
        assert self.state() == self._before


@pytest.mark.parametrize(
    ("kind", "error"),
    [("dtype", tfckpt.InvalidArgumentError), ("shape", ValueError), ("missing", tfckpt.NotFoundError)],
    ids=["dtype", "shape", "missing"],
)
def test_a_mismatch_changes_nothing(tmp_path: Path, kind: str, error: type[Exception]) -> None:
    """If any tensor is missing or has another dtype or shape, nothing is assigned.

    The error names the tensor.
    """
    target = Untouched()
    stored = tfckpt.load_file(target.checkpoint.write(tmp_path / "m"))
    target.change()
    keys = [key for key, value in stored.items() if key != OBJECT_GRAPH_KEY and isinstance(value, torch.Tensor)]
    assert len(keys) > 15
    for number, key in enumerate(keys):
        if "_power/" in key:
            continue  # not read, since the optimizer's own string is stored
        if kind != "missing" and ("py_state/" in key or (kind == "dtype" and ".OPTIMIZER_SLOT" in key)):
            continue  # torch casts the state of optimizers; values that are not slot variables may have any shape
        wrong = {**stored}
        value = torch.as_tensor(stored[key])
        if kind == "missing":
            del wrong[key]
        else:
            # complex: never cast silently to another dtype.
            wrong[key] = value.to(torch.complex128) if kind == "dtype" else torch.zeros(7, 7, dtype=value.dtype)
        path = tfckpt.save_file(wrong, tmp_path / f"{number}")
        with pytest.raises(error) as caught:
            target.checkpoint.read(path)
        target.assert_as_before()
        assert isinstance(caught.value, tfckpt.CheckpointError)
        assert key in str(caught.value) or key.split("/")[-2] in str(caught.value), caught.value


def test_damage_changes_nothing(tmp_path: Path) -> None:
    """A flipped byte in the last tensor, or anywhere in the data, is a DataLossError; nothing is assigned."""
    target = Untouched()
    path = target.checkpoint.write(tmp_path / "m")
    target.change()
    data = tmp_path / "m.data-00000-of-00001"
    content = data.read_bytes()
    graph_at = content.index(ObjectGraph.decode(graph_of(path)).encode())
    for at in (0, graph_at // 2, graph_at - 60, graph_at + 5, len(content) - 1):
        data.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(tfckpt.DataLossError):
            target.checkpoint.read(path)
        target.assert_as_before()
    data.write_bytes(content[:-3])
    with pytest.raises(tfckpt.CheckpointError):
        target.checkpoint.read(path)
    target.assert_as_before()


def graph_of(path: str) -> bytes:
    return bytes(tfckpt.load_file(path, names=[OBJECT_GRAPH_KEY])[OBJECT_GRAPH_KEY].item())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(encoded(parent(("v", 7)), variable("v")), id="child out of range"),
        pytest.param(encoded(parent(("v", -1)), variable("v")), id="negative child"),
        pytest.param(encoded(parent(("v", 1), slots=[SlotVariable(1, "m", 9)]), variable("v")), id="slot out of range"),
        pytest.param(
            encoded(parent(("v", 1), slots=[SlotVariable(-5, "m", 1)]), variable("v")), id="negative variable"
        ),
        pytest.param(b"\xff\xff\xff", id="no message"),
        pytest.param(encoded(parent(("v", 1)), variable("v"))[:-3], id="cut"),
        pytest.param(b"", id="no nodes"),
        pytest.param(
            encoded(
                parent(("v", 1)),
                TrackableObject(attributes=(*variable("v").attributes, *variable("w").attributes)),
            ),
            id="an attribute twice",
        ),
    ],
)
def test_invalid_graphs(tmp_path: Path, graph: bytes) -> None:
    """DataLossError with the path; nothing is assigned, and no save_counter is created."""
    path = write_graph(tmp_path / "m", graph, v=torch.tensor(1.0), w=torch.tensor(1.0))
    v = torch.tensor(5.0)
    checkpoint = Checkpoint(v=v)
    for put in (checkpoint.read, checkpoint.restore):
        with pytest.raises(tfckpt.DataLossError, match="m"):
            put(path)
        assert v.item() == 5.0
    written = checkpoint.write(tmp_path / "n")
    assert sorted(tfckpt.load_file(written)) == [OBJECT_GRAPH_KEY, "v" + VALUE]


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(torch.tensor([1, 2, 3]), id="numbers"),
        pytest.param(torch.tensor(1.0), id="a number"),
        pytest.param(np.array([b"", b""], dtype=object), id="two strings"),
        pytest.param(np.array([], dtype=object), id="no string"),
    ],
)
def test_a_graph_of_another_type(tmp_path: Path, stored: WritableValue) -> None:
    """If the value under the graph's key is not a scalar string, the error is clear."""
    path = write_graph(tmp_path / "m", stored, v=torch.tensor(1.0))
    v = torch.tensor(5.0)
    with pytest.raises(tfckpt.DataLossError, match=OBJECT_GRAPH_KEY):
        Checkpoint(v=v).read(path)
    assert v.item() == 5.0


def test_loops_and_children_that_refer_to_parents(tmp_path: Path) -> None:
    """A node that is its own child, its grandparent and the root's child is restored like any other."""
    graph = encoded(
        parent(("root", 0), ("a", 1), ("v", 2)),
        parent(("self", 1), ("up", 0), ("a", 1), ("v", 3)),
        variable("v"),
        variable("w"),
    )
    path = write_graph(tmp_path / "m", graph, v=torch.tensor(1.0), w=torch.tensor(2.0))
    root, a = nn.Module(), nn.Module()
    root.v, a.v = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
    root.a = a
    a.up, a.self = root, a
    Checkpoint(root).read(path).assert_consumed().assert_existing_objects_matched()
    assert (root.v.item(), a.v.item()) == (1.0, 2.0)
    plain = nn.Module()
    plain.a = nn.Module()
    plain.a.a = nn.Module()  # one node in the file, two objects here
    status = Checkpoint(plain).read(path)
    with pytest.raises(AssertionError):
        status.assert_consumed()
    status.expect_partial()


def test_a_slot_of_a_slot(tmp_path: Path) -> None:
    """Slot variables of each other, or of the optimizer's own node, raise an error or fail an assert."""
    loops = [SlotVariable(3, "m", 3), SlotVariable(3, "v", 2), SlotVariable(1, "m", 0)]
    graph = encoded(parent(("v", 1), ("optimizer", 2)), variable("v"), parent(slots=loops), variable("w"))
    path = write_graph(tmp_path / "m", graph, v=torch.tensor(1.0), w=torch.tensor(2.0))
    v = nn.Parameter(torch.tensor(0.0))
    optimizer = torch.optim.Adam([v])
    try:
        status = Checkpoint(v=v, optimizer=optimizer).read(path)
    except tfckpt.CheckpointError:
        assert v.item() == 0.0
    else:
        with pytest.raises(AssertionError):
            status.assert_consumed()
        status.expect_partial()
    tfckpt.load_checkpoint(path)


def test_two_attributes_with_one_key(tmp_path: Path) -> None:
    """Two variables that are stored under one key both get its value."""
    graph = encoded(parent(("v", 1), ("w", 2)), variable("v"), variable("v"))
    path = write_graph(tmp_path / "m", graph, v=torch.tensor(1.0))
    v, w = torch.tensor(0.0), torch.tensor(0.0)
    Checkpoint(v=v, w=w).read(path).assert_consumed()
    assert (v.item(), w.item()) == (1.0, 1.0)


def test_two_children_of_one_name(tmp_path: Path) -> None:
    """It is ambiguous which is meant: at most one value is used, and assert_consumed reports the other."""
    graph = encoded(parent(("v", 1), ("v", 2)), variable("v"), variable("w"))
    path = write_graph(tmp_path / "m", graph, v=torch.tensor(1.0), w=torch.tensor(2.0))
    v = torch.tensor(0.0)
    try:
        status = Checkpoint(v=v).read(path)
    except tfckpt.CheckpointError:
        assert v.item() == 0.0
    else:
        assert v.item() in (1.0, 2.0)
        status.expect_partial()


def test_an_unknown_attribute(tmp_path: Path) -> None:
    """An attribute that tensors do not have is reported by assert_consumed."""
    graph = encoded(parent(("v", 1)), variable("v", "SOMETHING_ELSE"))
    path = write_graph(tmp_path / "m", graph, v=torch.tensor(1.0))
    v = torch.tensor(0.0)
    status = Checkpoint(v=v).read(path)
    with pytest.raises(AssertionError, match=r"SOMETHING_ELSE|\(root\)\.v"):
        status.assert_consumed()
    status.expect_partial()
    assert v.item() == 0.0


def test_megabyte_names(tmp_path: Path) -> None:
    """Names of a megabyte are written, read and asserted; messages show only their beginning."""
    name = "n" * 1_000_000
    path = Checkpoint(**{name: torch.tensor(1.0)}).write(tmp_path / "m")
    v = torch.tensor(0.0)
    Checkpoint(**{name: v}).read(path).assert_consumed()
    assert v.item() == 1.0
    status = Checkpoint(v=v).read(path)
    for check in (status.assert_consumed, status.assert_existing_objects_matched):
        with pytest.raises(AssertionError) as caught:
            check()
        assert len(str(caught.value)) < 10_000
    status.expect_partial()
    with pytest.raises(ValueError) as refused:
        Checkpoint(**{name: torch.zeros(2)}).read(path)
    assert len(str(refused.value)) < 10_000


def test_a_deep_chain(tmp_path: Path) -> None:
    """Thousands of nested objects are written and read without recursion."""
    depth = 10_000
    root = node = Link()
    for _ in range(depth):
        node.next = Link()
        node = node.next
    node.v = torch.tensor(1.0)
    path = Checkpoint(root).write(tmp_path / "m")
    node.v.zero_()
    Checkpoint(root).read(path).assert_consumed()
    assert node.v.item() == 1.0
    status = Checkpoint(Link()).read(path)
    with pytest.raises(AssertionError, match="Unresolved object"):
        status.assert_consumed()
    status.expect_partial()
    # Freed from the front; otherwise Python recurses.
    while root.next is not None:
        root = root.next


class Link:
    """Element of a chain."""

    def __init__(self) -> None:
        self.next: Link | None = None
        self.v: torch.Tensor | None = None

    def _trackable_children(self) -> dict[str, object]:
        return {name: part for name, part in (("next", self.next), ("v", self.v)) if part is not None}


def test_an_invalid_state_string(tmp_path: Path) -> None:
    """A damaged or foreign string of a Python value raises our error; nothing is assigned."""
    v, extra = torch.tensor(1.0), {"lr": 0.5}
    stored = tfckpt.load_file(Checkpoint(extra=extra, v=v).write(tmp_path / "m"))
    [key] = [key for key in stored if key.endswith("py_state")]
    v.fill_(2.0)
    extra["lr"] = 0.25
    for number, text in enumerate([b"", b"{", b"\xff", b'{"$tensor": "v"}', b"[" * 100_000, b'"text"', b"[1, 2]"]):
        path = tfckpt.save_file({**stored, key: np.array(text, dtype=object)}, tmp_path / f"{number}")
        with pytest.raises(tfckpt.CheckpointError):
            Checkpoint(extra=extra, v=v).read(path)
        assert (v.item(), extra) == (2.0, {"lr": 0.25})


@given(data=st.data())
@settings(max_examples=60)
def test_any_graph_is_an_error_or_a_restore(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Random graphs, valid or not, with or without their tensors, raise our error or are restored.

    After an error nothing is assigned; after a restore the status's asserts work.
    """
    directory = tmp_path_factory.getbasetemp() / "any_graph"
    directory.mkdir(exist_ok=True)
    names = st.sampled_from(["a", "v", "w", "optimizer", "m", "root", "", "x/y"])
    count = data.draw(st.integers(1, 6))
    ids = st.integers(0, count - 1) | st.integers(-1, count)
    node = st.builds(
        TrackableObject,
        st.lists(st.builds(ObjectReference, ids, names), max_size=4).map(tuple),
        st.lists(
            st.builds(
                SerializedTensor,
                st.sampled_from([VARIABLE_VALUE, "py_state", "x"]),
                names,
                st.sampled_from([f"{name}{VALUE}" for name in ("v", "w", "absent")] + [OBJECT_GRAPH_KEY, ""]),
            ),
            max_size=2,
        ).map(tuple),
        st.lists(st.builds(SlotVariable, ids, st.sampled_from(["m", "v", "exp"]), ids), max_size=2).map(tuple),
        st.none(),
        st.sampled_from([None, True, False]),
    )
    nodes = data.draw(st.lists(node, min_size=count, max_size=count))
    path = write_graph(directory / "m", encoded(*nodes), v=torch.tensor(1.0), w=torch.tensor([2.0]))
    v, w = nn.Parameter(torch.tensor(7.0)), torch.tensor([7.0])
    extra: dict[str, object] = {"lr": 3}
    model = nn.Module()
    model.v, model.a = v, nn.Module()
    model.a.v = v
    checkpoint = Checkpoint(a=model, v=v, w=w, optimizer=torch.optim.Adam([v]), m=extra)
    try:
        status = checkpoint.read(path)
    except tfckpt.CheckpointError:
        assert (v.item(), w.item(), extra) == (7.0, 7.0, {"lr": 3})
        return
    status.expect_partial()
    for check in (status.assert_consumed, status.assert_existing_objects_matched, status.assert_nontrivial_match):
        try:
            check()
        except AssertionError as error:
            assert str(error)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_the_order_of_nodes_does_not_matter(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A checkpoint whose nodes have other ids, except the root's 0, reads the same.

    This covers values, the optimizer and all asserts.
    """
    directory = tmp_path_factory.getbasetemp() / "permuted"
    directory.mkdir(exist_ok=True)
    saved = Untouched()
    stored = tfckpt.load_file(saved.checkpoint.write(directory / "m"))
    graph = ObjectGraph.decode(graph_of(str(directory / "m")))
    rng = random.Random(seed)
    order = [0, *rng.sample(range(1, len(graph.nodes)), len(graph.nodes) - 1)]  # new id -> old id
    new_id = {old: new for new, old in enumerate(order)}.__getitem__
    nodes = [permuted(graph.nodes[old], new_id, rng) for old in order]
    path = tfckpt.save_file({**stored, OBJECT_GRAPH_KEY: np.array(encoded(*nodes), dtype=object)}, directory / "p")
    expected = saved.state()
    saved.change()
    assert saved.state() != expected
    saved.checkpoint.read(path).assert_consumed()
    assert saved.state() == expected


def permuted(node: TrackableObject, new_id: Callable[[int], int], rng: random.Random) -> TrackableObject:
    """Return the node with other ids and its children in any order."""
    children = [ObjectReference(new_id(child.node_id), child.local_name) for child in node.children]
    slots = [
        SlotVariable(new_id(slot.original_variable_node_id), slot.slot_name, new_id(slot.slot_variable_node_id))
        for slot in node.slot_variables
    ]
    rng.shuffle(children)
    rng.shuffle(slots)
    return TrackableObject(tuple(children), node.attributes, tuple(slots), None, node.has_checkpoint_values)
