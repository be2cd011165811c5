"""The sidecar, a file with values that the target of a conversion cannot store: model.pt.tfckpt.json.

    {"format": "torch_tfckpt sidecar", "version": 1,
     "tensors": {
      "vocabulary": {"dtype": "DT_STRING", "shape": [2], "base64": ["aGVsbG8=", ""]},
      "iterator": {"dtype": "DT_VARIANT", "shape": [], "base64": "CgQI..."},
      "fft": {"dtype": "DT_COMPLEX128", "shape": [1], "base64": "AAAA..."}},
     "types": {"block/kernel": "DT_QINT8"},
     "layouts": {"fc.weight": "TensorFlow"},
     "bytes": 1670408, "identity": "6c1d93a5e0b7f842"}

tensors   tensors that are not in the converted files. Strings: one base64 string per element, in row-major order.
          Others: the elements in row-major order, little-endian; for dtypes that torch does not have, the bytes as
          stored in a version 2 data file
types     original dtypes of tensors that the converted files store as plain numbers: an int8 that was DT_QINT8, a
          uint16 in an .npz that was bfloat16. "DT_..." is TensorFlow's name or number, "torch...." is torch's name
layouts   tensors that have torch's names, but TensorFlow's order of axes, because they were only renamed; absent if
          there are none
bytes     total size of the converted files; a sidecar next to files of a different size does not belong to them
identity  of the converted files (`foreign_files.identity`), null if they have none; sidecars written by earlier
          versions of this package lack this key

Names that are not UTF-8 are written with Python's surrogate escapes (PEP 383). Readers ignore keys and refuse versions
that they do not know.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from torch_tfckpt.errors import DataLossError, NotFoundError, UnimplementedError, error_context
from torch_tfckpt.foreign_files.values import ElementType, FileValue, StoredBytes, TensorInfo
from torch_tfckpt.format.recognise_text import SIDECAR_FORMAT as FORMAT
from torch_tfckpt.format.tensor_bundle import MAX_RANK
from torch_tfckpt.format.tensor_slice import MAX_INT64, Shape, element_count, shape_text
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import WritableFile
from torch_tfckpt.storage.small_files import read_small
from torch_tfckpt.text import counted, printable, quoted, shortened
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.values import Strings, new_tensor, strings_from

SUFFIX: Final = ".tfckpt.json"
VERSION: Final = 1
_TENSORFLOW: Final = "TensorFlow"
# A sidecar is read as a whole; the base64 text and the decoded bytes together take 1.75 times the size of the text. No
# known checkpoint has strings and iterators of nearly this size; larger tensors should be excluded by name.
MAX_BYTES: Final = 1024 * 1024 * 1024
_HINT: Final = "Delete it to read the file without it, or convert again."
_CHUNK: Final = 3 * 1024 * 1024  # a multiple of three bytes becomes base64 without padding


def sidecar_of(path: str) -> str:
    """Return the path of the sidecar of a file, of a checkpoint's prefix, or of sharded files."""
    return path + SUFFIX


@dataclass(slots=True)
class Sidecar:
    """Content of a sidecar.

    Attributes:
        tensorflow_layouts: Names of tensors that have torch's names, but TensorFlow's order of axes.
    """

    types: dict[str, ElementType] = field(default_factory=dict)
    tensors: dict[str, tuple[TensorInfo, FileValue]] = field(default_factory=dict)
    tensorflow_layouts: set[str] = field(default_factory=set)


def read_sidecar(path: str, data_bytes: int, identity: Callable[[], str | None] = lambda: None) -> Sidecar | None:
    """Read the sidecar at `path`; None if there is no such file.

    Args:
        data_bytes: Total size of the files that the sidecar should belong to.
        identity: Returns the identity of these files.

    Raises:
        DataLossError: it is damaged, or belongs to other files.
        UnimplementedError: it was written by a later version.
    """
    try:
        text = read_small(LOCAL, path, MAX_BYTES, "a sidecar", _HINT)
    except NotFoundError:
        return None
    with error_context(printable(path), _HINT):
        return _decode(text, data_bytes, identity)


