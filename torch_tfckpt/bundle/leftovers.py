"""Remove what killed processes left in a directory.

A save has a marker file, which is in use until the save has ended (`bundle.publish`). If a marker is not in use, its
save was killed. Then every file with its number is removed, data files of its prefix that no index names, and the
directory for shards that are written one by one. Files in use, TensorFlow's files, and everything on storages that
cannot tell are left alone.
"""

import logging
import os
from typing import Final

from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.bundle.publish import data_files_of
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format.tensor_bundle import index_filename, parse_data_filename
from torch_tfckpt.storage.names import Temporary, parse_temporary_name
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable

_log = logging.getLogger(__name__)
# Where the shards of a save are written that are merged later: P_temp/part-00000-of-00002 (spec: FORMATS 2.8).
PARTS_SUFFIX: Final = "_temp"
PART: Final = "part"


def remove_leftovers(storage: Storage, directory: str) -> list[str]:
    """Removes what saves into `directory` left that were killed; returns the paths. Never fails: it is in nobody's way.

    Cost: one listing of the directory; nothing more where no temporary file is.
    """
    if not storage.renames:
        return []
    removed: list[str] = []
    try:
        found = dict(_temporaries(storage, directory))
        if not found:
            return []
        alive = {temporary.save for path, temporary in found.items() if storage.in_use(path)}
        dead = {path: temporary for path, temporary in found.items() if temporary.save not in alive}
        # Markers last: they are what tells of the rest, should this be interrupted.
        for path, temporary in sorted(dead.items(), key=lambda item: item[1].path.endswith(".index")):
            if not storage.exists(path):
                continue  # its save has ended well meanwhile
            if temporary.path.endswith(".index"):
                removed += _remove_rest(storage, temporary.path.removesuffix(".index"))
            if storage.remove_unused(path):
                removed.append(path)
    except (OSError, CheckpointError) as error:
        _log.info("%s: leftovers of an earlier save stay: %s", printable(directory), error)
    if removed:
        _log.info("removed what killed saves had left: %s", ", ".join(printable(path) for path in removed))
    return removed


def _temporaries(storage: Storage, directory: str) -> list[tuple[str, Temporary]]:
    """The unfinished files in `directory`."""
    found = []
    for name in storage.list(directory):
        path = os.path.join(directory, name)
        if (temporary := parse_temporary_name(path)) is not None:
            found.append((path, temporary))
    return found


def _remove_rest(storage: Storage, prefix: str) -> list[str]:
    """Removes the data files of `prefix` that belong to no index, and the shards that were to be merged into it."""
    orphans = [path for path in data_files_of(storage, prefix) if not _is_named(storage, prefix, path)]
    parts = prefix + PARTS_SUFFIX
    # A directory may be called so that is none of ours: nothing else in it is touched.
    orphans += [os.path.join(parts, name) for name in storage.list(parts) if name.startswith(PART)]
    removed = []
    for path in orphans:
        # Looked at again each time: another process may have begun to save under this very name.
        if _is_being_written(storage, prefix) or _is_named(storage, prefix, path):
            break
        storage.remove(path)
        removed.append(path)
    storage.remove_directory(parts)
    return removed


def _is_being_written(storage: Storage, prefix: str) -> bool:
    index = index_filename(prefix)
    return any(
        temporary.path == index and storage.in_use(path)
        for path, temporary in _temporaries(storage, os.path.dirname(prefix))
    )


def _is_named(storage: Storage, prefix: str, path: str) -> bool:
    """Whether the index in place, if any, may need this data file."""
    parsed = parse_data_filename(path)
    if not storage.exists(index_filename(prefix)) or parsed is None or parsed[0] != prefix:
        return False
    try:
        files = BundleFiles(storage, prefix)
    except CheckpointError:
        return True  # who knows; a damaged index may still be of use to somebody with its data
    try:
        return files.header.num_shards == parsed[2]
    finally:
        files.close()
