"""Table file: sorted byte keys to byte values, in checksummed blocks.

    [data block 0] ... [data block N-1] [metaindex block] [index block] [footer]

    block on disk = contents | compression: u8 | checksum: u32le
    footer        = metaindex handle | index handle | zeros up to byte 40 | magic: u64le
    handle        = offset: varint64 | size of the contents: varint64

The checksum is the masked CRC-32C of contents and compression byte together. The metaindex block is always empty. Each
entry of the index block has the handle of a data block as its value, and a separator as its key: not smaller than any
key of that block, and smaller than every key of the next.

Source: LevelDB doc/table_format.md; TensorFlow tsl/lib/io/format.{h,cc}, table_builder.cc. Explained in
docs/formats/table.md.
"""

import bisect
import enum
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple, Self

import cramjam

from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.block import BlockBuilder, block_entries, decode_block, shared_prefix_size
from torch_tfckpt.format.coding import MAX_VARINT_SIZE, decode_varint, encode_varint

TABLE_MAGIC: Final = 0xDB4775248B80FB57  # last 8 bytes of every table
BLOCK_TRAILER: Final = struct.Struct("<BI")  # compression, masked crc32c
# 262144: TensorFlow's table block size (tsl/lib/io/table_options.h). Blocks of any size can be read, but only
# this size makes index files byte-identical to TensorFlow's, as tests/conformance/test_index_bytes.py checks.
BLOCK_SIZE: Final = 262_144
RESTART_INTERVAL: Final = 16  # table_options.h: block_restart_interval
# A snappy element copies at most 64 bytes and takes at least 3, so no stream can expand by a larger factor.
MAX_SNAPPY_EXPANSION: Final = 22
CACHED_BYTES: Final = 4 * 1024 * 1024  # limit for cached decoded blocks, in stored bytes; one block is always cached
# Exception: larger blocks are not cached, such as a version 1 record of several gigabytes that is needed only once.
MAX_CACHED_BLOCK: Final = 64 * 1024 * 1024


class Compression(enum.IntEnum):
    """Compression byte of a block. Part of the file format: never renumber."""

    NONE = 0
    SNAPPY = 1


_SEEK_AFTER: Final = 2 * RESTART_INTERVAL  # entries to pass over before a search for the next of interest is faster
_OUTSIDE: Final = "contains keys outside its separators"
_NO_COMPRESSION: Final = bytes((Compression.NONE,))
_EMPTY_BLOCK: Final = BlockBuilder(1).finish()  # the metaindex block


@dataclass(frozen=True, slots=True)
class BlockHandle:
    """Position of a block's contents; its trailer follows immediately."""

    offset: int  # bytes from the start of the file
    size: int  # bytes of the contents as stored, without the trailer

    MAX_ENCODED_SIZE: ClassVar[int] = 2 * MAX_VARINT_SIZE

    @property
    def end(self) -> int:
        """Offset after the trailer."""
        return self.offset + self.size + BLOCK_TRAILER.size

    def encode(self) -> bytes:
        return encode_varint(self.offset) + encode_varint(self.size)

    @classmethod
    def decode(cls, buf: bytes | memoryview, at: int) -> tuple[Self, int]:
        offset, at = decode_varint(buf, at)
        size, at = decode_varint(buf, at)
        return cls(offset, size), at


@dataclass(frozen=True, slots=True)
class Footer:
    """The last 48 bytes of a table."""

    metaindex: BlockHandle
    index: BlockHandle

    _MAGIC: ClassVar[struct.Struct] = struct.Struct("<Q")
    SIZE: ClassVar[int] = 2 * BlockHandle.MAX_ENCODED_SIZE + _MAGIC.size

    def encode(self) -> bytes:
        handles = self.metaindex.encode() + self.index.encode()
        return handles.ljust(self.SIZE - self._MAGIC.size, b"\0") + self._MAGIC.pack(TABLE_MAGIC)

    @classmethod
    def decode(cls, buf: bytes | memoryview) -> Self:
        if len(buf) != cls.SIZE:
            raise DataLossError(f"footer: expected {cls.SIZE} bytes, got {len(buf)}")
        (magic,) = cls._MAGIC.unpack_from(buf, cls.SIZE - cls._MAGIC.size)
        if magic != TABLE_MAGIC:
            raise DataLossError(
                f"not an sstable (bad magic number): footer: expected magic {TABLE_MAGIC:#018x}, got {magic:#018x}"
            )
        metaindex, at = BlockHandle.decode(buf, 0)
        index, _ = BlockHandle.decode(buf, at)
        return cls(metaindex, index)


