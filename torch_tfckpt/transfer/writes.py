"""The writes of a plan: tensors on any device, and bytes, each with its file and offset.

`write_tensors` is the general path: everything goes through one pipeline plan while the caller waits. `transfer` does
the same with several threads and in bounded memory; a property test checks that both write the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import Buffer, WritableFile
from torch_tfckpt.transfer.batching import find_runs, gather
from torch_tfckpt.transfer.host_bytes import byte_view, flat_bytes, host_copy
from torch_tfckpt.transfer.pipeline import Pipeline, WriteRequest


@dataclass(slots=True, eq=False)
class Write:
    """One tensor, or bytes, and its destination."""

    file: int  # index into the plan's list of files
    offset: int
    size: int  # bytes
    source: torch.Tensor | bytes  # must not change before it is written or staged


def runs_of(writes: Sequence[Write]) -> list[Sequence[Write]]:
    """Split the plan into runs, keeping the order."""
    places = [(write.file, write.offset, write.size, _kind(write.source)) for write in writes]
    return [writes[first:end] for first, end in find_runs(places)]


def host_bytes(run: Sequence[Write]) -> Buffer:
    """Return the bytes of a run in host memory; a single contiguous host tensor is not copied."""
    source = run[0].source
    if isinstance(source, bytes):
        return source
    return byte_view(host_copy(source if len(run) == 1 else gather(_tensors(run))))


def device_bytes(run: Sequence[Write]) -> torch.Tensor:
    """Return the bytes of a run as a flat uint8 tensor on its device. REQUIRES: tensors, not bytes."""
    tensors = _tensors(run)
    if len(tensors) > 1:
        flat = gather(tensors)
    else:
        flat = tensors[0].detach().resolve_conj().resolve_neg().contiguous()
    return flat_bytes(flat) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)


def write_tensors(pipeline: Pipeline, writes: Sequence[Write], files: Sequence[WritableFile]) -> list[int]:
    """Write the whole plan; return the CRC-32C (not masked) of each write.

    Cost: host copies of all tensors on devices.
    """
    runs = runs_of(writes)
    requests = [WriteRequest(files[run[0].file], run[0].offset, host_bytes(run)) for run in runs]
    sums: list[int] = []
    for run, request, whole in zip(runs, requests, pipeline.write(requests), strict=True):
        if len(run) == 1:
            sums.append(whole)
        else:
            sums += crc32c.of_parts(memoryview(request.source), [write.size for write in run])
    return sums


def _kind(source: torch.Tensor | bytes) -> object:
    """Return a value that is equal for sources that can be copied together.

    These are tensors of the same dtype and device without lazy conjugation or negation.
    """
    if isinstance(source, bytes) or source.is_conj() or source.is_neg():
        return object()  # different from all other values
    return source.dtype, source.device


def _tensors(run: Sequence[Write]) -> list[torch.Tensor]:
    return [write.source for write in run if isinstance(write.source, torch.Tensor)]
