"""Read version 1 checkpoints, which consist of one or more files, into host tensors.

    with SlicesReader(LOCAL, ["model.ckpt-00000-of-00002", "model.ckpt-00001-of-00002"]) as reader:
        kernel = reader.read("dense/kernel")        # its slices, from all shards that contain them

All files are opened together (`v1.opening`) and stay open: a writer that replaces or deletes the checkpoint does not
disturb an open reader. Each shard lists only its own slices; the metadata of all shards is merged.

Source: tensorflow/core/util/tensor_slice_reader.{h,cc}, tensor_slice_set.cc. Explained in docs/formats/v1.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import torch

from torch_tfckpt.bundle.check import Damage, Verification
from torch_tfckpt.bundle.index import key_of, no_such_tensor
from torch_tfckpt.bundle.tensor_reader import TensorReader
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import (
    DAMAGED,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
    error_context,
)
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.partition import Partition
from torch_tfckpt.format.saved_tensor_slices import VALUE_FIELDS, ValueField, decode_slice
from torch_tfckpt.format.table import MAX_SNAPPY_EXPANSION
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, element_count, shape_text
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import escaped, printable, quoted
from torch_tfckpt.transfer.host_bytes import copy_slice
from torch_tfckpt.v1.opening import close_all, open_together
from torch_tfckpt.v1.shard import Record, Shard, record_key
from torch_tfckpt.v1.shard_names import V1_SHARD
from torch_tfckpt.values import Value, check_out, new_strings, new_tensor, strings_from, value_dtype


class _StoredSlice(NamedTuple):
    """One slice, and the shard that contains it."""

    part: TensorSlice
    shard: int


@dataclass(slots=True)
class _MergedTensor:
    """One tensor as described by all shards together."""

    shape: Shape
    dtype: DataType
    stored: list[_StoredSlice] = field(default_factory=list)
    conflict: str = ""  # contradiction between shards that makes the tensor unreadable
    partition: Partition | None = None  # created, after checking for overlaps, on the first read

    @property
    def parts(self) -> list[TensorSlice]:
        return [stored.part for stored in self.stored]

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is stored as a single slice, in any notation."""
        try:
            return len(self.stored) == 1 and self.stored[0].part.covers(self.shape)
        except InvalidArgumentError:
            return False  # a slice that does not fit; raised again when this tensor is read

    def partition_of(self, name: str) -> Partition:
        """Return the stored slices as a Partition; raise DataLossError if they overlap or exceed the shape."""
        if self.partition is None:
            self.partition = Partition(name, self.shape, self.parts)
        return self.partition

    def piece_shape(self, number: int) -> Shape:
        """Return the shape of one stored slice."""
        return self.stored[number].part.shape_of(self.shape)


