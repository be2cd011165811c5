"""Operations on arrays of strings.

Source: tensorflow/core/ops/string_ops.cc and the kernels of the operations.
"""

import itertools
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.axes import given_axes_of
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.text_arrays import array_of, as_text, elements, mapped, single
from torch_tfckpt.graph_ops.values import Axes, Strings, StringsList, Tensor
from torch_tfckpt.text import quoted

_SPACES: Final = b" \t\n\v\f\r"


@op("StringJoin")
def string_join(inputs: StringsList, *, separator: str = "") -> Strings:
    """Join strings at the same place; single strings are repeated."""
    shapes = {each.shape for each in inputs if each.shape}
    if len(shapes) > 1 or not inputs:
        raise InvalidArgumentError(f"the inputs have the shapes {sorted(map(list, shapes))}, expected the same shape")
    shape = next(iter(shapes), ())
    count = int(np.prod(shape))
    columns = [elements(each) if each.shape == shape else elements(each) * count for each in inputs]
    return array_of(map(as_text(separator).join, zip(*columns, strict=True)), shape)


@op("StringLower")
def string_lower(input: Strings, *, encoding: str = "") -> Strings:
    return mapped(input, _case(encoding, bytes.lower, str.lower))


@op("StringUpper")
def string_upper(input: Strings, *, encoding: str = "") -> Strings:
    return mapped(input, _case(encoding, bytes.upper, str.upper))


def _case(encoding: str, of_bytes: Callable[[bytes], bytes], of_text: Callable[[str], str]) -> Callable[[bytes], bytes]:
    if not encoding:
        return of_bytes
    if encoding != "utf-8":
        raise InvalidArgumentError(f"encoding is {quoted(encoding)}, expected utf-8 or nothing")
    return lambda text: of_text(text.decode("utf-8", "replace")).encode()


@op("StringStrip")
def string_strip(input: Strings) -> Strings:
    return mapped(input, lambda text: text.strip(_SPACES))


@op("StringLength")
def string_length(input: Strings, *, unit: str = "BYTE") -> Tensor:
    measure = _measure(unit)
    return torch.tensor([measure(text) for text in elements(input)], dtype=torch.int32).reshape(input.shape)


def _measure(unit: str) -> Callable[[bytes], int]:
    if unit not in ("BYTE", "UTF8_CHAR"):
        raise InvalidArgumentError(f"unit is {quoted(unit)}, expected BYTE or UTF8_CHAR")
    return len if unit == "BYTE" else lambda text: len(_starts(text))


def _starts(text: bytes) -> list[int]:
    """Return where the characters of UTF-8 begin."""
    return [at for at, byte in enumerate(text) if byte & 0xC0 != 0x80]


@op("Substr")
def substr(input: Strings, pos: Tensor, len: Tensor, *, unit: str = "BYTE") -> Strings:
    """Cut out `len` bytes or characters from the place `pos`; places below 0 count from the end."""
    _measure(unit)
    if pos.shape != len.shape:
        raise InvalidArgumentError(f"pos has the shape {list(pos.shape)}, len {list(len.shape)}, expected the same")
    shape = np.broadcast_shapes(input.shape, tuple(pos.shape))
    check_size(shape)
    texts = np.broadcast_to(input, shape).reshape(-1).tolist()
    places, sizes = (each.expand(shape).reshape(-1).tolist() for each in (pos, len))
    cut = _bytes_from if unit == "BYTE" else _characters_from
    return array_of(itertools.starmap(cut, zip(texts, places, sizes, strict=True)), shape)


def _bytes_from(text: bytes, place: int, size: int) -> bytes:
    begin, count = _checked_place(place, len(text)), _checked_size(size)
    return text[begin : begin + count]


def _characters_from(text: bytes, place: int, size: int) -> bytes:
    starts = _starts(text)
    begin, count = _checked_place(place, len(starts)), _checked_size(size)
    limits = [*starts, len(text)]
    return text[limits[begin] : limits[min(begin + count, len(starts))]]


def _checked_place(place: int, size: int) -> int:
    if not -size <= place <= size:
        raise InvalidArgumentError(f"pos {place} is out of range for a string of length {size}")
    return place + size if place < 0 else place


def _checked_size(size: int) -> int:
    return size if size >= 0 else 1 << 62  # TensorFlow takes it as an unsigned number


@op("ReduceJoin")
def reduce_join(inputs: Strings, reduction_indices: Axes, *, keep_dims: bool = False, separator: str = "") -> Strings:
    """Join the strings along axes: along the first axis, then the results along the second, and so on."""
    rank = inputs.ndim
    axes = given_axes_of(reduction_indices, rank)
    if not axes:
        return inputs
    kept = [axis for axis in range(rank) if axis not in axes]
    rows = inputs.transpose([*kept, *reversed(axes)]).reshape(
        [int(np.prod([inputs.shape[axis] for axis in each], dtype=int)) for each in (kept, axes)]
    )
    shape = [1 if axis in axes else size for axis, size in enumerate(inputs.shape) if keep_dims or axis not in axes]
    return array_of((as_text(separator).join(row) for row in rows.tolist()), shape)


