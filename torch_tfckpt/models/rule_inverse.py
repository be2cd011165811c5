r"""The inverse of a rule: from a state_dict key to the stored name that the rule maps to it, if there is only one.

    layer_(\d+)/kernel -> layers.\1.weight     "layers.3.weight" was "layer_3/kernel"
    (.*)/(.*)          -> \1.\2                "a.b.c" was "a.b/c" or "a/b.c": not determined
    layer_\d+/(.*)     -> layers.\1            the number is lost: no inverse
    (?=.{3}/)0*(\d+)/(.*) -> \1.\2             "3.x" was "003/x": the only number of zeros that the pattern matches

A pattern can be inverted if, outside its groups, it consists of literal characters, 0* and lookaheads, and if the
target contains every group. The groups of a key are found by trying all ways to divide it, in a bounded number of
steps. Whether a pattern matches the names that are found is not checked here: a lookahead may exclude some of them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

from torch_tfckpt.models.key_rules import NameOrPattern, TargetFunction

Parts = tuple[str | int, ...]
"""Literal strings and numbers of groups; in a stored name, `_ZEROS` stands for any number of zeros."""

_ZEROS: Final = 0
_MOST_ZEROS: Final = 9
_LOOKAHEAD: Final = "(?="
_STEPS: Final = 20_000
_PATTERN: Final = re.compile(r"\\([^\w\s])|(\((?:\?P<\w+>|(?!\?)))|([^\\()\[\]{}.*+?|^$])", re.DOTALL)
_TEMPLATE: Final = re.compile(r"\\(\d{1,2})(?!\d)|\\g<(\w+)>|\\(\\)|([^\\])", re.DOTALL)
_QUANTIFIERS: Final = ("*", "+", "?", "{")


@dataclass(frozen=True, slots=True)
class RuleInverse:
    """How stored names are built from the groups of a rule, and how the groups are found in a key.

    Attributes:
        names: For each pattern of the rule, the parts of a stored name.
        target: The parts of a state_dict key.
        groups: What each group matches.
    """

    names: tuple[Parts, ...]
    target: Parts
    groups: Mapping[int, re.Pattern[str]]

    def find(self, key: str) -> list[tuple[str, ...]] | None:
        """Return all combinations of stored names, one for each pattern, that the rule may map to a key.

        Returns None if there are too many ways to divide the key.
        """
        found: dict[tuple[str, ...], None] = {}
        for number, groups in enumerate(_divisions(key, self.target, self.groups)):
            if groups is not None:
                found.update(dict.fromkeys(product(*(_spellings(parts, groups) for parts in self.names))))
            if number >= _STEPS:
                return None
        return list(found)


def rule_inverse(sources: tuple[NameOrPattern, ...], target: str | TargetFunction) -> RuleInverse | None:
    """Return the inverse for one target of a rule; None if it has none."""
    if not isinstance(target, str):
        return None
    if all(isinstance(source, str) for source in sources):
        return RuleInverse(tuple((str(source),) for source in sources), (target,), {})
    names: list[Parts] = []
    groups: dict[int, re.Pattern[str]] = {}
    wanted = template_parts(target, sources[0])
    for source in sources:
        parsed = _pattern_parts(source) if isinstance(source, re.Pattern) else None
        if parsed is None or wanted is None:
            return None
        parts, of_pattern = parsed
        if not of_pattern.keys() <= set(wanted):
            return None
        groups = groups or of_pattern
        names.append(parts)
    return RuleInverse(tuple(names), wanted or (), groups)


def may_be_target(source: NameOrPattern, target: str | TargetFunction, key: str) -> bool:
    """Return whether a rule may map a name to a key, as far as the literal parts of its target show."""
    parts = template_parts(target, source) if isinstance(target, str) else None
    if isinstance(source, str):
        return key == target
    if parts is None:
        return True
    at = 0
    for number, part in enumerate(parts):
        if isinstance(part, str):
            found = key.find(part, at)
            if found < 0 or (number == 0 and found):
                return False
            at = found + len(part)
    return not parts or isinstance(parts[-1], int) or (key.endswith(parts[-1]) and (len(parts) > 1 or at == len(key)))


def template_parts(target: str, source: NameOrPattern) -> Parts | None:
    """Return the parts of a target; None if it has escapes other than those of groups."""
    if isinstance(source, str):
        return (target,)
    parts: list[str | int] = []
    at = 0
    while at < len(target):
        match = _TEMPLATE.match(target, at)
        if match is None:
            return None
        number, name, backslash, literal = match.groups()
        if number is not None or name is not None:
            group = int(number) if number else source.groupindex.get(name, -1) if not name.isdigit() else int(name)
            if not 1 <= group <= source.groups:
                return None
            parts.append(group)
        else:
            _append(parts, backslash or literal)
        at = match.end()
    return tuple(parts)


def _pattern_parts(pattern: re.Pattern[str]) -> tuple[Parts, dict[int, re.Pattern[str]]] | None:
    """Return the parts of a stored name and what each group matches; None for other patterns."""
    text = pattern.pattern
    if pattern.flags != re.compile("").flags:
        return None
    parts: list[str | int] = []
    groups: dict[int, re.Pattern[str]] = {}
    at = 0
    while at < len(text):
        if text.startswith(_LOOKAHEAD, at):
            at = _end_of_group(text, at + len(_LOOKAHEAD)) + 1
            continue
        if text.startswith("0*", at) and _ZEROS not in parts:
            parts.append(_ZEROS)
            at += 2
            if text.startswith(_QUANTIFIERS, at):
                return None
            continue
        match = _PATTERN.match(text, at)
        if match is None:
            return None
        escaped, group, literal = match.groups()
        at = match.end()
        if group:
            end = _end_of_group(text, at)
            inner = text[at:end]
            try:
                compiled = re.compile(inner)
            except (re.error, RecursionError, OverflowError):  # it refers to another group
                return None
            if compiled.groups:
                return None
            groups[len(groups) + 1] = compiled
            parts.append(len(groups))
            at = end + 1
        else:
            _append(parts, escaped or literal)
        if text.startswith(_QUANTIFIERS, at):
            return None
    return (tuple(parts), groups) if len(groups) == pattern.groups else None


def _end_of_group(text: str, at: int) -> int:
    """Return the end of the group whose contents begin at `at`. The pattern must be valid."""
    depth, in_set = 1, False
    while at < len(text):
        character = text[at]
        if character == "\\":
            at += 1
        elif in_set:
            in_set = character != "]"
        elif character == "[":
            in_set = True
            at += text.startswith("^", at + 1)
            at += text.startswith("]", at + 1)  # literal at the beginning of a set
        elif character in "()":
            depth += 1 if character == "(" else -1
            if depth == 0:
                return at
        at += 1
    return at


def _divisions(key: str, parts: Parts, patterns: Mapping[int, re.Pattern[str]]) -> Iterator[dict[int, str] | None]:
    """Yield the groups for each way to divide a key into the parts, and None for each attempt."""
    waiting: list[tuple[int, int, dict[int, str]]] = [(0, 0, {})]
    while waiting:
        at, number, groups = waiting.pop()
        if number == len(parts):
            yield groups if at == len(key) else None
            continue
        part = parts[number]
        known = groups.get(part) if isinstance(part, int) else part
        if known is not None:
            yield None
            if key.startswith(known, at):
                waiting.append((at + len(known), number + 1, groups))
            continue
        assert isinstance(part, int)
        following = parts[number + 1] if number + 1 < len(parts) else None
        for end in range(at, len(key) + 1) if following is not None else [len(key)]:
            yield None
            text = key[at:end]
            if isinstance(following, str) and not key.startswith(following, end):
                continue
            if patterns[part].fullmatch(text) is not None:
                waiting.append((end, number + 1, {**groups, part: text}))


def _spellings(parts: Parts, groups: Mapping[int, str]) -> Iterator[str]:
    """Yield the stored names: one for each number of zeros."""
    for zeros in range(_MOST_ZEROS + 1 if _ZEROS in parts else 1):
        known = {**groups, _ZEROS: "0" * zeros}
        yield "".join(part if isinstance(part, str) else known[part] for part in parts)


def _append(parts: list[str | int], text: str) -> None:
    if parts and isinstance(parts[-1], str):
        parts[-1] += text
    else:
        parts.append(text)
