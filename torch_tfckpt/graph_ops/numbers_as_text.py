"""Numbers to strings and back.

Source: tensorflow/core/kernels/as_string_op.cc, string_to_number_op.cc; tsl/platform/numbers.cc.
"""

import math
import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.text_arrays import array_of, elements
from torch_tfckpt.graph_ops.values import AnyTensor, Strings, Tensor
from torch_tfckpt.text import quoted, shortened

_MAX_WIDTH: Final = 1 << 16
_FILLS: Final = " +-0#"
_UNSIGNED: Final = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
_INTEGER: Final = re.compile(rb"[ \t\n\v\f\r]*[+-]?[0-9]+[ \t\n\v\f\r]*")
_FLOAT: Final = re.compile(
    rb"[ \t\n\v\f\r]*([+-]?)(0x[0-9a-f]+|([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf(?:inity)?|nan)[ \t\n\v\f\r]*",
    re.IGNORECASE,
)


@op("AsString")
def as_string(
    input: AnyTensor,
    *,
    precision: int = -1,
    scientific: bool = False,
    shortest: bool = False,
    width: int = -1,
    fill: str = "",
) -> Strings:
    """Format numbers as C's `printf` does."""
    if isinstance(input, np.ndarray):
        return input
    is_float = input.is_floating_point() or input.is_complex()
    if (scientific or shortest) and not is_float:
        raise InvalidArgumentError(f"scientific and shortest format not supported for {input.dtype}")
    if precision > -1 and not is_float:
        raise InvalidArgumentError(f"precision not supported for {input.dtype}")
    if scientific and shortest:
        raise InvalidArgumentError("Cannot select both scientific and shortest notation")
    if len(fill) > 1 or fill not in _FILLS:
        raise InvalidArgumentError(f"Fill argument not supported: {quoted(fill)}")
    if max(width, precision) > _MAX_WIDTH:
        raise InvalidArgumentError(f"width {width} and precision {precision} must be at most {_MAX_WIDTH}")
    sizes = (str(width) if width > -1 else "") + (f".{precision}" if precision > -1 else "")
    numbers = input.reshape(-1).tolist()
    one: Callable[[Any], str]
    if input.dtype == torch.bool:
        one = _bool
    elif is_float:
        one = _float_format(fill, sizes, "e" if scientific else "g" if shortest else "f")
    else:
        sign = "" if input.dtype in _UNSIGNED and fill in "+ " else fill
        one = f"%{sign}{sizes}d".__mod__
    if input.is_complex():
        texts = [f"({one(number.real)},{one(number.imag)})" for number in numbers]
    else:
        texts = [one(number) for number in numbers]
    return array_of((text.encode() for text in texts), input.shape)


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _float_format(fill: str, sizes: str, kind: str) -> Callable[[float], str]:
    pattern = f"%{fill}{sizes}{kind}"
    # printf fills infinity and NaN with spaces, and shows the sign of NaN.
    plain = f"%{'' if fill == '0' else fill}{sizes.partition('.')[0]}s"

    def one(value: float) -> str:
        if math.isfinite(value):
            return pattern % value
        text = "nan" if math.isnan(value) else "inf"
        sign = "-" if math.copysign(1, value) < 0 else fill if fill in ("+", " ") and fill else ""
        return plain.replace("+", "").replace("#", "") % (sign + text)

    return one


@op("StringToNumber")
def string_to_number(string_tensor: Strings, *, out_type: torch.dtype = torch.float32) -> Tensor:
    """Read strings as numbers."""
    read = _read_float if out_type.is_floating_point else read_integer
    texts = elements(string_tensor)
    try:
        if out_type == torch.float32:
            with np.errstate(over="ignore"):
                found = torch.from_numpy(np.array([read(text) for text in texts], np.float64).astype(np.float32))
        else:
            found = torch.tensor([read(text) for text in texts], dtype=out_type)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise InvalidArgumentError(f"StringToNumberOp could not correctly convert string: {error}") from error
    return found.reshape(string_tensor.shape)


def read_integer(text: bytes) -> int:
    """Return a decimal number; Python's `int` alone would also take 1_000. Raises ValueError for other text."""
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"{shortened(text)} is not an integer")
    return int(text)


def _read_float(text: bytes) -> float:
    found = _FLOAT.fullmatch(text)
    if found is None:
        raise ValueError(shortened(text))
    if found[2][:2].lower() == b"0x":
        value = float(int(found[2], 16))
        return -value if found[1] == b"-" else value
    return float(text)
