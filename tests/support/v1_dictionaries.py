"""Generated contents of version 1 files: tensors of every possible dtype, in one or several parts; unusual names."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from tensorflow_process import RawTensor

from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.saved_tensor_slices import VALUE_FIELDS
from torch_tfckpt.format.tensor_slice import Extent, TensorSlice

WRITABLE = [DataType(number) for number, field in VALUE_FIELDS.items() if field.estimate]
# The names of types in RawTensor and TensorFlow's Python API, if the C++ name differs.
PYTHON_NAMES = {"float": "float32", "double": "float64", "half": "float16"}

Value = torch.Tensor | npt.NDArray[np.object_]


@dataclass(frozen=True)
class Entry:
    """One call of SlicesWriter.add."""

    name: str
    dtype: DataType
    value: Value
    shape: tuple[int, ...] | None = None  # of the full tensor, if `part` is given
    part: TensorSlice | None = None

    @property
    def spec(self) -> str:
        """Shape and slice as TensorFlow spells them."""
        return "" if self.part is None else " ".join((*map(str, self.shape or ()), str(self.part)))

    @property
    def raw(self) -> RawTensor:
        return raw_tensor(self.value, self.dtype)


def raw_tensor(value: Any, dtype: DataType) -> RawTensor:
    """For the TensorFlow process. The dtype is given, since qint8 and int8 have the same torch dtype."""
    plain = RawTensor.of(value.numpy() if isinstance(value, torch.Tensor) else value)
    return RawTensor(PYTHON_NAMES.get(dtype.short_name, dtype.short_name), plain.shape, plain.data)


def values(dtype: DataType, shape: tuple[int, ...]) -> st.SearchStrategy[Value]:
    """Values of a shape, with any bit patterns."""
    count = int(np.prod(shape, dtype=np.int64))
    if dtype == DataType.DT_STRING:
        return st.lists(st.binary(max_size=5), min_size=count, max_size=count).map(
            lambda elements: np.array([*elements, None], dtype=object)[:-1].reshape(shape)
        )
    torch_dtype = ELEMENTS[dtype].torch
    assert torch_dtype is not None
    if dtype == DataType.DT_BOOL:
        flags = st.lists(st.booleans(), min_size=count, max_size=count)
        return flags.map(lambda elements: torch.tensor(elements, dtype=torch.bool).reshape(shape))
    size = count * torch_dtype.itemsize
    return st.binary(min_size=size, max_size=size).map(
        lambda data: torch.tensor(list(data), dtype=torch.uint8).view(torch_dtype).reshape(shape)
    )


@st.composite
def entries_of(draw: st.DrawFn, name: str) -> list[Entry]:
    """One tensor, whole or split along one dimension, its parts in any order."""
    dtype = draw(st.sampled_from(WRITABLE))
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 0]), max_size=3)))
    value = draw(values(dtype, shape))
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    if not axes or 0 in shape or not draw(st.booleans()):
        return [Entry(name, dtype, value)]
    axis = draw(st.sampled_from(axes))
    cut = draw(st.integers(1, shape[axis] - 1))
    parts = []
    for start, stop in ((0, cut), (cut, shape[axis])):
        extents = [Extent(0, -1) if draw(st.booleans()) else Extent(0, size) for size in shape]
        extents[axis] = Extent(start, stop - start)
        part = TensorSlice(tuple(extents))
        parts.append(Entry(name, dtype, value[part.to_index()], shape, part))
    return draw(st.permutations(parts))


NAMES = st.lists(
    st.text(max_size=6) | st.from_regex(r"layer_\d/(kernel|bias)", fullmatch=True), max_size=5, unique=True
)
DICTIONARIES = NAMES.flatmap(lambda names: st.tuples(*map(entries_of, names))).map(
    lambda groups: [entry for group in groups for entry in group]
)


def assembled(entries: list[Entry]) -> dict[str, RawTensor]:
    """The full tensors that the entries form, assembled without this package."""
    full: dict[str, npt.NDArray[Any]] = {}
    dtypes: dict[str, DataType] = {}
    for entry in entries:
        held = entry.value.numpy() if isinstance(entry.value, torch.Tensor) else entry.value
        shape = held.shape if entry.shape is None else entry.shape
        where = () if entry.part is None else entry.part.to_index()
        full.setdefault(entry.name, np.empty(shape, held.dtype))[where] = held[()]
        dtypes[entry.name] = entry.dtype
    return {name: raw_tensor(value, dtypes[name]) for name, value in full.items()}
