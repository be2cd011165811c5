"""Strings from and to the numbers of their characters.

Source: tensorflow/core/kernels/unicode_ops.cc.
"""

import codecs
import itertools
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.text_arrays import array_of, elements
from torch_tfckpt.graph_ops.values import Strings, Tensor
from torch_tfckpt.text import quoted


@op("UnicodeDecode", outputs=("row_splits", "char_values"))
def unicode_decode(
    input: Strings,
    *,
    input_encoding: str,
    errors: str = "replace",
    replacement_char: int = 65533,
    replace_control_characters: bool = False,
    Tsplits: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]:
    """Return the numbers of the characters of all strings, and where each string begins among them."""
    rows = [
        _code_points(text, input_encoding, errors, replacement_char, replace_control_characters)
        for text in elements(input)
    ]
    splits = list(itertools.accumulate(map(len, rows), initial=0))
    values = torch.tensor([*itertools.chain.from_iterable(rows)], dtype=torch.int32)
    return torch.tensor(splits, dtype=Tsplits), values


_MARK: Final = 0xDFFF
_MARKS: Final = "torch_tfckpt.mark"
codecs.register_error(_MARKS, lambda error: (chr(_MARK), error.end))  # type: ignore[attr-defined]
_ENCODINGS: Final = {
    "UTF-8": "utf-8",
    "UTF-16-BE": "utf-16-be",
    "UTF-32-BE": "utf-32-be",
    "US-ASCII": "ascii",
    "ISO-8859-1": "latin-1",
    "LATIN1": "latin-1",
}


def _code_points(text: bytes, encoding: str, errors: str, replacement: int, controls: bool) -> list[int]:
    codec = _ENCODINGS.get(encoding.upper())
    if codec is None:
        raise InvalidArgumentError(f"encoding {quoted(encoding)} is not supported, only {', '.join(_ENCODINGS)}")
    _check_errors(errors)
    try:
        found = list(map(ord, text.decode(codec)))
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise InvalidArgumentError(f"Invalid formatting on input string: {error}") from error
        # A character that no text has stands for each invalid sequence.
        marked = map(ord, text.decode(codec, _MARKS))
        found = [replacement if point == _MARK else point for point in marked if point != _MARK or errors == "replace"]
    if controls:
        found = [replacement if point <= 0x1F else point for point in found if point > 0x1F or errors != "ignore"]
    return found


def _check_errors(errors: str) -> None:
    if errors not in ("replace", "ignore", "strict"):
        raise InvalidArgumentError(f"errors is {quoted(errors)}, expected replace, ignore or strict")


@op("UnicodeEncode")
def unicode_encode(
    input_values: Tensor,
    input_splits: Tensor,
    *,
    errors: str = "replace",
    output_encoding: str,
    replacement_char: int = 65533,
) -> Strings:
    """Return a string for each range of numbers of characters."""
    codec = {"UTF-8": "utf-8", "UTF-16-BE": "utf-16-be", "UTF-32-BE": "utf-32-be"}.get(output_encoding)
    _check_errors(errors)
    if codec is None:
        raise InvalidArgumentError(f"output_encoding is {quoted(output_encoding)}, expected UTF-8, -16-BE or -32-BE")
    points, splits = input_values.tolist(), input_splits.tolist()
    if not splits or splits[0] != 0 or splits[-1] != len(points) or sorted(splits) != splits:
        raise InvalidArgumentError("input_splits must grow from 0 to the number of values")
    texts = []
    for begin, end in itertools.pairwise(splits):
        kept = []
        for point in points[begin:end]:
            if not 0 <= point <= 0x10FFFF or 0xD800 <= point <= 0xDFFF:
                if errors == "strict":
                    raise InvalidArgumentError(f"Code point is out of range for Unicode, or a noncharacter: {point}")
                if errors == "ignore":
                    continue
                point = replacement_char
            kept.append(chr(point))
        texts.append("".join(kept).encode(codec))
    return array_of(texts)
