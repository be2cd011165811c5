"""Arrays of strings: elements are bytes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.values import Strings


def array_of(values: Iterable[bytes], shape: Sequence[int] | None = None) -> Strings:
    """Return strings as an array; default: a vector."""
    listed = list(values)
    found = np.empty(len(listed), dtype=object)
    found[:] = listed
    return found if shape is None else found.reshape(tuple(shape))


def mapped(strings: Strings, function: Callable[[bytes], bytes]) -> Strings:
    """Return what a function makes of each string."""
    return array_of(map(function, elements(strings)), strings.shape)


def elements(strings: Strings) -> list[bytes]:
    """Return the strings of an array, row by row."""
    if not isinstance(strings, np.ndarray):
        raise InvalidArgumentError(f"expected strings, found {getattr(strings, 'dtype', type(strings).__name__)}")
    found: list[bytes] = strings.reshape(-1).tolist()
    return found


def single(strings: Any, name: str) -> bytes:
    """Return the only string of an array of rank 0."""
    if not isinstance(strings, np.ndarray) or strings.shape:
        raise InvalidArgumentError(f"{name} must be a single string, found the shape {list(np.shape(strings))}")
    found: bytes = strings.item()
    return found


def as_text(value: str | bytes) -> bytes:
    """Return an attribute that is a string as bytes; attributes that are not UTF-8 are bytes already."""
    return value.encode() if isinstance(value, str) else value
