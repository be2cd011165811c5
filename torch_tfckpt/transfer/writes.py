"""What a plan writes: tensors of any device, and bytes, each to a place in a file that is known beforehand.

`write_tensors` is the general path: everything goes through one plan of the pipeline, and the caller waits. `transfer`
does the same with several threads and in bounded memory; a property test holds that both write the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import Buffer, WritableFile
from torch_tfckpt.transfer.batching import find_runs, gather
from torch_tfckpt.transfer.host_bytes import byte_view, host_copy
from torch_tfckpt.transfer.pipeline import Pipeline, WriteRequest


@dataclass(slots=True, eq=False)
class Write:
    """One tensor, or bytes as they are, and where they go."""

    file: int  # position in the list of files that comes with the plan
    offset: int
    size: int  # bytes
    source: torch.Tensor | bytes  # must not change before it is written, or staged


def runs_of(writes: Sequence[Write]) -> list[Sequence[Write]]:
    """The plan, cut into runs. Order is kept."""
    places = [(write.file, write.offset, write.size, _kind(write.source)) for write in writes]
    return [writes[first:end] for first, end in find_runs(places)]


def host_bytes(run: Sequence[Write]) -> Buffer:
    """The bytes of a run in host memory: the memory of the tensor itself if it already holds them as stored."""
    source = run[0].source
    if isinstance(source, bytes):
        return source
    return byte_view(host_copy(source if len(run) == 1 else gather(_tensors(run))))


def device_bytes(run: Sequence[Write]) -> torch.Tensor:
    """The bytes of a run as a flat tensor of uint8 on the device of its values. REQUIRES: tensors, not bytes."""
    tensors = _tensors(run)
    if len(tensors) > 1:
        flat = gather(tensors)
    else:
        # reshape alone may return a view with gaps between its elements
        flat = tensors[0].detach().resolve_conj().resolve_neg().reshape(-1).contiguous()
    return flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)


def write_tensors(pipeline: Pipeline, writes: Sequence[Write], files: Sequence[WritableFile]) -> list[int]:
    """Write all of a plan; return the CRC-32C (not masked) of each. Cost: host copies of all that is on devices."""
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
    """Equal for sources that can be copied as one: tensors of one dtype and device whose bytes are their values."""
    if isinstance(source, bytes) or source.is_conj() or source.is_neg():
        return object()  # equal to no other
    return source.dtype, source.device


def _tensors(run: Sequence[Write]) -> list[torch.Tensor]:
    return [write.source for write in run if isinstance(write.source, torch.Tensor)]
