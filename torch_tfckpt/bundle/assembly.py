"""Which stored slices, and which part of each, make up a wanted slice of a partitioned tensor.

Version 1 and version 2 files hold partitioned tensors the same way: a full shape, and a list of boxes in it. This is
the geometry only; no bytes are read here.

Source: tensorflow/core/util/tensor_slice_set.cc, BundleReader::GetSliceValue; spec: FORMATS 2.5 "Reading".
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch_tfckpt.errors import DataLossError, InvalidArgumentError, quoted
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, element_count, find_overlap


class Part(NamedTuple):
    """One copy: from a stored slice into the wanted one."""

    number: int  # position of the stored slice in the list given
    source: TensorSlice  # what to take, seen from inside the stored slice
    target: TensorSlice  # where to put it, seen from inside the wanted slice


def check_stored(name: str, shape: Shape, stored: Sequence[TensorSlice]) -> None:
    """DataLossError where a stored slice leaves `shape`, or two share an element."""
    try:
        overlap = find_overlap(shape, stored)
    except InvalidArgumentError as error:
        raise DataLossError(f"tensor {quoted(name)}: {error}") from error
    if overlap is not None:
        raise DataLossError(
            f"tensor {quoted(name)}: Overlapping slices: existing slice = {overlap[0]}, new slice = {overlap[1]}"
        )


def parts_of(name: str, shape: Shape, stored: Sequence[TensorSlice], want: TensorSlice) -> list[Part]:
    """The copies that fill `want`. REQUIRES: `check_stored` found nothing.

    A stored slice spelt exactly as `want` is taken alone. Holes that `want` does not touch do not matter.

    Raises:
        InvalidArgumentError: `want` leaves `shape`, or the stored slices do not cover it.
    """
    wanted = want.resolve(shape)
    if want in stored:
        whole = TensorSlice.full(len(shape))
        return [Part(list(stored).index(want), whole, whole)]
    parts = []
    covered = 0
    for number, part in enumerate(stored):
        held = part.resolve(shape)
        common = held.intersect(wanted)
        if common is not None:
            parts.append(Part(number, common.relative_to(held), common.relative_to(wanted)))
            covered += element_count(common.shape_of(shape))
    if covered != element_count(wanted.shape_of(shape)):
        raise InvalidArgumentError(
            f"tensor {quoted(name)}: Does not have sufficient slices for partitioned tensor {name} to restore in "
            f"slice_spec: {want}: its {len(stored)} slices hold {covered} of "
            f"{element_count(wanted.shape_of(shape))} elements. A shard is missing, or the save was partial"
        )
    return parts
