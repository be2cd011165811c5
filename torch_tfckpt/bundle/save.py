"""Save a complete version 2 checkpoint: plan it, copy it, write it, publish it.

    plan = BundlePlan(num_shards=2)
    plan.add("dense/kernel", kernel, shard=0)                               # nothing is written yet
    save = BundleSave(LOCAL, prefix, plan, staging, snapshot=True)          # starts to copy and write all data files
    save.staged.wait()                                                      # from now on the tensors may change
    save.finish()                                                           # durable, published

BundleWriter does the same for tensors that are added one by one.
"""

import os
import threading
from contextlib import suppress

from torch_tfckpt.bundle.plan import BundlePlan
from torch_tfckpt.bundle.publish import BundlePublication, close_files, saving
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.transfer.staging import Staging
from torch_tfckpt.transfer.transfer import Transfer


class BundleSave:
    """One save of the checkpoint `prefix`, which starts on construction.

    Args:
        plan: The tensors to write, and their places in the data files.
        staging: Source of host memory for copies.
        snapshot: Whether the tensors may change once `staged` is set; otherwise only after `finish` has returned.

    Attributes:
        staged: Set when the tensors may change again, or when the save has failed.

    Raises:
        InvalidArgumentError: slices of a tensor overlap.
        IncompleteSaveError: a file cannot be created; nothing was changed.

    A save that is deleted before `finish` or `abandon` was called, for example after Ctrl-C, is abandoned.

    Thread safety: one thread at a time; any thread may wait for `staged`.
    """

    def __init__(self, storage: Storage, prefix: str, plan: BundlePlan, staging: Staging, *, snapshot: bool) -> None:
        plan.close()
        self._prefix, self._plan = prefix, plan
        self._files: list[WritableFile] = []
        self._owner = os.getpid()  # process that removes the files of an unfinished save; 0: nothing to remove
        self._transfer: Transfer | None = None
        with saving(prefix):
            self._publication = BundlePublication(storage, prefix)
            try:
                for path in self._publication.new_data_names(len(plan.shards)):
                    self._files.append(storage.create(path))
                self._transfer = Transfer(plan.waiting, self._files, staging, snapshot=snapshot)
            except BaseException:
                self.abandon()
                raise
        self.staged: threading.Event = self._transfer.staged

    @property
    def total_bytes(self) -> int:
        """Total size of all data files, in bytes."""
        return sum(shard.data_end for shard in self._plan.shards)

    def finish(self) -> str:
        """Wait until everything is written, publish, and return the prefix.

        Raises:
            IncompleteSaveError: writing or publishing failed; nothing was published, unless the message says otherwise.
        """
        assert self._transfer is not None, "the save did not start"
        try:
            with saving(self._prefix):
                self._plan.enter(self._transfer.result())
                for file, extent in zip(self._files, self._plan.shards, strict=True):
                    if not extent.data_end:  # the others were synced when their last bytes were written
                        file.sync()
                self._publication.publish(self._plan.encode_index, self._files)
        except BaseException:
            self.abandon()
            raise
        self._owner = 0
        return self._prefix

    def __del__(self) -> None:
        # Ctrl-C may have arrived before the caller received this object. A forked child does not own the files.
        if getattr(self, "_publication", None) is not None and self._owner == os.getpid():
            with suppress(Exception):
                self.abandon()

    def abandon(self) -> None:
        """Stop, and remove everything written. Does nothing after `finish`."""
        self._owner = 0
        try:
            if self._transfer is not None:
                self._transfer.cancel()
            close_files(self._files)  # skipped if Ctrl-C interrupts `cancel`: threads may still be writing
        finally:
            self._publication.abandon()
