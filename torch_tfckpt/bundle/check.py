"""Verification of a stored version 2 checkpoint: every block of the index, every byte of every tensor.

`Verification` is the result, for both file versions. At most one chunk per thread is in memory. A damaged tensor does
not end the check: the list of undamaged tensors is part of the result.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.bundle.index import overlapping
from torch_tfckpt.errors import CheckpointError, DataLossError, NotFoundError, UnimplementedError
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_bundle import BundleEntry
from torch_tfckpt.text import counted, listed, printable, quoted
from torch_tfckpt.transfer.pipeline import Pipeline, SumRequest
from torch_tfckpt.values import check_stored_bytes, fixed_size

_NO_DATA_FILE: Final = "the data file"  # first words of a problem that affects all tensors of a file
_LISTED: Final = 5  # maximum number of tensors of such a file to list


class Damage(NamedTuple):
    """One damaged part of a checkpoint.

    Attributes:
        name: The damaged tensor; "" if the file as a whole is damaged.
        file: The file with the damage.
        start: Offset of the first damaged byte in the file.
        end: Offset of the byte after the last damaged byte.
        problem: What is wrong.
        stored: Masked checksum in the index; None if the damage was not found by a checksum.
        computed: Masked checksum of the bytes in the file, or None.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt")
        >>> with open("model.ckpt.data-00000-of-00001", "r+b") as data:
        ...     _ = data.write(b"?")
        >>> [damage] = tfckpt.verify(prefix).damage
        >>> damage.name, damage.file, damage.start, damage.end
        ('w', 'model.ckpt.data-00000-of-00001', 0, 8)
    """

    name: str
    file: str
    start: int
    end: int
    problem: str
    stored: int | None = None
    computed: int | None = None

    def __str__(self) -> str:
        tensor = f"tensor {quoted(self.name)}: " if self.name else ""
        return f"{printable(self.file)}, bytes {self.start}:{self.end}: {tensor}{self.problem}"


class Verification(NamedTuple):
    """Result of verifying a checkpoint. `print(verification)` shows it as `tfckpt verify` does.

    Attributes:
        good: Names of the tensors whose bytes all match their checksums.
        damage: The damaged parts; empty if the checkpoint is undamaged.
        path: The checkpoint, if `verify` found it; otherwise "".
        has_checksums: False for an HDF5 file of Keras: only its structure was checked, not the values.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt-1")
        >>> found = tfckpt.verify(prefix)
        >>> found.ok, found.good, found.damaged
        (True, ['w'], [])
    """

    good: list[str]
    damage: list[Damage]
    path: str = ""
    has_checksums: bool = True

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    @property
    def damaged(self) -> list[str]:
        """Names of the damaged tensors, in order of appearance."""
        return list(dict.fromkeys(damage.name for damage in self.damage if damage.name))

    def __str__(self) -> str:
        bad, good = len(self.damaged), len(self.good)
        if self.ok:
            unchecked = "" if self.has_checksums else "; HDF5 has no checksums, so the values were not checked"
            summary = f"no damage found: {counted(good, 'tensor')}{unchecked}"
        elif bad:
            summary = f"damaged: {bad} of {counted(bad + good, 'tensor')}; good: {good}"
        else:
            summary = f"the index is damaged; {counted(good, 'tensor')} that it still lists can be read"
        return "\n".join([*self._lines(), summary])

    def _lines(self) -> Iterator[str]:
        """Yield one line per damaged part, but only one for all tensors of a data file that cannot be read at all."""
        lost: dict[tuple[str, str], list[str]] = {}
        for damage in self.damage:
            if damage.problem.startswith(_NO_DATA_FILE):
                lost.setdefault((damage.file, damage.problem), []).append(damage.name)
        for damage in self.damage:
            if not damage.problem.startswith(_NO_DATA_FILE):
                yield str(damage)
            elif names := dict.fromkeys(lost.pop((damage.file, damage.problem), ())):
                tensors = f"{counted(len(names), 'tensor')}: {listed(list(names), _LISTED)}"
                yield f"{printable(damage.file)}: {damage.problem}; it has {tensors}"


# Progress is reported, and read errors are detected, once per this many bytes.
_BATCH_BYTES: Final = 256 * 1024 * 1024


class _StoredPiece(NamedTuple):
    name: str
    entry: BundleEntry


class OpenBundle(Protocol):
    """The part of BundleReader that a check uses."""

    files: BundleFiles

    @property
    def pipeline(self) -> Pipeline: ...

    def undamaged_keys(self) -> tuple[list[str], list[str]]: ...

    def pieces(self, name: str) -> list[BundleEntry]: ...


def check_bundle(reader: OpenBundle, progress: Callable[[int], object] | None = None) -> Verification:
    """Read and verify the whole checkpoint.

    Args:
        progress: Called with the number of bytes checked since the last call.

    Cost: every stored byte is read once; memory for one chunk per thread, or for one string tensor.
    """
    damage = list(_check_index(reader))
    names, _ = reader.undamaged_keys()  # `damage` already contains the damage to the index itself
    pieces: list[_StoredPiece] = []
    for name in names:
        try:
            pieces += [_StoredPiece(name, entry) for entry in reader.pieces(name)]
        except (DataLossError, UnimplementedError) as error:
            damage.append(Damage(name, reader.files.index.path, 0, reader.files.index.size, str(error)))
    pieces.sort(key=lambda piece: (piece.entry.shard, piece.entry.offset))
    for one, other in overlapping(pieces):
        for (name, entry), (neighbour, _) in ((one, other), (other, one)):
            path = reader.files.shard_path(entry.shard)
            damage.append(Damage(name, path, entry.offset, entry.end, f"shares bytes with tensor {quoted(neighbour)}"))
    plain: list[_StoredPiece] = []
    for piece in pieces:
        found = _check_place(reader, piece)
        if found is not None:
            damage.append(found)
        elif DataType(piece.entry.dtype) in (DataType.DT_STRING, DataType.DT_VARIANT):
            damage += _check_encoded(reader, piece)
            if progress:
                progress(piece.entry.size)
        else:
            plain.append(piece)
    for batch in _batches(plain):
        damage += _check_sums(reader, batch)
        if progress:
            progress(sum(piece.entry.size for piece in batch))
    damaged = {found.name for found in damage}
    return Verification([name for name in names if name not in damaged], damage)


def _check_index(reader: OpenBundle) -> Iterator[Damage]:
    index = reader.files.index
    try:
        reader.files.table.check_structure()
    except DataLossError as error:
        yield Damage("", index.path, 0, index.size, str(error))


def _check_place(reader: OpenBundle, piece: _StoredPiece) -> Damage | None:
    """Return the damage if the size is wrong, or the data file is missing, unreadable or too short."""
    name, entry = piece
    path = reader.files.shard_path(entry.shard)
    expected = fixed_size(entry)
    if expected is not None and entry.size != expected:
        problem = f"Invalid size in bundle entry: {entry.size} bytes stored, but dtype and shape need {expected}"
        return Damage(name, path, entry.offset, entry.end, problem)
    try:
        file = reader.files.shard(entry.shard)
    except NotFoundError:
        return Damage(name, path, entry.offset, entry.end, f"{_NO_DATA_FILE} is missing")
    except CheckpointError as error:
        return Damage(name, path, entry.offset, entry.end, f"{_NO_DATA_FILE} cannot be read: {error}")
    if entry.end > file.size:
        return Damage(name, path, entry.offset, entry.end, f"the file ends at byte {file.size}")
    return None


def _check_encoded(reader: OpenBundle, piece: _StoredPiece) -> Iterator[Damage]:
    """Check strings and variants, whose checksums cover a decoded form."""
    name, entry = piece
    file = reader.files.shard(entry.shard)
    try:
        stored = file.read(entry.offset, entry.size)
        check_stored_bytes(entry, stored, big_endian=reader.files.header.big_endian)
    except CheckpointError as error:
        yield Damage(name, file.path, entry.offset, entry.end, str(error))


def _check_sums(reader: OpenBundle, batch: list[_StoredPiece]) -> Iterator[Damage]:
    shard = reader.files.shard
    requests = [SumRequest(shard(entry.shard), entry.offset, entry.size) for _, entry in batch]
    try:
        sums = reader.pipeline.checksums(requests)
    except CheckpointError as error:
        if len(batch) > 1:  # retry one by one, to find the damaged pieces
            for piece in batch:
                yield from _check_sums(reader, [piece])
        else:
            [(name, entry)] = batch
            yield Damage(name, requests[0].file.path, entry.offset, entry.end, str(error))
        return
    for (name, entry), request, computed in zip(batch, requests, sums, strict=True):
        masked = crc32c.mask(computed)
        if masked != entry.checksum:
            problem = f"Checksum does not match: stored {entry.checksum:#010x}, computed {masked:#010x}"
            yield Damage(name, request.file.path, entry.offset, entry.end, problem, entry.checksum, masked)


def _batches(pieces: list[_StoredPiece]) -> Iterator[list[_StoredPiece]]:
    batch: list[_StoredPiece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.entry.size
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
