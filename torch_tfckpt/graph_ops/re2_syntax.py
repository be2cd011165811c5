r"""RE2's syntax of regular expressions, translated to that of Python's `re`.

The pattern is translated, so that it means the same in `re`:

    $              the end of the text, not also before a last newline: \Z, unless (?m)
    \s             without \v
    \z \Q..\E      \Z, and the characters themselves
    [[:alpha:]]    the characters of the ASCII class
    a(?i)b         a(?i:b), to the end of the group
    {,3}           the characters themselves

What only `re` has (backreferences, lookahead, possessive repetition) is refused as RE2 does; what only RE2 has or what
differs (\pL, \C, \B, (?U)) raises UnimplementedError.

The result is a list of tokens:

    ( (?i: )       the beginning and end of a group; ( alone counts
    * + ? {2,}     a repetition of what is before it; ? after it makes it lazy
    |              alternatives
    ^ $ \A \Z \b    places
    others         match one character

Source: https://github.com/google/re2/wiki/Syntax.
"""

import re
from dataclasses import dataclass
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.text import quoted

_CLASSES: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_INVALID: Final = "\\udc80-\\udcff"  # bytes that are not UTF-8, as `decoded` gives them: nothing matches them
_OTHERS: Final = r"\ud7ff\ue000-\U0010ffff"
_SETS: Final = {
    "s": r"\t\n\f\r ",
    "S": r"\x00-\x08\x0b\x0e-\x1f!-" + _OTHERS,
    "D": r"\x00-/:-" + _OTHERS,
    "W": r"\x00-/:-@\[-\^`{-" + _OTHERS,
}
PLACES: Final = ("^", "$", r"\Z", r"\A", r"\b")
COUNTS: Final = re.compile(r"\{([0-9]+)(,([0-9]*))?\}")
_FLAGS: Final = re.compile(r"\(\?([imsU]*)(-([imsU]+))?([:)])")
_NAME: Final = re.compile(r"\(\?P<([A-Za-z_][0-9A-Za-z_]*)>")
_HEX: Final = re.compile(r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\})")
_OCTAL: Final = re.compile(r"0[0-7]{0,2}|[1-7][0-7]{2}")
_POSIX: Final = re.compile(r"\[:(\^?)([a-z]+):\]")
_MAX_REPEAT: Final = 1000


@dataclass(slots=True)
class _OpenGroup:
    """A group that is not closed yet, or the whole pattern.

    Attributes:
        multiline: Whether ^ and $ match at line breaks.
        any_line: Whether . matches a line break.
        begin: Where its items begin in the output; -1 if flags stand at its beginning.
        closing: What closes it besides its own parenthesis.
    """

    multiline: bool = False
    any_line: bool = False
    begin: int = 0
    closing: str = ""


