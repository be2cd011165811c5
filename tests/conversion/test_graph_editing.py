"""Editing an object graph: which node goes where, what is removed, and what is refused."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from object_files import children, variable, write_graph

import torch_tfckpt as tfckpt
from torch_tfckpt.conversion.convert import convert
from torch_tfckpt.conversion.diff import diff
from torch_tfckpt.conversion.graph_editing import edit_graph, object_paths, other_keys
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import (
    OBJECT_GRAPH_KEY,
    ObjectGraph,
    RegisteredSaver,
    SerializedTensor,
    SlotVariable,
    TrackableObject,
    with_checkpoint_values,
)

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def graph_of(*nodes: TrackableObject) -> ObjectGraph:
    return ObjectGraph(with_checkpoint_values(nodes))


def edited(graph: ObjectGraph, renames: Mapping[str, str | None]) -> dict[str, str]:
    """Path of each object with a value -> its key, after an edit. None leaves a tensor out."""
    names = [attribute.checkpoint_key for node in graph.nodes for attribute in node.attributes]
    new_names = {name: new for name in names if (new := renames.get(name, name)) is not None}
    result = edit_graph(graph, names, new_names).graph
    assert ObjectGraph.decode(result.encode()) == result == graph_of(*result.nodes)
    return {
        result.name(node_id): attribute.checkpoint_key
        for node_id, node in enumerate(result.nodes)
        for attribute in node.attributes
    }


# model: w, b; optimizer with a slot variable of w
GRAPH = graph_of(
    TrackableObject(children(("model", 1), ("optimizer", 2), ("alias", 1))),
    TrackableObject(children(("w", 3), ("b", 4), ("optimizer", 2))),
    TrackableObject(slot_variables=(SlotVariable(3, "m", 5),)),
    variable("w", f"model/w{VALUE}"),
    variable("b", f"model/b{VALUE}"),
    variable("w/m", f"model/w/.OPTIMIZER_SLOT/optimizer/m{VALUE}"),
)
SLOT = f"model/w/.OPTIMIZER_SLOT/optimizer/m{VALUE}"


def test_nothing_to_do_gives_the_graph_itself() -> None:
    names = [f"model/w{VALUE}", f"model/b{VALUE}", SLOT]
    assert edit_graph(GRAPH, names, {name: name for name in names}).graph is GRAPH


def test_a_renamed_object_keeps_its_other_parents() -> None:
    renames = {f"model/{name}{VALUE}": f"net/{name}{VALUE}" for name in "wb"}
    names = [*renames, SLOT]
    result = edit_graph(GRAPH, names, {**renames, SLOT: SLOT.replace("model", "net")})
    assert [child.local_name for child in result.graph.nodes[0].children] == ["net", "optimizer", "alias"]
    assert result.paths == {"": "", "model": "net", "optimizer": "optimizer", "model/w": "net/w", "model/b": "net/b"}
    assert result.graph.value_key(5) == SLOT.replace("model", "net")


def test_part_of_an_object_moves() -> None:
    """A new object takes it; the other part stays."""
    assert edited(GRAPH, {f"model/w{VALUE}": f"other/x{VALUE}"}) == {
        "(root).other.x": f"other/x{VALUE}",
        "(root).model.b": f"model/b{VALUE}",
        "(root).optimizer's state 'm' for (root).other.x": SLOT,
    }


def test_a_level_less_merges_objects() -> None:
    renames: dict[str, str | None] = {f"model/{name}{VALUE}": f"{name}{VALUE}" for name in "wb"}
    assert edited(GRAPH, renames) == {
        "(root).w": f"w{VALUE}",
        "(root).b": f"b{VALUE}",
        "(root).optimizer's state 'm' for (root).w": SLOT,
    }


def test_a_slot_is_renamed() -> None:
    assert "(root).optimizer's state 'momentum' for (root).model.w" in edited(
        GRAPH, {SLOT: SLOT.replace("/m/", "/momentum/")}
    )


@pytest.mark.parametrize("new", ["model.w", "w", f"model/w{VALUE}_1", f"model//w{VALUE}", "/.ATTRIBUTES/w"])
def test_other_keys_leave_the_object_where_it_is(new: str) -> None:
    """A key that does not end like the key of an object's value does not move the object."""
    assert edited(GRAPH, {f"model/w{VALUE}": new})["(root).model.w"] == new


