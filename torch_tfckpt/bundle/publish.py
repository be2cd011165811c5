"""Publishes data files and an index as the checkpoint of a prefix, atomically for every reader.

If no checkpoint of that name exists, the data files are renamed and then the index: only the index makes a checkpoint,
so a crash before that leaves nothing that a reader would open.

If one exists, its index refers to data files of the same names as the new one's, and two renames are not atomic. But
the number of shards in the names is ours to choose, and the index contains it. So the new data files first get names
that no index uses. One rename, of an index with that number of shards, switches readers over. Only then are the data
files linked under their final names, and another rename switches to the index that TensorFlow would have written:

    P.index (1 shard)  -> P.data-00000-of-00001   old     | a crash here leaves the old checkpoint
                          P.data-00000-of-00002   new     |
    P.index (2 shards) -> P.data-00000-of-00002   new       the switch
                          P.data-00000-of-00001   new     | a crash here leaves the new checkpoint
    P.index (1 shard)  -> P.data-00000-of-00001   new       done; the other name is removed

At every moment the current index refers to data files that belong to it. TensorFlow has a gap here.

Object stores have no renames. There data files are written under their final names, with an unused number of shards if
a checkpoint is replaced, and the index is written last, atomically.

`Marker` marks a save in progress, so that cleanup can recognise interrupted saves. `remove_bundle` deletes a checkpoint
without ever leaving a part that looks like a checkpoint.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from torch_tfckpt.errors import CheckpointError, IncompleteSaveError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.tensor_bundle import data_filename, index_filename, parse_data_filename
from torch_tfckpt.storage.names import new_save_number, temporary_name
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.storage.small_files import make_directories, write_file
from torch_tfckpt.text import printable

_log = logging.getLogger(__name__)


class Marker:
    """Empty file that marks a save in progress: named like a temporary index, in use until `end`.

    `bundle.leftovers` uses it to find the files of killed saves.
    It must be created before the other files of a save and removed after them: a marker that is not in use shows that
    others may exist.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, storage: Storage, prefix: str) -> None:
        self.index, self.save = index_filename(prefix), new_save_number()
        self._storage = storage
        self._file: WritableFile | None = None
        if storage.renames:
            self._file = storage.create(temporary_name(self.index, self.save))

    def end(self, *, clean: bool) -> None:
        """End the save. Keep the file unless everything is `clean`, so that the next save cleans up."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            # Remove it before closing it: otherwise another process might treat this save's files as leftovers.
            if clean:
                remove(self._storage, file.path)
        finally:
            with suppress(OSError):  # it is empty
                file.close()


def remove(storage: Storage, path: str) -> bool:
    """Remove a file during cleanup; log errors and return False instead of raising."""
    try:
        storage.remove(path)
    except OSError as error:
        _log.info("could not remove %s: %s", printable(path), error)
        return False
    return True


EncodeIndex = Callable[[int], bytes]
"""Returns the index file for a number of shards; entries keep their shard numbers."""


@contextmanager
def saving(prefix: str) -> Iterator[None]:
    """Convert the system's errors to IncompleteSaveError. Must enclose the whole publication."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise IncompleteSaveError(
            f"save of {printable(prefix)}: {error}. Nothing was published; an earlier checkpoint of that name is "
            f"unchanged. Fix the system error, then save again",
            {0: error},
        ) from error


def make_durable(storage: Storage, path: str) -> None:
    """Make the names in the directory of `path`, which is already published, survive a power failure."""
    try:
        storage.sync_directory(os.path.dirname(path))
    except OSError as error:
        raise IncompleteSaveError(
            f"save of {printable(path)}: {error}. The new checkpoint is in place and can be read, but may not survive "
            f"a power failure. Fix the system error, then save again",
            {0: error},
        ) from error


