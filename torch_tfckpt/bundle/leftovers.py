"""Removal of files that killed programs left in a directory.

Every writer of the package calls this for the directory it writes to. The names of this package's temporary files
contain a mark and the number of the save that created the file. Such a file is removed, whatever checkpoint or other
file it belongs to, if that save cannot be running any more (`bundle.unfinished`):

- created on this host since the last boot, and not in use: immediately;
- created by another host, before the last boot, or on a file system without locks: a day after the latest
  modification of any file of that save.

Files without the mark, such as TensorFlow's, are never removed.

If the file is the marker of a save, data files of its checkpoint that no index refers to are removed as well, unless
another save of that checkpoint may be running; then the marker stays for the next cleanup. Storage without renames has
no temporary files, so nothing is removed there.

If a killed program was replacing the contents of several files in one step, that step is completed first
(`storage.journal`); until this succeeds, the temporary files involved stay.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator

from torch_tfckpt.bundle.files import read_header
from torch_tfckpt.bundle.unfinished import (
    PART,
    count_in_names,
    data_files_of,
    is_parts_directory,
    may_run,
    running_markers,
    temporaries,
)
from torch_tfckpt.errors import CheckpointError, NotFoundError
from torch_tfckpt.format.tensor_bundle import index_filename, parse_data_filename
from torch_tfckpt.storage.journal import finish_journals
from torch_tfckpt.storage.names import Temporary, stem
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable

_log = logging.getLogger(__name__)


def remove_leftovers(storage: Storage, directory: str, clock: Callable[[], float] = time.time) -> list[str]:
    """Remove files that killed programs left in `directory`, and return their paths. Never raises.

    Cost: one listing of the directory; nothing more if it contains no temporary files.
    """
    if not storage.renames:
        return []
    removed: list[str] = []
    try:
        names = storage.list(directory)
        needed = finish_journals(storage, directory, names)
        found = temporaries(directory, names)
        if found:
            found = {path: temporary for path, temporary in found.items() if temporary.save not in needed}
            removed.extend(_remove_dead(storage, directory, found, clock))
    except (OSError, CheckpointError) as error:
        _log.info("%s: could not remove leftovers of an earlier save: %s", printable(directory), error)
    if removed:
        _log.info("removed leftovers of killed saves: %s", ", ".join(printable(path) for path in removed))
    return removed


def _remove_dead(
    storage: Storage, directory: str, found: dict[str, Temporary], clock: Callable[[], float]
) -> Iterator[str]:
    files: dict[int, list[str]] = {}
    for path, temporary in found.items():
        files.setdefault(temporary.save, []).append(path)
    for save, paths in files.items():
        if may_run(storage, directory, paths, save, clock):
            continue
        # Markers last: they identify the other files, in case this is interrupted.
        for path in sorted(paths, key=lambda path: found[path].path.endswith(".index")):
            if not storage.exists(path):
                continue  # its save has ended normally in the meantime
            if is_parts_directory(path):
                yield from _remove_parts(storage, path)
                continue
            if found[path].path.endswith(".index"):
                prefixes = _marked(storage, directory, found[path])
                for prefix in prefixes:
                    yield from _remove_orphans(storage, prefix, save)
                if any(_orphans(storage, prefix) for prefix in prefixes):
                    continue  # the marker shows the next cleanup where to look
            if _remove(storage, path):
                yield path


def _marked(storage: Storage, directory: str, marker: Temporary) -> set[str]:
    """Return a set with the prefix that `marker` belongs to; empty if that prefix has no data files."""
    names = [parsed[0] for name in storage.list(directory) if (parsed := parse_data_filename(name)) is not None]
    prefixes = {os.path.join(directory, name) for name in names}
    return {prefix for prefix in prefixes if stem(index_filename(prefix)) == marker.path}


def _remove(storage: Storage, path: str) -> bool:
    """Remove a file of a save that is not running; return whether it was removed."""
    if storage.remove_unused(path):
        return True
    if storage.detects_use(path) or not storage.exists(path):
        return False  # another program has just begun to use it, or has removed it
    storage.remove(path)
    return True


def _remove_parts(storage: Storage, folder: str) -> Iterator[str]:
    """Remove the shards in `folder` that were to be merged, and `folder` itself if it is then empty."""
    for name in storage.list(folder):
        path = os.path.join(folder, name)
        if name.startswith(PART) and _remove(storage, path):
            yield path
    storage.remove_directory(folder)


def _remove_orphans(storage: Storage, prefix: str, dead: int) -> Iterator[str]:
    """Remove data files of `prefix` that no index refers to, unless a save of `prefix` may be running."""
    with storage.exclusive(os.path.dirname(prefix)):
        for path in _orphans(storage, prefix):
            # Check before each removal: where locks have no effect, another program may have started a save.
            if running_markers(storage, prefix, storage.list(os.path.dirname(prefix)), [dead]):
                return
            if _remove(storage, path):
                yield path


def _orphans(storage: Storage, prefix: str) -> list[str]:
    """Return the data files of `prefix` that no index can refer to."""
    paths = data_files_of(storage, prefix)
    if not paths:
        return []
    try:
        named = read_header(storage, prefix).num_shards
    except NotFoundError:
        return paths
    except CheckpointError:
        return []  # unknown; a damaged index and its data may still be useful to the user
    return [path for path in paths if count_in_names(path) != named]
