"""Select and rename tensors by the regular expressions of convert and diff."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY
from torch_tfckpt.text import counted, quoted

_SEARCHED: Final = 5000  # number of fragments of names that are compared with a pattern
_SYNTAX: Final = re.compile(r"\\[AbBdDsSwWZ]|\(\?[a-zA-Z:]*|[\\^$.*+?{}\[\]()|]")
_WHAT: Final = "Patterns are regular expressions, which may match anywhere in a name"


class Selected(NamedTuple):
    """Result of applying a selection to some names.

    Attributes:
        new_names: Name -> new name of the selected tensors, in the order of the names.
        left_out: Names that are not selected.
        unmatched_excludes: Patterns of `exclude` that match no name.
    """

    new_names: dict[str, str]
    left_out: list[str]
    unmatched_excludes: list[str]


class Selection:
    """Rule that selects the names that match `include` (all if it is empty) and not `exclude`.

    Args:
        include: Regular expressions, searched for anywhere in a name.
        exclude: Regular expressions, searched for anywhere in a name.
        rename: (pattern, replacement) as re.sub takes them, applied one after the other to each name.

    Attributes:
        names_of: Returns all names of a tensor, starting with its key; a pattern may match any of them.

    Raises:
        InvalidArgumentError: a pattern is not a regular expression, or a string was given instead of a list of them.
    """

    def __init__(
        self, include: Sequence[str] = (), exclude: Sequence[str] = (), rename: Sequence[tuple[str, str]] = ()
    ) -> None:
        if any(isinstance(given, str) for given in (include, exclude, *rename[:1])):
            # A string is a sequence of strings: each of its letters would silently be a separate pattern.
            raise InvalidArgumentError(
                'include and exclude must be lists of patterns, such as ["/Adam"]; rename must be a list of '
                'pairs, such as [("^a/", "b/")]'
            )
        self.names_of: Callable[[str], Sequence[str]] = lambda name: (name,)
        self._include = [_compiled(pattern) for pattern in include]
        self._exclude = [_compiled(pattern) for pattern in exclude]
        self._rename = [(_compiled(pattern), replacement) for pattern, replacement in rename]

    def __bool__(self) -> bool:
        """Whether there is any pattern."""
        return bool(self._include or self._exclude or self._rename)

    @property
    def renames(self) -> bool:
        """Whether there is anything to rename."""
        return bool(self._rename)

    def select(self, names: Iterable[str], *, keep_object_graph: bool, object_paths: Iterable[str] = ()) -> Selected:
        """Choose among the tensors of one checkpoint, and rename them. The object graph is never renamed.

        Args:
            keep_object_graph: Whether to select the object graph even if `include` does not match its name, or if a
                pattern of `exclude` matches its name and other names, too.
            object_paths: Names of objects, ending in "/". A pattern of `rename` may match one of these instead of
                a tensor.

        Raises:
            InvalidArgumentError: a pattern of `include` or `rename` matches nothing; no tensor is left; two tensors
                would have the same name; a replacement refers to a group that the pattern does not have.
        """
        among = list(names)
        unmatched = self.unmatched_excludes(among)
        taken = [name for name in among if self.takes(name)]
        if among and not taken:
            raise nothing_left(among)
        if keep_object_graph and OBJECT_GRAPH_KEY in among and not self._excludes_object_graph(among):
            chosen = {*taken, OBJECT_GRAPH_KEY}
        else:
            chosen = set(taken)
        new_names = self.renamed([name for name in among if name in chosen], object_paths)
        return Selected(new_names, [name for name in among if name not in chosen], unmatched)

    def takes(self, name: str) -> bool:
        """Return whether `include` and `exclude` select a tensor, given by its key."""
        return self.takes_any(self.names_of(name))

    def takes_any(self, names: Sequence[str]) -> bool:
        """Return whether `include` and `exclude` select a tensor, given by all of its names."""
        included = not self._include or any(any(map(pattern.search, names)) for pattern in self._include)
        return included and not any(any(map(pattern.search, names)) for pattern in self._exclude)

    def new_name(self, name: str) -> str:
        """Return the new name. A pattern that does not match the tensor's key is tried on its other names."""
        names = self.names_of(name)
        for pattern, replacement in self._rename if name != OBJECT_GRAPH_KEY else ():
            found = next((each for each in names if pattern.search(each)), None)
            if found is not None:
                names = (_substituted(pattern, replacement, found),)  # its other names no longer apply
        return names[0]

    def renamed(self, names: Sequence[str], object_paths: Iterable[str] = ()) -> dict[str, str]:
        """Return name -> new name of the selected names. Raises like `select`."""
        plain = [name for name in names if name != OBJECT_GRAPH_KEY]
        now = {name: self.names_of(name) for name in plain}
        objects = list(object_paths)
        for pattern, replacement in self._rename if plain else ():
            matched = {name: found for name in plain if (found := next(filter(pattern.search, now[name]), None))}
            if not matched and not any(map(pattern.search, objects)):
                raise _matches_nothing(
                    "rename", pattern.pattern, [each for name in plain for each in now[name]], len(plain)
                )
            now |= {name: (_substituted(pattern, replacement, found),) for name, found in matched.items()}
            objects = [_substituted(pattern, replacement, path) for path in objects]
        new_names = {name: now[name][0] if name in now else name for name in names}
        old_names: dict[str, str] = {}
        for name, new in new_names.items():
            if new in old_names:
                raise InvalidArgumentError(
                    f"tensors {quoted(old_names[new])} and {quoted(name)} would both be called {quoted(new)}. Change "
                    f"the pattern, or exclude one of them"
                )
            old_names[new] = name
        return new_names

    def unmatched_excludes(self, names: Sequence[str]) -> list[str]:
        """Return the patterns of `exclude` that match none of the names.

        Raises InvalidArgumentError if a pattern of `include` matches none of them.
        """
        for pattern in self._include if names else ():
            if not any(self._finds(pattern, name) for name in names):
                raise _matches_nothing(
                    "include", pattern.pattern, [each for name in names for each in self.names_of(name)], len(names)
                )
        return [pattern.pattern for pattern in self._exclude if not any(self._finds(pattern, name) for name in names)]

    def _finds(self, pattern: re.Pattern[str], name: str) -> bool:
        return any(map(pattern.search, self.names_of(name)))

    def _excludes_object_graph(self, names: Sequence[str]) -> bool:
        """Whether a pattern of `exclude` is meant for the graph.

        Such a pattern contains the key of the graph, or matches no other name.
        """
        others = [name for name in names if name != OBJECT_GRAPH_KEY]
        found = [pattern for pattern in self._exclude if pattern.search(OBJECT_GRAPH_KEY)]
        return any(
            OBJECT_GRAPH_KEY in pattern.pattern or not any(self._finds(pattern, name) for name in others)
            for pattern in found
        )


