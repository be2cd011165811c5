"""Publish data files and an index as a checkpoint, atomically for all readers and other writers.

Guaranteed, however many programs and threads save the same prefix, on any hosts:

- At every moment a reader finds one complete checkpoint: the old one, or one of the new ones.
- Of saves that overlap, the one that publishes last wins, with all its files. The others return normally and log it.
- Before a save returns, it checks that its own index, or the index of another complete checkpoint, is in place.

Without an index there is no checkpoint, and the index is replaced by one rename. The index contains a number of shards,
which also appears in the names of its data files, and any sufficiently large number is valid. So a save first claims
names that nobody else uses, by creating the first of them exclusively; then it renames its index into place:

    P.index (1 shard)  -> P.data-00000-of-00001   old     | a crash here leaves the old checkpoint
                          P.data-00000-of-41673   new     |
    P.index (41673)    -> P.data-00000-of-41673   new       the switch
                          P.data-00000-of-00001   new     | a crash here leaves the new checkpoint
    P.index (1 shard)  -> P.data-00000-of-00001   new       done: the index and names that TensorFlow would have written

If there is no checkpoint of that name, the names that TensorFlow would use are claimed directly. Otherwise, switching
to those names is not safe while other saves do the same, so the directory is locked during the switch, if possible. If
a save that does not see the lock, for example on another host, may be running for the same prefix, the checkpoint keeps
the claimed names, which every reader accepts.

Object stores have neither renames nor exclusive creation. There, data files are written under their final names, with
the smallest unused number of shards if a checkpoint is replaced, and the index is written last, atomically. On object
stores, overlapping saves of one prefix may use the same names: only one program at a time may save a prefix.
"""

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress

from torch_tfckpt.bundle.claim import claim_names, unused_number
from torch_tfckpt.bundle.files import BundleFiles
from torch_tfckpt.bundle.leftovers import remove_leftovers
from torch_tfckpt.bundle.marker import Marker
from torch_tfckpt.bundle.unfinished import count_in_names, current_count, data_files_of, running_markers
from torch_tfckpt.errors import CheckpointError, IncompleteSaveError, InvalidArgumentError
from torch_tfckpt.format.tensor_bundle import data_filename
from torch_tfckpt.storage.names import LONGEST_END, refuse_long_name, temporary_name
from torch_tfckpt.storage.protocol import Storage, WritableFile
from torch_tfckpt.storage.small_files import make_directories
from torch_tfckpt.text import printable, quoted

_log = logging.getLogger(__name__)


def remove(storage: Storage, path: str) -> bool:
    """Remove a file during cleanup; log errors and return False instead of raising."""
    try:
        storage.remove(path)
    except OSError as error:
        _log.info("could not remove %s: %s", printable(path), error)
        return False
    return True


def close_files(files: Sequence[WritableFile]) -> None:
    """Close all files, even if Ctrl-C interrupts one of the calls. Their bytes are no longer needed."""
    with ExitStack() as stack:
        for file in files:
            stack.enter_context(suppress(OSError))
            stack.callback(file.close)


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
    """Sync the directory of `path`, so that the published names in it survive a power failure."""
    try:
        storage.sync_directory(os.path.dirname(path))
    except OSError as error:
        raise not_durable(path, error) from error


def not_durable(path: str, error: OSError) -> IncompleteSaveError:
    """Return the error for a checkpoint that is published, although its directory could not be synced."""
    return IncompleteSaveError(
        f"save of {printable(path)}: {error}. The new checkpoint is in place and can be read, but may not survive "
        f"a power failure. Fix the system error, then save again",
        {0: error},
    )