class SidecarWriter:
    """Writes a sidecar, value by value. Memory: one value and a few megabytes."""

    def __init__(self, path: str, types: dict[str, ElementType], tensorflow_layouts: Iterable[str] = ()) -> None:
        self._file: WritableFile = LOCAL.create(path)
        self._end = 0
        self._types = {name: kind.code for name, kind in types.items()}
        self._layouts = dict.fromkeys(tensorflow_layouts, _TENSORFLOW)
        self._separator = "{"
        self._write(f'{{"format": {json.dumps(FORMAT)}, "version": {VERSION},\n "tensors": ')

    def add(self, name: str, info: TensorInfo, value: FileValue) -> None:
        """Write one tensor that the target cannot store."""
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

    def finish(self, data_bytes: int, identity: str | None = None) -> None:
        """Complete and close the file; the arguments as in `read_sidecar`."""
        opening = "{" if self._separator == "{" else ""
        files = f'"bytes": {data_bytes}, "identity": {json.dumps(identity)}'
        layouts = f' "layouts": {json.dumps(self._layouts, indent=2)},\n' if self._layouts else ""
        self._write(f'{opening}}},\n "types": {json.dumps(self._types, indent=2)},\n{layouts} {files}}}\n')
        self.close()

    def close(self) -> None:
        self._file.close()

    def _write(self, text: str) -> None:
        data = text.encode("ascii")  # json.dumps escapes all other characters, including surrogates
        self._file.write(self._end, [data])
        self._end += len(data)


def check_size(target: str, target_format: str, infos: Mapping[str, TensorInfo]) -> None:
    """Raise UnimplementedError if the sidecar of these tensors would be too large to be read back."""
    size = sum(map(_encoded_size, infos.values()))
    if size > MAX_BYTES:
        largest = max(infos, key=lambda name: infos[name].nbytes)
        raise UnimplementedError(
            f"{printable(target)}: {counted(len(infos), 'tensor')} that {target_format} cannot store need a sidecar of "
            f"{size} bytes, more than the {MAX_BYTES} that can be read back. The largest is {quoted(largest)}, "
            f"{infos[largest].type.name} {shape_text(infos[largest].shape)}. Exclude it, or choose another format"
        )


def _encoded_size(info: TensorInfo) -> int:
    """Return the approximate size of a tensor in a sidecar."""
    return 200 + 4 * element_count(info.shape) * info.type.is_string + info.nbytes * 4 // 3


def _decode(text: bytes, data_bytes: int, identity: Callable[[], str | None]) -> Sidecar:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataLossError(f"not a sidecar: its format is not {json.dumps(FORMAT)}")
    if content.get("version") != VERSION:
        raise UnimplementedError(
            f"version {shortened(content.get('version'), 20)}; this program reads version {VERSION}"
        )
    if content.get("bytes") != data_bytes:
        raise DataLossError(
            f"it belongs to files with {shortened(content.get('bytes'), 20)} bytes in total; the files next to it have "
            f"{data_bytes}"
        )
    expected = content.get("identity")
    if expected is not None and expected != (found := identity()):
        raise DataLossError(
            f"it belongs to files with identity {quoted(str(expected)[:40])}; the files next to it have identity "
            f"{quoted(found or 'none')}, so they are from a different conversion"
        )
    sidecar = Sidecar()
    for name, code in _table(content, "types"):
        sidecar.types[name] = ElementType.from_code(code)
    for name, layout in _table(content, "layouts") if "layouts" in content else ():
        if layout != _TENSORFLOW:
            raise UnimplementedError(f"tensor {quoted(name)}: unknown layout {shortened(layout, 20)}")
        sidecar.tensorflow_layouts.add(name)
    for name, item in _table(content, "tensors"):
        with error_context(f"tensor {quoted(name)}"):
            sidecar.tensors[name] = _decode_tensor(name, item)
    return sidecar


def _table(content: dict[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    table = content.get(key)
    if not isinstance(table, dict):
        raise DataLossError(f"it has no object {quoted(key)}")
    yield from table.items()


def _decode_tensor(name: str, item: Any) -> tuple[TensorInfo, FileValue]:
    if not isinstance(item, dict):
        raise DataLossError("not an object")
    kind, shape = ElementType.from_code(item.get("dtype")), _decode_shape(item.get("shape"))
    encoded = item.get("base64")
    count = element_count(shape)
    if kind.is_string:
        if not isinstance(encoded, list) or len(encoded) != count:
            raise DataLossError(f"shape {list(shape)[:16]} needs a list of {counted(count, 'element')}")
        strings: Strings = strings_from(name, shape, [_decode_base64(element) for element in encoded])
        return TensorInfo(kind, shape, sum(map(len, strings.reshape(-1)))), strings
    data = _decode_base64(encoded)
    if kind.itemsize and len(data) != count * kind.itemsize:
        expected = counted(count * kind.itemsize, "byte")
        raise DataLossError(f"{kind.name} of shape {list(shape)[:16]} needs {expected}, but has {len(data)}")
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
        raise DataLossError(f"invalid shape {shortened(value, 100)}")
    return tuple(value)


def _decode_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise DataLossError("not a base64 string")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataLossError(f"invalid base64: {error}") from error
