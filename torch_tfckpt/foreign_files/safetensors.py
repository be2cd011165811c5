"""Read .safetensors files tensor by tensor: one file, or several with an index.

    model.safetensors                       everything in one file
    model-00001-of-00003.safetensors ...    if there is a maximum size and one file would exceed it
    model.safetensors.index.json            {"metadata": {"total_size": N}, "weight_map": {name: file}}

Files are read at offsets, not mapped: mapped pages count as memory of the process, and a conversion should use
little memory.

Source: huggingface_hub/serialization/_base.py (split_state_dict_into_shards_factory), _torch.py (the index).
"""

import json
import os
from collections.abc import Iterable
from typing import Any, Final, Self

from torch_tfckpt.errors import (
    CheckpointError,
    DataLossError,
    NotFoundError,
    UnimplementedError,
    error_context,
)
from torch_tfckpt.foreign_files.identity import IDENTITY_KEY
from torch_tfckpt.foreign_files.publishing import SHARD_ENDING
from torch_tfckpt.foreign_files.safetensors_format import (
    DTYPES,
    HeaderEntry,
    header_size,
    identity_in,
    parse_header,
    unique,
)
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo
from torch_tfckpt.storage.journal import JOURNAL_SUFFIX, read_journal
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.storage.small_files import read_small
from torch_tfckpt.storage.zip_archive import name_fault
from torch_tfckpt.text import printable, quoted, shortened
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.transfer.pipeline import Pipeline, ReadRequest
from torch_tfckpt.values import new_tensor

INDEX_SUFFIX: Final = ".safetensors.index.json"
MAX_INDEX_BYTES: Final = 256 * 1024 * 1024  # a million names of 200 bytes


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
        self._identities: dict[str, str | None] = {}  # path of a file -> its identity
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

        If the file of a tensor is missing or damaged, or does not contain the tensor, requesting the tensor raises an
        error.

        Args:
            written: Path of the index if it does not have its final name yet.

        Raises:
            NotFoundError, DataLossError: the index, or every tensor in it, cannot be read.
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
    """Return the only index in a directory, or else its only .safetensors file; None if neither exists."""
    names = LOCAL.list(directory)
    for name in [each for each in names if each.endswith(f".safetensors{JOURNAL_SUFFIX}")]:
        journal = read_journal(LOCAL, os.path.join(directory, name))
        if journal is not None:  # list the files as if they already had their final names
            names = sorted({*names, *journal.files} - {*journal.removed})
    for suffix in (INDEX_SUFFIX, ".safetensors"):
        found = [name for name in names if name.endswith(suffix)]
        if len(found) > 1:  # shards without their index, such as those of a killed conversion, do not count
            found = [name for name in found if SHARD_ENDING.search(name) is None]
        if len(found) == 1:
            return os.path.join(directory, found[0])
    return None


def shards_of_index(path: str) -> list[str]:
    """Return the files in an index whose names look like shard names; [] if the index cannot be read."""
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
