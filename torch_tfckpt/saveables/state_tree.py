"""Encode state as JSON: Python values become one document, and tensors are stored under readable keys.

    {"step": 3, "betas": (0.9, 0.999), "exp_avg": tensor}   under the key "opt"
    {"step": 3, "betas": {"$tuple": [0.9, 0.999]}, "exp_avg": {"$tensor": "opt/exp_avg"}}

    $tensor, $ndarray, $numpy  key under which the tensor, array or numpy scalar is stored
    $tuple                     list of its elements
    $dict, $counter            list of [key, value]; $dict only if a key is not a str, or begins with "$"
    $bytes                     base64
    $complex                   [real, imaginary]
    $float                     "inf", "-inf" or "nan", which are not numbers in JSON
    $set, $frozenset           list of the elements, in the order of their JSON
    $deque                     [maximum length or null, list of its elements]
    $ordered                   an OrderedDict: list of [key, value]
    $default                   a defaultdict: [name of its factory or null, list of [key, value]]
    $slice                     [start, stop, step]
    $bytearray                 base64
    $named, $member            a named tuple and a member of an enumeration: see `named_types`
    others                     dtypes, devices, paths, times: see `plain_types`

Nothing else can be stored: a function or an object would have to be pickled, and nothing is ever pickled. Reading
never executes or imports anything; a string that does not have this form raises DataLossError.
"""

import base64
import binascii
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import torch

from torch_tfckpt.distributed.shards import check_storable
from torch_tfckpt.errors import DataLossError, InvalidArgumentError
from torch_tfckpt.saveables.named_types import StoredMember, StoredTuple, class_name, fitted, is_named_tuple
from torch_tfckpt.saveables.plain_types import PLAIN_TYPES, TAGS, decode_plain, encode_plain
from torch_tfckpt.text import quoted

