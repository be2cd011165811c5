"""Variables for Savers: the same names, values, devices and slices for ours and for TensorFlow's."""

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from generated import UNDER_ANOTHER_NAME, Named, dictionary
from tensorflow_process import LENGTH_BYTES, RawTensor
from v1_dictionaries import WRITABLE

import torch_tfckpt as tfckpt
from torch_tfckpt.dtypes import STORED_AS
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Extent, Shape, TensorSlice, parse_shape_and_slice
from torch_tfckpt.values import Value

V1, V2 = tfckpt.SaverDef.V1, tfckpt.SaverDef.V2
# TensorFlow 2.21 has no kernel that assigns to a resource variable of these types.
NO_VARIABLES = ("float8_e4m3fnuz", "float8_e5m2fnuz", "qint16", "quint16")
# Values in one set. Building TensorFlow's graph takes time; and with more than 16 in a version 1 file, TensorFlow lists
# slices of one name in the order of an unstable sort.
MOST = 16
DEVICES = (
    ("",), ("/cpu:0",), ("", "/cpu:0"), ("/cpu:0", "/cpu:1"), ("/cpu:0", "/cpu:1", "/cpu:2"),
    ("", "/cpu:0", "/cpu:2", "/cpu:3"),
)  # fmt: skip


class Described(NamedTuple):
    """A variable, or one part of a partitioned one."""

    name: str
    named: Named
    device: str = ""  # "": no device
    spec: str = ""  # "4 5 0,2:0,5": rows 0 and 1 of a tensor of shape [4, 5]; "": a whole tensor

    @property
    def dtype(self) -> DataType:
        """The stored type."""
        value = self.named.value
        return self.named.dtype or (STORED_AS[value.dtype] if isinstance(value, torch.Tensor) else DataType.DT_STRING)

    @property
    def blank(self) -> "Described":
        """The same with zeros or empty strings as values."""
        value, (dtype, shape, data) = self.named.value, (self.raw.dtype, self.raw.shape, self.raw.data)
        if isinstance(value, torch.Tensor):
            zeros = Named(torch.zeros_like(value), RawTensor(dtype, shape, bytes(len(data))), self.named.dtype)
        else:
            strings = RawTensor(dtype, shape, bytes(LENGTH_BYTES * prod(shape)))
            zeros = Named(np.full(shape, b"", dtype=object), strings)
        return self._replace(named=zeros)

    @property
    def raw(self) -> RawTensor:
        return self.named.raw


class Untorchlike(tfckpt.SaveableObject):
    """Strings, and types that torch represents by another dtype: their stored type must be given."""

    def __init__(self, described: Described) -> None:
        self.value = described.named.value
        spec = tfckpt.SaveSpec(lambda: self.value, described.spec, described.name, described.dtype, described.device)
        super().__init__(self, [spec], described.name)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        [self.value] = restored_tensors


Ours = tfckpt.Variable | Untorchlike


def ours(variables: Iterable[Described]) -> list[Ours]:
    """Return the values for this package's Saver."""
    made: list[Ours] = []
    for described in variables:
        name, named, device, spec = described
        if named.dtype is not None or not isinstance(named.value, torch.Tensor):
            made.append(Untorchlike(described))
            continue
        info = None
        if spec:
            full_shape, part, shape = parse_shape_and_slice(spec)
            info = tfckpt.SaveSliceInfo(name, full_shape, [extent.start for extent in part.extents], shape)
        made.append(tfckpt.Variable(named.value, name, info, device=device))
    return made


def var_list(variables: Iterable[Described], made: Iterable[Ours]) -> dict[str, object]:
    """Return the dict for a Saver; parts of one tensor in a list."""
    named: dict[str, Any] = {}
    for (name, _, _, spec), variable in zip(variables, made, strict=True):
        if spec:
            named.setdefault(name, []).append(variable)
        else:
            named[name] = variable
    return named


def theirs(variables: Iterable[Described]) -> list[tuple[str, RawTensor, str, str]]:
    """For tests/support/tensorflow_side.py."""
    return [(name, named.raw, device, spec) for name, named, device, spec in variables]


def held(made: Iterable[Ours]) -> list[tuple[Shape, bytes]]:
    """The present values of our variables."""
    values = [RawTensor.of(each.tensor if isinstance(each, tfckpt.Variable) else each.value) for each in made]
    return [(value.shape, value.data) for value in values]


def expected(variables: Iterable[Described]) -> list[tuple[Shape, bytes]]:
    """The described values, in the form of `held`."""
    return [(each.raw.shape, each.raw.data) for each in variables]


