"""The options of export_meta_graph, with hand-made meta graphs.

tests/conformance/test_meta_graph_options.py compares larger ones with TensorFlow.
"""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_meta_graph import LATER, OTHER_SAVER, SAVER, encoded, meta_graph, op

from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef, MetaGraphDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError
from torch_tfckpt.meta_graph import rescoping, rewriting
from torch_tfckpt.meta_graph.raw import RawMetaGraph

EDITS: dict[str, Callable[[RawMetaGraph], RawMetaGraph]] = {
    "clear_devices": rewriting.clear_devices,
    "without_default_attrs": lambda meta: rewriting.without_default_attrs(meta, {}),
    "without_extraneous_savers": lambda meta: rewriting.without_extraneous_savers(meta, SAVER),
    "only_collections": lambda meta: rewriting.only_collections(meta, ["ints", "strings"]),
    "with_saver_def": lambda meta: rewriting.with_saver_def(meta, OTHER_SAVER),
    "out_of_scope": lambda meta: rescoping.out_of_scope(meta, "a"),
}
EVERY_EDIT = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())


def ints(*values: int) -> CollectionDef:
    return CollectionDef(int64_list=CollectionDef.Int64List(value=values))


def assert_is(meta: RawMetaGraph, expected: MetaGraphDef) -> None:
    """Assert that the bytes are these, followed by the unknown field."""
    assert bytes(meta.raw) == expected.SerializeToString(deterministic=True) + LATER


@EVERY_EDIT
def test_the_second_time_nothing_changes(edit: Callable[[RawMetaGraph], RawMetaGraph]) -> None:
    """The second call returns the same object; the first a new one with the same place."""
    before = encoded(meta_graph())
    once = edit(before)
    assert once.raw != before.raw
    assert once.place == before.place
    if edit is not EDITS["out_of_scope"]:
        assert edit(once) is once


@pytest.mark.parametrize("edit", [*EDITS.values(), lambda meta: rescoping.in_import_scope(meta, "new")])
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(max_examples=60)
def test_damage_is_detected(edit: Callable[[RawMetaGraph], RawMetaGraph], at: int, byte: int) -> None:
    """With any byte changed, the result is one of our errors or a meta graph."""
    raw = bytearray(meta_graph().SerializeToString(deterministic=True))
    raw[at % len(raw)] = byte
    try:
        edit(RawMetaGraph(memoryview(bytes(raw)), "x.meta"))
    except CheckpointError as error:
        assert str(error).startswith("x.meta: ")


def test_clear_devices() -> None:
    """Of nodes; those in functions keep theirs."""
    expected = meta_graph()
    for node in expected.graph_def.node:
        node.device = ""
    assert_is(rewriting.clear_devices(encoded(meta_graph())), expected)


def test_unknown_fields_of_a_node_are_preserved() -> None:
    """Also in a node that is edited, and in a large one."""
    meta = MetaGraphDef()
    node = meta.graph_def.node.add(name="n", device="/device:CPU:0")
    node.attr["value"].s = bytes(100_000)
    node.MergeFromString(LATER)
    after = rewriting.clear_devices(encoded(meta))
    assert bytes(after.graph.nodes["n"].raw).endswith(LATER)
    assert after.graph.nodes["n"].device == ""
    assert len(after.raw) == len(encoded(meta).raw) - len("/device:CPU:0") - 2


def test_only_collections() -> None:
    """Those with the given names are kept."""
    expected = meta_graph()
    for name in set(expected.collection_def) - {"ints", "anys"}:
        del expected.collection_def[name]
    assert_is(rewriting.only_collections(encoded(meta_graph()), ["anys", "ints", "no such"]), expected)
    every = encoded(meta_graph())
    assert rewriting.only_collections(every, list(every.collections)) is every


def test_with_collections() -> None:
    """Replaced, removed and added; other collections, even with NaNs, are unchanged."""
    after = rewriting.with_collections(
        encoded(meta_graph()), {"ints": ints(7), "strings": None, "new": ints(1), "no such": None}
    )
    expected = meta_graph()
    del expected.collection_def["strings"]
    expected.collection_def["ints"].CopyFrom(ints(7))
    expected.collection_def["new"].CopyFrom(ints(1))
    assert after.message() == MetaGraphDef.FromString(expected.SerializeToString() + LATER)
    assert list(after.collections)[-1] == "new"
    assert bytes(after.raw).endswith(LATER)


def test_a_collection_that_occurs_twice() -> None:
    """The last one counts, so both change."""
    meta = encoded(meta_graph())
    twice = RawMetaGraph(memoryview(bytes(meta.raw) * 2), "x.meta")
    assert rewriting.with_collections(twice, {"ints": ints(7)}).collections["ints"] == ints(7)
    assert "ints" not in rewriting.with_collections(twice, {"ints": None}).collections


