"""Encode state as JSON: Python values become one document, and tensors are stored under readable keys.

    {"step": 3, "betas": (0.9, 0.999), "exp_avg": tensor}   under the key "opt"
    {"step": 3, "betas": {"$tuple": [0.9, 0.999]}, "exp_avg": {"$tensor": "opt/exp_avg"}}

    $tensor, $ndarray, $numpy  key under which the tensor, array or numpy scalar is stored
    $tuple                     list of its elements
    $dict, $counter            list of [key, value]; $dict only if a key is not a str, or begins with "$"
    $bytes                     base64
    $complex                   [real, imaginary]
    $float                     "inf", "-inf" or "nan", for which JSON has no numbers

Nothing else can be stored: a function or an object would have to be pickled, and nothing is ever pickled. Reading
never executes anything; a string that does not have this form raises DataLossError.
"""

import base64
import binascii
import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.text import quoted

# State of real objects is about six levels deep. The bound prevents a RecursionError for a structure that contains
# itself, and for hostile JSON.
MAX_DEPTH: Final = 100
_NOT_FINITE: Final = ("inf", "-inf", "nan")
_PLAIN: Final = (str, int, bool, type(None))
_KEYS: Final = (*_PLAIN, float, complex, bytes, tuple)


def flatten(
    value: object, key: str, *, stored_as: Mapping[int, str] = MappingProxyType({})
) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the JSON string for `value`, and its tensors by key.

    Args:
        value: None, bool, int, float, complex, str, bytes, tensors, numeric numpy arrays and scalars, and lists,
            tuples, dicts and Counters of them. An OrderedDict is restored as a dict, in its order.
        key: Prefix of the tensors' keys: `key/part/part`. If `value` is itself a tensor, its key is `key/value`.
        stored_as: id of a tensor -> the key under which another saveable already stores it.

    Returns:
        Strict ASCII JSON, and the tensors, except those in `stored_as`. They share memory with the tensors in `value`;
        arrays are copied.

    Raises:
        TypeError: any other value; the message has its path and type.
        InvalidArgumentError: nested deeper than MAX_DEPTH, or an integer of thousands of digits.
    """
    encoder = _Encoder(key, stored_as)
    node = encoder.node(value, ())
    try:
        return json.dumps(node, allow_nan=False), encoder.tensors
    except ValueError as error:
        raise InvalidArgumentError(f"state {quoted(key)} cannot be written as JSON: {error}") from error


def unflatten(text: str | bytes, tensors: Mapping[str, torch.Tensor]) -> object:
    """Return the value that `flatten` encoded.

    Its tensors are those in `tensors`, not copies; arrays share memory with them.

    Raises:
        DataLossError: `text` is not in the form that `flatten` writes, or names a tensor that is not in `tensors`.
    """

    def find(key: str) -> torch.Tensor:
        if key not in tensors:
            raise DataLossError(f"state refers to a tensor {quoted(key)} that does not exist")
        return tensors[key]

    return _Decoder(find).node(_parse(text), 0)


def tensor_keys(text: str | bytes) -> list[str]:
    """Return the keys of the tensors that `text` names, in order of appearance.

    Raises:
        DataLossError: as `unflatten`, or a tensor is named twice, so that two parts of a state would share memory.
    """
    keys: dict[str, torch.Tensor] = {}

    def note(key: str) -> torch.Tensor:
        if key in keys:
            raise DataLossError(f"state refers to the tensor {quoted(key)} twice")
        return keys.setdefault(key, torch.empty(0, device="cpu"))

    _Decoder(note).node(_parse(text), 0)
    return list(keys)


def _parse(text: str | bytes) -> object:
    try:
        node: object = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"state is not valid JSON: {error}") from error
    return node


class _Encoder:
    """Convert values to objects for json.dumps, and collect the tensors."""

    def __init__(self, key: str, stored_as: Mapping[int, str]) -> None:
        self._key, self._stored_as = key, stored_as
        self.tensors: dict[str, torch.Tensor] = {}

    def node(self, value: object, path: tuple[str, ...]) -> object:
        if len(path) > MAX_DEPTH:
            raise InvalidArgumentError(
                f"state {quoted(self._name(path[:6]))}... is nested deeper than {MAX_DEPTH} levels, or contains itself"
            )
        kind = type(value)
        if kind in _PLAIN:
            return value
        if isinstance(value, np.generic | np.ndarray):
            tag = "$ndarray" if isinstance(value, np.ndarray) else "$numpy"
            return {tag: self._put(path, self._array(value, path))}
        if isinstance(value, torch.Tensor):
            elsewhere = self._stored_as.get(id(value))
            return {"$tensor": self._put(path, value.detach()) if elsewhere is None else elsewhere}
        if isinstance(value, float) and kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, complex) and kind is complex:
            return {"$complex": [self.node(value.real, path), self.node(value.imag, path)]}
        if isinstance(value, bytes) and kind is bytes:
            return {"$bytes": base64.b64encode(value).decode()}
        return self._container(value, path)

    def _container(self, value: object, path: tuple[str, ...]) -> object:
        kind = type(value)
        if isinstance(value, list | tuple) and kind in (list, tuple, torch.Size):
            nodes = [self.node(item, (*path, str(index))) for index, item in enumerate(value)]
            return nodes if kind is list else {"$tuple": nodes}
        if isinstance(value, dict) and kind in (dict, OrderedDict):
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: self.node(item, (*path, key)) for key, item in value.items()}
            return {"$dict": self._pairs(value, path)}
        if isinstance(value, Counter) and kind is Counter and all(isinstance(count, int) for count in value.values()):
            return {"$counter": self._pairs(value, path)}
        raise self._refusal(f"a {kind.__module__}.{kind.__qualname__}", path)

    def _pairs(self, items: Mapping[object, object], path: tuple[str, ...]) -> list[list[object]]:
        pairs = []
        for index, (key, item) in enumerate(items.items()):
            part = (*path, str(key) if type(key) in (str, int) else f"#{index}")
            known = type(key) in _KEYS
            node = self.node(key, part) if known else None  # limits the depth of a tuple before `_is_key` recurses
            if not known or not _is_key(key):
                raise self._refusal(f"a dict with a {type(key).__module__}.{type(key).__qualname__} as a key", path)
            pairs.append([node, self.node(item, part)])
        return pairs

    def _array(self, value: npt.NDArray[np.generic] | np.generic, path: tuple[str, ...]) -> torch.Tensor:
        native = value.dtype.newbyteorder("=")
        try:
            if native.kind in "biufc":
                return torch.from_numpy(np.array(value, dtype=native, order="C"))
        except TypeError:  # a numeric dtype that torch lacks, such as longdouble
            pass
        raise self._refusal(f"a numpy value of dtype {value.dtype}", path)

    def _put(self, path: tuple[str, ...], tensor: torch.Tensor) -> str:
        """Return a key for the tensor: its path, with a number if taken, as in {"a/b": x, "a": {"b": y}}."""
        name = self._name(path or ("value",))
        free, number = name, 2
        while free in self.tensors:
            free, number = f"{name}_{number}", number + 1
        self.tensors[free] = tensor
        return free

    def _name(self, path: tuple[str, ...]) -> str:
        return "/".join((self._key, *path))

    def _refusal(self, what: str, path: tuple[str, ...]) -> TypeError:
        return TypeError(
            f"state {quoted(self._name(path))} is {what}, which cannot be stored: nothing is ever pickled. Use "
            f"numbers, strings, bytes, tensors, numeric arrays, and lists, tuples, dicts and Counters of them"
        )


class _Decoder:
    """Convert the result of json.loads back to values. `find` returns the tensor of a key."""

    def __init__(self, find: Callable[[str], torch.Tensor]) -> None:
        self._find = find
        self._tagged: dict[str, Callable[[object, int], object]] = {
            "$tensor": lambda body, _: self._tensor(body),
            "$ndarray": lambda body, _: self._tensor(body).numpy(),
            "$numpy": lambda body, _: self._tensor(body).numpy()[()],
            "$tuple": lambda body, depth: tuple(self._list(body, depth)),
            "$dict": lambda body, depth: dict(self._pairs(body, depth)),
            "$counter": self._counter,
            "$bytes": lambda body, _: _bytes(body),
            "$complex": self._complex,
            "$float": lambda body, _: _float(body),
        }

    def node(self, node: object, depth: int) -> object:
        if depth > MAX_DEPTH + 1:  # the parts of a complex number are one level deeper than the number
            raise DataLossError(f"state is nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, list):
            return self._list(node, depth)
        if not isinstance(node, dict):
            return node
        tags = [key for key in node if key.startswith("$")]
        if not tags:
            return {key: self.node(item, depth + 1) for key, item in node.items()}
        if len(node) != 1 or tags[0] not in self._tagged:
            raise DataLossError(f"state has an object with the keys {', '.join(map(quoted, list(node)[:5]))}")
        return self._tagged[tags[0]](node[tags[0]], depth)

    def _list(self, body: object, depth: int) -> list[object]:
        if not isinstance(body, list):
            raise DataLossError(f"state: expected a list, found {_shown(body)}")
        return [self.node(item, depth + 1) for item in body]

    def _pairs(self, body: object, depth: int) -> list[tuple[object, object]]:
        pairs = []
        for pair in body if isinstance(body, list) else [body]:
            if not isinstance(pair, list) or len(pair) != 2:
                raise DataLossError(f"state: expected a pair of key and value, found {_shown(pair)}")
            key = self.node(pair[0], depth + 1)
            if not _is_key(key):
                raise DataLossError(f"state has a {type(key).__name__} as a key")
            pairs.append((key, self.node(pair[1], depth + 1)))
        return pairs

    def _counter(self, body: object, depth: int) -> Counter[object]:
        counted: Counter[object] = Counter()
        for key, count in self._pairs(body, depth):
            if not isinstance(count, int):
                raise DataLossError(f"state has a {type(count).__name__} instead of a count")
            counted[key] = count
        return counted

    def _complex(self, body: object, depth: int) -> complex:
        parts = self._list(body, depth)
        real, imaginary = parts if len(parts) == 2 else (None, None)
        if not isinstance(real, float) or not isinstance(imaginary, float):
            raise DataLossError(f"state: expected a complex number, found {_shown(body)}")
        return complex(real, imaginary)

    def _tensor(self, body: object) -> torch.Tensor:
        if not isinstance(body, str):
            raise DataLossError(f"state: expected a tensor's key, found {_shown(body)}")
        return self._find(body)


def _bytes(body: object) -> bytes:
    try:
        if isinstance(body, str):
            return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise DataLossError(f"state: expected base64, found {_shown(body)}")


def _float(body: object) -> float:
    if body not in _NOT_FINITE:
        raise DataLossError(f"state: expected a float, found {_shown(body)}")
    return float(str(body))


def _is_key(key: object) -> bool:
    """Return whether `key` can be the key of a dict: a value that is compared by its contents."""
    return type(key) in _KEYS and (not isinstance(key, tuple) or all(_is_key(item) for item in key))


def _shown(body: object) -> str:
    return quoted(body) if isinstance(body, str) else f"a JSON {type(body).__name__}"
