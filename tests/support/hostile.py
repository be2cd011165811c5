"""Checkpoints with valid checksums and absurd contents, which readers must not trust."""

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch

from torch_tfckpt._proto import saved_tensor_slice_pb2, types_pb2
from torch_tfckpt._proto.tensor_bundle_pb2 import BundleEntryProto
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.block import BlockBuilder
from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.saved_tensor_slices import encode_slice
from torch_tfckpt.format.table import BLOCK_TRAILER, BlockHandle, Footer, TableBuilder
from torch_tfckpt.format.tensor_bundle import BundleHeader, data_filename
from torch_tfckpt.format.tensor_slice import Extent, Shape, TensorSlice, encode_slice_key
from torch_tfckpt.values import Value

FLOAT: Final = int(DataType.DT_FLOAT)
STRING: Final = int(DataType.DT_STRING)
HUGE: Final = 2**62
HEADER: Final = BundleHeader(1).encode()
# Two good tensors are in every hostile checkpoint, one before and one after the bad ones.
GOOD: Final[dict[str, Value]] = {
    "aaa/good": torch.tensor([1.0, 2.0, 3.0]),
    "zzz/good": torch.tensor([4.0, 5.0]),
}
GOOD_BYTES: Final = struct.pack("<5f", 1, 2, 3, 4, 5)


def masked(data: bytes) -> int:
    return crc32c.mask(crc32c.value(data))


def entry(
    dtype: int,
    shape: Sequence[int],
    data: bytes = b"",
    *,
    shard: int = 0,
    offset: int = len(GOOD_BYTES),
    size: int | None = None,
    checksum: int | None = None,
    slices: Iterable[TensorSlice] = (),
    unknown_rank: bool = False,
) -> bytes:
    """A BundleEntryProto with any contents; `data` are the bytes at `offset`, for the checksum."""
    proto = BundleEntryProto(
        dtype=cast(types_pb2.DataType, dtype),
        shard_id=shard,
        offset=offset,
        size=len(data) if size is None else size,
        crc32c=masked(data) if checksum is None else checksum,
    )
    proto.shape.SetInParent()
    for dim in shape:
        proto.shape.dim.add(size=dim)
    proto.shape.unknown_rank = unknown_rank
    for part in slices:
        added = proto.slices.add()
        for start, length in part.extents:
            extent = added.extent.add(start=start)
            if length != -1:
                extent.length = length
    return proto.SerializeToString(deterministic=True)


def table(entries: Mapping[bytes, bytes]) -> bytes:
    """A valid table of `entries`, sorted."""
    parts: list[bytes] = []
    builder = TableBuilder(parts.append)
    for key in sorted(entries):
        builder.add(key, entries[key])
    builder.finish()
    return b"".join(parts)


def block(entries: Iterable[tuple[bytes, bytes]], restart_interval: int = 16) -> bytes:
    """The contents of one block; keys in the given order, valid or not."""
    builder = BlockBuilder(restart_interval)
    for key, value in entries:
        builder.add(key, value)
    return builder.finish()


def raw_block(entries: Iterable[tuple[int, bytes, bytes]]) -> bytes:
    """A block from (shared, rest of the key, value), unmodified."""
    body = b"".join(
        encode_varint(shared) + encode_varint(len(rest)) + encode_varint(len(value)) + rest + value
        for shared, rest, value in entries
    )
    return body + struct.pack("<II", 0, 1)


def sealed(contents: bytes, compression: int = 0) -> bytes:
    """A block as it is stored in a file, with a valid checksum."""
    kind = bytes((compression,))
    return contents + BLOCK_TRAILER.pack(compression, masked(contents + kind))


def table_of_blocks(
    blocks: Sequence[tuple[bytes, bytes]],
    compression: int = 0,
    *,
    handles: Mapping[int, BlockHandle] | None = None,
    index: bytes | None = None,
    metaindex: BlockHandle | None = None,
) -> bytes:
    """A table of (separator, contents) blocks.

    Args:
        compression: Type byte of the data blocks; their contents are not compressed here.
        handles: Handles that replace the correct ones in the index block, by number.
        index: Contents that replace the correct index block.
        metaindex: Handle that replaces the correct one of the metaindex block.
    """
    out = b""
    true_handles: list[BlockHandle] = []
    for _, contents in blocks:
        true_handles.append(BlockHandle(len(out), len(contents)))
        out += sealed(contents, compression)
    listed = [(handles or {}).get(number, handle) for number, handle in enumerate(true_handles)]
    empty = block([])
    true_metaindex = BlockHandle(len(out), len(empty))
    out += sealed(empty)
    if index is None:
        pairs = zip(blocks, listed, strict=True)
        index = raw_block((0, separator, handle.encode()) for (separator, _), handle in pairs)
    index_handle = BlockHandle(len(out), len(index))
    return out + sealed(index) + Footer(metaindex or true_metaindex, index_handle).encode()


