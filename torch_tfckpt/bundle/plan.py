"""Layout of a bundle: assigns each tensor an offset in the data file that the caller chose for it.

Names, shapes and types become index entries before any byte is copied. A Saver chooses the data file by device
(`save_restore.builder`), a Checkpoint by host (`objects.save`).

Source: BundleWriter::Add and AddSlice in tensorflow/core/util/tensor_bundle/tensor_bundle.cc.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from torch_tfckpt.bundle.index import key_of, name_of
from torch_tfckpt.bundle.small_tensors import JoinedWrite, SmallForm, SmallForms, joined_writes, stretches
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.string_tensor import encode_strings
from torch_tfckpt.format.tensor_bundle import BundleEntry, BundleHeader, SplitEntry, encode_index
from torch_tfckpt.format.tensor_slice import (
    Shape,
    TensorSlice,
    element_count,
    encode_slice_key,
    find_overlap,
    shape_text,
)
from torch_tfckpt.text import quoted
from torch_tfckpt.transfer.collector import new_objects_only
from torch_tfckpt.transfer.writes import Write
from torch_tfckpt.values import WritableValue, writable


@dataclass(slots=True, eq=False)
class TensorWrite(Write):
    """One tensor or slice to write to shard `file`, with the other fields of its index entry."""

    key: bytes
    dtype: DataType
    shape: Shape
    checksum: int | None  # masked; given for encoded values; None: to be computed from the written bytes


@dataclass(slots=True)
class ShardExtent:
    """Extent of one data file."""

    end: int = 0  # offset of the next tensor
    data_end: int = 0  # offset after the last tensor's bytes


class _Partitioned(NamedTuple):
    """A tensor that is added slice by slice."""

    dtype: DataType
    shape: Shape
    parts: list[TensorSlice]  # in the order they were added
    shards: list[int]  # shard of each part


class BundlePlan:
    """Assigns each tensor of a checkpoint its place in a file, and collects the index entries.

    Args:
        num_shards: Number of data files; the caller chooses one for each tensor.
        alignment: Every tensor starts at a multiple of this many bytes. TensorFlow's checkpoints use 1.

    Attributes:
        waiting: Writes that were added but whose entries are not complete, in order.

    Thread safety: one thread at a time.
    """

    def __init__(self, num_shards: int = 1, alignment: int = 1) -> None:
        if num_shards < 1 or alignment < 1:
            raise InvalidArgumentError(f"num_shards is {num_shards} and alignment {alignment}; both must be at least 1")
        self._alignment = alignment
        self.waiting: list[TensorWrite | JoinedWrite] = []
        self._forms = SmallForms()
        self._entries: dict[bytes, bytes] = {}  # encoded; empty before `enter`
        self._partitioned: dict[bytes, _Partitioned] = {}
        self.shards = [ShardExtent() for _ in range(num_shards)]

    def add(
        self,
        name: str,
        value: WritableValue,
        *,
        shard: int,
        part: tuple[Shape, TensorSlice] | None = None,
        dtype: DataType | None = None,
    ) -> None:
        """Add a tensor, or one slice of a tensor. Raises like BundleWriter.add and add_slice.

        Args:
            part: The tensor's full shape, and the slice that `value` contains; None: `value` is the whole tensor.
        """
        content, stored_as, shape = writable(name, value, dtype)
        if part is None:
            key = self._new_key(name)
        else:
            full_shape, where = part
            if where.shape_of(full_shape) != shape:
                raise InvalidArgumentError(
                    f"tensor {quoted(name)}: Slice in shape_and_slice specification does not match the shape of the "
                    f"tensor to  save: {where} of {shape_text(full_shape)}, tensor: {shape_text(shape)}"
                )
            covers = where.covers(full_shape)
            key = self._new_key(name) if covers else self._new_slice_key(name, full_shape, where, stored_as, shard)
        self._add(key, content, stored_as, shape, shard)

    def add_all(
        self, names: Sequence[str], values: Sequence[WritableValue], dtypes: Sequence[DataType | None], *, shard: int
    ) -> None:
        """Add whole tensors, in order: the same as `add` for each of them, but faster for small ones."""
        forms = self._forms.of(values, dtypes)
        for first, end, small in stretches(forms):
            keys = self._new_keys(names[first:end]) if small and self._alignment == 1 else None
            if keys is None or not 0 <= shard < len(self.shards):
                for at in range(first, end):
                    self.add(names[at], values[at], shard=shard, dtype=dtypes[at])
                continue
            extent = self.shards[shard]
            tensors, found = (
                cast(Sequence[torch.Tensor], values[first:end]),
                cast(Sequence[SmallForm], forms[first:end]),
            )
            for write in joined_writes(shard, extent.end, keys, tensors, found):
                self.waiting.append(write)
                extent.end += write.size
                if write.size:
                    extent.data_end = extent.end
            self._entries.update(dict.fromkeys(keys, b""))

    def add_stored(self, name: str, dtype: DataType, shape: Shape, stored: bytes, checksum: int, *, shard: int) -> None:
        """Add bytes in their stored form. Raises like BundleWriter.add_stored."""
        element = ELEMENTS.get(dtype)
        if element is not None and element.size and len(stored) != element.size * element_count(shape):
            raise InvalidArgumentError(
                f"tensor {quoted(name)}: stored size {len(stored)} does not match {dtype.name} of shape "
                f"{shape_text(shape)}"
            )
        self._add(self._new_key(name), stored, dtype, shape, shard, checksum)

    def enter(self, sums: Sequence[int]) -> None:
        """Complete the entries of all waiting writes. `sums`: the CRC-32C (not masked) of each part of each write."""
        with new_objects_only(len(sums)):
            waiting, self.waiting = self.waiting, []
            at = 0
            for write in waiting:
                if isinstance(write, JoinedWrite):
                    end = at + len(write.keys)
                    self._entries.update(zip(write.keys, write.entries(sums[at:end]), strict=True))
                    at = end
                    continue
                checksum = crc32c.mask(sums[at]) if write.checksum is None else write.checksum
                at += 1
                entry = BundleEntry(write.dtype, write.shape, write.file, write.offset, write.size, checksum)
                self._entries[write.key] = entry.encode()
            assert at == len(sums), "a checksum for each part"

    def close(self) -> None:
        """Add the entries of partitioned tensors.

        Raise InvalidArgumentError if slices overlap: checking once here avoids n**2 cost over n slices.
        """
        for key, (dtype, shape, parts, shards) in self._partitioned.items():
            overlap = find_overlap(shape, parts)
            if overlap is not None:
                raise InvalidArgumentError(
                    f"tensor {quoted(name_of(key))}: Overlapping slices: existing slice = {overlap[0]}, new slice = "
                    f"{overlap[1]}"
                )
            # Readers ignore the shard in the tensor's own entry. TensorFlow's merge stores the first shard
            # that contains a slice.
            self._entries[key] = BundleEntry(dtype, shape, min(shards), slices=tuple(parts)).encode()

    def encode_index(self, num_shards: int) -> bytes:
        """Return the index for `num_shards` data files. REQUIRES: entries are complete, the plan closed."""
        assert all(self._entries.values()), "an entry without a checksum"
        with new_objects_only(len(self._entries)):
            return encode_index(BundleHeader(num_shards), self._entries)

    def part_index(self, first_shard: int) -> bytes:
        """Return the index of a checkpoint of which this plan is one part, written by one of several processes.

        Its entries have the numbers that the plan's data files have in the whole checkpoint, `first_shard` and up, and
        its header declares just enough shards for these. `bundle.merge.merge_indexes` joins the parts. REQUIRES:
        entries are complete, the plan closed.
        """
        assert all(self._entries.values()), "an entry without a checksum"
        entries = {}
        for key, value in self._entries.items():
            split = SplitEntry.decode(value)
            entries[key] = split._replace(shard=first_shard + split.shard).encode()
        return encode_index(BundleHeader(first_shard + len(self.shards)), entries)

    def _new_key(self, name: str) -> bytes:
        if not name:
            raise InvalidArgumentError(
                "a tensor name is empty, but the empty key is reserved for the header. Give the tensor a name"
            )
        key = key_of(name)
        if key in self._entries or key in self._partitioned:
            raise InvalidArgumentError(f"Adding duplicate key: {quoted(name)} was already added")
        return key

    def _new_keys(self, names: Sequence[str]) -> list[bytes] | None:
        """Return the keys of new tensors; None if `_new_key` would refuse one of them, or if one is unusual."""
        try:
            keys = list(map(str.encode, names))
        except (TypeError, UnicodeEncodeError):
            return None
        unique = set(keys)
        if len(unique) < len(keys) or b"" in unique:
            return None
        taken = not self._entries.keys().isdisjoint(unique) or not self._partitioned.keys().isdisjoint(unique)
        return None if taken else keys

    def _new_slice_key(self, name: str, full_shape: Shape, part: TensorSlice, dtype: DataType, shard: int) -> bytes:
        """Return the key of one slice, and list `part` under its tensor."""
        if not name or key_of(name) in self._entries:
            self._new_key(name)  # raises
        listed = self._partitioned.setdefault(key_of(name), _Partitioned(dtype, full_shape, [], []))
        if (listed.dtype, listed.shape) != (dtype, full_shape):
            raise InvalidArgumentError(
                f"tensor {quoted(name)}: slice {part} is {dtype.name} of {shape_text(full_shape)}, but earlier slices "
                f"are {listed.dtype.name} of {shape_text(listed.shape)}"
            )
        key = encode_slice_key(key_of(name), part)
        if key in self._entries:
            raise InvalidArgumentError(f"Adding duplicate key: slice {part} of {quoted(name)} was already added")
        listed.parts.append(part)
        listed.shards.append(shard)
        return key

    def _add(
        self,
        key: bytes,
        content: torch.Tensor | bytes | list[bytes],
        dtype: DataType,
        shape: Shape,
        shard: int,
        checksum: int | None = None,
    ) -> None:
        """Reserve the next bytes of a shard for `content`."""
        if not 0 <= shard < len(self.shards):
            raise InvalidArgumentError(f"shard {shard} of {len(self.shards)} does not exist")
        if isinstance(content, list):
            content, checksum = encode_strings(content)
        extent, size = self.shards[shard], len(content) if isinstance(content, bytes) else content.nbytes
        offset = extent.end
        extent.end = -(-(offset + size) // self._alignment) * self._alignment
        if size:
            extent.data_end = offset + size
        self._entries[key] = b""
        self.waiting.append(TensorWrite(shard, offset, size, content, key, dtype, shape, checksum))
