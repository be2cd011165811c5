"""Writer of version 2 checkpoints from host and device tensors.

    with BundleWriter(LOCAL, prefix, num_shards=4) as writer:   # no file named `prefix.*` exists yet
        writer.add("dense/kernel", kernel, shard=2)
    # on success: data files synced and renamed, then the index. After an exception: temporary files removed.

A tensor's place depends only on the tensors added before it, so bytes are written while later tensors are still being
added. With the same tensors added in the same order, index and data files are byte-identical to TensorFlow's.

Source: BundleWriter in tensorflow/core/util/tensor_bundle/tensor_bundle.cc. Explained in docs/formats/bundle.md.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

import torch

from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.publish import BundlePublication, close_files, saving
from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.text import printable
from torch_tfckpt.transfer.batching import SMALL_BYTES
from torch_tfckpt.transfer.pipeline import Pipeline
from torch_tfckpt.transfer.writes import Write, write_tensors
from torch_tfckpt.values import PLAIN_CLASSES, WritableValue

# Tensors are queued up to this size and then written together: enough work for all threads, and a limit for the memory
# of callers that create tensors on the fly.
QUEUE_BYTES: Final = 64 * 1024 * 1024
QUEUE_LENGTH: Final = 4096  # limit on queued tensors: few enough that the garbage collector is not slowed down


class State(enum.Enum):
    """State of a writer."""

    OPEN = "open"
    FINISHED = "finished"
    ABANDONED = "abandoned"


class CheckpointWriter(ABC):
    """Writer of the checkpoint `path`. Leaving the `with` block finishes it; an exception abandons it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._state = State.OPEN

    @abstractmethod
    def finish(self) -> None:
        """Write and publish everything added."""

    @abstractmethod
    def abandon(self) -> None:
        """Remove everything written."""

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
                f"Create a new writer for another save"
            )


