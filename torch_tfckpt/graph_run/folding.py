"""Small integers that are known before a graph runs: constants, and what integer operations compute from them.

They decide which branch of a condition runs, and become shapes and axes in the built module. Only operations on Python
integers are computed here, so that nothing in a file can make the result large.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Final

import torch

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt.errors import CheckpointError, DataLossError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.integers import GROWING, INTEGER_DTYPES, INTEGER_OPS, as_integers, fits, flat
from torch_tfckpt.graph_ops.registry import Op
from torch_tfckpt.graph_run.attributes import constant_attribute, dtype_of, python_value, type_attribute
from torch_tfckpt.graph_run.constants import constant_of
from torch_tfckpt.graph_run.steps import FED, IDENTITIES, SIZES, GraphStep, known_constant
from torch_tfckpt.meta_graph.variables import shape_of
from torch_tfckpt.text import quoted

MAX_FOLDED: Final = 1024  # integers in a result

_BOOLEAN: Final = frozenset({
    "Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "LogicalAnd", "LogicalOr", "LogicalNot",
    "LogicalXor", "All", "Any",
})  # fmt: skip
_TYPES: Final = ("DstT", "output_type", "dtype", "T", "Tparams", "Tidx", "output_types")


def integer_dtype(op: str, attributes: Mapping[str, AttrValue]) -> torch.dtype | DataType | None:
    """Return the dtype of the results of an operation that may give integers."""
    if op in _BOOLEAN:
        return torch.bool
    if op in SIZES:
        return type_attribute(attributes, "out_type") or torch.int32
    for name in _TYPES:
        found = type_attribute(attributes, name)
        if found is not None:
            return found
    return None


def arguments_of(operation: Op, step: GraphStep) -> dict[str, Any]:
    """Return the attributes that a function takes.

    Raises:
        DataLossError: the node lacks an attribute that has no default.
    """
    found = {}
    for name, default in operation.attributes.items():
        if name in step.attributes:
            found[name] = python_value(step.attributes[name], name)
        elif default is inspect.Parameter.empty:
            raise DataLossError(f"attribute {quoted(name)} is missing")
    return found


def constant_outputs(step: GraphStep) -> tuple[Any, ...] | None:
    """Return the outputs of a step as Python integers, if all are known and small; None otherwise.

    Raises:
        DataLossError: a constant cannot be decoded.
        InvalidArgumentError: an operation refuses its inputs.
    """
    if step.op == "Const":
        return _of_const(step)
    if step.op == FED:
        return step.constants
    if step.op not in IDENTITIES and step.op not in INTEGER_OPS:
        return None
    values = []
    for source in step.inputs:
        known = known_constant(source)
        if known is None:
            return None
        values.append(known)
    if not values:
        return None
    if step.op in IDENTITIES:
        return (values[0],)
    return _computed(step, values)


def _of_const(step: GraphStep) -> tuple[Any, ...] | None:
    dtype = type_attribute(step.attributes, "dtype")
    value = constant_attribute(step.attributes)
    shape = shape_of(value.tensor_shape)
    if not isinstance(dtype, torch.dtype) or shape is None or min(shape, default=0) < 0:
        return None
    if dtype_of(value.dtype) != dtype:
        raise DataLossError(f"the constant is {dtype_of(value.dtype)}, but its attribute dtype is {dtype}")
    if not fits(dtype, shape):
        return None
    tensor = constant_of(value)
    assert isinstance(tensor, torch.Tensor)
    return (as_integers(tensor),)


def _computed(step: GraphStep, values: list[Any]) -> tuple[Any, ...] | None:
    operation = INTEGER_OPS[step.op]
    dtype = integer_dtype(step.op, step.attributes)
    if dtype not in INTEGER_DTYPES or (step.op in GROWING and _is_large(values)):
        return None
    arguments = grouped(operation, values)
    if arguments is None:
        return None
    try:
        found = operation.function(*arguments, **arguments_of(operation, step))
    except (CheckpointError, ValueError, TypeError, IndexError, ZeroDivisionError, OverflowError):
        return None  # the tensor version reports it if the node runs
    results = tuple(found) if operation.several else (found,)
    return results if all(len(flat(each)) <= MAX_FOLDED for each in results) else None


def _is_large(values: list[Any]) -> bool:
    size = 1
    for value in values:
        for number in flat(value):
            size = size * abs(int(number)) if abs(int(number)) > 1 else size
    return size > MAX_FOLDED


def grouped(operation: Op, values: list[Any]) -> list[Any] | None:
    """Return the inputs of a node as arguments of its function; None if their numbers do not match.

    Several lists have the same length.
    """
    lists = len(operation.lists)
    singles = len(operation.inputs) - lists
    if not lists:
        return values if len(values) == singles else None
    if len(values) < singles or (len(values) - singles) % lists:
        return None
    return in_lists(operation, values, [(len(values) - singles) // lists] * len(operation.inputs))


def in_lists(operation: Op, values: list[Any], sizes: list[int]) -> list[Any]:
    """Return inputs as arguments of a function, with lists of these sizes."""
    arguments: list[Any] = []
    at = 0
    for name, size in zip(operation.inputs, sizes, strict=True):
        if name in operation.lists:
            arguments.append(values[at : at + size])
            at += size
        else:
            arguments.append(values[at])
            at += 1
    return arguments
