"""Lookups in a version 2 index: names, and where each tensor's bytes are stored.

Looking up one name reads one block of the table. Listing reads the whole table once and is cached.
"""

import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Final

from torch_tfckpt.errors import DAMAGED, DataLossError, InvalidArgumentError, NotFoundError, error_context, located
from torch_tfckpt.format.bulk_decoding import decode_entries
from torch_tfckpt.format.table import Table
from torch_tfckpt.format.tensor_bundle import BundleEntry, SplitEntry
from torch_tfckpt.format.tensor_slice import TensorSlice, encode_slice_key, slice_key_start
from torch_tfckpt.text import did_you_mean, escaped, quoted
from torch_tfckpt.transfer.collector import new_objects_only

# The tag byte of BundleEntryProto.slices: an entry that does not contain it has no slices and need not be parsed.
_SLICES_TAG: Final = b"\x3a"
_MANY: Final = 100  # number of entries decoded one by one before all are decoded together
_PER_BLOCK: Final = 1000  # lookups in an index, for each of its blocks, before it is listed
_SHARE: Final = 50  # and one entry of so many, so that using a few entries of a large index stays cheap
_AFTER_SLICES: Final = b"\x01"  # the keys of slices are smaller, and so are names that start with a null character

NamedEntry = tuple[str, BundleEntry]


def key_of(name: str) -> bytes:
    """Return a tensor's name as bytes; surrogate escapes represent bytes that are not UTF-8.

    Raise InvalidArgumentError if `name` is not a valid name.
    """
    if not isinstance(name, str):
        raise InvalidArgumentError(f"a tensor name must be a str, not {type(name).__name__}")
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{quoted(name)} is not a valid tensor name: {error.reason}") from error


