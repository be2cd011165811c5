"""Host and device tensors -> one version 1 file, byte for byte what TensorFlow's TensorSliceWriter makes of them.

    with SlicesWriter(LOCAL, "model.ckpt-1000") as writer:
        writer.add("dense/bias", bias)
        writer.add("table", rows, shape=(100, 8), part=TensorSlice.parse("0,50:-"))
    # left normally: the file is durable, under its name. Left by an exception: nothing is left behind.

Version 1 is for programs that read nothing newer. It lacks most element types, keeps no checksum of its own, and holds
at most 2 GiB a slice.

Source: tensorflow/core/util/tensor_slice_writer.{h,cc}; spec: FORMATS 3.
"""

import contextlib
import enum
import os
import secrets
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import torch

from torch_tfckpt.bundle.values import Value
from torch_tfckpt.dtypes import ELEMENTS, DataType, data_type
from torch_tfckpt.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
    error_context,
    printable,
    quoted,
)
from torch_tfckpt.format.saved_tensor_slices import (
    META_KEY,
    VALUE_FIELDS,
    SavedSliceMeta,
    Values,
    encode_meta,
    encode_slice,
)
from torch_tfckpt.format.table import TableBuilder
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, encode_slice_key, find_overlap, shape_text
from torch_tfckpt.storage import Storage, WritableFile

_MEND = "Leave write_version out to write version 2, which holds it."


class State(enum.Enum):
    """Where a writer is. OPEN is the only state in which it takes tensors."""

    OPEN = "open"
    FINISHED = "finished"
    ABANDONED = "abandoned"


@dataclass(slots=True)
class _Tensor:
    """What was added under one name."""

    shape: Shape  # of the full tensor
    dtype: DataType
    parts: list[TensorSlice] = field(default_factory=list)


class SlicesWriter:
    """Writes the file `path`. Its folder must exist; a file of that name is replaced in one step at the end.

    Cost: a table is written in the order of its keys, so everything added is kept in memory, encoded, until the end: 4
    bytes a float, up to 10 an integer (TensorFlow does the same).
    Threads: one at a time.
    """

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path
        self._state = State.OPEN
        self._tensors: dict[str, _Tensor] = {}  # in the order of their first slices
        self._records: dict[bytes, bytes] = {}

    def add(
        self,
        name: str,
        tensor: Value,
        *,
        shape: Shape | None = None,
        part: TensorSlice | None = None,
        dtype: DataType | None = None,
    ) -> None:
        """Takes a copy of one tensor, or of one slice of a partitioned one.

        Args:
            name: Any text, the same for all slices of a tensor.
            tensor: On any device; for strings an object array of bytes.
            shape: Of the full tensor, where `part` is given.
            part: Which slice of it `tensor` is; None: all of it. Kept as spelt: "-" and "0,5" are different keys.
            dtype: What to store it as, where one torch dtype stands for several: int8 as DT_QINT8. None: what
                dtypes.STORED_AS says.

        Raises:
            InvalidArgumentError: the slice does not fit the full shape or the tensor, the name was added with another
                shape or type or with this slice, or the slice is too large.
            UnimplementedError: version 1 files cannot hold the element type.
            FailedPreconditionError: the writer is not open.
        """
        self._require_open("add")
        with error_context(f"{printable(self._path)}: tensor {quoted(name)}"):
            self._add(name, tensor, shape, part, dtype)

    def _add(
        self,
        name: str,
        tensor: Value,
        shape: Shape | None,
        part: TensorSlice | None,
        dtype: DataType | None,
    ) -> None:
        stored = _stored_type(tensor, dtype)
        full_shape, part = _placed(tuple(tensor.shape), shape, part)
        known = self._tensors.get(name, _Tensor(full_shape, stored))
        _check_same_tensor(name, known, full_shape, stored)
        key = encode_slice_key(_encoded(name), part)
        if key in self._records:
            raise InvalidArgumentError(_overlapping(part, part))
        self._records[key] = encode_slice(name, part, stored, _host_values(tensor))
        self._tensors.setdefault(name, known).parts.append(part)

    def finish(self) -> None:
        """Writes and publishes the file. On an error the writer is abandoned and no temporary file stays behind.

        Raises:
            InvalidArgumentError: two slices of a tensor overlap; TensorFlow writes such files, and cannot read them.
            NotFoundError: the folder does not exist.
            FailedPreconditionError: the writer is not open.
        """
        self._require_open("finish")
        self._state = State.ABANDONED  # until all went well
        try:
            self._check_overlaps()
            self._publish()
        finally:
            self._records.clear()
        self._state = State.FINISHED

    def abandon(self) -> None:
        """Forgets everything added; there is no file yet. Fine in every state, and without effect once finished."""
        if self._state is State.OPEN:
            self._state = State.ABANDONED
        self._records.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()
        elif self._state is State.OPEN:
            self.finish()

    def _require_open(self, call: str) -> None:
        if self._state is not State.OPEN:
            raise FailedPreconditionError(
                f"{printable(self._path)}: {call}() after the writer was {self._state.value}. Make a new SlicesWriter"
            )

    def _check_overlaps(self) -> None:
        for name, tensor in self._tensors.items():
            with error_context(f"{printable(self._path)}: tensor {quoted(name)}"):
                overlap = find_overlap(tensor.shape, tensor.parts)
                if overlap is not None:
                    raise InvalidArgumentError(_overlapping(*overlap))

    def _publish(self) -> None:
        # TensorFlow's name for a file in the making: 64 random bits, in the same folder, so that a rename suffices.
        temporary = f"{self._path}.tempstate{secrets.randbits(64)}"
        folder = os.path.dirname(self._path)
        try:
            file = self._storage.create(temporary)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{printable(self._path)}: there is no folder {quoted(printable(folder))}. Make it first"
            ) from error
        try:
            with contextlib.closing(file):
                self._write(file)
                file.sync()
            self._storage.replace(temporary, self._path)
            self._storage.sync_directory(folder)
        except BaseException:
            self._storage.remove(temporary)
            raise

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


