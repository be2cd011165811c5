"""NumPy's .npz format, read and written tensor by tensor.

Arrays of Python objects are never unpickled; they are listed as skipped. If the name of an array is not plain (an
absolute path, "..", a backslash, a control character), the reader treats the array as damaged, and the writer refuses
it. Memory is allocated for an array only if its zip member, given the member's stored size, can be large enough to
contain the array. Types that numpy lacks (bfloat16, float8) are written as unsigned integers with the same bits; the
sidecar stores their types, and reading them back through this package gives the original type.
"""

import io
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from torch_tfckpt.errors import DataLossError, error_context
from torch_tfckpt.foreign_files.identity import identity_of_archive
from torch_tfckpt.foreign_files.npy_header import NpyHeader, read_header
from torch_tfckpt.foreign_files.stored_zip import ZipSink, can_name_member
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, element_count
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.storage.zip_archive import ZipArchive, largest_size, name_fault, zip_errors
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.host_bytes import byte_view, row_major_pieces, swap_bytes
from torch_tfckpt.values import Strings, new_strings, new_tensor

# In memory, a string takes 8 bytes and an object, but in the file it may take no bytes, so the number of strings is
# limited.
_MIN_STRINGS: Final = 65_536
_STRINGS_PER_BYTE: Final = 16
TYPES: Final = {
    np.dtype(name): getattr(torch, name)
    for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64", "complex64", "complex128",
    )
}  # fmt: skip


class _NpyMember(NamedTuple):
    """One array of the archive: its zip member and its .npy header."""

    member: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: Shape
    fortran: bool

    @property
    def nbytes(self) -> int:
        return int(self.dtype.itemsize) * element_count(self.shape)


