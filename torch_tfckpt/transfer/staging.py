"""Host memory that tensors are copied to on their way to files: its size and its management.

It is needed for two reasons. Copies from a device are only fast through pinned memory. And a save that runs while
training continues needs copies that training cannot change. Buffers are reused as soon as their bytes are written, so
their total size does not depend on the model's size.
"""

import threading
from collections.abc import Callable, Sized
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.transfer.accelerators import ACCELERATORS, Accelerators
from torch_tfckpt.transfer.batching import RUN_BYTES
from torch_tfckpt.transfer.pipeline import THREADS

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StagingOptions:
    """Limits for the host memory and the threads of saves.

    Attributes:
        buffer_bytes: Size of one buffer. Large enough that starting a copy from a device costs little compared with the
            copy itself.
        buffers_per_device: Number of buffers that each device's data file may use at a time: one being filled, one
            being checksummed and written, one ready.
        save_bytes: Total size of all buffers of a synchronous save. With many devices buffers become smaller, so that
            the total stays below this limit.
        async_bytes: Total size of all buffers of an asynchronous save. Values that fit are copied immediately and
            training continues; the rest is copied as buffers become free, and `SaveHandle.staged` is set once training
            may change the values. The buffers are kept between saves, because allocating them takes as long as the
            copy.
        threads: Number of threads that compute checksums and write, and limit on the number of threads that copy values
            from host memory for an asynchronous save.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> staging = tfckpt.StagingOptions(async_bytes=512 * 1024 * 1024, threads=4)
        >>> saver = tfckpt.Saver({"w": torch.ones(2)}, staging=staging)
        >>> handle = saver.save_async("model.ckpt")
        >>> handle.result()
        'model.ckpt'
    """

    buffer_bytes: int = 32 * _MIB
    buffers_per_device: int = 3
    save_bytes: int = 256 * _MIB
    async_bytes: int = 2048 * _MIB
    threads: int = THREADS

    def __post_init__(self) -> None:
        least = {"buffer_bytes": RUN_BYTES, "save_bytes": RUN_BYTES, "async_bytes": RUN_BYTES}
        for name in ("buffer_bytes", "buffers_per_device", "save_bytes", "async_bytes", "threads"):
            value, lowest = getattr(self, name), least.get(name, 1)
            if not isinstance(value, int) or value < lowest:
                raise InvalidArgumentError(f"StagingOptions: {name}={value!r}: pass an integer of at least {lowest}")


class Buffers:
    """A fixed number of host memory buffers of equal size, allocated on demand.

    Args:
        pinned: Whether devices copy into them in the background; `accelerators` then allocates them.

    Thread safety: safe.
    """

    def __init__(
        self, buffer_bytes: int, count: int, *, pinned: bool, accelerators: Accelerators = ACCELERATORS
    ) -> None:
        self.buffer_bytes, self.count, self.pinned = buffer_bytes, count, pinned
        self._accelerators = accelerators
        self._free: list[torch.Tensor] = []
        self._made = 0
        self._lock = threading.Lock()
        self._permits = SimpleQueue[bool]()  # True: one more buffer may be lent; False: check `cancelled` again
        for _ in range(count):
            self._permits.put(True)

    def lend(self, cancelled: Sized, before_waiting: Callable[[], object] = lambda: None) -> torch.Tensor | None:
        """Wait for a free buffer and return it, a flat uint8 tensor; return None once `cancelled` has items.

        Args:
            before_waiting: Called if no buffer is free.
        """
        while True:
            try:
                permit = self._permits.get_nowait()
            except Empty:
                before_waiting()
                permit = self._permits.get()
            if cancelled:
                self._permits.put(permit)  # put back even a False: other threads may be waiting
                return None
            if permit:
                break
        try:
            return self._free.pop()
        except IndexError:
            pass
        try:
            if self.pinned:
                buffer = self._accelerators.pinned_memory(self.buffer_bytes)
            else:
                buffer = torch.empty(self.buffer_bytes, dtype=torch.uint8, device="cpu")
        except BaseException:
            self._permits.put(True)
            raise
        with self._lock:
            self._made += 1
        return buffer

    def give_back(self, buffer: torch.Tensor) -> None:
        """Take back a lent buffer whose bytes have been written."""
        self._free.append(buffer)
        self._permits.put(True)

    def wake(self) -> None:
        """Make waiting callers check `cancelled` again."""
        self._permits.put(False)


class Staging:
    """The buffers of one saver, kept from save to save.

    Args:
        options: Limits for its memory.
        accelerators: The devices that tensors are on.

    Thread safety: safe; only one save at a time uses the buffers.
    """

    def __init__(self, options: StagingOptions | None = None, *, accelerators: Accelerators = ACCELERATORS) -> None:
        self.options = options or StagingOptions()
        self.accelerators = accelerators
        self._kept: Buffers | None = None

    def buffers(self, lanes: int, *, pinned: bool, snapshot: bool) -> Buffers:
        """Return the buffers for a save with `lanes` streams of bytes.

        Args:
            pinned: Whether devices copy into them in the background.
            snapshot: Whether training continues during the save.
        """
        options = self.options
        if snapshot:
            size = min(options.buffer_bytes, options.async_bytes)
            count = options.async_bytes // size
        else:
            wanted = lanes * options.buffers_per_device
            size = max(RUN_BYTES, min(options.buffer_bytes, options.save_bytes // wanted))
            count = min(wanted, max(1, options.save_bytes // size))
        kept = self._kept
        if kept is None or (kept.buffer_bytes, kept.count, kept.pinned) != (size, count, pinned):
            self._kept = kept = Buffers(size, count, pinned=pinned, accelerators=self.accelerators)
        return kept

    def release(self) -> None:
        """Release the memory. The next save allocates again."""
        self._kept = None
