"""Read the stored pieces of tensors, verify them, and copy them to their destination.

A piece is the data of one index entry: a whole tensor, or one slice of a partitioned one. The reader decides
which pieces make up a tensor.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import Final, NamedTuple, TypeVar

import torch

from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.bundle.index import NamedEntry, overlapping, place_in_files
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import DAMAGED, CheckpointError, DataLossError, error_context, located
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.string_tensor import decode_strings
from torch_tfckpt.format.tensor_bundle import BundleEntry, index_filename
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, element_count
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.batching import cut
from torch_tfckpt.transfer.host_bytes import byte_view, copy_slice, is_row_major, swap_bytes
from torch_tfckpt.transfer.pipeline import Pipeline, ReadRequest, SumRequest
from torch_tfckpt.transfer.uploads import read_to_device, takes_upload
from torch_tfckpt.values import Strings, fixed_size, new_tensor, strings_from

STAGED_BYTES: Final = 64 * 1024 * 1024
"""Bytes that are read before they are copied, for targets that cannot be read into."""

T = TypeVar("T")
_CLOSE: Final = 1.1  # rows that are at least this part of their span are read with what is between them
# Smallest row, in bytes, that is read by itself. A read takes as long as copying some kilobytes from the file cache,
# but ranks that share a disk or a network need not each read what all of them have together.
_SHORT: Final = 256
_SHORT_REMOTE: Final = 1 << 20  # if each read is a request to a server


class Whole(NamedTuple):
    """A tensor stored in one piece, and the destination of its bytes."""

    name: str
    entry: BundleEntry
    target: torch.Tensor  # contiguous, on the host


class PieceCopy(NamedTuple):
    """A piece, or a part of it, to copy."""

    name: str
    piece: BundleEntry
    source: TensorSlice  # the elements to copy
    target: torch.Tensor  # of the same shape as `source`; any device and strides


class Run(NamedTuple):
    """Tensors of one type that are adjacent in a file."""

    pieces: list[NamedEntry]  # in file order
    dtype: torch.dtype


class Rows(NamedTuple):
    """Ranges of equal size in a piece that make up a slice, in row-major order."""

    size: int  # bytes
    starts: list[range]  # for each of the outer axes, the offsets of its elements, in bytes

    def offsets(self) -> Iterator[int]:
        """Yield where each row begins in the piece."""
        return map(sum, product(*self.starts))


def _rows(shape: Shape, part: TensorSlice, itemsize: int, shortest: int) -> Rows | None:
    """Return the rows of a slice with explicit extents; None if it is better read from its first to its last byte.

    Args:
        shortest: Smallest row, in bytes, that is read by itself.
    """
    axis = max((axis for axis, size in enumerate(shape) if part.extents[axis].length != size), default=0)
    strides = [itemsize * element_count(shape[axis + 1 :]) for axis in range(len(shape))]
    size = strides[axis] * part.extents[axis].length
    starts = [
        range(extent.start * stride, extent.end * stride, stride)
        for extent, stride in zip(part.extents[: axis + 1], strides, strict=False)
    ]
    starts[axis] = starts[axis][:1]
    count = element_count(tuple(map(len, starts)))
    span = sum(each[-1] - each[0] for each in starts) + size
    if count == 1 or span <= _CLOSE * count * size or size < shortest:
        return None
    return Rows(size, starts)


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

    def copy(self, copies: Sequence[PieceCopy], changed: set[str] | None = None) -> None:
        """Copy pieces, or parts of pieces, in parallel, without an intermediate copy if possible.

        Verifies the whole of each piece the first time. Memory: STAGED_BYTES, or one piece if it is larger.

        Args:
            changed: Receives the names of the tensors whose targets may have changed, even if an error is raised.
        """
        changed = set() if changed is None else changed
        direct: list[Whole] = []
        staged: list[PieceCopy] = []
        uploads: list[PieceCopy] = []
        spans: list[_Span] = []
        for copy in copies:
            if not copy.source.covers(copy.piece.shape):
                spans.append(_Span(copy))
            elif copy.target.device.type == "cpu" and is_row_major(copy.target):
                direct.append(Whole(copy.name, copy.piece, copy.target))
            elif takes_upload(copy.target):
                uploads.append(copy)
            else:
                staged.append(copy)
        self.transfer(direct, changed)
        for copy in uploads:
            changed.add(copy.name)
            self._upload(copy)
        for group in _groups(staged, lambda copy: copy.piece.size):
            wholes = [Whole(name, piece, new_tensor(name, piece.shape, to.dtype)) for name, piece, _, to in group]
            self.transfer(wholes)
            for copy, whole in zip(group, wholes, strict=True):
                changed.add(copy.name)
                copy_slice(copy.target, (), whole.target)
        # Only the first part of a piece verifies all of it.
        first = {span.copy.piece: span for span in reversed(spans)}
        for turn in (list(first.values()), [span for span in spans if first[span.copy.piece] is not span]):
            for some in _groups(turn, lambda span: span.end - span.begin):
                changed.update(span.copy.name for span in some)
                self._read_spans(some)

    def _upload(self, copy: PieceCopy) -> None:
        """Copy a whole piece to a device."""
        name, piece, _, target = copy
        swap = ELEMENTS[piece.dtype].swap if self.files.header.big_endian else 0
        file, verify = self.files.shard(piece.shard), self._verify
        computed = read_to_device(self.pipeline, file, piece.offset, target, verify=verify, swap=swap)
        if verify:
            self.compare(name, piece, computed)

    def transfer(self, wholes: Sequence[Whole], changed: set[str] | None = None) -> None:
        """Read whole pieces in one plan, and verify them. `changed` as for `copy`."""
        shard = self.files.shard
        requests = [ReadRequest(shard(w.entry.shard), w.entry.offset, byte_view(w.target)) for w in wholes]
        begun: set[int] = set()
        sums: list[int] = []
        try:
            if self._verify:
                sums = self.pipeline.read(requests, begun)
            else:
                self.pipeline.fill(requests, begun)
        finally:
            if changed is not None:
                changed.update(wholes[number].name for number in begun)
        for whole, computed in zip(wholes, sums, strict=self._verify):
            self.compare(whole.name, whole.entry, computed)
        if self.files.header.big_endian:
            for whole in wholes:
                swap_bytes(whole.target, ELEMENTS[whole.entry.dtype].swap)

    def verify_first(self, copies: Sequence[PieceCopy]) -> None:
        """Verify the whole of each piece before `copy` changes a target.

        Pieces that are copied whole are verified again when they are copied, parts of pieces are not.
        """
        pieces = sorted(dict.fromkeys((copy.name, copy.piece) for copy in copies), key=place_in_files)
        self.verify(pieces)
        self._verified.update(copy.piece for copy in copies if not copy.source.covers(copy.piece.shape))

    def verify(self, pieces: Sequence[NamedEntry]) -> None:
        """Compare whole pieces with their checksums, without keeping their bytes."""
        fixed = [(name, piece) for name, piece in pieces if fixed_size(piece) is not None]
        requests = [SumRequest(self.files.shard(piece.shard), piece.offset, piece.size) for _, piece in fixed]
        for (name, piece), computed in zip(fixed, self.pipeline.checksums(requests), strict=True):
            self.compare(name, piece, computed)
        for name, piece in pieces:
            if piece.dtype == DataType.DT_STRING:
                self.read_strings(name, piece)

    def _read_spans(self, spans: Sequence["_Span"]) -> None:
        """Read parts of pieces, from their first to their last elements; only checksum the rest of the pieces.

        Without `verify`, only the rows of a part are read, unless they are short or close together.
        """
        if not self._verify:
            spans = [span for span in spans if not self._read_rows(span)]
        file = self.files.shard
        reads = [ReadRequest(file(span.copy.piece.shard), span.begin, byte_view(span.tensor())) for span in spans]
        checked = [self._verify and span.copy.piece not in self._verified for span in spans]
        rests: list[SumRequest] = []
        for span, check in zip(spans, checked, strict=True):
            if check:
                piece = span.copy.piece
                rests.append(SumRequest(file(piece.shard), piece.offset, span.begin - piece.offset))
                rests.append(SumRequest(file(piece.shard), span.end, piece.end - span.end))
        if rests:
            sums = iter(self.pipeline.checksums(rests))
            for span, check, middle in zip(spans, checked, self.pipeline.read(reads), strict=True):
                if check:
                    piece, head, tail = span.copy.piece, next(sums), next(sums)
                    computed = crc32c.combine(head, middle, span.end - span.begin)
                    self.compare(span.copy.name, piece, crc32c.combine(computed, tail, piece.end - span.end))
                    self._verified.add(piece)
        else:
            self.pipeline.fill(reads)
        for span in spans:
            if self.files.header.big_endian:
                swap_bytes(span.tensor(), ELEMENTS[span.copy.piece.dtype].swap)
            span.finish()

    def _read_rows(self, span: "_Span") -> bool:
        """Read each row of a part by itself, so that what is between them is not read; return whether that pays off."""
        _, piece, source, target = span.copy
        if not target.numel():
            return False
        shortest = _SHORT if self.files.are_local else _SHORT_REMOTE
        rows = _rows(piece.shape, source.resolve(piece.shape), target.dtype.itemsize, shortest)
        if rows is None:
            return False
        file = self.files.shard(piece.shard)
        direct = target.device.type == "cpu" and is_row_major(target)
        into = target if direct else torch.empty(target.shape, dtype=target.dtype, device="cpu")
        view = byte_view(into)
        for number, offset in enumerate(rows.offsets()):
            begin = number * rows.size
            file.read_into(piece.offset + offset, [view[begin : begin + rows.size]])
        if self.files.header.big_endian:
            swap_bytes(into, ELEMENTS[piece.dtype].swap)
        if not direct:
            copy_slice(target, (), into)
        return True

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


class _Span:
    """The bytes of a piece from the first to the last element of a part of it."""

    def __init__(self, copy: PieceCopy) -> None:
        self.copy = copy
        piece, target = copy.piece, copy.target
        self._strides = [element_count(piece.shape[axis + 1 :]) for axis in range(len(piece.shape))]
        extents = copy.source.resolve(piece.shape).extents
        self._lengths = [extent.length for extent in extents]
        first = last = 0
        if element_count(tuple(self._lengths)):
            first = sum(extent.start * stride for extent, stride in zip(extents, self._strides, strict=True))
            last = sum((extent.end - 1) * stride for extent, stride in zip(extents, self._strides, strict=True)) + 1
        self._count = last - first
        self.begin = piece.offset + first * target.dtype.itemsize
        self.end = piece.offset + last * target.dtype.itemsize
        self._tensor: torch.Tensor | None = None
        if self._count == target.numel() and target.device.type == "cpu" and is_row_major(target):
            self._tensor = target

    def tensor(self) -> torch.Tensor:
        """Return the contiguous tensor to read into: the target, if the span contains nothing else."""
        if self._tensor is None:
            self._tensor = torch.empty(self._count, dtype=self.copy.target.dtype, device="cpu")
        return self._tensor

    def finish(self) -> None:
        """Copy the elements of the part to the target, if they are not there already."""
        if self._tensor is not None and self._tensor is not self.copy.target and self._count:
            copy_slice(self.copy.target, (), self._tensor.as_strided(self._lengths, self._strides))
        self._tensor = None


def _groups(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Split `items` into groups of about STAGED_BYTES."""
    group: list[T] = []
    total = 0
    for item in items:
        if group and total + size(item) > STAGED_BYTES:
            yield group
            group, total = [], 0
        group.append(item)
        total += size(item)
    if group:
        yield group
