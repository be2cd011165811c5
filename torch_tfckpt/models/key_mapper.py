"""KeyMapper: from the names of a TensorFlow checkpoint to those of a module's state_dict.

    KeyMapper({"dense/kernel": ("fc.weight", "dense"), "dense/bias": "fc.bias", "unused": None})
    KeyMapper([(r"layer_(\\d+)/kernel", r"layers.\\1.weight"), (r"head/.*", None)])

The direction is always stored key -> state_dict key. In a dictionary a text is a name; in a list it is a regular
expression for the whole of a name, and the first that matches counts. A compiled pattern is a pattern in both.
"""

import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self, TypeGuard

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.models.layouts import layout_named
from torch_tfckpt.text import quoted

NameOrPattern = str | re.Pattern[str]
# Items of a mapping are checked as they come: mypy infers no useful type for "fc.bias" beside ("fc.weight", "dense").
Rules = Mapping[Any, object] | Iterable["RuleLike"]
_EXAMPLE: Final = '(r"(.*)/kernel", r"\\1.weight", "dense")'


class KeyRule(NamedTuple):
    """Where the tensors go whose whole name a pattern matches. What is wrong with a rule KeyMapper says.

    Attributes:
        pattern: A regular expression, as text or compiled.
        target: State_dict key, with `\\1` and `\\g<name>` for groups; None or "": such tensors are left out on purpose.
        layout: Name of a layout; None: the one that the last part of the stored name tells for the module it goes to,
            so that the "kernel" of a Linear is transposed. Where it tells none of a weight that TensorFlow may store
            otherwise than torch, load_model and save_model ask for one.
    """

    pattern: NameOrPattern
    target: str | None
    layout: str | None = None


