"""Recognise the kind of a file from its contents.

    kind = recognise(file.read, file.size)

A file is recognised by its structure: the header of a safetensors file parses and fits into the file, a graph begins
with a node, a pickle begins with valid instructions. A magic number alone is sufficient only if it has six bytes or
more, or if no table of a checkpoint can begin with it. So a damaged checkpoint is never reported as another kind of
file; if the kind cannot be determined, it is `FileKind.UNKNOWN`.

Nothing is executed or unpickled. At most about 2 MiB are read, regardless of the numbers in the file.
"""

import json
import pickletools
import re
import struct
import zlib
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.coding import decode_varint
from torch_tfckpt.format.file_kind import FileKind
from torch_tfckpt.format.recognise_message import message_kind
from torch_tfckpt.format.recognise_text import as_text, text_kind
from torch_tfckpt.format.table import TABLE_MAGIC, Footer
from torch_tfckpt.format.tensor_bundle import parse_data_filename

Read = Callable[[int, int], bytes]
"""(offset, count) -> exactly `count` bytes. Callers check first that the file has these bytes."""

_HEAD: Final = 64 * 1024
_TAIL: Final = 4096
_MAX_PARSED: Final = 1024 * 1024  # size limit of a header or directory to parse

# Magic numbers of six or more bytes, and magic numbers of four bytes with which no table begins. A table begins with
# the sizes of its first key, 00 00, or, if it is compressed, with a size and then the tag of a literal, whose lowest
# two bits are zero.
_SIGNATURES: Final = (
    (b"7z\xbc\xaf\x27\x1c", FileKind.SEVEN_ZIP),
    (b"\xfd7zXZ\0", FileKind.XZ),
    (b"\x93NUMPY", FileKind.NPY),
    (b"\x28\xb5\x2f\xfd", FileKind.ZSTANDARD),
    (b"GGUF", FileKind.GGUF),
)
_BZIP2: Final = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_HDF5_OFFSETS: Final = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768)  # a file may begin with a block of user data
_KERAS_NAMES: Final = ((b"keras_version",), (b"layer_names",), (b"model_weights",), (b"layers\0", b"vars\0"))
_IDENTIFIER: Final = re.compile(rb"[A-Z][A-Z0-9]{3}")
_OLD_TORCH_MAGIC: Final = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
_STORES: Final = frozenset(("PUT", "BINPUT"))  # instructions of protocols 0 and 1 that store a value
_EVENT: Final = b"brain.Event:"


def recognise(read: Read, size: int) -> FileKind:
    """Return the kind of a file of `size` bytes. Raises only OSErrors from `read`."""
    try:
        return _recognise(read, size)
    except CheckpointError:  # the file became shorter while it was read
        return FileKind.UNKNOWN


def recognise_bytes(content: bytes) -> FileKind:
    """Return the kind of a file that is in memory."""
    return recognise(lambda offset, size: content[offset : offset + size], len(content))


def _recognise(read: Read, size: int) -> FileKind:
    if not size:
        return FileKind.EMPTY
    head = read(0, min(size, _HEAD))
    tail = read(max(0, size - _TAIL), min(size, _TAIL))
    table = _table_kind(head, tail, size)
    if table is not None:
        return table
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if _BZIP2.match(head):
        return FileKind.BZIP2
    text = as_text(head, tail, size)
    if text is not None:
        return _pickle_kind(head) or text_kind(text, read(0, size) if size <= _MAX_PARSED else None)
    for look in (_hdf5_kind, _gzip_kind, _tar_kind, _flatbuffer_kind, _record_kind):
        found = look(head, size)
        if found is not None:
            return found
    return (
        _zip_kind(read, head, size)
        or _safetensors_kind(read, head, size)
        or _pickle_kind(head)
        or message_kind(read, size)
        or (FileKind.ZEROS if not any(head) and not any(tail) else FileKind.UNKNOWN)
    )