# State of real objects is about six levels deep. The bound prevents a RecursionError for a structure that contains
# itself, and for hostile JSON.
MAX_DEPTH: Final = 100
_NOT_FINITE: Final = ("inf", "-inf", "nan")
_PLAIN: Final = (str, int, bool, type(None))
_KEYS: Final = (*_PLAIN, float, complex, bytes, tuple, *PLAIN_TYPES)
# Factories of a defaultdict by name: classes without side effects.
_FACTORIES: Final[Mapping[str, type]] = {
    kind.__name__: kind for kind in (int, float, complex, bool, str, bytes, list, tuple, dict, set, deque, Counter)
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value in the form that `flatten` gives it, for values that are encoded one by one.

    Attributes:
        node: What json.dumps accepts.
    """

    node: object


def tensor_node(key: str) -> Encoded:
    """Return the form of a tensor that is stored under `key`."""
    return Encoded({"$tensor": key})


def flatten(
    value: object, key: str, *, stored_as: Mapping[int, str] = MappingProxyType({})
) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the JSON string for `value`, and its tensors by key.

    Args:
        value: None, bool, int, float, complex, str, bytes, tensors, numeric numpy arrays and scalars, values of the
            types in `plain_types`, members of enumerations, and lists, tuples, named tuples, dicts, OrderedDicts,
            defaultdicts, Counters, sets and deques of them; also values that are `Encoded` already.
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


def unflatten(
    text: str | bytes,
    tensors: Mapping[str, torch.Tensor],
    *,
    present: Callable[[], object] = lambda: None,
    remarks: list[str] | None = None,
) -> object:
    """Return the value that `flatten` encoded.

    Its tensors are those in `tensors`, not copies; arrays share memory with them.

    Args:
        present: Returns the program's current value, which provides the classes of named tuples and enumerations.
            Called only if the stored value contains such objects.
        remarks: A line is appended for each named tuple or enumeration member that is restored as a plain value
            instead. See `fitted`.

    Raises:
        DataLossError: `text` is not in the form that `flatten` writes, or names a tensor that is not in `tensors`.
    """

    def find(key: str) -> torch.Tensor:
        if key not in tensors:
            raise DataLossError(f"state refers to a tensor {quoted(key)} that does not exist")
        return tensors[key]

    decoder = _Decoder(find)
    value = decoder.node(_parse(text), 0)
    return fitted(value, present(), [] if remarks is None else remarks) if decoder.has_named_types else value


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
        if isinstance(value, Encoded):
            return value.node
        if isinstance(value, np.generic | np.ndarray) and kind not in PLAIN_TYPES:
            tag = "$ndarray" if isinstance(value, np.ndarray) else "$numpy"
            return {tag: self._put(path, self._array(value, path))}
        if isinstance(value, torch.Tensor):
            elsewhere = self._stored_as.get(id(value))
            check_storable(self._name(path), value)
            return {"$tensor": self._put(path, value.detach()) if elsewhere is None else elsewhere}
        if isinstance(value, float) and kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, complex) and kind is complex:
            return {"$complex": [self.node(value.real, path), self.node(value.imag, path)]}
        if isinstance(value, bytes | bytearray) and kind in (bytes, bytearray):
            return {f"${kind.__name__}": base64.b64encode(value).decode()}
        if isinstance(value, Enum):
            return {"$member": [class_name(value), self.node(value.value, path)]}
        if isinstance(value, slice):
            return {"$slice": [self.node(each, path) for each in (value.start, value.stop, value.step)]}
        return encode_plain(value) or self._container(value, path)

    def _container(self, value: object, path: tuple[str, ...]) -> object:
        kind = type(value)
        if isinstance(value, list | tuple) and kind in (list, tuple):
            nodes = self._items(value, path)
            return nodes if kind is list else {"$tuple": nodes}
        if is_named_tuple(value):
            parts = zip(value._fields, cast("tuple[object, ...]", value), strict=True)
            nodes = [self.node(item, (*path, name)) for name, item in parts]
            return {"$named": [class_name(value), list(value._fields), nodes]}
        if isinstance(value, deque) and kind is deque:
            return {"$deque": [value.maxlen, self._items(value, path)]}
        if isinstance(value, set | frozenset) and kind in (set, frozenset):
            if not all(map(_is_key, value)):
                odd = next(item for item in value if not _is_key(item))
                raise self._refusal(f"a {kind.__name__} with a {_full_name(odd)} in it", path)
            # Sorted, so that equal sets have equal bytes: the order of strings in a set differs between processes.
            return {f"${kind.__name__}": sorted(self._items(value, path), key=json.dumps)}
        if isinstance(value, OrderedDict) and kind is OrderedDict:
            return {"$ordered": self._pairs(value, path)}
        if isinstance(value, defaultdict) and kind is defaultdict:
            factory = value.default_factory
            if factory is not None and factory not in _FACTORIES.values():
                raise self._refusal(f"a defaultdict with the factory {factory!r}", path)
            return {"$default": [None if factory is None else factory.__name__, self._pairs(value, path)]}
        if isinstance(value, dict) and kind is dict:
            if all(type(key) is str and not key.startswith("$") for key in value):
                return {key: self.node(item, (*path, key)) for key, item in value.items()}
            return {"$dict": self._pairs(value, path)}
        if isinstance(value, Counter) and kind is Counter and all(isinstance(count, int) for count in value.values()):
            return {"$counter": self._pairs(value, path)}
        raise self._refusal(f"a {_full_name(value)}", path)

    def _items(self, items: Iterable[object], path: tuple[str, ...]) -> list[object]:
        return [self.node(item, (*path, str(index))) for index, item in enumerate(items)]

    def _pairs(self, items: Mapping[object, object], path: tuple[str, ...]) -> list[list[object]]:
        pairs = []
        for index, (key, item) in enumerate(items.items()):
            part = (*path, str(key) if type(key) in (str, int) else f"#{index}")
            known = type(key) in _KEYS
            node = self.node(key, part) if known else None  # limits the depth of a tuple before `_is_key` recurses
            if not known or not _is_key(key):
                raise self._refusal(f"a dict with a {_full_name(key)} as a key", path)
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
        """Return a key for the tensor: its path, plus a number if taken, as for {"a/b": x, "a": {"b": y}}."""
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
            f"numbers, strings, bytes, tensors, numeric arrays, dtypes, devices, paths, times, and lists, tuples, "
            f"dicts, sets and deques of them; for an object, the values that it was created from"
        )


class _Decoder:
    """Convert the result of json.loads back to values. `find` returns the tensor of a key."""

    def __init__(self, find: Callable[[str], torch.Tensor]) -> None:
        self._find = find
        self.has_named_types = False
        self._tagged: dict[str, Callable[[object, int], object]] = {
            "$tensor": lambda body, _: self._tensor(body),
            "$ndarray": lambda body, _: self._tensor(body).numpy(),
            "$numpy": lambda body, _: self._tensor(body).numpy()[()],
            "$tuple": lambda body, depth: tuple(self._list(body, depth)),
            "$dict": lambda body, depth: dict(self._pairs(body, depth)),
            "$counter": self._counter,
            "$ordered": lambda body, depth: OrderedDict(self._pairs(body, depth)),
            "$default": self._default,
            "$set": lambda body, depth: set(self._keys(body, depth)),
            "$frozenset": lambda body, depth: frozenset(self._keys(body, depth)),
            "$deque": self._deque,
            "$slice": self._slice,
            "$named": self._named,
            "$member": self._member,
            "$bytes": lambda body, _: _bytes(body),
            "$bytearray": lambda body, _: bytearray(_bytes(body)),
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
        if len(node) == 1 and tags[0] in TAGS:
            return decode_plain(tags[0], node[tags[0]])
        if len(node) != 1 or tags[0] not in self._tagged:
            raise DataLossError(f"state: unexpected object with the keys {', '.join(map(quoted, list(node)[:5]))}")
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

    def _keys(self, body: object, depth: int) -> list[object]:
        items = self._list(body, depth)
        for item in items:
            if not _is_key(item):
                raise DataLossError(f"state has a {type(item).__name__} in a set")
        return items

    def _parts(self, body: object, count: int) -> list[object]:
        if not isinstance(body, list) or len(body) != count:
            raise DataLossError(f"state: expected a list of {count} parts, found {_shown(body)}")
        return body

    def _default(self, body: object, depth: int) -> "defaultdict[object, object]":
        name, pairs = self._parts(body, 2)
        if name is not None and (not isinstance(name, str) or name not in _FACTORIES):
            raise DataLossError(f"state: expected the name of a factory, found {_shown(name)}")
        return defaultdict(None if name is None else _FACTORIES[name], self._pairs(pairs, depth))

    def _deque(self, body: object, depth: int) -> "deque[object]":
        limit, items = self._parts(body, 2)
        if limit is not None and (type(limit) is not int or not 0 <= limit < 2**62):
            raise DataLossError(f"state: expected the length of a deque, found {_shown(limit)}")
        return deque(self._list(items, depth), limit)

    def _slice(self, body: object, depth: int) -> slice:
        start, stop, step = (self.node(each, depth + 1) for each in self._parts(body, 3))
        return slice(start, stop, step)

    def _named(self, body: object, depth: int) -> StoredTuple:
        name, fields, items = self._parts(body, 3)
        values = StoredTuple(self._list(items, depth))
        if not isinstance(name, str) or not isinstance(fields, list) or len(fields) != len(values):
            raise DataLossError("state has an incomplete named tuple")
        values.name, values.fields, self.has_named_types = name, tuple(map(str, fields)), True
        return values

    def _member(self, body: object, depth: int) -> StoredMember:
        name, value = self._parts(body, 2)
        self.has_named_types = True
        return StoredMember(str(name), self.node(value, depth + 1))

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


def _full_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


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
