"""Editing serialized messages: the same result as editing with protobuf, and all other bytes unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tfckpt._proto.graph_pb2 import GraphDef
from torch_tfckpt._proto.meta_graph_pb2 import CollectionDef, MetaGraphDef
from torch_tfckpt._proto.node_def_pb2 import NodeDef
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.wire import fields, sized_tag
from torch_tfckpt.meta_graph.raw import COLLECTION, GRAPH, META_INFO, SAVER, RawMetaGraph, decoded
from torch_tfckpt.meta_graph.splicing import (
    each_entry,
    each_message,
    encoded,
    left_out,
    payload_of,
    rewritten,
    spliced,
    text_of,
)

NODE, NAME, DEVICE = 1, 1, 4
LATER = b"\xf2\x3f\x02hi"  # field 1022, unknown in all messages
nodes = st.lists(st.builds(NodeDef, name=st.text(max_size=3), device=st.sampled_from(["", "/cpu:0", "d" * 5000])))


def view(message: GraphDef | NodeDef) -> memoryview:
    return memoryview(message.SerializeToString())


@given(nodes)
def test_a_field_is_removed_at_any_depth(given_nodes: list[NodeDef]) -> None:
    """As with protobuf; if it does not occur, the result is the same view object."""
    graph = view(GraphDef(node=given_nodes))
    chunks = spliced(graph, {NODE: lambda node: spliced(node, {DEVICE: left_out})})
    without = GraphDef(node=[NodeDef(name=node.name) for node in given_nodes])
    assert b"".join(chunks) == without.SerializeToString()
    assert (chunks[0] is graph) == all(not node.device for node in given_nodes)


@given(nodes, nodes)
def test_a_field_is_replaced(given_nodes: list[NodeDef], others: list[NodeDef]) -> None:
    """By payloads of any size, which may be views of other bytes."""
    payloads = iter([view(other) for other in others] + [memoryview(b"")] * len(given_nodes))
    chunks = spliced(view(GraphDef(node=given_nodes)), {NODE: lambda _: [next(payloads)]})
    padded = others + [NodeDef()] * len(given_nodes)
    assert GraphDef.FromString(b"".join(chunks)) == GraphDef(node=padded[: len(given_nodes)])


@pytest.mark.parametrize("numbers", [(1, 2, 4), (2,), (1,), (4, 4), ()])
def test_fields_are_added_in_order(numbers: tuple[int, ...]) -> None:
    """Each after those of its number and all smaller ones, before the larger ones."""
    message = b"".join(sized_tag(number, 3) + b"old" for number in numbers)
    after = b"".join(spliced(memoryview(message), {}, [(1, b"new"), (3, b"saver"), (3, b"again"), (9, b"last")]))
    found = [(field.number, bytes(field.payload)) for field in fields(memoryview(after))]
    assert [number for number, _ in found] == sorted((*numbers, 1, 3, 3, 9))
    assert [payload for number, payload in found if number == 1] == [b"old"] * (1 in numbers) + [b"new"]
    assert [payload for number, payload in found if number == 3] == [b"saver", b"again"]


def test_fields_are_added_to_an_empty_message() -> None:
    """The result consists of the added fields."""
    assert b"".join(spliced(memoryview(b""), {}, [(1, b"x")])) == b"\x0a\x01x"
    assert b"".join(spliced(memoryview(b"\x12\x01y"), {}, [(1, b"x")])) == b"\x0a\x01x\x12\x01y"
    assert spliced(memoryview(b""), {}) == [memoryview(b"")]


def test_unedited_parts_keep_their_bytes() -> None:
    """Also unknown fields, and encodings that protobuf itself would not write: a length of two bytes for one."""
    odd = b"\x0a\x81\x00n" + LATER
    node = memoryview(odd + b"\x22\x01d" + odd)
    assert b"".join(spliced(node, {DEVICE: left_out})) == odd + odd


def test_only_length_delimited_fields_are_edited() -> None:
    """A number in a field of that number is not."""
    message = memoryview(b"\x20\x05")  # field 4, varint
    assert spliced(message, {DEVICE: left_out})[0] is message


def test_messages_and_entries() -> None:
    """An edit gets them decoded; if it returns an equal message, the bytes are kept."""
    meta = MetaGraphDef()
    meta.saver_def.max_to_keep = 5
    for name in ("a", "b", "c"):
        meta.collection_def[name].int64_list.value.append(ord(name))
    before = RawMetaGraph(memoryview(encoded(meta) + LATER), "x.meta")

    def edit(name: str, collection: CollectionDef) -> CollectionDef | None:
        if name == "a":
            return None
        return CollectionDef(int64_list=CollectionDef.Int64List(value=[98])) if name == "b" else CollectionDef()

    after = rewritten(before, {COLLECTION: each_entry(CollectionDef, edit)})
    del meta.collection_def["a"]
    meta.collection_def["c"].Clear()
    assert bytes(after.raw) == encoded(meta) + LATER
    assert rewritten(before, {COLLECTION: each_entry(CollectionDef, lambda _, each: each)}) is before
    assert rewritten(before, {GRAPH: left_out, META_INFO: left_out}) is before
    assert rewritten(before, {SAVER: left_out}).saver_def is None


def test_damaged_messages_raise() -> None:
    """The error names the place of the damage."""
    meta = RawMetaGraph(memoryview(b"\x12\x02\x0a\x09"), "x.meta")
    with pytest.raises(DataLossError, match=r"^x\.meta: message, byte 0: field 1 ends at byte 11, but the message"):
        rewritten(meta, {GRAPH: lambda graph: spliced(graph, {NODE: left_out})})
    with pytest.raises(DataLossError, match=r"^x\.meta: invalid NodeDef of 2 bytes"):
        rewritten(meta, {GRAPH: each_message(NodeDef, lambda node: node)})
    with pytest.raises(DataLossError, match="invalid CollectionDef of 3 bytes"):
        decoded(CollectionDef, b"\x0a\x09x")
    with pytest.raises(DataLossError, match="a name is not UTF-8"):
        text_of(memoryview(b"\x0a\x01\xff"), NAME)


def test_the_last_field_counts() -> None:
    """As in protobuf; a missing one is empty."""
    message = memoryview(b"\x0a\x01x\x0a\x02yz")
    assert text_of(message, NAME) == "yz"
    assert bytes(payload_of(message, 2)) == b""
