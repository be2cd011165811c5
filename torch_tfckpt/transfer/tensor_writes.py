"""Tensors of any device on their way to places in files that are known beforehand.

`write_tensors` is the plain way: everything through one plan of the pipeline, the caller waits. `transfer` does the
same side by side and in bounded memory; a test holds that both write the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import Buffer, WritableFile
from torch_tfckpt.transfer.batching import find_runs, gather
from torch_tfckpt.transfer.host_bytes import byte_view, host_copy
from torch_tfckpt.transfer.pipeline import Pipeline, WriteRequest


class TensorWrite(NamedTuple):
    """One tensor, or bytes as they are, and where they go."""

    file: WritableFile
    offset: int
    source: torch.Tensor | bytes  # must not change before it was written, or staged

    @property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.nbytes


class WriteRun(NamedTuple):
    """Neighbours in a file that travel as one, or a single one. `first` is the position of the first in the plan."""

    first: int
    writes: Sequence[TensorWrite]

    @property
    def file(self) -> WritableFile:
        return self.writes[0].file

    @property
    def offset(self) -> int:
        return self.writes[0].offset

    @property
    def size(self) -> int:
        return sum(write.size for write in self.writes)

    @property
    def device(self) -> torch.device | None:
        """Where the values lie; None for bytes, which lie in memory that nobody changes."""
        source = self.writes[0].source
        return None if isinstance(source, bytes) else source.device

    def sums(self, written: memoryview, whole: int) -> list[int]:
        """The CRC-32C of each, from the bytes of all and their sum."""
        if len(self.writes) == 1:
            return [whole]
        return crc32c.of_parts(written, [write.size for write in self.writes])


def runs_of(writes: Sequence[TensorWrite]) -> list[WriteRun]:
    """The plan, cut into what travels together. Order is kept."""
    places = [(write.file, write.offset, write.size, _kind(write)) for write in writes]
    return [WriteRun(first, writes[first:end]) for first, end in find_runs(places)]


def host_bytes(run: WriteRun) -> Buffer:
    """The bytes of a run in host memory: those of the tensor itself where they lie as they are stored."""
    source = run.writes[0].source
    if isinstance(source, bytes):
        return source
    return byte_view(host_copy(source if len(run.writes) == 1 else gather(_tensors(run))))


def device_bytes(run: WriteRun) -> torch.Tensor:
    """The bytes of a run as a flat tensor of uint8 on the device where its values lie. REQUIRES: tensors, not bytes."""
    tensors = _tensors(run)
    if len(tensors) > 1:
        flat = gather(tensors)
    else:
        flat = tensors[0].resolve_conj().resolve_neg().reshape(-1).contiguous()  # reshape may give every other element
    return flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)


def write_tensors(pipeline: Pipeline, writes: Sequence[TensorWrite]) -> list[int]:
    """Writes all of a plan; returns the CRC-32C (not masked) of each. Cost: host copies of all that is on devices."""
    runs = runs_of(writes)
    requests = [WriteRequest(run.file, run.offset, host_bytes(run)) for run in runs]
    sums: list[int] = []
    for run, request, whole in zip(runs, requests, pipeline.write(requests), strict=True):
        sums += run.sums(memoryview(request.source), whole)
    return sums


def _kind(write: TensorWrite) -> object:
    """What is equal for two that may travel together: tensors of one dtype and device whose bytes are their values."""
    source = write.source
    if isinstance(source, bytes) or source.is_conj() or source.is_neg():
        return object()  # equal to no other
    return source.dtype, source.device


def _tensors(run: WriteRun) -> list[torch.Tensor]:
    return [write.source.detach() for write in run.writes if isinstance(write.source, torch.Tensor)]
