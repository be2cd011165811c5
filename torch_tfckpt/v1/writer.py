"""Write version 1 files, byte-identical to files written by TensorFlow's TensorSliceWriter.

    with SlicesWriter(LOCAL, "model.ckpt-1000") as writer:
        writer.add("dense/bias", bias)
        writer.add("table", rows, shape=(100, 8), part=TensorSlice.parse("0,50:-"))
    # on success: the file is durable and has its final name. After an exception: no file is left.

Version 1 is for programs that cannot read version 2. It lacks most element types, has no checksums per tensor, and
limits each slice to 2 GiB.

Source: tensorflow/core/util/tensor_slice_writer.{h,cc}. Explained in docs/formats/v1.md.
"""

import os
from dataclasses import dataclass, field
from typing import Final

import torch

from torch_tfckpt.bundle.publish import make_durable, saving
from torch_tfckpt.bundle.writer import CheckpointWriter, State
from torch_tfckpt.errors import InvalidArgumentError, NotFoundError, UnimplementedError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.saved_tensor_slices import META_KEY, VALUE_FIELDS, SavedSliceMeta, encode_meta, encode_slice
from torch_tfckpt.format.table import TableBuilder
from torch_tfckpt.format.tensor_slice import WHOLE, Shape, TensorSlice, encode_slice_key, find_overlap, shape_text
from torch_tfckpt.storage.names import final_name
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.host_bytes import host_copy
from torch_tfckpt.values import WritableValue, writable

_HINT: Final = "Omit write_version to write version 2"


@dataclass(slots=True)
class _AddedTensor:
    """Slices that were added under one name."""

    shape: Shape  # of the full tensor
    dtype: DataType
    parts: list[TensorSlice] = field(default_factory=list)


class SlicesWriter(CheckpointWriter):
    """Writes the file `path`, atomically replacing any existing file at the end. Its directory must exist.

    Cost: a table is written in the order of its keys, so everything is kept in memory, encoded, until the end: 4 bytes
    per float, up to 10 per integer (as in TensorFlow).
    Thread safety: one thread at a time.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        super().__init__(path)
        self._storage = storage
        # Error messages contain the final name, even if `path` is the temporary name of a shard.
        self._place = printable(final_name(path))
        self._tensors: dict[str, _AddedTensor] = {}  # in the order in which their first slices were added
        self._records: dict[bytes, bytes] = {}

    def add(
        self,
        name: str,
        tensor: WritableValue,
        *,
        shape: Shape | None = None,
        part: TensorSlice | None = None,
        dtype: DataType | None = None,
    ) -> None:
        """Add a copy of one tensor, or of one slice of a partitioned tensor.

        Args:
            name: Any string, the same for all slices of a tensor.
            tensor: A tensor on any device with any strides, a numeric array, or strings (str, bytes, or an array).
            shape: Shape of the full tensor; required with `part`.
            part: The slice of the full tensor that `tensor` contains; None: all of it. The notation is kept: "-" and
                "0,5" are different keys.
            dtype: The type to store `tensor` as, if not the default: DT_QINT8 for an int8 tensor.

        Raises:
            InvalidArgumentError: the slice does not fit the full shape or the tensor, the name was already added with a
                different shape or type or with the same slice, the slice is too large, or the value cannot be stored.
            UnimplementedError: version 1 files cannot store the element type.
            FailedPreconditionError: the writer is not open.
        """
        self._require_open("add")
        with error_context(self._place):
            content, stored_as, held = writable(name, tensor, dtype)
            with error_context(f"tensor {quoted(name)}"):
                _check_holdable(stored_as)
                full_shape, part = _placed(held, shape, part)
                known = self._tensors.get(name, _AddedTensor(full_shape, stored_as))
                _check_same_tensor(name, known, full_shape, stored_as)
                key = encode_slice_key(_encoded(name), part)
                if key in self._records:
                    raise InvalidArgumentError(_overlapping(part, part))
                values = host_copy(content).reshape(-1).numpy() if isinstance(content, torch.Tensor) else content
                self._records[key] = encode_slice(name, part, stored_as, values)
        self._tensors.setdefault(name, known).parts.append(part)

    def finish(self) -> None:
        """Write and publish the file. After an error the writer is abandoned and no temporary file is left.

        Raises:
            InvalidArgumentError: two slices of a tensor overlap; TensorFlow writes such files, but cannot read them.
            NotFoundError: the directory does not exist.
            IncompleteSaveError: writing or publishing failed.
            FailedPreconditionError: the writer is not open.
        """
        self._require_open("finish")
        self._state = State.ABANDONED  # until everything has succeeded
        try:
            self._check_overlaps()
            self._publish()
        finally:
            self._records.clear()
        self._state = State.FINISHED

    def abandon(self) -> None:
        """Discard everything added; no file exists yet. Allowed in every state; does nothing after `finish`."""
        if self._state is State.OPEN:
            self._state = State.ABANDONED
        self._records.clear()

    def _check_overlaps(self) -> None:
        for name, tensor in self._tensors.items():
            with error_context(f"{self._place}: tensor {quoted(name)}"):
                overlap = find_overlap(tensor.shape, tensor.parts)
                if overlap is not None:
                    raise InvalidArgumentError(_overlapping(*overlap))

    def _publish(self) -> None:
        with Publication(self._storage) as publication:
            with saving(self._path):
                self._write(self._create(publication))
                publication.publish()
            make_durable(self._storage, self._path)

    def _create(self, publication: Publication) -> WritableFile:
        try:
            return publication.create(self._path)
        except FileNotFoundError as error:
            folder = printable(os.path.dirname(self._path))
            raise NotFoundError(
                f"{self._place}: the directory {quoted(folder)} does not exist, and a version 1 save "
                "does not create it. Create it first"
            ) from error

    def _write(self, file: WritableFile) -> None:
        at = 0

        def append(data: bytes) -> None:
            nonlocal at
            file.write(at, [data])
            at += len(data)

        table = TableBuilder(append)
        metas = (SavedSliceMeta(name, t.shape, t.dtype, tuple(t.parts)) for name, t in self._tensors.items())
        table.add(META_KEY, encode_meta(metas))
        for key, record in sorted(self._records.items()):
            table.add(key, record)
        table.finish()


def _check_holdable(dtype: DataType) -> None:
    """Raise an error, with TensorFlow's message, for a type that version 1 files cannot store."""
    layout = VALUE_FIELDS.get(dtype)
    if layout is None:
        raise UnimplementedError(
            f"Saving data type {dtype.short_name} not yet supported: version 1 files cannot store {dtype.short_name}. "
            f"{_HINT}"
        )
    if not layout.estimate:
        raise InvalidArgumentError(
            f"Tensor slice serialization not implemented for dtype {int(dtype)}: version 1 files cannot store "
            f"{dtype.short_name}. {_HINT}"
        )


