"""Names, paths and numbers in messages: quoting, escaping, plurals, units, suggestions."""

import difflib
import heapq
import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

_LOOKED_AT: Final = 200  # candidate names from which suggestions are chosen

# Takes bounded time, however deep or large the value is.
_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200

_NUMBER: Final = re.compile("([0-9]+)")
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: 1 tensor, 2 tensors, 2 entries, 1,670 tensors."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def byte_text(count: int) -> str:
    """Return 1670432 as "1.67 MB", in decimal units as disks and Hugging Face use."""
    size = float(count)
    for unit in _UNITS:
        if size < 999.5 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"


def escaped(name: str, limit: int = 200) -> str:
    """Return `name` for one line of output: unprintable characters escaped, long names shortened.

    This escapes control characters (C0, DEL, C1), line and paragraph separators, marks that change the direction of
    text, zero-width characters and lone surrogates: everything that could control a terminal or forge a line. Spaces
    are kept.
    """
    shown = name if len(name) <= limit else f"{name[: limit - 20]}...{name[-10:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def quoted(name: str) -> str:
    """Return `name`, escaped, in double quotes."""
    return f'"{escaped(name)}"'


def printable(path: str) -> str:
    """Return `path` for a message: bytes that are not UTF-8 and characters that cannot be printed become \\xNN."""
    text = encodable(path)
    return text if text.isprintable() else escaped(text, limit=len(text))


def encodable(path: str) -> str:
    """Return `path` for machine-readable output such as JSON: bytes that are not UTF-8 become \\xNN.

    Other characters are unchanged.
    """
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone half of a surrogate pair, which no real file name contains
        return path.encode("utf-8", "backslashreplace").decode()


def shortened(value: object, limit: int = 200) -> str:
    """Return the beginning of a value decoded from a file, however deep or large it is, for one line of output."""
    return escaped(_SHORT.repr(value), limit)


def listed(names: Sequence[str], limit: int, show: Callable[[str], str] = quoted) -> str:
    """Return the first `limit` names on one line: '"a", "b" and 1,670 more'. `show` formats each name."""
    return ", ".join(map(show, names[:limit])) + and_more(len(names), limit)


def first_lines(lines: Sequence[str], limit: int) -> list[str]:
    """Return the first `limit` lines, followed by "and 1,670 more" if lines were omitted."""
    return [*lines[:limit], *filter(None, [and_more(len(lines), limit).strip()])]


def and_more(count: int, limit: int) -> str:
    """Return the end of a list cut after `limit` items: " and 1,670 more", or "" if nothing was cut."""
    return f" and {count - limit:,} more" if count > limit else ""


def natural_order(name: str) -> tuple[object, ...]:
    """Return a sort key that compares the numbers in names as numbers: layer_2 before layer_10."""
    parts: list[object] = []
    for place, part in enumerate(_NUMBER.split(name)):
        digits = part.lstrip("0")
        # Compare a number by length, then by digits: int() rejects strings of more than 4,300 digits.
        parts.append((len(digits), digits) if place % 2 else part)
    return (tuple(parts), name)


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """Return 'Closest: "a", "b".', or "" if no known name is similar."""
    return closest_text(closest(wanted, known))


def closest_text(names: Sequence[str]) -> str:
    """Return 'Closest: "a", "b".', or "" if there are no names."""
    return f"Closest: {', '.join(map(quoted, names))}." if names else ""


def closest(wanted: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are similar, the most similar first."""
    # difflib takes a millisecond per pair of long names, too slow for a hint among many names. A typo leaves most of a
    # name unchanged, so only the names with the longest common beginning and end are compared.
    wanted = wanted[:200]
    near = [name for name in known if abs(len(name) - len(wanted)) <= 20]
    best = heapq.nlargest(_LOOKED_AT, near, key=lambda name: _common(name, wanted) + _common(name[::-1], wanted[::-1]))
    return difflib.get_close_matches(wanted, best, n=3, cutoff=0.75)


def _common(a: str, b: str) -> int:
    """Return the length of the common prefix of two names."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
