"""TensorFlow checkpoints as a conversion format: every version can be read, version 2 is written.

A checkpoint is written with one data file and its tensors sorted by name, as by tf.train.Saver.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from functools import cached_property

import torch

from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.bundle.index import key_of, name_of
from torch_tfckpt.bundle.unfinished import data_files_of
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError
from torch_tfckpt.foreign_files.identity import identity_of_sums
from torch_tfckpt.foreign_files.values import ElementType, FileValue, StoredBytes, TensorInfo
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.coding import decode_varint
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.string_tensor import encode_strings
from torch_tfckpt.format.tensor_bundle import BundleEntry, data_filename, index_filename
from torch_tfckpt.format.tensor_names import TensorNames
from torch_tfckpt.format.tensor_slice import Shape, element_count
from torch_tfckpt.format.variant_tensor import encode_variants
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import quoted
from torch_tfckpt.transfer.host_bytes import row_major_pieces

_log = logging.getLogger(__name__)


class CheckpointSource:
    """The tensors of a checkpoint, with their slices joined, or of a file of Keras. Raises like CheckpointReader."""

    def __init__(self, path: str) -> None:
        self.reader = CheckpointReader(path)
        self.path = self.reader.files.prefix
        keras = self.reader.keras
        self.format = f"TensorFlow checkpoint, version {self.reader.version}" if keras is None else keras.format
        self.skipped = {} if keras is None else dict(keras.skipped)
        self._types: dict[DataType, ElementType] = {}

    @cached_property
    def object_names(self) -> TensorNames | None:
        try:
            graph = self.reader.object_graph
        except CheckpointError as error:
            _log.warning("variable names are unknown: %s", error)
            return None
        # If the index is damaged, at least the tensors that it still lists get their other names.
        return None if graph is None else TensorNames(graph, self.reader.undamaged_keys()[0])

    def names(self) -> list[str]:
        return self.reader.keys()

    def info(self, name: str) -> TensorInfo:
        parts = len(self.reader.slices(name))
        return TensorInfo(self._type(name), self.reader.shape(name), self.reader.nbytes(name), parts)

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        wanted = list(names)
        kinds = {name: self._type(name) for name in wanted}
        plain = [name for name, kind in kinds.items() if kind.dtype is not None or kind.is_string]
        try:
            values: dict[str, FileValue] = {**self.reader.get_tensors(plain)}
            for name in kinds.keys() - values.keys():
                data = self.reader.get_stored_bytes(name)
                values[name] = StoredBytes(self.reader.dtype(name), self.reader.shape(name), data)
        except InvalidArgumentError as error:
            # The names come from the checkpoint itself, so the file is invalid: for example, its slices leave gaps.
            raise DataLossError(str(error)) from error
        return {name: values[name] for name in wanted}

    def _type(self, name: str) -> ElementType:
        dtype = self.reader.dtype(name)
        kind = self._types.get(dtype)
        if kind is None:
            kind = self._types[dtype] = ElementType.of_tensorflow(dtype)
        return kind

    def files(self) -> list[str]:
        files = self.reader.files
        return [index_filename(files.prefix), *self._data_files()] if files.version == 2 else list(files.paths)

    def missing_files(self) -> dict[str, int]:
        """Return the missing data files with the number of tensors that are stored in each."""
        missing: Counter[str] = Counter()
        exist: dict[str, bool] = {}
        for name in self.reader.undamaged_keys()[0]:
            with suppress(CheckpointError):  # damaged entries are reported when the tensors are listed
                for path in dict.fromkeys(self.reader.locate(name)):
                    if path not in exist:
                        exist[path] = self.reader.storage.exists(path)
                    missing[path] += not exist[path]
        return dict(sorted((+missing).items()))

    def data_bytes(self) -> int:
        return sum(_size(path) for path in self._data_files())

    def _data_files(self) -> list[str]:
        files = self.reader.files
        return data_files_of(LOCAL, files.prefix) if files.version == 2 else list(files.paths)

    def identity(self) -> str | None:
        if self.reader.version != 2:
            return None
        with closing(BundleFiles(LOCAL, self.reader.files.prefix)) as files:
            entries = ((name_of(key), BundleEntry.decode(value)) for key, value in files.table.items(start=b"\0"))
            return identity_of_sums({name: entry.checksum for name, entry in entries})

    def close(self) -> None:
        self.reader.close()


def _size(path: str) -> int:
    file = LOCAL.open(path)
    file.close()
    return file.size


class CheckpointSink:
    """Writes a checkpoint under the prefix `path`."""

    format = "TensorFlow checkpoint, version 2"

    def __init__(self, path: str) -> None:
        self.path = path
        self._infos: Mapping[str, TensorInfo] = {}
        self._writer: BundleWriter | None = None
        self._summed = False  # whether there will be a sidecar
        self._nbytes = 0
        self._sums: dict[str, int] = {}

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        if info.type.tensorflow is None:
            return f"TensorFlow has no type {info.type.name}"
        return None if name else "its name is empty"

    def noted_type(self, info: TensorInfo) -> bool:
        return False

    def plan(self, tensors: Mapping[str, TensorInfo], *, sidecar: bool = False) -> list[str]:
        self._infos, self._summed = tensors, sidecar
        return sorted(tensors, key=key_of)

    def files(self) -> list[str]:
        return [data_filename(self.path, 0, 1), index_filename(self.path)]

    def replaced(self) -> list[str]:
        return [path for path in data_files_of(LOCAL, self.path) if path not in self.files()]

    def open(self, publication: Publication) -> None:
        self._writer = BundleWriter(LOCAL, self.path)
        publication.first(self._writer.finish)

    def write(self, values: Mapping[str, FileValue]) -> None:
        assert self._writer is not None, "not open"
        for name, value in values.items():
            dtype = self._infos[name].type.tensorflow
            assert dtype is not None, "refused before"
            if isinstance(value, torch.Tensor):
                self._writer.add(name, value, dtype=dtype)
                self._nbytes += value.numel() * value.dtype.itemsize
                if self._summed:
                    self._sums[name] = crc32c.mask(_sum_of(value))
            else:
                stored, checksum, shape = _stored(name, value)
                self._writer.add_stored(name, dtype, shape, stored, checksum)
                self._nbytes += len(stored)
                self._sums[name] = checksum

    def finish(self) -> int:
        return self._nbytes

    def identity(self) -> str | None:
        return identity_of_sums(self._sums)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.abandon()


def _sum_of(tensor: torch.Tensor) -> int:
    """Return the CRC-32C of the elements of a tensor in host memory, in row-major order."""
    crc = 0
    for piece in row_major_pieces(tensor):
        crc = crc32c.extend(crc, piece)
    return crc


def _stored(name: str, value: FileValue) -> tuple[bytes, int, Shape]:
    """Return the bytes of a value that is not a tensor, their masked checksum, and the shape."""
    if not isinstance(value, StoredBytes):
        assert not isinstance(value, torch.Tensor)
        return *encode_strings(list(value.reshape(-1))), value.shape
    if value.dtype != DataType.DT_VARIANT:
        return value.data, crc32c.mask(crc32c.value(value.data)), value.shape
    stored, checksum = encode_variants(_messages(name, value))
    if stored != value.data:
        raise DataLossError(f"tensor {quoted(name)}: its variants do not match their checksums")
    return stored, checksum, value.shape


def _messages(name: str, value: StoredBytes) -> list[bytes]:
    """Return the messages in the stored bytes of a variant tensor."""
    messages: list[bytes] = []
    at = 0
    for _ in range(element_count(value.shape)):
        size, at = decode_varint(value.data, at)
        if size > len(value.data) - at:
            raise DataLossError(
                f"tensor {quoted(name)}: a variant has {size} bytes, but only {len(value.data)} are stored"
            )
        messages.append(value.data[at : at + size])
        at += size + 4  # its checksum comes after the message
    return messages
