"""Parts: complete checkpoints, one from each rank of a save, before rank 0 merges them into the checkpoint P.

    P_temp.tempstate7-tfckpt/part-00000-of-00004.index          one folder for each host; 7: the number of the save,
    P_temp.tempstate7-tfckpt/part-00000-of-00004.data-...       whose last 32 bits are the same on all hosts
    P_temp.tempstate7-tfckpt/part.note                          by rank 0: JSON, how P is to be recorded
    P_temp.rank00000.tempstate7-tfckpt                          empty; locked while rank 0 of the save may be running

If rank 0 dies when all parts are complete, the checkpoint is complete, too, except for its name. `find_parts` finds
such saves. An object store has no folders; there, parts are P.part7-00000-of-00004, and are not found.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from torch_tfckpt.bundle.unfinished import PART, PARTS_SUFFIX, is_parts_directory, may_run, temporaries
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.storage.names import Temporary, stem, temporary_name
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.small_files import read_small, write_file

_INDEX: Final = re.compile(rf"{PART}-(?P<rank>[0-9]{{5,}})-of-(?P<count>[0-9]{{5,}})\.index")
_NOTE: Final = f"{PART}.note"
_LONGEST_NOTE: Final = 1 << 20


def parts_folder(path: str, number: int) -> str:
    """Return the folder for the parts of save `number` of the checkpoint `path`, on storages with renames."""
    return temporary_name(path + PARTS_SUFFIX, number)


def part_prefix(storage: Storage, path: str, number: int, rank: int, count: int) -> str:
    """Return the prefix of one part."""
    base = os.path.join(parts_folder(path, number), PART) if storage.renames else f"{path}.{PART}{number}"
    return f"{base}-{rank:05d}-of-{count:05d}"


def lock_name(path: str, number: int, rank: int) -> str:
    """Return the name of the file that a rank keeps locked while it saves."""
    return temporary_name(f"{path}{PARTS_SUFFIX}.rank{rank:05d}", number)


def write_note(storage: Storage, path: str, number: int, note: Mapping[str, object]) -> None:
    """Write the note of a save."""
    contents = json.dumps({"name": os.path.basename(path), **note}).encode()
    write_file(storage, os.path.join(parts_folder(path, number), _NOTE), contents)


@dataclass(slots=True)
class Parts:
    """The parts of one save that were found.

    Attributes:
        prefix: Prefix of the checkpoint.
        sources: Rank -> prefix of its part.
        count: Number of parts that a complete save has; 0: parts of different numbers were found.
        numbers: The numbers of the save, one for each host.
        modified: When the last part was completed, in seconds since the epoch.
        note: The note of rank 0; empty without one.
    """

    prefix: str
    count: int
    sources: dict[int, str] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)
    modified: float = 0.0
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether every rank's part is there."""
        return self.count > 0 and set(self.sources) == set(range(self.count))

    @property
    def is_recorded(self) -> bool:
        """Whether the state file is to name the checkpoint."""
        return self.note.get("state_file", "") is not None

    @property
    def in_order(self) -> list[str]:
        """The prefixes of the parts, in the order of the ranks."""
        return [self.sources[rank] for rank in range(self.count)]


def find_parts(storage: Storage, directory: str) -> list[Parts]:
    """Return the saves in `directory` that have parts there, complete or not, the newest first.

    Cost: one listing; one more for each folder of parts.
    """
    if not storage.renames:
        return []
    found: dict[tuple[str, int], Parts] = {}
    for path, temporary in temporaries(directory, storage.list(directory)).items():
        if temporary.path.endswith(PARTS_SUFFIX) and storage.is_directory(path):
            _add(storage, path, temporary, found)
    for parts in found.values():  # a long name is shortened in the names of temporary files
        name = parts.note.get("name")
        full = os.path.join(directory, name) if isinstance(name, str) else parts.prefix
        if stem(full + PARTS_SUFFIX) == parts.prefix + PARTS_SUFFIX:
            parts.prefix = full
    return sorted(found.values(), key=lambda parts: parts.modified, reverse=True)


def _add(storage: Storage, folder: str, temporary: Temporary, found: dict[tuple[str, int], Parts]) -> None:
    names = storage.list(folder)
    prefix = temporary.path.removesuffix(PARTS_SUFFIX)
    for name in names:
        match = _INDEX.fullmatch(name)
        if match is None:
            continue
        key = prefix, temporary.save & 0xFFFFFFFF
        parts = found.setdefault(key, Parts(prefix, int(match["count"])))
        if parts.count != int(match["count"]):
            parts.count = 0
        parts.sources[int(match["rank"])] = os.path.join(folder, name.removesuffix(".index"))
        parts.numbers.add(temporary.save)
        parts.modified = max(parts.modified, storage.modified(os.path.join(folder, name)))
        if _NOTE in names:
            parts.note = _note(storage, os.path.join(folder, _NOTE))


def _note(storage: Storage, path: str) -> dict[str, Any]:
    """Return the note at `path`; {} if it is not one."""
    try:
        note = json.loads(read_small(storage, path, _LONGEST_NOTE, "a note on a save"))
    except (CheckpointError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def merge_lock_name(parts: Parts) -> str:
    """Return the name of the file that a program keeps locked while it publishes parts after a crash."""
    return temporary_name(f"{parts.prefix}{PARTS_SUFFIX}.merge", min(parts.numbers))


def remove_folder(storage: Storage, folder: str) -> None:
    """Remove the files of all parts in `folder`, and then `folder`, if nothing else is in it.

    Raises:
        OSError: a file cannot be removed.
    """
    for name in storage.list(folder):
        if name.startswith(PART):
            storage.remove(os.path.join(folder, name))
    storage.remove_directory(folder)


def remove_parts(storage: Storage, parts: Parts) -> None:
    """Remove the files of published parts, and their folders; errors leave them to the next save's cleanup."""
    directory = os.path.dirname(parts.prefix)
    for folder in {os.path.dirname(source) for source in parts.sources.values()}:
        with suppress(OSError):
            remove_folder(storage, folder)
    with suppress(OSError):
        for path, temporary in temporaries(directory, storage.list(directory)).items():
            if temporary.save in parts.numbers and not is_parts_directory(path):
                storage.remove_unused(path)


def may_be_running(storage: Storage, parts: Parts, *, sure: bool = False) -> bool:
    """Return whether one of the ranks may still be saving; another host's ranks for a day, because of `may_run`.

    Args:
        sure: Return whether one of the ranks is certainly still saving.
    """
    directory = os.path.dirname(parts.prefix)
    of_number: dict[int, list[str]] = {}
    for path, temporary in temporaries(directory, storage.list(directory)).items():
        if temporary.save in parts.numbers:
            of_number.setdefault(temporary.save, []).append(path)
    if sure:
        locks = [path for paths in of_number.values() for path in paths if not is_parts_directory(path)]
        return any(storage.in_use(path) and storage.detects_use(path) for path in locks)
    return any(may_run(storage, directory, paths, number) for number, paths in of_number.items())
