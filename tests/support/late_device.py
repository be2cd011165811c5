"""A device whose work is done as late as possible, to prove without a GPU that the code waits wherever it has to.

Work that is queued on a stream runs only when a thread waits for something that comes after it. Then the work before it
runs, mixed with work of other streams drawn at random. So bytes that are used without a wait are never right by luck,
and neither are bytes that depend on the order of two streams.

    device = LateDevice(seed=1, eager=0.3)
    there = device.tensor(torch.ones(3))        # a tensor on the device
    there.fill_(2)                              # queued on the current stream of this thread
    Staging(options, accelerators=device)       # saves that copy from the device
    device.unfinished_copies()                  # copies from or to pinned memory that nobody waited for

Memory that the device fills is poisoned first, and so is pinned memory when it is freed.
"""

import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from torch_tfckpt.transfer.accelerators import Accelerators, Streams

POISON: Final = 0xEE
_TYPE: Final = "meta"  # a type for which torch has no streams, and runs no kernels of its own


@dataclass(eq=False)
class _Job:
    run: Callable[[], object]
    after: "LateEvent | None" = None  # runs only once this event is complete
    uses_host: bool = False


class LateStream:
    """Work in order of its queueing."""

    def __init__(self, device: "LateDevice", index: int) -> None:
        self.device, self.index = device, index
        self.jobs: deque[_Job] = deque()

    def wait_stream(self, other: "LateStream") -> None:
        """Run what is queued from now on only after all work that is queued on `other`."""
        event = LateEvent(self.device)
        event.record(other)
        self.device.queue(self, _Job(lambda: None, after=event))


class LateEvent:
    """Like torch.Event: complete once the work that was queued before `record` is done."""

    def __init__(self, device: "LateDevice") -> None:
        self._device = device
        self.stream: LateStream | None = None
        self.complete = True

    def record(self, stream: LateStream) -> None:
        self.stream, self.complete = stream, False
        self._device.queue(stream, _Job(self._set))

    def synchronize(self) -> None:
        self._device.run_until(self)

    def _set(self) -> None:
        self.complete = True


class _LateStreams:
    """What `LateDevice` offers to the code under test."""

    def __init__(self, device: "LateDevice") -> None:
        self._device = device

    def new(self, device: torch.device) -> LateStream:
        return self._device.new_stream(device.index)

    def current(self, device: torch.device) -> LateStream:
        return self._device.current(device.index)

    def use(self, stream: LateStream) -> Any:
        return self._device.use(stream)

    def event(self, device: torch.device) -> LateEvent:
        return LateEvent(self._device)


