r"""Decode the header of a .npy file, without numpy's parser, which evaluates it as Python source.

    \x93NUMPY | major: u8 | minor: u8 | size: u16le (version 1) or u32le (versions 2 and 3) | header: text, then spaces

    {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }

Only this form is accepted: the three keys, once each, in any order; their values are a string, True or False, and a
tuple of numbers (an L may follow a number, as written by Python 2). The description of a structured type is skipped up
to its closing bracket.

Source: numpy/lib/_format_impl.py (_read_array_header, _write_array_header).
"""

import re
import struct
from typing import IO, Any, Final, NamedTuple

import numpy as np

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.format.tensor_slice import MAX_INT64, Shape
from torch_tfckpt.text import escaped

MAX_HEADER_BYTES: Final = 10_000  # numpy refuses more
MAX_DIMENSIONS: Final = 64  # of a numpy array
_MAGIC: Final = b"\x93NUMPY"
_SIZES: Final = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}
_VALUES: Final = r"""'(?P<text>[^'\\]*)'|"(?P<quoted>[^"\\]*)"|(?P<truth>True|False)|\((?P<tuple>[0-9L, ]*)\)"""
_ITEM: Final = re.compile(rf"""\s*['"](?P<key>descr|fortran_order|shape)['"]\s*:\s*(?:{_VALUES}|(?P<list>\[))\s*""")
_SEPARATOR: Final = re.compile(r"\s*,\s*")
_NUMBER: Final = re.compile(r"[0-9]{1,19}L?")
# Types of numbers and strings. Only these are passed to numpy.dtype.
_TYPE: Final = re.compile(r"[<>|=]?(?:b1|i[1248]|u[1248]|f[248]|c8|c16|S[0-9]{1,7}|U[0-9]{1,7})")
_TIME: Final = re.compile(r"[<>=]?([Mm])8(\[\w{0,20}\])?")


class NpyHeader(NamedTuple):
    """Type, shape and order of an array."""

    dtype: np.dtype[Any] | None  # None: neither numbers nor strings of fixed width
    type_name: str  # for messages
    fortran: bool
    shape: Shape


def read_header(file: IO[bytes]) -> NpyHeader:
    """Read the header at the start of `file`; raise DataLossError if it is not valid."""
    magic = file.read(len(_MAGIC) + 2)
    if magic[: len(_MAGIC)] != _MAGIC or len(magic) < len(_MAGIC) + 2:
        raise DataLossError("not a .npy file: it does not begin with its magic bytes")
    layout = _SIZES.get(magic[len(_MAGIC)])
    if layout is None:
        raise DataLossError(
            f"version {magic[len(_MAGIC)]}.{magic[len(_MAGIC) + 1]} of the .npy format is not supported"
        )
    (size,) = layout.unpack(_exactly(file, layout.size))
    if size > MAX_HEADER_BYTES:
        raise DataLossError(f"the .npy header is {size} bytes long; at most {MAX_HEADER_BYTES} are read")
    return decode_header(_exactly(file, size))


def decode_header(header: bytes) -> NpyHeader:
    """Decode the dictionary; raise DataLossError if it does not have the form that numpy writes."""
    text = header.decode("utf-8", "replace").strip()
    if not text.startswith("{") or not text.endswith("}"):
        raise _invalid(text)
    found: dict[str, str | bool | Shape] = {}
    type_name = None
    at = 1
    while at < len(text) - 1:
        item = _ITEM.match(text, at)
        if item is None or item["key"] in found:
            raise _invalid(text)
        at = item.end()
        if item["list"]:
            begin, at = item.start("list"), _end_of_list(text, item.start("list"))
            found[item["key"]] = type_name = text[begin:at]
        else:
            found[item["key"]] = _value(item, text)
        separator = _SEPARATOR.match(text, at, len(text) - 1)
        if separator is None and at < len(text) - 1:
            raise _invalid(text)
        at = len(text) - 1 if separator is None else separator.end()
    descr, fortran, shape = found.get("descr"), found.get("fortran_order"), found.get("shape")
    if not isinstance(descr, str) or not isinstance(fortran, bool) or not isinstance(shape, tuple):
        raise _invalid(text)
    if type_name is None and _TYPE.fullmatch(descr):
        return NpyHeader(np.dtype(descr), descr, fortran, shape)
    return NpyHeader(None, _type_name(descr), fortran, shape)


def _value(item: re.Match[str], text: str) -> str | bool | Shape:
    if item["truth"]:
        return item["truth"] == "True"
    if item["tuple"] is None:
        return item["text"] if item["text"] is not None else item["quoted"]
    sizes = [part.strip() for part in item["tuple"].split(",")]
    if sizes[-1] == "":
        sizes.pop()  # (2,) and ()
    if len(sizes) > MAX_DIMENSIONS or not all(map(_NUMBER.fullmatch, sizes)):
        raise _invalid(text)
    shape = tuple(int(size.rstrip("L")) for size in sizes)
    if any(size > MAX_INT64 for size in shape):
        raise _invalid(text)
    return shape


def _end_of_list(text: str, begin: int) -> int:
    depth = 0
    for at in range(begin, len(text)):
        depth += (text[at] in "[(") - (text[at] in "])")
        if depth == 0:
            return at + 1
    raise _invalid(text)


def _type_name(descr: str) -> str:
    if descr.strip("|<>=") == "O":
        return "Python objects, which are never unpickled"
    if time := _TIME.fullmatch(descr):
        return f"numpy {'datetime64' if time[1] == 'M' else 'timedelta64'}{time[2] or ''}"
    return f"numpy {escaped(descr[:200])}"


def _invalid(text: str) -> DataLossError:
    return DataLossError(f"invalid .npy header {escaped(text[:200])}")


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise DataLossError("the data ends inside the .npy header")
    return data
