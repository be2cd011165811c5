"""Copies off a CUDA device that run beside its computations."""

import torch


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