def nothing_left(names: Sequence[str]) -> InvalidArgumentError:
    """Return the error for a selection without tensors: a typo must not look like success."""
    return InvalidArgumentError(
        f"include and exclude select none of {counted(len(names), 'tensor')}; the first is {quoted(names[0])}. {_WHAT}"
    )


def _matches_nothing(option: str, pattern: str, names: Sequence[str], tensors: int) -> InvalidArgumentError:
    closest = _closest(pattern, names)
    hint = f"The closest is {quoted(closest)}" if closest else f"The first is {quoted(names[0])}"
    return InvalidArgumentError(
        f"{option} {quoted(pattern)} matches none of {counted(tensors, 'tensor')}. {hint}. {_WHAT}"
    )


def _closest(pattern: str, names: Sequence[str]) -> str | None:
    """Return the name with the part most similar to the plain text of `pattern`; None if none is similar."""
    wanted = _SYNTAX.sub("", pattern).strip("/").lower()[:200]
    size = wanted.count("/") + 1
    fragments: dict[str, str] = {}
    for name in islice(names, _SEARCHED):
        parts = name.split("/")[:20]
        for start in range(max(1, len(parts) - size + 1)):
            fragments.setdefault("/".join(parts[start : start + size]).lower()[:200], name)
        fragments.setdefault(name.lower()[:200], name)
    close = difflib.get_close_matches(wanted, list(islice(fragments, _SEARCHED)), n=1, cutoff=0.6)
    return fragments[close[0]] if close else None


def _substituted(pattern: re.Pattern[str], replacement: str, name: str) -> str:
    try:
        return pattern.sub(replacement, name)
    except (re.error, IndexError) as error:
        raise InvalidArgumentError(f"replacement {quoted(replacement)}: {error}") from error


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InvalidArgumentError(f"pattern {quoted(pattern)}: {error}") from error
