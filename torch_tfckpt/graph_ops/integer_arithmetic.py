"""Operations on each of some Python integers, and reductions. See `integers`.

Source: tensorflow/core/ops/math_ops.cc.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import axes_of
from torch_tfckpt.graph_ops.integers import elementwise, flat, integer_op, nested, shape_of, wrapped
from torch_tfckpt.graph_ops.values import Axes, NestedInts, NestedIntsList


@integer_op("Add", "AddV2")
def add(x: NestedInts, y: NestedInts, *, T: torch.dtype) -> NestedInts:
    return elementwise(lambda a, b: wrapped(a + b, T), x, y)


@integer_op("AddN")
def add_n(inputs: NestedIntsList, *, T: torch.dtype) -> NestedInts:
    if len({shape_of(each) for each in inputs}) > 1:
        raise InvalidArgumentError(f"inputs have different shapes: {[list(shape_of(each)) for each in inputs]}")
    return elementwise(lambda *each: wrapped(sum(each), T), *inputs)


@integer_op("Sub")
def sub(x: NestedInts, y: NestedInts, *, T: torch.dtype) -> NestedInts:
    return elementwise(lambda a, b: wrapped(a - b, T), x, y)


@integer_op("Mul")
def mul(x: NestedInts, y: NestedInts, *, T: torch.dtype) -> NestedInts:
    return elementwise(lambda a, b: wrapped(a * b, T), x, y)


@integer_op("FloorDiv")
def floor_div(x: NestedInts, y: NestedInts, *, T: torch.dtype) -> NestedInts:
    return elementwise(lambda a, b: wrapped(a // _divisor(b), T), x, y)


@integer_op("FloorMod")
def floor_mod(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(lambda a, b: a % _divisor(b), x, y)


@integer_op("Div", "TruncateDiv")
def truncate_div(x: NestedInts, y: NestedInts, *, T: torch.dtype) -> NestedInts:
    return elementwise(lambda a, b: wrapped(_quotient(a, _divisor(b)), T), x, y)


@integer_op("Mod", "TruncateMod")
def truncate_mod(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(lambda a, b: a - b * _quotient(a, _divisor(b)), x, y)


@integer_op("Maximum")
def maximum(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(_larger, x, y)


@integer_op("Minimum")
def minimum(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(_smaller, x, y)


@integer_op("Neg")
def neg(x: NestedInts, *, T: torch.dtype) -> NestedInts:
    return elementwise(lambda a: wrapped(-a, T), x)


@integer_op("Abs")
def absolute(x: NestedInts, *, T: torch.dtype) -> NestedInts:
    return elementwise(lambda a: wrapped(abs(a), T), x)


@integer_op("Square")
def square(x: NestedInts, *, T: torch.dtype) -> NestedInts:
    return elementwise(lambda a: wrapped(a * a, T), x)


@integer_op("Sign")
def sign(x: NestedInts) -> NestedInts:
    return elementwise(lambda a: (a > 0) - (a < 0), x)


@integer_op("Cast")
def cast(x: NestedInts, *, DstT: torch.dtype) -> NestedInts:
    if DstT == torch.bool:
        return elementwise(lambda a: a != 0, x)
    return elementwise(lambda a: wrapped(int(a) if isinstance(a, bool) else a, DstT), x)


@integer_op("Equal")
def equal(x: NestedInts, y: NestedInts, *, incompatible_shape_error: bool = True) -> NestedInts:
    return _compared(lambda a, b: a == b, x, y, incompatible_shape_error, False)


@integer_op("NotEqual")
def not_equal(x: NestedInts, y: NestedInts, *, incompatible_shape_error: bool = True) -> NestedInts:
    return _compared(lambda a, b: a != b, x, y, incompatible_shape_error, True)


@integer_op("Less")
def less(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(lambda a, b: a < b, x, y)


@integer_op("LessEqual")
def less_equal(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(lambda a, b: a <= b, x, y)


@integer_op("Greater")
def greater(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(lambda a, b: a > b, x, y)


@integer_op("GreaterEqual")
def greater_equal(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(lambda a, b: a >= b, x, y)


@integer_op("LogicalAnd")
def logical_and(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(lambda a, b: a and b, x, y)


@integer_op("LogicalOr")
def logical_or(x: NestedInts, y: NestedInts) -> NestedInts:
    return elementwise(lambda a, b: a or b, x, y)


@integer_op("LogicalNot")
def logical_not(x: NestedInts) -> NestedInts:
    return elementwise(lambda a: not a, x)


@integer_op("Select")
def select(condition: NestedInts, t: NestedInts, e: NestedInts) -> NestedInts:
    """Choose elements, or rows if the condition is a vector. The inputs are not broadcast."""
    chosen, shape = shape_of(condition), shape_of(t)
    if shape_of(e) != shape or (chosen not in ((), shape) and chosen != shape[:1]):
        shapes = [list(shape_of(value)) for value in (condition, t, e)]
        raise InvalidArgumentError(f"the shapes of condition, t and e do not match: {shapes}")
    if chosen != shape and isinstance(condition, tuple):  # one for each row
        condition = tuple((each,) for each in condition)
    return elementwise(lambda first, a, b: a if first else b, condition, t, e)


@integer_op("SelectV2")
def select_v2(condition: NestedInts, t: NestedInts, e: NestedInts) -> NestedInts:
    return elementwise(lambda chosen, a, b: a if chosen else b, condition, t, e)


@integer_op("Sum")
def reduce_sum(input: NestedInts, reduction_indices: Axes, *, keep_dims: bool = False, T: torch.dtype) -> NestedInts:
    return _reduced(lambda each: wrapped(sum(each), T), input, reduction_indices, keep_dims)


@integer_op("Prod")
def reduce_prod(input: NestedInts, reduction_indices: Axes, *, keep_dims: bool = False, T: torch.dtype) -> NestedInts:
    return _reduced(lambda each: wrapped(math.prod(each), T), input, reduction_indices, keep_dims)


@integer_op("Max")
def reduce_max(input: NestedInts, reduction_indices: Axes, *, keep_dims: bool = False, T: torch.dtype) -> NestedInts:
    return _reduced(lambda each: _extreme(_larger, each, _lowest(T)), input, reduction_indices, keep_dims)


@integer_op("Min")
def reduce_min(input: NestedInts, reduction_indices: Axes, *, keep_dims: bool = False, T: torch.dtype) -> NestedInts:
    return _reduced(lambda each: _extreme(_smaller, each, ~_lowest(T)), input, reduction_indices, keep_dims)


@integer_op("All")
def reduce_all(input: NestedInts, reduction_indices: Axes, *, keep_dims: bool = False) -> NestedInts:
    return _reduced(all, input, reduction_indices, keep_dims)


@integer_op("Any")
def reduce_any(input: NestedInts, reduction_indices: Axes, *, keep_dims: bool = False) -> NestedInts:
    return _reduced(any, input, reduction_indices, keep_dims)


def _divisor(value: int) -> int:
    if value == 0:
        raise InvalidArgumentError("integer division by zero")
    return value


def _quotient(x: int, y: int) -> int:
    """Divide and round towards zero."""
    return x // y if (x >= 0) == (y > 0) else -(-x // y)


def _larger(x: int, y: int) -> int:
    found: int = torch.sym_max(x, y)  # type: ignore[no-untyped-call]
    return found


def _smaller(x: int, y: int) -> int:
    found: int = torch.sym_min(x, y)  # type: ignore[no-untyped-call]
    return found


def _lowest(dtype: torch.dtype) -> int:
    return torch.iinfo(dtype).min


def _extreme(function: Callable[[int, int], int], values: Sequence[int], empty: int) -> int:
    if not values:
        return empty
    found = values[0]
    for value in values[1:]:
        found = function(found, value)
    return found


def _compared(
    function: Callable[[int, int], bool], x: NestedInts, y: NestedInts, refuse: bool, otherwise: bool
) -> NestedInts:
    try:
        return elementwise(function, x, y)
    except InvalidArgumentError:
        if refuse:
            raise
        return otherwise


def _reduced(function: Callable[[Any], int], value: NestedInts, axes: Axes, keep_dims: bool) -> NestedInts:
    shape = shape_of(value)
    given = axes_of(axes, len(shape))
    kept = [1 if axis in given else size for axis, size in enumerate(shape)]
    groups: dict[tuple[int, ...], list[int]] = {place: [] for place in itertools.product(*map(range, kept))}
    for place, element in zip(itertools.product(*map(range, shape)), flat(value), strict=True):
        groups[tuple(0 if axis in given else at for axis, at in enumerate(place))].append(element)
    found = [function(group) for group in groups.values()]
    return nested(found, kept if keep_dims else [size for axis, size in enumerate(shape) if axis not in given])
