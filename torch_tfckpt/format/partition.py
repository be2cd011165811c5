"""Geometry of partitioned tensors: which parts of which stored slices make up a wanted slice.

Version 1 and version 2 files hold partitioned tensors the same way: a full shape, and a list of boxes in it. This is
the geometry only; no bytes are read here.

Source: tensorflow/core/util/tensor_slice_set.cc, BundleReader::GetSliceValue.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from torch_tfckpt.errors import DataLossError, InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, element_count, find_overlap
from torch_tfckpt.text import escaped, quoted


class Part(NamedTuple):
    """One copy: from a stored slice into the wanted one."""

    number: int  # position of the stored slice in the list given
    source: TensorSlice  # what to take, seen from inside the stored slice
    target: TensorSlice  # where to put it, seen from inside the wanted slice


class Partition:
    """The stored slices of one tensor; a tensor stored whole is a partition of one.

    Raises:
        DataLossError: a slice leaves `shape`, or two share an element.
        UnimplementedError: the slices interlock too much to tell.

    Cost: about n log n for n slices; a look-up is one pass of numpy over them.
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
        """The copies that fill `want`, in the order of the stored slices.

        A stored slice spelt exactly as `want` is taken alone. Holes that `want` does not touch do not matter.

        Raises:
            InvalidArgumentError: `want` leaves the shape, or the stored slices do not cover it.
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
                f"{escaped(self.name)} to restore in slice_spec: {want}: its {len(self.stored)} slices hold {covered} "
                f"of {total} elements. Read the parts that are there with get_slice, or copy the missing shard"
            )
        return parts

    def _touching(self, wanted: TensorSlice) -> list[int]:
        """Numbers of the stored slices that share an element with `wanted`."""
        bounds = np.array([(extent.start, extent.end) for extent in wanted.extents], dtype=np.int64).reshape(-1, 2)
        touching = (np.maximum(self._starts, bounds[:, 0]) < np.minimum(self._ends, bounds[:, 1])).all(axis=1)
        return [int(number) for number in np.flatnonzero(touching)]