def _table_kind(head: bytes, tail: bytes, size: int) -> FileKind | None:
    """Recognise a table by the magic number at its end and its first entry: an empty key and a message."""
    complete = size >= Footer.SIZE and tail.endswith(TABLE_MAGIC.to_bytes(8, "little"))
    first = _first_value(head)
    if first[:1] not in (b"\x08", b"\x0a"):
        return FileKind.TABLE if complete else None
    if not complete:
        return FileKind.CUT_TABLE
    # Field 1 of the header of a version 2 index is a number; in a version 1 file the field is a message.
    return FileKind.INDEX if first[:1] == b"\x08" else FileKind.VERSION_1


def _first_value(head: bytes) -> bytes:
    """Return the part of a table's first value that is in `head`; empty if the first key is not empty.

        sizes of the key: 00 00 | size of the value: varint | value

    In a compressed block, this is preceded by the block's size as a varint and the tag of a literal.
    """
    for start in (0, *_literal_start(head)):
        if head[start : start + 2] == b"\0\0":
            try:
                size, at = decode_varint(head, start + 2, bits=32)
            except CheckpointError:
                continue
            if size:
                return head[at : at + size]
    return b""


def _literal_start(head: bytes) -> tuple[int, ...]:
    try:
        size, at = decode_varint(head, 0, bits=32)
    except CheckpointError:
        return ()
    if not size or at >= len(head) or head[at] & 3:
        return ()
    return (at + 1 + max(0, (head[at] >> 2) - 59),)


def _hdf5_kind(head: bytes, size: int) -> FileKind | None:
    if not any(head.startswith(_HDF5, offset) for offset in _HDF5_OFFSETS):
        return None
    return FileKind.KERAS_HDF5 if any(all(name in head for name in names) for names in _KERAS_NAMES) else FileKind.HDF5


def _gzip_kind(head: bytes, size: int) -> FileKind | None:
    """Recognise gzip (1f 8b, method 8, reserved flags unset), and whether it contains a tar archive."""
    if not head.startswith(b"\x1f\x8b\x08") or len(head) < 18 or head[3] & 0xE0:
        return None
    try:
        inside = zlib.decompressobj(wbits=31).decompress(head, 512)
    except zlib.error:
        return None
    return FileKind.GZIPPED_TAR if _tar_kind(inside, size) else FileKind.GZIP


def _tar_kind(head: bytes, size: int) -> FileKind | None:
    """Recognise tar by the checksum of its first header: the sum of the bytes, counting the checksum as spaces."""
    block = head[:512]
    digits = block[148:156].strip(b" \0")
    if len(block) < 512 or not digits or not all(byte in b"01234567" for byte in digits):
        return None
    return FileKind.TAR if sum(block) - sum(block[148:156]) + 8 * 0x20 == int(digits, 8) else None


def _flatbuffer_kind(head: bytes, size: int) -> FileKind | None:
    """Recognise a flatbuffer by the identifier at byte 4 and, except for TensorFlow Lite, by its root table."""
    if head[4:8] == b"TFL3":
        return FileKind.TFLITE
    if len(head) < 16 or not _IDENTIFIER.fullmatch(head, 4, 8):
        return None
    (root,) = struct.unpack_from("<I", head)
    if not 8 <= root <= len(head) - 4:
        return None
    layout = root - struct.unpack_from("<i", head, root)[0]
    if not 8 <= layout <= len(head) - 4:
        return None
    fields_size, table_size = struct.unpack_from("<HH", head, layout)
    sound = fields_size >= 4 and fields_size % 2 == 0 and 4 <= table_size <= size - root
    return FileKind.FLATBUFFER if sound else None


def _record_kind(head: bytes, size: int) -> FileKind | None:
    """Recognise a TFRecord: size of a record (u64le) | masked CRC-32C of the size | record | checksum."""
    if len(head) < 16 or crc32c.mask(crc32c.value(head[:8])) != int.from_bytes(head[8:12], "little"):
        return None
    return FileKind.EVENTS if _EVENT in head[12:64] else FileKind.TFRECORD


# Archives: kinds that are recognised by the names of their members.


