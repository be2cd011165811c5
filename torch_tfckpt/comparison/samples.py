"""The inputs of a comparison: random ones that depend only on the seed, or those of the caller.

Numbers of floating point are normally distributed; every second sample is ten times as large, so that activations
that are limited, such as relu6, reach their limits. Integers need a range: which ones are valid is not in the graph.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.imported_graph.imported import ImportedMetaGraph
from torch_tfckpt.text import did_you_mean, quoted

BATCH: Final = 2
_SCALES: Final = (1.0, 10.0)
Sample = dict[str, torch.Tensor]


def random_samples(
    imported: ImportedMetaGraph,
    names: Sequence[str],
    count: int,
    seed: int,
    shapes: Mapping[str, Sequence[int]],
    ranges: Mapping[str, tuple[float, float]],
) -> list[Sample]:
    """Return samples of random numbers for tensors of a graph.

    Raises:
        InvalidArgumentError: a shape or a range is needed, or not valid.
    """
    if count < 1:
        raise InvalidArgumentError(f"samples={count}: at least one is needed")
    generator = torch.Generator().manual_seed(seed)
    expected = {name: imported._expected(name) for name in names}
    sizes = {name: _shape(name, expected[name][1], shapes.get(name)) for name in names}
    return [
        {name: _random(name, expected[name][0], sizes[name], number, ranges.get(name), generator) for name in names}
        for number in range(count)
    ]


def check_names(argument: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise InvalidArgumentError if an argument has a name that is not known."""
    for name in given:
        if name not in known:
            raise InvalidArgumentError(
                f"{argument} has {quoted(name)}, which is not compared. {did_you_mean(name, known)}".rstrip()
            )


def _shape(name: str, known: Sequence[int] | None, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None:
        sizes = tuple(given)
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise InvalidArgumentError(f"shapes: {quoted(name)} needs positive integers, got {sizes!r}")
    elif known is None:
        raise InvalidArgumentError(
            f'the graph does not have the shape of {quoted(name)}. Give shapes={{"{name}": ...}}'
        )
    else:
        sizes = tuple(BATCH if size < 0 and axis == 0 else size for axis, size in enumerate(known))
        if any(size < 0 for size in sizes):
            raise InvalidArgumentError(
                f"the graph does not have all sizes of {quoted(name)}: {list(known)}. Give "
                f'shapes={{"{name}": ...}}, with the batch'
            )
    check_size(sizes)
    return sizes


def _random(
    name: str,
    dtype: torch.dtype | DataType | None,
    shape: tuple[int, ...],
    number: int,
    limits: tuple[float, float] | None,
    generator: torch.Generator,
) -> torch.Tensor:
    if not isinstance(dtype, torch.dtype):
        kind = dtype.name if isinstance(dtype, DataType) else "an unknown type"
        raise InvalidArgumentError(f"{quoted(name)} is of {kind}: give arrays as samples=[{{name: array}}, ...]")
    if limits is not None and not limits[0] < limits[1]:
        raise InvalidArgumentError(f"ranges: {quoted(name)} has the range {limits!r}, which contains nothing")
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype.is_floating_point or dtype.is_complex:
        drawn = torch.complex64 if dtype.is_complex else torch.float32
        if limits is not None and not dtype.is_complex:
            low, high = limits
            return (torch.rand(shape, generator=generator) * (high - low) + low).to(dtype)
        return (torch.randn(shape, generator=generator, dtype=drawn) * _SCALES[number % len(_SCALES)]).to(dtype)
    if limits is None:
        raise InvalidArgumentError(
            f"{quoted(name)} has integers ({str(dtype).removeprefix('torch.')}). Give their range: "
            f'ranges={{"{name}": (0, vocabulary_size)}}, or give arrays as samples'
        )
    return torch.randint(int(limits[0]), int(limits[1]), shape, generator=generator).to(dtype)
