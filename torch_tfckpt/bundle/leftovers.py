"""Removal of files that killed saves left in a directory.

A save has a marker file, which is in use until the save has ended (`bundle.publish`). If a marker is not in use, its
save was killed. Then every file with the save's number is removed, as well as data files of its prefix that no index
refers to, and the directory for shards written separately. Files in use, TensorFlow's files, and everything on storages
that cannot detect use are not touched.
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
# Directory for the shards of a save that are merged later: P_temp/part-00000-of-00002 (see docs/formats/bundle.md).
PARTS_SUFFIX: Final = "_temp"
PART: Final = "part"


def remove_leftovers(storage: Storage, directory: str) -> list[str]:
    """Remove files that killed saves left in `directory`, and return their paths. Never raises.

    Cost: one listing of the directory; nothing more if it contains no temporary files.
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
        # Markers last: they identify the other files, in case this is interrupted.
        for path, temporary in sorted(dead.items(), key=lambda item: item[1].path.endswith(".index")):
            if not storage.exists(path):
                continue  # its save has ended normally in the meantime
            if temporary.path.endswith(".index"):
                removed += _remove_rest(storage, temporary.path.removesuffix(".index"))
            if storage.remove_unused(path):
                removed.append(path)
    except (OSError, CheckpointError) as error:
        _log.info("%s: could not remove leftovers of an earlier save: %s", printable(directory), error)
    if removed:
        _log.info("removed leftovers of killed saves: %s", ", ".join(printable(path) for path in removed))
    return removed


def _temporaries(storage: Storage, directory: str) -> list[tuple[str, Temporary]]:
    """Return the temporary files in `directory`."""
    found = []
    for name in storage.list(directory):
        path = os.path.join(directory, name)
        if (temporary := parse_temporary_name(path)) is not None:
            found.append((path, temporary))
    return found


def _remove_rest(storage: Storage, prefix: str) -> list[str]:
    """Remove data files of `prefix` that no index refers to, and shards that were to be merged into it."""
    orphans = [path for path in data_files_of(storage, prefix) if not _is_named(storage, prefix, path)]
    parts = prefix + PARTS_SUFFIX
    # The directory of that name may not be ours: nothing else in it is touched.
    orphans += [os.path.join(parts, name) for name in storage.list(parts) if name.startswith(PART)]
    removed = []
    for path in orphans:
        # Check again each time: another process may have started to save under this prefix.
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
    """Return whether the existing index, if any, may need this data file."""
    parsed = parse_data_filename(path)
    if not storage.exists(index_filename(prefix)) or parsed is None or parsed[0] != prefix:
        return False
    try:
        files = BundleFiles(storage, prefix)
    except CheckpointError:
        return True  # unknown; a damaged index with its data may still be useful to the user
    try:
        return files.header.num_shards == parsed[2]
    finally:
        files.close()
