"""The file beside a converted checkpoint that keeps what the target format cannot: `model.safetensors.tfckpt.json`.

    {"format": "torch_tfckpt sidecar", "version": 1,
     "tensors": {
      "vocabulary": {"dtype": "DT_STRING", "shape": [2], "base64": ["aGVsbG8=", ""]},
      "iterator": {"dtype": "DT_VARIANT", "shape": [], "base64": "CgQI..."},
      "fft": {"dtype": "DT_COMPLEX128", "shape": [1], "base64": "AAAA..."}},
     "types": {"block/kernel": "DT_QINT8"},
     "bytes": 1670408}

tensors   what is not in the files beside it. Strings: one base64 text an element, in row-major order. Others: the
          elements in row-major order, little-endian; for types that torch lacks, the bytes as a version 2 data file has
          them
types     tensors that are in those files as plain numbers, and the type that they stand for: an int8 that was
          DT_QINT8, a uint16 of an .npz that was bfloat16. "DT_..." is TensorFlow's name or number, "torch...." torch's
bytes     size of those files, added up: a sidecar next to files of another size belongs to others

Names that are no UTF-8 are spelt with Python's surrogate escapes (PEP 383). Readers ignore keys that they do not know
and refuse versions that they do not know.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from torch_tfckpt.errors import DataLossError, NotFoundError, UnimplementedError, error_context
from torch_tfckpt.foreign_files.values import ElementType, FileValue, StoredBytes, TensorInfo
from torch_tfckpt.format.recognise_text import SIDECAR_FORMAT as FORMAT
from torch_tfckpt.format.tensor_bundle import MAX_RANK
from torch_tfckpt.format.tensor_slice import MAX_INT64, Shape, element_count
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import WritableFile
from torch_tfckpt.storage.small_files import read_small
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.values import Strings, new_tensor, strings_from

SUFFIX: Final = ".tfckpt.json"
VERSION: Final = 1
# A sidecar is read whole, and base64 text with what it stands for takes 1.75 times its size. No checkpoint is known
# whose strings and iterators come near this; what is larger should be left out by name.
MAX_BYTES: Final = 1024 * 1024 * 1024
_HINT: Final = "Delete it to read the tensors without what it adds, or convert again."
_CHUNK: Final = 3 * 1024 * 1024  # a multiple of three bytes becomes base64 without padding


def sidecar_of(path: str) -> str:
    """Where the sidecar of `path` lies: a file, the prefix of a checkpoint, or the stem of sharded files."""
    return path + SUFFIX


@dataclass(slots=True)
class Sidecar:
    """What one of them says."""

    types: dict[str, ElementType] = field(default_factory=dict)
    tensors: dict[str, tuple[TensorInfo, FileValue]] = field(default_factory=dict)


def read_sidecar(path: str, beside: int) -> Sidecar | None:
    """The sidecar at `path`, or None where there is none.

    Args:
        beside: Size of the files that it lies beside, added up.

    Raises:
        DataLossError: it is damaged, or belongs to other files.
        UnimplementedError: a later version wrote it.
    """
    try:
        text = read_small(LOCAL, path, MAX_BYTES, "a sidecar", _HINT)
    except NotFoundError:
        return None
    with error_context(printable(path), _HINT):
        return _decode(text, beside)


class SidecarWriter:
    """Writes one, value by value. Memory: one value and a few megabytes."""

    def __init__(self, path: str, types: dict[str, ElementType]) -> None:
        self._file: WritableFile = LOCAL.create(path)
        self._end = 0
        self._types = {name: kind.code for name, kind in types.items()}
        self._separator = "{"
        self._write(f'{{"format": {json.dumps(FORMAT)}, "version": {VERSION},\n "tensors": ')

    def add(self, name: str, info: TensorInfo, value: FileValue) -> None:
        """One tensor that the target does not hold."""
        head = json.dumps({"dtype": info.type.code, "shape": list(info.shape)})
        self._write(f'{self._separator}\n  {json.dumps(name)}: {head[:-1]}, "base64": ')
        self._separator = ","
        if isinstance(value, StoredBytes | torch.Tensor):
            data = value.data if isinstance(value, StoredBytes) else byte_view(value)
            self._write('"')
            for begin in range(0, len(data), _CHUNK):
                self._write(base64.b64encode(data[begin : begin + _CHUNK]).decode("ascii"))
            self._write('"}')
        else:
            self._write(json.dumps([base64.b64encode(element).decode("ascii") for element in value.reshape(-1)]) + "}")

    def finish(self, beside: int) -> None:
        """Ends and closes the file; `beside` as in `read_sidecar`."""
        opening = "{" if self._separator == "{" else ""
        self._write(f'{opening}}},\n "types": {json.dumps(self._types, indent=2)},\n "bytes": {beside}}}\n')
        self.close()

    def close(self) -> None:
        self._file.close()

    def _write(self, text: str) -> None:
        data = text.encode("ascii")  # json.dumps escapes all else, surrogates too
        self._file.write(self._end, [data])
        self._end += len(data)


def encoded_size(info: TensorInfo) -> int:
    """About what a tensor takes in a sidecar."""
    return 200 + 4 * element_count(info.shape) * info.type.is_string + info.nbytes * 4 // 3


def _decode(text: bytes, beside: int) -> Sidecar:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataLossError(f"not a sidecar: no {json.dumps(FORMAT)} in it")
    if content.get("version") != VERSION:
        raise UnimplementedError(f"version {str(content.get('version'))[:20]}; this program reads version {VERSION}")
    if content.get("bytes") != beside:
        raise DataLossError(
            f"it belongs to files of {str(content.get('bytes'))[:20]} bytes; those beside it have {beside}"
        )
    sidecar = Sidecar()
    for name, code in _table(content, "types"):
        sidecar.types[name] = ElementType.from_code(code)
    for name, item in _table(content, "tensors"):
        with error_context(f"tensor {quoted(name)}"):
            sidecar.tensors[name] = _decode_tensor(name, item)
    return sidecar


def _table(content: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    table = content.get(key)
    if not isinstance(table, dict):
        raise DataLossError(f"no table {quoted(key)} in it")
    yield from table.items()


def _decode_tensor(name: str, item: Any) -> tuple[TensorInfo, FileValue]:
    if not isinstance(item, dict):
        raise DataLossError("not a table")
    kind, shape = ElementType.from_code(item.get("dtype")), _decode_shape(item.get("shape"))
    encoded = item.get("base64")
    count = element_count(shape)
    if kind.is_string:
        if not isinstance(encoded, list) or len(encoded) != count:
            raise DataLossError(f"shape {list(shape)[:16]} needs {count} elements")
        strings: Strings = strings_from(name, shape, [_decode_base64(element) for element in encoded])
        return TensorInfo(kind, shape, sum(map(len, strings.reshape(-1)))), strings
    data = _decode_base64(encoded)
    if kind.itemsize and len(data) != count * kind.itemsize:
        raise DataLossError(f"{len(data)} bytes are no {kind.name} of shape {list(shape)[:16]}")
    info = TensorInfo(kind, shape, len(data))
    if kind.dtype is not None:
        tensor = new_tensor(name, shape, kind.dtype)
        if data:
            byte_view(tensor)[:] = data
        return info, tensor
    assert kind.tensorflow is not None, "a type code names at least one of the two"
    return info, StoredBytes(kind.tensorflow, shape, data)


def _decode_shape(value: Any) -> Shape:
    plain = isinstance(value, list) and len(value) <= MAX_RANK
    if not plain or any(type(size) is not int or not 0 <= size <= MAX_INT64 for size in value):
        raise DataLossError(f"impossible shape {str(value)[:100]}")
    return tuple(value)


def _decode_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise DataLossError("base64 text expected")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataLossError(f"broken base64: {error}") from error
