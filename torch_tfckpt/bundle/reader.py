"""Reader of version 2 checkpoints into host tensors.

    with BundleReader(LOCAL, "model.ckpt-1000") as reader:      # footer, index block and header are read
        kernel = reader.read("dense/kernel")                    # one block of the index, then the tensor's bytes

All files are opened together and stay open: a writer that replaces or deletes the checkpoint does not disturb an open
reader.

Source: BundleReader in tensorflow/core/util/tensor_bundle/tensor_bundle.cc. Explained in docs/formats/bundle.md.
"""

import mmap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Self, cast

import torch

from torch_tfckpt.bundle.check import Verification, check_bundle
from torch_tfckpt.bundle.files import BundleFiles, map_file
from torch_tfckpt.bundle.index import BundleIndex, NamedEntry, place_in_files
from torch_tfckpt.bundle.pieces import PieceCopy, Pieces, Run, Whole
from torch_tfckpt.bundle.planned_read import PartRequest, PlannedRead
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import DAMAGED, DataLossError, InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.partition import Part, Partition
from torch_tfckpt.format.tensor_bundle import BundleEntry, index_filename
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice, element_count
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable, quoted
from torch_tfckpt.transfer.batching import find_runs
from torch_tfckpt.transfer.collector import new_objects_only
from torch_tfckpt.transfer.host_bytes import byte_view, is_row_major
from torch_tfckpt.transfer.pipeline import Pipeline
from torch_tfckpt.values import Value, check_out, check_stored_bytes, fixed_size, new_strings, new_tensor, value_dtype

_RUNS_AT_ONCE: Final = 32  # maximum number of runs in memory at once, each with the tensors split from it


_StoredPart = tuple[Part, BundleEntry]
"""A part of the requested slice, and the stored piece that contains it."""


