"""Decode the pickle of a .pt file into plain records. Nothing is imported, called or executed.

A pickle is a program for a stack machine. Only operations that build plain values (numbers, strings, lists, tuples,
dictionaries) from the pickle's own bytes are carried out. A reference to a class or function becomes a `Reference`;
a call becomes the record that represents its result:

    torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, ...)  ->  PickledTensor
    ("storage", torch.FloatStorage, "0", "cpu", 6) as a persistent id      ->  PickledStorage
    collections.OrderedDict()                                              ->  PickledDict
    set, bytes, devices, sparse tensors, ...                               ->  Opaque: its kind in words

A reference that torch.load(weights_only=True) does not accept is an error; the message contains its name.

Guaranteed for every input: time and memory are linear in its size. An operation pops at most as many values as earlier
operations have pushed; no dictionary key from the input is hashed; no size in the input is used before it has been
checked against the number of remaining bytes. Values may still share parts, or contain themselves: see
pickled_leaves.py.

Source: CPython Lib/pickletools.py (operations); torch/_weights_only_unpickler.py (references), torch/_utils.py (calls).
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.errors import DataLossError, UnimplementedError
from torch_tfckpt.format.tensor_bundle import MAX_RANK
from torch_tfckpt.format.tensor_slice import MAX_INT64, Shape
from torch_tfckpt.text import counted, escaped, quoted

_MAX_INTEGER_BYTES: Final = 255
_MAX_ARGUMENTS: Final = 32

# Storage classes and the dtype of their elements. Other dtypes are stored untyped.
STORAGES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_QUANTIZED_STORAGES: Final = ("QInt8Storage", "QInt32Storage", "QUInt8Storage", "QUInt4x2Storage", "QUInt2x4Storage")
_UNTYPED: Final = "torch.storage.UntypedStorage"
_PARAMETER: Final = "torch.nn.parameter.Parameter"


class Reference(NamedTuple):
    """A class, function or constant of torch or Python, by name."""

    path: str


class Opaque(NamedTuple):
    """A value that is not a tensor in host memory, in words: "set", "sparse_coo tensor"."""

    kind: str


class PickledStorage(NamedTuple):
    """The bytes of one or several tensors: member data/<key> of the archive."""

    key: str
    dtype: torch.dtype  # uint8 for untyped storage
    elements: int


class PickledTensor(NamedTuple):
    """A strided view of a storage."""

    storage: PickledStorage
    dtype: torch.dtype
    offset: int  # elements
    shape: Shape
    strides: tuple[int, ...]  # elements


class PickledDict:
    """A dictionary as a list of pairs: keys from a file are not hashed, since they could be chosen to collide.

    Attributes:
        kind: "dict", "OrderedDict" or "Counter".
        has_attributes: Whether it has attributes, which are dropped. The state_dict() of a module has _metadata.
    """

    __slots__ = ("has_attributes", "kind", "pairs")

    def __init__(self, kind: str = "dict") -> None:
        self.pairs: list[tuple[Any, Any]] = []
        self.kind = kind
        self.has_attributes = False


def decode_pickle(data: bytes) -> Any:
    """Return the value of a pickle.

    Raises:
        DataLossError: it is damaged.
        UnimplementedError: it refers to classes or functions other than those of tensors and plain values.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        if isinstance(error, DataLossError):
            raise
        raise DataLossError(f"damaged pickle, byte {machine.at}: {type(error).__name__}: {error}") from error


# Calls: each function takes the arguments of a function or class that torch.load(weights_only=True) accepts, and
# returns the value that represents the result.


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> PickledTensor:
    if not isinstance(storage, PickledStorage) or not _are_sizes((offset,)) or len(rest) > 3:
        raise DataLossError("damaged pickle: a tensor without its storage")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise DataLossError("damaged pickle: the shape and the strides of a tensor do not match")
    if len(shape) > MAX_RANK or not _are_sizes(shape) or not _are_sizes(strides):
        raise DataLossError("damaged pickle: a tensor has an invalid shape or invalid strides")
    return PickledTensor(storage, storage.dtype, offset, shape, strides)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, dtype: Any, *rest: Any
) -> PickledTensor:
    found = dtype_of(dtype)
    if found is None:
        raise DataLossError("damaged pickle: a tensor without a dtype")
    return _tensor(storage, offset, shape, strides, *rest)._replace(dtype=found)