def test_left_out_variables_take_their_slots_along() -> None:
    """They could not be restored without their variable; their tensors stay in the checkpoint."""
    assert edited(GRAPH, {f"model/w{VALUE}": None}) == {"(root).model.b": f"model/b{VALUE}"}
    assert set(edited(GRAPH, {SLOT: None})) == {"(root).model.w", "(root).model.b"}
    everything = {f"model/w{VALUE}": None, f"model/b{VALUE}": None, SLOT: None}
    assert edited(GRAPH, everything) == {}


def test_escaped_names() -> None:
    renames: dict[str, str | None] = {f"model/w{VALUE}": f"model/a.Sb..c{VALUE}"}
    assert edited(GRAPH, renames)["(root).model.a/b.c"] == f"model/a.Sb..c{VALUE}"


def test_objects_whose_tensors_are_stored_under_other_objects() -> None:
    """As in Keras, whose optimizer has shorter ways to the variables of the model than the model."""
    graph = graph_of(
        TrackableObject(children(("model", 1), ("optimizer", 2))),
        TrackableObject(children(("layers", 3))),
        TrackableObject(children(("v", 4))),
        TrackableObject(children(("kernel", 4))),
        variable("kernel", f"optimizer/v{VALUE}"),
    )
    key = f"optimizer/v{VALUE}"
    assert object_paths(graph) == ["model/", "optimizer/", "model/layers/", "optimizer/v/"]
    assert other_keys(graph, [key]) == {key: [f"model/layers/kernel{VALUE}"]}
    result = edit_graph(graph, [key], {key: key}, lambda name: name.replace("model/", "net/top/")).graph
    top = result.nodes[0].child("net")
    assert top is not None and result.nodes[0].child("model") is None and result.nodes[0].child("optimizer") == 2
    assert [child.local_name for child in result.nodes[top].children] == ["top"]
    assert result.route(4) == ("optimizer", "v") and result.value_key(4) == key


def test_objects_without_tensors_go_with_their_parent() -> None:
    """Also if the pattern needs the end of a tensor's name; at the root they stay where they are."""
    graph = graph_of(
        TrackableObject(children(("model", 1), ("function", 2))),
        TrackableObject(children(("w", 3), ("dropout", 4))),
        TrackableObject(),
        variable("w", f"model/w{VALUE}"),
        TrackableObject(),
    )
    key, new = f"model/w{VALUE}", f"net/w{VALUE}"
    for rename in (str, lambda name: re.sub("^model/(.*VALUE)$", r"net/\1", name)):
        result = edit_graph(graph, [key], {key: new}, rename).graph
        assert [child.local_name for child in result.nodes[0].children] == ["net", "function"]
        net = result.nodes[0].child("net")
        assert net is not None and [child.local_name for child in result.nodes[net].children] == ["w", "dropout"]
    result = edit_graph(graph, [key], {key: f"a/{key}"}).graph
    assert sorted(child.local_name for child in result.nodes[0].children) == ["a", "function"]


def test_a_rename_that_is_about_an_object_only(tmp_path: Path) -> None:
    """A pattern that matches only the path of an object is accepted; a shared variable that is left out is reported."""
    nodes = [
        TrackableObject(children(("model", 1), ("v", 2))),
        TrackableObject(children(("kernel", 2))),
        variable("kernel", f"v{VALUE}"),
    ]
    source = write_graph(tmp_path / "t", nodes, {f"v{VALUE}": torch.ones(2), "other": torch.ones(1)})
    assert convert(source, tmp_path / "m", to="tf", rename=[("^model/", "net/")]).graph_edited
    kernel = torch.zeros(2)
    tfckpt.Checkpoint(net={"kernel": kernel}, v=kernel).read(tmp_path / "m").assert_consumed()
    assert kernel.tolist() == [1.0, 1.0]
    assert diff(source, tmp_path / "m", rename=[("^model/", "net/")]).identical
    with pytest.raises(InvalidArgumentError, match="matches none of 2 tensors"):
        convert(source, tmp_path / "m", to="tf", rename=[("^modle/", "net/")])
    report = convert(source, tmp_path / "n", to="tf", exclude=["^v/"])
    assert report.shared == {f"v{VALUE}": f"model/kernel{VALUE}"}
    assert f'  "v{VALUE}", which is also "model/kernel{VALUE}"' in str(report)


