"""Products, inverses and factors of matrices equal TensorFlow's: values, dtypes, shapes, gradients."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Array, Inputs, Results, float32
from op_rows import Row, check, operations, row

from torch_tfckpt.graph_ops.matrix import cholesky, qr, self_adjoint_eig, svd

INPUTS = Inputs(8)
floats, complex_numbers = INPUTS.normal, INPUTS.complex
BATCHES = ["BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"]


def invertible(*shape: int, dtype: str = "float64") -> Array:
    return (floats(*shape) + 4 * np.eye(shape[-1])).astype(dtype)


def positive_definite(*shape: int, dtype: str = "float64") -> Array:
    root = invertible(*shape)
    return (root @ np.swapaxes(root, -1, -2)).astype(dtype)


def product_rows() -> list[Row]:
    rows = []
    for first, second in product([False, True], [False, True]):
        a, b = floats(*((4, 3) if first else (3, 4))), floats(*((5, 4) if second else (4, 5)))
        rows.append(row("MatMul", a, b, transpose_a=first, transpose_b=second))
        rows.append(
            row("MatMul", a.astype("float64"), b.astype("float64"), transpose_a=first, transpose_b=second, view=True)
        )
        for name in BATCHES:
            options: dict[str, Any] = {"Tout": torch.float32} if name.endswith("V3") else {}
            x = floats(2, *a.shape)
            rows.append(row(name, x, floats(2, *b.shape), adj_x=first, adj_y=second, **options))
            rows.append(row(name, a, b, adj_x=first, adj_y=second, **options))
        pair = complex_numbers(2, *a.shape), complex_numbers(2, *b.shape)
        rows.append(row("BatchMatMulV2", *pair, adj_x=first, adj_y=second))
    a, b = floats(3, 4), floats(4, 5)
    for dtype in ["int32", "int64", "complex64", "complex128"]:
        rows.append(row("MatMul", (9 * a).astype(dtype), (9 * b).astype(dtype)))
        rows.append(row("BatchMatMulV2", (9 * a).astype(dtype), (9 * floats(2, 4, 5)).astype(dtype)))
    rows.append(row("MatMul", a.astype("float16"), b.astype("float16"), tolerance=3e-3))
    rows.append(row("MatMul", torch.from_numpy(a).bfloat16(), torch.from_numpy(b).bfloat16(), tolerance=2e-2))
    rows += [row("MatMul", a[:0], b), row("MatMul", a[:, :0], b[:0]), row("MatMul", a, b[:, :0])]
    rows += [row("MatMul", a, b[:2]), row("MatMul", a[0], b), row("MatMul", floats(2, 3, 4), b)]
    for left, right in [((2, 1, 3, 4), (5, 4, 2)), ((3, 4), (2, 4, 5)), ((1, 3, 4), (6, 4, 1)), ((0, 3, 4), (4, 5))]:
        rows.append(row("BatchMatMulV2", floats(*left), floats(*right)))
    for left, right in [((2, 3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (3, 4, 5)), ((2, 3, 4), (2, 5, 4))]:
        rows.append(row("BatchMatMulV2", floats(*left), floats(*right)))
    small = INPUTS.integers(2, 3, 3, dtype="int8")
    rows.append(row("BatchMatMulV3", small, small, Tout=torch.int32))
    return rows


EQUATIONS: list[tuple[str, list[tuple[int, ...]]]] = [
    ("ij,jk->ik", [(2, 3), (3, 4)]), ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]), ("ij->ji", [(2, 3)]),
    ("ij->", [(2, 3)]), ("ij->i", [(2, 3)]), ("ii->i", [(3, 3)]), ("ii->", [(3, 3)]), ("i,j->ij", [(3,), (4,)]),
    ("abc,cd->abd", [(2, 3, 4), (4, 5)]), ("BTNH,BFNH->BNFT", [(2, 3, 4, 5), (2, 6, 4, 5)]),
    ("BNFT,BTNH->BFNH", [(2, 4, 6, 3), (2, 3, 4, 5)]), ("abc,cde->abde", [(2, 3, 4), (4, 5, 6)]),
    ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]), ("...ij,jk->...ik", [(5, 2, 3, 4), (4, 5)]),
    ("...ij->...ji", [(2, 3, 4)]), ("i...,j...->ij...", [(2, 3), (4, 3)]), ("i,i->", [(5,), (5,)]),
    ("ij,ij->ij", [(2, 3), (2, 3)]), ("ij,kj->ik", [(2, 3), (4, 3)]), ("aab,bc->ac", [(3, 3, 2), (2, 4)]),
    ("i->ii", [(3,)]), ("ij->iij", [(2, 3)]), ("ij,jk->iik", [(2, 3), (3, 4)]), (",ij->ij", [(), (2, 3)]),
    ("ij,jk->ik", [(0, 3), (3, 4)]), ("ij,jk->ik", [(2, 0), (0, 4)]), ("...,...->...", [(2, 1, 3), (4, 1)]),
    ("ij,jk->ik", [(2, 3), (4, 5)]), ("ij,jk->ik", [(2, 3), (1, 5)]), ("ij,jk->ik", [(2, 3)]),
    ("ij->k", [(2, 3)]), ("ij,jk", [(2, 3), (3, 4)]), ("ijk->i", [(2, 3)]), ("i->", [(2, 3)]), ("ii->i", [(2, 3)]),
]  # fmt: skip


def einsum_rows() -> list[Row]:
    rows = []
    for equation, shapes in EQUATIONS:
        rows.append(row("Einsum", [floats(*shape) for shape in shapes], equation=equation))
    pair = [floats(2, 3, dtype="float64"), floats(3, 4, dtype="float64")]
    rows.append(row("Einsum", pair, equation="ij,jk->ki", view=True))
    for dtype in ["int32", "int64", "complex64"]:
        rows.append(row("Einsum", [(9 * each).astype(dtype) for each in pair], equation="ij,jk->ik"))
    rows.append(row("Einsum", [each.astype("float16") for each in pair], equation="ij,jk->ik", tolerance=3e-3))
    shorter = [torch.from_numpy(each).bfloat16() for each in pair]
    return [*rows, row("Einsum", shorter, equation="ij,jk->ik", tolerance=2e-2)]


def factor_rows() -> list[Row]:
    rows = []
    for dtype, tolerance in [("float64", 1e-5), ("float32", 1e-4)]:
        options: dict[str, Any] = {"tolerance": tolerance}
        for shape in [(3, 3), (2, 4, 4), (1, 1), (0, 3, 3), (2, 0, 0)]:
            matrix, right = invertible(*shape, dtype=dtype), floats(*shape[:-1], 2, dtype=dtype)
            rows += [row("MatrixInverse", matrix, adjoint=adjoint, **options) for adjoint in (False, True)]
            rows += [row("MatrixSolve", matrix, right, adjoint=adjoint, **options) for adjoint in (False, True)]
            for lower, adjoint in product([False, True], [False, True]):
                rows.append(row("MatrixTriangularSolve", matrix, right, lower=lower, adjoint=adjoint, **options))
            if 0 not in shape[-2:]:
                rows.append(row("MatrixDeterminant", matrix, **options))
                rows.append(row("LogMatrixDeterminant", matrix, **options))
            rows.append(row("Cholesky", positive_definite(*shape, dtype=dtype), **options))
        half = np.tril(positive_definite(3, 3, dtype=dtype)) + np.triu(floats(3, 3, dtype=dtype), 1)
        rows.append(row("Cholesky", half, gradients=False, **options))  # the upper triangle is not read
    pair = invertible(2, 3, 3).astype("complex128") + 1j * floats(2, 3, 3), complex_numbers(2, 3, 2, dtype="complex128")
    rows += [row("MatrixInverse", pair[0], adjoint=adjoint) for adjoint in (False, True)]
    rows += [row("MatrixSolve", *pair, adjoint=adjoint) for adjoint in (False, True)]
    rows += [row("MatrixTriangularSolve", *pair, adjoint=True), row("MatrixDeterminant", pair[0])]
    rows += [row("MatrixInverse", float32([[1, 2], [2, 4]])), row("MatrixInverse", floats(2, 3))]
    rows += [row("Cholesky", floats(2, 3)), row("MatrixDeterminant", floats(3))]
    rows += [row("MatrixSolve", float32([[1, 2], [2, 4]]), floats(2, 1)), row("MatrixSolve", floats(2, 2), floats(2))]
    rows += [row("MatrixSolve", floats(2, 2), floats(3, 1))]
    for shape in [(3,), (2, 3), (0, 3)]:
        rows.append(row("Cross", floats(*shape), floats(*shape)))
    rows += [row("Cross", floats(2), floats(2)), row("Cross", floats(2, 3), floats(3))]
    return [*rows, row("Cross", INPUTS.integers(2, 3), INPUTS.integers(2, 3))]


ROWS = [*product_rows(), *einsum_rows(), *factor_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


@pytest.mark.parametrize("full", [False, True])
def test_factors(full: bool) -> None:
    """Products of the factors are the matrix. They cannot be rows: TensorFlow's vectors have other signs."""
    x = torch.from_numpy(floats(2, 4, 3, dtype="float64"))
    q, r = qr(x, full_matrices=full)
    torch.testing.assert_close(q @ r, x)
    s, u, v = svd(x, full_matrices=full)
    assert (q.shape, u.shape, v.shape) == ((2, 4, 4 if full else 3), (2, 4, 4 if full else 3), (2, 3, 3))
    torch.testing.assert_close(u[..., :3] * s[..., None, :] @ v.mH, x)
    symmetric = x.mH @ x
    e, vectors = self_adjoint_eig(symmetric)
    torch.testing.assert_close(svd(x, compute_uv=False)[0], s)
    torch.testing.assert_close(self_adjoint_eig(symmetric, compute_v=False)[0], e)
    torch.testing.assert_close(e, torch.square(s).flip(-1))
    torch.testing.assert_close(vectors * e[..., None, :] @ vectors.mH, symmetric)


def test_no_factor() -> None:
    """Without a Cholesky factor, TensorFlow returns NaN and memory that was not written to."""
    found = cholesky(torch.tensor([[[1.0, 0], [0, -1]], [[4, 0], [0, 1]]]))
    assert found[0].isnan().all()
    assert found[1].tolist() == [[2, 0], [0, 1]]
