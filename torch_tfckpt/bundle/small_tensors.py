"""Small tensors planned in bulk: many of them take one write, and their index entries are encoded together.

`BundlePlan.add` takes several microseconds for each tensor. Most tensors are ordinary ones, and what it finds out about
them depends only on dtype, device and shape, so it is looked up. Everything else is left to `BundlePlan.add`: tensors
above a size, other values, unusual tensors. Property tests compare both ways.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, repeat
from typing import Final, NamedTuple

import numpy as np
import torch

from torch_tfckpt.dtypes import ELEMENTS, STORED_AS
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.bulk_encoding import encode_entries
from torch_tfckpt.format.coding import encode_varint
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_bundle import dtype_and_shape, whole_entry
from torch_tfckpt.transfer.batching import SMALL_BYTES, find_runs
from torch_tfckpt.transfer.writes import Write
from torch_tfckpt.values import PLAIN_CLASSES, is_ordinary

_FEW: Final = 64  # for fewer entries, numpy's fixed cost is larger than the gain
_FORMS: Final = 4096  # limit on remembered forms


class SmallForm(NamedTuple):
    """What the plan needs to know about a small tensor, apart from its name."""

    described: bytes  # the first fields of its index entry
    size: int  # bytes
    kind: object  # equal for tensors that can be copied together


@dataclass(slots=True, eq=False)
class JoinedWrite(Write):
    """Small tensors to write back to back to shard `file`, with their keys."""

    keys: list[bytes]
    forms: list[SmallForm]

    def parts(self) -> Sequence[int]:
        """Return the sizes of the tensors."""
        return [form.size for form in self.forms]

    def entries(self, sums: Sequence[int]) -> Iterable[bytes]:
        """Return the index entries, in order. `sums`: the CRC-32C (not masked) of each tensor's bytes."""
        described = [form.described for form in self.forms]
        sizes = self.parts()
        offsets = list(accumulate(sizes, initial=self.offset))[:-1]
        checksums = list(map(crc32c.mask, sums))
        if len(sizes) < _FEW:
            return map(whole_entry, described, repeat(self.file), offsets, sizes, checksums)
        shard = b"\x18" + encode_varint(self.file) if self.file else b""
        numbers = np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64)
        return encode_entries(described, shard, *numbers, np.array(checksums, dtype=np.uint32))


class SmallForms:
    """The forms of small tensors, remembered while they are planned."""

    def __init__(self) -> None:
        self._known: dict[object, SmallForm | None] = {}

    def of(self, values: Sequence[object], stored: Sequence[DataType | None]) -> list[SmallForm | None]:
        """Return the form of each value; None for values to plan one by one.

        Args:
            stored: The type to store each value as; None: the default.
        """
        found: list[SmallForm | None] = []
        known = self._known
        for value, stored_as in zip(values, stored, strict=True):
            if not isinstance(value, torch.Tensor) or type(value) not in PLAIN_CLASSES or not is_ordinary(value):
                found.append(None)
                continue
            key = value.dtype, value.device, value.shape, stored_as
            try:
                found.append(known[key])
            except KeyError:
                found.append(self._remember(key))
        return found

    def _remember(self, key: tuple[torch.dtype, torch.device, torch.Size, DataType | None]) -> SmallForm | None:
        dtype, device, shape, given = key
        stored = STORED_AS.get(dtype) if given is None else given
        size = dtype.itemsize * shape.numel()
        form = None
        if stored is not None and ELEMENTS[stored].torch == dtype and size <= SMALL_BYTES:
            form = SmallForm(dtype_and_shape(stored, tuple(shape)), size, (dtype, device))
        if len(self._known) >= _FORMS:
            self._known.clear()
        self._known[key] = form
        return form


def joined_writes(
    file: int, offset: int, keys: Sequence[bytes], tensors: Sequence[torch.Tensor], forms: Sequence[SmallForm]
) -> Iterator[JoinedWrite]:
    """Yield the writes of small tensors that are stored back to back from `offset` on."""
    starts = list(accumulate((form.size for form in forms), initial=offset))
    places = [(file, at, form.size, form.kind) for at, form in zip(starts, forms, strict=False)]
    for first, end in find_runs(places):
        source = list(tensors[first:end])
        size = starts[end] - starts[first]
        yield JoinedWrite(file, starts[first], size, source, list(keys[first:end]), list(forms[first:end]))


def stretches(forms: Sequence[SmallForm | None]) -> Iterator[tuple[int, int, bool]]:
    """Yield index ranges, in order and without gaps, each with whether its items have forms."""
    changes = [at for at in range(1, len(forms)) if (forms[at] is None) != (forms[at - 1] is None)]
    for first, end in pairwise((0, *changes, len(forms))):
        if first < end:
            yield first, end, forms[first] is not None