def parts_of(name: str, whole: torch.Tensor, specs: Iterable[str], devices: Sequence[str] = ("",)) -> list[Described]:
    """Split a tensor into parts, which are views of it, on alternating devices."""
    found = []
    for number, spec in enumerate(specs):
        part = whole[parse_shape_and_slice(spec)[1].to_index()]
        found.append(Described(name, Named(part, RawTensor.of(part)), devices[number % len(devices)], spec))
    return found


def one_of_each_type(version: int, devices: Sequence[str] = ("",)) -> list[Described]:
    """A vector of every type of TensorFlow's variables that files of that version can store; also a scalar, empty
    tensors, strings, and a matrix in parts on several devices."""
    rng = random.Random(7)
    variables = [
        Described("empty", _of(torch.empty(0, 3))),
        Described("step", _of(torch.tensor(1234567890123))),
        Described("strings", Named(text := np.array([[b"", b"\0\xff"], [b"x" * 300, "größe".encode()]]), _raw(text))),
        Described("word", Named(word := np.array(b"one", dtype=object), _raw(word))),
    ]
    held_as = {dtype: (dtype_of, name) for dtype, (dtype_of, name) in UNDER_ANOTHER_NAME.items()}
    held_as |= {DataType.DT_INT2: (torch.int8, "int2"), DataType.DT_UINT2: (torch.uint8, "uint2")}
    for stored, (dtype, name) in held_as.items():
        small = torch.tensor([rng.randrange(2) for _ in range(5)], dtype=dtype)
        raw = RawTensor(name, (5,), RawTensor.of(small).data)
        variables.append(Described(f"as/{name}", Named(small, raw, stored)))
    for dtype in STORED_AS:
        variables.append(Described(f"of/{dtype}", _of(torch.tensor([0, 1, 1, 0, 1]).to(dtype))))
    matrix = torch.arange(50.0).reshape(5, 10)
    variables += parts_of("parts", matrix, ["5 10 0,5:0,3", "5 10 0,5:3,7"], devices[-2:])
    kept = [each for each in variables if _is_variable(each, version)]
    return [each._replace(device=each.device or devices[n % len(devices)]) for n, each in enumerate(kept)]


def generated(seed: int, version: int) -> list[Described]:
    """A few variables of any type, shape and name, on up to four devices, some of them in parts."""
    rng = random.Random(seed)
    devices = rng.choice(DEVICES)
    made = dictionary(seed + seed // 9)  # every tenth dictionary is too large
    variables = [Described(name, named, rng.choice(devices)) for name, named in made.items()]
    variables = [_canonical(each) for each in variables if _is_variable(each, version)]
    found = [Described("always/there", _of(torch.tensor([rng.random()])), rng.choice(devices))]
    for each in variables:
        value, parts = each.named.value, [each]
        can_be_cut = each.named.dtype is None and isinstance(value, torch.Tensor) and value.ndim and value.numel()
        if can_be_cut and rng.random() < 0.5:
            assert isinstance(value, torch.Tensor)
            parts = parts_of(each.name, value, _cut(rng, tuple(value.shape)), rng.sample(devices, len(devices)))
        if len(found) + len(parts) <= MOST:
            found += parts
    return found


def _cut(rng: random.Random, shape: Shape) -> list[str]:
    """Consecutive slices along one dimension; a single one if that is too short. REQUIRES: elements."""
    axis = rng.randrange(len(shape))
    inner = range(1, shape[axis])
    ends = sorted(rng.sample(inner, min(len(inner), rng.randint(1, 3))))
    bounds = [0, *ends, shape[axis]]
    specs = []
    for start, end in pairwise(bounds):
        extents = [Extent(0, length) for length in shape]
        extents[axis] = Extent(start, end - start)
        specs.append(" ".join((*map(str, shape), str(TensorSlice(tuple(extents))))))
    return specs


def _canonical(described: Described) -> Described:
    """4-bit types as TensorFlow's kernels leave them: assigning to a variable clears or sign-extends the other bits."""
    named = described.named
    if not isinstance(named.value, torch.Tensor) or described.dtype not in (DataType.DT_INT4, DataType.DT_UINT4):
        return described
    value = named.value & 7
    raw = RawTensor(named.raw.dtype, named.raw.shape, RawTensor.of(value).data)
    return described._replace(named=Named(value, raw, named.dtype))


def _is_variable(described: Described, version: int) -> bool:
    return described.raw.dtype not in NO_VARIABLES and (version == V2 or described.dtype in WRITABLE)


def _of(tensor: torch.Tensor) -> Named:
    return Named(tensor, RawTensor.of(tensor))


def _raw(array: Any) -> RawTensor:
    return RawTensor.of(array.astype(object))