def test_with_saver_def() -> None:
    """The field is replaced, removed, or added if missing, always at TensorFlow's position."""
    expected = meta_graph()
    expected.saver_def.CopyFrom(OTHER_SAVER)
    other = rewriting.with_saver_def(encoded(meta_graph()), OTHER_SAVER)
    assert_is(other, expected)
    expected.ClearField("saver_def")
    without = rewriting.with_saver_def(other, None)
    assert_is(without, expected)
    assert rewriting.with_saver_def(without, None) is without
    assert_is(rewriting.with_saver_def(without, SAVER), meta_graph())


def test_clear_extraneous_savers() -> None:
    """Strings equal to removed names are removed, too; operations that are no longer used are not declared."""
    expected = meta_graph()
    kept = [node for node in expected.graph_def.node if not node.name.startswith("a/save/")]
    del expected.graph_def.node[:]
    expected.graph_def.node.extend(kept)
    del expected.collection_def["savers"].bytes_list.value[1:]
    expected.collection_def["strings"].bytes_list.value[:] = [b"a/text", b"hello", b"a/\xff"]
    expected.collection_def["nodes"].node_list.value[:] = ["a/mul:0", "b"]
    assert_is(rewriting.without_extraneous_savers(encoded(meta_graph()), SAVER), expected)


def test_clear_all_savers() -> None:
    """Their nodes and their collection are removed."""
    after = rewriting.without_extraneous_savers(encoded(meta_graph()), None)
    assert list(after.graph.nodes) == ["a/w", "b", "a/mul", "a/enter"]
    assert "savers" not in after.collections
    assert [op.name for op in after.info.stripped_op_list.op] == ["MatMul", "VarHandleOp"]


@pytest.mark.parametrize("field", ["save_tensor_name", "restore_op_name"])
def test_a_saver_that_names_no_nodes(field: str) -> None:
    """None of its nodes could be kept."""
    saver_def = SaverDef(save_tensor_name="save/Const:0", restore_op_name="save/restore_all")
    saver_def.ClearField(field)
    with pytest.raises(InvalidArgumentError, match=f"saver_def must specify the {field}"):
        rewriting.without_extraneous_savers(encoded(meta_graph()), saver_def)


def test_strip_default_attrs() -> None:
    """With the meta graph's declarations, in functions too; other values, and attributes without default, are kept."""
    expected = meta_graph()
    del expected.graph_def.node[2].attr["transpose"]
    del expected.graph_def.library.function[0].node_def[0].attr["transpose"]
    expected.meta_info_def.stripped_default_attrs = True
    assert_is(
        rewriting.without_default_attrs(encoded(meta_graph()), {"MatMul": op("MatMul", transpose=True)}), expected
    )


def test_strip_default_attrs_of_undeclared_operations() -> None:
    """Then the known declarations are used; a function with the name of an operation is not one."""
    meta = meta_graph()
    meta.ClearField("meta_info_def")
    meta.graph_def.library.function.add().signature.name = "Enter"
    known = {"MatMul": op("MatMul", transpose=False), "Enter": op("Enter", parallel=True)}
    after = rewriting.without_default_attrs(encoded(meta), known)
    del meta.graph_def.node[2].attr["transpose"]
    del meta.graph_def.library.function[0].node_def[0].attr["transpose"]
    meta.meta_info_def.stripped_default_attrs = True
    assert_is(after, meta)


def test_a_default_may_be_encoded_in_two_ways() -> None:
    """A list of numbers may be packed or not."""
    meta = MetaGraphDef()
    declared = meta.meta_info_def.stripped_op_list.op.add(name="Op").attr.add(name="strides", type="list(int)")
    declared.default_value.list.i.extend([1, 1])
    meta.graph_def.node.add(name="n", op="Op").attr["strides"].list.MergeFromString(b"\x18\x01\x18\x01")
    raw = meta.SerializeToString().replace(b"\x0a\x04\x1a\x02\x01\x01", b"\x0a\x04\x18\x01\x18\x01")
    for encoding in (raw, meta.SerializeToString()):
        after = rewriting.without_default_attrs(RawMetaGraph(memoryview(encoding), "x.meta"), {})
        assert not after.message().graph_def.node[0].attr


def test_a_graph_of_2_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than TensorFlow exports."""
    meta = encoded(meta_graph())
    rewriting.check_graph_size(meta)
    monkeypatch.setattr(rewriting, "MAX_MESSAGE", len(meta.graph.raw))
    with pytest.raises(InvalidArgumentError, match=r"x\.meta: GraphDef cannot be larger than 2GB, but is \d+ bytes\."):
        rewriting.check_graph_size(meta)
