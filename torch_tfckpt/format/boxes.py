"""Find boxes of one tensor that share elements, for thousands of boxes at once.

The boxes are cut into groups along straight lines that cross no box, dimension by dimension, all groups at the same
time; every partitioner's boxes are then alone in their group after one pass over the dimensions. Boxes that no line
separates are compared by `tensor_slice.find_overlap`, with its limit.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt

from torch_tfckpt.format.tensor_slice import Extent, Shape, TensorSlice, find_overlap

Box = tuple[int, ...]
"""Start and end of the first dimension, of the second, ...; without elements if a dimension's start is its end."""

_FEW: Final = 8  # comparing so few boxes pairwise is faster than a pass of numpy
_PASSES: Final = 64  # boxes that need more passes are left to `find_overlap`


def overlap_of_boxes(shape: Shape, boxes: Sequence[Box]) -> tuple[int, int] | None:
    """Return the indices of two boxes that share an element of a tensor of `shape`, or None.

    Raises:
        UnimplementedError: like `find_overlap`.

    Cost: about n log n for n boxes that straight lines separate, a microsecond each.
    """
    if len(boxes) <= _FEW:
        for (one, box), (other, against) in combinations(enumerate(boxes), 2):
            if all(max(box[at], against[at]) < min(box[at + 1], against[at + 1]) for at in range(0, 2 * len(shape), 2)):
                return one, other
        return None
    bounds = np.array(boxes, dtype=np.int64).reshape(len(boxes), len(shape), 2)
    numbers = np.flatnonzero((bounds[:, :, 0] < bounds[:, :, 1]).all(axis=1))
    groups = np.zeros(len(numbers), dtype=np.int64)
    for _ in range(_PASSES):
        before = len(numbers)
        count = int(groups[-1]) + 1 if before else 0
        for axis in range(len(shape)):
            numbers, groups = _cut(numbers, groups, bounds[numbers, axis, 0], bounds[numbers, axis, 1])
        # A box that is alone in its group overlaps none.
        alone = np.bincount(groups)[groups] == 1 if len(groups) else groups.astype(bool)
        parted = int(groups[-1]) + 1 if len(groups) else 0
        numbers, groups = numbers[~alone], groups[~alone]
        if not len(numbers):
            return None
        if len(numbers) == before and parted == count:
            break
        groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
    for group in np.split(numbers, np.flatnonzero(np.diff(groups)) + 1):
        parts = [
            TensorSlice(tuple(Extent(int(start), int(end - start)) for start, end in bounds[number]))
            for number in group
        ]
        found = find_overlap(shape, parts)
        if found is not None:
            first, second = (position for position, part in enumerate(parts) if part is found[0] or part is found[1])
            return int(group[first]), int(group[second])
    return None


_Numbers = npt.NDArray[np.int64]


def _cut(numbers: _Numbers, groups: _Numbers, starts: _Numbers, ends: _Numbers) -> tuple[_Numbers, _Numbers]:
    """Sort boxes by group and start, and split each group wherever no box of it crosses the boundary."""
    order = np.lexsort((starts, groups))
    numbers, groups, starts, ends = numbers[order], groups[order], starts[order], ends[order]
    # Ranks instead of coordinates: the largest end so far must not reach into the next group, and must not overflow.
    ranks = np.unique(np.concatenate((starts, ends)), return_inverse=True)[1].reshape(-1)
    height = 2 * len(starts) + 1
    begins, reaches = ranks[: len(starts)] + groups * height, ranks[len(starts) :] + groups * height
    new = np.ones(len(starts), dtype=bool)
    new[1:] = begins[1:] >= np.maximum.accumulate(reaches)[:-1]
    return numbers, np.cumsum(new) - 1