def _are_sizes(values: Sequence[Any]) -> bool:
    return all(type(value) is int and 0 <= value <= MAX_INT64 for value in values)


def _first(value: Any, *_: Any) -> Any:
    return value


def _of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Return the value that represents a tensor of a subclass, or a tensor with attributes."""
    if not isinstance(function, Reference) or function.path not in _TENSORS:
        raise DataLossError("damaged pickle: a tensor without a function that makes it")
    return _called(function, arguments)


def _dictionary(kind: str) -> Callable[..., PickledDict]:
    def call(pairs: Any = None, *_: Any) -> PickledDict:
        made = PickledDict(kind)
        if pairs is not None:  # not copied: a small pickle may pass one long list many times
            made.pairs = pairs.pairs if isinstance(pairs, PickledDict) else _list_of(pairs)
        return made

    return call


def _list_of(value: Any) -> list[Any]:
    if type(value) is not list:
        raise DataLossError("damaged pickle: expected a list, but found a different value")
    return value


def _tuple_of(value: Any = ()) -> tuple[Any, ...]:
    if type(value) is not tuple:
        raise DataLossError("damaged pickle: expected a tuple, but found a different value")
    return value


def _sparse(layout: Any, *_: Any) -> Opaque:
    return Opaque(f"{layout.kind if isinstance(layout, Opaque) else 'sparse'} tensor")


def _layout(name: Any) -> Opaque:
    return Opaque(escaped(name[:60]).removeprefix("torch.") if isinstance(name, str) else "layout")


def _kind(what: str) -> Callable[..., Opaque]:
    return lambda *_: Opaque(what)


_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _kind("tensor stored as a numpy array"),
    "torch._utils._rebuild_qtensor": _kind("quantized tensor"),
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _kind("tensor on meta"),
    "torch._utils._rebuild_nested_tensor": _kind("nested tensor"),
    "torch._utils._rebuild_wrapper_subclass": _kind("tensor subclass"),
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.serialization._get_layout": _layout,
    _PARAMETER: _first,
    "torch.Size": _tuple_of,
    "torch.device": _kind("device"),
    "collections.OrderedDict": _dictionary("OrderedDict"),
    "collections.Counter": _dictionary("Counter"),
    "_codecs.encode": _kind("bytes"),
    "builtins.bytearray": _kind("bytearray"),
    "builtins.set": _kind("set"),
    "builtins.complex": _kind("complex"),
}
_TENSORS: Final = {path for path in _CALLS if path.startswith("torch._utils._rebuild_")}
_CONSTANTS: Final = {
    *("torch.Tensor", "torch.storage.UntypedStorage"),
    *(f"torch.{name}" for name in (*STORAGES, *_QUANTIZED_STORAGES)),
    *(f"torch.{kind}" for kind in ("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine")),
    *("torch.per_channel_symmetric", "torch.per_channel_affine_float_qparams"),
    *(f"torch.{name.removesuffix('Storage')}Tensor" for name in STORAGES),
}


def dtype_of(value: Any) -> torch.dtype | None:
    """Return the dtype that a reference names; None for other values."""
    if not isinstance(value, Reference):
        return None
    module, _, name = value.path.rpartition(".")
    found = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
    return found if isinstance(found, torch.dtype) else None


def _reference(module: str, name: str) -> Reference:
    module = {"__builtin__": "builtins", "torch.tensor": "torch._tensor"}.get(module, module)
    found = Reference(f"{module}.{name}")
    if found.path in _CALLS or found.path in _CONSTANTS or dtype_of(found) is not None:
        return found
    raise UnimplementedError(
        "contains Python objects other than tensors, numbers and dictionaries, and loading these could run arbitrary "
        f"code: {escaped(found.path)}. Save only its state_dict()"
    )


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Reference) or type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
        raise DataLossError("damaged pickle: it calls something that is not a function")
    call = _CALLS.get(function.path)
    return Opaque(f"object of {function.path}") if call is None else call(*arguments)


def _storage_of(identifier: Any) -> PickledStorage:
    kind, storage, key, _location, count = identifier
    if kind != "storage" or not isinstance(storage, Reference) or type(key) is not str or not _are_sizes((count,)):
        raise DataLossError("damaged pickle: a storage without a type, key and size")
    name = storage.path.removeprefix("torch.")
    if storage.path == _UNTYPED:
        return PickledStorage(key, torch.uint8, count)
    if name in _QUANTIZED_STORAGES:
        return PickledStorage(key, torch.quint8, count)  # of quantized tensors, which are skipped
    if name not in STORAGES:
        raise DataLossError(f"damaged pickle: {quoted(storage.path)} is not a storage")
    return PickledStorage(key, STORAGES[name], count)


class _Machine:
    """The stack machine; see the operations at the end of this module."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        operations = _OPERATIONS
        while True:
            code = self.data[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            operation = operations.get(code)
            if operation is None:
                raise DataLossError(f"damaged pickle, byte {self.at - 1}: unknown operation {code:#04x}")
            operation(self)

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        if size > len(self.data) - self.at:
            more = counted(size, "more byte")
            raise DataLossError(f"damaged pickle, byte {self.at}: expected {more}, but the pickle ends first")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        """Return the next unsigned number of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + 1000)
        return self.take(end + 1 - self.at)[:-1].decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def string(self, size: int) -> None:
        self.push(self.take(size).decode("utf-8", "surrogatepass"))

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def memoize(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def integer(self, size: int) -> None:
        if size > _MAX_INTEGER_BYTES:
            raise DataLossError(f"damaged pickle, byte {self.at}: an integer of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def append_all(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise DataLossError(f"damaged pickle, byte {self.at}: it appends to something that is not a list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], PickledDict) or len(items) % 2:
            raise DataLossError(
                f"damaged pickle, byte {self.at}: it sets an item of something that is not a dictionary"
            )
        self.stack[-1].pairs.extend(zip(items[::2], items[1::2], strict=True))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise DataLossError(f"damaged pickle, byte {self.at}: a tuple of values that are missing")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], arguments)

    def build(self) -> None:
        """Record that an object has attributes, such as the _metadata of a state_dict(), and drop them."""
        self.stack.pop()
        if isinstance(self.stack[-1], PickledDict):
            self.stack[-1].has_attributes = True

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise DataLossError(f"damaged pickle, byte {self.at}: a reference without a name")
        self.push(_reference(module, name))

    def add_items(self) -> None:
        self.since_mark()
        if not isinstance(self.stack[-1], Opaque):
            raise DataLossError(f"damaged pickle, byte {self.at}: it adds to something that is not a set")


_STOP: Final = ord(".")
_OPERATIONS: Final[dict[int, Callable[[_Machine], Any]]] = {
    ord(code): operation
    for code, operation in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "J": lambda m: m.integer(4),
        "K": lambda m: m.push(m.number(1)),
        "M": lambda m: m.push(m.number(2)),
        "\x8a": lambda m: m.integer(m.number(1)),  # LONG1
        "\x8b": lambda m: m.integer(m.number(4)),  # LONG4
        "G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        "X": lambda m: m.string(m.number(4)),  # BINUNICODE
        "\x8c": lambda m: m.string(m.number(1)),
        "\x8d": lambda m: m.string(m.number(8)),
        "U": lambda m: m.push(m.take(m.number(1)).decode("latin-1")),  # SHORT_BINSTRING, of Python 2
        "C": lambda m: m.push(m.take(m.number(1))),  # SHORT_BINBYTES
        "B": lambda m: m.push(m.take(m.number(4))),
        "\x8e": lambda m: m.push(m.take(m.number(8))),
        "]": lambda m: m.push([]),
        ")": lambda m: m.push(()),
        "}": lambda m: m.push(PickledDict()),
        "\x8f": lambda m: m.push(Opaque("set")),
        "(": _Machine.mark,
        "a": lambda m: m.append_all([m.stack.pop()]),
        "e": lambda m: m.append_all(m.since_mark()),
        "s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
        "u": lambda m: m.set_items(m.since_mark()),
        "t": lambda m: m.push(tuple(m.since_mark())),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "\x90": _Machine.add_items,
        "0": lambda m: m.stack.pop(),
        "q": lambda m: m.memoize(m.number(1)),
        "r": lambda m: m.memoize(m.number(4)),
        "\x94": lambda m: m.memoize(len(m.memo)),
        "h": lambda m: m.push(m.memo[m.number(1)]),
        "j": lambda m: m.push(m.memo[m.number(4)]),
        "c": lambda m: m.push(_reference(m.line(), m.line())),
        "\x93": _Machine.stack_global,
        "Q": lambda m: m.push(_storage_of(m.stack.pop())),
        "R": _Machine.reduce,
        "\x81": _Machine.reduce,  # NEWOBJ: a class instead of a function
        "b": _Machine.build,
    }.items()
}
