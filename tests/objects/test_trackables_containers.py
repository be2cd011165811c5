"""Dicts, lists and tuples as nodes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torch_tfckpt.objects.trackables.plain_values import (
    DictTrackable,
    ListTrackable,
    ValueTrackable,
    has_scalars,
    is_plain,
    must_be_replaced,
)

LOOP: list[Any] = [1]
LOOP.append(LOOP)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value", [None, 1, "a", b"a", 1.5, 1j, True, np.float32(1), np.ones(2), (), [{"a": (1,)}], {1}, torch.half]
)
def test_plain_values(value: object) -> None:
    """Values that the string of a state can contain, and containers of them."""
    assert is_plain(value)


@pytest.mark.parametrize(
    "value", [torch.ones(1), nn.Linear(1, 1), object(), {object()}, [[torch.ones(1)]], {"a": ({"b": nn.ReLU()},)}]
)
def test_values_that_are_not_plain(value: object) -> None:
    """Tensors and other nodes at any depth, and values that the string cannot contain."""
    assert not is_plain(value)


@pytest.mark.parametrize("value", [LOOP, DEEP], ids=["loop", "deep"])
def test_loops_and_depth(value: list[Any]) -> None:
    """They neither hang nor recurse."""
    assert is_plain(value)
    assert has_scalars(value) is (value is LOOP)


@pytest.mark.parametrize(
    ("value", "has"),
    [
        *(({}, False), ([], False), ([[], {}], False), ({"a": [()]}, False), ([[1]], True), ({"a": None}, True)),
        ({1: []}, True),  # a key that cannot be the name of a node
    ],
)
def test_scalars_inside(value: dict[Any, Any] | list[Any], has: bool) -> None:
    """Containers that contain only empty containers have none."""
    assert has_scalars(value) is has


@pytest.mark.parametrize(("value", "must"), [(1, True), ("a", True), ((1, 2), True), ([1], False), ({}, False)])
def test_values_that_must_be_replaced(value: object, must: bool) -> None:
    """Plain values that cannot change: scalars and tuples of them."""
    assert must_be_replaced(value) is must
    assert not must_be_replaced(torch.ones(1))


def test_items_of_a_dict() -> None:
    """Children have the keys in order; a plain value is represented by its place in the dict."""
    tensor = torch.ones(1)
    target: dict[str, Any] = {"t": tensor, "lr": 0.5}
    (first, one), (second, other) = DictTrackable(target).children()
    assert (first, second) == ("t", "lr")
    assert one is tensor
    assert isinstance(other, ValueTrackable)
    assert other.identity == ("value", id(target), "lr")


def test_a_key_that_is_not_a_string() -> None:
    """The error has the key and the fix."""
    with pytest.raises(ValueError, match=r"non-string key 3\. Use str"):
        list(DictTrackable({3: torch.ones(1)}).children())


def test_items_of_a_list() -> None:
    """Children are named by their numbers."""
    tensor = torch.ones(1)
    named = dict(ListTrackable([2, tensor]).children())
    assert list(named) == ["0", "1"]
    assert isinstance(named["0"], ValueTrackable)
    assert named["1"] is tensor


def test_a_plain_value_in_a_tuple() -> None:
    """It could not be restored, so saving it is rejected; containers in a tuple can change."""
    assert [name for name, _ in ListTrackable((torch.ones(1), [1])).children()] == ["0", "1"]
    with pytest.raises(ValueError, match=r"item 1 \(int\) could not be restored.*Use a list"):
        list(ListTrackable((torch.ones(1), 2)).children())