def _stored_type(tensor: Value, dtype: DataType | None) -> DataType:
    """Under which type `tensor` is stored, known to be one that version 1 files hold."""
    natural = _natural_type(tensor)
    stored = natural if dtype is None else DataType(dtype)
    layout = VALUE_FIELDS.get(stored)
    if layout is None:
        raise UnimplementedError(
            f"Saving data type {stored.short_name} not yet supported: version 1 files cannot hold it. {_MEND}"
        )
    if not layout.estimate:
        raise InvalidArgumentError(
            f"Tensor slice serialization not implemented for dtype {int(stored)} ({stored.short_name}): version 1 "
            f"files cannot hold it. {_MEND}"
        )
    if stored != natural and ELEMENTS[stored].torch != ELEMENTS[natural].torch:
        raise InvalidArgumentError(f"a {natural.short_name} tensor cannot be stored as {stored.short_name}. Convert it")
    return stored


def _natural_type(tensor: Value) -> DataType:
    """The type of `tensor` itself; refuses what has no elements that could be stored."""
    if isinstance(tensor, np.ndarray):
        if tensor.dtype == object and all(isinstance(element, bytes) for element in tensor.flat):
            return DataType.DT_STRING
        raise InvalidArgumentError(
            "arrays must be of dtype object, with elements of type bytes. Encode text; make numbers a torch.Tensor"
        )
    if not isinstance(tensor, torch.Tensor):
        raise InvalidArgumentError(f"expected a torch.Tensor or an array of bytes, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise InvalidArgumentError(
            f"a tensor of layout {tensor.layout} on device {tensor.device} has no elements to store. Make it dense"
        )
    return data_type(tensor.dtype)


def _placed(held: Shape, shape: Shape | None, part: TensorSlice | None) -> tuple[Shape, TensorSlice]:
    """Full shape and slice, known to fit each other and the shape that is held."""
    full_shape = held if shape is None else tuple(shape)
    if part is None:
        part = TensorSlice.full(len(full_shape))
    elif shape is None:
        raise InvalidArgumentError(f"slice {part} was given without the shape of the full tensor")
    if any(extent.length == 0 for extent in part.extents):
        raise InvalidArgumentError(f"Expected positive lengths in every dimension, got slice = {part}")
    if part.shape_of(full_shape) != held:
        raise InvalidArgumentError(
            f"Slice in shape_and_slice specification does not match the shape of the tensor to  save: "
            f"{shape_text(full_shape)} {part}, tensor: {shape_text(held)}"
        )
    return full_shape, part


def _check_same_tensor(name: str, known: _Tensor, shape: Shape, dtype: DataType) -> None:
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
    return f"Overlapping slices: existing slice = {existing}, new slice = {new}. TensorFlow would not read such a file"


def _encoded(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("the name cannot be written as UTF-8, which version 1 files need") from error


def _host_values(tensor: Value) -> Values:
    """The elements as encode_slice takes them."""
    if isinstance(tensor, np.ndarray):
        return tensor.reshape(-1).tolist()
    # Conjugated and negated views of torch are numpy's to refuse: make them real first.
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().numpy()
