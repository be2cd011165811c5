"""Products, inverses and factors of matrices, and Einsum.

Source: tensorflow/core/ops/math_ops.cc, linalg_ops.cc, tensorflow/core/kernels/matmul_op_impl.h, einsum_op_impl.h.
"""

import math
from collections.abc import Sequence

import torch

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.unsigned import wrapping
from torch_tfckpt.graph_ops.values import Tensor, Tensors


@op("MatMul")
@wrapping
def matmul(a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    if a.dim() != 2 or b.dim() != 2:
        raise InvalidArgumentError(
            f"MatMul needs two matrices, not tensors of shape {list(a.shape)} and {list(b.shape)}"
        )
    return torch.mm(a.t() if transpose_a else a, b.t() if transpose_b else b)


@op("BatchMatMul", "BatchMatMulV2")
@wrapping
def batch_matmul(x: Tensor, y: Tensor, *, adj_x: bool = False, adj_y: bool = False) -> Tensor:
    """Multiply the matrices in the last two axes; `adj_x` and `adj_y` transpose and conjugate."""
    if x.dim() < 2 or y.dim() < 2:
        raise InvalidArgumentError(f"the inputs must be matrices, not of shape {list(x.shape)} and {list(y.shape)}")
    return torch.matmul(x.mH if adj_x else x, y.mH if adj_y else y)


@op("BatchMatMulV3")
def batch_matmul_v3(x: Tensor, y: Tensor, *, Tout: torch.dtype, adj_x: bool = False, adj_y: bool = False) -> Tensor:
    """Multiply as `batch_matmul` does, in the dtype of the result."""
    return batch_matmul(x.to(Tout), y.to(Tout), adj_x=adj_x, adj_y=adj_y)


@op("Einsum")
def einsum(inputs: Tensors, *, equation: str) -> Tensor:
    operands, result = _parsed(equation)
    if len(operands) != len(inputs):
        raise InvalidArgumentError(f'equation "{equation}" is for {len(operands)} tensors, but there are {len(inputs)}')
    sizes: dict[str, int] = {}
    for labels, tensor in zip(operands, inputs, strict=True):
        first, _, last = labels.partition("...")
        if len(first) + len(last) > tensor.dim():
            raise InvalidArgumentError(
                f'"{labels}" of "{equation}" does not fit a tensor of shape {list(tensor.shape)}'
            )
        for label, size in zip(
            first + last, (*tensor.shape[: len(first)], *_end(tensor.shape, len(last))), strict=True
        ):
            if sizes.setdefault(label, size) != size:  # torch would repeat an axis of size 1
                raise InvalidArgumentError(f'axes "{label}" of "{equation}" have the sizes {sizes[label]} and {size}')
    different = "".join(dict.fromkeys(result)) if "..." not in result else result
    found: Tensor = torch.einsum(f"{','.join(operands)}->{different}", *inputs)
    for place, label in enumerate(result if different != result else ""):
        earlier = result.index(label)
        if earlier < place:  # "i->ii" is a matrix with the vector on its diagonal
            found = torch.diag_embed(found.movedim(earlier, -1), dim1=earlier, dim2=place)
    return found


def _parsed(equation: str) -> tuple[tuple[str, ...], str]:
    """Return the labels of each operand and of the result."""
    before, arrow, result = equation.replace(" ", "").partition("->")
    operands = tuple(before.split(","))
    for labels in (*operands, result):
        if not arrow or not all(label.isascii() and label.isalpha() for label in labels.replace("...", "", 1)):
            raise InvalidArgumentError(
                f'"{equation}" is not an equation of Einsum; expected letters, "..." and "->", as in "bij,bjk->bik"'
            )
    unknown = set(result.replace("...", "", 1)) - set(before)
    if unknown:
        raise InvalidArgumentError(f'"{equation}": the inputs have no axis "{min(unknown)}"')
    if "..." in result and len(set(result.replace("...", "", 1))) < len(result) - 3:
        raise UnimplementedError(f'"{equation}": a result with "..." cannot have the same axis twice')
    return operands, result


def _end(shape: Sequence[int], count: int) -> Sequence[int]:
    return shape[len(shape) - count :]


@op("MatrixInverse")
def matrix_inverse(input: Tensor, *, adjoint: bool = False) -> Tensor:
    inverse: Tensor = torch.linalg.inv(input)
    return inverse.mH if adjoint else inverse


@op("MatrixDeterminant")
def matrix_determinant(input: Tensor) -> Tensor:
    found: Tensor = torch.linalg.det(input)
    return found


@op("LogMatrixDeterminant", outputs=("sign", "log_abs_determinant"))
def log_matrix_determinant(input: Tensor) -> tuple[Tensor, Tensor]:
    sign, logarithm = torch.linalg.slogdet(input)
    return sign, logarithm.to(input.dtype)


@op("MatrixSolve")
def matrix_solve(matrix: Tensor, rhs: Tensor, *, adjoint: bool = False) -> Tensor:
    _check_matrices(matrix, rhs)
    found: Tensor = torch.linalg.solve(matrix.mH if adjoint else matrix, rhs)
    return found


@op("MatrixTriangularSolve")
def matrix_triangular_solve(matrix: Tensor, rhs: Tensor, *, lower: bool = True, adjoint: bool = False) -> Tensor:
    _check_matrices(matrix, rhs)
    used = matrix.mH if adjoint else matrix
    found: Tensor = torch.linalg.solve_triangular(used, rhs, upper=lower == adjoint)
    return found


@op("Cholesky")
def cholesky(input: Tensor) -> Tensor:
    """Return the lower triangular factor, NaN if the matrix has none; the upper triangle of the input is not read."""
    factor, failures = torch.linalg.cholesky_ex(input)
    return torch.where((failures == 0)[..., None, None], factor, math.nan)


@op("Qr", outputs=("q", "r"))
def qr(input: Tensor, *, full_matrices: bool = False) -> tuple[Tensor, Tensor]:
    """Return an orthogonal and an upper triangular factor; their signs are not those of TensorFlow."""
    q, r = torch.linalg.qr(input, mode="complete" if full_matrices else "reduced")
    return q, r


@op("Svd", outputs=("s", "u", "v"))
def svd(input: Tensor, *, compute_uv: bool = True, full_matrices: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return singular values and vectors; the signs of vectors are not those of TensorFlow."""
    if not compute_uv:
        return torch.linalg.svdvals(input).to(input.dtype), input.new_zeros(()), input.new_zeros(())
    u, s, vh = torch.linalg.svd(input, full_matrices=full_matrices)
    return s.to(input.dtype), u, vh.mH


@op("SelfAdjointEigV2", outputs=("e", "v"))
def self_adjoint_eig(input: Tensor, *, compute_v: bool = True) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, the smallest first, and vectors; the signs of vectors are not those of TensorFlow."""
    if not compute_v:
        return torch.linalg.eigvalsh(input).to(input.dtype), input.new_zeros(())
    e, v = torch.linalg.eigh(input)
    return e.to(input.dtype), v


@op("Cross")
def cross(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        raise InvalidArgumentError(f"both inputs must have one shape, not {list(a.shape)} and {list(b.shape)}")
    found: Tensor = torch.linalg.cross(a, b)
    return found


def _check_matrices(matrix: Tensor, rhs: Tensor) -> None:
    if matrix.dim() < 2 or rhs.dim() < 2:
        raise InvalidArgumentError(
            f"both inputs must be matrices, not of shape {list(matrix.shape)} and {list(rhs.shape)}"
        )
