"""Makes finished data files and an index the checkpoint of a prefix, in one step for every reader.

Where no checkpoint of that name exists, the data files are renamed and then the index: the index is what makes a
checkpoint, so a crash before it leaves nothing that a reader would open.

Where one exists, its index names the very data files that the new one wants to name, and two renames are no single
step. The number of shards in the names is ours to choose, though, and it stands in the index. So the new data first get
names that no index uses; one rename of an index that counts shards that way switches readers over; and only then are
they linked under their proper names, and one more rename switches to the index that TensorFlow would have written:

    P.index (1 shard)  -> P.data-00000-of-00001   old     | a crash here leaves the old checkpoint
                          P.data-00000-of-00002   new     |
    P.index (2 shards) -> P.data-00000-of-00002   new       the switch
                          P.data-00000-of-00001   new     | a crash here leaves the new checkpoint
    P.index (1 shard)  -> P.data-00000-of-00001   new       done; the other name goes

At every moment the index in place names data files that belong to it. TensorFlow has a gap here.

Object stores have no renames. There data are written under their final names, of an unused number of shards where a
checkpoint is to be replaced, and the index comes last, in one step.

`Marker` marks a save in progress, so that cleanup can recognise interrupted saves. `remove_bundle` deletes a checkpoint
so that no moment leaves half of one.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from torch_tfckpt.errors import CheckpointError, IncompleteSaveError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.tensor_bundle import data_filename, index_filename, parse_data_filename
from torch_tfckpt.storage.names import new_save_number, temporary_name
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.storage.small_files import write_file
from torch_tfckpt.text import printable

_log = logging.getLogger(__name__)


class Marker:
    """An empty file, named like an unfinished index of `prefix`, that is in use until `end` (`bundle.leftovers`).

    It must be the first file of a save and the last to go: found not in use, it tells that there may be others.

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
        """The save is over. Unless it left everything clean, the file stays, so that the next save clears up."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            # Not closed first: somebody else might then take the files of this save for leftovers.
            if clean:
                remove(self._storage, file.path)
        finally:
            with suppress(OSError):  # it is empty
                file.close()


def remove(storage: Storage, path: str) -> bool:
    """Clears up behind something that matters more. Returns whether it could."""
    try:
        storage.remove(path)
    except OSError as error:
        _log.info("left behind: %s: %s", printable(path), error)
        return False
    return True


EncodeIndex = Callable[[int], bytes]
"""The bytes of the index that counts so many shards; entries keep their shard numbers."""


@contextmanager
def saving(prefix: str) -> Iterator[None]:
    """Turns what the system refuses inside into an IncompleteSaveError. What publishes must not go on after that."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise IncompleteSaveError(
            f"save of {printable(prefix)}: {error}. Nothing was published; an earlier checkpoint of that name is "
            f"untouched. Mend what the system complains of, then save again",
            {0: error},
        ) from error


def make_durable(storage: Storage, path: str) -> None:
    """Makes the names beside `path`, which is published already, survive a power cut."""
    try:
        storage.sync_directory(os.path.dirname(path))
    except OSError as error:
        raise IncompleteSaveError(
            f"save of {printable(path)}: {error}. The new checkpoint is in place and can be read, but may not survive "
            f"a power cut. Mend what the system complains of, then save again",
            {0: error},
        ) from error


