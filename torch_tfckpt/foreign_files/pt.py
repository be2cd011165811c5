"""PyTorch's .pt, .pth and .bin files, read and written tensor by tensor.

Reading uses torch.load(weights_only=True, mmap=True): nothing in the file is executed. Dictionaries and lists in it are
flattened, and their keys joined with ".": {"model": {"fc.weight": w}} gives "model.fc.weight". Values
that are not plain tensors (numbers, strings, sparse or quantized tensors) are listed as skipped. Tensors that share
memory are returned as separate tensors.

Writing creates a dictionary name -> tensor that torch.load(weights_only=True, mmap=True) reads:

    archive/data.pkl      the dictionary, pickled; each tensor refers to a storage by number
    archive/byteorder     little
    archive/data/0 ...    the bytes of each storage, at multiples of 64
    archive/version       3

This module writes the format itself because torch.save takes all tensors at once. The pickle contains only the objects
that torch.save writes for plain tensors, which its restricted loader allows; values of a checkpoint are never pickled
as objects.

Source: torch/serialization.py (_save), torch/_tensor.py (_reduce_ex_internal), torch/_utils.py (_rebuild_tensor_v2).
"""

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.errors import DataLossError, InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.foreign_files.identity import identity_of_archive
from torch_tfckpt.foreign_files.npz import zip_errors
from torch_tfckpt.foreign_files.stored_zip import ZipSink
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo
from torch_tfckpt.format.tensor_slice import Shape, element_count
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.host_bytes import byte_view

# Pages of a mapped file count as memory of this process while they are mapped. After this many bytes the file is mapped
# again, so that reading a large file needs little memory.
_MAPPED_BYTES: Final = 32 * 1024 * 1024
_MET: Final = ("WeightsUnpickler error: ", "Trying to load unsupported ")
_MAX_DEPTH: Final = 64