def good_entries() -> dict[bytes, bytes]:
    """Header and the entries of GOOD."""
    return {
        b"": HEADER,
        b"aaa/good": entry(FLOAT, (3,), GOOD_BYTES[:12], offset=0),
        b"zzz/good": entry(FLOAT, (2,), GOOD_BYTES[12:], offset=12),
    }


def write_bundle(
    folder: Path, bad: Mapping[bytes, bytes], data: bytes = b"", *, header: bytes = HEADER, shards: int = 1
) -> Path:
    """Write a checkpoint with GOOD and `bad` entries; `data` follows the bytes of GOOD in shard 0."""
    path = folder / "hostile"
    write_index(path, table({**good_entries(), **bad, b"": header}))
    Path(data_filename(str(path), 0, shards)).write_bytes(GOOD_BYTES + data)
    return path


def write_index(path: Path, contents: bytes) -> None:
    path.with_name(f"{path.name}.index").write_bytes(contents)


def sliced(
    name: bytes,
    shape: Sequence[int],
    parts: Mapping[TensorSlice, bytes],
    *,
    dtype: int = FLOAT,
    listed: Sequence[TensorSlice] | None = None,
) -> tuple[dict[bytes, bytes], bytes]:
    """Return entries and bytes of a partitioned tensor.

    Args:
        parts: Slice -> its stored bytes. Its entry has the slice's shape.
        listed: Slices that the full entry lists instead of `parts`.
    """
    entries: dict[bytes, bytes] = {}
    data = b""
    for part, stored in parts.items():
        piece = tuple(size if length == -1 else length for (_, length), size in zip(part.extents, shape, strict=False))
        offset = len(GOOD_BYTES) + len(data)
        entries[encode_slice_key(name, part)] = entry(dtype, piece, stored, offset=offset)
        data += stored
    entries[name] = entry(dtype, shape, slices=parts if listed is None else listed, offset=0, size=0, checksum=0)
    return entries, data


def floats(count: int, start: float = 0.0) -> bytes:
    return np.arange(start, start + count, dtype="<f4").tobytes()


def box(*extents: tuple[int, int]) -> TensorSlice:
    return TensorSlice(tuple(Extent(*extent) for extent in extents))


# Version 1.


def meta_record(tensors: Iterable[tuple[str, Sequence[int], int, Iterable[TensorSlice]]]) -> bytes:
    """Metadata with any contents: (name, shape, dtype, slices) of each tensor."""
    record = saved_tensor_slice_pb2.SavedTensorSlices()
    record.meta.versions.producer = 1
    for name, shape, dtype, slices in tensors:
        tensor = record.meta.tensor.add(name=name, type=cast(types_pb2.DataType, dtype))
        tensor.shape.SetInParent()
        for dim in shape:
            tensor.shape.dim.add(size=dim)
        for part in slices:
            added = tensor.slice.add()
            for start, length in part.extents:
                extent = added.extent.add(start=start)
                if length != -1:
                    extent.length = length
    return record.SerializeToString(deterministic=True)


BadTensor = tuple[str, Sequence[int], int, Sequence[TensorSlice]]


def write_v1(folder: Path, bad: Sequence[BadTensor], records: Mapping[bytes, bytes]) -> Path:
    """Write a version 1 file with GOOD and `bad` tensors, and `records` for the latter."""
    path = folder / "hostile_v1"
    tensors: list[tuple[str, Sequence[int], int, Iterable[TensorSlice]]] = list(bad)
    stored = dict(records)
    for name, value in GOOD.items():
        assert isinstance(value, torch.Tensor)
        whole = TensorSlice.full(1)
        tensors.append((name, tuple(value.shape), FLOAT, [whole]))
        stored[encode_slice_key(name.encode(), whole)] = encode_slice(name, whole, FLOAT, value.numpy())
    stored[b""] = meta_record(tensors)
    path.write_bytes(table(stored))
    return path


def v1_record(name: str, part: TensorSlice, count: int) -> tuple[bytes, bytes]:
    """Key and record of a slice of `count` floats."""
    values = np.arange(count, dtype="<f4")
    return encode_slice_key(name.encode(), part), encode_slice(name, part, FLOAT, values)


def key_bomb(size: int, shared: int = 300) -> bytes:
    """A block of about `size` bytes whose keys share their first `shared` bytes. It compresses well."""
    entries: list[tuple[int, bytes, bytes]] = [(0, b"\x01" * shared, b"")]
    for number in range(size // (256 * 5)):
        entries.append((shared, b"\x02" + number.to_bytes(3, "big"), b""))
        entries += [(shared + 4, bytes((last,)), b"") for last in range(256)]
    return raw_block(entries)


def file_shape(path: Path) -> Shape:
    """The sizes of the files of `path`, for assertion messages."""
    return tuple(os.stat(path.parent / name).st_size for name in sorted(os.listdir(path.parent)))
