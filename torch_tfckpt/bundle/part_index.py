"""One part of a checkpoint that is to be merged: its index, checked entry by entry.

Parts are written by other processes, and may be damaged: an entry's size must match its type and shape, and its data
file must be one of the part's. Most entries are checked by comparing bytes with what is expected for their type and
shape, which is computed once, because a merge handles millions of entries.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from torch_tfckpt.bundle.index import name_of
from torch_tfckpt.errors import DAMAGED, CheckpointError, DataLossError, InvalidArgumentError, located
from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.table import Table
from torch_tfckpt.format.tensor_bundle import HEADER_KEY, BundleEntry, BundleHeader
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, element_count
from torch_tfckpt.text import listed, quoted
from torch_tfckpt.values import fixed_size

_CHECKSUM_BYTES: Final = 5  # tag and value
_LISTED: Final = 8  # parts that a message names


class PartIndex(NamedTuple):
    """The index of one part, and the data files that its entries refer to.

    Attributes:
        name: Which part it is, for messages: "rank 3", or the prefix of a source.
        contents: The bytes of its index file.
        shards: Shard number in the part's entries -> in the merged checkpoint. The numbers are equal if the part comes
            from `BundlePlan.part_index`.
    """

    name: str
    contents: bytes
    shards: Mapping[int, int]

    def table(self) -> Table:
        """Open the index; raise DataLossError, naming the part, if it is damaged."""
        try:
            return Table.of(self.contents)
        except DataLossError as error:
            raise self.damaged(error) from error

    def entries(self, table: Table, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries from `start` on; raise DataLossError, naming the part, if they are damaged."""
        try:
            yield from table.stream(start)
        except DataLossError as error:
            raise self.damaged(error) from error

    def damaged(self, problem: object, key: bytes | None = None) -> DataLossError:
        """Return the error for damage in the part, or in one of its entries."""
        place = self.name if key is None else f"{self.name}: tensor {quoted(name_of(key))}"
        return DataLossError(f"{place}: {str(problem).rstrip('.')}. {DAMAGED}")

    def shard(self, number: int, key: bytes) -> int:
        """Return the number in the merged checkpoint of data file `number`."""
        try:
            return self.shards[number]
        except KeyError:
            raise self.damaged(f"the entry refers to shard {number}, which the part does not have", key) from None

    def checked(self, key: bytes, value: bytes) -> BundleEntry:
        """Decode an entry, check its size, and renumber its shard."""
        try:
            entry = BundleEntry.decode(value)
        except DataLossError as error:
            raise self.damaged(error, key) from error
        if not entry.slices:
            fixed = fixed_size(entry)
            if entry.size != fixed if fixed is not None else entry.size < 0:
                raise self.damaged(f"Invalid size in bundle entry: stored {entry.size}; expected {fixed}", key)
        return entry._replace(shard=self.shard(entry.shard, key))

    def header(self, value: tuple[bytes, bytes] | None) -> BundleHeader:
        """Decode the first entry of the table."""
        if value is None or value[0] != HEADER_KEY:
            raise self.damaged("the table has no header entry, so it is not a checkpoint index")
        try:
            return BundleHeader.decode(value[1])
        except CheckpointError as error:
            raise located(error, self.name) from error


class Form(NamedTuple):
    """What is the same in the entries of all tensors of one type and shape."""

    described: bytes  # dtype and shape, as entries start
    dtype: int
    shape: Shape
    size: bytes | None  # the field with the size; None if the size is not the same for all

    @classmethod
    def of(cls, dtype: int, shape: Shape) -> "Form":
        entry = BundleEntry(dtype, shape)
        size = fixed_size(entry)
        return cls(entry.encode(), dtype, shape, None if size is None else size_field(size))

    def fits(self, tail: bytes) -> bool:
        """Return whether `tail`, the entry after its shard, is surely valid; False if it needs a closer look."""
        if self.size is None or tail[-_CHECKSUM_BYTES : -_CHECKSUM_BYTES + 1] != b"\x35":
            return False
        if not tail.endswith(self.size, 0, -_CHECKSUM_BYTES):
            return False
        end = len(tail) - _CHECKSUM_BYTES - len(self.size)  # of the offset: a tag, and a varint below 2**56
        if not end:
            return True
        return (
            tail[0] == 0x20 and 2 <= end <= 9 and tail[end - 1] < 0x80 and (end == 2 or min(tail[1 : end - 1]) >= 0x80)
        )


