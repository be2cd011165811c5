"""Index entries and tables encoded in bulk: the same bytes as `tensor_bundle` and `table`, in a few numpy passes.

Encoding one entry and adding it to a table takes several microseconds in Python; here, a hundred thousand of them take
a fraction of a microsecond each. Rows of unequal length are laid out in a matrix, and a mask selects their bytes:

    entries     described.. | 20 offset.. | 28 size.. | 35 checksum       one row per entry; without fields that are 0
    block       shared unshared size | ..key[shared:] | value..           one row per entry of the block

What does not fit into small matrices, such as long keys and the list of a partitioned tensor's slices, is encoded by
`BundleEntry` and `TableBuilder`. Property tests compare both ways.
"""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from torch_tfckpt.format.block import block_entry, shared_prefix_size
from torch_tfckpt.format.table import BLOCK_SIZE, RESTART_INTERVAL, TableBuilder
from torch_tfckpt.format.varint_arrays import varint_sizes

_Bytes = npt.NDArray[np.uint8]
_Mask = npt.NDArray[np.bool_]
_Numbers = npt.NDArray[np.int64]

_FEW: Final = 128  # for fewer entries, numpy's fixed cost is larger than the gain
_ONE_BYTE: Final = 0x80  # smaller numbers are varints of one byte
_CHUNK: Final = 16384  # rows of a matrix: limits memory


def encode_entries(
    described: Sequence[bytes], shard: bytes, offsets: _Numbers, sizes: _Numbers, checksums: npt.NDArray[np.uint32]
) -> list[bytes]:
    """Return encoded index entries of tensors stored whole.

    Args:
        described: The first fields of each entry, its dtype and shape, as encoded.
        shard: The encoded field with the number of the data file; empty for file 0.
        checksums: Masked.
    """
    starts = [fields + shard for fields in described] if shard else described
    bound, cells = _row_bytes(starts)
    columns = [(cells, np.arange(cells.shape[1]) < bound[:, None])]
    columns += [_varint_field(0x20, offsets), _varint_field(0x28, sizes)]
    fixed = np.empty((len(described), 5), dtype=np.uint8)
    fixed[:, 0] = 0x35
    fixed[:, 1:] = np.ascontiguousarray(checksums, dtype="<u4").view(np.uint8).reshape(-1, 4)
    columns.append((fixed, np.broadcast_to((checksums != 0)[:, None], fixed.shape)))
    selected = np.concatenate([mask for _, mask in columns], axis=1)
    joined = np.concatenate([cells for cells, _ in columns], axis=1)[selected].tobytes()
    ends = np.cumsum(selected.sum(axis=1)).tolist()
    return [joined[begin:end] for begin, end in pairwise(chain((0,), ends))]