class TableBuilder:
    """Writes a table sequentially through `write`. Keys must be added in strictly ascending order."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._offset = 0
        self._block = BlockBuilder(RESTART_INTERVAL)
        self._index = BlockBuilder(1)
        self._pending: BlockHandle | None = None  # a finished block whose separator needs the next key
        self._last_key: bytes | None = None

    def add(self, key: bytes, value: bytes) -> None:
        """Append one entry; raise InvalidArgumentError if `key` does not sort after the previous one."""
        if self._last_key is not None and key <= self._last_key:
            raise InvalidArgumentError(f"keys out of order: {key[:64]!r} after {self._last_key[:64]!r}")
        # A huge entry starts its own block, as in TensorFlow's builder.
        if len(key) + len(value) >= 2 * BLOCK_SIZE and not self._block.empty:
            self._flush()
        self._separate(key)
        self._block.add(key, value)
        self._last_key = key
        if self._block.size >= BLOCK_SIZE:
            self._flush()

    def add_block(self, first: bytes, last: bytes, contents: bytes) -> None:
        """Append a block that `add` would have filled and written, with keys from `first` to `last`.

        REQUIRES: the table ends with a whole block; `first` sorts after its last key.
        """
        assert self._block.empty, "the last block is not full"
        self._separate(first)
        self._pending, self._last_key = self._write_block(contents), last

    def finish(self) -> int:
        """Write the remaining blocks and the footer; return the size of the table in bytes."""
        self._flush()
        metaindex = self._write_block(_EMPTY_BLOCK)
        if self._pending is not None and self._last_key is not None:
            self._index.add(successor(self._last_key), self._pending.encode())
        index = self._write_block(self._index.finish())
        self._write(Footer(metaindex, index).encode())
        return self._offset + Footer.SIZE

    def _separate(self, key: bytes) -> None:
        """Add the last block to the index, if it is not there yet; `key` is the next one."""
        if self._pending is not None and self._last_key is not None:
            self._index.add(separator(self._last_key, key), self._pending.encode())
            self._pending = None

    def _flush(self) -> None:
        if not self._block.empty:
            self._pending = self._write_block(self._block.finish())

    def _write_block(self, contents: bytes) -> BlockHandle:
        checksum = crc32c.mask(crc32c.value(_NO_COMPRESSION, crc32c.value(contents)))
        handle = BlockHandle(self._offset, len(contents))
        self._write(contents + BLOCK_TRAILER.pack(Compression.NONE, checksum))
        self._offset = handle.end
        return handle


def separator(last: bytes, following: bytes) -> bytes:
    """Return a short key K with `last` <= K < `following`: the index key between two blocks."""
    at = shared_prefix_size(last, following)
    if at < min(len(last), len(following)) and last[at] < 0xFF and last[at] + 1 < following[at]:
        return last[:at] + bytes((last[at] + 1,))
    return last


def successor(last: bytes) -> bytes:
    """Return a short key not smaller than `last`: the index key after the last block."""
    for at, byte in enumerate(last):
        if byte != 0xFF:
            return last[:at] + bytes((byte + 1,))
    return last


class _Block(NamedTuple):
    keys: list[bytes]
    values: list[bytes]


class Table:
    """Reads a table through `read(offset, size)`, which must return exactly `size` bytes or raise.

    Opening reads the footer and the index block. A lookup reads one data block; a few decoded blocks are cached.
    Thread safety: safe if `read` is.
    """

    def __init__(self, read: Callable[[int, int], bytes | memoryview], size: int) -> None:
        self._read, self._size = read, size
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, _Block] = OrderedDict()
        self._cached_bytes = 0
        if size < Footer.SIZE:
            raise DataLossError(
                f"file is too short to be an sstable: {size} bytes, but a footer alone has {Footer.SIZE}"
            )
        self._footer = Footer.decode(read(size - Footer.SIZE, Footer.SIZE))
        self._separators, handles = self._decode(self._footer.index, "index block")
        try:
            self._handles = [BlockHandle.decode(handle, 0)[0] for handle in handles]
        except DataLossError as error:
            index = self._footer.index
            raise DataLossError(f"index block, bytes {index.offset}:{index.end}: {error}") from error
        self._check_handles()

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return a reader of the table `data`, of which it keeps no copies."""
        view = memoryview(data)
        return cls(lambda offset, size: view[offset : offset + size], len(data))

    @property
    def block_count(self) -> int:
        """Number of data blocks."""
        return len(self._handles)

    def get(self, key: bytes) -> bytes | None:
        """Return the value stored under `key`, or None."""
        number = bisect.bisect_left(self._separators, key)
        if number == len(self._separators):
            return None
        block = self._block(number)
        at = bisect.bisect_left(block.keys, key)
        return block.values[at] if at < len(block.keys) and block.keys[at] == key else None

    def items(
        self, start: bytes = b"", skip_damaged: Callable[[DataLossError], object] | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries from key `start` on, in order, with one block in memory at a time.

        Args:
            skip_damaged: Called with the error of a damaged block, which is then skipped. None: the error is raised.
        """
        first = bisect.bisect_left(self._separators, start)
        for number in range(first, len(self._separators)):
            try:
                keys, values = self._block(number)
            except DataLossError as error:
                if skip_damaged is None:
                    raise
                skip_damaged(error)
                continue
            skip = bisect.bisect_left(keys, start) if number == first else 0
            yield from zip(keys[skip:], values[skip:], strict=True)

    def stream(self, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries from key `start` on, in order, decoded as they are asked for, and without caching.

        For reading many tables at once: only the stored form of one block is in memory.
        """
        for number in range(bisect.bisect_left(self._separators, start), len(self._separators)):
            handle = self._handles[number]
            lowest = self._separators[number - 1] if number else None
            key = None
            try:
                for key, value in block_entries(self._contents(handle), handle.size, start):
                    if lowest is not None:
                        if key <= lowest:
                            raise DataLossError(_OUTSIDE)
                        lowest = None
                    yield key, value
                if key is not None and key > self._separators[number]:
                    raise DataLossError(_OUTSIDE)
            except DataLossError as error:
                raise DataLossError(f"data block {number}, bytes {handle.offset}:{handle.end}: {error}") from error

    def outside(
        self,
        prefixes: Sequence[bytes],
        stop: bytes,
        skip_damaged: Callable[[DataLossError], object] | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries before key `stop` whose keys start with none of `prefixes`, without decoding most others.

        Args:
            prefixes: In ascending order; none is a prefix of another one, nor ends in byte ff.
            skip_damaged: As for `items`. Blocks that contain only keys with one prefix are not read.
        """
        lowest = b""  # the separator before the block
        for separator, handle in zip(self._separators, self._handles, strict=True):
            if lowest >= stop:
                return
            prefix = _prefix_of(lowest, prefixes)
            if prefix is None or not separator.startswith(prefix):
                try:
                    contents = self._contents(handle)
                    after: bytes | None = lowest
                    while after is not None:
                        after = yield from _outside(contents, handle.size, after, prefixes, stop)
                except DataLossError as error:
                    place = f"data block at byte {handle.offset}"
                    if skip_damaged is None:
                        raise DataLossError(f"{place}: {error}") from error
                    skip_damaged(DataLossError(f"{place}: {error}"))
            lowest = separator

    def check_structure(self) -> None:
        """Read every block and account for every byte; raise DataLossError if a byte is damaged or unused.

        Stricter than reading, which does not need the metaindex block or the padding of the footer.
        """
        for number in range(len(self._handles)):
            self._block(number)
        self._decode(self._footer.metaindex, "metaindex block")
        end = 0
        for handle in (*self._handles, self._footer.metaindex, self._footer.index):
            if handle.offset < end:
                raise DataLossError(f"block at byte {handle.offset} overlaps the previous one, which ends at {end}")
            if handle.offset > end:
                raise DataLossError(f"bytes {end}:{handle.offset} belong to no block")
            end = handle.end
        if end != self._size - Footer.SIZE:
            raise DataLossError(f"bytes {end}:{self._size - Footer.SIZE} belong to no block")
        if self._read(self._size - Footer.SIZE, Footer.SIZE) != self._footer.encode():
            raise DataLossError(f"bytes {self._size - Footer.SIZE}:{self._size}: padding of the footer is not zero")

    def _check_handles(self) -> None:
        """Check that blocks do not overlap, which would let a small file expand without bound."""
        end = 0
        for handle in self._handles:
            if handle.offset < end:
                raise DataLossError(
                    f"data block at byte {handle.offset} overlaps the previous one, which ends at {end}"
                )
            end = handle.end
        if end > self._footer.index.offset:
            raise DataLossError(
                f"data blocks end at byte {end}, after the start of the index block at {self._footer.index.offset}"
            )

    def _block(self, number: int) -> _Block:
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        handle = self._handles[number]
        block = self._decode(handle, f"data block {number}")
        lowest = self._separators[number - 1] if number else None
        if block.keys and (
            block.keys[-1] > self._separators[number] or (lowest is not None and block.keys[0] <= lowest)
        ):
            raise DataLossError(f"data block {number} at byte {handle.offset} {_OUTSIDE}")
        with self._lock:
            if number not in self._cache and handle.size <= MAX_CACHED_BLOCK:
                self._cache[number] = block
                self._cached_bytes += handle.size
            while self._cached_bytes > CACHED_BYTES and len(self._cache) > 1:
                dropped, _ = self._cache.popitem(last=False)
                self._cached_bytes -= self._handles[dropped].size
        return block

    def _decode(self, handle: BlockHandle, what: str) -> _Block:
        place = f"{what}, bytes {handle.offset}:{handle.end}"
        try:
            return _Block(*decode_block(self._contents(handle), handle.size))
        except DataLossError as error:
            raise DataLossError(f"{place}: {error}") from error.__cause__

    def _contents(self, handle: BlockHandle) -> bytes | memoryview:
        if handle.end > self._size - Footer.SIZE:
            raise DataLossError(f"truncated block read: the file has only {self._size} bytes, including its footer")
        stored = self._read(handle.offset, handle.size + BLOCK_TRAILER.size)
        contents = stored[: handle.size]
        compression, checksum = BLOCK_TRAILER.unpack_from(stored, handle.size)
        computed = crc32c.mask(crc32c.value(memoryview(stored)[: handle.size + 1]))
        if computed != checksum:
            raise DataLossError(f"block checksum mismatch, stored {checksum:#010x}, computed {computed:#010x}")
        if compression == Compression.NONE:
            return contents
        if compression == Compression.SNAPPY:
            return _decompress(contents)
        raise DataLossError(f"bad block type {compression}: expected 0 (plain) or 1 (snappy)")


def _prefix_of(key: bytes, prefixes: Sequence[bytes]) -> bytes | None:
    """Return the one of the ascending `prefixes` that `key` starts with."""
    number = bisect.bisect_right(prefixes, key) - 1
    return prefixes[number] if number >= 0 and key.startswith(prefixes[number]) else None


def _outside(
    contents: bytes | memoryview, size: int, first: bytes, prefixes: Sequence[bytes], stop: bytes
) -> Generator[tuple[bytes, bytes], None, bytes | None]:
    """Yield the entries of a block from `first` on whose keys start with none of `prefixes`.

    Returns:
        Where to continue, after many keys with one prefix; None at the end.
    """
    prefix, met = b"", 0
    for key, value in block_entries(contents, size, first):
        if key >= stop:
            return None
        if not prefix or not key.startswith(prefix):
            prefix, met = _prefix_of(key, prefixes) or b"", 0
        if not prefix:
            yield key, value
            continue
        met += 1
        if met > _SEEK_AFTER:
            return prefix[:-1] + bytes((prefix[-1] + 1,))
    return None


def _decompress(contents: bytes | memoryview) -> bytes:
    """Decompress snappy, after checking the declared size against the compressed size."""
    try:
        expanded_size, _ = decode_varint(contents, 0, bits=32)
    except DataLossError as error:
        raise DataLossError(f"corrupted compressed block contents: {error}") from error
    if expanded_size > MAX_SNAPPY_EXPANSION * len(contents):
        raise DataLossError(
            f"corrupted compressed block contents: {len(contents)} bytes cannot expand to {expanded_size}"
        )
    try:
        return bytes(cramjam.snappy.decompress_raw(contents))
    except cramjam.DecompressionError as error:
        raise DataLossError(f"corrupted compressed block contents: {error}") from error