class _PatternTranslator:
    """One pass over a pattern."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self._at = pattern, 0
        self._out: list[str] = []
        self._groups = [_OpenGroup()]
        self._ignores_case = False

    def tokens(self) -> list[str]:
        can_repeat = False
        pattern = self._pattern
        while self._at < len(pattern):
            character = pattern[self._at]
            if character in "*+?" or (character == "{" and COUNTS.match(pattern, self._at)):
                if not can_repeat:
                    raise self._error("there is nothing to repeat")
                self._repeat()
                can_repeat = False
                continue
            can_repeat = self._item(character)
        if len(self._groups) > 1:
            raise self._error("missing )")
        self._out.extend(self._groups[0].closing)
        if self._ignores_case and not pattern.isascii():
            raise UnimplementedError(f"pattern {quoted(pattern)}: (?i) with letters outside of ASCII is not supported")
        return self._out

    def _item(self, character: str) -> bool:
        """Translate one item; return whether it can be repeated."""
        if character == "(":
            self._open()
            return False
        if character == ")":
            if len(self._groups) == 1:
                raise self._error("unexpected )")
            self._out.extend(self._groups.pop().closing + ")")
            self._at += 1
            return True
        self._at += 1
        group = self._groups[-1]
        if character == "|":
            if group.closing and group.begin >= 0:
                raise UnimplementedError(
                    f"pattern {quoted(self._pattern)}: flags in the middle of alternatives are not supported"
                )
            self._out.append("|")
            return False
        if character == "[":
            self._class()
        elif character == "\\":
            return self._escape()
        elif character == "$":
            self._out.append("$" if group.multiline else r"\Z")
        elif character == ".":
            self._out.append(f"[^{_INVALID}]" if group.any_line else f"[^\\n{_INVALID}]")
        elif character == "^":
            self._out.append(character)
        else:
            self._out.append(re.escape(character))
        return True

    def _open(self) -> None:
        pattern = self._pattern
        self._at += 1
        if pattern.startswith("?", self._at):
            flags = _FLAGS.match(pattern, self._at - 1)
            name = _NAME.match(pattern, self._at - 1)
            if flags is not None:
                self._flags(flags)
                return
            if name is None:
                raise self._error("it has a group that RE2 does not know")
            self._at = name.end()
        self._out.append("(")
        self._begin(self._groups[-1].multiline, self._groups[-1].any_line)

    def _begin(self, multiline: bool, any_line: bool) -> None:
        self._groups.append(_OpenGroup(multiline, any_line, len(self._out)))

    def _flags(self, found: "re.Match[str]") -> None:
        given, removed = found[1], found[3] or ""
        if "U" in given or "U" in removed:
            raise UnimplementedError(f"pattern {quoted(self._pattern)}: the flag U is not supported")
        if not given and not removed and found[4] == ")":
            raise self._error("missing flags")
        self._at = found.end()
        self._ignores_case |= "i" in given
        group = self._groups[-1]
        multiline = (group.multiline or "m" in given) and "m" not in removed
        any_line = (group.any_line or "s" in given) and "s" not in removed
        opened = f"(?{given}-{removed}:" if removed else f"(?{given}:"
        if found[4] == ":":
            self._out.append(opened)
            self._begin(multiline, any_line)
            return
        # Flags hold until the group ends. At its beginning, the new group has all alternatives.
        if len(self._out) == group.begin:
            group.begin = -1
        self._out.append(opened)
        group.closing += ")"
        group.multiline, group.any_line = multiline, any_line

    def _repeat(self) -> None:
        pattern = self._pattern
        if self._out[-1] in PLACES:
            self._out.extend(("(?:", self._out.pop(), ")"))
        counts = COUNTS.match(pattern, self._at)
        if counts is not None:
            low, high = int(counts[1]), int(counts[3] or counts[1])
            if max(low, high) > _MAX_REPEAT or high < low:
                raise self._error("a repetition is out of range")
            self._at = counts.end()
            self._out.append(counts[0])
        else:
            self._out.append(pattern[self._at])
            self._at += 1
        if pattern.startswith("?", self._at):
            self._out.append("?")
            self._at += 1

    def _escape(self) -> bool:
        pattern = self._pattern
        if self._at >= len(pattern):
            raise self._error("it ends with a backslash")
        character = pattern[self._at]
        if character == "Q":
            end = pattern.find("\\E", self._at + 1)
            text = pattern[self._at + 1 : end if end >= 0 else None]
            self._at = end + 2 if end >= 0 else len(pattern)
            self._out.extend(map(re.escape, text))
            return bool(text)
        single_character = self._character(character)
        if single_character is not None:
            self._out.append(re.escape(single_character))
            return True
        self._at += 1
        if character in "dwbA":
            self._out.append("\\" + character)
        elif character in _SETS:
            self._out.append(f"[{_SETS[character]}]")
        elif character == "z":
            self._out.append(r"\Z")
        elif character in "pPCB":
            raise UnimplementedError(f"pattern {quoted(pattern)}: \\{character} is not supported")
        else:
            raise self._error(f"RE2 does not know \\{character}")
        return True

    def _character(self, character: str) -> str | None:
        """Return the character that an escape stands for, and move past it; None if it stands for something else."""
        pattern = self._pattern
        simple = dict(zip("aftnrv", "\a\f\t\n\r\v", strict=True)).get(character)
        if simple is not None:
            self._at += 1
            return simple
        found = _HEX.match(pattern, self._at)
        if found is not None:
            self._at = found.end()
            return self._numbered(int(found[1] or found[2], 16))
        found = _OCTAL.match(pattern, self._at)
        if found is not None:
            self._at = found.end()
            return self._numbered(int(found[0], 8))
        if character.isascii() and not character.isalnum():
            self._at += 1
            return character
        return None

    def _numbered(self, number: int) -> str:
        if number > 0x10FFFF:
            raise self._error("a character is out of range")
        return chr(number)

    def _class(self) -> None:
        pattern, parts = self._pattern, ["["]
        if pattern.startswith("^", self._at):
            parts += "^", _INVALID
            self._at += 1
        first = True
        while first or not pattern.startswith("]", self._at):
            if self._at >= len(pattern):
                raise self._error("missing ]")
            posix = _POSIX.match(pattern, self._at)
            if posix is not None:
                if posix[2] not in _CLASSES:
                    raise self._error(f"there is no class {posix[2]}")
                if posix[1]:
                    raise UnimplementedError(f"pattern {quoted(pattern)}: {posix[0]} is not supported")
                parts.append(_CLASSES[posix[2]])
                self._at = posix.end()
            else:
                parts.append(self._range())
            first = False
        self._at += 1
        self._out.append("".join(parts) + "]")

    def _range(self) -> str:
        """Translate a character, a range of characters or an escape in a class."""
        pattern = self._pattern
        is_plain = pattern[self._at] == "-"
        begin = self._member()
        if len(begin) != 1:
            return begin
        if pattern.startswith("-", self._at) and pattern[self._at + 1 : self._at + 2] not in ("]", ""):
            self._at += 1
            end = self._member()
            if len(end) != 1 or end < begin:
                raise self._error("a range in a class is out of order")
            return f"{re.escape(begin)}-{re.escape(end)}"
        if is_plain and pattern[self._at - 2] not in "[^" and not pattern.startswith("]", self._at):
            raise self._error("a - in the middle of a class")
        return re.escape(begin)

    def _member(self) -> str:
        """Return one character, or a translated escape of several characters."""
        pattern = self._pattern
        if self._at >= len(pattern):
            raise self._error("missing ]")
        character = pattern[self._at]
        self._at += 1
        if character != "\\":
            return character
        if self._at >= len(pattern):
            raise self._error("it ends with a backslash")
        character = pattern[self._at]
        found = self._character(character)
        if found is not None:
            return found
        self._at += 1
        if character in "dw":
            return "\\" + character
        if character in _SETS:
            return _SETS[character]
        if character in "pP":
            raise UnimplementedError(f"pattern {quoted(pattern)}: \\{character} in a class is not supported")
        raise self._error(f"RE2 does not know \\{character} in a class")

    def _error(self, reason: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"Invalid pattern: {quoted(self._pattern)}, error: {reason}")


def translated(pattern: str) -> list[str]:
    """Return a pattern of RE2 as tokens of one of `re`.

    Raises:
        InvalidArgumentError: RE2 does not accept it.
        UnimplementedError: it has something that `re` lacks.
    """
    return _PatternTranslator(pattern).tokens()
