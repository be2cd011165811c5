"""Copies from files and from host memory to tensors on devices, through a few pinned buffers.

    file or host memory -> buffer 1 -> device      while buffer 1 is copied to the device, buffer 2 is filled;
                           buffer 2 -> device      a buffer is filled again once its copy is complete

The copies are queued on the current stream of the calling thread: after the work that still needs the earlier values,
and before the work that needs the new ones. Small tensors, tensors with strides, and tensors on devices without copies
in the background are copied by torch alone.
"""

from collections.abc import Callable
from typing import Final

import torch

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.transfer.accelerators import ACCELERATORS, Accelerators, Ready
from torch_tfckpt.transfer.host_bytes import byte_view, copy_slice, flat_bytes, is_row_major, swap_bytes
from torch_tfckpt.transfer.pipeline import Pipeline, ReadRequest

# 64 MiB: eight chunks of the pipeline, so that as many threads read it.
BUFFER_BYTES: Final = 64 * 1024 * 1024
_BUFFERS: Final = 2
_LEAST_BYTES: Final = 8 * 1024 * 1024  # below this size, one plain copy is as fast
_ROUNDED: Final = 1024 * 1024


def takes_upload(target: torch.Tensor, accelerators: Accelerators = ACCELERATORS) -> bool:
    """Return whether `upload` can fill `target`, and is worth its buffers."""
    if target.nbytes < _LEAST_BYTES or not is_row_major(target):
        return False
    return accelerators.streams(target.device) is not None


def upload(
    target: torch.Tensor,
    fill: Callable[[torch.Tensor, int], object],
    *,
    buffer_bytes: int = BUFFER_BYTES,
    accelerators: Accelerators = ACCELERATORS,
) -> None:
    """Fill `target` through pinned buffers; return once all bytes have arrived.

    Args:
        target: A tensor that `takes_upload`.
        fill: Called with a flat uint8 tensor in host memory, and the offset in bytes from the start of `target` of the
            bytes to write there.
        buffer_bytes: Size of each buffer; a multiple of every element size.

    If `fill` raises, `target` is partly written.
    """
    streams = accelerators.streams(target.device)
    assert streams is not None, f"no streams on {target.device}"
    there = flat_bytes(target)
    buffers: list[torch.Tensor] = []
    copied: list[Ready] = []  # for each part so far
    half = -(-len(there) // _BUFFERS // _ROUNDED) * _ROUNDED  # at least two parts, so that filling and copying overlap
    size = min(buffer_bytes, half)
    try:
        for number, begin in enumerate(range(0, len(there), size)):
            if number < _BUFFERS:
                buffers.append(accelerators.pinned_memory(size))
            else:
                copied[number - _BUFFERS].wait()
            part = there[begin : begin + size]
            buffer = buffers[number % _BUFFERS][: len(part)]
            fill(buffer, begin)
            part.copy_(buffer, non_blocking=True)
            copied.append(Ready(streams, target.device, streams.current(target.device)))
    finally:  # the buffers may be freed only when nothing is copied from them any more
        for last in copied[-1:]:  # copies on one stream complete in order
            last.wait()


def read_to_device(
    pipeline: Pipeline,
    file: ReadableFile,
    offset: int,
    target: torch.Tensor,
    *,
    verify: bool,
    swap: int = 0,
    buffer_bytes: int = BUFFER_BYTES,
    accelerators: Accelerators = ACCELERATORS,
) -> int:
    """Fill a tensor that `takes_upload` from a file; return the CRC-32C (not masked) of the bytes in the file.

    Args:
        verify: Whether to compute the checksum; 0 is returned without.
        swap: Size of the groups of bytes to reverse, as for `swap_bytes`.
    """
    total = 0

    def fill(buffer: torch.Tensor, begin: int) -> None:
        nonlocal total
        request = ReadRequest(file, offset + begin, byte_view(buffer))
        if verify:
            total = crc32c.combine(total, pipeline.read([request])[0], len(buffer))
        else:
            pipeline.fill([request])
        swap_bytes(buffer, swap)

    upload(target, fill, buffer_bytes=buffer_bytes, accelerators=accelerators)
    return total


def assign(target: torch.Tensor, source: torch.Tensor, accelerators: Accelerators = ACCELERATORS) -> None:
    """Copy the values of `source` into `target`, on any devices. REQUIRES: equal dtypes and shapes."""
    if source.device.type != "cpu" or not is_row_major(source) or not takes_upload(target, accelerators):
        copy_slice(target, (), source)
        return
    here = flat_bytes(source)
    upload(
        target,
        lambda buffer, begin: buffer.copy_(here[begin : begin + len(buffer)]),
        accelerators=accelerators,
    )
