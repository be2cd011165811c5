"""Read zip archives from untrusted sources: the members of .pt and .npz files.

Guaranteed for every member that `ZipArchive` returns:

- no other member has its name, and no two members share bytes of the file;
- its bytes are stored or deflated, not encrypted, and are inside the file;
- its uncompressed size is possible for deflate, given its stored size, so no size in the archive makes a reader
  allocate more than MAX_RATIO times the size of the file.

Names are used in messages and as names of tensors, never as paths; `name_fault` rejects unsuitable ones.

Source: APPNOTE.TXT 4.3 (PKWARE); the directory is decoded by Python's zipfile.
"""

import errno
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

from torch_tfckpt.errors import CheckpointError, DataLossError
from torch_tfckpt.storage.protocol import ReadableFile
from torch_tfckpt.text import quoted

MAX_RATIO: Final = 1040  # deflate expands one byte to at most 1032 (zlib's technical notes)
_LOCAL: Final = struct.Struct("<4s22xHH")  # signature, sizes of name and extra field (4.3.7)
_SIGNATURE: Final = b"PK\x03\x04"
_ENCRYPTED: Final = 0x1  # bit of the flags (4.4.4)
_DRIVE: Final = re.compile(r"[A-Za-z]:[/\\]")


class ZipArchive:
    """The directory of a zip archive.

    Args:
        file: The archive; it must stay open while this object is used, and this object does not close it.

    Raises:
        DataLossError: it is not a zip archive, or its directory breaks one of the rules above.

    Cost: opening reads the directory, which is at the end of the file.
    Thread safety: one thread at a time, except `place`.
    """

    def __init__(self, file: ReadableFile) -> None:
        self._file = file
        # Open it by its descriptor: this is still the same file, even if its name now belongs to a different file.
        self._stream = os.fdopen(os.dup(file.fileno()), "rb")
        try:
            with zip_errors():
                self._zip = zipfile.ZipFile(self._stream)
            self.members = self._checked()
        except BaseException:
            self._stream.close()
            raise

    def _checked(self) -> list[zipfile.ZipInfo]:
        members = self._zip.infolist()
        names: set[str] = set()
        for member in members:
            if member.orig_filename in names:
                raise DataLossError(f"damaged zip archive: {quoted(member.orig_filename)} is stored twice")
            names.add(member.orig_filename)
        end = 0
        for member in sorted(members, key=lambda member: member.header_offset):
            if not end <= member.header_offset <= self._file.size - _LOCAL.size:
                raise DataLossError(
                    f"damaged zip archive: {quoted(member.orig_filename)} begins at byte {member.header_offset}, in "
                    "another member or after the end"
                )
            end = member.header_offset + _LOCAL.size + member.compress_size
        if end > self._file.size:
            raise DataLossError(f"damaged zip archive: its members end at byte {end}, the file at {self._file.size}")
        return members

    def open(self, member: zipfile.ZipInfo) -> IO[bytes]:
        """Open a member for reading; its checksum is verified at its end. Wrap reads in `zip_errors`."""
        _assert_readable(member)
        return self._zip.open(member)

    def read(self, member: zipfile.ZipInfo, limit: int) -> bytes:
        """Return a member of at most `limit` bytes."""
        if member.file_size > limit:
            raise DataLossError(
                f"{quoted(member.orig_filename)} has {member.file_size} bytes; at most {limit} are read"
            )
        with zip_errors(), self.open(member) as content:
            return content.read()

    def place(self, member: zipfile.ZipInfo) -> tuple[int, int]:
        """Return where the bytes of an uncompressed member begin in the file, and how many there are."""
        _assert_readable(member)
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise DataLossError(f"{quoted(member.orig_filename)} is compressed; only stored members are read in place")
        signature, name, extra = _LOCAL.unpack(self._file.read(member.header_offset, _LOCAL.size))
        offset = member.header_offset + _LOCAL.size + name + extra
        if signature != _SIGNATURE or offset + member.file_size > self._file.size:
            raise DataLossError(f"damaged zip archive: {quoted(member.orig_filename)} is not at its listed offset")
        return offset, member.file_size

    def close(self) -> None:
        self._zip.close()
        self._stream.close()


def largest_size(member: zipfile.ZipInfo) -> int:
    """Return the largest uncompressed size that a member can have, given its stored size."""
    packed = member.compress_size if member.compress_type == zipfile.ZIP_STORED else member.compress_size * MAX_RATIO
    return min(member.file_size, packed)


def name_fault(name: str) -> str | None:
    """Return why `name` is not a plain name for a member; None if it is a plain name.

    Programs that unpack archives create files with these names.
    """
    if not name:
        return "it is empty"
    if not all(character.isprintable() for character in name):
        return "it contains a control character"
    if "\\" in name:
        return "it contains a backslash"
    if name.startswith("/") or _DRIVE.match(name):
        return "it is an absolute path"
    if ".." in name.split("/"):
        return 'it contains ".."'
    return None


def _assert_readable(member: zipfile.ZipInfo) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise DataLossError(f"{quoted(member.orig_filename)} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataLossError(
            f"{quoted(member.orig_filename)} is compressed by method {member.compress_type}; numpy and torch write "
            "only stored and deflated members"
        )
    if member.file_size > largest_size(member):
        raise DataLossError(
            f"damaged zip archive: {quoted(member.orig_filename)} cannot have {member.file_size} bytes, since only "
            f"{member.compress_size} are stored"
        )


@contextmanager
def zip_errors() -> Iterator[None]:
    """Convert the errors that zipfile and zlib raise for damaged archives to DataLossError."""
    try:
        yield
    except CheckpointError:
        raise
    except (
        *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError),
        *(OverflowError, LookupError, TypeError),
    ) as error:
        raise DataLossError(f"damaged zip archive: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek beyond the largest possible file
            raise
        raise DataLossError("damaged zip archive: an offset in it is larger than any file") from error