class NpzSource:
    """The arrays of a .npz file.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: it is not a zip archive, or is damaged.

    Cost: opening reads the archive's directory and the header of each array. Reading an array in Fortran order takes
    twice its size in memory.
    Thread safety: one thread at a time.
    """

    format = "npz"
    object_names: None = None

    def __init__(self, path: str) -> None:
        self.path = path
        self.skipped: dict[str, str] = {}
        self._arrays: dict[str, _NpyMember] = {}
        self._damaged: dict[str, DataLossError] = {}  # arrays whose header cannot be read
        self._file = LOCAL.open(path)
        try:
            with error_context(printable(path)):
                self._zip = ZipArchive(self._file)
        except BaseException:
            self._file.close()
            raise
        try:
            for member in self._zip.members:
                self._list(member)
        except BaseException:
            self.close()
            raise

    def _list(self, member: zipfile.ZipInfo) -> None:
        name = member.orig_filename.removesuffix(".npy")
        if name == member.orig_filename:
            self.skipped[name] = "not a .npy file"
            return
        try:
            with error_context(printable(self.path)):
                array = self._describe(name, member)
        except DataLossError as error:
            self._damaged[name] = error
            return
        if array is not None:
            self._arrays[name] = array

    def _describe(self, name: str, member: zipfile.ZipInfo) -> _NpyMember | None:
        """Read the header of a member; if it is not a tensor, list it in `skipped` and return None."""
        fault = name_fault(name)
        if fault is not None:
            raise DataLossError(f"array {quoted(name)}: its name is invalid: {fault}")
        header = self._header(name, member)
        if header.dtype is None:
            self.skipped[name] = header.type_name
            return None
        array = _NpyMember(member, header.dtype, header.shape, header.fortran)
        held = largest_size(member)
        strings = header.dtype.kind in "SU" and element_count(header.shape)
        if array.nbytes > held or strings > max(_MIN_STRINGS, _STRINGS_PER_BYTE * member.compress_size):
            raise DataLossError(
                f"array {quoted(name)}: {header.dtype} of shape {list(header.shape)[:16]} is larger than its zip "
                f"member, which has at most {held} bytes"
            )
        return array

    def _header(self, name: str, member: zipfile.ZipInfo) -> NpyHeader:
        with error_context(f"array {quoted(name)}"), zip_errors(), self._zip.open(member) as file:
            return read_header(file)

    def names(self) -> list[str]:
        return [*self._arrays, *self._damaged]

    def info(self, name: str) -> TensorInfo:
        array = self._find(name)
        dtype = TYPES.get(array.dtype.newbyteorder("="))
        kind = ElementType.of_tensorflow(DataType.DT_STRING) if dtype is None else ElementType.of_torch(dtype)
        return TensorInfo(kind, array.shape, array.nbytes)

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        found = [(name, self._find(name)) for name in names]
        with error_context(printable(self.path)):
            return {name: self._read(name, array) for name, array in found}

    def _find(self, name: str) -> _NpyMember:
        """Return an array's member; raise DataLossError if it is damaged."""
        if name in self._damaged:
            raise DataLossError(str(self._damaged[name])) from self._damaged[name]
        return self._arrays[name]

    def _read(self, name: str, array: _NpyMember) -> FileValue:
        with zip_errors(), self._zip.open(array.member) as file:
            read_header(file)
            dtype = TYPES.get(array.dtype.newbyteorder("="))
            if dtype is None:
                return _decode_text(name, array, _exactly(file, bytearray(array.nbytes), name))
            stored_shape = array.shape[::-1] if array.fortran else array.shape
            tensor = new_tensor(name, stored_shape, dtype)
            _exactly(file, byte_view(tensor), name)
            if file.read(1):
                raise DataLossError(f"array {quoted(name)} is followed by extra bytes")
        if array.dtype.byteorder == ">":
            swap_bytes(tensor, dtype.itemsize // (2 if dtype.is_complex else 1))
        return tensor.permute(*range(tensor.dim())[::-1]).contiguous() if array.fortran else tensor

    def files(self) -> list[str]:
        return [self.path]

    def data_bytes(self) -> int:
        return self._file.size

    def identity(self) -> str | None:
        return identity_of_archive(self._zip.members)

    def close(self) -> None:
        self._zip.close()
        self._file.close()


def _exactly(file: IO[bytes], target: Any, name: str) -> memoryview:
    """Fill `target` from `file`; raise DataLossError if the file ends before `target` is full."""
    view = memoryview(target)
    at = 0
    while at < len(view):
        got = file.readinto(view[at : at + 1024 * 1024])  # type: ignore[attr-defined]
        if not got:
            raise DataLossError(f"array {quoted(name)} ends after {at} of {len(view)} bytes")
        at += got
    return view


def _decode_text(name: str, array: _NpyMember, data: memoryview) -> Strings:
    """Decode numpy's strings of fixed width, without their padding; str becomes UTF-8."""
    if array.dtype.kind == "U":
        largest = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)).max(initial=0)
        if largest > sys.maxunicode:
            raise DataLossError(f"array {quoted(name)}: {largest} is not a character; the largest is {sys.maxunicode}")
    raw: npt.NDArray[Any] = np.ndarray(array.shape, dtype=array.dtype, buffer=data, order="F" if array.fortran else "C")
    strings = new_strings(name, array.shape)
    flat = strings.reshape(-1)
    for number, element in enumerate(raw.reshape(-1).tolist()):
        flat[number] = element if isinstance(element, bytes) else element.encode("utf-8", "surrogatepass")
    return strings


_DESCRS: Final[dict[torch.dtype, Any]] = {
    torch_dtype: np.lib.format.dtype_to_descr(dtype) for dtype, torch_dtype in TYPES.items()
}


class NpzSink(ZipSink):
    """Writes a .npz file."""

    format = "npz"

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        if info.type.is_string:
            return "numpy's strings drop trailing null bytes"
        if info.type.dtype is None:
            return f"numpy has no type {info.type.name}"
        if not can_name_member(f"{name}.npy"):
            return "a zip archive cannot have a member with its name"
        fault = name_fault(name)
        return None if fault is None else f"its name is not a valid file name in an archive: {fault}"

    def noted_type(self, info: TensorInfo) -> bool:
        return not info.type.is_plain or info.type.dtype not in _DESCRS

    def write(self, values: Mapping[str, FileValue]) -> None:
        for name, value in values.items():
            assert isinstance(value, torch.Tensor), "refused before"
            self.archive.add(f"{name}.npy", _encode(value))


def _encode(tensor: torch.Tensor) -> Iterator[Buffer]:
    """Yield the pieces of a .npy file: header and values."""
    descr = _DESCRS.get(tensor.dtype) or np.lib.format.dtype_to_descr(np.dtype(f"u{tensor.dtype.itemsize}"))
    header: dict[str, Any] = {"descr": descr, "fortran_order": False, "shape": tuple(tensor.shape)}
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, header)  # at most 254 dimensions: far below 65,535 bytes
    yield head.getvalue()
    yield from row_major_pieces(tensor)
