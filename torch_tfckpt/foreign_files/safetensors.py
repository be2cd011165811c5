"""Read and write .safetensors files tensor by tensor: one file, or several with an index.

    model.safetensors                       everything in one file
    model-00001-of-00003.safetensors ...    with a maximum size, if it does not fit into one
    model.safetensors.index.json            {"metadata": {"total_size": N}, "weight_map": {name: file}}

Files are read at offsets, not mapped: mapped pages count as memory of the process, and a conversion should stay small.

Source: huggingface_hub/serialization/_base.py (split_state_dict_into_shards_factory), _torch.py (the index).
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch

from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    UnimplementedError,
    error_context,
)
from torch_tfckpt.foreign_files.identity import IDENTITY_KEY, IDENTITY_SIZE, identity_of
from torch_tfckpt.foreign_files.publishing import SHARD_ENDING, publish_files, publish_shards
from torch_tfckpt.foreign_files.safetensors_format import (
    DTYPES,
    METADATA_KEY,
    WORDS,
    HeaderEntry,
    header_size,
    identity_in,
    lay_out,
    parse_header,
    unique,
)
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo
from torch_tfckpt.foreign_files.zip_archive import name_fault
from torch_tfckpt.format import crc32c
from torch_tfckpt.storage.journal import JOURNAL_SUFFIX, read_journal
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import ReadableFile, WritableFile
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.storage.small_files import read_small
from torch_tfckpt.text import printable, quoted, shortened
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.transfer.pipeline import Pipeline, ReadRequest, WriteRequest
from torch_tfckpt.values import new_tensor

INDEX_SUFFIX: Final = ".safetensors.index.json"
MAX_INDEX_BYTES: Final = 256 * 1024 * 1024  # a million names of 200 bytes
_UNKNOWN: Final = "0" * IDENTITY_SIZE  # in the place of the identity until all tensors are written


class SafetensorsSource:
    """The tensors of one or several .safetensors files.

    Raises:
        NotFoundError: a file is missing.
        DataLossError: the header of a file is not valid.

    Cost: opening reads each header; one open file descriptor per file.
    """

    format = "safetensors"
    object_names: None = None

    def __init__(self, path: str, shards: Iterable[str], listing: str | None = None) -> None:
        self.path = path
        self.skipped: dict[str, str] = {}
        self._listing = listing
        self._files: list[ReadableFile] = []
        self._placed: dict[str, tuple[ReadableFile, HeaderEntry]] = {}
        self._damaged: dict[str, CheckpointError] = {}  # tensors that an index lists but that are missing
        self._identities: dict[str, str | None] = {}  # of each file, by its path
        self._pipeline = Pipeline()
        try:
            for shard in shards:
                self._add(shard)
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_file(cls, path: str) -> Self:
        return cls(path, [path])

    @classmethod
    def of_index(cls, path: str, written: str | None = None) -> Self:
        """Open the files that an index (`*.safetensors.index.json`) names.

        A tensor whose file is missing or damaged, or does not contain it, raises when it is requested.

        Args:
            written: Path of the index if it has not got its final name yet.

        Raises:
            NotFoundError, DataLossError: this is the case for all tensors.
            DataLossError: the files are from two conversions.
        """
        weight_map, identity = _read_index(written or path)
        directory = os.path.dirname(path)
        source = cls(path.removesuffix(".index.json"), [], path)
        try:
            unreadable: dict[str, CheckpointError] = {}
            for shard in dict.fromkeys(weight_map.values()):
                try:
                    source._add(os.path.join(directory, shard))
                except (NotFoundError, DataLossError) as error:
                    unreadable[shard] = error
            for name, shard in weight_map.items():
                if name not in source._placed or os.path.basename(source._placed[name][0].path) != shard:
                    absent = DataLossError(f"{printable(path)}: tensor {quoted(name)} is not in {quoted(shard)}")
                    source._damaged[name] = unreadable.get(shard, absent)
            if source._damaged and len(source._damaged) == len(weight_map):
                raise next(iter(source._damaged.values()))
            source._check_identities(path, identity)
        except BaseException:
            source.close()
            raise
        for name in source._placed.keys() - (weight_map.keys() - source._damaged.keys()):
            del source._placed[name]
            if name not in weight_map:
                source.skipped[name] = "in a shard, but not in the index"
        return source

    def _add(self, path: str) -> None:
        file = LOCAL.open(path)
        self._files.append(file)
        with error_context(printable(path)):
            size = header_size(file.read(0, min(8, file.size)), file.size)
            header = file.read(8, size)
            placed = parse_header(header, file.size)
            self._identities[path] = identity_in(header)
            for name in placed.keys() & self._placed.keys():
                raise DataLossError(f"tensor {quoted(name)} is also in {quoted(self._placed[name][0].path)}")
        self._placed.update((name, (file, entry)) for name, entry in placed.items())

    def _check_identities(self, path: str, identity: str | None) -> None:
        """Raise DataLossError unless all files are from the conversion that wrote the index."""
        for shard, found in self._identities.items():
            first, expected = next(iter(self._identities.items())) if identity is None else (path, identity)
            if found != expected:
                raise DataLossError(
                    f"{printable(first)} and {printable(shard)} are from two conversions (identities "
                    f"{quoted(expected or 'none')} and {quoted(found or 'none')}). Convert again"
                )

    def identity(self) -> str | None:
        return next(iter(self._identities.values()), None)

    def names(self) -> list[str]:
        return [*self._placed, *self._damaged]

    def _find(self, name: str) -> tuple[ReadableFile, HeaderEntry]:
        """Return the file of a tensor; raise NotFoundError or DataLossError if it is missing."""
        if name in self._damaged:
            error = self._damaged[name]
            raise type(error)(str(error)) from error
        return self._placed[name]

    def info(self, name: str) -> TensorInfo:
        placed = self._find(name)[1]
        dtype = DTYPES.get(placed.word)
        if dtype is None:
            return TensorInfo(ElementType(None, None), placed.shape, placed.nbytes)
        return TensorInfo(ElementType.of_torch(dtype), placed.shape, placed.nbytes)

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        values: dict[str, FileValue] = {}
        requests: list[ReadRequest] = []
        for name in names:
            file, placed = self._find(name)
            dtype = DTYPES.get(placed.word)
            if dtype is None:
                raise UnimplementedError(
                    f"{printable(file.path)}: tensor {quoted(name)}: dtype {quoted(placed.word)} is not supported"
                )
            tensor = new_tensor(name, placed.shape, dtype)
            requests.append(ReadRequest(file, placed.offset, byte_view(tensor)))
            values[name] = tensor
        self._pipeline.fill(requests)
        return values

    def files(self) -> list[str]:
        return [file.path for file in self._files] + ([] if self._listing is None else [self._listing])

    def data_bytes(self) -> int:
        return sum(file.size for file in self._files)

    def close(self) -> None:
        self._pipeline.close()
        for file in self._files:
            file.close()


def find_in_directory(directory: str) -> str | None:
    """Return the index or the only .safetensors file of a directory; None if there are none or several."""
    names = LOCAL.list(directory)
    for name in [each for each in names if each.endswith(f".safetensors{JOURNAL_SUFFIX}")]:
        journal = read_journal(LOCAL, os.path.join(directory, name))
        if journal is not None:  # as if the files had their final names
            names = sorted({*names, *journal.files} - {*journal.removed})
    for suffix in (INDEX_SUFFIX, ".safetensors"):
        found = [name for name in names if name.endswith(suffix)]
        if len(found) > 1:  # shards without their index, such as those of a killed conversion, cannot be meant
            found = [name for name in found if SHARD_ENDING.search(name) is None]
        if len(found) == 1:
            return os.path.join(directory, found[0])
    return None


def shards_of_index(path: str) -> list[str]:
    """Return the files named in an index that have names of shards; an empty list if it cannot be read."""
    try:
        weight_map, _ = _read_index(path)
    except (DataLossError, LookupError):
        return []
    stem = os.path.basename(path).removesuffix(INDEX_SUFFIX)
    return [
        shard for shard in dict.fromkeys(weight_map.values())
        if shard.startswith(stem) and SHARD_ENDING.fullmatch(shard[len(stem) :])
    ]  # fmt: skip


def _read_index(path: str) -> tuple[dict[str, str], str | None]:
    """Return the file of each tensor, and the identity of the files."""
    text = read_small(LOCAL, path, MAX_INDEX_BYTES, "an index of shards")
    with error_context(printable(path)):
        return _decode_index(text)


def _decode_index(text: bytes) -> tuple[dict[str, str], str | None]:
    try:
        content: Any = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"not an index of shards: {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise DataLossError('not an index of shards: it has no object "weight_map"')
    for name, shard in weight_map.items():
        # A plain file name only: an index must not refer to files outside its directory.
        if not isinstance(shard, str) or "/" in shard or shard == "." or name_fault(shard) is not None:
            raise DataLossError(f"tensor {quoted(name)}: its shard {shortened(shard)} is not a plain file name")
    identity = content.get(IDENTITY_KEY)
    return weight_map, identity if isinstance(identity, str) else None


_UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes in a size such as "5GB", in decimal units like Hugging Face; a plain number is bytes."""
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS.get((match[2] or "").upper(), 1)) if match else 0
    if size < 1:
        raise InvalidArgumentError(f"size {quoted(text)}: expected a number of KB, MB, GB or TB, such as 5GB")
    return size


