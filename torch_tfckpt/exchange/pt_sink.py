"""Tensors -> a .pt file that torch.load(weights_only=True, mmap=True) reads: a dictionary name -> tensor.

    archive/data.pkl      the dictionary, pickled; each tensor refers to a storage by number
    archive/byteorder     little
    archive/data/0 ...    the bytes of each storage, at multiples of 64
    archive/version       3

Written here because torch.save takes all tensors at once. The pickle holds only what torch.save puts there for plain
tensors, which its restricted loader allows; nothing of a checkpoint's content is ever pickled as an object.

Source: torch/serialization.py (_save), torch/_tensor.py (_reduce_ex_internal), torch/_utils.py (_rebuild_tensor_v2).
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.device.host_bytes import byte_view
from torch_tfckpt.exchange.publication import Publication
from torch_tfckpt.exchange.stored_zip import StoredZip
from torch_tfckpt.exchange.values import TensorInfo, Value
from torch_tfckpt.format.tensor_slice import Shape, element_count

_PROTOCOL: Final = 2  # torch.serialization.DEFAULT_PROTOCOL
_VERSION: Final = b"3\n"  # of the archive; torch/csrc/jit/serialization, kProducedFileFormatVersion
# Dtypes with a storage class of their own; all others refer to untyped storage.
_STORAGES: Final = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
    torch.complex64: torch.ComplexFloatStorage,
    torch.complex128: torch.ComplexDoubleStorage,
}


class PtSink:
    """Writes `path`. Memory: none beyond the values given."""

    format = "pt"

    def __init__(self, path: str) -> None:
        self.path = path
        self._keys: dict[str, str] = {}
        self._infos: Mapping[str, TensorInfo] = {}
        self._zip: StoredZip | None = None
        self._temporary = ""

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        if info.type.dtype is None:
            return "torch has no strings" if info.type.is_string else f"torch has no type {info.type.name}"
        return None

    def noted_type(self, info: TensorInfo) -> bool:
        return not info.type.is_plain and info.type.tensorflow is not None

    def plan(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        self._infos = tensors
        self._keys = {name: str(number) for number, name in enumerate(tensors)}
        return list(tensors)

    def files(self) -> list[str]:
        return [self.path]

    def open(self, publication: Publication) -> None:
        self._temporary = publication.place(self.path)
        self._zip = StoredZip(self._temporary)
        self._zip.add("archive/data.pkl", [self._encode_index()])
        self._zip.add("archive/byteorder", [b"little"])

    def write(self, values: Mapping[str, Value]) -> None:
        assert self._zip is not None, "not open"
        for name, value in values.items():
            assert isinstance(value, torch.Tensor), "refused before"
            self._zip.add(f"archive/data/{self._keys[name]}", [byte_view(value)])

    def finish(self) -> int:
        assert self._zip is not None, "not open"
        self._zip.add("archive/version", [_VERSION])
        self.close()
        return Path(self._temporary).stat().st_size

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()

    def _encode_index(self) -> bytes:
        buffer = io.BytesIO()
        _Pickler(buffer, _PROTOCOL).dump(
            {
                name: _Tensor(self._keys[name], info.type.dtype, info.shape)
                for name, info in self._infos.items()
                if info.type.dtype is not None
            }
        )
        return buffer.getvalue()


class _Storage(NamedTuple):
    """What stands in the pickle for the bytes of one tensor."""

    key: str
    dtype: torch.dtype
    numel: int


class _Tensor:
    """What stands in the pickle for one contiguous tensor."""

    def __init__(self, key: str, dtype: torch.dtype, shape: Shape) -> None:
        self._storage = _Storage(key, dtype, element_count(shape))
        self._dtype, self._shape = dtype, shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = tuple(element_count(self._shape[axis + 1 :]) for axis in range(len(self._shape)))
        hooks: OrderedDict[str, Any] = OrderedDict()
        arguments = (self._storage, 0, self._shape, strides, False, hooks)
        if self._dtype in _STORAGES:
            return torch._utils._rebuild_tensor_v2, arguments
        return torch._utils._rebuild_tensor_v3, (*arguments, self._dtype)


class _Pickler(pickle.Pickler):
    def persistent_id(self, item: Any) -> Any:
        if not isinstance(item, _Storage):
            return None
        if item.dtype in _STORAGES:
            return "storage", _STORAGES[item.dtype], item.key, "cpu", item.numel
        return "storage", torch.storage.UntypedStorage, item.key, "cpu", item.numel * item.dtype.itemsize
