"""The table of TensorFlow's saver tests (their CheckpointedOp): one saveable, two values, NAME-keys and NAME-values."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from torch_tfckpt import SaveableObject, SaveSpec
from torch_tfckpt.devices import HOST
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.values import Strings, Value


class Table:
    """Maps strings to numbers.

    Args:
        name: Name of the saveable.
        entries: The initial contents.
        device: Device for grouping.

    Attributes:
        reads: Number of times the values were read.
    """

    def __init__(self, name: str, entries: Mapping[str, float] | None = None, device: str = HOST) -> None:
        self.entries = {key.encode(): value for key, value in (entries or {}).items()}
        self.reads = 0
        self.saveable = _TableSaveable(self, name, device)

    @property
    def values(self) -> dict[str, float]:
        """The entries, as they were given."""
        return {key.decode(): value for key, value in self.entries.items()}

    def keys_as_stored(self) -> Strings:
        """One string per entry, sorted."""
        keys = np.empty(len(self.entries), dtype=object)
        keys[:] = sorted(self.entries)
        return keys

    def values_as_stored(self) -> torch.Tensor:
        """One number per entry, in the order of the keys."""
        self.reads += 1
        return torch.tensor([self.entries[key] for key in sorted(self.entries)], dtype=torch.float32)


class _TableSaveable(SaveableObject):
    def __init__(self, table: Table, name: str, device: str) -> None:
        specs = [
            SaveSpec(table.keys_as_stored, "", f"{name}-keys", DataType.DT_STRING, device),
            SaveSpec(table.values_as_stored, "", f"{name}-values", torch.float32, device),
        ]
        super().__init__(table, specs, name)
        self._table = table

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        keys, values = restored_tensors
        assert isinstance(keys, np.ndarray) and isinstance(values, torch.Tensor)
        self._table.entries = dict(zip(keys.tolist(), values.tolist(), strict=True))
