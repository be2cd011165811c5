"""Host memory that tensors pass through on their way to files: how much of it, and who has it.

Two things need it. Values on a CUDA device leave it through pinned memory, or at a fraction of the speed. And a save
that goes on while training does needs copies that training cannot change. Buffers are lent, and lent again when their
bytes are written, so that neither takes memory in proportion to the state. `CopyStream` copies off a CUDA device while
its computations go on.
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
    """How much host memory saves may take, and how many threads. The one place for these numbers."""

    buffer_bytes: int = 32 * _MIB
    """Bytes of one buffer: so many that starting a copy off a device costs nothing beside the copy."""
    buffers_per_device: int = 3
    """Buffers that one device's data file may hold at a time: one being filled, one summed and written, one ready."""
    save_bytes: int = 256 * _MIB
    """All buffers of a save that training waits for. With many devices buffers become smaller, not more."""
    async_bytes: int = 2048 * _MIB
    """All buffers of a save that goes on beside training. What fits is copied at once and training goes on; what does
    not fit waits until earlier bytes are written. Kept between saves: new memory costs as much as the copy itself."""
    threads: int = THREADS
    """Threads that sum and write."""

    def __post_init__(self) -> None:
        least = {"buffer_bytes": RUN_BYTES, "save_bytes": RUN_BYTES, "async_bytes": RUN_BYTES}
        for name in ("buffer_bytes", "buffers_per_device", "save_bytes", "async_bytes", "threads"):
            value, lowest = getattr(self, name), least.get(name, 1)
            if not isinstance(value, int) or value < lowest:
                raise InvalidArgumentError(f"StagingOptions: {name}={value!r} is no number from {lowest} on. Raise it")


class Buffers:
    """So many equal buffers of host memory, made when first needed.

    Threads: safe.
    """

    def __init__(self, buffer_bytes: int, count: int, *, pinned: bool) -> None:
        self.buffer_bytes, self.count, self.pinned = buffer_bytes, count, pinned
        self._free: list[torch.Tensor] = []
        self._made = 0
        self._changed = threading.Condition()

    def lend(self, cancelled: threading.Event) -> torch.Tensor | None:
        """A buffer, a flat tensor of uint8; waits until one is free. None once `cancelled` is set."""
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
        """Takes a buffer back whose bytes are written."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify_all()

    @property
    def exhausted(self) -> bool:
        """Whether the next who asks has to wait."""
        with self._changed:
            return not self._free and self._made >= self.count

    def wake(self) -> None:
        """Lets those who wait look at `cancelled` again."""
        with self._changed:
            self._changed.notify_all()


class Ready:
    """Tells when the copies given so far to a stream have happened. Threads: any may wait."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        # Blocking: a thread that waits sleeps, where it would else keep a core busy.
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def wait(self) -> None:
        """Returns once the bytes are there. Reading them earlier gives whatever was in the memory before."""
        self._event.synchronize()


class CopyStream:
    """A stream of its own, behind everything that the caller's current stream of `device` was given so far.

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
        # A context of its own each time: torch's remembers the stream to go back to.
        self._context = torch.cuda.stream(self._stream)
        self._context.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)


class Staging:
    """The buffers of one saver, kept from save to save.

    Args:
        options: How much memory it may take.

    Threads: safe; one save at a time has the buffers to itself.
    """

    def __init__(self, options: StagingOptions | None = None) -> None:
        self.options = options or StagingOptions()
        self._kept: Buffers | None = None

    def buffers(self, lanes: int, *, pinned: bool, snapshot: bool) -> Buffers:
        """Buffers for a save with so many streams of bytes.

        Args:
            pinned: Whether CUDA devices copy into them.
            snapshot: Whether training goes on meanwhile.
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
        """Gives the memory back to the system. The next save takes new."""
        self._kept = None
