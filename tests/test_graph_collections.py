"""Collections and the process's default ones."""

import pytest

from torch_tfckpt.graph_collections import (
    Collections,
    GraphKeys,
    add_to_collection,
    default_collections,
    get_collection,
    set_default_collections,
)


def test_values_are_kept_in_order_and_handed_out_as_a_copy() -> None:
    """CASES 23, 26: duplicates stay; what is done to the list is not done to the collection."""
    collections = Collections()
    for value in (1, "a", 1):
        collections.add_to_collection("c", value)
    collections.get_collection("c").clear()
    assert collections.get_collection("c") == [1, "a", 1]
    assert collections.get_collection("other") == []


def test_names_that_are_no_strings_are_kept_but_not_listed() -> None:
    """CASES 63: they are not exported."""
    collections = Collections()
    collections.add_to_collection(5, "x")
    collections.add_to_collection("c", "y")
    assert collections.get_collection(5) == ["x"] and collections.get_all_collection_keys() == ["c"]


def test_collections_are_cleared_one_by_one_or_all() -> None:
    """What is not there may be cleared too."""
    collections = Collections()
    for name in ("a", "b", "c"):
        collections.add_to_collection(name, 1)
    collections.clear_collection("a")
    collections.clear_collection("absent")
    assert collections.get_all_collection_keys() == ["b", "c"]
    collections.clear()
    assert collections.get_all_collection_keys() == []


def test_the_default_is_replaced_and_comes_back() -> None:
    """Also when the block is left by an error, and when blocks lie in each other."""
    before, mine, inner = default_collections(), Collections(), Collections()
    with pytest.raises(RuntimeError, match="left"), mine.as_default() as current:
        assert current is mine is default_collections()
        add_to_collection(GraphKeys.SAVERS, 1)
        with inner.as_default():
            assert get_collection(GraphKeys.SAVERS) == []
        assert get_collection(GraphKeys.SAVERS) == [1]
        raise RuntimeError("left")
    assert default_collections() is before
    assert set_default_collections(mine) is before
    assert set_default_collections(before) is mine


def test_the_keys_are_tensorflows() -> None:
    """They stand in meta graphs: other texts would not be understood."""
    assert (GraphKeys.GLOBAL_VARIABLES, GraphKeys.SAVEABLE_OBJECTS) == ("variables", "saveable_objects")
    assert (GraphKeys.TRAINABLE_VARIABLES, GraphKeys.SAVERS) == ("trainable_variables", "savers")