def size_field(size: int) -> bytes:
    """Return the field of an entry that contains its size."""
    return b"\x28" + encode_varint(size) if size else b""


def shard_field(shard: int) -> bytes:
    """Return the field of an entry that contains its shard number."""
    return b"\x18" + encode_varint(shard) if shard else b""


def refuse_other_header(place: str, first: BundleHeader, part: PartIndex, header: BundleHeader) -> None:
    """Raise InvalidArgumentError if a part's header cannot be merged with the first part's."""
    if header.big_endian != first.big_endian:
        raise InvalidArgumentError(f"{place}: Merging bundles with conflicting endianness: {part.name}")
    if header[2:] != first[2:]:
        raise InvalidArgumentError(f"{place}: Merging bundles with different format versions: {part.name}")


def shard_count(parts: Sequence[PartIndex]) -> int:
    """Return the number of data files of the merged checkpoint."""
    return 1 + max((new for part in parts for new in part.shards.values()), default=0)


def duplicate(place: str, key: bytes, part: PartIndex) -> InvalidArgumentError:
    """Return the error for a tensor, or slice, that an earlier part has as well."""
    return InvalidArgumentError(
        f"{place}: Duplicate tensor keyed by {quoted(name_of(key))} encountered, when merging prefix: {part.name}"
    )


def not_sliced(place: str, key: bytes, part: PartIndex) -> InvalidArgumentError:
    """Return the error for a whole tensor of which an earlier part has slices."""
    return InvalidArgumentError(
        f"{place}: Duplicate tensor keyed by {quoted(name_of(key))}; attempting to merge in a non-slice bundle entry "
        f"from {part.name}"
    )


def other_form(place: str, key: bytes, part: PartIndex) -> InvalidArgumentError:
    """Return the error for slices of a tensor of another type or shape than in an earlier part."""
    return InvalidArgumentError(
        f"{place}: the slices of {quoted(name_of(key))} in {part.name} have a different dtype or shape"
    )


def overlap(
    place: str, key: bytes, one: tuple[TensorSlice, str], other: tuple[TensorSlice, str]
) -> InvalidArgumentError:
    """Return the error for two slices that share elements, each with the name of its part."""
    return InvalidArgumentError(
        f"{place}: tensor {quoted(name_of(key))}: Overlapping slices: existing slice = {one[0]} in {one[1]}, new slice "
        f"= {other[0]} in {other[1]}"
    )


def refuse_gaps(place: str, key: bytes, shape: Shape, stored: int, holders: Iterable[str]) -> None:
    """Raise InvalidArgumentError if the slices of a tensor, which do not overlap, do not contain all its elements.

    Args:
        stored: Number of elements in all slices.
        holders: The names of the parts with slices of it.
    """
    if stored < element_count(shape):
        named = listed(list(dict.fromkeys(holders)), _LISTED, str)
        raise InvalidArgumentError(
            f"{place}: tensor {quoted(name_of(key))}: only {stored} of its {element_count(shape)} elements were saved, "
            f"by {named}. All ranks over which a tensor is spread must save it, with the same placements"
        )


def same_contents(one: BundleEntry, other: BundleEntry) -> bool:
    """Return whether both entries are of the same values, as far as the checksum shows."""
    return (one.dtype, one.shape, one.size, one.checksum, one.slices) == (
        other.dtype,
        other.shape,
        other.size,
        other.checksum,
        other.slices,
    )
