"""Immutable values other than numbers and strings, as JSON: dtypes, devices, paths, times, fractions.

Each type has a tag, and two functions. This table is the complete list of types that a file can name: nothing in a file
is imported or executed. Types are compared exactly, since a subclass may have its own state.

    torch.bfloat16                    {"$dtype": "bfloat16"}
    torch.device("cuda:0")            {"$device": "cuda:0"}
    torch.Size([2, 3])                {"$size": [2, 3]}
    pathlib.Path("runs/1")            {"$path": "runs/1"}
    datetime(2026, 1, 1, 12)          {"$datetime": "2026-01-01T12:00:00"}
    Fraction(1, 3)                    {"$fraction": [1, 3]}

A path that was saved on a different operating system is restored as this system's Path. A time zone is restored as its
offset from UTC.
"""

import datetime
import decimal
import fractions
import pathlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from torch_tfckpt.errors import DataLossError
from torch_tfckpt.text import quoted


@dataclass(frozen=True, slots=True)
class PlainType:
    """How values of one type are stored.

    Attributes:
        tag: The key of the JSON object.
        encode: Value -> what json.dumps accepts.
        decode: The inverse; raises ValueError, TypeError, OverflowError, ArithmeticError or RuntimeError for anything
            else.
    """

    tag: str
    encode: Callable[[Any], object]
    decode: Callable[[Any], object]


def _named(kind: type) -> Mapping[str, object]:
    """Return torch's constants of a type by name."""
    return {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, kind)}


def _of_torch(tag: str, kind: type) -> PlainType:
    table = _named(kind)

    def decode(name: Any) -> object:
        if not isinstance(name, str) or name not in table:
            raise ValueError(f"torch has no {kind.__name__} {name!r}")
        return table[name]

    return PlainType(tag, lambda value: str(value).removeprefix("torch."), decode)


def _text(tag: str, decode: Callable[[str], object], encode: Callable[[Any], str] = str) -> PlainType:
    def checked(body: Any) -> object:
        if not isinstance(body, str):
            raise TypeError(f"expected a string, found a value of type {type(body).__name__}")
        return decode(body)

    return PlainType(tag, encode, checked)


def _integers(tag: str, encode: Callable[[Any], list[int]], decode: Callable[..., object]) -> PlainType:
    def checked(body: Any) -> object:
        if not isinstance(body, list) or not all(type(item) is int for item in body):
            raise TypeError("expected a list of integers")
        return decode(*body)

    return PlainType(tag, encode, checked)


def _of_numbers(*numbers: int) -> torch.Size:
    return torch.Size(numbers)


_PATH: Final = _text("$path", pathlib.Path)
PLAIN_TYPES: Final[Mapping[type, PlainType]] = {
    torch.dtype: _of_torch("$dtype", torch.dtype),
    torch.layout: _of_torch("$layout", torch.layout),
    torch.memory_format: _of_torch("$memory_format", torch.memory_format),
    torch.device: _text("$device", torch.device),
    torch.Size: _integers("$size", list, _of_numbers),
    pathlib.PosixPath: _PATH,
    pathlib.WindowsPath: _PATH,
    pathlib.PurePosixPath: _text("$posix_path", pathlib.PurePosixPath),
    pathlib.PureWindowsPath: _text("$windows_path", pathlib.PureWindowsPath),
    datetime.datetime: _text("$datetime", datetime.datetime.fromisoformat, datetime.datetime.isoformat),
    datetime.date: _text("$date", datetime.date.fromisoformat, datetime.date.isoformat),
    datetime.time: _text("$time", datetime.time.fromisoformat, datetime.time.isoformat),
    datetime.timedelta: _integers(
        "$timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda days, seconds, microseconds: datetime.timedelta(days, seconds, microseconds),
    ),
    fractions.Fraction: _integers(
        "$fraction",
        lambda value: [value.numerator, value.denominator],
        lambda above, below: fractions.Fraction(above, below),
    ),
    decimal.Decimal: _text("$decimal", decimal.Decimal),
    uuid.UUID: _text("$uuid", uuid.UUID),
    range: _integers(
        "$range", lambda value: [value.start, value.stop, value.step], lambda first, end, step: range(first, end, step)
    ),
    np.str_: _text("$numpy_str", np.str_),
    np.bytes_: _text("$numpy_bytes", lambda text: np.bytes_(text.encode("latin-1")), lambda v: v.decode("latin-1")),
}  # fmt: skip
_BY_TAG: Final = {plain.tag: plain for plain in PLAIN_TYPES.values()}
TAGS: Final = frozenset(_BY_TAG)


def encode_plain(value: object) -> dict[str, object] | None:
    """Return the JSON object for a value; None if its type is not in the table."""
    plain = PLAIN_TYPES.get(type(value))
    return None if plain is None else {plain.tag: plain.encode(value)}


def decode_plain(tag: str, body: object) -> object:
    """Return the value of a tag in `TAGS`; DataLossError if `body` is not what `encode_plain` writes."""
    try:
        return _BY_TAG[tag].decode(body)
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        shown = quoted(body) if isinstance(body, str) else f"a JSON {type(body).__name__}"
        raise DataLossError(f"state: {shown} is not a valid {tag}: {error}") from error
