"""A whole version 2 checkpoint whose tensors are all there: planned, then copied, then written and published.

    save = BundleSave(LOCAL, prefix, num_shards=2, staging=staging)
    save.add("dense/kernel", kernel, shard=0)           # nothing is written yet
    save.start(snapshot=True)                           # one data file a shard, written side by side
    save.staged.wait()                                  # the tensors may change from now on
    save.finish()                                       # durable, published

BundleWriter does the same for tensors that come one by one.
"""

import threading
from contextlib import suppress

from torch_tfckpt.bundle.plan import BundlePlan, Planned
from torch_tfckpt.bundle.publish import BundlePublication, saving
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.transfer.staging import Staging
from torch_tfckpt.transfer.tensor_writes import TensorWrite
from torch_tfckpt.transfer.transfer import Transfer
from torch_tfckpt.values import WritableValue


class BundleSave:
    """One save of the checkpoint `prefix`.

    Args:
        num_shards: Data files; every tensor names the one it goes to.
        staging: Where host memory for copies comes from.

    Threads: one at a time; `staged` may be waited for by any.
    """

    def __init__(self, storage: Storage, prefix: str, *, num_shards: int, staging: Staging) -> None:
        self._storage, self._prefix, self._staging = storage, prefix, staging
        self._plan = BundlePlan(num_shards)
        self._planned: list[Planned] = []
        self._files: list[WritableFile] = []
        self._publication: BundlePublication | None = None
        self._transfer: Transfer | None = None

    def add(self, name: str, value: WritableValue, *, shard: int, dtype: DataType | None = None) -> None:
        """Plans one tensor. Errors as BundleWriter.add; nothing has been written then."""
        self._planned.append(self._plan.add(name, value, shard=shard, dtype=dtype))

    def add_slice(
        self,
        name: str,
        full_shape: Shape,
        part: TensorSlice,
        value: WritableValue,
        *,
        shard: int,
        dtype: DataType | None = None,
    ) -> None:
        """Plans one slice of a tensor. Errors as BundleWriter.add_slice; nothing has been written then."""
        self._planned.append(self._plan.add_slice(name, full_shape, part, value, shard=shard, dtype=dtype))

    def start(self, *, snapshot: bool) -> None:
        """Creates the files and begins to copy and write.

        Args:
            snapshot: Whether the tensors may change once `staged` is set; else not before `finish` returned.

        Raises:
            InvalidArgumentError: slices of a tensor overlap.
            IncompleteSaveError: a file cannot be created; everything is as it was.
        """
        self._plan.close()
        try:
            with saving(self._prefix):
                self._publication = BundlePublication(self._storage, self._prefix)
                for path in self._publication.new_data_names(len(self._plan.shards)):
                    self._files.append(self._storage.create(path))
                writes = [
                    TensorWrite(self._files[entry.shard], entry.offset, source) for _, entry, source in self._planned
                ]
                self._transfer = Transfer(writes, self._staging, snapshot=snapshot)
        except BaseException:
            self.abandon()
            raise

    @property
    def staged(self) -> threading.Event:
        """Set when the tensors may change again, or when the save has failed."""
        assert self._transfer is not None, "before start()"
        return self._transfer.staged

    def finish(self) -> None:
        """Waits until all is written, and publishes.

        Raises:
            IncompleteSaveError: writing or publishing failed; nothing was published, unless the text says otherwise.
        """
        assert self._transfer is not None and self._publication is not None, "before start()"
        try:
            with saving(self._prefix):
                for planned, crc in zip(self._planned, self._transfer.result(), strict=True):
                    self._plan.enter(planned, crc32c.mask(crc))
                for file, extent in zip(self._files, self._plan.shards, strict=True):
                    if not extent.data_end:  # the others were synced when their last bytes were written
                        file.sync()
                    file.close()
                self._publication.publish(self._plan.encode_index)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Stops and removes everything written. Nothing to do after `finish`."""
        if self._transfer is not None:
            self._transfer.cancel()
        for file in self._files:
            # What led here is what the caller must hear of, not a clean-up that fails too.
            with suppress(OSError):
                file.close()
        if self._publication is not None:
            self._publication.abandon()
