"""Name of a TensorFlow operation -> the function that computes it.

`op` registers a function of this package, `register_op` one of a user. What a caller needs to know of a function is
read from its signature once, when it is registered.

Thread safety: `find` may be called from any thread; register operations before graphs use them.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeVar

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.values import (
    AnyTensors,
    Axes,
    IntMatrix,
    Ints,
    IntsList,
    NestedInts,
    NestedIntsList,
    Scalar,
    StringsList,
    Tensors,
)
from torch_tfckpt.text import quoted

_LISTS: Final = (Tensors, AnyTensors, StringsList, IntsList, NestedIntsList)
_INTEGERS: Final = (int, Ints, IntMatrix, Axes, NestedInts, IntsList, NestedIntsList)
_SEVERAL_INTEGERS: Final = (tuple[Ints, ...], tuple[Ints, Ints], tuple[NestedInts, ...])

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Op:
    """One operation.

    Attributes:
        name: TensorFlow's name.
        function: Takes inputs as positional and attributes as keyword arguments; returns one result, or a tuple of
            all results if there are several (`results`).
        inputs: Names of the inputs, in order.
        lists: The inputs that are lists of tensors.
        integers: The inputs that are Python integers.
        scalars: The inputs that may be a Python integer or a tensor.
        attributes: Name of an attribute -> its default; `inspect.Parameter.empty` if it has none.
        outputs: Names of the output arguments.
        several: Whether `function` returns a tuple: there are several outputs, or the only one is a list.
        gives_integers: Whether the results are Python integers: Shape, Size, Rank.
        is_pure: Whether equal inputs give equal results, and nothing else happens.
    """

    name: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    lists: frozenset[str]
    integers: frozenset[str]
    attributes: Mapping[str, object]
    outputs: tuple[str, ...] = ("output",)
    several: bool = False
    gives_integers: bool = False
    is_pure: bool = field(default=True)
    scalars: frozenset[str] = frozenset()


_OPS: Final[dict[str, Op]] = {}
OPS: Final[Mapping[str, Op]] = MappingProxyType(_OPS)
"""All registered operations by name."""


def op(
    *names: str, outputs: Iterable[str] = ("output",), pure: bool = True, list_output: bool = False
) -> Callable[[Function], Function]:
    """Register the decorated function for the operations `names`; return it unchanged.

    Args:
        names: Several for operations that differ only in name, such as "Add" and "AddV2".
        outputs: Names of the output arguments, as TensorFlow declares them, if there are several. The function
            then returns a tuple.
        pure: False for random numbers, state, and printing.
        list_output: The only output is a list, as of Split; the function returns a tuple.
    """

    def register(function: Function) -> Function:
        for name in names:
            if name in _OPS:
                raise ValueError(f"{name} is registered twice")
            _OPS[name] = described(name, function, tuple(outputs), pure, list_output)
        return function

    return register


def register_op(name: str, *, outputs: Iterable[str] = ("output",)) -> Callable[[Function], Function]:
    """Let graphs run the operation `name`, which TensorFlow does not have or this package lacks.

    Args:
        name: The operation's name in the graph. A registered operation of this name is replaced.
        outputs: Names of the output arguments if there are several; the function then returns a tuple.

    Returns:
        A decorator for a function of tensors. Its positional parameters are the inputs, its keyword-only parameters
        the attributes that it needs. Gradients are those of autograd.

    Raises:
        InvalidArgumentError: the parameters are neither positional nor keyword-only ones.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> @tfckpt.register_op("TimesTwo")
        ... def times_two(x):
        ...     return 2 * x
    """

    def register(function: Function) -> Function:
        _OPS[name] = described(name, function, tuple(outputs), False, False)
        return function

    return register


def find(name: str) -> Op | None:
    """Return the operation, or None if it is not registered."""
    return _OPS.get(name)


def described(name: str, function: Callable[..., Any], outputs: tuple[str, ...], pure: bool, list_output: bool) -> Op:
    """Return what a caller needs to know of a function, read from its signature."""
    inputs, attributes, lists, integers, scalars = [], {}, set(), set(), set()
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            attributes[parameter.name] = parameter.default
            continue
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise InvalidArgumentError(
                f"operation {quoted(name)}: parameter {parameter.name} collects arguments. Inputs must be positional "
                f"parameters, attributes keyword-only ones; annotate a list of tensors with Tensors"
            )
        inputs.append(parameter.name)
        if parameter.annotation in _LISTS:
            lists.add(parameter.name)
        if parameter.annotation in _INTEGERS:
            integers.add(parameter.name)
        if parameter.annotation == Scalar:
            scalars.add(parameter.name)
    result = signature.return_annotation
    gives_integers = result in _INTEGERS or ((list_output or len(outputs) > 1) and result in _SEVERAL_INTEGERS)
    return Op(
        name,
        function,
        tuple(inputs),
        frozenset(lists),
        frozenset(integers),
        MappingProxyType(attributes),
        outputs,
        list_output or len(outputs) > 1,
        gives_integers,
        pure,
        frozenset(scalars),
    )
