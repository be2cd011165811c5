"""Match a regular expression by following all ways at the same time.

The number of steps is at most the number of characters times the number of the pattern's parts; a step takes about a
microsecond. The match is the leftmost one, and of several that begin there the one that `re` and RE2 prefer.

Source: https://swtch.com/~rsc/regexp/regexp2.html; compile.cc of RE2 for empty and counted repetitions.
"""

from typing import Any, Final, Optional

from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.graph_ops.pattern_trees import PatternPart

_MAX_PARTS: Final = 1 << 14  # of a pattern, counting those of each repetition

_Saved = tuple[int, int, Optional["_Saved"]]  # a slot, a position, and what was saved before
_CHARACTER, _PLACE, _SAVE, _SPLIT, _JUMP, _MATCH = range(6)


class LinearMatch:
    """A match.

    Args:
        saved: The beginnings and ends of groups, in the reverse order.
        groups: The number of groups.
    """

    __slots__ = ("_places",)

    def __init__(self, saved: "_Saved | None", groups: int) -> None:
        places = [-1] * (2 * groups + 2)
        while saved is not None:
            slot, place, saved = saved
            if places[slot] < 0:
                places[slot] = place
        self._places = places

    def span(self, group: int = 0) -> tuple[int, int]:
        """Return where a group begins and ends; (-1, -1) if it is not part of the match."""
        begin, end = self._places[2 * group : 2 * group + 2]
        return begin, end


class LinearMatcher:
    """A pattern as instructions.

    _CHARACTER pattern         go on if the character matches
    _PLACE pattern             go on if the place matches
    _SAVE slot                 save the position
    _SPLIT preferred other     go on at both
    _JUMP to                   go on there
    _MATCH                     the end

    Args:
        tree: The pattern.
        groups: The number of its groups.

    Raises:
        UnimplementedError: its repetitions have too many parts.
    """

    def __init__(self, tree: PatternPart, groups: int) -> None:
        self._groups = groups
        self._code: list[list[Any]] = []
        self._add(tree)
        self._code.append([_MATCH])

    def search(self, text: str, at: int = 0) -> LinearMatch | None:
        """Return the first match that begins at `at` or later."""
        found = self._followed(text, at, is_full=False)
        return None if found is None else LinearMatch(found, self._groups)

    def matches_fully(self, text: str) -> bool:
        """Return whether the whole text matches."""
        return self._followed(text, 0, is_full=True) is not None

    def _followed(self, text: str, at: int, is_full: bool) -> "_Saved | None":
        code, found, size = self._code, None, len(text)
        threads: list[tuple[int, _Saved]] = []
        seen: set[int] = set()
        for place in range(at, size + 1):
            if found is None and not (is_full and place):
                self._enter(threads, seen, 0, (0, place, None), text, place)
            if not threads and (found is not None or is_full):
                break
            following: list[tuple[int, _Saved]] = []
            seen = set()
            for number, saved in threads:
                instruction = code[number]
                if instruction[0] == _MATCH:
                    if is_full and place < size:
                        continue
                    found = (1, place, saved)
                    break  # the others are less preferred
                if place < size and instruction[1].match(text, place):
                    self._enter(following, seen, number + 1, saved, text, place + 1)
            threads = following
        return found

    def _enter(
        self, threads: list[tuple[int, "_Saved"]], seen: set[int], number: int, saved: "_Saved", text: str, place: int
    ) -> None:
        """Add what can be reached without a character, in the order of preference."""
        stack = [(number, saved)]
        while stack:
            number, saved = stack.pop()
            if number in seen:
                continue
            seen.add(number)
            instruction = self._code[number]
            kind = instruction[0]
            if kind in (_CHARACTER, _MATCH):
                threads.append((number, saved))
            elif kind == _SPLIT:
                stack += (instruction[2], saved), (instruction[1], saved)
            elif kind == _JUMP:
                stack.append((instruction[1], saved))
            elif kind == _SAVE:
                stack.append((number + 1, (instruction[1], place, saved)))
            elif instruction[1].match(text, place):
                stack.append((number + 1, saved))

    def _add(self, part: PatternPart) -> None:
        code = self._code
        if len(code) > _MAX_PARTS:
            raise UnimplementedError(f"it has more than {_MAX_PARTS} parts, counting those of each repetition")
        if part.group:
            code.append([_SAVE, 2 * part.group])
        if part.kind == "sequence":
            for each in part.parts:
                self._add(each)
        elif part.kind == "either":
            self._add_either(part.parts)
        elif part.kind == "repeat":
            self._add_repeat(part)
        else:
            code.append([_CHARACTER if part.kind == "character" else _PLACE, part.pattern])
        if part.group:
            code.append([_SAVE, 2 * part.group + 1])

    def _add_either(self, branches: list[PatternPart]) -> None:
        code, jumps = self._code, []
        for branch in branches[:-1]:
            split = [_SPLIT, len(code) + 1, 0]
            code.append(split)
            self._add(branch)
            jumps.append([_JUMP, 0])
            code.append(jumps[-1])
            split[2] = len(code)
        self._add(branches[-1])
        for jump in jumps:
            jump[1] = len(code)

    def _add_repeat(self, part: PatternPart) -> None:
        (inner,) = part.parts
        code, splits = self._code, []

        def split(to: int) -> None:
            """Choose between an instruction and the end of the repetition."""
            splits.append([_SPLIT, to, 0])
            code.append(splits[-1])

        for _ in range(part.low - (part.high is None)):
            self._add(inner)
        if part.high is None:
            # x* is (x+)?: so that a part which may be empty is tried before the end.
            if part.low == 0:
                split(len(code) + 1)
            begin = len(code)
            self._add(inner)
            split(begin)
        else:
            for _ in range(part.high - part.low):
                split(len(code) + 1)
                self._add(inner)
        for each in splits:
            each[2] = len(code)
            if part.is_lazy:
                each[1], each[2] = each[2], each[1]
