"""Host and device tensors -> a version 2 checkpoint.

    with BundleWriter(LOCAL, prefix, num_shards=4) as writer:   # nothing named `prefix.*` exists yet
        writer.add("dense/kernel", kernel, shard=2)
    # left normally: data synced and named, then the index. Left by an exception: temporary files removed.

Where the bytes of a tensor go follows from the shapes added before it, so bytes are written while later tensors are
still being added. With the same tensors added in the same order, index and data are byte-identical to TensorFlow's.

Source: BundleWriter in tensorflow/core/util/tensor_bundle/tensor_bundle.cc; spec: FORMATS 2.
"""

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

import torch

from torch_tfckpt.bundle.index import key_of, name_of
from torch_tfckpt.bundle.publish import publish, saving
from torch_tfckpt.bundle.runs import Place, find_runs, gather
from torch_tfckpt.bundle.values import WritableValue, writable
from torch_tfckpt.device.host_bytes import byte_view, host_copy
from torch_tfckpt.device.pipeline import Pipeline, WriteRequest
from torch_tfckpt.dtypes import ELEMENTS, DataType
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError, printable, quoted
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.string_tensor import encode_strings
from torch_tfckpt.format.tensor_bundle import BundleEntry, BundleHeader, data_filename, encode_index
from torch_tfckpt.format.tensor_slice import (
    Shape,
    TensorSlice,
    element_count,
    encode_slice_key,
    find_overlap,
    shape_text,
)
from torch_tfckpt.storage.names import temporary_name
from torch_tfckpt.storage.protocol import Buffer, Storage, WritableFile

# Tensors wait until so many bytes have come together and then travel in one plan: enough for all threads, and a bound
# on what a caller who makes tensors as he goes has alive at a time.
QUEUE_BYTES: Final = 64 * 1024 * 1024
QUEUE_LENGTH: Final = 4096  # tensors that wait at most: objects that die young cost the garbage collector nothing


class State(enum.Enum):
    """Where a writer stands."""

    OPEN = "open"
    FINISHED = "finished"
    ABANDONED = "abandoned"


class _Queued(NamedTuple):
    """Bytes whose place is known, waiting to be written."""

    key: bytes
    entry: BundleEntry  # without a checksum yet, unless `source` is in its stored form already
    source: torch.Tensor | bytes


