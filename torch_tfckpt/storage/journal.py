"""Switch several local files to new contents in one step, though they are renamed one by one.

    m-00000-of-00002, m-00001-of-00002                                                     old
    m-00000-of-00002.tempstate7-tfckpt, m-00001-of-00002.tempstate7-tfckpt                 new, complete and durable
    m.journal-tfckpt                 names the temporary files; its own rename is the switch
    m-00000-of-00002.tempstate7-tfckpt -> m-00000-of-00002 ...                             one by one
    m.journal-tfckpt                 removed

Readers that follow the journal are guaranteed to see either only old files or only new files, at every moment and after
a kill, an error or a power failure. While there is a journal, the new contents of a file are under its temporary name
if that exists, otherwise under its final name. A reader of several files reads the journal again at the end: if it has
changed, some files may be old and some new, and the reader starts again (`Journal.path_of`, `read_journal`).

Programs that do not know about journals get no guarantee: while there is a journal, they find a mix.

If a killed program left a journal, the next writer to its directory completes the switch (`finish_journals`), or the
next switch of the same files replaces the journal. A journal is trusted only if it matches the files: it lists files in
its own directory, with their sizes and their modification times before and after the switch. If a file matches neither
state, another program has written it since, and it is unknown which contents are wanted. In that case, reading is an
error, and nothing is renamed or removed.

Journals require a storage that supports renames. Programs on one host take turns (`Storage.exclusive`). If they cannot,
the last switch wins: it removes the temporary files of the journal that it replaces, and the other program skips
temporary files that no longer exist.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch_tfckpt.errors import CheckpointError, DataLossError, IncompleteSaveError, NotFoundError, error_context
from torch_tfckpt.storage.names import parse_temporary_name, stem
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.small_files import read_small, write_file
from torch_tfckpt.text import printable, quoted

_log = logging.getLogger(__name__)
JOURNAL_SUFFIX: Final = ".journal-tfckpt"
_FORMAT: Final = "torch_tfckpt journal"
_VERSION: Final = 1
_MAX_BYTES: Final = 64 * 1024 * 1024  # far more than a journal of 100,000 files needs


def journal_of(path: str) -> str:
    """Return the path of the journal of a checkpoint or converted file."""
    return path + JOURNAL_SUFFIX


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One file that is switched."""

    temporary: str  # temporary name of the new file
    size: int
    modified: float  # modification time of the new file, in seconds since the epoch
    before: float | None  # modification time of the old file; None if there was no old file


