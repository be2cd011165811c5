"""Find unfinished saves that have files in a directory, and tell which of them may be running.

Every save has a marker: a file named like a temporary index. The marker's name contains the number of the save, as do
the names of all its other temporary files, and the marker is in use until the save has ended.

A save may be running if one of its files is in use. If this program cannot detect that (the file was created by another
host, before the last boot, or through a different mount; or there are no locks), the save may be running if one of its
files was modified within the last day. All other saves were killed, or could not clean up when they ended.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from torch_tfckpt.bundle.files import read_header
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format.tensor_bundle import data_filename, index_filename, parse_data_filename
from torch_tfckpt.storage.names import Temporary, is_temporary_name, parse_temporary_name, stem
from torch_tfckpt.storage.protocol import Storage

DAY: Final = 24 * 3600.0
"""Seconds without modification after which a save counts as killed if its locks cannot be seen."""

# Directory for the shards of a save that are merged later: P_temp.tempstate1-tfckpt/part-00000-of-00002 (see
# docs/formats/bundle.md).
PARTS_SUFFIX: Final = "_temp"
PART: Final = "part"


def temporaries(directory: str, names: Iterable[str]) -> dict[str, Temporary]:
    """Return the temporary files among `names`, which are in `directory`, as path -> parsed name."""
    found: dict[str, Temporary] = {}
    for name in filter(is_temporary_name, names):
        path = os.path.join(directory, name)
        parsed = parse_temporary_name(path)
        if parsed is not None:
            found[path] = parsed
    return found


def may_run(
    storage: Storage, directory: str, paths: Sequence[str], save: int, clock: Callable[[], float] = time.time
) -> bool:
    """Return whether save number `save`, which has the temporary files `paths` in `directory`, may be running."""
    used = [path for path in paths if storage.in_use(path)]
    if not used and save >> 32 == storage.lock_domain(directory):
        return False
    if any(storage.detects_use(path) for path in used):
        return True
    return clock() - max(map(_modified(storage), _with_parts(storage, paths)), default=0.0) < DAY


def _modified(storage: Storage) -> Callable[[str], float]:
    def modified(path: str) -> float:
        try:
            return storage.modified(path)
        except FileNotFoundError:
            return time.time()  # its save has just renamed or removed it

    return modified


def _with_parts(storage: Storage, paths: Sequence[str]) -> list[str]:
    """Return `paths`, plus the files in any parts directories among them."""
    folders = [path for path in paths if is_parts_directory(path)]
    return [*paths, *(os.path.join(folder, name) for folder in folders for name in storage.list(folder))]


def is_parts_directory(path: str) -> bool:
    """Return whether the temporary file `path` is the directory for shards that are merged later."""
    parsed = parse_temporary_name(path)
    return parsed is not None and parsed.path.endswith(PARTS_SUFFIX)


def running_markers(storage: Storage, prefix: str, names: Iterable[str], own: Iterable[int] = ()) -> list[Temporary]:
    """Return the markers of saves of `prefix` that may be running, among the `names` in its directory.

    Args:
        own: Numbers of the caller's saves, which are left out.
    """
    directory, index, own = os.path.dirname(prefix), stem(index_filename(prefix)), set(own)
    return [
        marker
        for path, marker in temporaries(directory, names).items()
        if marker.path == index and marker.save not in own and may_run(storage, directory, [path], marker.save)
    ]


def data_files_of(storage: Storage, prefix: str, names: Iterable[str] | None = None) -> list[str]:
    """Return all files that are named like a shard of `prefix`, with any count in their names.

    Args:
        names: The names of the files in the prefix's directory; None: list the directory.
    """
    directory, start = os.path.dirname(prefix), f"{os.path.basename(prefix)}.data-"
    found = storage.list(directory) if names is None else names
    paths = [os.path.join(directory, name) for name in found if name.startswith(start)]
    return [
        path
        for path in paths
        if (parsed := parse_data_filename(path)) is not None and parsed[0] == prefix and path == data_filename(*parsed)
    ]


def count_in_names(path: str) -> int:
    """Return the number of shards in the name of a data file."""
    parsed = parse_data_filename(path)
    assert parsed is not None, f"{path} is not a data file"
    return parsed[2]


def current_count(storage: Storage, prefix: str) -> int | None:
    """Return the number of shards in the names of the current data files; None if there is no readable index."""
    try:
        return read_header(storage, prefix).num_shards
    except CheckpointError:
        return None
