r"""Targets of rules that translate what a group matched: numbers by an offset, words by a table.

    \g<2-1>         the number in group 2, less one: "unit_3" -> "2"
    \g<unit+1>      the number in the group named unit, plus one
    \g<3:norm>      what the table "norm" has for group 3: "gamma" -> "weight"

Everything else in a target is as in `re.Match.expand`. Contract: a rule with such a target applies only if each number
and word can be translated: a number without leading zeros that does not become negative, a word that the table has.
Therefore several rules may have the same pattern and different tables. In the inverse direction, the offset is
subtracted, or the first word that the table translates to this text is used.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import did_you_mean, quoted

Table = Mapping[str, str]
"""What a group may match -> what the target has instead."""

_REFERENCE: Final = re.compile(r"\\\\|\\g<(\w+)(?:([+-]\d{1,9})|:(\w+))>")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)


@dataclass(frozen=True)
class Translation:
    """A group of a pattern, and how the text that it matched is translated.

    Attributes:
        group: Its number or name.
        offset: What is added to the number.
        table: Name of the table; empty for an offset.
        words: The table.
    """

    group: str
    offset: int = 0
    table: str = ""
    words: Table = field(default_factory=dict, hash=False)

    def forwards(self, text: str) -> str | None:
        """Return the text of the target; None if `text` cannot be translated."""
        return self.words.get(text) if self.table else _moved(text, self.offset)

    def backwards(self, text: str) -> str | None:
        """Return the first text that is translated to `text`; None if there is none."""
        return self._words_back.get(text) if self.table else _moved(text, -self.offset)

    @cached_property
    def _words_back(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for word, text in self.words.items():
            found.setdefault(text, word)
        return found


@dataclass(frozen=True)
class TargetTemplate:
    """The target of a rule, as a function of the match.

    Attributes:
        text: The target as it is written.
        pieces: Strings for `re.Match.expand`, and the translations between them.
    """

    text: str
    pieces: tuple[str | Translation, ...]

    def __call__(self, match: re.Match[str]) -> str | None:
        """Return the target for a match; None if something cannot be translated."""
        parts = []
        for piece in self.pieces:
            if isinstance(piece, str):
                parts.append(match.expand(piece))
                continue
            part = piece.forwards(match[int(piece.group) if piece.group.isdigit() else piece.group] or "")
            if part is None:
                return None
            parts.append(part)
        return "".join(parts)

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that the target uses, by name."""
        return {each.table: each.words for each in self.pieces if isinstance(each, Translation) and each.table}

    @property
    def plain(self) -> str:
        """The target without translations, to check its groups."""
        return "".join(piece if isinstance(piece, str) else f"\\g<{piece.group}>" for piece in self.pieces)


def as_template(target: str, tables: Mapping[str, Table]) -> str | TargetTemplate:
    """Return a target, as a template if it translates something.

    Raises:
        InvalidArgumentError: the target names a table that is not in `tables`.
    """
    pieces: list[str | Translation] = []
    start = 0
    for found in _REFERENCE.finditer(target):
        group, offset, table = found.groups()
        if group is None:  # an escaped backslash
            continue
        if table is not None and table not in tables:
            words = [f"{quoted(target)}: there is no table {quoted(table)}.", did_you_mean(table, tables)]
            raise InvalidArgumentError(" ".join([*filter(None, words), "Tables are defined in a map file"]))
        pieces += [target[start : found.start()]] if found.start() > start else []
        pieces.append(Translation(group, int(offset or 0), table or "", {} if table is None else tables[table]))
        start = found.end()
    if not pieces:
        return target
    return TargetTemplate(target, (*pieces, *([target[start:]] if start < len(target) else [])))


def _moved(text: str, offset: int) -> str | None:
    number = int(text) + offset if _NUMBER.fullmatch(text) else -1
    return str(number) if number >= 0 else None
