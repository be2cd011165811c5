"""The object graph of a checkpoint from Python objects."""

from typing import Any

import pytest
import torch
from torch import nn

from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ObjectGraph
from torch_tfckpt.objects.graph_view import ObjectNode, object_nodes, to_save
from torch_tfckpt.objects.trackables.registry import trackable_of
from torch_tfckpt.saveables.variables import Variable


class Parent:
    """Object with these children and no values."""

    def __init__(self, **children: object) -> None:
        self.children = children

    def _trackable_children(self) -> dict[str, object]:
        return self.children


def nodes(root: object) -> list[ObjectNode]:
    return object_nodes(trackable_of(root, "root"))


def routes(root: object) -> list[str]:
    return ["/".join(node.route) for node in nodes(root)]


def saved(root: object, *, skip_slot_variables: bool = False) -> tuple[list[str], ObjectGraph]:
    """Return the keys in their order, and the graph."""
    saveables = to_save(trackable_of(root, "root"), skip_slot_variables=skip_slot_variables)
    specs = [spec for saveable in saveables for spec in saveable.specs]
    assert specs[-1].name == OBJECT_GRAPH_KEY
    text = specs[-1].tensor
    assert isinstance(text, bytes)
    return [spec.name for spec in specs[:-1]], ObjectGraph.decode(text)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_ids_are_given_breadth_first() -> None:
    """Nodes nearer to the root come first, children in their order (docs/formats/object-graph.md)."""
    root = Parent(b=Parent(x=torch.ones(1), y=Parent(z=torch.ones(1))), a=Parent(w=torch.ones(1)))
    assert routes(root) == ["", "b", "a", "b/x", "b/y", "a/w", "b/y/z"]


def test_one_object_is_one_node() -> None:
    """An object with several paths is one node, at its first path."""
    shared = nn.Linear(1, 1)
    found = nodes(Parent(deep=Parent(shared=shared), near=shared, weight=shared.weight))
    assert [node.route for node in found] == [(), ("deep",), ("near",), ("weight",), ("near", "bias")]
    assert [(each.local_name, each.node_id) for each in found[2].children] == [("weight", 3), ("bias", 4)]
    assert found[1].children == [(2, "shared")]


def test_loops() -> None:
    """An object may be its own descendant."""
    root = Parent()
    root.children["self"] = root
    root.children["down"] = Parent(up=root)
    assert routes(root) == ["", "down"]
    _, graph = saved(root)
    assert [node.children for node in graph.nodes] == [((0, "self"), (1, "down")), ((0, "up"),)]


def test_a_long_chain() -> None:
    """Depth needs neither recursion nor memory proportional to its square."""
    root = bottom = Parent()
    for _ in range(20_000):
        below = Parent()
        bottom.children["n"] = below
        bottom = below
    bottom.children["v"] = torch.ones(1)
    found = nodes(root)
    assert len(found) == 20_002
    assert len(found[-1].route) == 20_001
    assert str(found[2]) == "(root).n.n"


def test_full_names() -> None:
    """Full names are those of Saver, a Variable's own name, and "" for objects that are not tensors."""
    inner = nn.Sequential(nn.Linear(1, 1, bias=False))
    named = {str(node): node.full_name for node in nodes(Parent(model=inner, group={"ema": torch.ones(1)}))}
    assert named == {
        "(root)": "",
        "(root).model": "",
        "(root).model.0": "",
        "(root).model.0.weight": "model/0.weight",
        "(root).group": "",
        "(root).group.ema": "group/ema",
    }
    assert [node.full_name for node in nodes(inner)] == ["", "", "0.weight"]
    assert nodes(Parent(v=Variable(torch.ones(1), "a/b")))[1].full_name == "a/b"


def test_two_children_of_one_name() -> None:
    """Duplicate names are rejected."""

    class Twice:
        def _trackable_children(self) -> list[tuple[str, object]]:
            return [("v", torch.ones(1)), ("v", torch.ones(1))]

    with pytest.raises(ValueError, match="already declared"):
        nodes(Twice())


def test_the_order_of_values() -> None:
    """Tensors, then slot variables, then states, and the graph last."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = stepped(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.5))
    keys, graph = saved(Parent(plain=[1], optimizer=optimizer, model=model, v=torch.ones(1)))
    value, state = "/.ATTRIBUTES/VARIABLE_VALUE", "/.ATTRIBUTES/py_state"
    slot = "model/weight/.OPTIMIZER_SLOT/optimizer/momentum" + value
    assert keys == ["v" + value, "model/weight" + value, slot, "plain" + state, "optimizer" + state]
    listed = [each.checkpoint_key for node in graph.nodes for each in node.attributes]
    assert sorted(listed) == sorted(keys[:-1])


def test_slot_variables_come_last() -> None:
    """They are sorted by slot name, then by variable, and named after the variable."""
    model = nn.Linear(1, 1)
    optimizer = stepped(model, torch.optim.Adam(list(model.parameters())[::-1]))
    _, graph = saved(Parent(optimizer=optimizer, model=model))
    [slots] = [node.slot_variables for node in graph.nodes if node.slot_variables]
    names = [graph.nodes[slot.slot_variable_node_id].attributes[0].full_name for slot in slots]
    assert [slot.slot_name for slot in slots] == ["m", "m", "v", "v"]
    assert names == [f"model/{name}/{suffix}" for suffix in ("Adam", "Adam_1") for name in ("weight", "bias")]
    assert [slot.slot_variable_node_id for slot in slots] == list(range(len(graph.nodes) - 4, len(graph.nodes)))


def test_without_slot_variables() -> None:
    """The optimizer is a node, without any of its state."""
    model = nn.Linear(1, 1)
    optimizer = stepped(model, torch.optim.Adam(model.parameters()))
    keys, graph = saved(Parent(optimizer=optimizer, model=model), skip_slot_variables=True)
    assert [key for key in keys if "optimizer" in key.lower()] == []
    assert not any(node.slot_variables for node in graph.nodes)
    assert graph.nodes[0].child("optimizer") is not None


def test_a_slot_variable_that_is_also_another_variable() -> None:
    """It could be restored twice with two values, so it is rejected with both names."""
    model = nn.Linear(1, 1, bias=False)
    optimizer: Any = stepped(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.5))
    buffer = optimizer.state[model.weight]["momentum_buffer"]
    with pytest.raises(UnimplementedError, match=r"\(root\)\.o.*\"momentum\" of \(root\)\.m\.weight.*Remove that"):
        saved(Parent(o=optimizer, m=model, buffer=buffer))


def test_nodes_with_values_below() -> None:
    """has_checkpoint_values is true exactly for nodes with values in or below them."""
    _, graph = saved(Parent(a=Parent(v=torch.ones(1)), b=Parent(c=Parent()), empty=[]))
    assert {graph.name(i): node.has_checkpoint_values for i, node in enumerate(graph.nodes)} == {
        "(root)": True,
        "(root).a": True,
        "(root).b": False,
        "(root).empty": False,
        "(root).a.v": True,
        "(root).b.c": False,
    }
