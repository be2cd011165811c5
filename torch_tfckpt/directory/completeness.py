"""Check whether a checkpoint is complete; list the checkpoints of a directory in the order to check.

A job that was killed, or an interrupted copy, may leave an index without its data. The check reads no tensors: it
compares sizes, not contents.

A checkpoint is skipped only if it is known to be incomplete. If a system error prevents the check, an error is raised,
and older checkpoints are not tried.
"""

import logging
import os
from collections.abc import Iterable, Iterator

from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.directory.locate import find_checkpoint, is_table
from torch_tfckpt.directory.names import V1_SHARD, of_version_2, prefixes_of, series_of
from torch_tfckpt.directory.opening import open_files
from torch_tfckpt.directory.state_file import from_stored, load_state
from torch_tfckpt.errors import DAMAGED, CheckpointError, DataLossError, NotFoundError
from torch_tfckpt.format.tensor_bundle import index_filename
from torch_tfckpt.storage.names import parse_temporary_name
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.refusals import is_refusal, refusals_named
from torch_tfckpt.text import natural_order, printable, quoted

_log = logging.getLogger(__name__)


def check_complete(storage: Storage, path: str) -> None:
    """Check the names, sizes and indexes of the files of the checkpoint `path`.

    Raises:
        NotFoundError: there is no checkpoint, or one of its files is missing.
        DataLossError: an index is damaged, or a data file is too short for the tensors that the index places in it.
        FailedPreconditionError: a system error, such as EACCES or EIO.

    Cost: reads the index; for version 1, the end and the first block of each shard.
    """
    with refusals_named(path):
        _check_complete(storage, path)


def first_complete(storage: Storage, paths: Iterable[str]) -> str | None:
    """Return the first complete checkpoint in `paths`, and log why earlier ones are not complete.

    Raises like `candidates`.
    """
    for path in paths:
        try:
            check_complete(storage, path)
        except CheckpointError as error:
            if is_refusal(error):
                raise
            _log.warning("not complete: %s", error)
        else:
            return path
    return None


def _check_complete(storage: Storage, path: str) -> None:
    if storage.is_directory(path) and not storage.exists(index_filename(path)):
        raise NotFoundError(f"{printable(path)} is a directory, not a checkpoint")
    found = find_checkpoint(storage, path)
    if found.version == 2:
        _check_bundle(storage, found.prefix)
    else:
        open_files(storage, found)[1].close()


def _check_bundle(storage: Storage, prefix: str) -> None:
    with BundleReader(storage, prefix, verify=False) as reader:
        # Check only data files that entries refer to: there may be fewer than the header declares (`bundle.publish`).
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

    The first is the newest checkpoint according to the state file, followed by the others that this file lists, newest
    first. Then all other checkpoints follow, grouped by series: the series with the most recently modified checkpoint
    comes first, and within a series the checkpoint with the highest number. (Within a series, modification times are
    not reliable: a copy of a directory may have been written in any order.)

    Raises:
        FailedPreconditionError: a system error such as EACCES or EIO; it is unknown which checkpoints exist.
    """
    seen: set[str] = set()
    for path in _named(storage, directory, latest_filename):
        if path not in seen:
            seen.add(path)
            yield path
    seen = {os.path.normpath(path) for path in seen}
    with refusals_named(directory or os.curdir):
        others = _others(storage, directory)
    yield from (path for path in others if os.path.normpath(path) not in seen)


def _named(storage: Storage, directory: str, latest_filename: str | None) -> Iterator[str]:
    try:
        state = load_state(storage, directory, latest_filename)
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
            path = os.path.join(directory, name)
            if _may_be_version_1(storage, path):
                paths.add(path)
    times: dict[str, float] = {}
    for path in paths:
        try:
            found = find_checkpoint(storage, path)
            file = index_filename(found.prefix) if found.version == 2 else found.paths[0]
            with refusals_named(path):
                times[found.prefix] = storage.modified(file)
        except CheckpointError as error:
            if is_refusal(error):
                raise
    newest: dict[str, float] = {}
    for path, time in times.items():
        newest[series_of(path)] = max(time, newest.get(series_of(path), time))
    return sorted(
        times,
        key=lambda path: (newest[series_of(path)], series_of(path), natural_order(os.path.basename(path)), times[path]),
        reverse=True,
    )


def _may_be_version_1(storage: Storage, path: str) -> bool:
    """Return whether a file, whatever its name, ends with the same bytes as a version 1 checkpoint."""
    try:
        return is_table(storage, path)
    except (CheckpointError, OSError) as error:
        if is_refusal(error) and not _is_denied(error):
            raise
        return False  # it was removed meanwhile, is a pipe, or is another user's file without a checkpoint's name


def _is_denied(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, PermissionError) or _is_denied(error.__cause__))