def test_tables_and_iterators() -> None:
    """The graph lists KEY, stored are KEY-keys and KEY-values, KEY_STATE."""
    graph = graph_of(
        TrackableObject(children(("t", 1), ("i", 2))),
        TrackableObject(attributes=(SerializedTensor("table", "", "t/.ATTRIBUTES/table"),)),
        TrackableObject(attributes=(SerializedTensor("ITERATOR", "", "i/.ATTRIBUTES/ITERATOR"),)),
    )
    keys, values = "t/.ATTRIBUTES/table-keys", "t/.ATTRIBUTES/table-values"
    state = "i/.ATTRIBUTES/ITERATOR_STATE"
    names = [keys, values, state]
    result = edit_graph(graph, names, {name: f"new/{name}" for name in names}).graph
    assert result.route(result.nodes[0].children[0].node_id) == ("new",)
    found = {attribute.checkpoint_key for node in result.nodes for attribute in node.attributes}
    assert found == {"new/t/.ATTRIBUTES/table", "new/i/.ATTRIBUTES/ITERATOR"}
    for new_names, text in (
        ({keys: keys, state: state}, "parts of one value"),
        ({keys: "a-keys", values: "b-values", state: state}, "must have the same prefix and keep their endings"),
        ({keys: "t/keys", values: "t/values", state: state}, "must have the same prefix and keep their endings"),
    ):
        with pytest.raises(InvalidArgumentError, match=text):
            edit_graph(graph, names, new_names)


def test_two_children_of_one_name_are_refused() -> None:
    """The other child of the name may be an object without tensors of its own."""
    with pytest.raises(InvalidArgumentError, match=r"\(root\) would have two children called \"alias\"") as refused:
        edited(
            GRAPH, {f"model/{name}{VALUE}": f"alias/w{VALUE}" if name == "w" else f"model/b{VALUE}" for name in "wb"}
        )
    assert "exclude _CHECKPOINTABLE_OBJECT_GRAPH" in str(refused.value)


def test_two_registered_savers_are_not_merged() -> None:
    saver = RegisteredSaver("Custom.S", "s")
    graph = graph_of(
        TrackableObject(children(("a", 1), ("b", 2))),
        TrackableObject(children(("v", 3)), registered_saver=saver),
        TrackableObject(children(("w", 4)), registered_saver=saver),
        variable("v", f"a/v{VALUE}"),
        variable("w", f"b/w{VALUE}"),
    )
    assert set(edited(graph, {f"b/w{VALUE}": f"c/w{VALUE}"})) == {"(root).a.v", "(root).c.w"}
    with pytest.raises(InvalidArgumentError, match="two registered savers"):
        edited(graph, {f"b/w{VALUE}": f"a/w{VALUE}"})


def test_loops_and_depth() -> None:
    """An object may be its own ancestor; a chain without end is refused in time."""
    graph = graph_of(
        TrackableObject(children(("self", 0), ("a", 1))),
        TrackableObject(children(("up", 0), ("v", 2))),
        variable("v", f"a/v{VALUE}"),
    )
    result = edit_graph(graph, [f"a/v{VALUE}"], {f"a/v{VALUE}": f"top/a/v{VALUE}"}).graph
    top = result.nodes[0].child("top")
    assert top is not None and result.nodes[top].child("self") == top
    size = 100_000
    chain = [TrackableObject(children(("x", n + 1))) for n in range(size)]
    with pytest.raises(InvalidArgumentError, match="nested deeper than 1000 levels"):
        edit_graph(ObjectGraph((*chain, variable("v", "v"))), ["v"], {})


def test_graphs_of_old_writers_do_not_gain_a_field() -> None:
    """They do not store which nodes have values."""
    graph = ObjectGraph((TrackableObject(children(("v", 1))), variable("v", f"v{VALUE}")))
    result = edit_graph(graph, [f"v{VALUE}"], {f"v{VALUE}": f"w{VALUE}"}).graph
    assert [node.has_checkpoint_values for node in result.nodes] == [None, None]


# Through convert.


