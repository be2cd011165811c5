"""Names of nodes: valid, unique, and as similar to the requested name as possible."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.meta_graph.nodes import NodeNames, nodes_of, with_distinct_nodes

# The rule of node_def_util.cc.
VALID = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\-/]*")


def settings(path: str, saves: str, restores: str) -> SaverDef:
    return SaverDef(filename_tensor_name=path, save_tensor_name=saves, restore_op_name=restores, max_to_keep=3)


def usual(scope: str) -> SaverDef:
    return settings(f"{scope}/Const:0", f"{scope}/control_dependency:0", f"{scope}/restore_all")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("dense/kernel", "dense/kernel"),
        ("a.b-c_d/0", "a.b-c_d/0"),
        ("w:0", "w"),
        ("w:1", "w_1"),
        ("w:0:0", "w_0"),
        ("a b\tc", "a_b_c"),
        ("/a/", "a"),
        ("a//b", "a//b"),
        ("_a", "v_a"),
        ("-a", "v-a"),
        ("^a", "v_a"),
        ("/_a", "v_a"),
        ("\u00e9t\u00e9", "v_t_"),
        ("", "v"),
        ("/", "v"),
        (":0", "v"),
        ("a\n", "a_"),
        ("\udcff", "v_"),
    ],
    ids=ascii,
)
def test_a_valid_name(wanted: str, found: str) -> None:
    """Invalid characters become underscores; a "v" is added in front of any start but a letter, a digit or a dot."""
    assert NodeNames([]).unique(wanted) == found


def test_names_that_are_taken() -> None:
    """The first of _1, _2, ... that is free, even if it was requested itself, before or after."""
    names = NodeNames(["save/Const", "a_2"])
    wanted = ["a", "a", "a", "a_1", "a", "save/Const", "a b", "a_b", "a_3"]
    assert [names.unique(each) for each in wanted] == [
        "a", "a_1", "a_3", "a_1_1", "a_4", "save/Const_1", "a_b", "a_b_1", "a_3_1",
    ]  # fmt: skip


def test_a_name_that_is_requested_many_times() -> None:
    """Thousands of tensors with one name take constant time each: the numbers continue where they stopped."""
    looked_at = 0

    class Taken(set[str]):
        def __contains__(self, name: object) -> bool:
            nonlocal looked_at
            looked_at += 1
            return super().__contains__(name)

    names = NodeNames([])
    names._taken = Taken()
    assert [names.unique("a") for _ in range(2000)][-1] == "a_1999"
    assert looked_at < 3 * 2000


ANY = st.text(alphabet="aA0_./-:^ \u00e9\n", max_size=6) | st.text(max_size=8)


@given(taken=st.lists(ANY, max_size=5), wanted=st.lists(ANY, max_size=20))
def test_any_names(taken: list[str], wanted: list[str]) -> None:
    """Valid and distinct, for any request; one that is valid and free is unchanged."""
    names = NodeNames(taken)
    found = [names.unique(each) for each in wanted]
    assert len({*taken, *found}) == len({*taken}) + len(found)
    assert all(map(VALID.fullmatch, found))
    for index, each in enumerate(wanted):
        free = each not in taken and each not in found[:index]
        if VALID.fullmatch(each) and free and not each.endswith("/"):
            assert found[index] == each


# Savers.


def test_nodes_of() -> None:
    """The three nodes that a SaverDef names, some by an output."""
    assert nodes_of(settings("a/Const:0", "a/b:7", "a/c")) == ["a/Const", "a/b", "a/c"]
    assert nodes_of(SaverDef()) == ["", "", ""]


def test_savers_of_one_scope() -> None:
    """The first keeps its names, the others get _1, _2, ...; nothing else changes, and the arguments do not change."""
    given_settings = [usual("save"), usual("a/save"), usual("save"), usual("a/save"), usual("save")]
    found = with_distinct_nodes(given_settings)
    assert found == [usual("save"), usual("a/save"), usual("save_1"), usual("a/save_1"), usual("save_2")]
    assert given_settings[4] == usual("save") and found[0] is given_settings[0]


def test_a_scope_that_equals_a_generated_one() -> None:
    """It is also changed."""
    found = with_distinct_nodes([usual("save"), usual("save_1"), usual("save"), usual("save_1")])
    assert found == [usual("save"), usual("save_1"), usual("save_2"), usual("save_1_1")]


def test_savers_that_share_one_node() -> None:
    """They get different nodes, whichever node they share; names without a scope get the suffix at their end."""
    first = settings("saver_filename:0", "StatefulPartitionedCall_1:0", "StatefulPartitionedCall_2")
    second = settings("StatefulPartitionedCall_2:0", "x/y:0", "x/z")
    assert with_distinct_nodes([first, second, first]) == [
        first,
        settings("StatefulPartitionedCall_2_1:0", "x_1/y:0", "x_1/z"),
        settings("saver_filename_2:0", "StatefulPartitionedCall_1_2:0", "StatefulPartitionedCall_2_2"),
    ]


NAMES = st.sampled_from(["save/Const", "save_1/Const", "Const", "a/save/Const", "save/x", "x", "save_1/x"])


@given(st.lists(st.lists(NAMES, min_size=3, max_size=3, unique=True), max_size=6))
def test_any_savers(names: list[list[str]]) -> None:
    """No two savers share a node."""
    found = with_distinct_nodes([settings(f"{path}:0", f"{saves}:0", restores) for path, saves, restores in names])
    named = [name for each in found for name in nodes_of(each)]
    assert len(named) == len(set(named)) == 3 * len(names)
    assert [each.max_to_keep for each in found] == [3] * len(names)