def split(sizes: Mapping[str, int], max_shard_size: int | None) -> list[list[str]]:
    """Divide the names among shards, greedily and in order; a tensor larger than a shard gets its own."""
    shards: list[list[str]] = []
    current: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if max_shard_size is not None and size > max_shard_size:
            shards.append([name])
            continue
        if max_shard_size is not None and filled + size > max_shard_size:
            shards.append(current)
            current, filled = [], 0
        current.append(name)
        filled += size
    return [*shards, current] if current or not shards else shards


class SafetensorsSink:
    """Writes `path` (`*.safetensors`), or several files in its place.

    Args:
        max_shard_size: Maximum bytes of tensors per file; None writes one file.
    """

    format = "safetensors"

    def __init__(self, path: str, max_shard_size: int | None = None) -> None:
        self.path = path
        self._max_shard_size = max_shard_size
        self._shards: list[_ShardFile] = []
        self._shard_of: dict[str, _ShardFile] = {}
        self._publication: Publication | None = None
        self._pipeline = Pipeline()
        self._sums: dict[str, int] | None = None  # name -> checksum, if the files get an identity
        self._written: dict[str, str] = {}  # path -> temporary path

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        if info.type.dtype not in WORDS:
            return f"safetensors has no type {info.type.name}"
        if name == METADATA_KEY:
            return "safetensors reserves this name"
        return None if name.encode(errors="ignore").decode() == name else "its name is not UTF-8"

    def noted_type(self, info: TensorInfo) -> bool:
        return not info.type.is_plain and info.type.tensorflow is not None

    def plan(self, tensors: Mapping[str, TensorInfo], *, sidecar: bool = False) -> list[str]:
        shards = split({name: info.nbytes for name, info in tensors.items()}, self._max_shard_size)
        stem = self.path.removesuffix(".safetensors")
        # A single file without a sidecar has the bytes that the safetensors library writes.
        self._sums = {} if sidecar or len(shards) > 1 else None
        unknown = None if self._sums is None else _UNKNOWN
        for number, names in enumerate(shards, 1):
            path = self.path if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
            held = {name: (dtype, tensors[name].shape) for name in names if (dtype := tensors[name].type.dtype)}
            self._shards.append(_ShardFile(path, *lay_out(held, unknown)))
        self._shard_of = {name: shard for shard in self._shards for name in shard.tensors}
        return list(self._shard_of)

    def files(self) -> list[str]:
        paths = [shard.path for shard in self._shards]
        return paths if len(paths) == 1 else [*paths, self._index_path]

    def replaced(self) -> list[str]:
        # Loaders would prefer an old single file to a new index.
        return sorted({self.path, self._index_path, *self._current_shards()} - set(self.files()))

    def _current_shards(self) -> list[str]:
        return [os.path.join(os.path.dirname(self.path), name) for name in shards_of_index(self._index_path)]

    def open(self, publication: Publication) -> None:
        self._publication = publication
        publication.rename_with(self._publish)
        for path in self.replaced():
            publication.drop(path)

    def _publish(self, files: Mapping[str, str], dropped: Sequence[str], committed: Callable[[], object]) -> None:
        if len(self._shards) == 1:
            with LOCAL.exclusive(os.path.dirname(self.path)):  # another conversion may have published shards since
                publish_files(self.path, files, {*dropped, *self.replaced()}, committed)
            return
        shards = [(shard.path, files[shard.path]) for shard in self._shards]
        paths = publish_shards(
            self.path,
            self._index_path,
            shards,
            {path: temporary for path, temporary in files.items() if path not in dict(shards)},
            dropped,
            committed,
            identity=self._known_identity(),
            encode_index=self._encode_index,
            used_by=self._current_shards,
        )
        for shard, path in zip(self._shards, paths, strict=True):
            shard.path = path

    def write(self, values: Mapping[str, FileValue]) -> None:
        requests = []
        shard = None
        for name, value in values.items():
            assert isinstance(value, torch.Tensor), "refused before"
            shard = self._shard_of[name]
            view = byte_view(value)
            requests.append(WriteRequest(self._output(shard), shard.tensors[name].offset, view))
            if self._sums is not None:
                self._sums[name] = crc32c.value(view)
        self._pipeline.write(requests)
        for done in self._shards:
            if done is not shard:  # complete, since values come in the order of `plan`; this limits the open files
                done.close()

    def finish(self) -> int:
        for shard in self._shards:
            self._output(shard)  # creates the file even if it has no tensors
        if len(self._shards) > 1:
            index = LOCAL.create(self._place(self._index_path))
            index.write(0, [self._encode_index([os.path.basename(shard.path) for shard in self._shards])])
            index.close()
        self.close()
        if self._sums is not None:
            for shard in self._shards:
                self._write_identity(shard)
        return sum(shard.nbytes for shard in self._shards)

    def identity(self) -> str | None:
        return None if self._sums is None else self._known_identity()

    def _known_identity(self) -> str:
        assert self._sums is not None, "the files have none"
        kinds = {name: shard.tensors[name] for name, shard in self._shard_of.items()}
        return identity_of(
            f"{checksum} {kinds[name].word} {list(kinds[name].shape)} {name}" for name, checksum in self._sums.items()
        )

    def _write_identity(self, shard: "_ShardFile") -> None:
        before, after = (f'"{IDENTITY_KEY}":"{identity}"'.encode() for identity in (_UNKNOWN, self._known_identity()))
        with Path(self._written[shard.path]).open("r+b") as file:
            file.seek(shard.head.index(before))  # the metadata comes first
            file.write(after)

    def close(self) -> None:
        self._pipeline.close()
        for shard in self._shards:
            shard.close()

    def _output(self, shard: "_ShardFile") -> WritableFile:
        if shard.file is None:
            shard.file = LOCAL.create(self._place(shard.path))
            shard.file.write(0, [shard.head])
        return shard.file

    def _place(self, path: str) -> str:
        assert self._publication is not None, "not open"
        self._written[path] = self._publication.place(path)
        return self._written[path]

    @property
    def _index_path(self) -> str:
        return f"{self.path}.index.json"

    def _encode_index(self, shards: Sequence[str]) -> bytes:
        names = {id(shard): name for shard, name in zip(self._shards, shards, strict=True)}
        weight_map = {name: names[id(shard)] for name, shard in self._shard_of.items()}
        total = sum(placed.nbytes for shard in self._shards for placed in shard.tensors.values())
        index = {"metadata": {"total_size": total}, IDENTITY_KEY: self._known_identity(), "weight_map": weight_map}
        return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


@dataclass(slots=True)
class _ShardFile:
    """One file to write: its layout, and the open file once writing has begun."""

    path: str
    head: bytes
    tensors: dict[str, HeaderEntry]
    file: WritableFile | None = None

    @property
    def nbytes(self) -> int:
        return len(self.head) + sum(placed.nbytes for placed in self.tensors.values())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