@op("StringSplitV2", outputs=("indices", "values", "shape"))
def string_split_v2(input: Strings, sep: Strings, *, maxsplit: int = -1) -> tuple[Tensor, Strings, Tensor]:
    """Split each string of a vector at a separator, or at white space."""
    mark = single(sep, "sep")
    if not maxsplit:
        return _sparse(input, lambda text: [text])
    limit = maxsplit if maxsplit > 0 else -1
    return _sparse(input, lambda text: text.split(mark, limit) if mark else _words(text, limit))


def _words(text: bytes, limit: int) -> list[bytes]:
    found = text.split(None, limit)
    if limit > 0 and len(found) == limit and text.split():
        found.append(b"")  # what is left after the last split
    return found


@op("StringSplit", outputs=("indices", "values", "shape"))
def string_split(input: Strings, delimiter: Strings, *, skip_empty: bool = True) -> tuple[Tensor, Strings, Tensor]:
    """Split each string of a vector at any of the characters `delimiter`; without them, after each byte."""
    marks = single(delimiter, "delimiter")

    def split(text: bytes) -> list[bytes]:
        if not text:
            return []
        if not marks:
            return [text[at : at + 1] for at in range(len(text))]
        parts, begin = [], 0
        for at, byte in enumerate(text):
            if byte in marks:
                parts.append(text[begin:at])
                begin = at + 1
        parts.append(text[begin:])
        return [part for part in parts if part or not skip_empty]

    return _sparse(input, split)


def _sparse(strings: Strings, split: Callable[[bytes], list[bytes]]) -> tuple[Tensor, Strings, Tensor]:
    if strings.ndim != 1:
        raise InvalidArgumentError(f"the strings have the shape {list(strings.shape)}, expected a vector")
    rows = [split(text) for text in elements(strings)]
    places = [(row, column) for row, parts in enumerate(rows) for column in range(len(parts))]
    indices = torch.tensor(places, dtype=torch.int64).reshape(-1, 2)
    shape = torch.tensor([len(rows), max(map(len, rows), default=0)])
    return indices, array_of(itertools.chain.from_iterable(rows)), shape


@op("DecodeRaw")
def decode_raw(bytes: Strings, *, out_type: torch.dtype, little_endian: bool = True) -> Tensor:
    """Read the bytes of the strings as numbers; all strings have the same length."""
    texts = elements(bytes)
    sizes = {len(text) for text in texts}
    width = torch.empty(0, dtype=out_type).element_size()
    if len(sizes) > 1:
        raise InvalidArgumentError(f"the strings have {min(sizes)} to {max(sizes)} bytes, expected the same length")
    size = next(iter(sizes), 0)
    if size % width:
        raise InvalidArgumentError(f"strings of {size} bytes are not a number of elements of {width} bytes")
    shape = (*bytes.shape, size // width)
    joined = bytearray(b"".join(texts))
    if not joined:
        return torch.empty(shape if bytes.size else (*bytes.shape, 0), dtype=out_type)
    part = width // 2 if out_type.is_complex else width
    if not little_endian and part > 1:
        joined = bytearray(np.frombuffer(joined, np.uint8).reshape(-1, part)[:, ::-1].tobytes())
    if out_type == torch.bool:
        return (torch.frombuffer(joined, dtype=torch.uint8) != 0).reshape(shape)
    return torch.frombuffer(joined, dtype=out_type).reshape(shape)


@op("UnsortedSegmentJoin")
def unsorted_segment_join(inputs: Strings, segment_ids: Tensor, num_segments: int, *, separator: str = "") -> Strings:
    """Join the strings with the same number."""
    rank = segment_ids.dim()
    if inputs.shape[:rank] != tuple(segment_ids.shape) or not rank:
        raise InvalidArgumentError(
            f"segment_ids have the shape {list(segment_ids.shape)}, the strings {list(inputs.shape)}"
        )
    inner = inputs.shape[rank:]
    numbers = segment_ids.reshape(-1).tolist()
    if any(not 0 <= number < num_segments for number in numbers):
        raise InvalidArgumentError(f"segment_ids must be in [0, {num_segments})")
    width = int(np.prod(inner))
    check_size((num_segments, *inner))
    rows: dict[int, list[bytes]] = {}
    for number, row in zip(numbers, inputs.reshape(len(numbers), width).tolist(), strict=True):
        for column, text in enumerate(row):
            rows.setdefault(number * width + column, []).append(text)
    found = np.full(num_segments * width, b"", dtype=object)
    for place, texts in rows.items():
        found[place] = as_text(separator).join(texts)
    return found.reshape(num_segments, *inner)