@dataclass(frozen=True, slots=True)
class Journal:
    """A switch that is not finished. Names are relative to the directory of `path`."""

    path: str
    files: Mapping[str, JournalEntry] = field(default_factory=dict)
    removed: Mapping[str, float | None] = field(default_factory=dict)  # name -> modification time

    def encode(self) -> bytes:
        files = {name: [*_plain(entry)] for name, entry in self.files.items()}
        content = {"format": _FORMAT, "version": _VERSION, "files": files, "removed": dict(self.removed)}
        return (json.dumps(content, indent=1) + "\n").encode("ascii")

    def path_of(self, storage: Storage, path: str) -> str:
        """Return the path at which the new contents of `path` are now. That file may be renamed at any time.

        Raises:
            NotFoundError: the switch removes the file, or its new contents are missing.
            DataLossError: another program has changed the file since the switch.
        """
        name = os.path.basename(path)
        if name in self.removed:
            raise NotFoundError(f"{printable(path)}: no such file; {printable(self.path)} lists it as removed")
        entry = self.files.get(name)
        if entry is None:
            return path
        temporary = self._join(entry.temporary)
        waiting = storage.exists(temporary)
        modified = _modified(storage, path)
        if modified == entry.modified or (waiting and modified == entry.before):
            return temporary if waiting else path
        if modified is None and not waiting:
            raise NotFoundError(f"neither {printable(path)} nor {printable(temporary)} exists. {self._how_to_fix()}")
        raise DataLossError(
            f"{printable(path)}: another program changed it after a save was interrupted. {self._how_to_fix()}"
        )

    def is_sound(self, storage: Storage) -> bool:
        """Return whether all new files exist and no other program has changed the files; if not, log why."""
        try:
            for name, entry in self.files.items():
                path = self.path_of(storage, self._join(name))
                size = _size(storage, path)
                if size != entry.size:
                    raise DataLossError(f"{printable(path)} has {size} bytes instead of {entry.size}")
        except CheckpointError as error:
            _log.warning("%s: the interrupted save cannot be finished: %s", printable(self.path), error)
            return False
        return True

    def finish(self, storage: Storage) -> None:
        """Finish the renames and removals; then remove the journal, unless another journal has replaced it.

        Raises:
            OSError: a step failed. The journal is kept.
        """
        directory = os.path.dirname(self.path)
        for name, entry in self.files.items():
            self._rename(storage, self._join(entry.temporary), self._join(name), entry.modified)
        for name, before in self.removed.items():
            if before is not None and _modified(storage, self._join(name)) == before:
                storage.remove(self._join(name))
        storage.sync_directory(directory)
        if self._is_current(storage):
            storage.remove(self.path)
            storage.sync_directory(directory)

    def _rename(self, storage: Storage, temporary: str, path: str, modified: float) -> None:
        if not storage.exists(temporary):
            return  # renamed before, perhaps by another program that finishes this journal
        try:
            storage.replace(temporary, path)
        except OSError:
            # On a network file system, a rename may report an error although it succeeded.
            if storage.exists(temporary) or _modified(storage, path) != modified:
                raise

    def _is_current(self, storage: Storage) -> bool:
        return _contents(storage, self.path) == self.encode()

    def _join(self, name: str) -> str:
        return os.path.join(os.path.dirname(self.path), name)

    def _how_to_fix(self) -> str:
        return (
            f"The save that {printable(self.path)} describes was interrupted. Save again; or, to use the files as they "
            f"are, delete the journal"
        )


def read_journal(storage: Storage, path: str) -> Journal | None:
    """Return the journal at `path`; None if there is none.

    Raises:
        DataLossError: it is damaged. FailedPreconditionError: it cannot be read.
    """
    text = _contents(storage, path)
    if text is None:
        return None
    hint = "Save again, or delete it to use the files as they are"
    with error_context(f"{printable(path)}: damaged journal", hint):
        return _decode(path, text)


def switch(
    storage: Storage,
    path: str,
    files: Mapping[str, str],
    removed: Iterable[str] = (),
    committed: Callable[[], object] = lambda: None,
) -> None:
    """Switch `files` to their new contents. The caller has locked the directory, if that is possible.

    Args:
        path: The journal; all other files are in its directory.
        files: Final path -> temporary path of the new contents, which are durable.
        removed: Files to remove. Those that do not exist are ignored.
        committed: Called once the new contents may be in place. From then on, the temporary files must not be removed.

    Raises:
        OSError: a step failed. Nothing was switched, unless the error is an IncompleteSaveError.
        IncompleteSaveError: the switch took place, but not all files could be renamed; or it is unknown whether the
            switch took place.
    """
    name = os.path.basename
    entries = {
        name(final): JournalEntry(
            name(temporary),
            _size(storage, temporary),
            storage.modified(temporary),
            _modified(storage, final),
        )
        for final, temporary in files.items()
    }
    gone = {name(each): before for each in removed if (before := _modified(storage, each)) is not None}
    storage.sync_directory(os.path.dirname(path))  # the journal needs durable temporary names
    journal = Journal(path, entries, gone)
    earlier = _temporaries_of(storage, path)
    try:
        write_file(storage, path, journal.encode())
    except BaseException as error:
        placed = _is_in_place(storage, journal)
        if placed is False:
            raise
        committed()
        if not isinstance(error, OSError):
            raise
        if placed is None:
            raise IncompleteSaveError(
                f"{printable(path)}: {error}. It is unknown whether the new files were published; if not, the earlier "
                f"ones are unchanged. Fix the system error, then save again",
                {0: error},
            ) from error
    committed()
    try:
        journal.finish(storage)
    except OSError as error:
        raise IncompleteSaveError(
            f"{printable(path)}: {error}. This package finds the new files, but some still have temporary names, "
            f"so other programs find a mix of old and new files. Fix the system error, then save again",
            {0: error},
        ) from error
    for temporary in earlier - set(files.values()):
        storage.remove(temporary)