class _Shard:
    """One data file on its way."""

    def __init__(self, file: WritableFile) -> None:
        self.file = file
        self.end = 0  # where the next tensor begins
        self.data_end = 0  # behind the last byte of a tensor

    def place(self, size: int, alignment: int) -> int:
        """The offset of the next `size` bytes."""
        offset = self.end
        self.end = -(-(offset + size) // alignment) * alignment
        if size:
            self.data_end = offset + size
        return offset

    def finish(self) -> None:
        """Makes the bytes durable, zeros up to the aligned end included; the gaps between tensors are zeros already."""
        if self.end > self.data_end:
            self.file.write(self.data_end, [bytes(self.end - self.data_end)])
        self.file.sync()
        self.file.close()


class _Partitioned(NamedTuple):
    """A tensor of which slices were added."""

    dtype: DataType
    shape: Shape
    parts: list[TensorSlice]  # in the order added


class BundleWriter:
    """Writes the checkpoint `prefix`.

    Args:
        num_shards: Data files; every tensor names the one it goes to.
        alignment: Every tensor begins at a multiple of so many bytes. TensorFlow's checkpoints have 1.

    Raises:
        OSError: a data file cannot be created. The directory itself is made, nothing above it.

    A tensor that was added must not change before the writer is left. Cost: QUEUE_BYTES of tensors are kept alive, host
    copies of those on devices or not contiguous included. Threads: one at a time.
    """

    def __init__(self, storage: Storage, prefix: str, *, num_shards: int = 1, alignment: int = 1) -> None:
        if num_shards < 1 or alignment < 1:
            raise InvalidArgumentError(f"num_shards is {num_shards} and alignment {alignment}; both are at least 1")
        self._storage, self._prefix, self._alignment = storage, prefix, alignment
        self._state = State.OPEN
        self._entries: dict[bytes, bytes] = {}  # encoded; empty while the tensor waits
        self._partitioned: dict[bytes, _Partitioned] = {}
        self._queue: list[_Queued] = []
        self._queued_bytes = 0
        self._pipeline = Pipeline()
        self._shards: list[_Shard] = []
        with self._failing():
            storage.make_directory(os.path.dirname(prefix))
            for number in range(num_shards):
                path = temporary_name(data_filename(prefix, number, num_shards))
                self._shards.append(_Shard(storage.create(path)))

    def add(self, name: str, value: WritableValue, *, shard: int = 0, dtype: DataType | None = None) -> None:
        """Appends one tensor to a shard.

        Args:
            value: A tensor of any device and strides, a numeric array, or strings (str, bytes, or an array of them).
            dtype: The TensorFlow type to store it under where torch's own is not meant: DT_QINT8 for an int8 tensor.

        Raises:
            InvalidArgumentError: the name is taken or empty, or the value cannot be stored.
            UnimplementedError: TensorFlow has no such dtype.
            IncompleteSaveError: writing failed; the checkpoint is abandoned.
        """
        content, stored_as, shape = writable(name, value, dtype)
        self._add(self._new_key(name), content, stored_as, shape, shard)

    def add_slice(
        self,
        name: str,
        full_shape: Shape,
        part: TensorSlice,
        value: WritableValue,
        *,
        shard: int = 0,
        dtype: DataType | None = None,
    ) -> None:
        """Appends one slice of a tensor of `full_shape`; a slice that covers it all is stored as a whole tensor.

        Raises:
            InvalidArgumentError: as `add`; or the slice leaves the tensor or was added before, or differs from earlier
                ones in dtype or full shape; or the tensor was added whole. Slices that overlap are found by `finish`.
        """
        content, stored_as, shape = writable(name, value, dtype)
        if part.shape_of(full_shape) != shape:
            raise InvalidArgumentError(
                f"tensor {quoted(name)}: Slice in shape_and_slice specification does not match the shape of the tensor "
                f"to  save: {part} of {shape_text(full_shape)}, tensor: {shape_text(shape)}"
            )
        if part.covers(full_shape):
            self._add(self._new_key(name), content, stored_as, shape, shard)
            return
        key = self._new_slice_key(name, full_shape, part, stored_as)
        self._add(key, content, stored_as, shape, shard)

    def add_stored(
        self, name: str, dtype: DataType, shape: Shape, stored: bytes, checksum: int, *, shard: int = 0
    ) -> None:
        """Appends bytes that are already in their stored form: what torch cannot hold, copied from a checkpoint.

        Args:
            checksum: The masked checksum that belongs to them, not looked at.
        """
        element = ELEMENTS.get(dtype)
        if element is not None and element.size and len(stored) != element.size * element_count(shape):
            raise InvalidArgumentError(
                f"tensor {quoted(name)}: {len(stored)} bytes are no {dtype.name} of shape {shape_text(shape)}"
            )
        self._place(self._new_key(name), stored, dtype, shape, shard, checksum)

    def finish(self) -> None:
        """Writes what waits and publishes. Until then nothing is named `prefix.*`; an old checkpoint stays as it is.

        Raises:
            IncompleteSaveError: writing or publishing failed, and the writer is abandoned.
            FailedPreconditionError: the writer is not open.
        """
        self._require_open("finish")
        with self._failing():
            self._flush()
            self._close_partitioned()
            for shard in self._shards:
                shard.finish()
            publish(self._storage, self._prefix, [shard.file.path for shard in self._shards], self._encode_index)
        self._pipeline.close()
        self._state = State.FINISHED

    def abandon(self) -> None:
        """Removes everything written. Fine after an error; nothing to do after `finish`."""
        if self._state is State.FINISHED:
            return
        self._state = State.ABANDONED
        self._queue.clear()
        self._pipeline.close()
        for shard in self._shards:
            # What led here is what the caller must hear of, not a clean-up that fails too.
            with suppress(OSError):
                shard.file.close()
            with suppress(OSError):
                self._storage.remove(shard.file.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()

    def _new_key(self, name: str) -> bytes:
        if not name:
            raise InvalidArgumentError("a tensor's name is empty; the empty key belongs to the header")
        key = key_of(name)
        if key in self._entries or key in self._partitioned:
            raise InvalidArgumentError(f"Adding duplicate key: {quoted(name)} was added before")
        return key

    def _new_slice_key(self, name: str, full_shape: Shape, part: TensorSlice, dtype: DataType) -> bytes:
        """The key of one slice, after `part` was listed under its tensor."""
        if not name or key_of(name) in self._entries:
            self._new_key(name)  # raises
        listed = self._partitioned.setdefault(key_of(name), _Partitioned(dtype, full_shape, []))
        if (listed.dtype, listed.shape) != (dtype, full_shape):
            raise InvalidArgumentError(
                f"tensor {quoted(name)}: slice {part} is {dtype.name} of {shape_text(full_shape)}, earlier slices are "
                f"{listed.dtype.name} of {shape_text(listed.shape)}"
            )
        key = encode_slice_key(key_of(name), part)
        if key in self._entries:
            raise InvalidArgumentError(f"Adding duplicate key: slice {part} of {quoted(name)} was added before")
        listed.parts.append(part)
        return key

    def _close_partitioned(self) -> None:
        """Enters the full entries. Overlap is looked for here, once: after every slice it would cost n**2 for n."""
        for key, (dtype, shape, parts) in self._partitioned.items():
            overlap = find_overlap(shape, parts)
            if overlap is not None:
                raise InvalidArgumentError(
                    f"tensor {quoted(name_of(key))}: Overlapping slices: existing slice = {overlap[0]}, new slice = "
                    f"{overlap[1]}"
                )
            self._entries[key] = BundleEntry(dtype, shape, slices=tuple(parts)).encode()

    def _add(self, key: bytes, content: torch.Tensor | list[bytes], dtype: DataType, shape: Shape, shard: int) -> None:
        if isinstance(content, torch.Tensor):
            self._place(key, content, dtype, shape, shard, 0)
        else:
            stored, checksum = encode_strings(content)
            self._place(key, stored, dtype, shape, shard, checksum)

    def _place(
        self, key: bytes, source: torch.Tensor | bytes, dtype: DataType, shape: Shape, shard: int, checksum: int
    ) -> None:
        self._require_open("add")
        if not 0 <= shard < len(self._shards):
            raise InvalidArgumentError(f"shard {shard} of {len(self._shards)} does not exist")
        size = len(source) if isinstance(source, bytes) else source.nbytes
        offset = self._shards[shard].place(size, self._alignment)
        self._entries[key] = b""
        self._queue.append(_Queued(key, BundleEntry(dtype, shape, shard, offset, size, checksum), source))
        self._queued_bytes += size
        if self._queued_bytes >= QUEUE_BYTES or len(self._queue) >= QUEUE_LENGTH:
            with self._failing():
                self._flush()

    def _flush(self) -> None:
        """Writes what waits, in one plan, and enters it with its checksums."""
        queue, self._queue, self._queued_bytes = self._queue, [], 0
        runs = [queue[first:end] for first, end in find_runs([_place_of(queued) for queued in queue])]
        requests = []
        for run in runs:
            entry = run[0].entry
            data = _host_bytes([queued.source for queued in run])
            requests.append(WriteRequest(self._shards[entry.shard].file, entry.offset, data))
        sums = self._pipeline.write(requests)
        for run, request, computed in zip(runs, requests, sums, strict=True):
            self._enter(run, memoryview(request.source), computed)

    def _enter(self, run: list[_Queued], written: memoryview, computed: int) -> None:
        """Enters what was written as one; `computed` is the sum of it all."""
        if len(run) == 1:
            [(key, entry, source)] = run
            if not isinstance(source, bytes):  # stored forms came with a checksum of their own
                entry = entry._replace(checksum=crc32c.mask(computed))
            self._entries[key] = entry.encode()
            return
        sums = crc32c.of_parts(written, [queued.entry.size for queued in run])
        for (key, entry, _), crc in zip(run, sums, strict=True):
            self._entries[key] = entry._replace(checksum=crc32c.mask(crc)).encode()

    def _encode_index(self, num_shards: int) -> bytes:
        return encode_index(BundleHeader(num_shards), self._entries)

    def _require_open(self, action: str) -> None:
        if self._state is not State.OPEN:
            raise FailedPreconditionError(
                f"{printable(self._prefix)}: cannot {action}: BundleWriter is closed ({self._state.value}). Make a new "
                f"writer for another save"
            )

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever goes wrong inside abandons the save; errors of the system say so."""
        try:
            with saving(self._prefix):
                yield
        except BaseException:
            self.abandon()
            raise


def _place_of(queued: _Queued) -> Place:
    """Where it goes, and with whom it may travel: tensors of one dtype and device whose bytes are their values."""
    _, entry, source = queued
    if isinstance(source, bytes) or source.is_conj() or source.is_neg():
        return entry.shard, entry.offset, entry.size, queued.key
    return entry.shard, entry.offset, entry.size, (source.dtype, source.device)


def _host_bytes(sources: list[torch.Tensor | bytes]) -> Buffer:
    """The bytes of one source, or of several tensors that travel together."""
    [*tensors] = (source for source in sources if isinstance(source, torch.Tensor))
    if not tensors:
        [stored] = sources
        assert isinstance(stored, bytes), "neither tensor nor bytes"
        return stored
    return byte_view(host_copy(tensors[0]) if len(tensors) == 1 else gather(tensors))
