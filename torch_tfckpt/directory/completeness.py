"""Check whether a checkpoint is complete, and list the checkpoints of a directory to check.

A job that was killed, or an interrupted copy, may leave an index without its data. The check reads no tensors: it
compares sizes, not contents.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Final

from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.directory.locate import find_checkpoint, is_table
from torch_tfckpt.directory.names import V1_SHARD, of_version_2, prefixes_of
from torch_tfckpt.directory.opening import open_version_1
from torch_tfckpt.directory.state_file import from_stored, get_checkpoint_state
from torch_tfckpt.errors import DAMAGED, CheckpointError, DataLossError, NotFoundError
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.names import parse_temporary_name
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import printable, quoted

_MAX_DIGITS: Final = 20  # of a 64-bit number; int() refuses thousands

_log = logging.getLogger(__name__)


def check_complete(storage: Storage, path: str) -> None:
    """Check the names, sizes and indexes of the files of the checkpoint `path`.

    Raises:
        NotFoundError: there is no checkpoint, or one of its files is missing.
        DataLossError: an index is damaged, or a data file is too short for the tensors that the index places in it.

    Cost: reads the index; for version 1, the end and the first block of each shard.
    """
    if storage.is_directory(path) and not storage.exists(index_filename(path)):
        raise NotFoundError(f"{printable(path)} is a directory, not a checkpoint")
    found = find_checkpoint(storage, path)
    if found.version == 2:
        _check_bundle(storage, found.prefix)
    else:
        open_version_1(storage, found)[1].close()


def _check_bundle(storage: Storage, prefix: str) -> None:
    with BundleReader(storage, prefix, verify=False) as reader:
        # Only the data files that the entries name: there may be fewer than the header declares (`bundle.publish`).
        for name in reader.keys():
            for entry in reader.pieces(name):
                file = reader.files.shard(entry.shard)  # raises NotFoundError if it is missing
                if entry.end > file.size:
                    raise DataLossError(
                        f"{printable(file.path)}: tensor {quoted(name)} ends at byte {entry.end}, but the file ends at "
                        f"{file.size}. {DAMAGED}"
                    )


def candidates(storage: Storage, directory: str, latest_filename: str | None = None) -> Iterator[str]:
    """Yield the checkpoints of `directory` in the order in which they should be checked, each once.

    First the one that the state file names as the newest, then its list, then all others by age; the newest first.
    """
    seen: set[str] = set()
    for path in _named(storage, directory, latest_filename):
        if path not in seen:
            seen.add(path)
            yield path
    seen = {os.path.normpath(path) for path in seen}
    yield from (path for path in _others(storage, directory) if os.path.normpath(path) not in seen)


def _named(storage: Storage, directory: str, latest_filename: str | None) -> Iterator[str]:
    try:
        state = get_checkpoint_state(directory, latest_filename, storage=storage)
    except DataLossError as error:
        _log.warning("%s", error)
        return
    if state is not None:
        yield from_stored(state.model_checkpoint_path)
        yield from map(from_stored, reversed(state.all_model_checkpoint_paths))


def _others(storage: Storage, directory: str) -> list[str]:
    names = [name for name in storage.list(directory) if parse_temporary_name(name) is None]
    paths = {os.path.join(directory, prefix) for prefix in prefixes_of(names)}
    for name in names:
        # An unsharded file of version 1 can only be recognized by its contents.
        if not of_version_2(name) and V1_SHARD.fullmatch(name) is None:
            with contextlib.suppress(CheckpointError, OSError):
                if is_table(storage, os.path.join(directory, name)):
                    paths.add(os.path.join(directory, name))
    dated: list[tuple[float, int, str]] = []
    for path in paths:
        with contextlib.suppress(CheckpointError, OSError):
            found = find_checkpoint(storage, path)
            file = index_filename(found.prefix) if found.version == 2 else found.paths[0]
            dated.append((storage.modified(file), _step(path), found.prefix))
    return [path for *_, path in sorted(dated, reverse=True)]


def _step(path: str) -> int:
    """Return the number after the last hyphen, since some file systems store times in whole seconds only."""
    number = path.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS else -1
