"""Names in a directory: recognise checkpoints, match patterns, compare spellings of a path.

A path is taken literally if it exists, and as a pattern only otherwise, so names may contain brackets.

Source: tensorflow/python/training/checkpoint_management.py.
"""

import fnmatch
import os
import re
from collections.abc import Iterable
from typing import Final

from torch_tfckpt.format.tensor_bundle import index_filename, parse_data_filename
from torch_tfckpt.storage.journal import journal_of
from torch_tfckpt.storage.names import is_url, parse_temporary_name
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.v1.shard_names import V1_SHARD as V1_SHARD
from torch_tfckpt.v1.shard_names import shard_pattern

STATE_FILE: Final = "checkpoint"
_DIGITS: Final = re.compile(r"[0-9]+")


def of_version_2(name: str) -> bool:
    """Return whether `name` is the name of a version 2 file, a meta graph or the state file."""
    return name.endswith((".index", ".meta")) or parse_data_filename(name) is not None or name == STATE_FILE


def is_there(storage: Storage, prefix: str) -> bool:
    """Whether there is a checkpoint of either version with this prefix or pattern. Checks file names only."""
    return (
        storage.exists(index_filename(prefix))
        or storage.exists(prefix)
        or bool(matching(storage, prefix))
        or bool(matching(storage, index_filename(prefix), indexes=True))
        or ((shards_of := prefix_of_pattern(prefix)) is not None and storage.exists(journal_of(shards_of)))
    )


def with_other_count(storage: Storage, pattern: str) -> str | None:
    """Return the pattern of the existing version 1 shards if `pattern` has a different number of shards.

    A `checkpoint` file contains an earlier save's number of shards if the program was killed before updating it.
    """
    prefix = prefix_of_pattern(pattern)
    if prefix is None:
        return None
    directory, base = os.path.split(prefix)
    matches = [match for name in storage.list(directory) if (match := V1_SHARD.fullmatch(name)) is not None]
    counts = {match["count"] for match in matches if match["prefix"] == base}
    return shard_pattern(prefix, int(counts.pop())) if len(counts) == 1 else None


def prefix_of_pattern(pattern: str) -> str | None:
    """Return P if `pattern` is P-?????-of-00002; None otherwise."""
    match = V1_SHARD.fullmatch(pattern)
    return match["prefix"] if match is not None and "?" in match["shard"] else None


def matching(storage: Storage, pattern: str, *, indexes: bool = False) -> tuple[str, ...]:
    """Return the files whose names match the last component of `pattern`.

    Version 2 files and meta graphs are included only if `indexes` is set.
    """
    directory, last = os.path.split(pattern)
    if not any(sign in last for sign in "*?["):
        return ()
    names = [name for name in storage.list(directory) if fnmatch.fnmatchcase(name, last)]
    if not indexes:
        names = [name for name in names if not of_version_2(name)]
    paths = [os.path.join(directory, name) for name in names if parse_temporary_name(name) is None]
    return tuple(path for path in paths if not storage.is_directory(path))


def prefixes_of(names: Iterable[str]) -> set[str]:
    """Return the checkpoints that `names` belong to, except unsharded ones of version 1, which may have any name."""
    names = list(names)
    found = {name.removesuffix(".index") for name in names if name.endswith(".index")}
    return found | {
        match["prefix"] for name in names if (match := V1_SHARD.fullmatch(name)) and parse_data_filename(name) is None
    }


def directory_key(directory: str) -> str:
    """Return a key that is equal for all spellings of one directory, including symbolic links to it.

    "" is the current directory.
    """
    return directory.rstrip("/") if is_url(directory) else os.path.realpath(directory or os.curdir)


def path_key(path: str) -> str:
    """Return a key that is equal for all spellings of one checkpoint's path."""
    directory, name = os.path.split(path.rstrip("/"))
    return f"{directory_key(directory).rstrip('/')}/{name}"


def spelled_in(directory: str, path: str) -> str:
    """Return `path` with its directory spelled as `directory`, if they are the same; else unchanged."""
    parent, name = os.path.split(path)
    return os.path.join(directory, name) if directory_key(parent) == directory_key(directory) else path


def series_of(path: str) -> str:
    """Return what the names of all checkpoints of a series have in common: "m-#" for "m-10" and "m-20".

    A number after the last hyphen distinguishes the checkpoints of a series, so "gen1-10" and "gen2-10" belong to
    different series. If there is no such number, every number in the name is replaced: "epoch3" and "epoch4" both
    belong to "epoch#".
    """
    name = os.path.basename(path)
    shards = V1_SHARD.fullmatch(name)
    name = name if shards is None else shards["prefix"]
    base, _, number = name.rpartition("-")
    return f"{base}-#" if base and _DIGITS.fullmatch(number) else _DIGITS.sub("#", name)


def same_series(path: str, other: str) -> bool:
    """Return whether two checkpoints belong to the same series, like "m-10" and "m-20". Directories do not matter."""
    return series_of(path) == series_of(other)
