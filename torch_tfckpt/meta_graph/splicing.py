"""Parts of a message replaced where they lie, at any depth: all else stays the same bytes, and is copied once, at last.

    # every node without its device
    chunks = spliced(graph, {NODE: lambda node: spliced(node, {DEVICE: lambda device: None})})
    new = b"".join(chunks)

A message in which nothing is replaced is one chunk, the very view that was given; so what an edit leaves as it is, it
leaves as it is at every level.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

from google.protobuf.message import Message

from torch_tfckpt.errors import DataLossError, error_context
from torch_tfckpt.format.wire import WireType, fields, sized_tag
from torch_tfckpt.meta_graph.raw import RawMetaGraph, decoded

Chunks: TypeAlias = Sequence[memoryview | bytes]
# From the payload of a field to what stands in its place; None leaves the field out.
Edit: TypeAlias = Callable[[memoryview], Chunks | None]

# Smaller messages are joined at once: a graph has many nodes, and most are smaller than views of their parts would be.
_SMALL: Final = 1 << 12

M = TypeVar("M", bound=Message)


def rewritten(meta: RawMetaGraph, edits: Mapping[int, Edit], added: Sequence[tuple[int, bytes]] = ()) -> RawMetaGraph:
    """`meta` with some of its fields edited, as `spliced` does it; `meta` itself where that changes nothing.

    Cost: a walk over what is edited, and one copy of the bytes.
    """
    with error_context(meta.place):
        chunks = spliced(meta.raw, edits, added)
    return meta if chunks[0] is meta.raw else RawMetaGraph(memoryview(b"".join(chunks)), meta.place, meta.around)


def spliced(message: memoryview, edits: Mapping[int, Edit], added: Sequence[tuple[int, bytes]] = ()) -> Chunks:
    """`message` with some of its fields edited.

    Args:
        edits: Number of a field of wire type BYTES -> what becomes of each of its occurrences.
        added: (number, payload) of further fields, in order of their numbers. Each is put behind those of its number.

    Raises:
        DataLossError: the message breaks the wire format.
    """
    chunks: list[memoryview | bytes] = []
    at = 0
    waiting = list(added)
    for field in fields(message):
        while waiting and waiting[0][0] < field.number:
            number, payload = waiting.pop(0)
            chunks += (message[at : field.start], *_field(number, [payload]))
            at = field.start
        edit = edits.get(field.number) if field.wire_type == WireType.BYTES else None
        new = edit(field.payload) if edit is not None else [field.payload]
        if new is not None and len(new) == 1 and new[0] is field.payload:
            continue
        if at < field.start:
            chunks.append(message[at : field.start])
        if new is not None:
            chunks += _field(field.number, new)
        at = field.stop
    if not (chunks or waiting or at):
        return [message]
    chunks.append(message[at:])
    for number, payload in waiting:
        chunks += _field(number, [payload])
    return [b"".join(chunks)] if _size(chunks) <= _SMALL else chunks


def left_out(_: memoryview) -> None:
    """The edit that leaves a field out."""
    return


def each_message(kind: type[M], edited: Callable[[M], M | None]) -> Edit:
    """The edit of a field that is a message: to the message in its place, None for none. `edited` changes none."""

    def edit(payload: memoryview) -> Chunks | None:
        message = decoded(kind, payload)
        new = edited(message)
        if new is None:
            return None
        return [payload] if new is message or new == message else [encoded(new)]

    return edit


def each_entry(kind: type[M], edited: Callable[[str, M], M | None]) -> Edit:
    """The edit of a map of messages: from a name and its message to the message in its place, as `each_message`."""

    def edit(entry: memoryview) -> Chunks | None:
        name, payload = text_of(entry, 1), payload_of(entry, 2)
        new = each_message(kind, lambda message: edited(name, message))(payload)
        if new is None:
            return None
        return [entry] if new[0] is payload else [encoded_entry(name, b"".join(new))]

    return edit


def payload_of(message: memoryview, number: int) -> memoryview:
    """The payload of the last field of this number, which is what counts; empty where there is none."""
    found = memoryview(b"")
    for field in fields(message):
        if field.number == number:
            found = field.payload
    return found


def text_of(message: memoryview, number: int) -> str:
    """The text in the field of this number; DataLossError where it is no UTF-8."""
    payload = payload_of(message, number)
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError as error:
        raise DataLossError(f"a name is no UTF-8: {bytes(payload)!r}") from error


def encoded(message: Message) -> bytes:
    """The bytes of a message; equal messages have equal bytes."""
    return message.SerializeToString(deterministic=True)


def encoded_entry(name: str, payload: bytes) -> bytes:
    """An entry of a map of messages."""
    return b"".join((*_field(1, [name.encode()]), *_field(2, [payload])))


def _field(number: int, payload: Chunks) -> list[memoryview | bytes]:
    return [sized_tag(number, _size(payload)), *payload]


def _size(chunks: Chunks) -> int:
    return sum(map(len, chunks))
