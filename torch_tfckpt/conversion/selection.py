"""Which tensors, and under which names: regular expressions given by people."""

import re
from collections.abc import Callable, Iterable, Sequence

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import counted, quoted


class Selection:
    """Takes the names in which one of `include` is found (all, where there is none) and none of `exclude`.

    Raises:
        InvalidArgumentError: a pattern is no regular expression, or one string stands where several are expected.
    """

    def __init__(
        self, include: Sequence[str] = (), exclude: Sequence[str] = (), rename: Sequence[tuple[str, str]] = ()
    ) -> None:
        if any(isinstance(given, str) for given in (include, exclude, *rename[:1])):
            # A string is a sequence of strings: each of its letters would silently be a pattern of its own.
            raise InvalidArgumentError(
                'include and exclude are lists of patterns, as ["/Adam"]; rename is a list of pairs, as [("^a/", "b/")]'
            )
        # All names of a tensor, its own first; a pattern may be found in any of them.
        self.names_of: Callable[[str], Sequence[str]] = lambda name: (name,)
        self._include = [_compiled(pattern) for pattern in include]
        self._exclude = [_compiled(pattern) for pattern in exclude]
        self._rename = [(_compiled(pattern), replacement) for pattern, replacement in rename]

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Those that are taken, in their order.

        Raises:
            InvalidArgumentError: there are names, and none is taken: a typo must not look like success.
        """
        among = list(names)
        taken = [name for name in among if self.takes(name)]
        if among and not taken:
            raise InvalidArgumentError(
                f"include and exclude leave none of {counted(len(among), 'tensor')}, the first of which is "
                f"{quoted(among[0])}. Patterns are regular expressions, found anywhere in a name"
            )
        return taken

    def takes(self, name: str) -> bool:
        names = self.names_of(name)
        included = not self._include or any(pattern.search(each) for pattern in self._include for each in names)
        return included and not any(pattern.search(each) for pattern in self._exclude for each in names)

    def new_names(self, names: Sequence[str]) -> dict[str, str]:
        """New name -> name, of those that are taken.

        Raises:
            InvalidArgumentError: none is taken, two of them would have the same name, or a replacement speaks of groups
                that are not.
        """
        old_names: dict[str, str] = {}
        for name in self.chosen(names):
            new = self._renamed(name)
            if new in old_names:
                raise InvalidArgumentError(
                    f"tensors {quoted(old_names[new])} and {quoted(name)} would both be called {quoted(new)}. Change "
                    f"the pattern, or exclude one of them"
                )
            old_names[new] = name
        return old_names

    def _renamed(self, name: str) -> str:
        names: Sequence[str] = self.names_of(name)
        for pattern, replacement in self._rename:
            found = next((each for each in names if pattern.search(each)), None)
            if found is None:
                continue
            try:
                name = pattern.sub(replacement, found)
            except (re.error, IndexError) as error:
                raise InvalidArgumentError(f"replacement {quoted(replacement)}: {error}") from error
            names = (name,)  # its other names no longer count
        return name


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InvalidArgumentError(f"pattern {quoted(pattern)}: {error}") from error
