"""What devices offer for copies in the background: streams, events and pinned host memory.

A copy between a device and pinned memory can be queued on a stream of the device; an event of the same stream tells
when it is complete. Other copies make the calling thread wait.

    CUDA, ROCm                     in the background, by torch.cuda, whose events let a waiting thread sleep; those of
                                   torch.accelerator keep a core busy (torch.Event ignores `blocking`)
    XPU and every other device     in the background, by torch.accelerator, if it is the current accelerator and has
                                   streams, events and pinned memory
    MPS                            the thread waits: it has one stream only, and `non_blocking` copies have returned
                                   wrong values (https://github.com/pytorch/pytorch/issues/139550 and 189690)
    devices that lack any of these the thread waits

Three rules keep the bytes right, whatever the order in which streams run:

    1. A stream of our own starts after the work that is queued on the stream of the caller (`CopyStream`).
    2. Nobody reads, reuses or frees memory of a copy before `Ready.wait` has returned.
    3. Where the thread waits, it copies on its own current stream. So if it is not the caller's thread, the caller
       first waits for the work that it queued on the device (`Accelerators.finish_queued`).

`Accelerators` chooses by the type of a device. Tests pass a different one, whose copies complete as late as possible.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol

import torch

_WAITING: Final = frozenset({"mps"})  # accelerators whose streams are not used, for the reason above


class CopyEvent(Protocol):
    """An event as in torch: torch.Event or torch.cuda.Event."""

    def record(self, stream: Any) -> None: ...
    def synchronize(self) -> None: ...


class Streams(Protocol):
    """The streams of one type of device. A stream is a torch.Stream, or what its device has instead."""

    def new(self, device: torch.device) -> Any:
        """Return a stream of `device` other than the current one."""

    def current(self, device: torch.device) -> Any:
        """Return the stream on which this thread queues work of `device`."""

    def use(self, stream: Any) -> AbstractContextManager[object]:
        """Make `stream` the current one of this thread."""

    def event(self, device: torch.device) -> CopyEvent:
        """Return an event that was not recorded yet."""


class Ready:
    """Completion of the copies queued on a stream so far. Thread safety: any thread may wait."""

    def __init__(self, streams: Streams, device: torch.device, stream: Any) -> None:
        self._event = streams.event(device)
        self._event.record(stream)

    def wait(self) -> None:
        """Return once the bytes have arrived. Reading them earlier yields the memory's previous contents."""
        self._event.synchronize()


class CopyStream:
    """A separate stream, ordered after all work queued so far on the current stream of `device`.

    stream = CopyStream(streams, device)        # in the training thread
    with stream:                                # in any thread, one at a time
        pinned.copy_(values, non_blocking=True)
    stream.ready().wait()                       # in any thread
    """

    def __init__(self, streams: Streams, device: torch.device) -> None:
        self._streams, self._device = streams, device
        self._stream = streams.new(device)
        self._stream.wait_stream(streams.current(device))

    def ready(self) -> Ready:
        return Ready(self._streams, self._device, self._stream)

    def __enter__(self) -> None:
        # A new context each time: it stores the stream to return to.
        self._context = self._streams.use(self._stream)
        self._context.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)


class Accelerators:
    """The devices of this process.

    Thread safety: safe.
    """

    def __init__(self) -> None:
        self._known: dict[str, Streams | None] = {"cpu": None, "cuda": _CudaStreams()}

    def streams(self, device: torch.device) -> Streams | None:
        """Return the streams for copies in the background; None if the thread that copies has to wait.

        Cost: the first time for a type of device, a few bytes of pinned memory and an event.
        """
        kind = device.type
        if kind not in self._known:
            self._known[kind] = None if kind in _WAITING or not _is_current(device) else tried_streams(device)
        return self._known[kind]

    def finish_queued(self, device: torch.device) -> None:
        """Wait until the work that this thread queued on `device` is done, so that other threads see its results."""
        # A copy to the host comes after earlier work of the same stream and waits, also on devices of other packages
        # that do not have `synchronize`.
        torch.empty(1, dtype=torch.uint8, device=device).cpu()

    def pinned_memory(self, size: int) -> torch.Tensor:
        """Return `size` bytes of host memory that devices with streams copy from and to."""
        return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)


class _CudaStreams:
    """Streams of CUDA and ROCm devices."""

    def new(self, device: torch.device) -> torch.cuda.Stream:
        return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def current(self, device: torch.device) -> torch.cuda.Stream:
        return torch.cuda.current_stream(device)

    def use(self, stream: torch.cuda.Stream) -> AbstractContextManager[object]:
        return torch.cuda.stream(stream)

    def event(self, device: torch.device) -> CopyEvent:
        # Blocking: a waiting thread sleeps instead of keeping a core busy.
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


class _AcceleratorStreams:
    """Streams of the current accelerator, whatever its type."""

    def new(self, device: torch.device) -> torch.Stream:
        return torch.Stream(device)

    def current(self, device: torch.device) -> torch.Stream:
        return torch.accelerator.current_stream(device)

    @contextmanager
    def use(self, stream: torch.Stream) -> Iterator[None]:
        # Not `with stream:`, which torch 2.6 does not have, and which stores the earlier stream in `stream`, although
        # several threads may use it.
        index, earlier = torch.accelerator.current_device_index(), torch.accelerator.current_stream(stream.device)
        torch.accelerator.set_stream(stream)
        try:
            yield
        finally:
            torch.accelerator.set_stream(earlier)
            torch.accelerator.set_device_index(index)

    def event(self, device: torch.device) -> CopyEvent:
        return torch.Event(device)


def _is_current(device: torch.device) -> bool:
    """Return whether torch.accelerator is about devices of this type."""
    current = torch.accelerator.current_accelerator()
    return current is not None and current.type == device.type


def tried_streams(device: torch.device) -> Streams | None:
    """Return the streams of the current accelerator if all that copies in the background need works, else None."""
    streams = _AcceleratorStreams()
    try:
        stream = CopyStream(streams, device)
        with stream:
            there = torch.zeros(1, dtype=torch.uint8, device=device)
            here = torch.empty(1, dtype=torch.uint8, device="cpu", pin_memory=True)
            here.copy_(there, non_blocking=True)
        stream.ready().wait()
    except (RuntimeError, AttributeError, AssertionError, TypeError):  # NotImplementedError is a RuntimeError
        return None
    return streams


ACCELERATORS: Final = Accelerators()
