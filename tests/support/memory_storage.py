"""Files in memory, for reading a thousand checkpoints per second."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch_tfckpt.errors import DataLossError, NotFoundError, UnimplementedError
from torch_tfckpt.storage.protocol import ReadableFile, WritableFile


class MemoryStorage:
    """A read-only storage of `files`: path -> contents."""

    renames = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = dict(files)

    def open(self, path: str) -> ReadableFile:
        if path not in self._files:
            raise NotFoundError(f"{path}: no such file. Copy it here")
        return _MemoryFile(path, self._files[path])

    def exists(self, path: str) -> bool:
        return path in self._files or self.is_directory(path)

    def in_use(self, path: str) -> bool:
        return False

    def detects_use(self, path: str) -> bool:
        return True

    def lock_domain(self, directory: str) -> int:
        return 0

    def exclusive(self, directory: str) -> AbstractContextManager[bool]:
        return nullcontext(False)

    def modified(self, path: str) -> float:
        if path not in self._files:
            raise FileNotFoundError(path)
        return 0.0  # it has no clock

    def list(self, directory: str) -> list[str]:
        prefix = f"{directory}/"
        return sorted({path.removeprefix(prefix).split("/")[0] for path in self._files if path.startswith(prefix)})

    def is_directory(self, path: str) -> bool:
        return any(file.startswith(f"{path}/") for file in self._files)

    def create(self, path: str) -> WritableFile:
        raise OSError(f"{path}: read-only")

    def make_directory(self, path: str) -> None:
        raise OSError(f"{path}: read-only")

    def replace(self, source: str, target: str) -> None:
        raise OSError(f"{source}: read-only")

    def link(self, source: str, target: str) -> None:
        raise OSError(f"{source}: read-only")

    def remove(self, path: str) -> None:
        raise OSError(f"{path}: read-only")

    def remove_unused(self, path: str) -> bool:
        raise OSError(f"{path}: read-only")

    def remove_directory(self, path: str) -> None:
        raise OSError(f"{path}: read-only")

    def sync_directory(self, path: str) -> None:
        raise OSError(f"{path}: read-only")


class _MemoryFile:
    def __init__(self, path: str, content: bytes) -> None:
        self.path, self._content = path, content
        self.size, self.identity = len(content), id(content)

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self.size:
            raise DataLossError(f"{self.path}: the file ends at {self.size}. Copy it again")
        return self._content[offset : offset + size]

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = self.read(offset, len(buffer))
            offset += len(buffer)

    def fileno(self) -> int:
        raise UnimplementedError(f"{os.path.basename(self.path)} is in memory and cannot be mapped")

    def close(self) -> None:
        pass
