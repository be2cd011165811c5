"""Shape, slice and join of Python integers. See `integers`.

Source: tensorflow/core/ops/array_ops.cc.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter, mul
from typing import Any

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import axes_of, gathered_axes_of, new_axis_of, squeezed_axes_of
from torch_tfckpt.graph_ops.integers import (
    axis_of,
    check_shape,
    elementwise,
    flat,
    integer_op,
    nested,
    shape_of,
)
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.strided import NEW_AXIS, Masks, check_index, items_of
from torch_tfckpt.graph_ops.values import Axes, Ints, IntsList, NestedInts, NestedIntsList


@integer_op("Identity", "StopGradient", "Snapshot", "PreventGradient")
def identity(input: NestedInts) -> NestedInts:
    return input


@integer_op("ZerosLike")
def zeros_like(x: NestedInts) -> NestedInts:
    return elementwise(lambda each: False if isinstance(each, bool) else 0, x)


@integer_op("OnesLike")
def ones_like(x: NestedInts) -> NestedInts:
    return elementwise(lambda each: True if isinstance(each, bool) else 1, x)


@integer_op("Shape")
def shape(input: NestedInts) -> NestedInts:
    return shape_of(input)


@integer_op("ShapeN", list_output=True)
def shape_n(input: NestedIntsList) -> tuple[NestedInts, ...]:
    return tuple(shape_of(each) for each in input)


@integer_op("Size")
def size(input: NestedInts) -> NestedInts:
    return math.prod(shape_of(input))


@integer_op("Rank")
def rank(input: NestedInts) -> NestedInts:
    return len(shape_of(input))


@integer_op("Reshape")
def reshape(tensor: NestedInts, shape: Ints) -> NestedInts:
    elements = flat(tensor)
    known = math.prod(each for each in shape if each != -1)
    sizes = [len(elements) // max(known, 1) if each == -1 else each for each in shape]
    if shape.count(-1) > 1 or min(sizes, default=0) < 0 or math.prod(sizes) != len(elements):
        raise InvalidArgumentError(f"cannot reshape {len(elements)} elements to {list(shape)}")
    return nested(elements, sizes)


@integer_op("Squeeze")
def squeeze(input: NestedInts, *, squeeze_dims: Ints = ()) -> NestedInts:
    sizes = shape_of(input)
    given = squeezed_axes_of(squeeze_dims, sizes)
    left = [each for at, each in enumerate(sizes) if not (at in given if squeeze_dims else each == 1)]
    return nested(flat(input), left)


@integer_op("ExpandDims")
def expand_dims(input: NestedInts, dim: Axes) -> NestedInts:
    return _at_depth(lambda part: (part,), input, new_axis_of(dim, len(shape_of(input))))


@integer_op("Transpose")
def transpose(x: NestedInts, perm: Ints) -> NestedInts:
    sizes = shape_of(x)
    if sorted(perm) != list(range(len(sizes))):
        raise InvalidArgumentError(f"{list(perm)} is not a permutation of the axes of the shape {list(sizes)}")
    elements = dict(zip(itertools.product(*map(range, sizes)), flat(x), strict=True))
    places = sorted(elements, key=lambda place: [place[axis] for axis in perm])
    return nested([elements[place] for place in places], [sizes[axis] for axis in perm])


@integer_op("InvertPermutation")
def invert_permutation(x: Ints) -> NestedInts:
    if sorted(x) != list(range(len(x))):
        raise InvalidArgumentError(f"{list(x)} is not a permutation")
    return tuple(x.index(at) for at in range(len(x)))


@integer_op("Pack")
def pack(values: NestedIntsList, *, axis: int = 0) -> NestedInts:
    if len({shape_of(value) for value in values}) != 1:
        raise InvalidArgumentError(f"values have different shapes: {[list(shape_of(value)) for value in values]}")
    at = axis_of(axis, len(shape_of(values[0])) + 1)
    return _joined([_at_depth(lambda part: (part,), value, at) for value in values], at)


@integer_op("Unpack", list_output=True)
def unpack(value: NestedInts, *, num: int, axis: int = 0) -> tuple[NestedInts, ...]:
    at = axis_of(axis, len(shape_of(value)))
    if shape_of(value)[at] != num:
        raise InvalidArgumentError(f"cannot unpack axis {axis} of the shape {list(shape_of(value))} into {num} parts")
    return tuple(_at_depth(itemgetter(place), value, at) for place in range(num))


@integer_op("ConcatV2")
def concat_v2(values: NestedIntsList, axis: int) -> NestedInts:
    return _joined(values, _joined_axis(axis, [shape_of(value) for value in values]))


@integer_op("Concat")
def concat(concat_dim: int, values: NestedIntsList) -> NestedInts:
    return concat_v2(values, concat_dim)


@integer_op("Split", list_output=True)
def split(split_dim: int, value: NestedInts, *, num_split: int) -> tuple[NestedInts, ...]:
    at = axis_of(split_dim, len(shape_of(value)))
    step, rest = divmod(shape_of(value)[at], num_split)
    if rest:
        raise InvalidArgumentError(f"cannot split {shape_of(value)[at]} elements into {num_split} equal parts")
    return _parts(value, at, [step] * num_split)


@integer_op("SplitV", list_output=True)
def split_v(value: NestedInts, size_splits: Ints, split_dim: int, *, num_split: int) -> tuple[NestedInts, ...]:
    at = axis_of(split_dim, len(shape_of(value)))
    return _parts(value, at, split_sizes(shape_of(value)[at], size_splits))


def split_sizes(size: int, size_splits: Ints) -> list[int]:
    """Return the sizes of the parts of an axis; one of them may be given as -1."""
    known = sum(each for each in size_splits if each != -1)
    sizes = [size - known if each == -1 else each for each in size_splits]
    if size_splits.count(-1) > 1 or any(each < 0 for each in sizes) or sum(sizes) != size:
        raise InvalidArgumentError(f"cannot split {size} elements into parts of {list(size_splits)}")
    return sizes


@integer_op("Slice")
def slice_(input: NestedInts, begin: Ints, size: Ints) -> NestedInts:
    sizes = shape_of(input)
    if not len(sizes) == len(begin) == len(size):
        raise InvalidArgumentError(f"begin {list(begin)} and size {list(size)} for the shape {list(sizes)}")
    for at, (first, count, whole) in enumerate(zip(begin, size, sizes, strict=True)):
        end = whole if count == -1 else first + count
        if not 0 <= first <= end <= whole:
            raise InvalidArgumentError(f"begin {list(begin)} and size {list(size)} for the shape {list(sizes)}")
        input = _at_depth(itemgetter(slice(first, end)), input, at)
    return input


@integer_op("StridedSlice")
def strided_slice(
    input: NestedInts,
    begin: Ints,
    end: Ints,
    strides: Ints,
    *,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> NestedInts:
    masks = Masks(begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_axis_mask)
    axis = 0
    for item in items_of(len(shape_of(input)), begin, end, strides, masks):
        if item == NEW_AXIS:
            input = _at_depth(lambda part: (part,), input, axis)
        elif isinstance(item, slice):
            input = _at_depth(itemgetter(item), input, axis)
        else:
            check_index(int(item), shape_of(input)[axis], axis)
            input = _at_depth(itemgetter(item), input, axis)
            continue
        axis += 1
    return input


@integer_op("Gather")
def gather(params: NestedInts, indices: NestedInts) -> NestedInts:
    return gather_v2(params, indices, 0)


@integer_op("GatherV2")
def gather_v2(params: NestedInts, indices: NestedInts, axis: int, *, batch_dims: int = 0) -> NestedInts:
    sizes, many = shape_of(params), shape_of(indices)
    at, same = gathered_axes_of(axis, batch_dims, sizes, many)
    if any(not 0 <= index < sizes[at] for index in flat(indices)):
        raise InvalidArgumentError(f"indices must be in [0, {sizes[at]})")
    return _gathered(params, indices, at, same)


@integer_op("Range")
def range_(start: int, limit: int, delta: int) -> NestedInts:
    if delta == 0 or (limit - start) * delta < 0:
        raise InvalidArgumentError(f"cannot go from {start} to {limit} in steps of {delta}")
    found = range(start, limit, delta)
    check_size([len(found)])
    return tuple(found)


@integer_op("Fill")
def fill(dims: Ints, value: NestedInts) -> NestedInts:
    if len(flat(value)) != 1 or len(shape_of(value)) > 1:  # TensorFlow accepts a vector of one number
        raise InvalidArgumentError(f"value must be one number, found the shape {list(shape_of(value))}")
    check_size(dims)
    return nested(flat(value) * math.prod(dims), dims)


@integer_op("Tile")
def tile(input: NestedInts, multiples: Ints) -> NestedInts:
    check_multiples(multiples, shape_of(input))
    for at, count in reversed(list(enumerate(multiples))):
        input = _at_depth(partial(mul, count), input, at)
    return input


def check_multiples(multiples: Ints, sizes: Sequence[int]) -> None:
    """Raise InvalidArgumentError unless Tile can repeat a tensor of these sizes so often."""
    if len(multiples) != len(sizes):
        raise InvalidArgumentError(f"multiples {list(multiples)} for the shape {list(sizes)}")
    check_size(multiples)
    check_size([count * each for count, each in zip(multiples, sizes, strict=True)])


@integer_op("BroadcastTo")
def broadcast_to(input: NestedInts, shape: Ints) -> NestedInts:
    check_size(shape)
    found = elementwise(lambda each, _: each, input, nested([0] * math.prod(shape), shape))
    if shape_of(found) != shape:
        raise InvalidArgumentError(f"cannot broadcast {list(shape_of(input))} to {list(shape)}")
    return found


@integer_op("ReverseV2")
def reverse_v2(tensor: NestedInts, axis: Ints) -> NestedInts:
    for at in axes_of(axis, len(shape_of(tensor))):
        tensor = _at_depth(lambda part: part[::-1], tensor, at)
    return tensor


@integer_op("ListDiff", outputs=("out", "idx"))
def list_diff(x: Ints, y: Ints) -> tuple[NestedInts, NestedInts]:
    kept = [at for at, each in enumerate(x) if each not in y]
    return tuple(x[at] for at in kept), tuple(kept)


@op("ConcatOffset", list_output=True)
@integer_op("ConcatOffset", list_output=True)
def concat_offset(concat_dim: int, shape: IntsList) -> tuple[Ints, ...]:
    """Where each of several tensors begins in their concatenation."""
    at = _joined_axis(concat_dim, shape)
    begins = itertools.accumulate((each[at] for each in shape), initial=0)
    return tuple(
        tuple(begin if axis == at else 0 for axis in range(len(each)))
        for each, begin in zip(shape, begins, strict=False)
    )


def _joined_axis(axis: int, shapes: IntsList) -> int:
    at = axis_of(axis, len(shapes[0]))
    if len({(len(each), *each[:at], *each[at + 1 :]) for each in shapes}) != 1:
        raise InvalidArgumentError(f"cannot join the shapes {[list(each) for each in shapes]} along axis {axis}")
    return at


@op("BroadcastArgs")
@integer_op("BroadcastArgs")
def broadcast_args(s0: Ints, s1: Ints) -> Ints:
    """The shape that two shapes are broadcast to."""
    return tuple(b if a == 1 else a for a, b in _paired(s0, s1))


@op("BroadcastGradientArgs", outputs=("r0", "r1"))
@integer_op("BroadcastGradientArgs", outputs=("r0", "r1"))
def broadcast_gradient_args(s0: Ints, s1: Ints) -> tuple[Ints, Ints]:
    """The axes that a gradient must be summed over to get the shapes of two inputs back."""
    pairs = _paired(s0, s1)
    if s0 == s1:
        return (), ()
    return tuple(at for at, (a, _) in enumerate(pairs) if a == 1), tuple(
        at for at, (_, b) in enumerate(pairs) if b == 1
    )


def _paired(s0: Ints, s1: Ints) -> list[tuple[int, int]]:
    rank = max(len(s0), len(s1))
    pairs = list(zip((1,) * (rank - len(s0)) + s0, (1,) * (rank - len(s1)) + s1, strict=True))
    if any(a != b and a != 1 and b != 1 for a, b in pairs):
        raise InvalidArgumentError(f"the shapes {list(s0)} and {list(s1)} cannot be broadcast to one shape")
    return pairs


def _at_depth(function: Callable[[Any], NestedInts], value: NestedInts, depth: int) -> NestedInts:
    """Apply a function to each part at a depth: `depth` is the axis that it changes."""
    if depth:
        assert isinstance(value, tuple)
        return tuple(_at_depth(function, each, depth - 1) for each in value)
    found = function(value)
    if found == () and len(shape_of(value)) > 1:
        check_shape((0, 1))
    return found


def _joined(values: Sequence[Any], axis: int) -> NestedInts:
    if axis == 0:
        return tuple(itertools.chain.from_iterable(values))
    return tuple(_joined(parts, axis - 1) for parts in zip(*values, strict=True))


def _parts(value: NestedInts, axis: int, sizes: Sequence[int]) -> tuple[NestedInts, ...]:
    ends = list(itertools.accumulate(sizes, initial=0))
    return tuple(_at_depth(itemgetter(slice(begin, end)), value, axis) for begin, end in itertools.pairwise(ends))


def _gathered(params: Any, indices: Any, axis: int, same: int) -> NestedInts:
    if same:
        return tuple(_gathered(part, each, axis - 1, same - 1) for part, each in zip(params, indices, strict=True))
    return _at_depth(lambda part: _taken(part, indices), params, axis)


def _taken(part: tuple[NestedInts, ...], indices: NestedInts) -> NestedInts:
    if isinstance(indices, tuple):
        return tuple(_taken(part, index) for index in indices)
    return part[indices]
