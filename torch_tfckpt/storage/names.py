"""Paths as callers pass them, and the names of temporary files."""

import functools
import os
import re
import secrets
from typing import Final, NamedTuple

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import quoted

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# A scheme has at least two letters: C:// is a drive. Names in upper case are local paths.
_URL: Final = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://")
# The suffix that TensorFlow adds to unfinished files, plus our own mark. Only files with the mark are ever treated as
# leftovers: whether one of TensorFlow's files is in use cannot be determined.
_TEMPORARY: Final = re.compile(r"(?P<path>.+)\.tempstate(?P<save>[0-9]+)-tfckpt", re.DOTALL)


is_temporary_name: Final = _TEMPORARY.fullmatch
"""Returns a true value for paths that `parse_temporary_name` can parse."""


class Temporary(NamedTuple):
    """Parsed name of a temporary file."""

    path: str  # the final name
    save: int  # the same for all files of one save

    @property
    def domain(self) -> int:
        """`Storage.lock_domain` where the file was created."""
        return self.save >> 32


def new_save_number(domain: int) -> int:
    """Return a number that identifies a save: 32 bits of the storage's `lock_domain`, and 32 random bits.

    The former tell other programs whether they can see the locks of the save's files.
    """
    return domain << 32 | secrets.randbits(32)


def temporary_name(path: str, save: int) -> str:
    """Return the temporary name, in the same directory, of `path` in save number `save`."""
    return f"{path}.tempstate{save}-tfckpt"


def parse_temporary_name(path: str) -> Temporary | None:
    """Return the arguments of `temporary_name` for which it returns `path`; None for any other name."""
    match = _TEMPORARY.fullmatch(path)
    return None if match is None else Temporary(match["path"], int(match["save"]))


def final_name(path: str) -> str:
    """Return the path that the temporary file `path` will have; any other path unchanged."""
    parsed = parse_temporary_name(path)
    return path if parsed is None else parsed.path


@functools.lru_cache(maxsize=256)  # called several times per save for each directory
def is_url(path: str) -> bool:
    """Return whether `path` is a URL rather than a local path.

    A URL starts with a scheme of two or more lower-case letters, digits, "+", "." and "-", followed by "://". Anything
    else is a local path, including `file://`; write a local path that looks like a URL as `./s3://...`.
    """
    return _URL.match(path) is not None


def fspath(path: AnyPath) -> str:
    """Return any kind of path as `str`, without a leading file://.

    Raises:
        InvalidArgumentError: not a path, empty, or contains a null character.
    """
    try:
        text = os.fsdecode(path)
    except TypeError as error:
        raise InvalidArgumentError(f"expected a path (str, bytes or PathLike), got {type(path).__name__}") from error
    text = text.removeprefix("file://")
    if not text or "\0" in text:
        raise InvalidArgumentError(f"{quoted(text)} is not a path: it is empty or contains a null character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{quoted(text)} is not a path: {error.reason}") from error
    return text
