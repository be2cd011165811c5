"""Replace parts of a serialized protobuf message, at any depth; all other bytes stay the same.

    # every node without its device
    chunks = spliced(graph, {NODE: lambda node: spliced(node, {DEVICE: lambda device: None})})
    new = b"".join(chunks)

If nothing in a message is replaced, the result is one chunk, the same view object that was passed in. Callers at each
level test for that object to find out whether anything changed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

from google.protobuf.message import Message

from torch_tfckpt.errors import DataLossError, error_context
from torch_tfckpt.format.wire import WireType, fields, sized_tag
from torch_tfckpt.meta_graph.raw import RawMetaGraph, decoded

Chunks: TypeAlias = Sequence[memoryview | bytes]
# Maps the payload of a field to its replacement; None removes the field.
Edit: TypeAlias = Callable[[memoryview], Chunks | None]

# Smaller messages are joined immediately: a graph has many nodes, and views of their parts would take more memory.
_SMALL: Final = 1 << 12

M = TypeVar("M", bound=Message)


def rewritten(meta: RawMetaGraph, edits: Mapping[int, Edit], added: Sequence[tuple[int, bytes]] = ()) -> RawMetaGraph:
    """Return `meta` with some fields edited by `spliced`; the same object if nothing changes.

    Cost: a walk over the edited parts, and one copy of the bytes.
    """
    with error_context(meta.place):
        chunks = spliced(meta.raw, edits, added)
    return meta if chunks[0] is meta.raw else RawMetaGraph(memoryview(b"".join(chunks)), meta.place, meta.around)


def spliced(message: memoryview, edits: Mapping[int, Edit], added: Sequence[tuple[int, bytes]] = ()) -> Chunks:
    """Return `message`, as chunks, with some fields edited.

    Args:
        edits: Number of a field of wire type BYTES -> edit for each of its occurrences.
        added: (number, payload) of further fields, sorted by number. Each is inserted after existing fields with the
            same number.

    Raises:
        DataLossError: the message violates protobuf's wire format.
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
    """Return None, which removes the field: for use as an `Edit`."""
    return


def each_message(kind: type[M], edited: Callable[[M], M | None]) -> Edit:
    """Return an edit of a message field; `edited` returns a new message, or None to remove the field."""

    def edit(payload: memoryview) -> Chunks | None:
        message = decoded(kind, payload)
        new = edited(message)
        if new is None:
            return None
        return [payload] if new is message or new == message else [encoded(new)]

    return edit


def each_entry(kind: type[M], edited: Callable[[str, M], M | None]) -> Edit:
    """Return an edit of a map of messages; like `each_message`, but `edited` also gets the name."""

    def edit(entry: memoryview) -> Chunks | None:
        name, payload = text_of(entry, 1), payload_of(entry, 2)
        new = each_message(kind, lambda message: edited(name, message))(payload)
        if new is None:
            return None
        return [entry] if new[0] is payload else [encoded_entry(name, b"".join(new))]

    return edit


def payload_of(message: memoryview, number: int) -> memoryview:
    """Return the payload of the last field with this number (the one that counts), or b""."""
    found = memoryview(b"")
    for field in fields(message):
        if field.number == number:
            found = field.payload
    return found


def text_of(message: memoryview, number: int) -> str:
    """Return the string in the field with this number; DataLossError if it is not UTF-8."""
    payload = payload_of(message, number)
    try:
        return str(payload, "utf-8")
    except UnicodeDecodeError as error:
        raise DataLossError(f"a name is not UTF-8: {bytes(payload)!r}") from error


def encoded(message: Message) -> bytes:
    """Serialize a message deterministically: equal messages have equal bytes."""
    return message.SerializeToString(deterministic=True)


def encoded_entry(name: str, payload: bytes) -> bytes:
    """Encode an entry of a map of messages."""
    return b"".join((*_field(1, [name.encode()]), *_field(2, [payload])))


def _field(number: int, payload: Chunks) -> list[memoryview | bytes]:
    return [sized_tag(number, _size(payload)), *payload]


def _size(chunks: Chunks) -> int:
    return sum(map(len, chunks))