class BundlePublication:
    """The files of one save of checkpoint `prefix`, from creation until they are published or removed.

    The first file is a marker, which is removed last: it identifies a save that was killed or could not clean up.

    Raises:
        OSError: the directory cannot be created, or no file can be created in it. Here and below the
            caller converts the system's errors to IncompleteSaveError, with `saving`.

    Thread safety: one publication per prefix at a time.
    """

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage, self._prefix = storage, prefix
        self._data: list[str] = []  # current path of each shard's bytes
        self._shown = 0  # the number of shards in the names of data files, on storages without renames
        self._switching = False  # the new index may be in place
        self._over = False  # published or abandoned
        make_directories(storage, os.path.dirname(prefix))
        self._marker = Marker(storage, prefix)
        self._index = self._marker.index

    def new_data_names(self, count: int) -> list[str]:
        """Return the paths under which to write, or link, `count` shards before `publish`."""
        storage, prefix = self._storage, self._prefix
        if storage.renames:
            save = self._marker.save
            self._data = [temporary_name(data_filename(prefix, n, count), save) for n in range(count)]
        else:
            self._shown = _unused_count(storage, prefix, count) if storage.exists(self._index) else count
            self._data = [data_filename(prefix, n, self._shown) for n in range(count)]
        return self._data

    def publish(self, encode_index: EncodeIndex) -> None:
        """Publish the data files, whose bytes are durable, as shards 0, 1, ... of the checkpoint.

        Raises:
            OSError: the system refused a step. Nothing was published, and the data files are removed.
            IncompleteSaveError: the new checkpoint is in place but not durable, or it is unknown whether it is.
        """
        storage, prefix, count = self._storage, self._prefix, len(self._data)
        clean = False
        try:
            replacing = storage.exists(self._index)
            if storage.renames:
                shown = _unused_count(storage, prefix, count) if replacing else count
            else:
                shown = self._shown
            durable = self._switch(encode_index(shown), shown)
            self._over, clean = True, not replacing
            if not durable:
                make_durable(storage, self._index)
            if replacing:
                clean = _move_to_final_names(storage, prefix, count, shown, encode_index)
        finally:
            if self._over:
                self._marker.end(clean=clean)

    def abandon(self) -> None:
        """Remove everything that was written. Does nothing after `publish`."""
        if not self._over:
            self._over = True
            clean = [remove(self._storage, path) for path in self._data]
            self._marker.end(clean=all(clean))

    def _switch(self, index: bytes, shown: int) -> bool:
        """Name the data files and put the index in place; return whether its name is also durable.

        Raises like `publish`.
        """
        storage, prefix = self._storage, self._prefix
        try:
            if storage.renames:
                _name_data(storage.replace, prefix, self._data, shown, storage)
            self._switching = True
            write_file(storage, self._index, index)
        except BaseException as error:
            # A rename may report an error although it succeeded (over a network), or Ctrl-C may follow it. The data of
            # the current index is never deleted: an orphaned file is better than lost data.
            in_place = self._switching and _is_in_place(storage, prefix, index)
            if in_place is False:
                self._data += [data_filename(prefix, shard, shown) for shard in range(len(self._data))]
                self.abandon()
                raise
            self._over = True
            if not isinstance(error, OSError):
                raise
            if in_place is None:
                raise IncompleteSaveError(
                    f"save of {printable(prefix)}: {error}. Its index cannot be read, so it is unknown whether the new "
                    f"checkpoint was published; if not, an earlier one of that name is unchanged. Fix the system "
                    f"error, then save again",
                    {0: error},
                ) from error
            return False
        return True


def _move_to_final_names(storage: Storage, prefix: str, count: int, shown: int, encode_index: EncodeIndex) -> bool:
    """Switch from the temporary shard count to the final one, and remove all other files of the prefix.

    The checkpoint is already published and complete: if links are not supported (FAT, some network file systems), or
    the disk is full by now, it keeps its current names. Return whether no other file of the prefix is left.
    """
    transitional = [data_filename(prefix, shard, shown) for shard in range(count)]
    proper = [data_filename(prefix, shard, count) for shard in range(count)]
    try:
        for path in proper:  # of the old checkpoint; the current index does not refer to them any more
            storage.remove(path)
        _name_data(storage.link, prefix, transitional, count, storage)
        write_file(storage, index_filename(prefix), encode_index(count))
        kept = set(proper)
    except OSError as error:
        _log.info(
            "%s: could not rename its data files, which keep names of %d shards: %s", printable(prefix), shown, error
        )
        kept = set(transitional)
        if _is_in_place(storage, prefix, encode_index(count)) is not False:
            kept |= set(proper)
    try:
        others = [path for path in data_files_of(storage, prefix) if path not in kept]
    except OSError as error:
        _log.info("%s: could not list older data files, so they were not removed: %s", printable(prefix), error)
        return False
    return all([remove(storage, path) for path in others])


def _is_in_place(storage: Storage, prefix: str, index: bytes) -> bool | None:
    """Return whether the index of `prefix` has these bytes; None if it cannot be read."""
    try:
        file = storage.open(index_filename(prefix))
    except (NotFoundError, InvalidArgumentError):  # missing, or a directory
        return False
    except (CheckpointError, OSError):
        return None
    try:
        return file.size == len(index) and file.read(0, file.size) == index
    except (CheckpointError, OSError):
        return None
    finally:
        file.close()


def data_files_of(storage: Storage, prefix: str) -> list[str]:
    """Return all files that are named like a shard of `prefix`, with any count in their names."""
    directory = os.path.dirname(prefix)
    paths = (os.path.join(directory, name) for name in storage.list(directory))
    return [
        path
        for path in paths
        if (parsed := parse_data_filename(path)) is not None and parsed[0] == prefix and path == data_filename(*parsed)
    ]


def _unused_count(storage: Storage, prefix: str, count: int) -> int:
    """Return a number of shards above `count` that no file of this prefix uses."""
    used = [parsed[2] for path in data_files_of(storage, prefix) if (parsed := parse_data_filename(path)) is not None]
    return max([count, *used]) + 1


def _name_data(
    give_name: Callable[[str, str], None], prefix: str, paths: Sequence[str], count: int, storage: Storage
) -> None:
    for shard, path in enumerate(paths):
        give_name(path, data_filename(prefix, shard, count))
    storage.sync_directory(os.path.dirname(prefix))


def remove_bundle(storage: Storage, prefix: str) -> None:
    """Remove the index and all data files of `prefix`; do nothing if there are no such files.

    The index is removed first, so that the rest is not mistaken for a checkpoint. It is renamed to a leftover first, so
    that the next save removes the data if this process is killed in between (`bundle.leftovers`). Readers that have the
    checkpoint open are not disturbed.

    Raises:
        OSError: the system refused. The next save in that directory removes the rest.
    """
    index = index_filename(prefix)
    leftover = index
    if storage.renames and storage.exists(index):
        leftover = temporary_name(index)
        storage.replace(index, leftover)
        storage.sync_directory(os.path.dirname(prefix))
    elif not storage.renames:
        storage.remove(index)
    for path in data_files_of(storage, prefix):
        storage.remove(path)
    storage.remove(leftover)
