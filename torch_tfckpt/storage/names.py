"""Paths as callers pass them, and the names of temporary files."""

import functools
import hashlib
import os
import re
import secrets
from typing import Final, NamedTuple

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import quoted

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# A scheme has at least two letters: C:// is a drive. Names in upper case are local paths.
_URL: Final = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://")
# A URL as changed by pathlib: Path("s3://bucket/x") is "s3:/bucket/x".
_COLLAPSED_URL: Final = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)(.*)", re.DOTALL)
# The suffix that TensorFlow adds to unfinished files, plus our own mark. Only files with the mark are ever treated as
# leftovers: whether one of TensorFlow's files is in use cannot be determined.
_TEMPORARY: Final = re.compile(r"(?P<path>.+)\.tempstate(?P<save>[0-9]+)-tfckpt", re.DOTALL)

_LONGEST_NAME: Final = 255  # maximum bytes of a file name, on all common file systems
_LONGEST_STEM: Final = _LONGEST_NAME - len(f".tempstate{2**64 - 1}-tfckpt")
_SURELY_SHORT: Final = _LONGEST_STEM // 4  # a character has at most four bytes
LONGEST_END: Final = len(".data-00000-of-00001")  # the longest suffix that a checkpoint appends to its prefix


is_temporary_name: Final = _TEMPORARY.fullmatch
"""Returns a true value for paths that `parse_temporary_name` can parse."""


class Temporary(NamedTuple):
    """Parsed name of a temporary file."""

    path: str  # `stem` of the final name
    save: int  # the same for all files of one save

    @property
    def domain(self) -> int:
        """`Storage.lock_domain` where the file was created."""
        return self.save >> 32


def new_save_number(domain: int) -> int:
    """Return a number that identifies a save: the storage's 32-bit `lock_domain`, and 32 random bits.

    From the lock domain, other programs know whether they can see the locks on the save's files.
    """
    return domain << 32 | secrets.randbits(32)


def shared_save_number(domain: int, token: str) -> int:
    """Return the number of a save whose files are created by several processes that cannot agree on a random one.

    Args:
        domain: The `lock_domain` of the process that creates the save's marker, the same in all processes.
        token: What all these processes know and other saves in the directory do not share, such as the prefix's name.
    """
    return domain << 32 | int.from_bytes(
        hashlib.blake2s(token.encode(errors="surrogateescape"), digest_size=4).digest()
    )


def temporary_name(path: str, save: int) -> str:
    """Return the temporary name of `path`, in the same directory, for the save with the number `save`.

    Raises:
        InvalidArgumentError: the file name in `path` is too long for any file system.
    """
    if len(path) > _SURELY_SHORT:
        refuse_long_name(path)
        path = stem(path)
    return f"{path}.tempstate{save}-tfckpt"


def stem(path: str) -> str:
    """Return `path` as it appears in its temporary names: shortened if they would be too long.

    A shortened name consists of the start of the name, a hash of the whole name, and the end of the name, so different
    names stay different.
    """
    name = path.rpartition("/")[2]
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_STEM:
        return path
    end = f"~{hashlib.blake2s(encoded, digest_size=8).hexdigest()}{name[-LONGEST_END:]}"
    start = encoded[: _LONGEST_STEM - len(os.fsencode(end))].decode(errors="ignore")
    return f"{path.removesuffix(name)}{start}{end}"


def refuse_long_name(path: str, *, appended: int = 0) -> None:
    """Raise InvalidArgumentError if the file name in `path`, plus `appended` bytes, is too long."""
    size = len(os.fsencode(path.rpartition("/")[2])) + appended
    if size > _LONGEST_NAME:
        raise InvalidArgumentError(
            f"{quoted(path)}: the file name has {size} bytes, and file systems accept at most {_LONGEST_NAME}. Pass a "
            f"name that is shorter by {size - _LONGEST_NAME}"
        )


def parse_temporary_name(path: str) -> Temporary | None:
    """Parse a path that `temporary_name` has returned; return None for any other path."""
    match = _TEMPORARY.fullmatch(path)
    return None if match is None else Temporary(match["path"], int(match["save"]))


def refuse_url(path: str, what: str, instead: str) -> None:
    """Raise InvalidArgumentError if `path` is a URL.

    Args:
        what: Why URLs are not accepted: "convert reads local files only".
        instead: What to do instead: "Copy the file".
    """
    if is_url(path):
        raise InvalidArgumentError(f"{quoted(path)} is a URL, and {what}. {instead}")


def final_name(path: str) -> str:
    """Return the final path (or its `stem`) of the temporary file `path`; any other path unchanged."""
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
        InvalidArgumentError: `path` is not a path, is empty, contains a null character, is a URL that pathlib has
            changed, or starts with "~" or "$NAME", which the caller must expand first (unless a file has that name).
    """
    text = decoded_path(path)
    if text[0] in "~$":
        _refuse_unexpanded(text)
    elif (collapsed := _COLLAPSED_URL.fullmatch(text)) is not None:
        raise InvalidArgumentError(
            f"{quoted(text)} was a URL, but pathlib has removed one of its slashes. Pass the URL as a str: "
            f"{quoted(f'{collapsed[1]}://{collapsed[2]}')}. For a local path with that name, write "
            f"{quoted(f'./{text}')}"
        )
    return text


def decoded_path(path: AnyPath) -> str:
    """Return any kind of path as `str`; for paths read from files, in which nothing needs to be expanded.

    Raises:
        InvalidArgumentError: `path` is not a path, is empty, or contains a null character.
    """
    try:
        text = os.fsdecode(path)
    except TypeError as error:
        raise InvalidArgumentError(f"expected a path (str, bytes or PathLike), got {type(path).__name__}") from error
    if text.startswith("file:"):
        text = _local_path(text)
    if not text or "\0" in text:
        raise InvalidArgumentError(f"{quoted(text)} is not a path: it is empty or contains a null character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{quoted(text)} is not a path: {error.reason}") from error
    return text


def _local_path(url: str) -> str:
    """Return /x for file:///x, file:/x (as pathlib writes it) and file://localhost/x, and x for file://x."""
    rest = url.removeprefix("file:")
    if rest.startswith("//"):
        rest = rest[2:]
        return rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    return rest if rest.startswith("/") else url


def _refuse_unexpanded(path: str) -> None:
    """Reject a path that a shell would have expanded: a directory named "~" is hard to remove."""
    first, slash, rest = path.partition("/")
    expand = "os.path.expanduser" if first.startswith("~") else "os.path.expandvars"
    expanded = os.path.expanduser(first) if first.startswith("~") else os.path.expandvars(first)
    if expanded != first and not os.path.lexists(first):
        raise InvalidArgumentError(
            f"{quoted(path)}: {quoted(first)} is not expanded in paths. Pass {expand}(...), in this case "
            f"{quoted(expanded + slash + rest)}. For a local path with that name, write {quoted(f'./{path}')}"
        )
