"""Write .safetensors files tensor by tensor: one file, or several with an index.

The names of the files are in `safetensors`. Several files are published so that at every moment the index names files
of one conversion: see `publishing`.

Source: huggingface_hub/serialization/_base.py (split_state_dict_into_shards_factory), _torch.py (the index).
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.foreign_files.identity import IDENTITY_KEY, IDENTITY_SIZE, identity_of
from torch_tfckpt.foreign_files.publishing import publish_files, publish_shards
from torch_tfckpt.foreign_files.safetensors import shards_of_index
from torch_tfckpt.foreign_files.safetensors_format import METADATA_KEY, WORDS, HeaderEntry, lay_out
from torch_tfckpt.foreign_files.values import FileValue, TensorInfo
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import WritableFile
from torch_tfckpt.storage.publication import Publication
from torch_tfckpt.text import quoted
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.transfer.pipeline import Pipeline, WriteRequest
from torch_tfckpt.transfer.writes import write_in_pieces

_UNKNOWN: Final = "0" * IDENTITY_SIZE  # in place of the identity until all tensors are written
_UNITS: Final = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return a size such as "5GB" as a number of bytes; units are decimal, and the default unit is a byte."""
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS.get((match[2] or "").upper(), 1)) if match else 0
    if size < 1:
        raise InvalidArgumentError(f"size {quoted(text)}: expected a number of KB, MB, GB or TB, such as 5GB")
    return size


def split(sizes: Mapping[str, int], max_shard_size: int | None) -> list[list[str]]:
    """Divide the names among shards, greedily and in order; an oversized tensor gets its own shard."""
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
        requests: dict[str, WriteRequest] = {}
        sums: dict[str, int] = {}
        shard = None
        for name, value in values.items():
            assert isinstance(value, torch.Tensor), "refused before"
            shard = self._shard_of[name]
            output, offset = self._output(shard), shard.tensors[name].offset
            if value.is_contiguous():
                requests[name] = WriteRequest(output, offset, byte_view(value))
            else:
                sums[name] = write_in_pieces(self._pipeline, output, offset, value)
        sums.update(zip(requests, self._pipeline.write([*requests.values()]), strict=True))
        if self._sums is not None:
            self._sums.update(sums)
        for done in self._shards:
            if done is not shard:  # complete, since values arrive in the order of `plan`; close it to limit open files
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
