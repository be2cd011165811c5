"""Diagonals and bands of matrices in the last two axes.

A band is described by `k`: the number of one diagonal, or the lowest and the highest one; 0 is the main diagonal,
positive numbers are above it. Its packed form has a row for each diagonal, the highest first. Shorter diagonals are at
the left or right of their row, which `align` says: "RIGHT_LEFT" for those above at the right, those below at the left.
The value that fills the rest has no derivative, as in TensorFlow.

Source: tensorflow/core/ops/array_ops.cc, tensorflow/core/kernels/matrix_diag_op.cc, matrix_band_part_op.cc.
"""

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Axes, Tensor


@op("MatrixBandPart")
def matrix_band_part(input: Tensor, num_lower: int, num_upper: int) -> Tensor:
    """Keep the main diagonal and this many below and above it, all if negative; the rest becomes 0."""
    rows, columns = _sizes(input)
    if num_lower > rows or num_upper > columns:
        raise InvalidArgumentError(
            f"a matrix of {rows} x {columns} has no {num_lower} lower and {num_upper} upper diagonals"
        )
    distance = torch.arange(columns, device=input.device) - torch.arange(rows, device=input.device)[:, None]
    inside = torch.ones_like(distance, dtype=torch.bool)
    if num_lower >= 0:
        inside = inside & (distance >= -num_lower)
    if num_upper >= 0:
        inside = inside & (distance <= num_upper)
    return torch.where(inside, input, input.new_zeros(()))


@op("MatrixDiag")
def matrix_diag(diagonal: Tensor) -> Tensor:
    if diagonal.dim() == 0:
        raise InvalidArgumentError("a diagonal must be a vector, not a scalar")
    check_size((*diagonal.shape, diagonal.shape[-1]))
    return torch.diag_embed(diagonal)


@op("MatrixDiagV2")
def matrix_diag_v2(diagonal: Tensor, k: Axes, num_rows: int, num_cols: int, padding_value: Tensor) -> Tensor:
    return matrix_diag_v3(diagonal, k, num_rows, num_cols, padding_value, align="LEFT_LEFT")


@op("MatrixDiagV3")
def matrix_diag_v3(
    diagonal: Tensor, k: Axes, num_rows: int, num_cols: int, padding_value: Tensor, *, align: str = "RIGHT_LEFT"
) -> Tensor:
    """Return matrices with the given diagonals and `padding_value` elsewhere; a size of -1 is the smallest possible."""
    low, high = _band(k)
    if diagonal.dim() < (1 if low == high else 2):
        raise InvalidArgumentError(f"{high - low + 1} diagonals cannot have the shape {list(diagonal.shape)}")
    length = diagonal.shape[-1]
    least_rows, least_columns = length - min(high, 0), length + max(low, 0)
    if num_rows == -1 and num_cols == -1:
        num_rows = num_cols = max(least_rows, least_columns)
    rows, columns = least_rows if num_rows == -1 else num_rows, least_columns if num_cols == -1 else num_cols
    if rows < least_rows or columns < least_columns or (rows != least_rows and columns != least_columns):
        raise InvalidArgumentError(
            f"diagonals {low} to {high} of length {length} do not fit into a matrix of {rows} x {columns}"
        )
    batch = diagonal.shape[: -1 if low == high else -2]
    check_size((*batch, rows, columns))
    empty = padding_value.detach().reshape(()).expand((*batch, rows, columns))
    return _with_diagonals(empty, diagonal, low, high, align)


@op("MatrixDiagPart")
def matrix_diag_part(input: Tensor) -> Tensor:
    _sizes(input)
    return torch.diagonal(input, dim1=-2, dim2=-1)


@op("MatrixDiagPartV2")
def matrix_diag_part_v2(input: Tensor, k: Axes, padding_value: Tensor) -> Tensor:
    return matrix_diag_part_v3(input, k, padding_value, align="LEFT_LEFT")


@op("MatrixDiagPartV3")
def matrix_diag_part_v3(input: Tensor, k: Axes, padding_value: Tensor, *, align: str = "RIGHT_LEFT") -> Tensor:
    """Return the diagonals of a band, the shorter ones filled with `padding_value`."""
    rows, columns = _sizes(input)
    low, high = _checked_band(k, rows, columns)
    longest = _longest(low, high, rows, columns)
    packed = []
    for number in range(high, low - 1, -1):
        diagonal = torch.diagonal(input, number, -2, -1)
        missing = padding_value.detach().reshape(()).expand((*diagonal.shape[:-1], longest - diagonal.shape[-1]))
        at_left = _is_left(number, align)
        packed.append(torch.cat([diagonal, missing] if at_left else [missing, diagonal], -1))
    return packed[0] if low == high else torch.stack(packed, -2)