def finish_journals(storage: Storage, directory: str, names: Iterable[str]) -> set[int]:
    """Finish the switches that killed programs left unfinished in `directory`.

    Args:
        names: The names of the files in the directory.

    Returns:
        The numbers of the saves whose temporary files a journal still needs.

    Raises:
        OSError, CheckpointError: a step failed.
    """
    found = []
    for name in names:
        if name.endswith(JOURNAL_SUFFIX):
            found.append(os.path.join(directory, name))
    if not found:
        return set()
    needed: set[str] = set()
    with storage.exclusive(directory):
        for path in found:
            try:
                journal = read_journal(storage, path)
            except DataLossError as error:
                _log.warning("%s", error)
                continue
            if journal is None:
                continue
            if journal.is_sound(storage):
                journal.finish(storage)
                _log.info("finished the interrupted save of %s", printable(path.removesuffix(JOURNAL_SUFFIX)))
            else:
                needed |= {entry.temporary for entry in journal.files.values()}
    return {parsed.save for name in needed if (parsed := parse_temporary_name(name)) is not None}


def _plain(entry: JournalEntry) -> tuple[Any, ...]:
    return entry.temporary, entry.size, entry.modified, entry.before


def _temporaries_of(storage: Storage, path: str) -> set[str]:
    """Return the temporary files of the journal at `path`, which is about to be replaced."""
    try:
        earlier = read_journal(storage, path)
    except CheckpointError:
        return set()
    return set() if earlier is None else {earlier._join(entry.temporary) for entry in earlier.files.values()}


def _is_in_place(storage: Storage, journal: Journal) -> bool | None:
    """Return whether the journal was published; None if that cannot be determined."""
    try:
        return journal._is_current(storage)
    except (CheckpointError, OSError):
        return None


def _contents(storage: Storage, path: str) -> bytes | None:
    try:
        return read_small(storage, path, _MAX_BYTES, "a journal")
    except NotFoundError:
        return None


def _modified(storage: Storage, path: str) -> float | None:
    try:
        return storage.modified(path)
    except (FileNotFoundError, NotFoundError):
        return None


def _size(storage: Storage, path: str) -> int:
    file = storage.open(path)
    file.close()
    return file.size


def _decode(path: str, text: bytes) -> Journal:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataLossError(f"not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise DataLossError(f"its format is not version {_VERSION} of {quoted(_FORMAT)}")
    files, removed = content.get("files"), content.get("removed")
    if not isinstance(files, dict) or not isinstance(removed, dict):
        raise DataLossError('no object "files" or "removed"')
    base = os.path.splitext(os.path.basename(path).removesuffix(JOURNAL_SUFFIX))[0]
    for name in (*files, *removed):
        # A journal must not make us rename or remove any other file.
        if not _file_name(name).startswith(base):
            raise DataLossError(f"{quoted(name)} does not belong to {quoted(base)}")
    entries = {name: _decode_entry(name, entry) for name, entry in files.items()}
    return Journal(path, entries, {name: _time(before) for name, before in removed.items()})


def _decode_entry(name: str, entry: Any) -> JournalEntry:
    if not isinstance(entry, list) or len(entry) != 4 or type(entry[1]) is not int or type(entry[2]) is not float:
        raise DataLossError(f"invalid entry for {quoted(name)}")
    temporary, size, modified, before = entry
    parsed = parse_temporary_name(_file_name(temporary))
    if parsed is None or parsed.path != stem(name):
        raise DataLossError(f"{quoted(temporary)} is not a temporary name of {quoted(name)}")
    return JournalEntry(temporary, size, modified, _time(before))


def _time(value: Any) -> float | None:
    if value is not None and type(value) is not float:
        raise DataLossError(f"invalid time {str(value)[:50]}")
    return value


def _file_name(name: Any) -> str:
    """Return `name` if it is a file name without a directory; otherwise raise DataLossError."""
    if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", "..") or "\0" in name:
        raise DataLossError(f"{quoted(str(name)[:200])} is not a plain file name")
    return name
