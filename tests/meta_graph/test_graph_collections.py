"""Collections and the process's default ones."""

import pytest

from torch_tfckpt.meta_graph.graph_collections import (
    Collections,
    GraphKeys,
    add_to_collection,
    default_collections,
    get_collection,
    set_default_collections,
)


def test_values_are_kept_in_order_and_returned_as_a_copy() -> None:
    """CASES 23, 26: duplicates are kept; changing the list does not change the collection."""
    collections = Collections()
    for value in (1, "a", 1):
        collections.add_to_collection("c", value)
    collections.get_collection("c").clear()
    assert collections.get_collection("c") == [1, "a", 1]
    assert collections.get_collection("other") == []


def test_names_that_are_not_str_are_kept_but_not_listed() -> None:
    """CASES 63: they are not exported."""
    collections = Collections()
    collections.add_to_collection(5, "x")
    collections.add_to_collection("c", "y")
    assert collections.get_collection(5) == ["x"] and collections.get_all_collection_keys() == ["c"]


def test_collections_are_cleared_one_by_one_or_all() -> None:
    """Clearing one that does not exist is allowed."""
    collections = Collections()
    for name in ("a", "b", "c"):
        collections.add_to_collection(name, 1)
    collections.clear_collection("a")
    collections.clear_collection("absent")
    assert collections.get_all_collection_keys() == ["b", "c"]
    collections.clear()
    assert collections.get_all_collection_keys() == []


def test_the_default_is_replaced_and_restored() -> None:
    """Also after an error in the block, and in nested blocks."""
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
    """They are stored in meta graphs, so other names would not be recognised."""
    assert (GraphKeys.GLOBAL_VARIABLES, GraphKeys.SAVEABLE_OBJECTS) == ("variables", "saveable_objects")
    assert (GraphKeys.TRAINABLE_VARIABLES, GraphKeys.SAVERS) == ("trainable_variables", "savers")


def test_collections_are_a_mapping() -> None:
    """`dict(collections)` and `in` have all names, including those that are not str, in the order of creation."""
    collections = Collections()
    for name, value in (("b", 1), (5, 2), ("a", 3), ("b", 4)):
        collections.add_to_collection(name, value)
    assert list(collections) == list(collections.keys()) == ["b", 5, "a"] and len(collections) == 3
    assert dict(collections) == collections.lists() == {"b": [1, 4], 5: [2], "a": [3]}
    collections.lists()["a"].clear()
    assert 5 in collections and "5" not in collections
    collections["b"].clear()
    assert collections["b"] == [1, 4]
    with pytest.raises(KeyError):
        collections["absent"]
    assert "absent" not in collections and not Collections()


def test_collections_may_change_during_iteration() -> None:
    """The iteration covers the names at its start."""
    collections = Collections()
    collections.add_to_collection("a", 1)
    for name in collections:
        collections.add_to_collection(f"{name}b", 1)
        collections.clear_collection(name)
    assert list(collections) == ["ab"]


def test_collections_compare_by_identity() -> None:
    """They are not compared by contents, and are hashable."""
    first, second = Collections(), Collections()
    assert first != second and first == first and len({first, second, first}) == 2


def test_the_repr_has_names_and_counts() -> None:
    """Not the values, which may be models."""
    collections = Collections()
    collections.add_to_collection("c", 1)
    collections.add_to_collection(5, 1)
    assert repr(collections) == "Collections('c': 1, 5: 1)"
