"""Operations on Python integers: arithmetic on shapes, axes and paddings.

Results of Shape, Size and Rank, small constants, and what graphs compute from them, are Python integers instead of
tensors: an int or bool, a tuple, or a tuple of tuples. Under torch.export they may contain SymInts, so that shapes stay
symbolic.

    @integer_op("Neg")
    def neg(x: NestedInts, *, T: torch.dtype) -> NestedInts:

A second table, INTEGER_OPS, has these functions under the names of the tensor versions, with the same parameters. A
caller uses one if all inputs of a node are integers, and the result has one of INTEGER_DTYPES; the result then is
integers, too. `T` (or `DstT`) is the dtype to which results of arithmetic wrap around, as in TensorFlow.

Only small tensors become integers: see `fits`. The size of a result of GROWING is a number among the inputs: if that is
not known before the graph runs, use the tensor version.

    integers              the table; conversions
    integer_arithmetic    operations on each element; reductions
    integer_arrays        shape, slice, join

A tuple of no tuples has lost its second size. Functions raise UnimplementedError instead of returning one.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.graph_ops.registry import Function, Op, described
from torch_tfckpt.graph_ops.values import NestedInts, Tensor

INTEGER_DTYPES: Final = (torch.int32, torch.int64, torch.bool)
MAX_INTEGERS: Final = 1024
MAX_RANK: Final = 2
GROWING: Final = frozenset({"Range", "Fill", "Tile", "BroadcastTo"})

_INTEGER_OPS: Final[dict[str, Op]] = {}
INTEGER_OPS: Final[Mapping[str, Op]] = MappingProxyType(_INTEGER_OPS)
"""The operations on Python integers by name."""


def integer_op(
    *names: str, outputs: Iterable[str] = ("output",), list_output: bool = False
) -> Callable[[Function], Function]:
    """Register the decorated function of Python integers for the operations `names`; return it unchanged.

    Args:
        names: Several for operations that differ only in name.
        outputs: Names of the output arguments if there are several. The function then returns a tuple of results.
        list_output: The only output is a list, as of Split; the function returns a tuple of results.
    """

    def register(function: Function) -> Function:
        for name in names:
            if name in _INTEGER_OPS:
                raise ValueError(f"{name} is registered twice")
            _INTEGER_OPS[name] = described(name, function, tuple(outputs), True, list_output)
        return function

    return register


def fits(dtype: torch.dtype, shape: Sequence[int]) -> bool:
    """Return whether a tensor may become Python integers: few elements, and none of its sizes is lost."""
    return (
        dtype in INTEGER_DTYPES and len(shape) <= MAX_RANK and math.prod(shape) <= MAX_INTEGERS and 0 not in shape[:-1]
    )


def as_tensor(value: NestedInts, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return integers as a tensor of their TensorFlow dtype. Symbolic sizes stay symbolic."""
    return torch.tensor(value, dtype=dtype, device=device)


def as_integers(tensor: Tensor) -> NestedInts:
    """Return the elements of a tensor of integers as an int or bool, or as nested tuples."""
    return nested_tuples(tensor.tolist())


def nested_tuples(value: Any) -> NestedInts:
    """Return nested lists as nested tuples."""
    found: NestedInts = tuple(map(nested_tuples, value)) if isinstance(value, list) else value
    return found


def wrapped(value: int, dtype: torch.dtype) -> int:
    """Return a number modulo the range of int32 or int64; symbolic sizes are assumed to be within it."""
    # A comparison would add a guard to the graph that torch.compile traces, and sizes would not be free any more.
    if not isinstance(value, int) or torch.compiler.is_dynamo_compiling():
        return value
    half = 1 << (31 if dtype == torch.int32 else 63)
    return value if -half <= value < half else (value + half) % (2 * half) - half


def shape_of(value: NestedInts) -> tuple[int, ...]:
    """Return the shape of integers."""
    shape = []
    while isinstance(value, tuple):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def flat(value: NestedInts) -> list[int]:
    """Return all integers in row-major order."""
    if not isinstance(value, tuple):
        return [value]
    return [each for part in value for each in flat(part)]


def nested(elements: Sequence[int], shape: Sequence[int]) -> NestedInts:
    """Return integers in row-major order as nested tuples of a shape."""
    check_shape(shape)
    if not shape:
        return elements[0]
    step = math.prod(shape[1:])
    return tuple(nested(elements[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0]))


def check_shape(shape: Sequence[int]) -> None:
    """Raise UnimplementedError if tuples cannot represent the shape."""
    if 0 in shape[:-1]:
        raise UnimplementedError(f"small integers of the shape {list(shape)}, whose sizes would be lost")


def elementwise(function: Callable[..., int], *values: NestedInts) -> NestedInts:
    """Apply a function to each element, with broadcasting."""
    rank = max(len(shape_of(value)) for value in values)
    return _each(function, [_of_rank(value, rank) for value in values], rank)


def _of_rank(value: NestedInts, rank: int) -> NestedInts:
    for _ in range(rank - len(shape_of(value))):
        value = (value,)
    return value


def _each(function: Callable[..., int], values: Sequence[Any], rank: int) -> NestedInts:
    if rank == 0:
        return function(*values)
    sizes = {len(value) for value in values} - {1} or {1}
    if len(sizes) > 1:
        shapes = ", ".join(str(list(shape_of(value))) for value in values)
        raise InvalidArgumentError(f"cannot broadcast shapes that end with {shapes}")
    (size,) = sizes
    if size == 0 and rank > 1:
        check_shape((0, *(1,) * (rank - 1)))
    return tuple(
        _each(function, [value[0 if len(value) == 1 else at] for value in values], rank - 1) for at in range(size)
    )


def axis_of(axis: int, rank: int) -> int:
    """Return an axis that may count from the end as one from the beginning."""
    if not -rank <= axis < rank:
        raise InvalidArgumentError(f"axis {axis} is out of range for a tensor of rank {rank}")
    return axis % rank
