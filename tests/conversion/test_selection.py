"""Patterns: what they choose, what they rename, and that none of them does nothing without a word."""

from typing import Any

import pytest

from torch_tfckpt.conversion.selection import Selection
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY

NAMES = ["encoder/layer_0/kernel", "encoder/layer_0/bias", "encoder/layer_1/kernel", "global_step"]


def chosen(names: list[str] = NAMES, **options: Any) -> dict[str, str]:
    """Name -> new name. `options`: of Selection."""
    return Selection(**options).select(names, keep_object_graph=True).new_names


def test_names_and_order() -> None:
    """Patterns are searched for; the order of the names stays."""
    assert chosen(include=["bias", "layer_1"]) == {name: name for name in NAMES[1:3]}
    assert chosen(exclude=["^encoder/layer_0/"]) == {name: name for name in NAMES[2:]}
    selected = Selection(exclude=["^encoder"]).select(NAMES, keep_object_graph=True)
    assert selected.left_out == NAMES[:3] and selected.unmatched_excludes == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"include": ["kernel", "encoder/layer1"]}, 'include "encoder/layer1" matches none of 4 tensors. The closest'),
        ({"include": ["zzz"]}, 'include "zzz" matches none of 4 tensors. The first is "encoder/layer_0/kernel"'),
        ({"rename": [("^Encoder/", "e/")]}, 'rename "^Encoder/" matches none of 4 tensors. The closest is'),
        ({"rename": [("^encoder/", "e/"), ("^encoder/", "f/")]}, 'rename "^encoder/" matches none of 4 tensors'),
        ({"include": ["step"], "rename": [("kernel", "w")]}, 'rename "kernel" matches none of 1 tensor'),
    ],
)  # fmt: skip
def test_each_include_and_rename_has_to_match(options: dict[str, Any], text: str) -> None:
    """A typo is an error, even next to patterns that match; the closest name is a hint."""
    with pytest.raises(InvalidArgumentError) as refused:
        chosen(**options)
    assert text in str(refused.value)


def test_the_closest_name_is_found_by_its_parts() -> None:
    with pytest.raises(InvalidArgumentError, match='The closest is "show_and_tell/lstm/weights"'):
        chosen(["a/b/c", "show_and_tell/lstm/weights"], rename=[("^showandtell/", "x/")])


def test_an_exclude_that_matches_nothing_is_reported() -> None:
    """Scripts exclude Adam's slots from checkpoints that may have none."""
    selected = Selection(exclude=["/Adam", "bias"]).select(NAMES, keep_object_graph=True)
    assert selected.unmatched_excludes == ["/Adam"] and selected.left_out == ["encoder/layer_0/bias"]


def test_a_rename_to_the_same_name_counts_as_a_match() -> None:
    assert chosen(rename=[("kernel", "kernel")]) == {name: name for name in NAMES}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"include": ["^a$"]}, True),
        ({"exclude": ["H"]}, True),  # also found in another name
        ({"exclude": ["OBJECT_GRAPH$"]}, False),  # found nowhere else
        ({"exclude": [f"^H|{OBJECT_GRAPH_KEY}"]}, False),  # spells the name
        ({"rename": [("_", "-"), ("a", "b")]}, True),
    ],
)
def test_the_object_graph_is_kept_unless_it_is_named(options: dict[str, Any], kept: bool) -> None:
    """It is never renamed, and never dropped by accident."""
    names = [OBJECT_GRAPH_KEY, "H_", "a"]
    assert (chosen(names, **options).get(OBJECT_GRAPH_KEY) == OBJECT_GRAPH_KEY) is kept
    plain = Selection(include=["^a$"]).select(names, keep_object_graph=False)
    assert plain.new_names == {"a": "a"} and plain.left_out == [OBJECT_GRAPH_KEY, "H_"]


def test_a_pattern_that_only_renames_the_object_graph_matches_nothing() -> None:
    with pytest.raises(InvalidArgumentError, match="matches none of 1 tensor"):
        chosen([OBJECT_GRAPH_KEY, "a"], rename=[("CHECKPOINTABLE", "x")])
    with pytest.raises(InvalidArgumentError, match=f'"{OBJECT_GRAPH_KEY}" and "a" would both be called'):
        chosen([OBJECT_GRAPH_KEY, "a"], rename=[("a", OBJECT_GRAPH_KEY)])