def name_of(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


class BundleIndex:
    """The entries of one index.

    Args:
        table: The open table.
        path: The index file, for messages.
        prefix: The checkpoint, for messages.

    Thread safety: safe.
    """

    def __init__(self, table: Table, path: str, prefix: str) -> None:
        self._table, self._path, self._prefix = table, path, prefix
        self._lock = threading.Lock()
        self._listing: dict[str, bytes] | None = None
        self._decoded: dict[str, BundleEntry] | None = None  # in the usual form; set once many entries have been used
        self._uses = 0
        # So many lookups take longer than listing everything, after which a lookup takes a fraction of the time.
        self._lookups, self._list_after = 0, float(_MANY + _PER_BLOCK * table.block_count)
        # Entries of partitioned tensors may list thousands of slices, so they are cached.
        self._partitioned: dict[str, BundleEntry] = {}
        self._last: NamedEntry | None = None  # callers ask for shape, dtype and values of one tensor consecutively

    def names(self) -> list[str]:
        """Return all names sorted by their bytes; raise DataLossError if the index is damaged."""
        return list(self._list())

    def undamaged_names(self) -> tuple[list[str], list[str]]:
        """Return the names of the tensors in readable blocks, and the damage in the other blocks."""
        try:
            return self.names(), []
        except DataLossError:
            problems: list[str] = []
        listing = self._scan(lambda error: problems.append(f"{self._path}: {error}"))
        # The key of a slice whose tensor is in a damaged block would look like a name.
        return [name for name in listing if not key_of(name).startswith(TensorSlice.KEY_MARK)], problems

    def __contains__(self, name: str) -> bool:
        if self._listing is not None and name in self._listing:
            return bool(name)
        try:
            return bool(name) and self._find(key_of(name)) is not None
        except InvalidArgumentError:
            return False

    def entry(self, name: str) -> BundleEntry:
        """Return the entry of `name`.

        Raises:
            NotFoundError: the index has no such entry.
            DataLossError: the index, or this entry, is damaged.
        """
        last = self._last
        if last is not None and last[0] == name:
            return last[1]
        entry = self._partitioned.get(name) or self._decoded_in_bulk(name)
        if entry is None:
            value = self._listing.get(name) if self._listing is not None else None
            entry = self._decode(value or self._look_up(name), name)
            if entry.slices:
                self._partitioned[name] = entry
        self._last = name, entry
        return entry

    def described(self, name: str) -> BundleEntry:
        """Return the entry of `name`, possibly without its slices. Raises like `entry`.

        Cost: the same for any number of slices.
        """
        last = self._last
        if last is not None and last[0] == name:
            return last[1]
        entry = self._decoded_in_bulk(name)
        if entry is not None:
            return entry
        value = self._listing.get(name) if self._listing is not None else None
        value = value or self._look_up(name)
        if name in self._partitioned or _SLICES_TAG not in value:
            return self.entry(name)
        try:
            split = SplitEntry.decode(value)
            # An entry with both bytes and slices is unusual, and may be damaged.
            return BundleEntry.decode(split.described if split.rest.startswith(_SLICES_TAG) else value)
        except DataLossError as error:
            raise located(error, f"{self._path}: tensor {quoted(name)}", DAMAGED) from error.__cause__

    def described_all(self, names: Sequence[str]) -> list[BundleEntry | None]:
        """Return `described` of each name; None for names that the index does not have. Raises DataLossError, too.

        Cost: for many names, a fraction of the time of so many calls.
        """
        if self._listing is None and len(names) > self._list_after:
            with suppress(DataLossError):  # another part of the index is damaged
                self._list()
        self._count_use(len(names))
        decoded = self._decoded or {}
        return [decoded.get(name) or (self.described(name) if name in self else None) for name in names]

    def _decoded_in_bulk(self, name: str) -> BundleEntry | None:
        """Return the entry if all entries have been decoded together; None for partitioned and unusual ones, too."""
        if self._decoded is None:
            self._count_use()
        return None if self._decoded is None else self._decoded.get(name)

    def _count_use(self, count: int = 1) -> None:
        """Decode all entries at once if many of them are used: together they take a fraction of the time."""
        self._uses += count
        listing = self._listing
        if self._decoded is not None or self._uses < _MANY or listing is None or self._uses < len(listing) // _SHARE:
            return
        with new_objects_only(len(listing)):
            decoded = zip(listing, decode_entries(list(listing.values())), strict=True)
            self._decoded = {name: entry for name, entry in decoded if entry is not None}

    def _look_up(self, name: str) -> bytes:
        with error_context(self._prefix):
            key = key_of(name)
        value = self._find(key) if key else None
        if value is None:
            raise no_such_tensor(self._prefix, name, self.names(), f"Key {escaped(name)} not found in checkpoint")
        return value

    def slice_entry(self, name: str, part: TensorSlice) -> BundleEntry:
        """Return the entry of a slice that `name` lists; raise DataLossError if it is missing."""
        value = self._find(encode_slice_key(key_of(name), part))
        if value is None:
            raise DataLossError(
                f"{self._path}: tensor {quoted(name)} lists slice {part}, but the index has no entry for it. {DAMAGED}"
            )
        return self._decode(value, name)

    def _find(self, key: bytes) -> bytes | None:
        if self._listing is not None and not key.startswith(TensorSlice.KEY_MARK):
            return self._listing.get(name_of(key))
        self._lookups += 1
        if self._listing is None and self._lookups > self._list_after:
            self._list_after = math.inf
            with suppress(DataLossError):  # another part of the index is damaged
                self._list()
        with error_context(self._path, DAMAGED):
            return self._table.get(key)

    def _decode(self, value: bytes, name: str) -> BundleEntry:
        try:
            return BundleEntry.decode(value)
        except DataLossError as error:
            raise located(error, f"{self._path}: tensor {quoted(name)}", DAMAGED) from error.__cause__

    def _list(self) -> dict[str, bytes]:
        """Return name -> stored entry, in order, without the keys of slices."""
        with self._lock:
            if self._listing is None:
                with error_context(self._path, DAMAGED):
                    self._listing = self._scan()
            return self._listing

    def _scan(self, skip_damaged: Callable[[DataLossError], object] | None = None) -> dict[str, bytes]:
        plain = {name_of(key): value for key, value in self._table.items(_AFTER_SLICES, skip_damaged)}
        # The keys of slices are passed over. Any other key that starts like them is the name of a tensor.
        sliced = sorted(slice_key_start(key_of(name)) for name, value in plain.items() if _SLICES_TAG in value)
        marked = {key: value for key, value in self._table.outside(sliced, _AFTER_SLICES, skip_damaged) if key}
        if not marked:
            return plain
        listing = {name_of(key): value for key, value in marked.items()}
        for key, value in marked.items():
            if _SLICES_TAG in value:
                try:
                    parts = BundleEntry.decode(value).slices
                except DataLossError:
                    continue  # raised again, with its location, when this tensor is requested
                for part in parts:
                    listing.pop(name_of(encode_slice_key(key, part)), None)
        return {**listing, **plain}


def no_such_tensor(path: str, name: str, known: Collection[str], problem: str) -> NotFoundError:
    """Return the error for a name that is not among the `known` ones; `problem` is TensorFlow's message."""
    hint = did_you_mean(name, known)
    return NotFoundError(
        f"{path}: no tensor {quoted(name)}: {problem}. "
        f"{hint}{' ' if hint else ''}`tfckpt ls {path}` lists all {len(known)}."
    )


def place_in_files(piece: NamedEntry) -> tuple[int, int]:
    """Return the number of the data file and the offset in it, to sort by."""
    return piece[1].shard, piece[1].offset


def overlapping(pieces: Iterable[NamedEntry]) -> Iterator[tuple[NamedEntry, NamedEntry]]:
    """Yield pairs of adjacent entries of a file that share bytes; at least one pair if any two overlap."""
    ordered = sorted((piece for piece in pieces if piece[1].size), key=place_in_files)
    for one, other in pairwise(ordered):
        if one[1].shard == other[1].shard and one[1].end > other[1].offset:
            yield one, other