class BundlePublication:
    """The files of one save of checkpoint `prefix`, from their first byte until they are the checkpoint, or gone.

    The first file is a marker, which goes last: a save that was killed, or could not clear up, can be told by it.

    Raises:
        OSError: the directory cannot be made (nothing above it is), or no file be created in it. Here and below the
            caller turns what the system refuses into an IncompleteSaveError, with `saving`.

    Threads: one publication of a prefix at a time.
    """

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage, self._prefix = storage, prefix
        self._data: list[str] = []  # where the bytes of each shard are now
        self._shown = 0  # the number of shards in the names of data files that cannot be renamed
        self._switching = False  # the new index may be in place
        self._over = False  # published or abandoned
        storage.make_directory(os.path.dirname(prefix))
        self._marker = Marker(storage, prefix)
        self._index = self._marker.index

    def new_data_names(self, count: int) -> list[str]:
        """Where the bytes of so many shards are to be written, or linked, before `publish`."""
        storage, prefix = self._storage, self._prefix
        if storage.renames:
            save = self._marker.save
            self._data = [temporary_name(data_filename(prefix, n, count), save) for n in range(count)]
        else:
            self._shown = _unused_count(storage, prefix, count) if storage.exists(self._index) else count
            self._data = [data_filename(prefix, n, self._shown) for n in range(count)]
        return self._data

    def publish(self, encode_index: EncodeIndex) -> None:
        """Makes the data files, whose bytes are durable, shards 0, 1, ... of the checkpoint.

        Raises:
            OSError: the system refused a step. Nothing was published and the data files are gone.
            IncompleteSaveError: the new checkpoint is in place but not durable, or whether it is cannot be told.
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
                clean = _settle(storage, prefix, count, shown, encode_index)
        finally:
            if self._over:
                self._marker.end(clean=clean)

    def abandon(self) -> None:
        """Removes everything that was written. Nothing to do after `publish`."""
        if not self._over:
            self._over = True
            clean = [remove(self._storage, path) for path in self._data]
            self._marker.end(clean=all(clean))

    def _switch(self, index: bytes, shown: int) -> bool:
        """Names the data files and puts the index in place. Returns whether its name is durable, too.

        Raises as `publish`.
        """
        storage, prefix = self._storage, self._prefix
        try:
            if storage.renames:
                _name_data(storage.replace, prefix, self._data, shown, storage)
            self._switching = True
            write_file(storage, self._index, index)
        except BaseException as error:
            # A rename may have happened although it reports a failure, over a network, or Ctrl-C came right after it.
            # The data of the index in place is never taken away; an orphan is better than a loss.
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
                    f"save of {printable(prefix)}: {error}. Whether the new checkpoint came into place cannot be told, "
                    f"as its index cannot be read; if not, an earlier one of that name is untouched. Mend what the "
                    f"system complains of, then save again",
                    {0: error},
                ) from error
            return False
        return True


def _settle(storage: Storage, prefix: str, count: int, shown: int, encode_index: EncodeIndex) -> bool:
    """From the transitional names to the proper ones; then nothing but this checkpoint remains under the prefix.

    The checkpoint is published and complete: where there are no links (FAT, some network file systems), or the disk is
    full by now, it stays under its transitional names. Returns whether nothing else remains.
    """
    transitional = [data_filename(prefix, shard, shown) for shard in range(count)]
    proper = [data_filename(prefix, shard, count) for shard in range(count)]
    try:
        for path in proper:  # of the old checkpoint, which the index in place no longer names
            storage.remove(path)
        _name_data(storage.link, prefix, transitional, count, storage)
        write_file(storage, index_filename(prefix), encode_index(count))
        kept = set(proper)
    except OSError as error:
        _log.info("%s keeps its data under the names of %d shards: %s", printable(prefix), shown, error)
        kept = set(transitional)
        if _is_in_place(storage, prefix, encode_index(count)) is not False:
            kept |= set(proper)
    try:
        others = [path for path in data_files_of(storage, prefix) if path not in kept]
    except OSError as error:
        _log.info("%s: older data files stay: %s", printable(prefix), error)
        return False
    return all([remove(storage, path) for path in others])


def _is_in_place(storage: Storage, prefix: str, index: bytes) -> bool | None:
    """Whether the index of `prefix` has these bytes; None where it cannot be looked at."""
    try:
        file = storage.open(index_filename(prefix))
    except (NotFoundError, InvalidArgumentError):  # nothing, or a directory
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
    """All files named as a shard of `prefix` is, whatever count their names bear."""
    directory = os.path.dirname(prefix)
    paths = (os.path.join(directory, name) for name in storage.list(directory))
    return [
        path
        for path in paths
        if (parsed := parse_data_filename(path)) is not None and parsed[0] == prefix and path == data_filename(*parsed)
    ]


def _unused_count(storage: Storage, prefix: str, count: int) -> int:
    """A number of shards above `count` that no file of this prefix bears."""
    used = [parsed[2] for path in data_files_of(storage, prefix) if (parsed := parse_data_filename(path)) is not None]
    return max([count, *used]) + 1


def _name_data(
    give_name: Callable[[str, str], None], prefix: str, paths: Sequence[str], count: int, storage: Storage
) -> None:
    for shard, path in enumerate(paths):
        give_name(path, data_filename(prefix, shard, count))
    storage.sync_directory(os.path.dirname(prefix))


def remove_bundle(storage: Storage, prefix: str) -> None:
    """Removes the index and all data files of `prefix`; fine where there are none.

    The index goes first: what is left is no checkpoint, rather than a broken one. It goes by becoming a leftover, so
    that the next save clears up the data if this process is killed before it has (`bundle.leftovers`). Readers that
    have the checkpoint open are not disturbed.

    Raises:
        OSError: the system refused. Whatever is left is cleared up by the next save in that directory.
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
