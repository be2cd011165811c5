"""Host and device tensors -> a version 2 checkpoint.

    with BundleWriter(LOCAL, prefix, num_shards=4) as writer:   # nothing named `prefix.*` exists yet
        writer.add("dense/kernel", kernel, shard=2)
    # left normally: data synced and named, then the index. Left by an exception: temporary files removed.

Where the bytes of a tensor go follows from the shapes added before it, so bytes are written while later tensors are
still being added. With the same tensors added in the same order, index and data are byte-identical to TensorFlow's.

Source: BundleWriter in tensorflow/core/util/tensor_bundle/tensor_bundle.cc; spec: FORMATS 2.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final, Self

from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.publish import BundlePublication, saving
from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.text import printable
from torch_tfckpt.transfer.pipeline import Pipeline
from torch_tfckpt.transfer.writes import write_tensors
from torch_tfckpt.values import WritableValue

# Tensors wait until so many bytes have come together and then travel in one plan: enough for all threads, and a bound
# on what a caller who makes tensors as he goes has alive at a time.
QUEUE_BYTES: Final = 64 * 1024 * 1024
QUEUE_LENGTH: Final = 4096  # tensors that wait at most: objects that die young cost the garbage collector nothing


class State(enum.Enum):
    """Where a writer stands."""

    OPEN = "open"
    FINISHED = "finished"
    ABANDONED = "abandoned"


class CheckpointWriter(ABC):
    """Writes the checkpoint `path`: leaving the `with` block finishes it, an exception in the block abandons it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._state = State.OPEN

    @abstractmethod
    def finish(self) -> None:
        """Write and publish everything added."""

    @abstractmethod
    def abandon(self) -> None:
        """Leave nothing behind."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()

    def _require_open(self, action: str) -> None:
        if self._state is not State.OPEN:
            raise FailedPreconditionError(
                f"{printable(self._path)}: cannot {action}: {type(self).__name__} is closed ({self._state.value}). "
                f"Make a new writer for another save"
            )


class BundleWriter(CheckpointWriter):
    """Writes the checkpoint `prefix`, tensor by tensor as they come.

    Args:
        num_shards: Data files; every tensor names the one it goes to.
        alignment: Every tensor begins at a multiple of so many bytes. TensorFlow's checkpoints have 1.

    Raises:
        IncompleteSaveError: a file cannot be created. The directory itself is made, nothing above it.

    A tensor that was added must not change before the writer is left. Cost: QUEUE_BYTES of tensors are kept alive, host
    copies of those on devices or not contiguous included. Threads: one at a time.
    """

    def __init__(self, storage: Storage, prefix: str, *, num_shards: int = 1, alignment: int = 1) -> None:
        super().__init__(prefix)
        self._plan = BundlePlan(num_shards, alignment)
        self._waiting_bytes = 0
        self._pipeline = Pipeline()
        self._files: list[WritableFile] = []
        with saving(prefix):
            self._publication = BundlePublication(storage, prefix)
        with self._failing():
            for path in self._publication.new_data_names(num_shards):
                self._files.append(storage.create(path))

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
        self._require_open("add")
        self._plan.add(name, value, shard=shard, dtype=dtype)
        self._write_when_enough()

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
        self._require_open("add")
        self._plan.add(name, value, shard=shard, part=(full_shape, part), dtype=dtype)
        self._write_when_enough()

    def add_stored(
        self, name: str, dtype: DataType, shape: Shape, stored: bytes, checksum: int, *, shard: int = 0
    ) -> None:
        """Appends bytes that are already in their stored form: what torch cannot hold, copied from a checkpoint.

        Args:
            checksum: The masked checksum that belongs to them, not looked at.
        """
        self._require_open("add")
        self._plan.add_stored(name, dtype, shape, stored, checksum, shard=shard)
        self._write_when_enough()

    def finish(self) -> None:
        """Writes what waits and publishes. Until then nothing is named `prefix.*`; an old checkpoint stays as it is.

        Raises:
            IncompleteSaveError: writing or publishing failed, and the writer is abandoned.
            FailedPreconditionError: the writer is not open.
        """
        self._require_open("finish")
        with self._failing():
            self._flush()
            self._plan.close()
            for file, extent in zip(self._files, self._plan.shards, strict=True):
                if extent.end > extent.data_end:  # zeros up to the aligned end; the gaps are zeros already
                    file.write(extent.data_end, [bytes(extent.end - extent.data_end)])
                file.sync()
                file.close()
            self._publication.publish(self._plan.encode_index)
        self._pipeline.close()
        self._state = State.FINISHED

    def abandon(self) -> None:
        """Removes everything written. Fine after an error; nothing to do after `finish`."""
        if self._state is State.FINISHED:
            return
        self._state = State.ABANDONED
        self._plan.waiting.clear()
        self._pipeline.close()
        for file in self._files:
            # What led here is what the caller must hear of, not a clean-up that fails too.
            with suppress(OSError):
                file.close()
        self._publication.abandon()

    def _write_when_enough(self) -> None:
        """Writes what waits once it is QUEUE_BYTES or QUEUE_LENGTH. To be called after each tensor."""
        waiting = self._plan.waiting
        self._waiting_bytes += waiting[-1].size
        if self._waiting_bytes >= QUEUE_BYTES or len(waiting) >= QUEUE_LENGTH:
            with self._failing():
                self._flush()

    def _flush(self) -> None:
        """Writes what waits, in one plan, and enters it with its checksums."""
        self._waiting_bytes = 0
        self._plan.enter(write_tensors(self._pipeline, self._plan.waiting, self._files))

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever goes wrong inside abandons the save; errors of the system say so."""
        try:
            with saving(self._path):
                yield
        except BaseException:
            self.abandon()
            raise
