"""A source whose tensors are computed from those of another source, when they are read."""

from collections.abc import Iterable, Iterator, Mapping

import torch

from torch_tfckpt.conversion.deferred import DeferredTensor
from torch_tfckpt.foreign_files.protocols import DerivedSource, TensorSource
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo, batches
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.values import Strings


class DeferredSource(DerivedSource):
    """Tensors by name, as `TensorSource`.

    Args:
        source: The source that the tensors are read from.
        values: Name -> a tensor, deferred or not, or strings.

    Tensors that `read` returns may have any strides, and two of them may share memory. Memory: at any time, the result
    and one batch of stored tensors, or one stored tensor and those that are joined with it.
    """

    format = "computed"
    object_names: None = None

    def __init__(self, source: TensorSource, values: Mapping[str, torch.Tensor | Strings]) -> None:
        super().__init__(source)
        self.skipped: dict[str, str] = {}
        self._values = values

    def names(self) -> list[str]:
        return list(self._values)

    def info(self, name: str) -> TensorInfo:
        value = self._values[name]
        if not isinstance(value, torch.Tensor):
            kind = ElementType.of_tensorflow(DataType.DT_STRING)
            return TensorInfo(kind, value.shape, sum(map(len, value.reshape(-1))))
        return TensorInfo(ElementType.of_torch(value.dtype), tuple(value.shape), value.numel() * value.dtype.itemsize)

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        return dict(self._read(names))

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, FileValue]]:
        needed = {name: needed_by(self._values[name]) for name in names}
        sizes = {name: sum(self._source.info(key).nbytes for key in keys) for name, keys in needed.items()}
        for batch in batches(sizes):
            keys = dict.fromkeys(key for name in batch for key in needed[name])
            stored = read_tensors(self._source, keys)
            for name in batch:
                value = self._values[name]
                if isinstance(value, DeferredTensor):
                    computed = value.compute(stored)
                    # A view of a part must not keep the memory of the larger tensor alive.
                    is_part = computed.untyped_storage().nbytes() > computed.numel() * computed.dtype.itemsize
                    yield name, computed.clone() if is_part else computed
                else:
                    yield name, value


def deferred_tensor(source: TensorSource, name: str) -> DeferredTensor:
    """Return a tensor of a source, to be read later.

    REQUIRES: torch has its dtype.
    """
    info = source.info(name)
    assert info.type.dtype is not None, "tensors of other types are left out"
    return DeferredTensor.stored(name, info.shape, info.type.dtype, lambda names: read_tensors(source, names))


def needed_by(value: object) -> list[str]:
    """Return the names of the stored tensors that a value is computed from."""
    return value.names if isinstance(value, DeferredTensor) else []


def read_tensors(source: TensorSource, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Read tensors of numbers."""
    return {name: value for name, value in source.read(names).items() if isinstance(value, torch.Tensor)}
