"""Paths as they are handed in, and the names of files that are not finished yet."""

import os
import secrets

from torch_tfckpt.errors import InvalidArgumentError, quoted


def temporary_name(path: str) -> str:
    """A name beside `path` under which it is written before it is published; the pattern is TensorFlow's."""
    return f"{path}.tempstate{secrets.randbits(64)}"


def fspath(path: "str | bytes | os.PathLike[str] | os.PathLike[bytes]") -> str:
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
