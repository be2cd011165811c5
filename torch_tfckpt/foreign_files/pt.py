"""PyTorch's .pt, .pth and .bin files, read and written tensor by tensor.

Reading decodes the archive and its pickle here: nothing in the file is executed, and torch.load is not involved.
Dictionaries and lists in it are flattened, and their keys joined with ".": {"model": {"fc.weight": w}} gives
"model.fc.weight". Values that are not plain tensors (numbers, strings, sparse or quantized tensors) are listed as
skipped. Tensors that share memory are returned as separate tensors.

Guaranteed for every file, hostile ones included: it is opened in time and memory linear in the size of its pickle, and
a tensor takes no more memory than the file has bytes. Files whose tensors together have more than MAX_EXPANSION times
as many bytes as the file (many views of one storage) are rejected.

Writing creates a dictionary name -> tensor that torch.load(weights_only=True, mmap=True) reads:

    archive/data.pkl      the dictionary, pickled; each tensor refers to a storage by number
    archive/byteorder     little
    archive/data/0 ...    the bytes of each storage, at multiples of 64
    archive/version       3

This module writes the format itself because torch.save takes all tensors at once. The pickle contains only the objects
that torch.save writes for plain tensors, which its restricted loader allows; values of a checkpoint are never pickled
as objects.

Source: torch/serialization.py (_save, _load), torch/_tensor.py (_reduce_ex_internal), torch/_utils.py
(_rebuild_tensor_v2).
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.errors import DataLossError, InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.foreign_files.identity import identity_of_archive
from torch_tfckpt.foreign_files.pickled_leaves import describe, named_leaves
from torch_tfckpt.foreign_files.pickled_values import STORAGES, PickledTensor, decode_pickle
from torch_tfckpt.foreign_files.stored_zip import ZipSink
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo
from torch_tfckpt.format.tensor_slice import Shape, element_count
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.storage.zip_archive import ZipArchive
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.host_bytes import byte_view, row_major_pieces, swap_bytes
from torch_tfckpt.transfer.pipeline import Pipeline, ReadRequest
from torch_tfckpt.values import new_tensor

MAX_PICKLE_BYTES: Final = 256 * 1024 * 1024  # a million tensors take about 150 MB
MAX_EXPANSION: Final = 64
_MAGIC: Final = b"PK\x03\x04"
_INDEX: Final = "data.pkl"


class _PlacedTensor(NamedTuple):
    """A tensor, and where its elements are in the file."""

    stored: PickledTensor
    offset: int  # bytes from the start of the file
    span: int  # number of elements from the first to the last, gaps included

    @property
    def nbytes(self) -> int:
        return element_count(self.stored.shape) * self.stored.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        return self.stored.shape == () or not self.span or self.stored.strides == _row_major(self.stored)


class PtSource:
    """The tensors of a .pt file.

    Attributes:
        contents: The value that was saved, decoded into the records of `pickled_values`.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: it is damaged, or a different kind of file.
        UnimplementedError: it contains objects other than tensors, or was written before torch 1.6.
        InvalidArgumentError: two tensors would have the same name.

    Cost: opening reads the archive's directory and the pickle.
    Thread safety: one thread at a time.
    """

    format = "pt"
    object_names: None = None

    def __init__(self, path: str) -> None:
        self.path = path
        self.skipped: dict[str, str] = {}
        self._file = LOCAL.open(path)
        self._pipeline = Pipeline()
        self._tensors: dict[str, _PlacedTensor] = {}
        self.contents: Any = None
        try:
            with error_context(printable(path)):
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if self._file.read(0, min(len(_MAGIC), self._file.size)) != _MAGIC:
            raise UnimplementedError(
                "not a zip archive: damaged, or written by torch before 1.6. Load it with "
                "torch.load(..., weights_only=True) and save it again with torch.save"
            )
        archive = ZipArchive(self._file)
        try:
            self._read_archive(archive)
        finally:
            archive.close()

    def _read_archive(self, archive: ZipArchive) -> None:
        self._identity = identity_of_archive(archive.members)
        members = {member.orig_filename: member for member in archive.members}
        indexes = [name for name in members if name.rpartition("/")[2] == _INDEX and name.count("/") <= 1]
        if len(indexes) != 1:
            raise DataLossError(
                f"not a file written by torch.save: the archive has {len(indexes)} members called {_INDEX}"
            )
        directory = indexes[0].removesuffix(_INDEX)
        if f"{directory}constants.pkl" in members:
            raise UnimplementedError("a TorchScript program, not a state dict. Load it with torch.jit.load")
        order = members.get(f"{directory}byteorder")
        self._swapped = order is not None and archive.read(order, 16) == b"big"
        pickled = archive.read(members[indexes[0]], MAX_PICKLE_BYTES)
        places: dict[str, tuple[int, int]] = {}
        expanded = 0
        self.contents = decode_pickle(pickled)
        for name, leaf in named_leaves(self.contents, len(pickled)):
            if not isinstance(leaf, PickledTensor):
                self.skipped[name] = describe(leaf)
                continue
            if name in self._tensors:
                raise InvalidArgumentError(
                    f"two tensors in nested dictionaries are both called {quoted(name)}. Rename one of them"
                )
            key = leaf.storage.key
            if key not in places:
                places[key] = _place(archive, members.get(f"{directory}data/{key}"), name)
            self._tensors[name] = placed = _placed(name, leaf, places[key])
            expanded += placed.nbytes if placed.nbytes <= self._file.size else 0
        if expanded > MAX_EXPANSION * self._file.size:
            raise UnimplementedError(
                f"its tensors take {expanded} bytes, but the file has only {self._file.size}: they are views of the "
                "same storages. Save them again after .contiguous()"
            )

    def names(self) -> list[str]:
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        placed = self._tensors[name]
        return TensorInfo(ElementType.of_torch(placed.stored.dtype), placed.stored.shape, placed.nbytes)

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        wanted = list(names)
        parts: dict[str, torch.Tensor] = {}
        requests = []
        for name in wanted:
            placed = self._tensors[name]
            if placed.nbytes > self._file.size:
                # Valid for an expanded tensor, but a small hostile file could make us allocate all memory this way.
                raise UnimplementedError(
                    f"{printable(self.path)}: tensor {quoted(name)} has {placed.nbytes} bytes, but the file has only "
                    f"{self._file.size}. Save it again after .contiguous()"
                )
            shape = placed.stored.shape if placed.is_contiguous else (placed.span,)
            parts[name] = new_tensor(name, shape, placed.stored.dtype)
            requests.append(ReadRequest(self._file, placed.offset, byte_view(parts[name])))
        self._pipeline.fill(requests)
        return {name: self._shaped(parts[name], self._tensors[name]) for name in wanted}

    def _shaped(self, part: torch.Tensor, placed: _PlacedTensor) -> torch.Tensor:
        if self._swapped:
            swap_bytes(part, part.dtype.itemsize // (2 if part.dtype.is_complex else 1))
        if placed.is_contiguous:
            return part
        view = torch.as_strided(part, placed.stored.shape, placed.stored.strides)
        return view.clone(memory_format=torch.contiguous_format)

    def files(self) -> list[str]:
        return [self.path]

    def data_bytes(self) -> int:
        return self._file.size

    def identity(self) -> str | None:
        return self._identity

    def close(self) -> None:
        self._tensors, self.contents = {}, None
        self._pipeline.close()
        self._file.close()


def _place(archive: ZipArchive, member: zipfile.ZipInfo | None, name: str) -> tuple[int, int]:
    if member is None:
        return 0, 0  # torch writes no member for a storage without bytes
    with error_context(f"tensor {quoted(name)}"):
        return archive.place(member)


def _placed(name: str, stored: PickledTensor, place: tuple[int, int]) -> _PlacedTensor:
    """Return where a tensor is stored; raise DataLossError if it extends beyond its storage."""
    begin, size = place
    span = 0
    if element_count(stored.shape):
        span = 1 + sum((size - 1) * stride for size, stride in zip(stored.shape, stored.strides, strict=True))
    width = stored.dtype.itemsize
    held = min(size, stored.storage.elements * stored.storage.dtype.itemsize)
    if span and (stored.offset + span) * width > held:
        raise DataLossError(
            f"tensor {quoted(name)} needs {(stored.offset + span) * width} bytes of its storage, which has {held}"
        )
    return _PlacedTensor(stored, begin + stored.offset * width, span)


def _row_major(stored: PickledTensor) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor of the same shape; dimensions of size 1 keep their stride."""
    strides: list[int] = []
    step = 1
    for size, stride in zip(reversed(stored.shape), reversed(stored.strides), strict=True):
        strides.append(stride if size == 1 else step)
        step *= size
    return tuple(reversed(strides))