RuleLike = KeyRule | tuple[NameOrPattern, str | None] | tuple[NameOrPattern, str | None, str | None]


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a mapper says of one stored tensor."""

    target: str | None  # None: it is left out
    layout: str | None  # None: not said


class Match(NamedTuple):
    """The rule that counts for a stored tensor."""

    name: str  # of the tensor's names that which matched
    rule: NameOrPattern
    mapped: Mapped


class KeyMapper:
    """Rules for the names and layouts of stored tensors.

    Args:
        rules: A dictionary name -> target, or name -> (target, layout); or a list of KeyRules and of tuples like them.
            A target of None or "" leaves the tensor out.

    Names go before patterns, and patterns in their order; the first that matches counts. Of an object-based checkpoint
    rules see each tensor under its key without "/.ATTRIBUTES/VARIABLE_VALUE", then under the whole key, then under the
    variable's full_name.

    Raises:
        InvalidArgumentError: a pattern, group, target or layout that cannot be meant, with the number of its rule; two
            names for one target.

    Threads: safe; a mapper does not change. It stops no pattern that takes forever.
    """

    def __init__(self, rules: Rules) -> None:
        _check_rules(rules)
        self._names: dict[str, Mapped] = {}
        self._patterns: list[tuple[re.Pattern[str], Mapped]] = []
        if isinstance(rules, Mapping):
            for number, (source, target) in enumerate(rules.items()):
                place = f"rule {number} of the KeyMapper"
                self._add(place, source, *_target_and_layout(place, target), is_name=isinstance(source, str))
        else:
            for number, rule in enumerate(rules):
                place = f"rule {number} of the KeyMapper"
                if not _is_rule(rule):
                    raise InvalidArgumentError(f"{place} is {rule!r}. Write a tuple such as {_EXAMPLE}")
                self._add(place, *KeyRule(*rule), is_name=False)
        self._check_targets()

    @classmethod
    def of(cls, mapper: "KeyMapper | Rules") -> Self | "KeyMapper":
        """The mapper itself, or one of these rules."""
        return mapper if isinstance(mapper, KeyMapper) else cls(mapper)

    @property
    def names(self) -> dict[str, Mapped]:
        """What is said of single names."""
        return dict(self._names)

    @property
    def sources(self) -> list[NameOrPattern]:
        """The left sides of all rules: names, then patterns."""
        return [*self._names, *(pattern for pattern, _ in self._patterns)]

    def find(self, *names: str) -> Mapped | None:
        """What is said of a stored tensor that has these names; None where no rule matches."""
        found = self.match(*names)
        return None if found is None else found.mapped

    def match(self, *names: str) -> Match | None:
        """As `find`, and which rule says so, by which of the names."""
        for name in names:
            if name in self._names:
                return Match(name, name, self._names[name])
        for pattern, mapped in self._patterns:
            for name in names:
                match = pattern.fullmatch(name)
                if match is not None:
                    target = None if mapped.target is None else match.expand(mapped.target) or None
                    return Match(name, pattern, Mapped(target, mapped.layout))
        return None

    def inverse(self) -> dict[str, tuple[str, str | None]]:
        """State_dict key -> (stored key, layout), for saving.

        UnimplementedError where there are patterns: many names may lead to one target, and which is meant is not said.
        """
        if self._patterns:
            raise UnimplementedError(
                f"the pattern {quoted(self._patterns[0][0].pattern)} of a KeyMapper cannot be turned round: it "
                f"does not say which name a state_dict key came from. Give names, as a dictionary, to save by"
            )
        return {mapped.target: (name, mapped.layout) for name, mapped in self._names.items() if mapped.target}

    def _add(self, place: str, source: object, target: str | None, layout: str | None, *, is_name: bool) -> None:
        if target is not None and not isinstance(target, str):
            raise InvalidArgumentError(
                f"{place}: a target is a state_dict key, or None to leave a tensor out: {target!r}"
            )
        if layout is not None:
            try:
                layout_named(layout)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"{place}: {error}") from None
        mapped = Mapped(target or None, layout)
        if is_name:
            assert isinstance(source, str)
            self._names[source] = mapped
            return
        pattern = _compiled(place, source)
        _check_template(place, pattern, mapped.target or "")
        self._patterns.append((pattern, mapped))

    def _check_targets(self) -> None:
        seen: dict[str, str] = {}
        for name, mapped in self._names.items():
            if mapped.target is not None and seen.setdefault(mapped.target, name) != name:
                raise InvalidArgumentError(
                    f"KeyMapper: {quoted(seen[mapped.target])} and {quoted(name)} are both mapped to "
                    f"{quoted(mapped.target)}. Map one of them to None"
                )


def _check_rules(rules: object) -> None:
    if isinstance(rules, str | bytes) or not isinstance(rules, Mapping | Iterable):
        raise InvalidArgumentError(
            f"KeyMapper: {reprlib.repr(rules)} is no set of rules. Give a dictionary of names, or a list of tuples "
            f"such as {_EXAMPLE}"
        )


def _is_rule(rule: object) -> TypeGuard[RuleLike]:
    return isinstance(rule, tuple) and 2 <= len(rule) <= 3


def _target_and_layout(place: str, target: object) -> tuple[str | None, str | None]:
    """Of the right side of a dictionary's item."""
    if target is None or isinstance(target, str):
        return target, None
    if isinstance(target, tuple) and len(target) == 2:
        return target
    raise InvalidArgumentError(f'{place}: {target!r} is no target. Write "fc.weight", ("fc.weight", "dense") or None')


def _compiled(place: str, source: object) -> re.Pattern[str]:
    if isinstance(source, re.Pattern) and isinstance(source.pattern, str):
        return source
    if not isinstance(source, str):
        raise InvalidArgumentError(f"{place}: {source!r} is neither a name nor a regular expression of text")
    try:
        return re.compile(source)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidArgumentError(f"{place}: {quoted(source)} is no regular expression: {error}") from error


def _check_template(place: str, pattern: re.Pattern[str], target: str) -> None:
    """InvalidArgumentError where a target names a group that the pattern lacks."""
    # A pattern with groups of the same numbers and names that matches nothing but "", whatever the real one matches.
    names = {number: name for name, number in pattern.groupindex.items()}
    groups = (f"(?P<{names[number]}>)" if number in names else "()" for number in range(1, pattern.groups + 1))
    empty = re.compile("".join(groups)).fullmatch("")
    assert empty is not None
    try:
        empty.expand(target)
    except (re.error, IndexError) as error:
        raise InvalidArgumentError(f"{place}: target {quoted(target)} of {quoted(pattern.pattern)}: {error}") from error
