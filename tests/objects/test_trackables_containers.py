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


@pytest.mark.parametrize("value", [None, 1, "a", b"a", 1.5, 1j, True, np.float32(1), np.ones(2), (), [{"a": (1,)}]])
def test_plain_values(value: object) -> None:
    """What the text of a state holds, and containers of it."""
    assert is_plain(value)


@pytest.mark.parametrize(
    "value", [torch.ones(1), nn.Linear(1, 1), object(), {1}, [[torch.ones(1)]], {"a": ({"b": nn.ReLU()},)}]
)
def test_what_is_not_plain(value: object) -> None:
    """A tensor or anything else that is a node, at any depth; and what no text holds."""
    assert not is_plain(value)


@pytest.mark.parametrize("value", [LOOP, DEEP], ids=["loop", "deep"])
def test_loops_and_depth(value: list[Any]) -> None:
    """Neither hangs nor recurses."""
    assert is_plain(value)
    assert has_scalars(value) is (value is LOOP)


@pytest.mark.parametrize(
    ("value", "has"),
    [
        *(({}, False), ([], False), ([[], {}], False), ({"a": [()]}, False), ([[1]], True), ({"a": None}, True)),
        ({1: []}, True),  # a key that no node of its own could have
    ],
)
def test_scalars_inside(value: dict[Any, Any] | list[Any], has: bool) -> None:
    """Containers of nothing but empty ones have none."""
    assert has_scalars(value) is has


@pytest.mark.parametrize(("value", "must"), [(1, True), ("a", True), ((1, 2), True), ([1], False), ({}, False)])
def test_what_must_be_replaced(value: object, must: bool) -> None:
    """What is plain and cannot change: scalars and tuples of them."""
    assert must_be_replaced(value) is must
    assert not must_be_replaced(torch.ones(1))


def test_items_of_a_dict() -> None:
    """Children under their keys, in order; of a plain value its place, which takes another."""
    tensor = torch.ones(1)
    target: dict[str, Any] = {"t": tensor, "lr": 0.5}
    (first, one), (second, other) = DictTrackable(target).children()
    assert (first, second) == ("t", "lr")
    assert one is tensor
    assert isinstance(other, ValueTrackable)
    assert other.identity == ("value", id(target), "lr")


def test_a_key_that_is_no_text() -> None:
    """Refused with the key, and what to do."""
    with pytest.raises(ValueError, match=r"non-string key 3\. Use str"):
        list(DictTrackable({3: torch.ones(1)}).children())


def test_items_of_a_list() -> None:
    """Children by their numbers."""
    tensor = torch.ones(1)
    named = dict(ListTrackable([2, tensor]).children())
    assert list(named) == ["0", "1"]
    assert isinstance(named["0"], ValueTrackable)
    assert named["1"] is tensor


def test_a_plain_value_in_a_tuple() -> None:
    """It could not be put back, so it is refused where it would be saved; containers in a tuple can change."""
    assert [name for name, _ in ListTrackable((torch.ones(1), [1])).children()] == ["0", "1"]
    with pytest.raises(ValueError, match=r"item 1, a int, could not be restored.*Use a list"):
        list(ListTrackable((torch.ones(1), 2)).children())
