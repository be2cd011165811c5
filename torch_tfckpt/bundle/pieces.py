"""Read the stored pieces of tensors, verify them, and copy them to their destination.

A piece is the data of one index entry: a whole tensor, or one slice of a partitioned one. The reader decides
which pieces make up a tensor.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.bundle.index import NamedEntry, overlapping
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import DAMAGED, CheckpointError, DataLossError, error_context, located
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.string_tensor import decode_strings
from torch_tfckpt.format.tensor_bundle import BundleEntry, index_filename
from torch_tfckpt.format.tensor_slice import TensorSlice, element_count
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.batching import cut
from torch_tfckpt.transfer.host_bytes import byte_view, copy_slice, is_row_major, swap_bytes
from torch_tfckpt.transfer.pipeline import Pipeline, ReadRequest, SumRequest
from torch_tfckpt.transfer.uploads import read_to_device, takes_upload
from torch_tfckpt.values import Strings, fixed_size, new_tensor, strings_from


class Whole(NamedTuple):
    """A tensor stored in one piece, and the destination of its bytes."""

    name: str
    entry: BundleEntry
    target: torch.Tensor  # contiguous, on the host


class Run(NamedTuple):
    """Tensors of one type that are adjacent in a file."""

    pieces: list[NamedEntry]  # in file order
    dtype: torch.dtype


class Pieces:
    """The pieces in the data files of one checkpoint.

    Args:
        path: The prefix, for messages.
        verify: Whether to compare the bytes with their checksums.

    Thread safety: safe.
    """

    def __init__(self, files: BundleFiles, path: str, *, verify: bool) -> None:
        self.files, self.path, self._verify = files, path, verify
        self.pipeline = Pipeline()
        self._verified: set[BundleEntry] = set()  # partly read pieces whose full checksum was verified

    def read_runs(self, runs: Sequence[Run]) -> Iterator[tuple[str, torch.Tensor]]:
        """Read runs of small tensors in one plan, verify them, and split them into tensors."""
        buffers = []
        requests = []
        for (_, first), *_, (_, last) in (run.pieces for run in runs):
            buffers.append(torch.empty(last.end - first.offset, dtype=torch.uint8, device="cpu"))
            requests.append(ReadRequest(self.files.shard(first.shard), first.offset, byte_view(buffers[-1])))
        self.pipeline.fill(requests)
        for run, buffer, request in zip(runs, buffers, requests, strict=True):
            if self._verify:
                sums = crc32c.of_parts(request.target, [entry.size for _, entry in run.pieces])
                for (name, entry), computed in zip(run.pieces, sums, strict=True):
                    self.compare(name, entry, computed)
            if self.files.header.big_endian:
                swap_bytes(buffer, ELEMENTS[run.pieces[0][1].dtype].swap)
            tensors = cut(buffer.view(run.dtype), [entry.shape for _, entry in run.pieces])
            yield from zip((name for name, _ in run.pieces), tensors, strict=True)

    def check(self, name: str, piece: BundleEntry) -> ReadableFile:
        """Check the piece's size against dtype, shape and file; return the file that contains it."""
        fixed = fixed_size(piece)
        # A string or variant takes at least one byte, for its length.
        expected = element_count(piece.shape) if fixed is None else fixed
        if piece.size < expected if fixed is None else piece.size != expected:
            raise DataLossError(
                f"{index_filename(self.path)}: tensor {quoted(name)}: Invalid size in bundle entry: stored "
                f"size {piece.size}; expected size {expected}. {DAMAGED}"
            )
        try:
            file = self.files.shard(piece.shard)
        except CheckpointError as error:
            raise located(error, f"{self.path}: tensor {quoted(name)}") from error.__cause__
        if piece.end > file.size:
            raise DataLossError(
                f"{self.place(name, piece)}: Read less bytes than requested: the file has only {file.size} bytes. It "
                f"is truncated, still being copied, or belongs to another index. Copy it again"
            )
        return file

    def check_volume(self, name: str, pieces: Sequence[BundleEntry]) -> None:
        """Refuse pieces that claim more bytes than their files contain, before memory is allocated for them."""
        claimed = sum(piece.size for piece in pieces)
        held = sum(self.files.shard(shard).size for shard in {piece.shard for piece in pieces})
        if claimed > held:
            raise DataLossError(
                f"{index_filename(self.path)}: tensor {quoted(name)}: its slices declare {claimed} bytes, but their "
                f"files contain {held}. {DAMAGED}"
            )

    def check_apart(self, pieces: Iterable[NamedEntry]) -> None:
        """Refuse pieces that share bytes: reading them all could take many times the files' size."""
        for (name, piece), (other_name, other) in overlapping(pieces):
            raise DataLossError(
                f"{self.place(name, piece)} overlaps tensor {quoted(other_name)}, bytes {other.offset}:{other.end}. "
                f"{DAMAGED}"
            )

    def copy(self, name: str, piece: BundleEntry, source: TensorSlice, target: torch.Tensor) -> None:
        """Copy part `source` of a piece into `target`, without an intermediate copy if possible."""
        whole = source.covers(piece.shape)
        if whole and target.device.type == "cpu" and is_row_major(target):
            self.transfer([Whole(name, piece, target)])
        elif whole and takes_upload(target):
            swap = ELEMENTS[piece.dtype].swap if self.files.header.big_endian else 0
            file, verify = self.files.shard(piece.shard), self._verify
            computed = read_to_device(self.pipeline, file, piece.offset, target, verify=verify, swap=swap)
            if verify:
                self.compare(name, piece, computed)
        elif whole:
            staged = new_tensor(name, piece.shape, target.dtype)
            self.transfer([Whole(name, piece, staged)])
            copy_slice(target, (), staged)
        else:
            copy_slice(target, (), self._read_span(name, piece, source.resolve(piece.shape), target.dtype))

    def transfer(self, wholes: Sequence[Whole]) -> None:
        """Read whole pieces in one plan, and verify them."""
        shard = self.files.shard
        requests = [ReadRequest(shard(w.entry.shard), w.entry.offset, byte_view(w.target)) for w in wholes]
        if self._verify:
            for whole, computed in zip(wholes, self.pipeline.read(requests), strict=True):
                self.compare(whole.name, whole.entry, computed)
        else:
            self.pipeline.fill(requests)
        if self.files.header.big_endian:
            for whole in wholes:
                swap_bytes(whole.target, ELEMENTS[whole.entry.dtype].swap)

    def verify(self, pieces: Sequence[NamedEntry]) -> None:
        """Compare whole pieces with their checksums, without keeping their bytes."""
        fixed = [(name, piece) for name, piece in pieces if fixed_size(piece) is not None]
        requests = [SumRequest(self.files.shard(piece.shard), piece.offset, piece.size) for _, piece in fixed]
        for (name, piece), computed in zip(fixed, self.pipeline.checksums(requests), strict=True):
            self.compare(name, piece, computed)
        for name, piece in pieces:
            if piece.dtype == DataType.DT_STRING:
                self.read_strings(name, piece)

    def _read_span(self, name: str, piece: BundleEntry, part: TensorSlice, dtype: torch.dtype) -> torch.Tensor:
        """Read one slice of a piece, from its first to its last element; only checksum the rest of the piece."""
        strides = [element_count(piece.shape[axis + 1 :]) for axis in range(len(piece.shape))]
        lengths = [extent.length for extent in part.extents]
        if not element_count(tuple(lengths)):
            return torch.empty(lengths, dtype=dtype, device="cpu")
        first = sum(extent.start * stride for extent, stride in zip(part.extents, strides, strict=True))
        last = sum((extent.end - 1) * stride for extent, stride in zip(part.extents, strides, strict=True))
        span = torch.empty(last + 1 - first, dtype=dtype, device="cpu")
        file, begin = self.files.shard(piece.shard), piece.offset + first * dtype.itemsize
        end = begin + byte_view(span).nbytes
        request = ReadRequest(file, begin, byte_view(span))
        if not self._verify or piece in self._verified:
            self.pipeline.fill([request])
        else:
            before, after = begin - piece.offset, piece.end - end
            head, tail = self.pipeline.checksums([SumRequest(file, piece.offset, before), SumRequest(file, end, after)])
            [middle] = self.pipeline.read([request])
            computed = crc32c.combine(crc32c.combine(head, middle, end - begin), tail, after)
            self.compare(name, piece, computed)
            self._verified.add(piece)
        if self.files.header.big_endian:
            swap_bytes(span, ELEMENTS[piece.dtype].swap)
        return span.as_strided(lengths, strides)

    def read_strings(self, name: str, piece: BundleEntry) -> Strings:
        """Return all strings of one piece."""
        stored = self.files.shard(piece.shard).read(piece.offset, piece.size)
        big_endian = self.files.header.big_endian
        with error_context(self.place(name, piece), DAMAGED):
            # Old writers stored no bytes at all for an empty string tensor, not even the checksum of its lengths.
            count = element_count(piece.shape)
            elements = (
                decode_strings(stored, count, piece.checksum, big_endian=big_endian, verify=self._verify)
                if count or stored
                else []
            )
        return strings_from(name, piece.shape, elements)

    def compare(self, name: str, piece: BundleEntry, computed: int) -> None:
        if crc32c.mask(computed) != piece.checksum:
            raise DataLossError(
                f"{self.place(name, piece)}: Checksum does not match: stored {piece.checksum:#010x}, computed "
                f"{crc32c.mask(computed):#010x}. {DAMAGED}"
            )

    def place(self, name: str, piece: BundleEntry) -> str:
        path = printable(self.files.shard_path(piece.shard))
        return f"{path}, bytes {piece.offset}:{piece.end}: tensor {quoted(name)}"
