"""Paths as they are handed in, and the names of files that are not finished yet."""

import os
import re
import secrets
from typing import Final, NamedTuple

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import quoted

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# A scheme has two letters or more: C:// is a drive. Upper case is left to local paths.
_URL: Final = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://")
# What TensorFlow puts behind the names of files that it has not finished, and our own mark: only files that bear it are
# ever taken for leftovers, since TensorFlow's may be in use without our being able to tell.
_TEMPORARY: Final = re.compile(r"(?P<path>.+)\.tempstate(?P<save>[0-9]+)-tfckpt", re.DOTALL)


class Temporary(NamedTuple):
    """What the name of an unfinished file says."""

    path: str  # the name it will have
    save: int  # equal for all files of one save


def new_save_number() -> int:
    """A number that no other save has."""
    return secrets.randbits(64)


def temporary_name(path: str, save: int | None = None) -> str:
    """A name beside `path` under which it is written, by the save of that number, before it is published."""
    return f"{path}.tempstate{new_save_number() if save is None else save}-tfckpt"


def parse_temporary_name(path: str) -> Temporary | None:
    """What `temporary_name` made `path` of; None for every other name."""
    match = _TEMPORARY.fullmatch(path)
    return None if match is None else Temporary(match["path"], int(match["save"]))


def is_url(path: str) -> bool:
    """Return whether `path` leads to another storage than this machine.

    A URL begins with a scheme of lower case letters, digits, "+", "." and "-", two or more of them, and "://". Anything
    else is a local path, `file://` too; a local path that looks like a URL is written `./s3://...`.
    """
    return _URL.match(path) is not None


def fspath(path: AnyPath) -> str:
    """Any spelling of a path as `str`; a leading file:// is dropped.

    Raises:
        InvalidArgumentError: it is no path, is empty, or holds a null character.
    """
    try:
        text = os.fsdecode(path)
    except TypeError as error:
        raise InvalidArgumentError(f"expected a path (str, bytes or PathLike), got {type(path).__name__}") from error
    text = text.removeprefix("file://")
    if not text or "\0" in text:
        raise InvalidArgumentError(f"{quoted(text)} is no path: it is empty or holds a null character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{quoted(text)} is no path: {error.reason}") from error
    return text
