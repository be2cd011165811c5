"""Values passed as save_model(extra=): the type each is stored as, and which names are allowed.

    7          int64 scalar, as tf.train.get_or_create_global_step creates it
    0.5        float32 scalar, as tf.Variable(0.5)
    True       bool scalar
    1j         complex128 scalar, as tf.Variable(1j)
    "a"        string scalar; ["a", "b"]: string tensor [2]
    anything else that save_file stores, such as a tensor or a numpy number: in its own dtype

Python numbers get the dtypes that TensorFlow gives them, so that a variable created from the same value can be
restored: TensorFlow does not convert dtypes during a restore.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.saveables.stored_keys import SHARED
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Strings, WritableValue

_RESERVED: Final = {SHARED: "lists the names of shared tensors", OBJECT_GRAPH_KEY: "is TensorFlow's object graph"}


def extra_values(extra: Mapping[str, object], taken: Iterable[str]) -> dict[str, WritableValue]:
    """Return name -> value to store.

    Args:
        taken: The names under which the model is stored, or under which load_model finds it.

    Raises:
        InvalidArgumentError: a name is not a string, is empty, reserved or taken; a value cannot be stored.
    """
    if not isinstance(extra, Mapping):
        raise InvalidArgumentError(f'extra is a {type(extra).__name__}. Pass a dict, such as {{"global_step": 7}}')
    known = {_comparable(name) for name in taken}
    values: dict[str, WritableValue] = {}
    for name, value in extra.items():
        if not isinstance(name, str) or not name:
            raise InvalidArgumentError(f"extra: the name {name!r} is not a non-empty string")
        if _comparable(name) in known:
            raise InvalidArgumentError(f"extra: {quoted(name)} is the name of a model tensor. Choose another name")
        last = name.rpartition("/")[2]
        if last in _RESERVED:
            raise InvalidArgumentError(f"extra: {quoted(name)}: {quoted(last)} {_RESERVED[last]}. Choose another name")
        values[name] = _value(name, value)
    return values


def _comparable(name: str) -> str:
    """Return the form in which load_model compares names: "fc/weight:0" finds fc.weight, too."""
    return name.removesuffix(":0").replace("/", ".")


def _value(name: str, value: object) -> WritableValue:
    """Return what is stored for `value`."""
    place = f"extra: {quoted(name)}"
    if isinstance(value, torch.Tensor | np.ndarray | str | bytes):
        return value
    if isinstance(value, np.generic):  # before float and complex, which some of these are as well
        array: npt.NDArray[np.generic] = np.asarray(value)
        return array
    if isinstance(value, bool):
        return torch.tensor(value, device="cpu")
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidArgumentError(f"{place}: {value} does not fit into int64. Pass a string or a tensor")
        return torch.tensor(value, dtype=torch.int64, device="cpu")
    if isinstance(value, float):
        stored = torch.tensor(value, dtype=torch.float32, device="cpu")
        if math.isfinite(value) and not stored.isfinite():
            raise InvalidArgumentError(
                f"{place}: {value} is beyond the range of float32. Pass torch.tensor({value}, dtype=torch.float64)"
            )
        return stored
    if isinstance(value, complex):
        return torch.tensor(value, dtype=torch.complex128, device="cpu")
    if isinstance(value, list | tuple) and value and all(isinstance(item, str | bytes) for item in value):
        strings: Strings = np.array(value, dtype=object)
        return strings
    raise InvalidArgumentError(
        f"{place} is a {type(value).__name__}. Pass a tensor, a numpy array, a number, a string or a list of strings"
    )
