"""The values of one tensor as text and as JSON, for `tfckpt show`.

In JSON, "values" are nested lists in row-major order. NaN and infinities are the strings "NaN", "Infinity" and
"-Infinity", since JSON has no numbers for them; complex numbers are pairs [real, imaginary]. Strings are text if all
of them are UTF-8, otherwise base64, as "encoding" declares. A value of a type that torch lacks is one base64 string
under "bytes".
"""

import base64
import json
import math
import sys
from typing import Any, Final

import numpy as np
import torch

from torch_tfckpt.conversion.tensor_statistics import Statistics, exact_numbers, has_numbers
from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.foreign_files.values import FileValue, StoredBytes, TensorInfo
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.text import byte_text, printable, quoted
from torch_tfckpt.values import Strings

# Above these limits, nobody would read the values on a terminal, and as JSON they would take gigabytes of memory.
_MOST_ELEMENTS: Final = 1_000_000
_MOST_BYTES: Final = 64 * 1024 * 1024
_FULL_WIDTH: Final = 120  # characters of a line
_CUT_STRING: Final = 200  # longer strings are cut unless --full is given


def check_size(path: str, name: str, info: TensorInfo) -> None:
    """Raise UnimplementedError if a tensor is too large to print in full. Call this before reading it."""
    # Dimensions of size 0 count as 1: nested lists of [1000000, 0] have a million lists.
    if math.prod(max(size, 1) for size in info.shape) <= _MOST_ELEMENTS and info.nbytes <= _MOST_BYTES:
        return
    raise UnimplementedError(
        f"{printable(path)}: tensor {quoted(name)} {shape_text(info.shape)} is {byte_text(info.nbytes)}; at most "
        f"{_MOST_ELEMENTS:,} elements and {byte_text(_MOST_BYTES)} are printed. Use --stats, or convert it: "
        f"tfckpt convert {printable(path)} tensor.npz --include NAME"
    )


def value_text(value: FileValue) -> str:
    """Return a value as numpy prints it; long strings are cut, and the middle of large tensors is omitted."""
    if isinstance(value, StoredBytes):
        return f"{len(value.data)} bytes that torch has no type for: {value.data[:64]!r}"
    if isinstance(value, np.ndarray):
        return np.array2string(value, formatter={"object": _cut})  # type: ignore[arg-type]
    if not has_numbers(value.dtype):
        return f"{value.numel()} elements of {value.dtype}"
    return np.array2string(_numbers(value))


def full_text(value: FileValue) -> str:
    """Return a value in full, with as many digits as are needed to identify each number.

    A single string is printed as text if it is UTF-8; JSON, such as the state of an optimizer, is indented.
    """
    if isinstance(value, StoredBytes):
        return repr(value.data)
    if isinstance(value, np.ndarray):
        if value.shape == ():
            return _string_text(value.item())
        return np.array2string(
            value,
            formatter={"object": repr},
            threshold=sys.maxsize,
            max_line_width=_FULL_WIDTH,
        )
    if not has_numbers(value.dtype):
        return repr(_bytes_of(value))
    return np.array2string(_numbers(value), threshold=sys.maxsize, floatmode="unique", max_line_width=_FULL_WIDTH)


def value_as_json(value: FileValue) -> dict[str, Any]:
    """Return the fields of a JSON document that hold a value."""
    if isinstance(value, StoredBytes):
        return {"encoding": "base64", "bytes": _base64(value.data)}
    if isinstance(value, np.ndarray):
        return _strings_as_json(value)
    if not has_numbers(value.dtype):
        return {"encoding": "base64", "bytes": _base64(_bytes_of(value))}
    if value.is_complex() or value.is_floating_point():
        numbers = exact_numbers(value)
        if value.is_complex():
            numbers = np.stack([numbers.real, numbers.imag], axis=-1)
        return {"values": json_numbers(numbers.tolist())}
    return {"values": value.tolist()}


def tensor_document(fields: dict[str, Any]) -> str:
    """Return a JSON document, indented except for "values", which would have a line for each number."""
    others = {name: value for name, value in fields.items() if name != "values"}
    text = json.dumps(others, indent=2, allow_nan=False)
    if "values" not in fields:
        return text
    return f'{text.removesuffix("}").rstrip()},\n  "values": {json.dumps(fields["values"], allow_nan=False)}\n}}'


def statistics_as_json(found: Statistics) -> dict[str, Any]:
    """Return statistics as a JSON object."""
    fields: dict[str, Any] = json_numbers(found._asdict())
    return fields


def json_numbers(value: Any) -> Any:
    """Return nested lists or a dictionary of numbers, with NaN and infinities replaced by strings."""
    if isinstance(value, list):
        return [json_numbers(item) for item in value]
    if isinstance(value, dict):
        return {name: json_numbers(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _numbers(value: torch.Tensor) -> Any:
    return value.numpy() if value.dtype in _KNOWN_TO_NUMPY else exact_numbers(value)


def _bytes_of(value: torch.Tensor) -> bytes:
    return value.reshape(-1).view(torch.uint8).numpy().tobytes()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _strings_as_json(value: Strings) -> dict[str, Any]:
    elements = list(value.reshape(-1))
    try:
        texts = [element.decode("utf-8") for element in elements]
        encoding = "utf-8"
    except UnicodeDecodeError:
        texts = [_base64(element) for element in elements]
        encoding = "base64"
    return {"encoding": encoding, "values": _nested(texts, value.shape)}


def _nested(elements: list[str], shape: Shape) -> Any:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape).tolist()


def _cut(element: bytes) -> str:
    if len(element) <= _CUT_STRING:
        return repr(element)
    return f"{element[: _CUT_STRING - 40]!r}... ({len(element)} bytes)"


def _string_text(element: bytes) -> str:
    try:
        text = element.decode("utf-8")
    except UnicodeDecodeError:
        return repr(element)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(content, indent=2, ensure_ascii=False) if isinstance(content, dict | list) else text


_KNOWN_TO_NUMPY = frozenset(
    {torch.bool, torch.float16, torch.float32, torch.complex64, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)
