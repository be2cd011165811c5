"""Recognise messages of Protocol Buffers: graphs, meta graphs, SavedModels and ONNX models.

    GraphDef     = node: NodeDef = 1 ... | library = 2 | version: varint = 3 | versions = 4
    NodeDef      = name = 1 | op = 2 | ...
    MetaGraphDef = meta_info_def = 1 | graph_def: GraphDef = 2 | saver_def = 3 | ... | object_graph_def = 7
    MetaInfoDef  = version = 1 | stripped_op_list: OpList = 2 | ... | tags = 4 ... | tensorflow_version = 5 | ...
    SavedModel   = saved_model_schema_version: varint = 1 | meta_graphs: MetaGraphDef = 2 ...
    ModelProto   = ir_version: varint = 1 | producer_name = 2 | ... | graph = 7 | opset_import = 8 | ...   (ONNX)

Messages have no magic number, and much other data parses as a message. So they are recognised by their first fields
and by the form of the strings in these fields. Only the beginning of each field is read.

Source: tensorflow/core/protobuf/{meta_graph,saved_model}.proto, framework/{graph,node_def}.proto; onnx/onnx.proto.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.coding import MAX_VARINT_SIZE, decode_varint
from torch_tfckpt.format.file_kind import FileKind
from torch_tfckpt.format.wire import WireType

_PARTS: Final = 24  # maximum number of fields of a message that are read
_READ: Final = 1024  # maximum bytes of each field that are read
_NODE_NAME: Final = re.compile(rb"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*+")  # tensorflow/core/graph/graph_constructor.cc
_OP_NAME: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_>]*+")
_VERSION: Final = re.compile(rb"\d+\.\d+[\x21-\x7e]*+")
_MAX_IR_VERSION: Final = 1000
_ONNX_FIELDS: Final = frozenset((1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26))


class _MessagePart(NamedTuple):
    """One field of a message, with the beginning of its payload."""

    number: int
    wire_type: int
    head: bytes  # at most _READ bytes
    size: int  # bytes of the payload; for a varint, its value

    @property
    def is_bytes(self) -> bool:
        return self.wire_type == WireType.BYTES

    def parts(self) -> list["_MessagePart"]:
        """Return the fields of this nested message that are in `head`."""
        return _first_parts(lambda offset, size: self.head[offset : offset + size], self.size)


def message_kind(read: Callable[[int, int], bytes], size: int) -> FileKind | None:
    """Return the kind of a binary message; None for any other bytes."""
    parts = _first_parts(read, size)
    if not parts:
        return None
    if _is_graph(parts):
        return FileKind.GRAPH
    if _is_meta_graph(parts):
        return FileKind.META_GRAPH
    if (parts[0].number, parts[0].wire_type) != (1, WireType.VARINT):
        return None
    if len(parts) > 1 and parts[1].number == 2 and parts[1].is_bytes and _is_meta_graph(parts[1].parts()):
        return FileKind.SAVED_MODEL
    if parts[0].size <= _MAX_IR_VERSION and {part.number for part in parts} <= _ONNX_FIELDS and _has_onnx_graph(parts):
        return FileKind.ONNX
    return None


def _first_parts(read: Callable[[int, int], bytes], size: int) -> list[_MessagePart]:
    """Read the first fields of a message of `size` bytes; return an empty list if they are invalid."""
    parts: list[_MessagePart] = []
    at = 0
    while at < size and len(parts) < _PARTS:
        start = read(at, min(2 * MAX_VARINT_SIZE, size - at))
        try:
            tag, used = decode_varint(start, 0, bits=32)
            number, wire_type = tag >> 3, tag & 7
            if not number:
                return []
            payload = 0
            if wire_type == WireType.BYTES:
                payload, used = decode_varint(start, used)
            elif wire_type == WireType.VARINT:
                value, used = decode_varint(start, used)
                parts.append(_MessagePart(number, wire_type, b"", value))
                at += used
                continue
            elif wire_type in (WireType.FIXED32, WireType.FIXED64):
                payload = 4 if wire_type == WireType.FIXED32 else 8
            else:
                return []
        except DataLossError:
            return parts if len(start) < min(2 * MAX_VARINT_SIZE, size - at) else []
        if at + used + payload > size:
            return []
        parts.append(_MessagePart(number, wire_type, read(at + used, min(payload, _READ)), payload))
        at += used + payload
    return parts


def _is_graph(parts: list[_MessagePart]) -> bool:
    return bool(parts) and _is_node(parts[0]) and all(part.number <= 4 for part in parts)


def _is_node(part: _MessagePart) -> bool:
    """Return whether `part` is field 1 of a graph: a node with a name and an operation."""
    inside = part.parts() if part.number == 1 and part.is_bytes else []
    return (
        len(inside) > 1
        and _matches(inside[0], 1, _NODE_NAME)
        and _matches(inside[1], 2, _OP_NAME)
    )  # fmt: skip


def _is_meta_graph(parts: list[_MessagePart]) -> bool:
    numbers = [part.number for part in parts]
    if not parts or numbers != sorted(numbers) or numbers[-1] > 7 or not all(part.is_bytes for part in parts):
        return False
    return _is_meta_info(parts[0]) or any(part.number == 2 and _is_graph(part.parts()) for part in parts)


def _is_meta_info(part: _MessagePart) -> bool:
    """Return whether `part` is field 1 of a meta graph, with a list of operations or a TensorFlow version."""
    for inside in part.parts() if part.number == 1 else []:
        if inside.number > 8 or inside.is_bytes != (inside.number != 7):
            return False
        if inside.number == 5:
            return _VERSION.fullmatch(inside.head) is not None
        operations = inside.parts() if inside.number == 2 else []
        names = operations[0].parts() if operations and operations[0].number == 1 else []
        if names and _matches(names[0], 1, _OP_NAME):
            return True
    return False


def _has_onnx_graph(parts: list[_MessagePart]) -> bool:
    """Return whether there is a graph with nodes or tensors, or an operator set with a version."""
    for part in parts:
        inside = part.parts() if part.is_bytes else []
        if part.number == 7 and inside and inside[0].is_bytes and inside[0].number in (1, 2, 5, 11):
            return True
        if part.number == 8 and any((field.number, field.wire_type) == (2, WireType.VARINT) for field in inside):
            return True
    return False


def _matches(part: _MessagePart, number: int, form: re.Pattern[bytes]) -> bool:
    return part.number == number and part.is_bytes and form.fullmatch(part.head) is not None