def _zip_kind(read: Read, head: bytes, size: int) -> FileKind | None:
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None
    names = {*_local_names(head), *_directory_names(read, size)}
    folders = {name.rpartition("/")[2] for name in names if name.count("/") == 1}
    if "data.pkl" in folders:
        scripted = "constants.pkl" in folders or any(name.split("/")[1:2] == ["code"] for name in names)
        return FileKind.TORCHSCRIPT if scripted else FileKind.TORCH
    if "config.json" in names and not names.isdisjoint({"model.weights.h5", "metadata.json"}):
        return FileKind.KERAS
    if any(name.endswith(".npy") for name in names):
        return FileKind.NPZ
    if any(name.endswith(".index") or parse_data_filename(name) for name in names):
        return FileKind.ZIPPED_CHECKPOINT
    return FileKind.ZIP


def _local_names(head: bytes) -> list[str]:
    """Return the names of the members at the beginning, up to the first whose header has no size."""
    names: list[str] = []
    at = 0
    while head.startswith(b"PK\x03\x04", at) and at + 30 <= len(head):
        flags, stored, name_size, extra_size = struct.unpack_from("<6xH10xI4xHH", head, at)
        names.append(head[at + 30 : at + 30 + name_size].decode("utf-8", "replace"))
        if flags & 8:
            break
        at += 30 + name_size + extra_size + stored
    return names


def _directory_names(read: Read, size: int) -> list[str]:
    """Return the names in the central directory, if it is valid. Source: APPNOTE.TXT 4.3.12, 4.3.16."""
    start = max(0, size - 65_557)  # the last record: 22 bytes and a comment of at most 65,535
    end = read(start, size - start)
    at = end.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(end):
        return []
    (directory_size,) = struct.unpack_from("<I", end, at + 12)
    for records in (0, 76):  # in archives of 4 GiB and more, records of 56 and 20 bytes come before the last record
        begin = start + at - records - directory_size
        if begin >= 0:
            names = _listed_names(read(begin, min(directory_size, _MAX_PARSED)))
            if names:
                return names
    return []


def _listed_names(directory: bytes) -> list[str]:
    names: list[str] = []
    at = 0
    while directory.startswith(b"PK\x01\x02", at) and at + 46 <= len(directory):
        sizes = struct.unpack_from("<HHH", directory, at + 28)
        names.append(directory[at + 46 : at + 46 + sizes[0]].decode("utf-8", "replace"))
        at += 46 + sum(sizes)
    return names


# Kinds that are recognised by a header or by their first instructions.


def _safetensors_kind(read: Read, head: bytes, size: int) -> FileKind | None:
    """Recognise safetensors: header size (u64le) | JSON: name -> dtype, shape, data_offsets | bytes."""
    header_size = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or header_size < 2:
        return None
    if header_size > min(size - 8, _MAX_PARSED):
        # The header is too large to parse here, or truncated: look for the keys of the first entry.
        return FileKind.SAFETENSORS if b'"data_offsets":' in head and b'"dtype":' in head else None
    try:
        content: Any = json.loads(read(8, header_size))
    except (ValueError, RecursionError):
        return None
    entries = [entry for name, entry in content.items() if name != "__metadata__"] if isinstance(content, dict) else []
    expected = {"dtype", "shape", "data_offsets"}
    sound = all(isinstance(entry, dict) and entry.keys() >= expected for entry in entries)
    return FileKind.SAFETENSORS if isinstance(content, dict) and sound else None


def _pickle_kind(head: bytes) -> FileKind | None:
    """Recognise a pickle by its first instructions, which are not executed.

    From protocol 2 on, a pickle begins with its protocol number; three valid instructions identify it. Pickles of
    protocols 0 (text) and 1 do not begin with a protocol number: one of their first instructions must store a value,
    and none may be invalid.
    """
    instructions: list[tuple[str, Any]] = []
    sound = True
    try:
        for instruction, argument, _ in islice(pickletools.genops(head), 32):
            instructions.append((instruction.name, argument))
    except Exception:  # the parser may raise any error for damaged or malicious bytes
        sound = False
    names = [name for name, _ in instructions]
    if names[:1] == ["PROTO"]:
        if instructions[1:2] == [("LONG1", _OLD_TORCH_MAGIC)]:
            return FileKind.OLD_TORCH
        return FileKind.PICKLE if len(names) >= 3 and 2 <= instructions[0][1] <= 9 else None
    return FileKind.PICKLE if sound and len(names) >= 4 and not _STORES.isdisjoint(names) else None