@op("MatrixSetDiag")
def matrix_set_diag(input: Tensor, diagonal: Tensor) -> Tensor:
    return matrix_set_diag_v3(input, diagonal, 0)


@op("MatrixSetDiagV2")
def matrix_set_diag_v2(input: Tensor, diagonal: Tensor, k: Axes) -> Tensor:
    return matrix_set_diag_v3(input, diagonal, k, align="LEFT_LEFT")


@op("MatrixSetDiagV3")
def matrix_set_diag_v3(input: Tensor, diagonal: Tensor, k: Axes, *, align: str = "RIGHT_LEFT") -> Tensor:
    """Return the matrices with the diagonals of a band replaced."""
    rows, columns = _sizes(input)
    low, high = _checked_band(k, rows, columns)
    longest = _longest(low, high, rows, columns)
    expected = (*input.shape[:-2], *([] if low == high else [high - low + 1]), longest)
    if tuple(diagonal.shape) != expected:
        raise InvalidArgumentError(
            f"diagonals {low} to {high} of a tensor of shape {list(input.shape)} have the shape {list(expected)}, "
            f"not {list(diagonal.shape)}"
        )
    return _with_diagonals(input, diagonal, low, high, align)


@op("Diag")
def diag(diagonal: Tensor) -> Tensor:
    """Return a tensor of twice the rank, with the input where both halves of the indices are equal."""
    if diagonal.dim() == 0:
        raise InvalidArgumentError("a diagonal must have at least one axis, not be a scalar")
    check_size((*diagonal.shape, *diagonal.shape))
    return torch.diag(diagonal.reshape(-1)).reshape((*diagonal.shape, *diagonal.shape))


@op("DiagPart")
def diag_part(input: Tensor) -> Tensor:
    """Return the elements where both halves of the indices are equal."""
    half = input.dim() // 2
    if not half or input.dim() % 2 or input.shape[:half] != input.shape[half:]:
        raise InvalidArgumentError(f"a tensor of shape {list(input.shape)} has no diagonal: both halves must be equal")
    sizes = input.shape[:half]
    count = sizes.numel()
    return torch.diagonal(input.reshape(count, count)).reshape(sizes)


def _sizes(matrix: Tensor) -> tuple[int, int]:
    if matrix.dim() < 2:
        raise InvalidArgumentError(f"the input must be a matrix, not of shape {list(matrix.shape)}")
    return matrix.shape[-2], matrix.shape[-1]


def _band(k: Axes) -> tuple[int, int]:
    numbers = (k,) if isinstance(k, int) else k
    if len(numbers) not in (1, 2) or numbers[0] > numbers[-1]:
        raise InvalidArgumentError(f"k must be one number, or the lowest and the highest diagonal, not {list(numbers)}")
    return numbers[0], numbers[-1]


def _checked_band(k: Axes, rows: int, columns: int) -> tuple[int, int]:
    low, high = _band(k)
    for number in (low, high):
        if number != 0 and not -rows < number < columns:
            raise InvalidArgumentError(f"a matrix of {rows} x {columns} has no diagonal {number}")
    return low, high


def _longest(low: int, high: int, rows: int, columns: int) -> int:
    return min(rows + min(high, 0), columns - max(low, 0))


def _with_diagonals(matrix: Tensor, packed: Tensor, low: int, high: int, align: str) -> Tensor:
    rows, columns = _sizes(matrix)
    for row, number in enumerate(range(high, low - 1, -1)):
        length = max(_longest(number, number, rows, columns), 0)
        values = packed if low == high else packed[..., row, :]
        values = values[..., :length] if _is_left(number, align) else values[..., packed.shape[-1] - length :]
        matrix = torch.diagonal_scatter(matrix, values, number, -2, -1)
    return matrix


def _is_left(number: int, align: str) -> bool:
    above, _, below = align.partition("_")
    return (above if number > 0 else below) == "LEFT" if number else align != "RIGHT_RIGHT"
