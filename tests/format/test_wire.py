"""Parsing the protobuf wire format: compared with protobuf's own parser; invalid messages raise DataLossError."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from torch_tfckpt._proto.tensor_pb2 import TensorProto
from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.wire import MAX_GROUP_DEPTH, Field, WireType, fields, sized_tag, tag


def walk(text: str) -> list[tuple[int, WireType, str]]:
    """Return all fields of a message given in hex, with payloads in hex."""
    return [(each.number, each.wire_type, each.payload.hex(" ")) for each in fields(memoryview(bytes.fromhex(text)))]


def test_every_wire_type_is_parsed() -> None:
    # https://protobuf.dev/programming-guides/encoding
    assert walk("08 96 01") == [(1, WireType.VARINT, "96 01")]
    assert walk("12 07 74 65 73 74 69 6e 67") == [(2, WireType.BYTES, "74 65 73 74 69 6e 67")]
    assert walk("2d 00 00 80 3f") == [(5, WireType.FIXED32, "00 00 80 3f")]
    assert walk("31 00 00 00 00 00 00 f0 3f") == [(6, WireType.FIXED64, "00 00 00 00 00 00 f0 3f")]
    assert walk("82 01 01 05") == [(16, WireType.BYTES, "05")]
    assert walk("") == []


def test_a_group_is_skipped_with_its_contents() -> None:
    assert walk("08 01 | 1b 0a 01 ff 23 24 1c | 08 02".replace("|", "")) == [
        (1, WireType.VARINT, "01"),
        (1, WireType.VARINT, "02"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0a 05 00", "field 1 ends at byte 7, but the message ends at 3"),
        ("2d 00 00", "field 5 ends at byte 5, but the message ends at 3"),
        ("31 00", "field 6 ends at byte 9, but the message ends at 2"),
        ("08", "integer at byte 1 is truncated or too long"),
        ("08 " + "ff " * 10 + "01", "integer at byte 1 is truncated or too long"),
        ("00", "invalid field number 0 or wire type 0"),
        ("0e", "invalid field number 1 or wire type 6"),
        ("1b 08 01", "group 3 has no end"),
        ("1c", "end of group 3, which was not started"),
        ("1b 24", "end of group 4, which was not started"),
        ("1b" * (MAX_GROUP_DEPTH + 1), f"nested deeper than {MAX_GROUP_DEPTH}"),
        ("0a ff ff ff ff ff ff ff ff ff 01", "field 1 ends at byte 18446744073709551626, but the message ends at 11"),
    ],
)
def test_an_invalid_message_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataLossError) as raised:
        walk(text)
    assert message in str(raised.value)


def test_payloads_are_views() -> None:
    """A packed list of a million floats is not copied."""
    message = sized_tag(5, 4_000_000) + bytes(4_000_000)
    [field] = fields(memoryview(message))
    assert isinstance(field, Field)
    assert field.payload.obj is message
    assert len(field.payload) == 4_000_000


def test_tags() -> None:
    assert tag(5, WireType.FIXED32) == b"\x2d"
    assert sized_tag(16, 300) == bytes.fromhex("82 01 ac 02")


MESSAGES = st.builds(
    TensorProto,
    dtype=st.integers(0, 30),
    tensor_content=st.binary(max_size=9),
    float_val=st.lists(st.floats(width=32), max_size=3),
    int_val=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    string_val=st.lists(st.binary(max_size=5), max_size=3),
)


@given(message=MESSAGES, data=st.data())
@example(message=TensorProto(), data=None)
def test_parses_what_protobuf_parses(message: TensorProto, data: st.DataObject | None) -> None:
    """Bytes whose top level protobuf accepts are parsed to their end; others are never accepted."""
    encoded = bytearray(message.SerializeToString(deterministic=True))
    assert sum(1 for field in fields(memoryview(encoded)) if field.number == 8) == len(message.string_val)
    if data is not None and encoded:
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    try:
        TensorProto.FromString(bytes(encoded))
    except DecodeError:
        return  # protobuf also parses nested levels, so it refuses more
    list(fields(memoryview(encoded)))
