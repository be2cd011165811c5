"""The writes of a plan: tensors on any device, and bytes, each with its file and offset.

`write_tensors` is the general path: everything goes through one pipeline plan while the caller waits. `transfer` does
the same with several threads and in bounded memory; a property test checks that both write the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.protocol import Buffer, WritableFile
from torch_tfckpt.transfer.batching import find_runs, gather
from torch_tfckpt.transfer.host_bytes import byte_view, flat_bytes, host_copy, row_major_pieces
from torch_tfckpt.transfer.pipeline import Pipeline, WriteRequest

_PIECES_ABOVE: Final = 32 * 1024 * 1024  # bytes; smaller tensors are copied as a whole


@dataclass(slots=True, eq=False)
class Write:
    """One tensor, several small ones, or bytes, and the destination."""

    file: int  # index into the plan's list of files
    offset: int
    size: int  # bytes
    # Must not change before it is written or staged. Several tensors have one dtype and one device, and no lazy
    # conjugation or negation; they are written back to back, and each gets a checksum.
    source: torch.Tensor | bytes | list[torch.Tensor]

    def parts(self) -> Sequence[int]:
        """Return the sizes in bytes of the parts that get a checksum."""
        return (self.size,)

    @property
    def device(self) -> torch.device | None:
        """Device of the tensors; None for bytes."""
        if isinstance(self.source, bytes):
            return None
        return self.source[0].device if isinstance(self.source, list) else self.source.device


def runs_of(writes: Sequence[Write]) -> list[Sequence[Write]]:
    """Split the plan into runs, keeping the order."""
    places = [(write.file, write.offset, write.size, _kind(write.source)) for write in writes]
    return [writes[first:end] for first, end in find_runs(places)]


def host_bytes(run: Sequence[Write]) -> Buffer:
    """Return the bytes of a run in host memory; a single contiguous host tensor is not copied."""
    source = run[0].source
    if isinstance(source, bytes):
        return source
    return byte_view(host_copy(source if isinstance(source, torch.Tensor) and len(run) == 1 else gather(_tensors(run))))


def device_bytes(run: Sequence[Write]) -> torch.Tensor:
    """Return the bytes of a run as a flat uint8 tensor on its device. REQUIRES: tensors, not bytes."""
    tensors = _tensors(run)
    if len(tensors) > 1:
        flat = gather(tensors)
    else:
        flat = tensors[0].detach().resolve_conj().resolve_neg().contiguous()
    return flat_bytes(flat) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)


def write_tensors(pipeline: Pipeline, writes: Sequence[Write], files: Sequence[WritableFile]) -> list[int]:
    """Write the whole plan; return the CRC-32C (not masked) of each part of each write.

    Cost: host copies of all tensors on devices.
    """
    runs = runs_of(writes)
    whole_runs = [run for run in runs if not _is_written_in_pieces(run)]
    requests = [WriteRequest(files[run[0].file], run[0].offset, host_bytes(run)) for run in whole_runs]
    results = iter(zip(requests, pipeline.write(requests), strict=True))
    sums: list[int] = []
    for run in runs:
        if _is_written_in_pieces(run):
            [write] = run
            assert isinstance(write.source, torch.Tensor)
            sums.append(write_in_pieces(pipeline, files[write.file], write.offset, write.source.detach()))
            continue
        request, whole = next(results)
        if len(run) == 1 and len(run[0].parts()) == 1:
            sums.append(whole)
        else:
            sums += crc32c.of_parts(memoryview(request.source), part_sizes(run))
    return sums


def _is_written_in_pieces(run: Sequence[Write]) -> bool:
    """Return whether a run is one large tensor in host memory whose axes were moved, such as a transposed kernel."""
    source = run[0].source
    if len(run) > 1 or not isinstance(source, torch.Tensor) or run[0].size <= _PIECES_ABOVE:
        return False
    return source.device.type == "cpu" and not (source.is_contiguous() or source.is_conj() or source.is_neg())


def write_in_pieces(pipeline: Pipeline, file: WritableFile, offset: int, tensor: torch.Tensor) -> int:
    """Write a CPU tensor of any strides without copying it as a whole; return the CRC-32C (not masked)."""
    crc = 0
    for piece in row_major_pieces(tensor):
        [of_piece] = pipeline.write([WriteRequest(file, offset, piece)])
        crc, offset = crc32c.combine(crc, of_piece, len(piece)), offset + len(piece)
    return crc


def part_sizes(writes: Sequence[Write]) -> list[int]:
    """Return the sizes of all parts of all writes, in order."""
    return [size for write in writes for size in write.parts()]


def _kind(source: torch.Tensor | bytes | list[torch.Tensor]) -> object:
    """Return a value that is equal for sources that can be copied together.

    These are tensors of the same dtype and device without lazy conjugation or negation.
    """
    if not isinstance(source, torch.Tensor) or source.is_conj() or source.is_neg():
        return object()  # different from all other values
    return source.dtype, source.device


def _tensors(run: Sequence[Write]) -> list[torch.Tensor]:
    source = run[0].source
    if isinstance(source, list):
        return source
    return [write.source for write in run if isinstance(write.source, torch.Tensor)]
