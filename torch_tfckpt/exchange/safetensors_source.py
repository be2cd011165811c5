"""A .safetensors file, or a directory of them with an index as Hugging Face writes it, read tensor by tensor.

Read at offsets, not mapped: mapped pages count as memory of the process, and a conversion is to stay small.
"""

import json
import os
import re
from collections.abc import Iterable
from typing import Any, Final, Self

from torch_tfckpt.bundle.values import new_tensor
from torch_tfckpt.device.host_bytes import byte_view
from torch_tfckpt.device.pipeline import Pipeline, ReadRequest
from torch_tfckpt.errors import DataLossError, UnimplementedError, error_context, printable, quoted
from torch_tfckpt.exchange.safetensors_format import DTYPES, Placed, header_size, parse_header
from torch_tfckpt.exchange.values import ElementType, TensorInfo, Value
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.protocol import ReadableFile

INDEX_SUFFIX: Final = ".safetensors.index.json"
MAX_INDEX_BYTES: Final = 256 * 1024 * 1024  # a million names of 200 bytes
_SHARD: Final = re.compile(r"-\d{5,}-of-\d{5,}\.safetensors")


class SafetensorsSource:
    """Tensors of one or several .safetensors files.

    Raises:
        NotFoundError, DataLossError: a file is missing, or its header cannot be right.

    Cost: opening reads each header; one descriptor a file.
    """

    format = "safetensors"

    def __init__(self, path: str, shards: Iterable[str], listing: str | None = None) -> None:
        self.path = path
        self.skipped: dict[str, str] = {}
        self._listing = listing
        self._files: list[ReadableFile] = []
        self._placed: dict[str, tuple[ReadableFile, Placed]] = {}
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
    def of_index(cls, path: str) -> Self:
        """The files that an index (`*.safetensors.index.json`) names; DataLossError where it and they disagree."""
        with error_context(printable(path)):
            weight_map = _read_index(path)
        directory = os.path.dirname(path)
        source = cls(
            path.removesuffix(".index.json"),
            [os.path.join(directory, shard) for shard in dict.fromkeys(weight_map.values())],
            path,
        )
        for name, shard in weight_map.items():
            if name not in source._placed or os.path.basename(source._placed[name][0].path) != shard:
                source.close()
                raise DataLossError(f"{printable(path)}: tensor {quoted(name)} is not in {quoted(shard)}")
        for name in source._placed.keys() - weight_map.keys():
            del source._placed[name]
            source.skipped[name] = "in a shard, but not in the index"
        return source

    def _add(self, path: str) -> None:
        file = LOCAL.open(path)
        self._files.append(file)
        with error_context(printable(path)):
            size = header_size(file.read(0, min(8, file.size)), file.size)
            placed = parse_header(file.read(8, size), file.size)
            for name in placed.keys() & self._placed.keys():
                raise DataLossError(f"tensor {quoted(name)} is in {quoted(self._placed[name][0].path)} too")
        self._placed.update((name, (file, entry)) for name, entry in placed.items())

    def names(self) -> list[str]:
        return list(self._placed)

    def info(self, name: str) -> TensorInfo:
        placed = self._placed[name][1]
        dtype = DTYPES.get(placed.word)
        if dtype is None:
            return TensorInfo(ElementType(None, None), placed.shape, placed.nbytes)
        return TensorInfo(ElementType.of_torch(dtype), placed.shape, placed.nbytes)

    def read(self, names: Iterable[str]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        requests: list[ReadRequest] = []
        for name in names:
            file, placed = self._placed[name]
            dtype = DTYPES.get(placed.word)
            if dtype is None:
                raise UnimplementedError(
                    f"{printable(file.path)}: tensor {quoted(name)}: element type {quoted(placed.word)} is unknown here"
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
    """The index, or the only .safetensors file, of a directory; None where there is none, or more than one."""
    names = LOCAL.list(directory)
    for suffix in (INDEX_SUFFIX, ".safetensors"):
        found = [name for name in names if name.endswith(suffix)]
        if len(found) == 1:
            return os.path.join(directory, found[0])
    return None


def shards_of_index(path: str) -> list[str]:
    """Names of the files that an index names and that are named like shards; none where it cannot be read."""
    try:
        weight_map = _read_index(path)
    except (DataLossError, LookupError):
        return []
    stem = os.path.basename(path).removesuffix(INDEX_SUFFIX)
    return [
        shard for shard in dict.fromkeys(weight_map.values())
        if shard.startswith(stem) and _SHARD.fullmatch(shard[len(stem) :])
    ]  # fmt: skip


def _read_index(path: str) -> dict[str, str]:
    file = LOCAL.open(path)
    try:
        if file.size > MAX_INDEX_BYTES:
            raise DataLossError(f"{file.size} bytes are too many for an index of shards")
        content: Any = json.loads(file.read(0, file.size))
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"no index of shards: {error}") from error
    finally:
        file.close()
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise DataLossError('no index of shards: it has no table "weight_map"')
    for name, shard in weight_map.items():
        # A plain file name only: an index from elsewhere must not reach out of its directory.
        if not isinstance(shard, str) or os.path.basename(shard) != shard or shard in ("", ".", "..") or "\0" in shard:
            raise DataLossError(f"tensor {quoted(name)}: its shard {quoted(str(shard)[:200])} is no plain file name")
    return weight_map
