"""Which tensors, and under which names: regular expressions given by people."""

import re
from collections.abc import Sequence

from torch_tfckpt.errors import InvalidArgumentError, quoted


class Selection:
    """Takes the names in which one of `include` is found (all, where there is none) and none of `exclude`.

    Raises:
        InvalidArgumentError: a pattern is no regular expression.
    """

    def __init__(
        self, include: Sequence[str] = (), exclude: Sequence[str] = (), rename: Sequence[tuple[str, str]] = ()
    ) -> None:
        self._include = [_compiled(pattern) for pattern in include]
        self._exclude = [_compiled(pattern) for pattern in exclude]
        self._rename = [(_compiled(pattern), replacement) for pattern, replacement in rename]

    def takes(self, name: str) -> bool:
        included = not self._include or any(pattern.search(name) for pattern in self._include)
        return included and not any(pattern.search(name) for pattern in self._exclude)

    def new_names(self, names: Sequence[str]) -> dict[str, str]:
        """New name -> name, of those that are taken.

        Raises:
            InvalidArgumentError: two of them would have the same name, or a replacement speaks of groups that are not.
        """
        chosen: dict[str, str] = {}
        for name in filter(self.takes, names):
            new = self._renamed(name)
            if new in chosen:
                raise InvalidArgumentError(
                    f"tensors {quoted(chosen[new])} and {quoted(name)} would both be called {quoted(new)}. Change the "
                    f"pattern, or exclude one of them"
                )
            chosen[new] = name
        return chosen

    def _renamed(self, name: str) -> str:
        for pattern, replacement in self._rename:
            try:
                name = pattern.sub(replacement, name)
            except (re.error, IndexError) as error:
                raise InvalidArgumentError(f"replacement {quoted(replacement)}: {error}") from error
        return name


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InvalidArgumentError(f"pattern {quoted(pattern)}: {error}") from error
