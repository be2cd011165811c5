"""Write zip archives of uncompressed members piece by piece, with the bytes of each member aligned for mapping.

.pt and .npz files are such archives.
"""

import zipfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from torch_tfckpt.foreign_files.identity import identity_of_archive
from torch_tfckpt.foreign_files.publishing import publish_files
from torch_tfckpt.foreign_files.values import TensorInfo
from torch_tfckpt.storage.protocol import Buffer
from torch_tfckpt.storage.publication import Publication

_ALIGNMENT: Final = 64  # torch's .storage_alignment; numpy aligns arrays inside a member to the same multiple
_LOCAL_HEADER: Final = 30  # bytes before a member's name (APPNOTE.TXT 4.3.7)
_ZIP64_EXTRA: Final = 20  # what zipfile adds to the header of a member opened with force_zip64
_PADDING_TAG: Final = b"FB"  # the extra field that torch pads with
_WRITE_BYTES: Final = 1024 * 1024  # small enough to stay in the CPU cache between checksum and write
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # a fixed time, so that the same tensors give the same file

MAX_NAME_BYTES: Final = 60_000  # a member's name has 16 bits for its length


class StoredZip:
    """Writes the archive at `path`, which must not exist."""

    def __init__(self, path: str) -> None:
        self._zip = zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True)

    def add(self, name: str, pieces: Iterable[Buffer]) -> None:
        """Write one member: `pieces`, back to back."""
        info = zipfile.ZipInfo(name, _EPOCH)
        begin = self._end() + _LOCAL_HEADER + len(name.encode()) + _ZIP64_EXTRA + len(_padding(0))
        info.extra = _padding(-begin % _ALIGNMENT)
        # Always 64-bit sizes, so that the size of the header, and with it the padding, is known in advance.
        with self._zip.open(info, "w", force_zip64=True) as member:
            for piece in pieces:
                view = memoryview(piece)
                for at in range(0, len(view), _WRITE_BYTES):
                    member.write(view[at : at + _WRITE_BYTES])

    def close(self) -> None:
        """Write the directory of the archive and close it."""
        self._zip.close()

    def _end(self) -> int:
        file = self._zip.fp
        assert file is not None, "closed"
        return file.tell()


class ZipSink:
    """Base class of writers whose target is one archive. Needs no memory beyond the values passed in."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._zip: StoredZip | None = None
        self._temporary = ""

    @property
    def archive(self) -> StoredZip:
        """The archive; call `open` first."""
        assert self._zip is not None, "not open"
        return self._zip

    def plan(self, tensors: Mapping[str, TensorInfo], *, sidecar: bool = False) -> list[str]:
        return list(tensors)

    def files(self) -> list[str]:
        return [self.path]

    def replaced(self) -> list[str]:
        return []

    def open(self, publication: Publication) -> None:
        publication.rename_with(partial(publish_files, self.path))
        self._temporary = publication.place(self.path)
        self._zip = StoredZip(self._temporary)

    def finish(self) -> int:
        self.close()
        return Path(self._temporary).stat().st_size

    def identity(self) -> str | None:
        with zipfile.ZipFile(self._temporary) as archive:
            return identity_of_archive(archive.infolist())

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()


def _padding(size: int) -> bytes:
    return _PADDING_TAG + size.to_bytes(2, "little") + b"Z" * size


def can_name_member(name: str) -> bool:
    """Return whether zipfile accepts this name: no null characters, no lone surrogates."""
    try:
        return 0 < len(name.encode()) <= MAX_NAME_BYTES and "\0" not in name
    except UnicodeEncodeError:
        return False
