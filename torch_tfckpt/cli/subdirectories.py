"""Find checkpoints in the subdirectories of a directory that has none itself, to suggest to the user.

Only local directories are searched, two levels deep, and only a limited number of names is read: the directory may
contain data sets. Directories that cannot be read are skipped, and count as not searched.
"""

import os
from dataclasses import dataclass
from itertools import islice
from typing import Final

from torch_tfckpt.directory.names import STATE_FILE, prefixes_of
from torch_tfckpt.storage.names import is_url
from torch_tfckpt.text import counted, listed, natural_order, printable

_LEVELS: Final = 2
_PER_DIRECTORY: Final = 2_000  # maximum number of names read
_IN_ALL: Final = 20_000
_LISTED: Final = 5  # directories named in a sentence


@dataclass(frozen=True, slots=True)
class Subdirectories:
    """Subdirectories that have checkpoints.

    Attributes:
        counts: Path, beginning with the directory as it was given -> number of checkpoints, in natural order of the
            paths. 0: there is only a `checkpoint` file.
        is_cut: Whether some directories were not searched, or not completely.
    """

    counts: dict[str, int]
    is_cut: bool

    @property
    def lines(self) -> list[str]:
        """One line for each subdirectory."""
        return [f"{printable(path)}: {_what(count)}" for path, count in self.counts.items()]

    @property
    def example(self) -> str:
        """The subdirectory to use in an example command."""
        return printable(next(iter(self.counts)))

    @property
    def limits(self) -> str:
        """What to append to a sentence if not everything was searched; "" otherwise."""
        return ". Not all of its subdirectories were searched, so there may be more" if self.is_cut else ""

    def sentence(self, verb: str) -> str:
        """Return a sentence with the first subdirectories, and the command to use; "" if there are none."""
        if not self.counts:
            return ""
        known = listed(self.lines, _LISTED, str)
        found = f"There are checkpoints in subdirectories ({known}): pass one of them, as in `tfckpt {verb}"
        return f"{found} {self.example}`{self.limits}"


def checkpoints_below(directory: str) -> Subdirectories:
    """Return the subdirectories of a local directory that have checkpoints.

    The result is empty if the directory has checkpoints itself, or is a URL.

    Cost: reads at most `_IN_ALL` names.
    """
    if is_url(directory):
        return Subdirectories({}, False)
    names, level, is_cut = _names_in(directory, _IN_ALL)
    left = _IN_ALL - len(names)
    if _has_checkpoints(names):
        return Subdirectories({}, False)
    counts = {}
    for _ in range(_LEVELS):
        below: list[str] = []
        for path in level:
            if not left:
                is_cut = True
                break
            names, directories, is_cut_here = _names_in(path, left)
            left -= len(names)
            is_cut |= is_cut_here
            below += directories
            if _has_checkpoints(names):
                counts[path] = len(prefixes_of(names))
        level = below
    return Subdirectories(dict(sorted(counts.items(), key=lambda item: natural_order(item[0]))), is_cut)


def _names_in(directory: str, left: int) -> tuple[list[str], list[str], bool]:
    """Return names in a directory, paths of visible subdirectories, and whether some names were not read."""
    limit = min(left, _PER_DIRECTORY)
    try:
        with os.scandir(directory or os.curdir) as entries:
            read = list(islice(entries, limit + 1))
            names = [entry.name for entry in read[:limit]]
            inside = [name for name, entry in zip(names, read, strict=False) if entry.is_dir()]
    except OSError:
        return [], [], True
    visible = sorted((name for name in inside if not name.startswith(".")), key=natural_order)
    return names, [os.path.join(directory, name) for name in visible], len(read) > limit


def _has_checkpoints(names: list[str]) -> bool:
    return STATE_FILE in names or bool(prefixes_of(names))


def _what(count: int) -> str:
    return counted(count, "checkpoint") if count else f"a `{STATE_FILE}` file"
