"""Operations that only move elements, for arrays of strings.

torch has no tensors of strings. A function that copies elements to other places, whatever they are, is called with
their numbers instead, and the numbers in its results are replaced by the strings. Zeros become empty strings.
"""

import itertools
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import torch

from torch_tfckpt.graph_ops.registry import Function


def moves_elements(function: Function) -> Function:
    """Let a function that only moves elements of its first tensors take arrays of strings, too."""

    @wraps(function)
    def moved(*inputs: Any, **attributes: Any) -> Any:
        if any(_is_strings(each) for each in inputs):
            return _with_strings(function, inputs, attributes)
        return function(*inputs, **attributes)

    return moved  # type: ignore[return-value]


@moves_elements
def rows_at(values: Any, places: torch.Tensor) -> Any:
    """Return the elements, or rows, at some places of the first axis."""
    return values.index_select(0, places)


def _is_strings(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (
        isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], np.ndarray)
    )


def _with_strings(function: Callable[..., Any], inputs: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    arrays = [
        array
        for value in inputs
        if _is_strings(value)
        for array in ([value] if isinstance(value, np.ndarray) else value)
    ]
    begins = itertools.accumulate((array.size for array in arrays), initial=1)
    strings = np.concatenate([np.array([b""], dtype=object), *(array.reshape(-1) for array in arrays)])

    def numbers(array: np.ndarray[Any, Any]) -> torch.Tensor:
        begin = next(begins)
        return torch.arange(begin, begin + array.size).reshape(array.shape)

    replaced = [
        (numbers(value) if isinstance(value, np.ndarray) else [numbers(each) for each in value])
        if _is_strings(value)
        else value
        for value in inputs
    ]
    found = function(*replaced, **attributes)
    if isinstance(found, torch.Tensor):
        return _at(strings, found)
    return tuple(_at(strings, each) for each in found)


def _at(strings: np.ndarray[Any, Any], numbers: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.asarray(strings[numbers.numpy()], dtype=object)  # an element of a vector would be bytes
