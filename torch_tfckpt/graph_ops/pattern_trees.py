r"""Trees of regular expressions, and the number of ways in which they may match.

`re` goes back to its last choice when it fails, and for `(a+)+$` and "aaaa...b" it tries 2^n ways. The choices at which
the next character does not decide are counted:

    none               [^a-z]+, (\w+)\s*, (?:\d+,)*
    a known number     alternatives that begin alike: ^\s+|\s+$, 's| ?\w+|\s+
    repetitions        that may end at several places: .*foo, \S+@\S+
    without bounds     such choices inside repetitions: (a+)+, (a|b|ab)*
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.re2_syntax import COUNTS, PLACES

_MAX_REPEAT: Final = 1000  # of repetitions inside each other, as RE2
_OTHERS: Final = 1 << 128  # the bit for characters outside of ASCII


PartKind = Literal["character", "place", "sequence", "either", "repeat"]


@dataclass(slots=True)
class PatternPart:
    """A part of a pattern.

    Attributes:
        kind: What it is.
        parts: The parts inside of it.
        pattern: Of a character or place: what it is for `re`.
        begins: The ASCII characters with which it can begin, as bits, and `_OTHERS`.
        may_be_empty: Whether it matches without a character.
        group: Its number; 0 if it does not count.
        low, high: How often it is repeated; high is None without an end.
        is_lazy: Whether it is repeated as few times as possible.
    """

    kind: PartKind
    parts: "list[PatternPart]" = field(default_factory=list)
    pattern: "re.Pattern[str] | None" = None
    begins: int = 0
    may_be_empty: bool = False
    group: int = 0
    low: int = 1
    high: int | None = 1
    is_lazy: bool = False


def _sequence(parts: list[PatternPart]) -> PatternPart:
    begins, empty = 0, True
    for part in parts:
        if empty:
            begins |= part.begins
            empty = part.may_be_empty
    return PatternPart("sequence", parts, begins=begins, may_be_empty=empty)


def _either(branches: list[PatternPart]) -> PatternPart:
    begins = 0
    for part in branches:
        begins |= part.begins
    return PatternPart("either", branches, begins=begins, may_be_empty=any(part.may_be_empty for part in branches))


class _OpenPart(NamedTuple):
    """A group that is being read: its number, its flags, its alternatives; the last one is being read."""

    group: int
    flags: int
    branches: list[list[PatternPart]]


def tree_of(tokens: Sequence[str]) -> tuple[PatternPart, int]:
    """Return the tree of a pattern and the number of its groups.

    Raises:
        InvalidArgumentError: repetitions inside each other are too many.
    """
    stack = [_OpenPart(0, 0, [[]])]
    groups = 0
    for at, token in enumerate(tokens):
        *_, (number, flags, branches) = stack
        if token == "(" or token.startswith("(?"):
            groups += token == "("
            given, _, removed = token[2:-1].partition("-")
            flags = (flags | _flags(given)) & ~_flags(removed)
            stack.append(_OpenPart(groups if token == "(" else 0, flags, [[]]))
        elif token == ")":
            stack.pop()
            part = _closed(branches)
            part.group = number
            stack[-1].branches[-1].append(part)
        elif token == "|":
            branches.append([])
        elif token in ("*", "+", "?") or token.startswith("{"):
            if token == "?" and at and (tokens[at - 1] in ("*", "+", "?") or tokens[at - 1].startswith("{")):
                branches[-1][-1].is_lazy = True
            else:
                branches[-1].append(_repeat(branches[-1].pop(), *_counts(token)))
        elif token in PLACES:
            branches[-1].append(PatternPart("place", pattern=re.compile(token, re.ASCII | flags), may_be_empty=True))
        else:
            pattern, begins = _character(token, flags)
            branches[-1].append(PatternPart("character", pattern=pattern, begins=begins))
    tree = _closed(stack[0].branches)
    _check_repeats(tree, _MAX_REPEAT)
    return tree, groups


def _check_repeats(part: PatternPart, left: int) -> None:
    count = part.low if part.high is None else part.high
    left //= max(count, 1)
    if left == 0:
        raise InvalidArgumentError("a repetition is out of range")
    for each in part.parts:
        _check_repeats(each, left)


def _closed(branches: list[list[PatternPart]]) -> PatternPart:
    parts = [_sequence(branch) for branch in branches]
    return _either(parts) if len(parts) > 1 else parts[0]


def _flags(letters: str) -> int:
    return (re.IGNORECASE if "i" in letters else 0) | (re.MULTILINE if "m" in letters else 0)


def _counts(token: str) -> tuple[int, int | None]:
    found = COUNTS.match(token)
    if found is None:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[token]
    low = int(found[1])
    return low, int(found[3]) if found[3] else (None if found[2] else low)


def _repeat(part: PatternPart, low: int, high: int | None) -> PatternPart:
    empty = part.may_be_empty or low == 0
    return PatternPart("repeat", [part], begins=part.begins if high != 0 else 0, may_be_empty=empty, low=low, high=high)


@lru_cache(1024)
def _character(token: str, flags: int) -> "tuple[re.Pattern[str], int]":
    """Return the pattern of a token that matches one character, and these characters as bits."""
    pattern = re.compile(token, re.ASCII | flags)
    bits = sum(1 << code for code in range(128) if pattern.match(chr(code)))
    is_ascii = token.isascii() and not token.startswith("[^") and "\\u" not in token and "\\U" not in token
    return pattern, bits if is_ascii else bits | _OTHERS


class PatternChoices(NamedTuple):
    """How often `re` may have to choose again: `ways` times n^degree."""

    ways: int = 1
    degree: float = 0


def choices(part: PatternPart, following: int, is_repeated: bool) -> PatternChoices:
    """Count the choices in a part.

    Args:
        following: The characters with which what follows it can begin.
        is_repeated: Whether it is inside a repetition.
    """
    ways, degree = 1, 0.0
    if part.kind == "sequence":
        for each in reversed(part.parts):
            found = choices(each, following, is_repeated)
            ways, degree = ways * found.ways, degree + found.degree
            following = each.begins | (following if each.may_be_empty else 0)
    elif part.kind == "either":
        seen, is_choice = 0, sum(each.may_be_empty for each in part.parts) > 1
        all_ways = []
        for each in part.parts:
            begins = each.begins | (following if each.may_be_empty else 0)
            is_choice |= bool(seen & begins)
            seen |= begins
            found = choices(each, following, is_repeated)
            all_ways.append(found.ways)
            degree = max(degree, found.degree)
        ways = sum(all_ways) if is_choice else max(all_ways)
        if is_choice and is_repeated:
            degree = math.inf
    elif part.kind == "repeat":
        (inner,) = part.parts
        again = part.high is None or part.high > 1
        ways, degree = choices(inner, following | inner.begins if again else following, is_repeated or again)
        if part.low != part.high and inner.begins & following:
            ways, degree = (ways + 1, degree) if part.high == 1 else (ways, degree + 1)
            if is_repeated:
                degree = math.inf
        if again and inner.may_be_empty:  # `re` repeats nothing once more than RE2
            degree = math.inf
    return PatternChoices(ways, degree)


def reads_once(part: PatternPart) -> bool:
    """Return whether a search reads each character a fixed number of times.

    Either nothing is repeated, or the pattern is one repetition of characters, which cannot fail after the first one.
    """
    while part.kind == "sequence" and len(part.parts) == 1:
        (part,) = part.parts
    if part.kind == "repeat" and part.low <= 1 and part.parts[0].kind == "character":
        return True
    waiting = [part]
    for each in waiting:  # grows
        if each.kind == "repeat" and (each.high is None or each.high > 1):
            return False
        waiting += each.parts
    return True