class BundleReader:
    """Reads the checkpoint `prefix`.

    Args:
        verify: Whether to compare the bytes read with their checksums.
        lazy: Whether to open data files only when they are first read, as for BundleFiles.

    Raises:
        NotFoundError, DataLossError, InvalidArgumentError: like BundleFiles.

    Cost: opening reads footer, index block and the first data block of the index. With up to EAGER_SHARDS data files,
    all stay open; otherwise they are opened when they are first read, and at most OPEN_AT_ONCE stay open.
    Thread safety: safe.
    """

    version = 2

    def __init__(self, storage: Storage, prefix: str, *, verify: bool = True, lazy: bool | None = None) -> None:
        self.path = printable(prefix)
        self.files = BundleFiles(storage, prefix, lazy=lazy)
        try:
            self.index = BundleIndex(self.files.table, index_filename(self.path), self.path)
            self._pieces = Pieces(self.files, self.path, verify=verify)
        except BaseException:
            self.files.close()
            raise
        self._verify = verify
        self._lock = threading.Lock()
        self._partitions: dict[str, Partition] = {}
        self._maps: dict[int, mmap.mmap] = {}

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline that reads the bytes, for checks that need no values."""
        return self._pieces.pipeline

    def keys(self) -> list[str]:
        """Return the sorted names of all tensors, each once. Reads the whole index once."""
        return self.index.names()

    def undamaged_keys(self) -> tuple[list[str], list[str]]:
        """Names of the tensors whose block of the index can be read, and the damage in the other blocks."""
        return self.index.undamaged_names()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.index

    def describe(self, name: str) -> tuple[Shape, DataType]:
        """Return the full shape and the element type of `name`; raise NotFoundError if there is no such tensor."""
        entry = self.index.described(name)
        return entry.shape, DataType(entry.dtype)

    def describe_all(self, names: Sequence[str]) -> list[tuple[Shape, DataType] | None]:
        """Return shape and element type of each name; None for names that the checkpoint does not have."""
        entries = self.index.described_all(names)
        types = {dtype: DataType(dtype) for dtype in {entry.dtype for entry in entries if entry is not None}}
        return [None if entry is None else (entry.shape, types[entry.dtype]) for entry in entries]

    def shape(self, name: str) -> Shape:
        """Return the full shape of `name`; raise NotFoundError if there is no such tensor."""
        return self.index.described(name).shape

    def dtype(self, name: str) -> DataType:
        return DataType(self.index.described(name).dtype)

    def slices(self, name: str) -> tuple[TensorSlice, ...]:
        """Return the slices that `name` is stored in; empty if it is stored whole."""
        return self.index.entry(name).slices

    def nbytes(self, name: str) -> int:
        """Return the size of the tensor's elements in bytes; for strings and variants, of their stored form."""
        size = fixed_size(self.index.described(name))
        return sum(piece.size for piece in self.pieces(name)) if size is None else size

    def locate(self, name: str) -> list[str]:
        """Return the data files that contain `name`."""
        return [self.files.shard_path(shard) for shard in dict.fromkeys(piece.shard for piece in self.pieces(name))]

    def pieces(self, name: str) -> list[BundleEntry]:
        """Return the entries that locate the bytes of `name`: its own, or one for each of its slices."""
        entry = self.index.entry(name)
        if not entry.slices:
            return [entry]
        return [self._stored_entry(name, entry, part) for part in self.partition(name, entry).stored]

    def partition(self, name: str, entry: BundleEntry) -> Partition:
        """Return the slices of `name` as a Partition; raise DataLossError if they overlap or exceed its shape."""
        partition = self._partitions.get(name)
        if partition is None:
            with error_context(index_filename(self.path), DAMAGED):
                partition = Partition(name, entry.shape, entry.slices or (TensorSlice.full(len(entry.shape)),))
            if entry.slices:
                self._partitions[name] = partition
        return partition

    def read(self, name: str, out: torch.Tensor | None = None) -> Value:
        """Read the full tensor into `out`, or into a new contiguous CPU tensor; strings as an array of bytes.

        Raises:
            NotFoundError: no such tensor, or its data file is missing.
            InvalidArgumentError: `out` has the wrong shape or dtype (it is untouched), or stored slices have gaps.
            DataLossError: a size or checksum is wrong; `out` may be partly written.
            UnimplementedError: torch has no such dtype.

        Cost: one read of the stored bytes; host memory for one stored slice in addition to the result.
        """
        return self._read(name, None, out)

    def read_slice(self, name: str, part: TensorSlice, out: torch.Tensor | None = None) -> Value:
        """Read one slice of `name`, stored whole or in slices, into `out` or a new tensor. Raises like `read`.

        Cost: the first slice of a tensor reads the whole of each stored piece that it needs, to verify the checksum,
        but keeps only the slice. Later slices read from the slice's first element to its last. Without `verify`, only
        the slice is read, unless it consists of rows of less than 256 bytes.
        """
        return self._read(name, part, out)

    def read_into(self, requests: Iterable[PartRequest]) -> None:
        """Fill several tensors, each with a slice of a stored tensor, or all of it, in one plan. Raises like `read`.

        Nothing is read if one of them has another shape or dtype. Cost as for `read_slice`; the bytes are read
        straight into CPU tensors if they are contiguous both there and in the file.
        """
        self._pieces.copy(self._plan_into(requests))

    def verify_in_place(self, requests: Iterable[PartRequest]) -> Callable[[], None] | None:
        """Verify tensors, and return a function that then fills them as `read_into` does; None if not local.

        Nothing is verified now if the reader does not verify. Raises like `read`, and so does the function.
        """
        if not self.files.are_local:
            return None
        plan = PlannedRead(self._pieces, self._plan_into(requests), verify=self._verify)
        plan.verify()
        return plan.read

    def _plan_into(self, requests: Iterable[PartRequest]) -> list[PieceCopy]:
        copies: list[PieceCopy] = []
        for name, part, out in requests:
            entry = self.index.entry(name)
            want = TensorSlice.full(len(entry.shape)) if part is None else part
            self._check_out(name, DataType(entry.dtype), want.shape_of(entry.shape), out)
            copies += _copies(name, self._parts(name, entry, want), out)
        self._pieces.check_apart(dict.fromkeys((copy.name, copy.piece) for copy in copies))
        return copies

    def read_all(self, names: Iterable[str], out: Mapping[str, torch.Tensor] | None = None) -> dict[str, Value]:
        """Read several tensors in one plan, in the order given.

        Args:
            out: Name -> tensor to fill, as for `read`, for some of the names.

        Raises like `read`, and DataLossError if two tensors overlap in a file.
        """
        wanted = list(names)
        with new_objects_only(len(wanted)):
            return self._read_all(wanted, out or {})

    def _read_all(self, names: Sequence[str], given: Mapping[str, torch.Tensor]) -> dict[str, Value]:
        result: dict[str, Value | None] = dict.fromkeys(names)
        wholes: list[NamedEntry] = []
        others: list[str] = []
        for name in result:
            entry = self.index.entry(name)
            if entry.slices or entry.dtype == DataType.DT_STRING or not _is_direct(given.get(name)):
                others.append(name)
            else:
                wholes.append((name, entry))
        self._pieces.check_apart([*wholes, *((name, piece) for name in others for piece in self.pieces(name))])
        large: list[Whole] = []
        small: list[Run] = []
        for run in self._runs(wholes):
            if len(run.pieces) > 1:
                small.append(run)
            else:
                [(name, entry)] = run.pieces
                target = given.get(name)
                if target is None:
                    target = new_tensor(name, entry.shape, run.dtype)
                else:
                    check_out(name, target, entry.shape, run.dtype)
                large.append(Whole(name, entry, target.detach()))
                result[name] = target
        for first in range(0, len(small), _RUNS_AT_ONCE):
            result.update(self._pieces.read_runs(small[first : first + _RUNS_AT_ONCE]))
        for name in given.keys() & {name for run in small for name, _ in run.pieces}:
            result[name] = given[name].copy_(cast(torch.Tensor, result[name]))
        self._pieces.transfer(large)
        result.update((name, self.read(name, given.get(name))) for name in others)
        return cast(dict[str, Value], result)

    def verify_all(self, names: Iterable[str]) -> None:
        """Read the stored bytes of several tensors and compare them with their checksums, without keeping them.

        Raises like `read_all`. Cost: memory of one chunk per thread.
        """
        pieces: list[NamedEntry] = []
        for name in dict.fromkeys(names):
            entry = self.index.entry(name)
            with error_context(self.path):
                self.partition(name, entry).parts_of(TensorSlice.full(len(entry.shape)))
            of_name = self.pieces(name)
            pieces += [(name, piece) for piece in of_name]
            for piece in of_name:
                self._pieces.check(name, piece)
            self._pieces.check_volume(name, of_name)
        self._pieces.check_apart(pieces)
        self._pieces.verify(sorted(pieces, key=place_in_files))

    def _runs(self, wholes: list[NamedEntry]) -> Iterator[Run]:
        """Yield runs of tensors to read together, in file order, after all checks except checksums."""
        wholes.sort(key=place_in_files)
        for name, entry in wholes:
            self._pieces.check(name, entry)
        for first, end in find_runs([(entry.shard, entry.offset, entry.size, entry.dtype) for _, entry in wholes]):
            name, entry = wholes[first]
            yield Run(wholes[first:end], self._torch_dtype(name, DataType(entry.dtype)))

    def read_stored(self, name: str) -> bytes:
        """Return the bytes of `name` as stored, for types that torch cannot represent.

        Raises:
            UnimplementedError: the tensor is partitioned.
            DataLossError: the checksum is wrong.
        """
        entry = self.index.entry(name)
        if entry.slices:
            raise UnimplementedError(
                f"{self.path}: tensor {quoted(name)} is stored in {len(entry.slices)} slices, not as one value. "
                "Read it with get_tensor"
            )
        file = self._pieces.check(name, entry)
        stored = file.read(entry.offset, entry.size)
        with error_context(self._pieces.place(name, entry), DAMAGED):
            check_stored_bytes(entry, stored, big_endian=self.files.header.big_endian)
        return stored

    def map_all(self, names: Iterable[str]) -> dict[str, Value]:
        """Map several tensors like `map`, after checking that they share no bytes."""
        names = list(names)
        self._pieces.check_apart([(name, piece) for name in dict.fromkeys(names) for piece in self.pieces(name)])
        return {name: self.map(name) for name in names}

    def map(self, name: str) -> Value:
        """Return the tensor as a private copy-on-write view of the file's pages. Raises like `read`.

        Values are copied as in `read` if a view is impossible: strings, partitioned tensors, big-endian data, and
        data whose offset is not a multiple of the element size. The mapping exists as long as its tensors.
        """
        entry = self.index.entry(name)
        dtype = DataType(entry.dtype)
        element = ELEMENTS.get(dtype)
        if entry.slices or element is None or not element.size or not entry.size:
            return self.read(name)
        if entry.offset % element.swap or (self.files.header.big_endian and element.swap > 1):
            return self.read(name)
        torch_dtype = self._torch_dtype(name, dtype)
        file = self._pieces.check(name, entry)
        with self._lock:
            if entry.shard not in self._maps:
                self._maps[entry.shard] = map_file(file)
            pages = self._maps[entry.shard]
        count = element_count(entry.shape)
        tensor = torch.frombuffer(pages, dtype=torch_dtype, count=count, offset=entry.offset).view(entry.shape)
        if self._verify:
            self._pieces.compare(name, entry, self.pipeline.checksum(byte_view(tensor)))
        return tensor

    def check(self, progress: Callable[[int], object] | None = None) -> Verification:
        """Read and verify the whole checkpoint, as `check_bundle` does."""
        return check_bundle(self, progress)

    def close(self) -> None:
        """Close files and threads. Tensors returned by `map` stay valid."""
        self.pipeline.close()
        self.files.close()
        self._maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, name: str, want: TensorSlice | None, out: torch.Tensor | None) -> Value:
        entry = self.index.entry(name)
        dtype = DataType(entry.dtype)
        want = TensorSlice.full(len(entry.shape)) if want is None else want
        shape = want.shape_of(entry.shape)
        if dtype == DataType.DT_STRING and out is None:
            parts = self._parts(name, entry, want)
            with error_context(self.path):
                strings = new_strings(name, shape)
            for part, piece in parts:
                strings[part.target.to_index()] = self._pieces.read_strings(name, piece)[part.source.to_index()]
            return strings
        torch_dtype = self._check_out(name, dtype, shape, out)
        parts = self._parts(name, entry, want)
        with error_context(self.path):
            result = new_tensor(name, shape, torch_dtype) if out is None else out
        self._pieces.copy(list(_copies(name, parts, result)))
        return result

    def _check_out(self, name: str, dtype: DataType, shape: Shape, out: torch.Tensor | None) -> torch.dtype:
        """Return the dtype of the values; raise InvalidArgumentError if `out` cannot receive them."""
        if dtype == DataType.DT_STRING:
            raise InvalidArgumentError(
                f"tensor {quoted(name)} contains strings, which a torch tensor cannot hold. Omit `out`"
            )
        torch_dtype = self._torch_dtype(name, dtype)
        if out is not None:
            check_out(name, out, shape, torch_dtype)
        return torch_dtype

    def _parts(self, name: str, entry: BundleEntry, want: TensorSlice) -> list[_StoredPart]:
        """Return the parts of stored pieces that make up a slice of `name`, after checking the pieces."""
        with error_context(self.path):
            partition = self.partition(name, entry)
            parts = partition.parts_of(want)
        pieces = [self._stored_entry(name, entry, partition.stored[part.number]) for part in parts]
        for piece in pieces:
            self._pieces.check(name, piece)
        self._pieces.check_volume(name, pieces)
        return list(zip(parts, pieces, strict=True))

    def _torch_dtype(self, name: str, dtype: DataType) -> torch.dtype:
        with error_context(self.path):
            return value_dtype(name, dtype)

    def _stored_entry(self, name: str, entry: BundleEntry, part: TensorSlice) -> BundleEntry:
        """Return the entry of one stored slice, checked against the tensor's entry."""
        if not entry.slices:
            return entry
        piece = self.index.slice_entry(name, part)
        if piece.dtype != entry.dtype or piece.shape != part.shape_of(entry.shape) or piece.slices:
            raise DataLossError(
                f"{index_filename(self.path)}: tensor {quoted(name)}: the entry of slice {part} differs from the "
                f"tensor in dtype or shape. {DAMAGED}"
            )
        return piece


def _copies(name: str, parts: Sequence[_StoredPart], out: torch.Tensor) -> Iterator[PieceCopy]:
    """Yield the copies of parts of stored pieces to their places in `out`."""
    target = out.detach()
    for part, piece in parts:
        yield PieceCopy(name, piece, part.source, target[part.target.to_index()])


def _is_direct(out: torch.Tensor | None) -> bool:
    """Return whether the bytes of a tensor can be read into `out` directly, or into a new tensor."""
    return out is None or (out.device.type == "cpu" and is_row_major(out))
