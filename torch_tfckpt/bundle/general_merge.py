"""Merge the indexes of parts by decoding every entry: for unusual and damaged indexes.

`index_merge` does the same for usual ones, five times as fast and in a fraction of the memory.

Source: MergeBundles in tensorflow/core/util/tensor_bundle/tensor_bundle.cc.
"""

from collections.abc import Sequence

from torch_tfckpt.bundle.index import name_of
from torch_tfckpt.bundle.part_index import (
    PartIndex,
    duplicate,
    not_sliced,
    other_form,
    overlap,
    refuse_gaps,
    refuse_other_header,
    same_contents,
    shard_count,
)
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.boxes import overlap_of_boxes
from torch_tfckpt.format.tensor_bundle import BundleEntry, BundleHeader
from torch_tfckpt.format.tensor_slice import TensorSlice, element_count, encode_slice_key, slice_key_start
from torch_tfckpt.text import quoted


def merge_entries(
    parts: Sequence[PartIndex], place: str, *, equal_duplicates: bool, complete: bool = False
) -> tuple[BundleHeader, dict[bytes, bytes]]:
    """Return the header and the entries of the merged index. Arguments and errors as for `merge_indexes`."""
    merge = _GeneralMerge(place, equal_duplicates, complete)
    headers = [merge.add(part) for part in parts]
    for part, header in zip(parts, headers, strict=True):
        refuse_other_header(place, headers[0], part, header)
    return headers[0]._replace(num_shards=shard_count(parts)), merge.encoded()


class _GeneralMerge:
    """Entries of the merged checkpoint."""

    def __init__(self, place: str, equal_duplicates: bool, complete: bool) -> None:
        self._place, self._equal_duplicates, self._complete = place, equal_duplicates, complete
        self._entries: dict[bytes, BundleEntry] = {}  # those of partitioned tensors without their slices
        self._slices: dict[bytes, dict[TensorSlice, str]] = {}  # of partitioned tensors, with the names of their parts

    def add(self, part: PartIndex) -> BundleHeader:
        """Add all entries of a part, and return its header."""
        stored = part.entries(part.table())
        header = part.header(next(stored, None))
        entries = {key: part.checked(key, value) for key, value in stored}
        for key, entry in entries.items():
            for piece in entry.slices:
                _check_slice(part, key, entry, piece, entries)
        _refuse_stray_slices(part, entries)
        for key, entry in entries.items():
            self._join(part, key, entry)
        return header

    def _join(self, part: PartIndex, key: bytes, entry: BundleEntry) -> None:
        before = self._entries.get(key)
        if before is None:
            self._entries[key] = entry._replace(slices=())
            if entry.slices:
                self._slices[key] = dict.fromkeys(entry.slices, part.name)
            return
        joined = self._slices.get(key)
        if joined is None:
            if not self._equal_duplicates or not same_contents(before, entry):
                raise duplicate(self._place, key, part)
        elif not entry.slices:
            raise not_sliced(self._place, key, part)
        elif (before.dtype, before.shape) != (entry.dtype, entry.shape):
            raise other_form(self._place, key, part)
        else:
            for piece in entry.slices:
                joined.setdefault(piece, part.name)

    def encoded(self) -> dict[bytes, bytes]:
        """Return all entries, after checking that slices do not overlap."""
        encoded: dict[bytes, bytes] = {}
        for key, entry in self._entries.items():
            pieces = self._slices.get(key, {})
            boxes = [
                tuple([bound for extent in piece.resolve(entry.shape).extents for bound in (extent.start, extent.end)])
                for piece in pieces
            ]
            with error_context(f"{self._place}: tensor {quoted(name_of(key))}"):
                pair = overlap_of_boxes(entry.shape, boxes)
            if pair is not None:
                named = list(pieces.items())
                raise overlap(self._place, key, named[pair[0]], named[pair[1]])
            if self._complete and pieces:
                stored = sum(element_count(piece.shape_of(entry.shape)) for piece in pieces)
                refuse_gaps(self._place, key, entry.shape, stored, pieces.values())
            encoded[key] = entry._replace(slices=tuple(pieces)).encode()
        return encoded


def _check_slice(
    part: PartIndex, key: bytes, entry: BundleEntry, piece: TensorSlice, entries: dict[bytes, BundleEntry]
) -> None:
    """Raise DataLossError if a slice that a tensor lists has no entry, or one that does not fit."""
    try:
        shape = piece.shape_of(entry.shape)
    except InvalidArgumentError as error:
        raise part.damaged(error, key) from error
    found = entries.get(encode_slice_key(key, piece))
    if found is None:
        raise part.damaged(f"lists slice {piece}, but the index has no entry for it", key)
    if (found.dtype, found.shape, found.slices) != (entry.dtype, shape, ()):
        raise part.damaged(f"the entry of slice {piece} differs from the tensor in dtype or shape", key)


def _refuse_stray_slices(part: PartIndex, entries: dict[bytes, BundleEntry]) -> None:
    """Raise DataLossError if there is an entry for a slice that its tensor does not list."""
    listed = {encode_slice_key(key, piece) for key, entry in entries.items() for piece in entry.slices}
    for key in entries:
        if key.startswith(TensorSlice.KEY_MARK) and key not in listed:
            end = key.find(b"\x00\x01", 1)
            name = key[1:end].replace(b"\x00\xff", b"\x00").replace(b"\xff\x00", b"\xff")
            if end > 0 and name in entries and slice_key_start(name) == key[: end + 2]:
                raise part.damaged("the index has an entry for a slice that the tensor does not list", name)