class BundleWriter(CheckpointWriter):
    """Writes the checkpoint `prefix`, one tensor at a time.

    Args:
        num_shards: Number of data files; the caller chooses one for each tensor.
        alignment: Every tensor starts at a multiple of this many bytes. TensorFlow's checkpoints use 1.

    Raises:
        IncompleteSaveError: a file cannot be created. The directory itself is created, but no parents.

    A tensor that was added must not change before the writer is finished. Cost: QUEUE_BYTES of tensors stay in memory,
    including host copies of device or non-contiguous tensors. Thread safety: one thread at a time.
    """

    def __init__(self, storage: Storage, prefix: str, *, num_shards: int = 1, alignment: int = 1) -> None:
        super().__init__(prefix)
        self._plan = BundlePlan(num_shards, alignment)
        self._waiting_bytes = self._waiting_tensors = 0
        self._pipeline = Pipeline()
        self._files: list[WritableFile] = []
        with saving(prefix):
            self._publication = BundlePublication(storage, prefix)
        with self._failing():
            for path in self._publication.new_data_names(num_shards):
                self._files.append(storage.create(path))

    def add(self, name: str, value: WritableValue, *, shard: int = 0, dtype: DataType | None = None) -> None:
        """Append one tensor to a shard.

        Args:
            value: A tensor on any device with any strides, a numeric array, or strings (str, bytes, or an array).
            dtype: The TensorFlow type to store it as, if not the default, e.g. DT_QINT8 for an int8 tensor.

        Raises:
            InvalidArgumentError: the name is taken or empty, or the value cannot be stored.
            UnimplementedError: TensorFlow has no such dtype.
            IncompleteSaveError: writing failed; the checkpoint is abandoned.
        """
        self._require_open("add")
        self._plan.add(name, value, shard=shard, dtype=dtype)
        self._write_when_enough(self._plan.waiting[-1:])

    def add_all(self, items: Iterable[tuple[str, WritableValue]], *, shard: int = 0) -> None:
        """Append tensors as `add` does, in order; small ones take less time."""
        self._require_open("add")
        for some in self._batches(items):
            names, values = zip(*some, strict=True)
            before = len(self._plan.waiting)
            self._plan.add_all(names, values, [None] * len(names), shard=shard)
            self._write_when_enough(self._plan.waiting[before:])

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
        """Append one slice of a tensor of `full_shape`; a slice that covers all of it is stored whole.

        Raises:
            InvalidArgumentError: like `add`; or the slice exceeds the tensor, was already added, or differs from
                earlier ones in dtype or full shape; or the tensor was added whole. `finish` detects overlaps.
        """
        self._require_open("add")
        self._plan.add(name, value, shard=shard, part=(full_shape, part), dtype=dtype)
        self._write_when_enough(self._plan.waiting[-1:])

    def add_stored(
        self, name: str, dtype: DataType, shape: Shape, stored: bytes, checksum: int, *, shard: int = 0
    ) -> None:
        """Append bytes that are already in their stored form, such as values that torch cannot represent.

        Args:
            checksum: The masked checksum of `stored`; it is not verified.
        """
        self._require_open("add")
        self._plan.add_stored(name, dtype, shape, stored, checksum, shard=shard)
        self._write_when_enough(self._plan.waiting[-1:])

    def finish(self) -> None:
        """Write queued tensors and publish the checkpoint.

        Until then, either no file named `prefix.*` exists, or the old checkpoint with this prefix is unchanged.

        Raises:
            IncompleteSaveError: writing or publishing failed, and the writer is abandoned.
            FailedPreconditionError: the writer is not open.
        """
        self._require_open("finish")
        with self._failing():
            self._flush()
            self._plan.close()
            for file, extent in zip(self._files, self._plan.shards, strict=True):
                if extent.end > extent.data_end:  # zeros up to the aligned end; gaps already contain zeros
                    file.write(extent.data_end, [bytes(extent.end - extent.data_end)])
                file.sync()
            self._publication.publish(self._plan.encode_index, self._files)
        self._pipeline.close()
        self._state = State.FINISHED

    def abandon(self) -> None:
        """Remove everything written. Allowed after an error; does nothing after `finish`."""
        if self._state is State.FINISHED:
            return
        self._state = State.ABANDONED
        self._plan.waiting.clear()
        try:
            self._pipeline.close()
            close_files(self._files)  # skipped if Ctrl-C interrupts `close`: threads may still be writing
        finally:
            self._publication.abandon()

    @staticmethod
    def _batches(items: Iterable[tuple[str, WritableValue]]) -> Iterator[list[tuple[str, WritableValue]]]:
        """Yield the items in lists: many small tensors, or one of anything else."""
        small: list[tuple[str, WritableValue]] = []
        for item in items:
            if _is_small(item[1]):
                small.append(item)
                if len(small) >= QUEUE_LENGTH:
                    yield small
                    small = []
                continue
            if small:
                yield small
                small = []
            yield [item]
        if small:
            yield small

    def _write_when_enough(self, new: Sequence[Write]) -> None:
        """Write queued tensors if they reach QUEUE_BYTES or QUEUE_LENGTH. Call this with the `new` writes."""
        self._waiting_bytes += sum(write.size for write in new)
        self._waiting_tensors += sum(len(write.parts()) for write in new)
        if self._waiting_bytes >= QUEUE_BYTES or self._waiting_tensors >= QUEUE_LENGTH:
            with self._failing():
                self._flush()

    def _flush(self) -> None:
        """Write queued tensors in one plan, and record their checksums."""
        self._waiting_bytes = self._waiting_tensors = 0
        self._plan.enter(write_tensors(self._pipeline, self._plan.waiting, self._files))

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Abandon the save after an exception in the `with` block; convert the system's errors."""
        try:
            with saving(self._path):
                yield
        except BaseException:
            self.abandon()
            raise


def _is_small(value: object) -> bool:
    if not isinstance(value, torch.Tensor) or type(value) not in PLAIN_CLASSES:
        return False
    return value.numel() * value.itemsize <= SMALL_BYTES