def _placed(held: Shape, shape: Shape | None, part: TensorSlice | None) -> tuple[Shape, TensorSlice]:
    """Return the full shape and the slice; raise if they do not match each other or the shape `held`."""
    full_shape = held if shape is None else tuple(shape)
    if part is None:
        part = TensorSlice.full(len(full_shape))
    elif shape is None:
        raise InvalidArgumentError(f"slice {part} was given without the shape of the full tensor")
    for start, length in part.extents:
        if (start, length) != (0, WHOLE) and (start < 0 or length <= 0):
            raise InvalidArgumentError(
                f"Expected non-negative start and positive length but got start = {start}, length = {length}"
            )
    if part.shape_of(full_shape) != held:
        raise InvalidArgumentError(
            f"Slice in shape_and_slice specification does not match the shape of the tensor to  save: "
            f"{shape_text(full_shape)} {part}, tensor: {shape_text(held)}"
        )
    return full_shape, part


def _check_same_tensor(name: str, known: _AddedTensor, shape: Shape, dtype: DataType) -> None:
    if known.shape != shape:
        raise InvalidArgumentError(
            f"Mismatching shapes: existing tensor = {shape_text(known.shape)}, trying to add name {name}, "
            f"shape = {shape_text(shape)}"
        )
    if known.dtype != dtype:
        raise InvalidArgumentError(
            f"Mismatching types: existing type = {known.dtype.short_name}, trying to add name {name}, "
            f"type = {dtype.short_name}"
        )


def _overlapping(existing: TensorSlice, new: TensorSlice) -> str:
    return f"Overlapping slices: existing slice = {existing}, new slice = {new}. TensorFlow could not read such a file"


def _encoded(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("the name cannot be encoded as UTF-8, which version 1 files require") from error