class BundlePublication:
    """The files of one save of checkpoint `prefix`, from creation until they are published or removed.

    Files that killed programs left in the directory are removed first. Then a marker is created: it identifies a save
    that was killed or could not clean up, and it becomes the index.

    Args:
        marker: This save's marker, if it already exists.
        save: The number for a new marker, as for Marker.

    Raises:
        InvalidArgumentError: the names of the files would be too long. Nothing was changed.
        OSError: the directory cannot be created, or no file can be created in it. Here and below the
            caller converts the system's errors to IncompleteSaveError, with `saving`.

    Thread safety: one thread at a time uses a publication; any number of publications of one prefix may exist.
    """

    def __init__(self, storage: Storage, prefix: str, marker: Marker | None = None, *, save: int | None = None) -> None:
        self._storage, self._prefix, self._directory = storage, prefix, os.path.dirname(prefix)
        self._data: list[str] = []  # temporary name of each shard
        self._names: list[str] = []  # claimed names of the data files
        self._over = False  # published or abandoned
        if storage.renames:
            refuse_long_name(prefix, appended=LONGEST_END)
        make_directories(storage, self._directory)
        remove_leftovers(storage, self._directory)
        self._marker = marker or Marker(storage, prefix, save)

    @property
    def save(self) -> int:
        """The number in the names of this save's temporary files."""
        return self._marker.save

    def new_data_names(self, count: int) -> list[str]:
        """Return the paths under which to write, or link, `count` shards before `publish`."""
        storage, prefix = self._storage, self._prefix
        if storage.renames:
            for shard in range(count):
                self._data.append(temporary_name(data_filename(prefix, shard, count), self._marker.save))
        else:
            shown = unused_number(storage, prefix, count) if storage.exists(self._marker.index) else count
            self._data = self._names = [data_filename(prefix, n, shown) for n in range(count)]
        return self._data

    def publish(
        self, encode_index: EncodeIndex, files: Sequence[WritableFile] = (), *, data: Sequence[str] | None = None
    ) -> None:
        """Publish the data files, whose bytes are durable, as shards 0, 1, ... of the checkpoint.

        Args:
            files: The data files, if they are open. They are closed at the end: an open file is never treated as
                a leftover.
            data: The paths of the data files, in order of their shards, if they were not chosen by `new_data_names`:
                temporary names in the prefix's directory, possibly created by other processes, which need not be open
                any more. On storages without renames, names that one call of `new_data_names` returns for that
                number of files. If publishing fails, these files are removed, too.

        Raises:
            InvalidArgumentError: `data` is empty, or has a path outside the prefix's directory.
            OSError: a file operation failed. Nothing was published, and the data files are removed.
            IncompleteSaveError: the new checkpoint is in place but not durable; or it is unknown whether the new
                checkpoint is in place; or another program has since removed or damaged it.
        """
        if data is not None:
            self._take(data)
        storage, switch = self._storage, self._marker
        last = switch  # the marker that becomes the final index
        guard: Marker | None = None  # marks the save until the replaced files are removed
        switched = clean = False
        with storage.exclusive(self._directory) as locked:
            try:
                try:
                    replacing = storage.exists(switch.index)
                    replaced = current_count(storage, self._prefix) if replacing else None
                    if not storage.renames:
                        shown = count_in_names(self._names[0])
                    else:
                        shown = claim_names(storage, self._prefix, self._data, self._names, replacing=replacing)
                        if shown != len(self._names):
                            guard = Marker(storage, self._prefix)
                            last = Marker(storage, self._prefix)
                    switch.publish(encode_index(shown))
                except BaseException as error:
                    self._fail(error)
                self._over = switched = True
                try:
                    storage.sync_directory(self._directory)
                except OSError as error:
                    raise not_durable(switch.index, error) from error
                if guard is not None:
                    clean = self._move_to_final_names(last, guard, encode_index, replaced, locked)
                elif replacing:
                    clean = self._remove_replaced()
                # Check the result once more: storages and other programs may not behave as expected. The data files are
                # checked first: another save removes them after it has replaced the index.
                missing = ""
                if storage.renames:
                    with suppress(OSError, CheckpointError):  # if unknown, the file counts as present
                        for name in self._names:
                            missing = missing if storage.exists(name) else name
                in_place = last.is_published() or switch.is_published()
                if in_place is False:
                    clean = self._accept_other()
                elif in_place and missing:
                    raise _gone(self._prefix, f"another program has removed {printable(missing)}")
            finally:
                with ExitStack() as ends:  # last callback first; all run, even if Ctrl-C interrupts one
                    if guard is not None:
                        ends.callback(guard.end, clean=clean or not switched)
                    ends.callback(last.end, clean=True)
                    ends.callback(switch.end, clean=switched)
        for file in files:
            with suppress(OSError):  # the file is already durable
                file.close()

    def _take(self, data: Sequence[str]) -> None:
        """Use the files `data` as shards."""
        place = f"save of {printable(self._prefix)}"
        if not data:
            raise InvalidArgumentError(f"{place}: there is no data file to publish. Pass at least one, even if empty")
        for path in data:
            if os.path.dirname(path) != self._directory:
                raise InvalidArgumentError(
                    f"{place}: the data file {quoted(path)} is in another directory, so that it cannot be renamed. "
                    f"Create it next to the index"
                )
        self._data = list(data)
        if not self._storage.renames:
            self._names = self._data

    def abandon(self) -> None:
        """Remove everything that was written. Does nothing after `publish`."""
        if not self._over:
            self._over = True
            clean = False
            try:
                clean = all([remove(self._storage, path) for path in dict.fromkeys([*self._data, *self._names])])
            finally:
                self._marker.end(clean=clean)

    def _fail(self, error: BaseException) -> None:
        """Abandon the save after an error before or during the switch; raise unless the switch succeeded anyway."""
        # A rename may report an error although it succeeded (over a network), or Ctrl-C may follow it. The data of the
        # current index is never deleted: an orphaned file is better than lost data.
        in_place = self._marker.is_published()
        if in_place is False:
            if isinstance(error, OSError):
                self.abandon()
            else:  # Ctrl-C may have arrived before a claimed name was recorded: the marker stays
                self._over = True
                for path in dict.fromkeys([*self._data, *self._names]):
                    remove(self._storage, path)
                self._marker.end(clean=False)
            raise error
        self._over = True
        if not isinstance(error, OSError):
            raise error
        if in_place is None:
            raise IncompleteSaveError(
                f"save of {printable(self._prefix)}: {error}. Its index cannot be read, so it is unknown whether the "
                f"new checkpoint was published; if not, an earlier one of that name is unchanged. Fix the system "
                f"error, then save again",
                {0: error},
            ) from error

    def _move_to_final_names(
        self, marker: Marker, guard: Marker, encode_index: EncodeIndex, replaced: int | None, locked: bool
    ) -> bool:
        """Remove the replaced data files, and switch to TensorFlow's shard count and names if that is safe.

        The checkpoint is already published and complete. It keeps its current names if links are not supported (FAT,
        some network file systems), if the disk is full by now, or if a save that this one cannot lock out may be
        running.

        Args:
            marker: Becomes the index.
            guard: Marks this save as running until the replaced files are removed.
            replaced: Number of shards in the names of the replaced checkpoint, if there was one.

        Returns:
            Whether no other file of the prefix is left.
        """
        storage, prefix, claimed = self._storage, self._prefix, self._names
        linked: list[str] = []
        clean = False
        try:
            # Find markers and data files in the same listing: a save creates its marker before its data files, so a
            # listing that contains a data file of another running save also contains that save's marker.
            listed = storage.list(self._directory)
            others = running_markers(storage, prefix, listed, [marker.save, guard.save, self._marker.save])
            if others:
                _log.warning(
                    "%s: other saves of this checkpoint are in progress (%d); the last save to finish replaces the "
                    "others. If this is the same program on several ranks, let them save together: Saver(..., "
                    "ranks=tfckpt.Ranks())",
                    printable(prefix),
                    len(others),
                )
            old = [path for path in data_files_of(storage, prefix, listed) if path not in claimed]
            if not all(locked and other.domain == marker.save >> 32 for other in others):
                _log.info(
                    "%s: its data files are not renamed, because other hosts are saving the same checkpoint",
                    printable(prefix),
                )
                for path in old:
                    if count_in_names(path) == replaced:
                        remove(storage, path)
                return False
            clean = all([remove(storage, path) for path in old])
            final = [data_filename(prefix, shard, len(claimed)) for shard in range(len(claimed))]
            for path, name in zip(claimed, final, strict=True):
                linked.append(name)
                try:
                    storage.link(path, name)
                except FileExistsError:
                    linked.pop()  # the existing file is not ours
                    raise
            storage.sync_directory(self._directory)
            if self._marker.is_published() is False:
                raise FileExistsError(errno.EEXIST, "another save has replaced it", self._marker.index)
            marker.publish(encode_index(len(claimed)))
        except (OSError, CheckpointError) as error:
            _log.info(
                "%s: could not rename its data files, whose names still declare %d shards: %s",
                printable(prefix),
                count_in_names(claimed[0]),
                error,
            )
            if marker.is_published() is not False:
                return False  # the index may be in place: keep all files it might need
            return all([clean, *(remove(storage, path) for path in linked)])
        self._names = final
        try:
            storage.sync_directory(self._directory)
        except OSError as error:
            _log.info("%s: the final names may not survive a power failure: %s", printable(prefix), error)
            return False
        return all([clean, *(remove(storage, path) for path in claimed)])

    def _remove_replaced(self) -> bool:
        """Remove the data files of the replaced checkpoint, on storages without renames."""
        try:
            old = [path for path in data_files_of(self._storage, self._prefix) if path not in self._names]
        except (OSError, CheckpointError) as error:
            _log.info(
                "%s: could not list older data files, so they were not removed: %s", printable(self._prefix), error
            )
            return False
        return all([remove(self._storage, path) for path in old])

    def _accept_other(self) -> bool:
        """Remove the data files of this save, whose checkpoint was replaced; return whether all is clean.

        Raises:
            IncompleteSaveError: there is no other complete checkpoint.
        """
        storage, prefix = self._storage, self._prefix
        try:
            with closing(BundleFiles(storage, prefix)) as files:
                files.check_data()
        except (CheckpointError, OSError) as error:
            raise _gone(prefix, str(error)) from error
        _log.warning("%s: this save was replaced by a concurrent save, which is complete", printable(prefix))
        for name in self._names:
            if count_in_names(name) != len(self._names):
                remove(storage, name)
        return False


def _gone(prefix: str, found: str) -> IncompleteSaveError:
    return IncompleteSaveError(
        f"save of {printable(prefix)}: the new checkpoint was in place, but is no longer complete: {found}. Let "
        f"only one program save and delete checkpoints of this name, then save again"
    )
