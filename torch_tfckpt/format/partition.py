"""Partitioned tensors: find the parts of stored slices that make up a requested slice.

Version 1 and version 2 files represent partitioned tensors the same way: a full shape, and a list of boxes in it. This
module computes the geometry only; it reads no bytes.

Source: tensorflow/core/util/tensor_slice_set.cc, BundleReader::GetSliceValue.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from torch_tfckpt.errors import DataLossError, InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, element_count, find_overlap
from torch_tfckpt.text import escaped, quoted


class Part(NamedTuple):
    """One copy operation, from a stored slice into the requested one."""

    number: int  # index of the stored slice
    source: TensorSlice  # the elements to copy, relative to the stored slice
    target: TensorSlice  # the destination, relative to the requested slice


class Partition:
    """The stored slices of one tensor; an unpartitioned tensor has a single slice.

    Raises:
        DataLossError: a slice exceeds `shape`, or two slices overlap.
        UnimplementedError: the slices are interleaved too finely to check for overlaps.

    Cost: about n log n for n slices; a lookup is one numpy pass over them.
    """

    def __init__(self, name: str, shape: Shape, stored: Sequence[TensorSlice]) -> None:
        self.name, self.shape, self.stored = name, shape, tuple(stored)
        try:
            overlap = find_overlap(shape, self.stored)
            self._resolved = [part.resolve(shape) for part in self.stored]
        except (InvalidArgumentError, UnimplementedError) as error:
            kind = DataLossError if isinstance(error, InvalidArgumentError) else UnimplementedError
            raise kind(f"tensor {quoted(name)}: {error}") from error
        if overlap is not None:
            raise DataLossError(
                f"tensor {quoted(name)}: Overlapping slices: existing slice = {overlap[0]}, new slice = {overlap[1]}"
            )
        extents = [[(extent.start, extent.end) for extent in part.extents] for part in self._resolved]
        bounds = np.array(extents, dtype=np.int64).reshape(len(self.stored), len(shape), 2)
        self._starts, self._ends = bounds[..., 0], bounds[..., 1]
        self._numbers = {part: number for number, part in enumerate(self.stored)}

    def parts_of(self, want: TensorSlice) -> list[Part]:
        """Return the copies that fill `want`, in the order of the stored slices.

        If one of the stored slices equals `want`, only that slice is used. Gaps outside `want` do not matter.

        Raises:
            InvalidArgumentError: `want` exceeds the shape, or the stored slices do not cover it.
        """
        wanted = want.resolve(self.shape)
        if want in self._numbers:
            whole = TensorSlice.full(len(self.shape))
            return [Part(self._numbers[want], whole, whole)]
        parts = []
        covered = 0
        for number in self._touching(wanted):
            held = self._resolved[number]
            common = held.intersect(wanted)
            if common is not None:
                parts.append(Part(number, common.relative_to(held), common.relative_to(wanted)))
                covered += element_count(common.shape_of(self.shape))
        total = element_count(wanted.shape_of(self.shape))
        if covered != total:
            raise InvalidArgumentError(
                f"tensor {quoted(self.name)}: Does not have sufficient slices for partitioned tensor "
                f"{escaped(self.name)} to restore in slice_spec: {want}: the stored slices "
                f"({len(self.stored)}) contain {covered} of {total} elements. Read the available parts with "
                "get_slice, or copy the missing shard"
            )
        return parts

    def _touching(self, wanted: TensorSlice) -> list[int]:
        """Return the indices of the stored slices that overlap `wanted`."""
        bounds = np.array([(extent.start, extent.end) for extent in wanted.extents], dtype=np.int64).reshape(-1, 2)
        touching = (np.maximum(self._starts, bounds[:, 0]) < np.minimum(self._ends, bounds[:, 1])).all(axis=1)
        return [int(number) for number in np.flatnonzero(touching)]
