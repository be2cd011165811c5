"""Host memory for tensors on their way to files: how much of it there is, and which save uses it.

It is needed for two things. Values on a CUDA device are copied through pinned memory, since anything else takes several
times as long. And a save in the background needs copies that training cannot change. Buffers are used again once their
bytes are written, so that memory does not grow with the state. `CopyStream` copies from a CUDA device while the device
computes.
"""

import threading
from dataclasses import dataclass
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.transfer.batching import RUN_BYTES
from torch_tfckpt.transfer.pipeline import THREADS

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StagingOptions:
    """How much host memory and how many threads saves may use.

    Attributes:
        buffer_bytes: Size of one buffer in bytes. Copies from a device are of this size; below some MiB the time to
            start them counts.
        buffers_per_device: Buffers that the data file of one device may use at a time: one being filled, one being
            checksummed and written, one ready.
        save_bytes: Total size of the buffers of `save`, which training waits for. With many devices the buffers are
            smaller, not more.
        async_bytes: Total size of the buffers of `save_async`. Values that fit are copied at once, then training
            continues; the rest waits until earlier bytes are written. The memory is kept until `Saver.close`, since
            allocating it takes as long as the copy.
        threads: Threads that compute checksums and write.

    Raises:
        InvalidArgumentError: a value is not an integer, or too small.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> options = tfckpt.StagingOptions(async_bytes=512 * 1024 * 1024, threads=2)
        >>> saver = tfckpt.Saver({"w": torch.ones(2)}, staging=options)
        >>> saver.save_async("model.ckpt").result()
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
                raise InvalidArgumentError(f"StagingOptions: {name}={value!r}: pass an integer, at least {lowest}")


class Buffers:
    """A number of equal buffers of host memory, allocated when they are first needed.

    Threads: safe.
    """

    def __init__(self, buffer_bytes: int, count: int, *, pinned: bool) -> None:
        self.buffer_bytes, self.count, self.pinned = buffer_bytes, count, pinned
        self._free: list[torch.Tensor] = []
        self._made = 0
        self._changed = threading.Condition()

    def lend(self, cancelled: threading.Event) -> torch.Tensor | None:
        """Wait for a free buffer, a flat tensor of uint8, and return it. Return None once `cancelled` is set."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._made < self.count or cancelled.is_set())
            if cancelled.is_set():
                return None
            if self._free:
                return self._free.pop()
            self._made += 1
        try:
            return torch.empty(self.buffer_bytes, dtype=torch.uint8, pin_memory=self.pinned)
        except BaseException:
            with self._changed:
                self._made -= 1
            raise

    def give_back(self, buffer: torch.Tensor) -> None:
        """Make a buffer available again after its bytes were written."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    @property
    def exhausted(self) -> bool:
        """Whether the next `lend` has to wait."""
        with self._changed:
            return not self._free and self._made >= self.count

    def wake(self) -> None:
        """Let waiting threads check `cancelled` again."""
        with self._changed:
            self._changed.notify_all()


class Ready:
    """Event after the copies submitted to a stream so far. Threads: any may wait."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        # Blocking: a waiting thread sleeps instead of keeping a core busy.
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def wait(self) -> None:
        """Return once the bytes are copied. Before that, the memory has its earlier contents."""
        self._event.synchronize()


class CopyStream:
    """A new stream that starts after everything submitted to the caller's current stream of `device` so far.

    stream = CopyStream(device)                 # in the thread that trains
    with stream:                                # in any thread, one at a time
        pinned.copy_(values, non_blocking=True)
    stream.ready().wait()                       # in any thread
    """

    def __init__(self, device: torch.device | None) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def ready(self) -> Ready:
        return Ready(self._stream)

    def __enter__(self) -> None:
        # A new context each time: torch's stores the stream to return to.
        self._context = torch.cuda.stream(self._stream)
        self._context.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)


class Staging:
    """The buffers of one saver, kept from save to save.

    Args:
        options: How much memory it may use.

    Threads: safe; one save at a time uses the buffers.
    """

    def __init__(self, options: StagingOptions | None = None) -> None:
        self.options = options or StagingOptions()
        self._kept: Buffers | None = None

    def buffers(self, lanes: int, *, pinned: bool, snapshot: bool) -> Buffers:
        """Return the buffers for a save.

        Args:
            lanes: Number of data files that are written at the same time.
            pinned: Whether CUDA devices copy into them.
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
            self._kept = kept = Buffers(size, count, pinned=pinned)
        return kept

    def release(self) -> None:
        """Free the memory. The next save allocates new buffers."""
        self._kept = None
