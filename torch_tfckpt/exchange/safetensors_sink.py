"""Tensors -> one .safetensors file, or several with an index, as Hugging Face's save_torch_model makes them.

    model.safetensors                       all of it
    model-00001-of-00003.safetensors ...    with a maximum size, where it does not fit into one
    model.safetensors.index.json            {"metadata": {"total_size": N}, "weight_map": {name: file}}

Source: huggingface_hub/serialization/_base.py (split_state_dict_into_shards_factory), _torch.py (the index).
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from torch_tfckpt.device.host_bytes import byte_view
from torch_tfckpt.device.pipeline import Pipeline, WriteRequest
from torch_tfckpt.errors import InvalidArgumentError, quoted
from torch_tfckpt.exchange.publication import Publication
from torch_tfckpt.exchange.safetensors_format import METADATA_KEY, WORDS, Placed, lay_out
from torch_tfckpt.exchange.safetensors_source import shards_of_index
from torch_tfckpt.exchange.values import TensorInfo, Value
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import WritableFile

_UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from "5GB", in decimal units as Hugging Face counts; a plain number is bytes."""
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS.get((match[2] or "").upper(), 1)) if match else 0
    if size < 1:
        raise InvalidArgumentError(f"size {quoted(text)}: expected a number of KB, MB, GB or TB, as 5GB")
    return size


def split(sizes: Mapping[str, int], max_shard_size: int | None) -> list[list[str]]:
    """The names of each shard: greedy, in order; what is larger than a shard gets one of its own."""
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
    """Writes `path` (`*.safetensors`), or the shards that stand for it.

    Args:
        max_shard_size: Bytes of tensors a file; None: one file.
    """

    format = "safetensors"

    def __init__(self, path: str, max_shard_size: int | None = None) -> None:
        self.path = path
        self._max_shard_size = max_shard_size
        self._shards: list[_Shard] = []
        self._shard_of: dict[str, _Shard] = {}
        self._publication: Publication | None = None
        self._pipeline = Pipeline()

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        if info.type.dtype not in WORDS:
            return f"safetensors has no type {info.type.name}"
        if name == METADATA_KEY:
            return "safetensors keeps this name for itself"
        return None if _is_utf8(name) else "its name is not UTF-8"

    def noted_type(self, info: TensorInfo) -> bool:
        return not info.type.is_plain and info.type.tensorflow is not None

    def plan(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        shards = split({name: info.nbytes for name, info in tensors.items()}, self._max_shard_size)
        stem = self.path.removesuffix(".safetensors")
        for number, names in enumerate(shards, 1):
            path = self.path if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
            held = {name: (dtype, tensors[name].shape) for name in names if (dtype := tensors[name].type.dtype)}
            self._shards.append(_Shard(path, *lay_out(held)))
        self._shard_of = {name: shard for shard in self._shards for name in shard.tensors}
        return list(self._shard_of)

    def files(self) -> list[str]:
        paths = [shard.path for shard in self._shards]
        return paths if len(paths) == 1 else [*paths, self._index_path]

    def open(self, publication: Publication) -> None:
        self._publication = publication
        # What an earlier target of this name consisted of: loaders prefer the single file over an index, and an index
        # over nothing.
        before = [os.path.join(os.path.dirname(self.path), name) for name in shards_of_index(self._index_path)]
        for path in {self.path, self._index_path, *before} - set(self.files()):
            publication.drop(path)

    def write(self, values: Mapping[str, Value]) -> None:
        requests = []
        shard = None
        for name, value in values.items():
            assert isinstance(value, torch.Tensor), "refused before"
            shard = self._shard_of[name]
            requests.append(WriteRequest(self._output(shard), shard.tensors[name].offset, byte_view(value)))
        self._pipeline.write(requests)
        for done in self._shards:
            if done is not shard:  # in the order of `plan` nothing more goes there; there may be more than descriptors
                done.close()

    def finish(self) -> int:
        for shard in self._shards:
            self._output(shard)  # one without any tensor is a file too
        if len(self._shards) > 1:
            index = LOCAL.create(self._place(self._index_path))
            index.write(0, [self._encode_index()])
            index.close()
        self.close()
        return sum(shard.nbytes for shard in self._shards)

    def close(self) -> None:
        self._pipeline.close()
        for shard in self._shards:
            shard.close()

    def _output(self, shard: "_Shard") -> WritableFile:
        if shard.file is None:
            shard.file = LOCAL.create(self._place(shard.path))
            shard.file.write(0, [shard.head])
        return shard.file

    def _place(self, path: str) -> str:
        assert self._publication is not None, "not open"
        return self._publication.place(path)

    @property
    def _index_path(self) -> str:
        return f"{self.path}.index.json"

    def _encode_index(self) -> bytes:
        weight_map = {name: os.path.basename(shard.path) for name, shard in self._shard_of.items()}
        total = sum(placed.nbytes for shard in self._shards for placed in shard.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


@dataclass(slots=True)
class _Shard:
    """One file, planned and perhaps begun."""

    path: str
    head: bytes
    tensors: dict[str, Placed]
    file: WritableFile | None = None

    @property
    def nbytes(self) -> int:
        return len(self.head) + sum(placed.nbytes for placed in self.tensors.values())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
