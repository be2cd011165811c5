"""Identities and checks equal TensorFlow's: values, dtypes, shapes, gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Inputs, Results, float32
from op_rows import Row, check, operations, row

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.graph_ops.passing import check_numerics, ensure_shape, prevent_gradient

INPUTS = Inputs(12)
STRINGS = np.array([b"a", b"\xff"], dtype=object)
VALUES: list[Any] = [
    INPUTS.normal(3, 4), INPUTS.normal(), INPUTS.normal(0, 2), INPUTS.normal(3, dtype="float64"), INPUTS.bfloat16(3),
    INPUTS.integers(3), INPUTS.integers(2, dtype="uint16"), np.array([True]), np.array([1j], "complex64"), STRINGS,
]  # fmt: skip
NAN, INF = float("nan"), float("inf")


def rows() -> list[Row]:
    found = []
    for value in VALUES:
        found.append(row("Identity", value))
        found += [row(name, value, gradients=False) for name in ["StopGradient", "PreventGradient"]]
        if value is not STRINGS:
            found.append(row("Snapshot", value, gradients=False))  # TensorFlow has no kernel for strings
        if getattr(value, "dtype", None) in (np.float32, np.float64, torch.bfloat16):
            found.append(row("CheckNumerics", value, message="no"))
    found.append(row("Identity", INPUTS.normal(3, 4), view=True))
    lists: list[Any] = [VALUES[:2], [VALUES[0], VALUES[5]], VALUES, [STRINGS], [VALUES[2]]]
    found += [row("IdentityN", each, gradients=number == 0) for number, each in enumerate(lists)]
    for bad in ([1, NAN], [INF], [-INF, NAN]):
        found.append(row("CheckNumerics", float32(bad), message="no", gradients=False))
        found.append(row("CheckNumericsV2", float32(bad), message="no", gradients=False))
    found.append(row("CheckNumericsV2", INPUTS.normal(2), message="no", gradients=False))
    for shape in [[3, 4], [-1, 4], [-1, -1], [3, 5], [3], [3, 4, 1], [], [0, 4]]:
        found.append(row("EnsureShape", VALUES[0], shape=shape))
    found += [row("EnsureShape", STRINGS, shape=shape) for shape in ([2], [3])]
    return [*found, row("EnsureShape", INPUTS.normal(), shape=[]), row("EnsureShape", INPUTS.integers(0), shape=[0])]


ROWS = rows()


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


def test_stopped_gradient() -> None:
    """A gradient that the graph forbids is an error, not zero."""
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(UnimplementedError, match='forbids gradients at PreventGradient: "sampled"'):
        (prevent_gradient(x, message="sampled") * 2).sum().backward()


def test_messages() -> None:
    """The graph's message, what was found, and what the graph requires."""
    with pytest.raises(InvalidArgumentError, match="loss : the tensor has NaN and Inf values"):
        check_numerics(torch.tensor([NAN, INF]), message="loss")
    with pytest.raises(InvalidArgumentError, match=r"has the shape \[2\], but the graph requires \[None, 3\]"):
        ensure_shape(torch.ones(2), shape=(-1, 3))
    assert ensure_shape(torch.ones(2), shape=None).shape == (2,)
