"""Arithmetic on uint16, uint32 and uint64, which torch lacks.

The numbers are computed as int64 and converted back, which wraps around as unsigned arithmetic does. Numbers of uint64
from 2^63 are negative as int64: sums, products and bits are right all the same, but orders and quotients are not.
"""

import functools
from collections.abc import Callable
from typing import Final, ParamSpec

import torch

from torch_tfckpt.graph_ops.values import Tensor

_NARROW: Final = frozenset({torch.uint16, torch.uint32})
_ALL: Final = _NARROW | {torch.uint64}

P = ParamSpec("P")


def ordered(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Compute uint16 and uint32 as int64. For comparisons and divisions; torch refuses uint64."""
    return _wide(function, _NARROW)


def wrapping(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Compute uint16, uint32 and uint64 as int64. For operations whose bits are the same with and without sign."""
    return _wide(function, _ALL)


def _wide(function: Callable[P, Tensor], dtypes: frozenset[torch.dtype]) -> Callable[P, Tensor]:
    @functools.wraps(function)
    def computed(*inputs: P.args, **attributes: P.kwargs) -> Tensor:
        first = inputs[0]
        if not isinstance(first, Tensor) or first.dtype not in dtypes:
            return function(*inputs, **attributes)
        wide = [each.to(torch.int64) if isinstance(each, Tensor) else each for each in inputs]
        result = function(*wide, **attributes)  # type: ignore[arg-type]
        return result.to(first.dtype) if result.dtype == torch.int64 else result

    return computed
