"""The values of a graph's variables: assignment copies into them."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.imported_graph.values import GraphValues


def values() -> GraphValues:
    return GraphValues({"w": torch.zeros(2, 3), "s": np.array([b"a", b"b"], dtype=object)})


def test_assigned_values_are_copied() -> None:
    """Into the existing tensor and array, which savers save."""
    graph = values()
    weights, strings = graph["w"], graph["s"]
    graph["w"] = torch.ones(2, 3, requires_grad=True)
    graph.update({"s": np.array([b"x", b"y"], dtype=object)})
    assert graph["w"] is weights and isinstance(weights, torch.Tensor) and weights.tolist() == [[1.0] * 3] * 2
    assert graph["s"] is strings and list(strings) == [b"x", b"y"] and not weights.requires_grad


@pytest.mark.parametrize(
    ("name", "value", "finding"),
    [
        ("w", torch.ones(3, 2), r'variable "w" is torch.float32 \[2,3\] and cannot be set to torch.float32 \[3,2\]'),
        ("w", torch.ones(2, 3, dtype=torch.float64), r"cannot be set to torch.float64 \[2,3\]"),
        ("w", 5, "cannot be set to int"),
        ("s", np.array([1, 2]), r"cannot be set to int64 \[2\]"),
        ("weights", torch.ones(2, 3), 'the graph has no variable "weights", and none can be added'),
    ],
    ids=["shape", "dtype", "number", "numbers", "name"],
)
def test_values_that_do_not_fit(name: str, value: object, finding: str) -> None:
    """Nothing is changed."""
    graph = values()
    with pytest.raises(InvalidArgumentError, match=finding):
        graph[name] = value
    assert not graph["w"].any() and list(graph) == ["w", "s"]


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: graph.pop("w"), lambda graph: graph.popitem(), lambda graph: graph.clear(),
        lambda graph: graph.setdefault("x", 1), lambda graph: graph.__delitem__("w"), lambda graph: graph.__ior__({}),
    ],
    ids=["pop", "popitem", "clear", "setdefault", "del", "ior"],
)  # fmt: skip
def test_variables_cannot_be_added_or_removed(change: Callable[[GraphValues], object]) -> None:
    """Every method for that raises."""
    graph = values()
    with pytest.raises(InvalidArgumentError, match="cannot be added to or removed from a graph"):
        change(graph)
    assert list(graph) == ["w", "s"]


def test_copies_are_plain_dictionaries() -> None:
    """Changing a copy does not change the variables."""
    graph = values()
    for copied in (copy.copy(graph), copy.deepcopy(graph), graph | {"x": torch.ones(1)}, dict(graph)):
        assert type(copied) is dict and list(copied)[:2] == ["w", "s"]
    assert copy.deepcopy(graph)["w"] is not graph["w"]