_PROTOCOL: Final = 2  # torch.serialization.DEFAULT_PROTOCOL
_VERSION: Final = b"3\n"  # of the archive; torch/csrc/jit/serialization, kProducedFileFormatVersion
# Dtypes with their own storage class; all others refer to untyped storage.
_STORAGES: Final = {dtype: getattr(torch, name) for name, dtype in STORAGES.items()}


class PtSink(ZipSink):
    """Writes a .pt file.

    Attributes:
        contents: Function that takes a dict, name -> stand-in for each tensor, and returns the object to pickle. This
            must contain all stand-ins, and otherwise only dicts, lists, tuples, numbers and strings. None pickles
            the dict itself.
    """

    format = "pt"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.contents: Callable[[dict[str, Any]], Any] | None = None
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
            self.archive.add(f"archive/data/{self._keys[name]}", row_major_pieces(value))

    def finish(self) -> int:
        self.archive.add("archive/version", [_VERSION])
        return super().finish()

    def _encode_index(self) -> bytes:
        tensors = {
            name: _WrittenTensor(self._keys[name], info.type.dtype, info.shape)
            for name, info in self._infos.items()
            if info.type.dtype is not None
        }
        buffer = io.BytesIO()
        _Pickler(buffer, _PROTOCOL).dump(tensors if self.contents is None else self.contents({**tensors}))
        return buffer.getvalue()


class _WrittenStorage(NamedTuple):
    """The storage of one tensor, to which the pickle refers by number."""

    key: str
    dtype: torch.dtype
    numel: int


class _WrittenTensor:
    """One contiguous tensor, pickled as torch.save pickles it."""

    def __init__(self, key: str, dtype: torch.dtype, shape: Shape) -> None:
        self._storage = _WrittenStorage(key, dtype, element_count(shape))
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
        if not isinstance(item, _WrittenStorage):
            return None
        if item.dtype in _STORAGES:
            return "storage", _STORAGES[item.dtype], item.key, "cpu", item.numel
        return "storage", torch.storage.UntypedStorage, item.key, "cpu", item.numel * item.dtype.itemsize
