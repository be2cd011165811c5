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

At every moment the index in place names data files that belong to it. TensorFlow has a gap here (spec: FORMATS 2.8).
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch_tfckpt.errors import CheckpointError, IncompleteSaveError, NotFoundError, printable
from torch_tfckpt.format.tensor_bundle import data_filename, index_filename, parse_data_filename
from torch_tfckpt.storage.names import temporary_name
from torch_tfckpt.storage.protocol import Storage

_log = logging.getLogger(__name__)

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


def publish(storage: Storage, prefix: str, data_files: Sequence[str], encode_index: EncodeIndex) -> None:
    """Publishes `data_files`, whose bytes are durable, as shards 0, 1, ... of checkpoint `prefix`.

    Raises:
        IncompleteSaveError: the system refused a step. Nothing was published and the data files are gone, unless the
            text says that the new checkpoint is in place.

    Threads: one publication of a prefix at a time.
    """
    count = len(data_files)
    with saving(prefix):
        replacing = storage.exists(index_filename(prefix))
        shown = _unused_count(storage, prefix, count) if replacing else count
        index = encode_index(shown)
        try:
            _name_data(storage.replace, prefix, data_files, shown, storage)
            _put_index(storage, prefix, index)
        except BaseException as error:
            # A rename may have happened although it reports a failure, over a network, or Ctrl-C came right behind it.
            # The data of the index in place is never taken away; an orphan is better than a loss.
            if not _may_be_in_place(storage, prefix, index):
                for path in (*data_files, *(data_filename(prefix, shard, shown) for shard in range(count))):
                    _remove(storage, path)
                raise
            if not isinstance(error, OSError):
                raise
    make_durable(storage, index_filename(prefix))
    if replacing:
        _settle(storage, prefix, count, shown, encode_index)


def _settle(storage: Storage, prefix: str, count: int, shown: int, encode_index: EncodeIndex) -> None:
    """From the transitional names to the proper ones; then nothing but this checkpoint remains under the prefix.

    The checkpoint is published and complete: where there are no links (FAT, some network file systems), or the disk is
    full by now, it stays under its transitional names.
    """
    transitional = [data_filename(prefix, shard, shown) for shard in range(count)]
    proper = [data_filename(prefix, shard, count) for shard in range(count)]
    try:
        _name_data(storage.link, prefix, transitional, count, storage)
        _put_index(storage, prefix, encode_index(count))
        storage.sync_directory(os.path.dirname(prefix))
        kept = set(proper)
    except OSError as error:
        _log.info("%s keeps its data under the names of %d shards: %s", printable(prefix), shown, error)
        kept = set(transitional)
        if _may_be_in_place(storage, prefix, encode_index(count)):
            kept |= set(proper)
    try:
        others = [path for path in data_files_of(storage, prefix) if path not in kept]
    except OSError as error:
        _log.info("%s: older data files stay: %s", printable(prefix), error)
        return
    for path in others:
        _remove(storage, path)


def _may_be_in_place(storage: Storage, prefix: str, index: bytes) -> bool:
    """Whether the index of `prefix` has these bytes, or cannot be looked at."""
    try:
        file = storage.open(index_filename(prefix))
    except NotFoundError:
        return False
    except (CheckpointError, OSError):
        return True
    try:
        return file.size == len(index) and file.read(0, file.size) == index
    except (CheckpointError, OSError):
        return True
    finally:
        file.close()


def _remove(storage: Storage, path: str) -> None:
    """Clears up behind something that matters more."""
    try:
        storage.remove(path)
    except OSError as error:
        _log.info("left behind: %s: %s", printable(path), error)


def data_files_of(storage: Storage, prefix: str) -> list[str]:
    """All files named like a shard of `prefix`, whatever count their names bear."""
    directory = os.path.dirname(prefix)
    paths = (os.path.join(directory, name) for name in storage.list(directory))
    return [path for path in paths if (parsed := parse_data_filename(path)) is not None and parsed[0] == prefix]


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


def _put_index(storage: Storage, prefix: str, contents: bytes) -> None:
    path = index_filename(prefix)
    temporary = temporary_name(path)
    try:
        file = storage.create(temporary)
        try:
            file.write(0, [contents])
            file.sync()
        finally:
            file.close()
        storage.replace(temporary, path)
    except BaseException:
        _remove(storage, temporary)
        raise