def encode_table(keys: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """Return a whole table file. REQUIRES: `keys` in strictly ascending order; raises like TableBuilder otherwise."""
    blocks: list[bytes] = []
    table = TableBuilder(blocks.append)
    key_sizes, value_sizes = _sizes(keys), _sizes(values)
    # Not strictly ascending: TableBuilder raises the error. A huge entry has a block of its own.
    ascending = all(one < other for one, other in pairwise(keys))
    if len(keys) < _FEW or not ascending or int((key_sizes + value_sizes).max()) >= BLOCK_SIZE:
        _add_one_by_one(table, keys, values)
    else:
        _add_blocks(table, keys, values, key_sizes, value_sizes)
    table.finish()
    return b"".join(blocks)


def _add_one_by_one(table: TableBuilder, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
    for key, value in zip(keys, values, strict=True):
        table.add(key, value)


def _add_blocks(
    table: TableBuilder, keys: Sequence[bytes], values: Sequence[bytes], key_sizes: _Numbers, value_sizes: _Numbers
) -> None:
    shared = _shared_prefixes(keys, key_sizes)
    first, expected = 0, _CHUNK
    while first < len(keys):
        end = first + expected
        before = np.where(np.arange(len(shared[first:end])) % RESTART_INTERVAL, shared[first:end], 0)
        after, stored = key_sizes[first:end] - before, value_sizes[first:end]
        sizes = after + stored + sum(varint_sizes(each.view(np.uint64)) for each in (before, after, stored))
        # A block also has the number of its restarts, and the offset of each.
        restarts = np.arange(len(sizes)) // RESTART_INTERVAL + 1
        full = np.flatnonzero(np.cumsum(sizes) + 4 * (restarts + 1) >= BLOCK_SIZE)
        if not len(full) and end < len(keys):
            expected *= 2
            continue
        count = int(full[0]) + 1 if len(full) else len(sizes)
        end = first + count
        contents = _block(keys[first:end], values[first:end], before[:count], sizes[:count])
        table.add_block(keys[first], keys[end - 1], contents)
        first = end


def _block(keys: Sequence[bytes], values: Sequence[bytes], shared: _Numbers, sizes: _Numbers) -> bytes:
    """Return the contents of a block: its entries, which take `sizes` bytes each, and its restarts."""
    parts = [
        _block_entries(keys[at : at + _CHUNK], values[at : at + _CHUNK], shared[at : at + _CHUNK])
        for at in range(0, len(keys), _CHUNK)
    ]
    starts = np.cumsum(sizes) - sizes
    restarts = starts[::RESTART_INTERVAL]
    return b"".join((*parts, np.append(restarts, len(restarts)).astype("<u4").tobytes()))


def _block_entries(keys: Sequence[bytes], values: Sequence[bytes], shared: _Numbers) -> bytes:
    """Return consecutive entries of a block."""
    key_sizes, value_sizes = _sizes(keys), _sizes(values)
    if max(int(key_sizes.max()), int(value_sizes.max())) >= _ONE_BYTE:
        triples = zip(keys, values, shared.tolist(), strict=True)
        return b"".join([block_entry(key, value, size) for key, value, size in triples])
    head = np.stack((shared, key_sizes - shared, value_sizes), axis=1).astype(np.uint8)
    _, key_cells = _row_bytes(keys)
    _, value_cells = _row_bytes(values)
    at = np.arange(key_cells.shape[1])
    selected = np.concatenate(
        (
            np.ones(head.shape, dtype=np.bool_),
            (at >= shared[:, None]) & (at < key_sizes[:, None]),
            np.arange(value_cells.shape[1]) < value_sizes[:, None],
        ),
        axis=1,
    )
    entries: _Bytes = np.concatenate((head, key_cells, value_cells), axis=1)[selected]
    return entries.tobytes()


def _shared_prefixes(keys: Sequence[bytes], key_sizes: _Numbers) -> _Numbers:
    """Return the length of the prefix that each key shares with the one before it; 0 for the first."""
    shared = np.zeros(len(keys), dtype=np.int64)
    for first in range(1, len(keys), _CHUNK):
        end = min(len(keys), first + _CHUNK)
        sizes = np.minimum(key_sizes[first - 1 : end - 1], key_sizes[first:end])
        if int(sizes.max()) >= _ONE_BYTE:
            pairs = zip(keys[first - 1 : end - 1], keys[first:end], strict=True)
            shared[first:end] = [shared_prefix_size(one, other) for one, other in pairs]
            continue
        _, cells = _row_bytes(keys[first - 1 : end])
        differs = cells[1:] != cells[:-1]
        # Strictly ascending keys differ somewhere, or one is the beginning of the other, followed by null characters.
        found = np.where(differs.any(axis=1), differs.argmax(axis=1), sizes)
        shared[first:end] = np.minimum(found, sizes)
    return shared


def _varint_field(tag: int, numbers: _Numbers) -> tuple[_Bytes, _Mask]:
    """Return a field per row, its tag and a varint, and which bytes exist: none if the number is 0."""
    unsigned = numbers.view(np.uint64)
    widths = np.where(numbers, 1 + varint_sizes(unsigned), 0)
    longest = max(2, int(widths.max(initial=0)))
    groups = unsigned[:, None] >> (np.arange(longest - 1, dtype=np.uint64) * np.uint64(7))
    cells = np.empty((len(numbers), longest), dtype=np.uint8)
    cells[:, 0] = tag
    cells[:, 1:] = (groups & np.uint64(0x7F)) | (np.uint64(0x80) * (groups >= np.uint64(0x80)))
    return cells, np.arange(longest) < widths[:, None]


def _sizes(rows: Sequence[bytes]) -> _Numbers:
    return np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))


def _row_bytes(rows: Sequence[bytes]) -> tuple[_Numbers, _Bytes]:
    """Return the size of each row, and a matrix with one row each, filled up with zeros."""
    cells = np.array(rows, dtype=np.bytes_)
    return _sizes(rows), np.frombuffer(cells, dtype=np.uint8).reshape(len(rows), cells.itemsize)
