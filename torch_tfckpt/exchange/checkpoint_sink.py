"""Tensors -> a TensorFlow checkpoint of version 2, one shard, sorted by name as tf.train.Saver writes it."""

from collections.abc import Mapping

import torch

from torch_tfckpt.bundle.index import key_of
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.dtypes import DataType
from torch_tfckpt.errors import DataLossError, quoted
from torch_tfckpt.exchange.publication import Publication
from torch_tfckpt.exchange.values import StoredBytes, TensorInfo, Value
from torch_tfckpt.format import crc32c
from torch_tfckpt.format.coding import decode_varint
from torch_tfckpt.format.string_tensor import encode_strings
from torch_tfckpt.format.tensor_bundle import data_filename, index_filename
from torch_tfckpt.format.tensor_slice import Shape, element_count
from torch_tfckpt.format.variant_tensor import encode_variants
from torch_tfckpt.storage.local import LOCAL


class CheckpointSink:
    """Writes `path`, a prefix."""

    format = "TensorFlow checkpoint, version 2"

    def __init__(self, path: str) -> None:
        self.path = path
        self._infos: Mapping[str, TensorInfo] = {}
        self._writer: BundleWriter | None = None
        self._nbytes = 0

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        if info.type.tensorflow is None:
            return f"TensorFlow has no type {info.type.name}"
        return None if name else "its name is empty"

    def noted_type(self, info: TensorInfo) -> bool:
        return False

    def plan(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        self._infos = tensors
        return sorted(tensors, key=key_of)

    def files(self) -> list[str]:
        return [data_filename(self.path, 0, 1), index_filename(self.path)]

    def open(self, publication: Publication) -> None:
        self._writer = BundleWriter(LOCAL, self.path)
        publication.first(self._writer.finish)

    def write(self, values: Mapping[str, Value]) -> None:
        assert self._writer is not None, "not open"
        for name, value in values.items():
            dtype = self._infos[name].type.tensorflow
            assert dtype is not None, "refused before"
            if isinstance(value, torch.Tensor):
                self._writer.add(name, value, dtype=dtype)
                self._nbytes += value.numel() * value.dtype.itemsize
            else:
                stored, checksum, shape = _stored(name, value)
                self._writer.add_stored(name, dtype, shape, stored, checksum)
                self._nbytes += len(stored)

    def finish(self) -> int:
        return self._nbytes

    def close(self) -> None:
        if self._writer is not None:
            self._writer.abandon()


def _stored(name: str, value: Value) -> tuple[bytes, int, Shape]:
    """The bytes of a value that is no tensor, the masked checksum that belongs to them, and its shape."""
    if not isinstance(value, StoredBytes):
        assert not isinstance(value, torch.Tensor)
        return *encode_strings(list(value.reshape(-1))), value.shape
    if value.dtype != DataType.DT_VARIANT:
        return value.data, crc32c.mask(crc32c.value(value.data)), value.shape
    stored, checksum = encode_variants(_messages(name, value))
    if stored != value.data:
        raise DataLossError(f"tensor {quoted(name)}: its variants do not agree with their own checksums")
    return stored, checksum, value.shape


def _messages(name: str, value: StoredBytes) -> list[bytes]:
    """The messages in the stored bytes of a variant tensor."""
    messages: list[bytes] = []
    at = 0
    for _ in range(element_count(value.shape)):
        size, at = decode_varint(value.data, at)
        if size > len(value.data) - at:
            raise DataLossError(f"tensor {quoted(name)}: a variant of {size} bytes in {len(value.data)}")
        messages.append(value.data[at : at + size])
        at += size + 4  # behind the message lies its checksum
    return messages