class LateDevice(Accelerators):
    """Devices with late copies.

    Args:
        seed: Of the order in which streams run.
        eager: How much more than necessary runs at each wait, from 0 (nothing) to 1.
        background: Whether copies run in the background; otherwise threads wait for each copy, as with MPS.
    """

    def __init__(self, seed: int = 0, *, eager: float = 0.3, background: bool = True) -> None:
        self._random, self._eager, self._background = random.Random(seed), eager, background
        self._lock = threading.RLock()
        self._streams: list[LateStream] = []
        self._defaults: dict[int, LateStream] = {}
        self._of_thread = threading.local()
        self._blocks: list[torch.Tensor] = []
        self._free: list[torch.Tensor] = []
        self.refused: list[str] = []  # uses that a real device would punish with wrong bytes

    # What the code under test calls.

    def streams(self, device: torch.device) -> Streams | None:
        return _LateStreams(self) if device.type == _TYPE and self._background else None

    def finish_queued(self, device: torch.device) -> None:
        with self._lock:
            for stream in [stream for stream in self._streams if stream.index == device.index]:
                event = LateEvent(self)
                event.record(stream)
                event.synchronize()

    def pinned_memory(self, size: int) -> torch.Tensor:
        with self._lock:
            block = next((block for block in self._free if len(block) == size), None)
            if block is None:
                block = torch.full((size,), POISON, dtype=torch.uint8)
                self._blocks.append(block)
            else:
                self._free = [other for other in self._free if other is not block]
        lent = block[:]
        weakref.finalize(lent, self._reclaim, block)
        return lent

    # What tests call.

    def tensor(self, values: torch.Tensor, index: int = 0) -> torch.Tensor:
        """Return a tensor on the device with the values, and the strides, of a host tensor."""
        return LateTensor(values.clone(), self, index)

    def new_stream(self, index: int = 0) -> LateStream:
        with self._lock:
            stream = LateStream(self, index)
            self._streams.append(stream)
        return stream

    def current(self, index: int = 0) -> LateStream:
        """Return this thread's current stream; every thread begins with the same default stream."""
        chosen: dict[int, LateStream] = self._of_thread.__dict__.setdefault("streams", {})
        with self._lock:
            if index not in chosen and index not in self._defaults:
                self._defaults[index] = self.new_stream(index)
        return chosen.get(index, self._defaults.get(index))  # type: ignore[return-value]

    @contextmanager
    def use(self, stream: LateStream) -> Iterator[None]:
        earlier = self.current(stream.index)
        chosen: dict[int, LateStream] = self._of_thread.streams
        chosen[stream.index] = stream
        try:
            yield
        finally:
            chosen[stream.index] = earlier

    def run_queued(self, index: int = 0) -> None:
        """Run what is queued on this thread's current stream, and what that waits for."""
        event = LateEvent(self)
        event.record(self.current(index))
        event.synchronize()

    def unfinished_copies(self) -> int:
        """Return the number of copies from or to pinned memory that are still queued."""
        with self._lock:
            return sum(job.uses_host for stream in self._streams for job in stream.jobs)

    # The work itself.

    def queue(self, stream: LateStream, job: _Job) -> None:
        with self._lock:
            stream.jobs.append(job)

    def run_until(self, event: LateEvent) -> None:
        with self._lock:
            while not event.complete:
                runnable = [stream for stream in self._streams if stream.jobs and _is_ready(stream.jobs[0])]
                if runnable and self._random.random() < self._eager:
                    self._run_first(self._random.choice(runnable))
                elif event.stream is not None:
                    self._run_first(self._blocking(event.stream))

    def copy(self, target: torch.Tensor, source: torch.Tensor, *, non_blocking: bool) -> None:
        """Queue a copy in which the device takes part."""
        index = (target if isinstance(target, LateTensor) else source).device.index
        to, start = self._memory(target), self._memory(source)
        uses_host = not (isinstance(target, LateTensor) and isinstance(source, LateTensor))
        if uses_host and non_blocking:
            host = source if isinstance(target, LateTensor) else target
            pinned = self._pinned(host)
            if pinned is None:
                self.refused.append("copy from or to pageable memory in the background")
            elif host is source:
                start = pinned
            else:
                to = pinned
        elif isinstance(target, LateTensor) and uses_host:
            start = start.clone()  # the host may change its values as soon as the call returns
        self.queue(self.current(index), _Job(lambda: to.copy_(start), uses_host=uses_host))
        if not non_blocking and not isinstance(target, LateTensor):
            self.run_queued(index)

    def _memory(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.memory if isinstance(tensor, LateTensor) else tensor

    def _pinned(self, host: torch.Tensor) -> torch.Tensor | None:
        """Return the same memory as a view that does not keep the caller's tensor alive."""
        for block in self._blocks:
            at = host.data_ptr() - block.data_ptr()
            if 0 <= at < len(block):
                return block[at : at + host.nbytes]
        return None

    def _reclaim(self, block: torch.Tensor) -> None:
        with self._lock:
            block.fill_(POISON)
            self._free.append(block)

    def _blocking(self, stream: LateStream) -> LateStream:
        """Return the stream whose first job must run before the first job of `stream`, or `stream` itself."""
        while not _is_ready(stream.jobs[0]):
            after = stream.jobs[0].after
            assert after is not None and after.stream is not None
            stream = after.stream
        return stream

    def _run_first(self, stream: LateStream) -> None:
        stream.jobs[0].run()
        stream.jobs.popleft()


def _is_ready(job: _Job) -> bool:
    return job.after is None or job.after.complete


class LateTensor(torch.Tensor):
    """A tensor on a `LateDevice`. Views are made at once; everything that reads or writes values is queued."""

    memory: torch.Tensor
    owner: LateDevice
    lost: bool = False  # every use raises, as after a failure of the device

    @staticmethod
    def __new__(cls, memory: torch.Tensor, owner: LateDevice, index: int) -> "LateTensor":
        made: LateTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            memory.shape,
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=torch.device(_TYPE, index),
        )
        made.memory, made.owner = memory, owner
        return made

    def __init__(self, memory: torch.Tensor, owner: LateDevice, index: int) -> None:
        pass

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        late = _late_in(args)
        assert late, func
        if any(one.lost for one in late):
            raise RuntimeError("the device lost this tensor")
        device, index = late[0].owner, late[0].device.index
        plain = _plain(args)
        if func is torch.ops.aten.copy_.default:
            device.copy(args[0], args[1], non_blocking=bool(args[2]) if len(args) > 2 else False)
            return args[0]
        if func is torch.ops.aten._to_copy.default and named.get("device") == torch.device("cpu"):
            host = torch.empty_like(plain[0], device="cpu", memory_format=torch.contiguous_format)
            device.copy(host, args[0], non_blocking=False)
            return host
        if func._schema.name.endswith("_"):
            device.queue(device.current(index), _Job(lambda: func(*plain, **named)))
            return args[0]
        result = func(*plain, **named)
        if all(result.untyped_storage().data_ptr() != one.memory.untyped_storage().data_ptr() for one in late):
            result.untyped_storage().fill_(POISON)
            device.queue(device.current(index), _Job(lambda: result.copy_(func(*plain, **named))))
        return LateTensor(result, device, index)


def _late_in(values: Any) -> list[LateTensor]:
    if isinstance(values, LateTensor):
        return [values]
    return [one for value in values for one in _late_in(value)] if isinstance(values, list | tuple) else []


def _plain(values: Any) -> Any:
    if isinstance(values, LateTensor):
        return values.memory
    return [_plain(value) for value in values] if isinstance(values, list | tuple) else values
