"""One file of a version 1 checkpoint: opening, listing tensors, verification.

`format.saved_tensor_slices` decodes it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from torch_tfckpt.bundle.check import Damage
from torch_tfckpt.errors import DAMAGED, CheckpointError, DataLossError, error_context, located
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.saved_tensor_slices import META_KEY, VALUE_FIELDS, SavedSliceMeta, decode_meta, decode_slice
from torch_tfckpt.format.table import BLOCK_TRAILER, Footer, Table
from torch_tfckpt.format.tensor_slice import TensorSlice, element_count, encode_slice_key
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.text import printable, quoted

_CHECKSUM_SIZE: Final = 4  # the end of a BLOCK_TRAILER, which the checksum itself does not cover


class Record(NamedTuple):
    """One slice that a file should contain. Sorts like the table's keys."""

    key: bytes
    name: str  # of the tensor
    part: TensorSlice
    dtype: int
    shape: tuple[int, ...]  # of the full tensor


def record_key(name: str, part: TensorSlice) -> bytes:
    """Return the key under which a slice of tensor `name` is stored."""
    return encode_slice_key(name.encode(), part)


class Shard:
    """One open file.

    Raises:
        DataLossError: it is not a version 1 file, or its metadata is damaged.
        InvalidArgumentError: it requires a different reader version.

    Thread safety: safe.
    """

    def __init__(self, file: ReadableFile) -> None:
        self.file = file
        place = printable(file.path)
        with error_context(f"{place}: Unable to open table file {place}", DAMAGED):
            self._table = Table(file.read, file.size)
            meta = self._table.get(META_KEY)
        missing = f"{place}: Failed to find the saved tensor slices at the beginning of the checkpoint file: {place}"
        if meta is None:
            raise DataLossError(
                f"{missing}: the table has no entry for these slices, so the file is not a version 1 checkpoint. Use a "
                f"different path"
            )
        with error_context(missing, DAMAGED):
            self.tensors: list[SavedSliceMeta] = decode_meta(meta)

    def damaged(self, name: str, error: CheckpointError) -> CheckpointError:
        """Return `error` with the file and tensor `name` added to its message."""
        return located(error, f"{printable(self.file.path)}: tensor {quoted(name)}", DAMAGED)

    def record(self, name: str, part: TensorSlice) -> bytes:
        """Return the stored record of one slice; raise DataLossError if it is damaged or missing."""
        try:
            value = self._table.get(record_key(name, part))
        except CheckpointError as error:
            raise self.damaged(name, error) from error.__cause__
        if value is None:
            raise self.damaged(name, _absent(part))
        return value

    def check(self, records: Sequence[Record], progress: Callable[[int], object] | None = None) -> Iterator[Damage]:
        """Yield all damage in the `records` of this file, and in the table that contains them.

        Args:
            progress: Called with the number of bytes read since the last call.

        Cost: every byte is read twice, once for its record and once for the structure of the table.
        """
        watched = _Watched(self.file, progress)
        try:
            # Use a separate table: the cache of `self._table` has blocks read earlier, which may have changed since.
            table = Table(watched.read, self.file.size)
        except (CheckpointError, OSError) as error:
            names = dict.fromkeys(record.name for record in records)
            yield from (watched.damage(name, error) for name in ("", *names))
            return
        sound = True
        for record in sorted(records, key=lambda record: record.key):
            try:
                _check(table.get(record.key), record)
            except (CheckpointError, OSError) as error:
                sound = False
                yield watched.damage(record.name, error)
        if sound:
            try:
                table.check_structure()
            except (CheckpointError, OSError) as error:
                yield watched.damage("", error)


def _absent(part: TensorSlice) -> DataLossError:
    return DataLossError(f"the metadata lists slice {part}, but the file has no record of it")


def _check(value: bytes | None, record: Record) -> None:
    """Raise DataLossError if `value` is not the stored value of `record`."""
    if value is None:
        raise _absent(record.part)
    if record.dtype not in VALUE_FIELDS:
        return  # values of this type cannot be decoded; the block of the record is undamaged
    count = element_count(record.part.shape_of(record.shape))
    found = decode_slice(value, record.dtype, count).name
    # Reading relies on the key and ignores this name, as in TensorFlow. But no writer stores a different name.
    if found and found != record.name:
        raise DataLossError(f"the record of slice {record.part} belongs to tensor {quoted(found)}")


class _Watched:
    """Reads a file for a table, and keeps the bytes read last: the block that an error refers to."""

    def __init__(self, file: ReadableFile, progress: Callable[[int], object] | None) -> None:
        self._file, self._progress = file, progress
        self._seen: set[int] = set()  # offsets
        self._start, self._end, self._data = 0, file.size, b""

    def read(self, offset: int, size: int) -> bytes:
        self._start, self._end, self._data = offset, offset + size, b""
        self._data = self._file.read(offset, size)
        if self._progress is not None and offset not in self._seen:
            self._progress(size)
        self._seen.add(offset)
        return self._data

    def damage(self, name: str, error: CheckpointError | OSError) -> Damage:
        """Return `error` as Damage to the bytes read last, with checksums if they are a corrupt block."""
        stored = computed = None
        is_block = len(self._data) >= BLOCK_TRAILER.size and self._end <= self._file.size - Footer.SIZE
        if is_block:
            _, checksum = BLOCK_TRAILER.unpack_from(self._data, len(self._data) - BLOCK_TRAILER.size)
            actual = crc32c.mask(crc32c.value(memoryview(self._data)[:-_CHECKSUM_SIZE]))
            if actual != checksum:
                stored, computed = checksum, actual
        return Damage(name, self._file.path, self._start, self._end, str(error), stored, computed)
