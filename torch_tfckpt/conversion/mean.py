"""The mean of one tensor over several checkpoints, without holding all of them in memory.

Values are added in float64, which is exact for all narrower types unless their magnitudes differ by a factor of more
than about 2**29, and the mean is rounded once, to the type of the tensor. Guaranteed: a value that is equal in all
checkpoints is unchanged, in every type; means of finite numbers are finite. A NaN gives NaN; an infinity gives
infinity, or NaN if another value is the infinity of the opposite sign.

A large tensor of version 2 checkpoints is read and averaged block by block. In other formats a tensor can only be read
whole.
"""

from collections.abc import Iterator, Sequence
from math import ceil, log2
from typing import Final

import torch

from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.foreign_files.tensorflow import CheckpointSource
from torch_tfckpt.foreign_files.values import cast_floating
from torch_tfckpt.format.tensor_slice import WHOLE, Extent, Shape, TensorSlice, element_count

# Elements of a block: 32 MiB as float64, of which three copies are in memory at most.
_BLOCK_ELEMENTS: Final = 4 * 1024 * 1024


class Mean:
    """Mean of `count` tensors of one shape and dtype, floating-point or complex, which are added one by one.

    Attributes:
        finite: Whether all elements of the mean are finite. Set by `result`.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        # Sums of float64 are scaled down by a power of two, which is exact, so that they cannot overflow.
        self._scale = 2.0 ** -ceil(log2(count))
        self._total: torch.Tensor | None = None
        self._first: torch.Tensor | None = None  # only for float64, where the sum of equal numbers may be rounded
        self._same: torch.Tensor | None = None
        self.finite = True

    def add(self, values: torch.Tensor) -> None:
        """Add one tensor, whose memory this object may keep."""
        numbers = torch.view_as_real(values) if values.is_complex() else values
        if numbers.dtype == torch.float64:
            if self._first is None:
                self._first = numbers
            elif self._same is None:
                self._same = numbers == self._first
            else:
                self._same &= numbers == self._first
            numbers = numbers * self._scale
        if self._total is None:
            self._total = numbers.to(torch.float64)
        else:  # torch cannot add one-byte types to other types
            self._total += numbers.to(torch.float64) if numbers.dtype.itemsize == 1 else numbers

    def result(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the mean as `dtype`, the dtype of the tensors that were added. Call this once, at the end."""
        assert self._total is not None, "nothing was added"
        mean = self._total
        mean /= self._count
        if self._first is not None:
            mean /= self._scale
            if self._same is None:
                mean = self._first
            else:
                torch.where(self._same, self._first, mean, out=mean)
        self._total = self._first = self._same = None
        self.finite = bool(mean.isfinite().all())
        real = dtype.to_real() if dtype.is_complex else dtype
        if mean.dtype != real:
            mean, _ = cast_floating(mean, real)
        return torch.view_as_complex(mean) if dtype.is_complex else mean


def mean_in_blocks(
    sources: Sequence[TensorSource], name: str, shape: Shape, dtype: torch.dtype
) -> tuple[torch.Tensor, bool]:
    """Return the mean of one large tensor, and whether it is finite.

    Cost: memory of the result and a few blocks if all sources are version 2 checkpoints; otherwise memory of the tensor
    and of two copies of it as float64.
    """
    readers = [
        source.reader for source in sources if isinstance(source, CheckpointSource) and source.reader.version == 2
    ]
    if len(readers) < len(sources):
        mean = Mean(len(sources))
        for source in sources:
            mean.add(_tensor(source.read([name])[name]))
        return mean.result(dtype), mean.finite
    result = torch.empty(shape, dtype=dtype, device="cpu")
    finite = True
    for block in blocks(shape, _BLOCK_ELEMENTS):
        mean = Mean(len(sources))
        for reader in readers:
            mean.add(_tensor(reader.read_slice(name, block)))
        result[block.to_index()] = mean.result(dtype)
        finite &= mean.finite
    return result, finite


def blocks(shape: Shape, limit: int) -> Iterator[TensorSlice]:
    """Yield slices that partition a tensor in row-major order, each contiguous and of at most `limit` elements.

    REQUIRES: the tensor has elements and at least one dimension.

    Blocks are at least a quarter of `limit` on average, so there are few of them even if one dimension is very long.
    """
    axis = next((axis for axis in range(len(shape)) if element_count(shape[axis + 1 :]) <= limit), len(shape))
    inner = element_count(shape[axis + 1 :])
    whole = [Extent(0, WHOLE)] * len(shape[axis + 1 :])
    step = max(1, limit // max(1, inner))
    for outer in _indices(shape[:axis]):
        for begin in range(0, shape[axis], step) if axis < len(shape) else ():
            yield TensorSlice((*outer, Extent(begin, min(step, shape[axis] - begin)), *whole))


def _indices(shape: Shape) -> Iterator[tuple[Extent, ...]]:
    """Yield, for each index of a tensor of this shape, an extent of length 1 per dimension."""
    if not shape:
        yield ()
        return
    for index in range(shape[0]):
        for rest in _indices(shape[1:]):
            yield (Extent(index, 1), *rest)


def _tensor(value: object) -> torch.Tensor:
    assert isinstance(value, torch.Tensor), "only numbers are averaged"
    return value
