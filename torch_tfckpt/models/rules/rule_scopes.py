r"""Scopes: the first part of the stored names, which the names of the module do not have.

    pattern = '(?P<scope>(?:.*/)?resnet_v1_\d+)/block(\d)/unit_(\d+)/...'

A pattern has the scope as its group "scope". A scope that is given replaces the regular expression in that group, so
that the rule can be inverted. All other rules are left out: those whose group does not match it, and those without the
group, which are for names without a scope. The scope "" selects the latter.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.rules.key_rules import CheckedRule
from torch_tfckpt.models.rules.rule_inverse import end_of_group
from torch_tfckpt.text import quoted

SCOPE: Final = "scope"
_START: Final = f"(?P<{SCOPE}>"


def has_scope(rule: CheckedRule) -> bool:
    """Return whether a pattern of a rule has the group."""
    return any(isinstance(source, re.Pattern) and SCOPE in source.groupindex for source in rule.sources)


def with_scope(place: str, rules: Sequence[CheckedRule], scope: str) -> list[CheckedRule]:
    """Return the rules for one scope, such as "resnet_v1_50" or "FeatureExtractor/MobilenetV2".

    Raises:
        InvalidArgumentError: no rule is for this scope.
    """
    if not isinstance(scope, str):
        raise InvalidArgumentError(f'{place}: scope={scope!r}: pass a string such as "resnet_v1_50", or None')
    text = scope.removesuffix("/")
    found: list[CheckedRule] = []
    for rule in rules:
        if not has_scope(rule):
            found += [] if text else [rule]
            continue
        sources = [_within(source, text) for source in rule.sources if isinstance(source, re.Pattern)]
        if text and None not in sources:
            found.append(replace(rule, sources=tuple(source for source in sources if source is not None)))
    if not found:
        scopes = dict.fromkeys(_scope_of(source) for rule in rules for source in rule.sources)
        shown = ", ".join(quoted("" if each is None else each) for each in scopes)
        raise InvalidArgumentError(f"{place} has no rule for the scope {quoted(scope)}. Scopes: {shown}")
    return found


def _scope_of(source: str | re.Pattern[str]) -> str | None:
    """Return the regular expression of the scope in a pattern."""
    text = source if isinstance(source, str) else source.pattern
    if not text.startswith(_START):
        return None
    return text[len(_START) : end_of_group(text, len(_START))]


def _within(source: re.Pattern[str], scope: str) -> re.Pattern[str] | None:
    """Return a pattern with the scope in its group; None if the group does not match it."""
    wanted = _scope_of(source)
    if wanted is None or re.fullmatch(wanted, scope, source.flags & ~re.UNICODE) is None:
        return None
    rest = source.pattern[len(_START) + len(wanted) :]
    return re.compile(f"{_START}{re.escape(scope)}{rest}", source.flags)