class SlicesReader(TensorReader):
    """Reads the version 1 checkpoint that consists of `paths`.

    Args:
        paths: All files of the checkpoint, in any order, or some of its shards. If they are all shards, they are from
            one save, even if another program saves the checkpoint at the same time.
        verify: Accepted for symmetry with the version 2 reader. Version 1 files have only block checksums, which
            are always verified.

    Raises:
        NotFoundError: a file is missing, or `paths` is empty.
        DataLossError: a file is not a version 1 file, or its metadata is damaged.
        InvalidArgumentError: a file requires a different reader version.

    Cost: opening reads the footer, index block and first data block of each file; one file descriptor per file.
    Thread safety: safe; reading does not open further files.
    """

    version = 1

    def __init__(self, storage: Storage, paths: Sequence[str], *, verify: bool = True) -> None:
        if not paths:
            raise NotFoundError("Failed to find any matching files: a version 1 checkpoint needs at least one file")
        self.path = _description(paths)
        self._shards: list[Shard] = []
        self._closed = False
        files = open_together(storage, paths)
        try:
            self._shards += map(Shard, files)
        except BaseException:
            close_all(files)
            raise
        self._tensors = _merge(self._shards)
        self._stored_bytes = sum(file.size for file in files)

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the open files: temporary names if a save of the checkpoint was not finished."""
        return tuple(shard.file.path for shard in self._shards)

    def keys(self) -> list[str]:
        """Return the names of all tensors, each once, sorted by their bytes."""
        return sorted(self._tensors, key=str.encode)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._tensors

    def describe(self, name: str) -> tuple[Shape, DataType]:
        """Return the full shape and the element type of `name`; raise NotFoundError if there is no such tensor."""
        tensor = self._find(name)
        return tensor.shape, tensor.dtype

    def shape(self, name: str) -> Shape:
        """Return the full shape of `name`; raise NotFoundError if there is no such tensor."""
        return self._find(name).shape

    def dtype(self, name: str) -> DataType:
        return self._find(name).dtype

    def slices(self, name: str) -> tuple[TensorSlice, ...]:
        """Return the slices that `name` is stored in; empty if it is stored whole."""
        tensor = self._find(name)
        return () if tensor.is_whole else tuple(tensor.parts)

    def nbytes(self, name: str) -> int:
        """Return the size of the elements in bytes; for strings and unknown types, the size of the records.

        Raises:
            DataLossError: the size of records is needed, and a record is damaged or missing.
        """
        tensor = self._find(name)
        element = ELEMENTS.get(tensor.dtype)
        if element is not None and element.size:
            return element.size * element_count(tensor.shape)
        self._require_open()
        return sum(len(self._shards[stored.shard].record(name, stored.part)) for stored in tensor.stored)

    def locate(self, name: str) -> list[str]:
        """Return the files that contain `name`."""
        numbers = dict.fromkeys(stored.shard for stored in self._find(name).stored)
        return [self._shards[number].file.path for number in numbers]

    def read(self, name: str, out: torch.Tensor | None = None) -> Value:
        """Read the full tensor into `out`, or into a new contiguous CPU tensor; strings as an array of bytes.

        Raises:
            NotFoundError: no such tensor.
            InvalidArgumentError: `out` has a different shape or dtype (it is untouched), or there are gaps between the
                stored slices.
            DataLossError: a block or record is damaged, or slices overlap; `out` may be partly written.
            UnimplementedError: version 1 cannot store values of this type.

        Cost: reads the blocks with the tensor's records; needs memory for the result and a few times the largest stored
        slice. A block is read whole, with all other tensors in it; a block of small tensors is 256 KiB.
        Source: TensorSliceReader::CopySliceData, which does not assemble slices; this reader does.
        """
        return self._read(name, TensorSlice.full(len(self.shape(name))), out)

    def read_slice(self, name: str, part: TensorSlice, out: torch.Tensor | None = None) -> Value:
        """Read one slice of `name`, whether stored whole or in slices. Errors and cost: as `read`."""
        return self._read(name, part, out)

    def read_all(self, names: Iterable[str], out: Mapping[str, torch.Tensor] | None = None) -> dict[str, Value]:
        """Read several tensors, in the order given, after looking up all names. Raises like `read`.

        Args:
            out: Name -> tensor to fill, as for `read`, for some of the names.
        """
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            self._find(name)
        # Read in file order, so that each block is read once.
        values = {name: self.read(name, (out or {}).get(name)) for name in sorted(wanted, key=str.encode)}
        return {name: values[name] for name in wanted}

    def verify_all(self, names: Iterable[str]) -> None:
        """Read several tensors without keeping their values. Raises like `read`."""
        for name in sorted(set(names), key=str.encode):
            self.read(name)

    def read_stored(self, name: str) -> NoReturn:
        """Raise UnimplementedError: version 1 files do not store raw bytes."""
        raise UnimplementedError(
            f"{self.path}: tensor {quoted(name)}: version 1 files do not store raw bytes. Use get_tensor"
        )

    def check(self, progress: Callable[[int], object] | None = None) -> Verification:
        """Read every block and every tensor of all files, and account for every byte.

        A damaged tensor does not end the check: the list of undamaged tensors is part of the result.

        Args:
            progress: Called with the number of bytes checked since the last call.

        Cost: every byte is read twice, once for its tensor and once for the structure of the table; needs memory for a
        few times the largest stored slice.
        """
        self._require_open()
        damage: list[Damage] = []
        for number, shard in enumerate(self._shards):
            damage += shard.check(self._records_in(number), progress)
        for name, tensor in self._tensors.items():
            try:
                self._check_readable(name, tensor)
                tensor.partition_of(name).parts_of(TensorSlice.full(len(tensor.shape)))
            except (DataLossError, InvalidArgumentError) as error:
                file = self._shards[tensor.stored[0].shard if tensor.stored else 0].file
                damage.append(Damage(name, file.path, 0, file.size, str(error)))
            except UnimplementedError:
                pass  # unsupported, but not damaged
        damaged = {found.name for found in damage}
        return Verification([name for name in self.keys() if name not in damaged], damage)

    def _records_in(self, number: int) -> list[Record]:
        """Return the records that shard `number` should contain."""
        return [
            Record(record_key(name, stored.part), name, stored.part, tensor.dtype, tensor.shape)
            for name, tensor in self._tensors.items()
            for stored in tensor.stored
            if stored.shard == number
        ]

    def close(self) -> None:
        """Close all files; may be called repeatedly."""
        self._closed = True
        for shard in self._shards:
            shard.file.close()

    def _require_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError(f"{self.path}: the reader is closed. Open the checkpoint again")

    def _find(self, name: str) -> _MergedTensor:
        with error_context(self.path):
            key_of(name)  # raises for an invalid name
        tensor = self._tensors.get(name)
        if tensor is None:
            raise no_such_tensor(self.path, name, self._tensors, f"{escaped(name)} not found in checkpoint")
        return tensor

    def _check_readable(self, name: str, tensor: _MergedTensor) -> ValueField:
        """Return the field in which records store the values; raise if no part of the tensor can be read."""
        if tensor.conflict:
            raise DataLossError(f"tensor {quoted(name)}: {tensor.conflict}. {DAMAGED}")
        layout = VALUE_FIELDS.get(tensor.dtype)
        if layout is None and tensor.dtype == DataType.DT_INVALID:
            raise DataLossError(f"tensor {quoted(name)}: the metadata contains no element type. {DAMAGED}")
        if layout is None:
            raise UnimplementedError(
                f"tensor {quoted(name)}: Data type not supported: version 1 files cannot store values of type "
                f"{tensor.dtype.name}. Read the other tensors of the checkpoint"
            )
        with error_context("the metadata", DAMAGED):
            tensor.partition_of(name)
        return layout

    def _read(self, name: str, want: TensorSlice, out: torch.Tensor | None) -> Value:
        self._require_open()
        tensor = self._find(name)
        with error_context(self.path):
            layout = self._check_readable(name, tensor)
            shape = want.shape_of(tensor.shape)
            if out is not None:
                _check_out(name, out, shape, tensor.dtype)
            parts = tensor.partition_of(name).parts_of(want)
            self._check_volume(name, shape, layout)
        if out is None and len(parts) == 1:
            number = parts[0].number
            if element_count(tensor.piece_shape(number)) == element_count(shape):
                return self._piece(name, tensor, number, shape)
        with error_context(self.path):
            result = _new_value(name, tensor.dtype, shape) if out is None else out.detach()
        for part in parts:
            piece = self._piece(name, tensor, part.number, tensor.piece_shape(part.number))
            _copy(result, part.target, piece[part.source.to_index()])
        return result if out is None else out

    def _check_volume(self, name: str, shape: Shape, layout: ValueField) -> None:
        """Refuse a shape that is too large for the files, before memory is allocated for it."""
        claimed = layout.min_element_size * element_count(shape)
        if claimed > MAX_SNAPPY_EXPANSION * self._stored_bytes:
            raise DataLossError(
                f"tensor {quoted(name)}: {shape_text(shape)} takes at least {claimed} bytes, but the files have only "
                f"{self._stored_bytes}. {DAMAGED}"
            )

    def _piece(self, name: str, tensor: _MergedTensor, number: int, shape: Shape) -> Value:
        """Return the elements of one stored slice, as a new value of `shape`."""
        part, shard_number = tensor.stored[number]
        shard = self._shards[shard_number]
        record = shard.record(name, part)
        try:
            values = decode_slice(record, tensor.dtype, element_count(shape)).values
        except DataLossError as error:
            raise shard.damaged(name, error) from error.__cause__
        if isinstance(values, list):
            with error_context(self.path):
                return strings_from(name, shape, values)
        return torch.from_numpy(values).view(shape)


def _description(paths: Sequence[str]) -> str:
    """Return a single path, or for several shards the pattern that TensorFlow uses."""
    match = V1_SHARD.fullmatch(paths[0])
    if len(paths) == 1 or match is None:
        return printable(paths[0])
    return printable(f"{match['prefix']}-?????-of-{match['count']}")


def _merge(shards: Sequence[Shard]) -> dict[str, _MergedTensor]:
    """Return name -> merged metadata of all shards; contradictions affect only the tensor in question."""
    tensors: dict[str, _MergedTensor] = {}
    for number, shard in enumerate(shards):
        for name, shape, dtype, slices in shard.tensors:
            tensor = tensors.setdefault(name, _MergedTensor(shape, DataType(dtype)))
            tensor.stored += (_StoredSlice(part, number) for part in slices)
            if tensor.conflict:
                continue
            if shape != tensor.shape:
                existing, new, what = shape_text(tensor.shape), shape_text(shape), "shapes"
            elif dtype != tensor.dtype:
                existing, new, what = tensor.dtype.short_name, DataType(dtype).short_name, "types"
            else:
                continue
            tensor.conflict = (
                f"Incompatible tensor {what} detected for tensor {name}: existing = {existing}, new = {new}, in "
                f"{printable(shard.file.path)}. The shards are from different saves"
            )
    return tensors


def _check_out(name: str, out: torch.Tensor, shape: Shape, dtype: DataType) -> None:
    if dtype == DataType.DT_STRING:
        raise InvalidArgumentError(
            f"tensor {quoted(name)} contains strings, which a torch tensor cannot hold. Omit `out`"
        )
    check_out(name, out, shape, value_dtype(name, dtype))


def _new_value(name: str, dtype: DataType, shape: Shape) -> Value:
    if dtype == DataType.DT_STRING:
        return new_strings(name, shape)
    return new_tensor(name, shape, value_dtype(name, dtype))


def _copy(target: Value, where: TensorSlice, source: Value) -> None:
    """Assign target[where] = source."""
    if isinstance(target, torch.Tensor):
        assert isinstance(source, torch.Tensor)  # both were created for the same dtype
        copy_slice(target, where.to_index(), source)
    else:
        target[where.to_index()] = source