class PtSource:
    """The tensors of a .pt file.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: it is damaged, or of another kind.
        UnimplementedError: it contains objects other than tensors, or was written before torch 1.6.
        InvalidArgumentError: two tensors would have the same name.

    Thread safety: one thread at a time.
    """

    format = "pt"
    object_names: None = None

    def __init__(self, path: str) -> None:
        self.path = path
        self.skipped: dict[str, str] = {}
        self._file = LOCAL.open(path)
        self._touched = 0
        self._tensors: dict[str, torch.Tensor] = {}
        try:
            self._map()
        except BaseException:
            self.close()
            raise

    def _map(self) -> None:
        self._tensors, self.skipped = {}, {}
        # By its descriptor: this is the same file each time, even if another one has its name now; and its path
        # may be in any encoding, while torch takes UTF-8 only.
        for name, leaf in _leaves("", _load(f"/dev/fd/{self._file.fileno()}", self.path), 0):
            reason = _no_tensor(leaf)
            if reason is not None:
                self.skipped[name] = reason
            elif name in self._tensors:
                raise InvalidArgumentError(
                    f"{printable(self.path)}: two tensors in nested dictionaries are both called {quoted(name)}. "
                    "Rename one of them"
                )
            else:
                self._tensors[name] = leaf
        self._touched = 0

    def names(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        tensor = self._tensors[name]
        shape = tuple(tensor.shape)
        return TensorInfo(ElementType.of_torch(tensor.dtype), shape, element_count(shape) * tensor.dtype.itemsize)

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        values: dict[str, FileValue] = {}
        for name in names:
            nbytes = self.info(name).nbytes
            if nbytes > self._file.size:
                # Valid for an expanded tensor, but a small hostile file could make us allocate all memory this way.
                raise UnimplementedError(
                    f"{printable(self.path)}: tensor {quoted(name)} has {nbytes} bytes, but the file has only "
                    f"{self._file.size}. Save it again after .contiguous()"
                )
            if self._touched and self._touched + nbytes > _MAPPED_BYTES:
                self._map()
            self._touched += nbytes
            tensor = self._tensors[name].detach()
            values[name] = tensor.clone(memory_format=torch.contiguous_format)
        return values

    def files(self) -> list[str]:
        return [self.path]

    def data_bytes(self) -> int:
        return self._file.size

    def identity(self) -> str | None:
        with error_context(printable(self.path)), zip_errors():
            with zipfile.ZipFile(f"/dev/fd/{self._file.fileno()}") as archive:
                return identity_of_archive(archive)

    def close(self) -> None:
        self._tensors = {}
        self._file.close()


def _load(mapped: str, path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how old files were written, which does not change the values
            return torch.load(mapped, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UnimplementedError(
            f"{printable(path)}: contains Python objects other than tensors, numbers and dictionaries, and "
            f"loading these could run arbitrary code: {_reason(error)}. Save only its state_dict()"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # For a damaged pickle, torch's reader raises errors of many classes, AssertionError and struct.error included.
        if "mmap can only be used" in str(error):
            raise UnimplementedError(
                f"{printable(path)}: not a zip archive: damaged, or written by torch before 1.6. Load it with "
                f"torch.load(..., weights_only=True) and save it again with torch.save"
            ) from error
        raise DataLossError(f"{printable(path)}: torch.load: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The message of the restricted loader begins with how to disable it; its finding comes last.
    met = [line.removeprefix("WeightsUnpickler error: ") for line in lines if line.startswith(_MET)]
    return (met or lines or [type(error).__name__])[0][:300].partition(" Please use")[0].rstrip(".")


def _leaves(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield all values that are not containers, named by their keys, joined with dots."""
    if depth > _MAX_DEPTH:
        yield name, value
    elif isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), item, depth + 1)
    elif isinstance(value, list | tuple) and value:
        for number, item in enumerate(value):
            yield from _leaves(f"{name}.{number}" if name else str(number), item, depth + 1)
    else:
        yield name, value


def _no_tensor(leaf: Any) -> str | None:
    """Return the kind of a leaf that is not a strided tensor in host memory; None if it is one."""
    if not isinstance(leaf, torch.Tensor):
        return f"{type(leaf).__name__} {repr(leaf)[:60]}"
    if leaf.is_quantized:
        return "quantized tensor"
    if leaf.layout != torch.strided:
        return f"{str(leaf.layout).removeprefix('torch.')} tensor"
    return f"tensor on {leaf.device.type}" if leaf.device.type != "cpu" else None


_PROTOCOL: Final = 2  # torch.serialization.DEFAULT_PROTOCOL
_VERSION: Final = b"3\n"  # of the archive; torch/csrc/jit/serialization, kProducedFileFormatVersion
# Dtypes with their own storage class; all others refer to untyped storage.
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


class PtSink(ZipSink):
    """Writes a .pt file."""

    format = "pt"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._keys: dict[str, str] = {}
        self._infos: Mapping[str, TensorInfo] = {}

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        if info.type.dtype is None:
            return "torch has no strings" if info.type.is_string else f"torch has no type {info.type.name}"
        return None

    def noted_type(self, info: TensorInfo) -> bool:
        return not info.type.is_plain and info.type.tensorflow is not None

    def plan(self, tensors: Mapping[str, TensorInfo], *, sidecar: bool = False) -> list[str]:
        self._infos = tensors
        self._keys = {name: str(number) for number, name in enumerate(tensors)}
        return super().plan(tensors, sidecar=sidecar)

    def open(self, publication: Publication) -> None:
        super().open(publication)
        self.archive.add("archive/data.pkl", [self._encode_index()])
        self.archive.add("archive/byteorder", [b"little"])

    def write(self, values: Mapping[str, FileValue]) -> None:
        for name, value in values.items():
            assert isinstance(value, torch.Tensor), "refused before"
            self.archive.add(f"archive/data/{self._keys[name]}", [byte_view(value)])

    def finish(self) -> int:
        self.archive.add("archive/version", [_VERSION])
        return super().finish()

    def _encode_index(self) -> bytes:
        buffer = io.BytesIO()
        _Pickler(buffer, _PROTOCOL).dump(
            {
                name: _PickledTensor(self._keys[name], info.type.dtype, info.shape)
                for name, info in self._infos.items()
                if info.type.dtype is not None
            }
        )
        return buffer.getvalue()


class _PickledStorage(NamedTuple):
    """The storage of one tensor, to which the pickle refers by number."""

    key: str
    dtype: torch.dtype
    numel: int


class _PickledTensor:
    """One contiguous tensor, pickled as torch.save pickles it."""

    def __init__(self, key: str, dtype: torch.dtype, shape: Shape) -> None:
        self._storage = _PickledStorage(key, dtype, element_count(shape))
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
        if not isinstance(item, _PickledStorage):
            return None
        if item.dtype in _STORAGES:
            return "storage", _STORAGES[item.dtype], item.key, "cpu", item.numel
        return "storage", torch.storage.UntypedStorage, item.key, "cpu", item.numel * item.dtype.itemsize
