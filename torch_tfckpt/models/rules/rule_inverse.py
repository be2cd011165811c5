r"""The inverse of a rule: from a state_dict key to the stored name that the rule maps to it, if there is only one.

    layer_(\d+)/kernel -> layers.\1.weight     "layers.3.weight" was "layer_3/kernel"
    (.*)/(.*)          -> \1.\2                "a.b.c" was "a.b/c" or "a/b.c": not determined
    unit_(\d+)/(.*)    -> \g<1-1>.\2           "2.weight" was "unit_3/weight"
    layer_\d+/(.*)     -> layers.\1            the number is lost: no inverse
    (?=.{3}/)0*(\d+)/(.*) -> \1.\2             "3.x" was "003/x": the only number of zeros that the pattern matches

A pattern can be inverted if, outside its groups, it consists of literal characters, 0* and lookaheads, and if the
target contains every group, except groups of literal text. The groups of a key are found by trying all ways to
divide it, in a bounded number of steps. Whether a pattern matches the names that are found is not checked here: a
lookahead may exclude some of them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

from torch_tfckpt.models.rules.key_rules import NameOrPattern, TargetFunction
from torch_tfckpt.models.rules.target_templates import TargetTemplate, Translation

TranslatedGroup = tuple[int, Translation]
Parts = tuple[str | int | TranslatedGroup, ...]
"""Literal strings and numbers of groups, with a translation if the key has the group translated; in a stored name,
`_ZEROS` stands for any number of zeros."""

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
    if not isinstance(target, str | TargetTemplate):
        return None
    if isinstance(target, str) and all(isinstance(source, str) for source in sources):
        return RuleInverse(tuple((str(source),) for source in sources), (target,), {})
    names: list[Parts] = []
    groups: dict[int, re.Pattern[str]] = {}
    wanted = template_parts(target, sources[0])
    for source in sources:
        parsed = _pattern_parts(source) if isinstance(source, re.Pattern) else None
        if parsed is None or wanted is None:
            return None
        parts, of_pattern = parsed
        groups = groups or of_pattern
        lost = of_pattern.keys() - {part[0] if isinstance(part, tuple) else part for part in wanted}
        fixed = {group: _literal_text(of_pattern[group].pattern) for group in lost}
        if None in fixed.values():
            return None
        names.append(tuple(fixed.get(part) or part if isinstance(part, int) else part for part in parts))
    return RuleInverse(tuple(names), wanted or (), groups)


def may_be_target(source: NameOrPattern, target: str | TargetFunction, key: str) -> bool:
    """Return whether a rule may map a name to a key, judging by the literal parts of its target."""
    parts = template_parts(target, source) if isinstance(target, str | TargetTemplate) else None
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
    return (
        not parts or not isinstance(parts[-1], str) or (key.endswith(parts[-1]) and (len(parts) > 1 or at == len(key)))
    )


def template_parts(target: str | TargetTemplate, source: NameOrPattern) -> Parts | None:
    """Return the parts of a target; None if it has escapes other than those of groups."""
    if isinstance(target, TargetTemplate):
        several: list[str | int | TranslatedGroup] = []
        for piece in target.pieces:
            wanted = template_parts(piece if isinstance(piece, str) else f"\\g<{piece.group}>", source)
            if wanted is None:
                return None
            several += wanted if isinstance(piece, str) else [(part, piece) for part in wanted if isinstance(part, int)]
        return tuple(several)
    if isinstance(source, str):
        return (target,)
    parts: list[str | int | TranslatedGroup] = []
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
    """Return the parts of a stored name and what each group matches; None if this pattern has no inverse."""
    text = pattern.pattern
    if pattern.flags != re.compile("").flags:
        return None
    parts: list[str | int | TranslatedGroup] = []
    groups: dict[int, re.Pattern[str]] = {}
    at = 0
    while at < len(text):
        if text.startswith(_LOOKAHEAD, at):
            at = end_of_group(text, at + len(_LOOKAHEAD)) + 1
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
            end = end_of_group(text, at)
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


def _literal_text(pattern: str) -> str | None:
    """Return the only text that a pattern matches; None if it has anything but literal characters."""
    text, at = "", 0
    while at < len(pattern):
        match = _PATTERN.match(pattern, at)
        if match is None or match[2] or pattern.startswith(_QUANTIFIERS, match.end()):
            return None
        text += match[1] or match[3]
        at = match.end()
    return text


def end_of_group(text: str, at: int) -> int:
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
        group, translation = part if isinstance(part, tuple) else (part, None)
        known = group if isinstance(group, str) else groups.get(group)
        if known is not None and translation is not None:
            known = translation.forwards(known)
        if known is not None:
            yield None
            if key.startswith(known, at):
                waiting.append((at + len(known), number + 1, groups))
            continue
        assert isinstance(group, int)
        following = parts[number + 1] if number + 1 < len(parts) else None
        for end in range(at, len(key) + 1) if following is not None else [len(key)]:
            yield None
            if isinstance(following, str) and not key.startswith(following, end):
                continue
            text = key[at:end] if translation is None else translation.backwards(key[at:end])
            if text is not None and patterns[group].fullmatch(text) is not None:
                waiting.append((end, number + 1, {**groups, group: text}))


def _spellings(parts: Parts, groups: Mapping[int, str]) -> Iterator[str]:
    """Yield the stored names: one for each number of zeros."""
    for zeros in range(_MOST_ZEROS + 1 if _ZEROS in parts else 1):
        known = {**groups, _ZEROS: "0" * zeros}
        yield "".join(
            part if isinstance(part, str) else known[part if isinstance(part, int) else part[0]] for part in parts
        )


def _append(parts: list[str | int | TranslatedGroup], text: str) -> None:
    if parts and isinstance(parts[-1], str):
        parts[-1] += text
    else:
        parts.append(text)
