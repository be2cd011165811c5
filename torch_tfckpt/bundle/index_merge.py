"""Merge the indexes of the parts of a checkpoint, which several processes wrote, into one index.

    rank 0   w: rows 0:2 at shard 0                     w: [rows 0:2, rows 2:4]
    rank 1   w: rows 2:4 at shard 1, b at shard 1  ->   w: rows 0:2 at shard 0, rows 2:4 at shard 1; b at shard 1

The indexes are sorted by key, so they are read side by side, one tensor at a time. The slices of a tensor are listed as
bytes, and are joined as bytes. Nothing is decoded that can be compared with what is expected instead.

In each part, every slice that a tensor lists must be the next entry among the slices. This holds for all indexes that
this package and TensorFlow write, except if a tensor's name starts with a null character; such indexes, and damaged
ones, are merged by `general_merge`, which decodes everything, and which finds the cause of the damage.

Cost: about 7 microseconds per slice; memory for the merged index, and for what it says of each tensor.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import prod
from operator import attrgetter, itemgetter
from typing import Final

from torch_tfckpt.bundle.general_merge import merge_entries
from torch_tfckpt.bundle.index import name_of
from torch_tfckpt.bundle.part_index import (
    Form,
    PartIndex,
    duplicate,
    overlap,
    refuse_gaps,
    refuse_other_header,
    same_contents,
    shard_count,
    shard_field,
)
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, error_context
from torch_tfckpt.format.boxes import Box, overlap_of_boxes
from torch_tfckpt.format.coding import decode_varint, encode_varint
from torch_tfckpt.format.table import Table, TableBuilder
from torch_tfckpt.format.tensor_bundle import HEADER_KEY, BundleEntry, BundleHeader, SplitEntry, encode_index
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, slice_key_end, slice_key_start
from torch_tfckpt.text import quoted

_Entry = tuple[bytes, bytes]
_key: Final = itemgetter(0)
_form_of: Final = lru_cache(maxsize=4096)(Form.of)
_key_end: Final = attrgetter("key_end")
_SHARD: Final = b"\x18"  # tags of fields: number << 3 | wire type
_SLICE: Final = b"\x3a"
_NAMES: Final = b"\x01"  # the keys of slices sort before it
_CACHED: Final = 100_000  # limit on remembered slices and forms: a few bytes in a file each


class MergedIndex:
    """The merged index, whose header can still get another number of shards."""

    def __init__(self, header: BundleHeader, index: bytes) -> None:
        self._header, self._index = header, index

    def encode(self, num_shards: int) -> bytes:
        """Return the index file for `num_shards` data files in its names."""
        if num_shards != self._header.num_shards:
            self._header = self._header._replace(num_shards=num_shards)
            entries = Table.of(self._index).stream()
            next(entries)
            self._index = _encode(self._header, entries)
        return self._index

    def names(self) -> set[bytes]:
        """Return the names of all tensors, as keys."""
        return {key for key, _ in Table.of(self._index).items(start=_NAMES)}


def merge_indexes(
    parts: Sequence[PartIndex], place: str, *, equal_duplicates: bool = False, complete: bool = False
) -> MergedIndex:
    """Merge the indexes of `parts`, in order.

    A partitioned tensor may have slices in several parts; its list of slices is joined in their order.

    Args:
        place: What is done, for messages: "merge into model.ckpt-7".
        equal_duplicates: Allow a tensor or slice in several parts if type, shape, size and checksum are equal; the
            first one is kept.
        complete: Refuse tensors of which no part has some elements.

    Raises:
        InvalidArgumentError: no part is given; a tensor or slice is in two of them; slices overlap; with `complete`,
            slices are missing; their endianness or format versions differ.
        DataLossError: a part is damaged; the message contains its name.
        UnimplementedError: slices are interleaved too finely to check for overlaps.
    """
    if not parts:
        raise InvalidArgumentError(f"{place}: there is nothing to merge. Pass at least one part")
    try:
        return _Merge(parts, place, equal_duplicates, complete).run()
    except (_NeedsGeneralMergeError, IndexError):  # an entry that ends in the middle of a field
        header, entries = merge_entries(parts, place, equal_duplicates=equal_duplicates, complete=complete)
        return MergedIndex(header, encode_index(header, entries))


def _encode(header: BundleHeader, entries: Iterator[_Entry]) -> bytes:
    blocks: list[bytes] = []
    table = TableBuilder(blocks.append)
    table.add(HEADER_KEY, header.encode())
    for key, value in entries:
        table.add(key, value)
    table.finish()
    return b"".join(blocks)


class _NeedsGeneralMergeError(Exception):
    """An index does not have the usual order, or is damaged."""


class _Slice:
    """What the slice in a tensor's list tells about the slice's own entry."""

    __slots__ = ("box", "form", "key_end", "message")

    def __init__(self, message: bytes, dtype: int, shape: Shape) -> None:
        try:
            part = TensorSlice.decode(message)
            extents = part.resolve(shape).extents
        except (DataLossError, InvalidArgumentError) as error:
            raise _NeedsGeneralMergeError from error
        self.message = message
        self.key_end = slice_key_end(part)
        self.box: Box = tuple([bound for start, length in extents for bound in (start, start + length)])
        self.form = _form_of(dtype, tuple([length for _, length in extents]))


_Stored = tuple[bytes, bytes, int, _Slice]
"""Key and value of a slice's entry, the value with its merged shard number; the part's number; the slice."""


class _Merge:
    """One merge of `parts`."""

    def __init__(self, parts: Sequence[PartIndex], place: str, equal_duplicates: bool, complete: bool) -> None:
        self._parts, self._place, self._equal_duplicates = parts, place, equal_duplicates
        self._complete = complete
        self._forms: dict[bytes, tuple[Form, dict[bytes, list[_Slice]]]] = {}  # by dtype and shape as encoded
        self._known = 0  # number of slices in `_forms`
        self._unchanged = [all(number == new for number, new in part.shards.items()) for part in parts]
        self._fields = [{number: shard_field(new) for number, new in part.shards.items()} for part in parts]
        # The stored field, if a part has a single data file: its entries have this one, and need not be parsed.
        self._usual = [shard_field(*part.shards) if len(part.shards) == 1 else None for part in parts]
        self._slices: list[Iterator[_Entry]] = []  # of each part, all entries in order
        self._ahead: list[_Entry | None] = []  # of each part, the next of these entries
        self._names: list[Iterator[_Entry]] = []  # of each part, the entries under names
        blocks: list[bytes] = []
        self._blocks, self._table = blocks, TableBuilder(blocks.append)

    def run(self) -> MergedIndex:
        """Merge all parts."""
        header = self._open()
        self._table.add(HEADER_KEY, header.encode())
        sliced = sum(ahead is not None and ahead[0] < _NAMES for ahead in self._ahead)
        named: list[_Entry] = []  # the entries of slices sort before these
        for name, holders in self._tensors():
            value = self._merge_tensor(name, holders)
            if sliced:
                named.append((name, value))
            else:
                self._table.add(name, value)
        if any(ahead is not None and ahead[0] < _NAMES for ahead in self._ahead):
            raise _NeedsGeneralMergeError
        for name, value in named:
            self._table.add(name, value)
        self._table.finish()
        return MergedIndex(header, b"".join(self._blocks))

    def _open(self) -> BundleHeader:
        """Open all parts, and return the header of the merged index."""
        headers: list[BundleHeader] = []
        for part in self._parts:
            table = part.table()
            entries = part.entries(table)
            headers.append(part.header(next(entries, None)))
            refuse_other_header(self._place, headers[0], part, headers[-1])
            self._slices.append(entries)
            self._ahead.append(next(entries, None))
            self._names.append(part.entries(table, _NAMES))
        return headers[0]._replace(num_shards=shard_count(self._parts))

    def _tensors(self) -> Iterator[tuple[bytes, list[tuple[int, bytes]]]]:
        """Yield the names of all parts in order, each with the parts that have it, and their values."""
        heap: list[bytes] = []
        waiting: dict[bytes, list[tuple[int, bytes]]] = {}  # for the names in `heap`
        advance: Iterable[int] = range(len(self._parts))
        while True:
            for number in advance:
                entry = next(self._names[number], None)
                if entry is not None:
                    name, value = entry
                    if name in waiting:
                        waiting[name].append((number, value))
                    else:
                        waiting[name] = [(number, value)]
                        heapq.heappush(heap, name)
            if not heap:
                return
            name = heapq.heappop(heap)
            holders = waiting.pop(name)
            if len(holders) > 1:
                holders.sort()
            yield name, holders
            advance = [number for number, _ in holders]

    def _merge_tensor(self, name: bytes, holders: list[tuple[int, bytes]]) -> bytes:
        """Add the entries of a tensor's slices, and return the entry under its name."""
        number, value = holders[0]
        try:
            described, shard, rest = SplitEntry.decode(value)
        except DataLossError as error:
            raise self._parts[number].damaged(error, name) from error
        form, known = self._form(described)
        if rest[:1] != _SLICE:
            value = self._renumbered(number, name, value, form)
            for number, other in holders[1:]:
                self._refuse_different(number, name, value, self._parts[number].checked(name, other))
            return value
        shard = self._parts[number].shard(shard, name)
        start = slice_key_start(name)
        stored: list[_Stored] = []
        lists: list[bytes] = []
        for number, value in holders:
            rest = self._list_of(number, name, value, described)
            lists.append(rest)
            pieces = known.get(rest)
            if pieces is None:
                pieces = known[rest] = [_Slice(message, form.dtype, form.shape) for message in _messages(rest)]
                pieces.sort(key=_key_end)
                self._known += len(pieces)
            entries, ahead = self._slices[number], self._ahead[number]
            for piece in pieces:
                if ahead is None or ahead[0] != start + piece.key_end:
                    raise _NeedsGeneralMergeError
                key, value = ahead
                stored.append((key, self._renumbered(number, key, value, piece.form), number, piece))
                ahead = next(entries, None)
            self._ahead[number] = ahead
        stored.sort(key=_key)
        self._add_slices(name, form.shape, stored, lists)
        return b"".join((described, shard_field(shard), *lists))

    def _form(self, described: bytes) -> tuple[Form, dict[bytes, list[_Slice]]]:
        """Return the form with this type and shape, and the lists of slices of such tensors met so far."""
        found = self._forms.get(described)
        if found is None:
            if self._known + len(self._forms) > _CACHED:
                self._forms.clear()
                self._known = 0
            try:
                entry = BundleEntry.decode(described)
            except DataLossError as error:
                raise _NeedsGeneralMergeError from error
            found = self._forms[described] = Form.of(entry.dtype, entry.shape), {}
            if found[0].described != described:
                raise _NeedsGeneralMergeError
        return found

    def _list_of(self, number: int, name: bytes, value: bytes, described: bytes) -> bytes:
        """Return the encoded list of slices in the entry of a tensor that starts with `described`."""
        usual = self._usual[number]
        if usual is not None and value.startswith(described + usual + _SLICE):
            return value[len(described) + len(usual) :]
        shard, rest = _after(described, value)
        if rest[:1] != _SLICE or shard not in self._fields[number]:
            raise _NeedsGeneralMergeError
        return rest

    def _renumbered(self, number: int, key: bytes, value: bytes, form: Form) -> bytes:
        """Return an entry with bytes, which must have this form, with its shard number in the merged checkpoint."""
        described, usual = form.described, self._usual[number]
        if usual is not None and self._unchanged[number] and value.startswith(described + usual):
            tail = value[len(described) + len(usual) :]
            if form.fits(tail):
                return value
        shard, tail = _after(described, value)
        field = self._fields[number].get(shard)
        if field is None or not form.fits(tail):
            entry = self._parts[number].checked(key, value)
            if entry.slices or (entry.dtype, entry.shape) != (form.dtype, form.shape):
                raise _NeedsGeneralMergeError
            return entry.encode()
        return value if self._unchanged[number] else b"".join((described, field, tail))

    def _add_slices(self, name: bytes, shape: Shape, stored: list[_Stored], lists: list[bytes]) -> None:
        """Add the entries of all slices of a tensor to the table, after checking that they do not overlap.

        Args:
            lists: The encoded lists of slices of all parts, from which duplicates are removed.
        """
        kept = stored
        if len({key for key, *_ in stored}) < len(stored):
            kept = []
            for key, value, number, piece in stored:
                if kept and kept[-1][0] == key:
                    self._refuse_different(number, key, kept[-1][1], BundleEntry.decode(value))
                else:
                    kept.append((key, value, number, piece))
            unique = dict.fromkeys(message for rest in lists for message in _messages(rest))
            lists[:] = [_SLICE + encode_varint(len(message)) + message for message in unique]
        with error_context(f"{self._place}: tensor {quoted(name_of(name))}"):
            pair = overlap_of_boxes(shape, [piece.box for _, _, _, piece in kept])
        if pair is not None:
            one, other = ((TensorSlice.decode(kept[at][3].message), self._parts[kept[at][2]].name) for at in pair)
            raise overlap(self._place, name, one, other)
        if self._complete:
            stored_elements = sum(prod(piece.form.shape) for _, _, _, piece in kept)
            refuse_gaps(self._place, name, shape, stored_elements, (self._parts[of].name for _, _, of, _ in kept))
        add = self._table.add
        for key, value, _, _ in kept:
            add(key, value)

    def _refuse_different(self, number: int, key: bytes, before: bytes, entry: BundleEntry) -> None:
        """Raise InvalidArgumentError unless an equal entry in another part is allowed."""
        if not self._equal_duplicates or not same_contents(BundleEntry.decode(before), entry):
            raise duplicate(self._place, key, self._parts[number])


def _after(described: bytes, value: bytes) -> tuple[int, bytes]:
    """Return the shard number of an entry that must start with `described`, and what follows it."""
    if not value.startswith(described):
        raise _NeedsGeneralMergeError
    at, shard = len(described), 0
    if value[at : at + 1] == _SHARD:
        shard, at = _number(value, at + 1)
    return shard, value[at:]


def _number(value: bytes, at: int) -> tuple[int, int]:
    """Return the varint at `at`, which is usually one byte, and the offset after it."""
    first = value[at]
    if first < 0x80:
        return first, at + 1
    try:
        return decode_varint(value, at)
    except DataLossError as error:
        raise _NeedsGeneralMergeError from error


def _messages(rest: bytes) -> Iterator[bytes]:
    """Yield the slices that an entry lists, as encoded; `rest` is the entry after its shard."""
    at, end = 0, len(rest)
    while at < end:
        if rest[at] != _SLICE[0]:
            raise _NeedsGeneralMergeError
        size, at = _number(rest, at + 1)
        if size > end - at:
            raise _NeedsGeneralMergeError
        yield rest[at : at + size]
        at += size
