"""One MetaGraphDef as bytes: its parts are those of the message, and decoded on access."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_tfckpt._proto.meta_graph_pb2 import AssetFileDef, CollectionDef, MetaGraphDef, TensorInfo
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.wire import sized_tag
from torch_tfckpt.meta_graph.raw import COLLECTION, RawMetaGraph

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def encoded(*parts: bytes) -> RawMetaGraph:
    return RawMetaGraph(memoryview(b"".join(parts)), "m.meta")


@st.composite
def meta_graphs(draw: st.DrawFn) -> MetaGraphDef:
    message = MetaGraphDef()
    message.meta_info_def.tags.extend(draw(st.lists(TEXT, max_size=2)))
    message.meta_info_def.tensorflow_version = draw(TEXT)
    if draw(st.booleans()):
        message.saver_def.max_to_keep = draw(st.integers(0, 9))
    for name in draw(st.lists(TEXT, max_size=3, unique=True)):
        message.graph_def.node.add(name=name, op=draw(TEXT))
        message.collection_def[name].bytes_list.value.extend(draw(st.lists(st.binary(max_size=3), max_size=2)))
        message.signature_def[name].method_name = draw(TEXT)
        message.asset_file_def.add(filename=name)
    if draw(st.booleans()):
        message.object_graph_def.nodes.add()
    return message


@settings(max_examples=80)
@given(st.lists(meta_graphs(), min_size=1, max_size=2))
def test_its_parts_are_those_of_the_message(messages: list[MetaGraphDef]) -> None:
    """Also for two concatenated messages, which merge: lists and maps grow, single values are replaced."""
    found = encoded(*(message.SerializeToString() for message in messages))
    expected = found.message()
    assert found.info == expected.meta_info_def
    assert [node.name for node in found.graph.iter_nodes()] == [node.name for node in expected.graph_def.node]
    assert found.saver_def == (expected.saver_def if expected.HasField("saver_def") else None)
    assert dict(found.collections) == dict(expected.collection_def)
    assert dict(found.signatures) == dict(expected.signature_def)
    assert list(found.assets) == list(expected.asset_file_def)
    assert found.object_graph == (expected.object_graph_def if expected.HasField("object_graph_def") else None)


def test_an_empty_one_has_nothing() -> None:
    found = encoded()
    assert found.info.ByteSize() == 0
    assert (found.saver_def, found.object_graph, list(found.assets)) == (None, None, [])
    assert not found.graph.nodes and not found.collections and not found.signatures


def test_entries_without_key_or_value() -> None:
    """A map's entry may lack either; of two with one name the later counts."""
    value = CollectionDef(int64_list=CollectionDef.Int64List(value=[1])).SerializeToString()
    no_key = sized_tag(2, len(value)) + value
    no_value = sized_tag(1, 1) + b"x"
    parts = [sized_tag(COLLECTION, len(each)) + each for each in (no_key, no_value + no_key, no_value)]
    found = encoded(*parts)
    assert dict(found.collections) == dict(found.message().collection_def)
    assert list(found.collections) == ["", "x"] and found.collections["x"] == CollectionDef()


@pytest.mark.parametrize("number", range(1, 8))
def test_a_part_with_another_wire_type_is_unknown(number: int) -> None:
    """As in protobuf, which keeps it with the unknown fields."""
    found = encoded(bytes((number << 3, 1)))
    assert found.message().ListFields() == []
    assert found.info.ByteSize() == 0 and not found.collections and not found.signatures and not found.assets
    assert (found.saver_def, found.object_graph) == (None, None)


BROKEN = {
    "info": (1, b"\x0a\x01\xff", "m.meta: meta_info_def: invalid MetaInfoDef of 3 bytes"),
    "saver_def": (3, b"\xff", "m.meta: saver_def: invalid SaverDef of 1 byte"),
    "collections": (4, b"\x0a\x01a\x12\x01\xff", 'm.meta: collection "a": invalid CollectionDef of 1 byte'),
    "signatures": (5, b"\x0a\x01\xff", "m.meta: the name of a signature is not UTF-8"),
    "assets": (6, b"\x12\x01\xff", "m.meta: asset_file_def: invalid AssetFileDef of 3 bytes"),
    "object_graph": (7, b"\xff", "m.meta: object_graph_def: invalid SavedObjectGraph of 1 byte"),
}


@pytest.mark.parametrize("part", BROKEN)
def test_a_damaged_part_raises_when_it_is_accessed(part: str) -> None:
    """The others can still be read."""
    number, content, finding = BROKEN[part]
    found = encoded(sized_tag(number, len(content)), content)
    for other in BROKEN.keys() - {part}:
        getattr(found, other)
    with pytest.raises(DataLossError, match=finding):
        getattr(found, part)
    with pytest.raises(DataLossError, match=r"m\.meta: the meta graph"):
        found.message()


def test_bytes_that_are_not_a_message_raise_immediately() -> None:
    with pytest.raises(
        DataLossError, match=r"^m\.meta: message, byte 0: field 1 ends at byte 7, but the message ends at 3"
    ):
        encoded(b"\x0a\x05a")


def test_assets_of_tensorflow_1_are_in_a_collection() -> None:
    """As Any; other messages in it are skipped. Those of TensorFlow 2 take precedence."""
    asset = AssetFileDef(filename="voc.txt", tensor_info=TensorInfo(name="asset_path:0"))
    message = MetaGraphDef()
    listed = message.collection_def["saved_model_assets"].any_list.value
    listed.add(type_url="type.googleapis.com/tensorflow.AssetFileDef", value=asset.SerializeToString())
    listed.add(type_url="type.googleapis.com/tensorflow.SaverDef", value=b"\x0a\x01x")
    assert encoded(message.SerializeToString()).assets == [asset]
    message.asset_file_def.add(filename="other.txt")
    assert [each.filename for each in encoded(message.SerializeToString()).assets] == ["other.txt"]