def write(folder: Path) -> str:
    root = TrackableObject(children(("model", 1), ("step", 2)))
    nodes = [
        root,
        TrackableObject(children(("w", 3))),
        variable("step", f"step{VALUE}"),
        variable("w", f"model/w{VALUE}"),
    ]
    return write_graph(folder / "t", nodes, {f"step{VALUE}": torch.tensor(5), f"model/w{VALUE}": torch.ones(2)})


@pytest.mark.parametrize("through", ["m.safetensors", "m.pt", "m.npz"])
def test_the_graph_follows_through_other_formats(tmp_path: Path, through: str) -> None:
    """It travels in the sidecar, edited."""
    source = write(tmp_path)
    convert(source, tmp_path / through, rename=[("^model/", "net/")])
    convert(tmp_path / through, tmp_path / "back", to="tf", rename=[("^step/", "global_step/")])
    w, step = torch.zeros(2), torch.tensor(0)
    tfckpt.Checkpoint(net={"w": w}, global_step=step).read(tmp_path / "back").assert_consumed()
    assert w.tolist() == [1.0, 1.0] and step.item() == 5


def test_other_formats_have_the_graph_only_if_it_is_selected(tmp_path: Path) -> None:
    report = convert(write(tmp_path), tmp_path / "m.safetensors", include=["^model/"])
    assert report.filtered == [OBJECT_GRAPH_KEY, f"step{VALUE}"] and not report.graph_edited
    assert not (tmp_path / "m.safetensors.tfckpt.json").exists()


def test_a_checkpoint_by_name_is_made_on_demand(tmp_path: Path) -> None:
    source = write(tmp_path)
    convert(source, tmp_path / "named", to="tf", exclude=[OBJECT_GRAPH_KEY], rename=[(f"{VALUE}$", "")])
    assert [name for name, _ in tfckpt.list_variables(tmp_path / "named")] == ["model/w", "step"]


def test_a_plain_copy_does_not_look_into_the_graph(tmp_path: Path) -> None:
    """Whatever the string holds is copied; only an edit needs it."""
    source = tfckpt.save_file({OBJECT_GRAPH_KEY: np.array(b"\xff", dtype=object), "a": torch.ones(1)}, tmp_path / "t")
    assert not convert(source, tmp_path / "copy", to="tf").graph_edited
    with pytest.raises(tfckpt.DataLossError, match=OBJECT_GRAPH_KEY):
        convert(source, tmp_path / "other", to="tf", rename=[("a", "b")])
    assert list(convert(source, tmp_path / "m", to="tf", rename=[("a", "b")], skip_damaged=True).damaged) == [
        OBJECT_GRAPH_KEY
    ]


def test_the_graph_is_decoded_once_for_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per checkpoint for the names of its tensors, and once more for everything that edits it."""
    source = write(tmp_path)
    decode = ObjectGraph.decode
    decoded: list[bytes] = []

    def counted(data: bytes) -> ObjectGraph:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(ObjectGraph, "decode", counted)
    rename = [("^model/", "net/")]
    convert(source, tmp_path / "a", to="tf", rename=rename)
    assert len(decoded) == 2
    decoded.clear()
    convert(source, tmp_path / "b", to="tf", rename=rename, exclude=["step"], skip_damaged=True)
    assert len(decoded) == 2
    decoded.clear()
    assert diff(source, tmp_path / "a", rename=rename).identical
    assert len(decoded) == 3


def test_states_have_to_stay_with_their_objects(tmp_path: Path) -> None:
    """Our optimizers' state is found by the path of the optimizer, and names tensors by their keys."""
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([w])
    w.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    path = tfckpt.Checkpoint(w=w, optimizer=optimizer).write(tmp_path / "t")
    with pytest.raises(InvalidArgumentError, match=r"is omitted, but the state .* refers to it"):
        convert(path, tmp_path / "m", to="tf", exclude=["/m/"])
    with pytest.raises(InvalidArgumentError, match=r'the state "optimizer/.ATTRIBUTES/py_state" would become'):
        convert(path, tmp_path / "m", to="tf", rename=[("py_state$", "state")])
    convert(path, tmp_path / "m", to="tf", exclude=["/m/", "py_state"])
    other = torch.nn.Parameter(torch.zeros(2))
    tfckpt.Checkpoint(w=other).read(tmp_path / "m").expect_partial()
    assert other.tolist() == w.tolist()
