"""Checked rules by name and pattern: which of them matches a stored tensor, and what it maps the tensor to.

    rules = RuleSet("the rules", checked_rules)
    rule_match(rules, ("dense/kernel",), None)

Contract: names are tried before patterns, and patterns in order; the first match is used. Two names are never mapped to
one target. A rule set does not change. A KeyMapper is a rule set that is made from what a user writes.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.models.inference.proposed_rules import ExplainedRule
from torch_tfckpt.models.layers.layouts import LayoutLike
from torch_tfckpt.models.rules.key_rules import (
    CheckedRule,
    NameOrPattern,
    RuleMatch,
    check_rule,
    source_text,
    targets_of_rule,
)
from torch_tfckpt.models.rules.map_file import map_text
from torch_tfckpt.models.rules.rule_scopes import has_scope
from torch_tfckpt.text import quoted


@dataclass(frozen=True, slots=True)
class KeyTarget:
    """Target of a stored tensor.

    Attributes:
        target: State_dict key; None if the tensor is omitted; a tuple of keys if it is split. For a rule for modules,
            the name of the module followed by what comes after the name of the layer: "fc.kernel".
        layout: The layout as the rule gives it; None if no rule gives one.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> tfckpt.KeyMapper({"dense/kernel": ("fc.weight", "dense")}).find("dense/kernel")
        KeyTarget(target='fc.weight', layout='dense')
    """

    target: str | tuple[str, ...] | None
    layout: LayoutLike | None


class KeyMatch(NamedTuple):
    """The rule of a mapper that matches a stored tensor.

    Attributes:
        name: The name that matched, one of the tensor's names.
        rule: The left side of the rule: a name or a compiled pattern.
        mapped: The target of the tensor.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> tfckpt.KeyMapper({"dense/kernel": "fc.weight"}).match("v1", "dense/kernel").name
        'dense/kernel'
    """

    name: str
    rule: NameOrPattern
    mapped: KeyTarget


class RuleSet:
    """Rules that have been checked.

    Args:
        place: Their name in messages: "KeyMapper", or the path of a file.
        rules: The rules.
        base: As for KeyMapper.
        explanations: Why each rule was chosen, by the name or pattern of the rule.

    Raises:
        InvalidArgumentError: two names are mapped to one target.
    """

    def __init__(
        self,
        place: str,
        rules: Iterable[CheckedRule],
        *,
        base: str = "",
        explanations: Mapping[str, str] | None = None,
    ) -> None:
        self._base = base
        self._set_rules(place, rules, explanations)

    @property
    def explanations(self) -> dict[str, str]:
        """Why `infer` chose each rule, by the name or pattern of the rule; `to_file` writes them as comments.

        Examples:
            >>> import torch_tfckpt as tfckpt
            >>> tfckpt.KeyMapper({"dense/kernel": ("fc.weight", "dense")}).explanations
            {}
        """
        return dict(self._explanations)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._names)} names, {len(self._patterns)} patterns>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RuleSet):
            return NotImplemented
        if self._base != other._base or self._names.keys() != other._names.keys():
            return False
        return [each.identity for each in self._patterns] == [each.identity for each in other._patterns] and all(
            each.identity == other._names[name].identity for name, each in self._names.items()
        )

    def __hash__(self) -> int:
        return hash((frozenset(self._names), len(self._patterns)))

    @property
    def base(self) -> str:
        """Name of the base model in the targets; "" if there is none."""
        return self._base

    @property
    def names(self) -> dict[str, KeyTarget]:
        """The rules for single names."""
        return {name: _key_target(rule, RuleMatch(rule, name, _literal(rule))) for name, rule in self._names.items()}

    @property
    def sources(self) -> list[NameOrPattern]:
        """The left sides of all rules: names, then patterns. For a join, only its first pattern."""
        return [*self._names, *(rule.source for rule in self._patterns if rule.sources)]

    def find(self, *names: str) -> KeyTarget | None:
        """Return the target of a stored tensor with these names; None if no rule matches."""
        found = self.match(*names)
        return None if found is None else found.mapped

    def match(self, *names: str) -> KeyMatch | None:
        """Return the target, the rule that matched and the name that it matched; None if no rule matches."""
        found = rule_match(self, names, None)
        if found is None:
            return None
        return KeyMatch(found.name, found.rule.sources[found.part], _key_target(found.rule, found))

    def inverse(self) -> dict[str, tuple[str, LayoutLike | None]]:
        """Return state_dict key -> (stored key, layout), if all rules map one name to one name.

        `save_model` also inverts other rules.

        Raises:
            UnimplementedError: the mapper has patterns, which may map many names to one target; or a rule that splits,
                joins, fills or adds.

        Examples:
            >>> import torch_tfckpt as tfckpt
            >>> tfckpt.KeyMapper({"dense/kernel": ("fc.weight", "dense")}).inverse()
            {'fc.weight': ('dense/kernel', 'dense')}
        """
        found: dict[str, tuple[str, LayoutLike | None]] = {}
        for rule in (*self._patterns, *self._names.values()):
            if rule.name is None or len(rule.targets) > 1 or rule.add:
                raise not_inverted(rule)
            found.update((target, (rule.name, rule.layout)) for target in _literal(rule))
        return found

    def _set_rules(
        self, place: str, rules: Iterable[CheckedRule], explanations: Mapping[str, str] | None = None
    ) -> None:
        self._explanations: dict[str, str] = dict(explanations or {})
        self._names: dict[str, CheckedRule] = {}
        self._patterns: list[CheckedRule] = []
        seen: dict[str, CheckedRule] = {}
        for rule in rules:
            if rule.name is None:
                self._patterns.append(rule)
            elif rule.name in self._names:
                raise InvalidArgumentError(f"{rule.place}: there is another rule for the name {quoted(rule.name)}")
            else:
                self._names[rule.name] = rule
            for target in targets_of_rule(rule) if not rule.is_alias else ():
                other = seen.setdefault(target, rule)
                if other is not rule:
                    both = f"{quoted(source_text(other.source))} and {quoted(source_text(rule.source))}"
                    raise InvalidArgumentError(
                        f"{place}: {both} are both mapped to {quoted(target)}. Map one of them to None"
                    )


def without_names(rules: RuleSet | None, names: Collection[str]) -> RuleSet | None:
    """Return the rules, preceded by rules that omit these keys; `rules` itself if there are no keys."""
    if not names:
        return rules
    omitted = [CheckedRule("the names to omit", (name,), ()) for name in names]
    rest = [] if rules is None else [rule for rule in rules_of(rules) if rule.name not in names]
    return RuleSet("the rules", [*omitted, *rest], base="" if rules is None else rules.base)


def extended(rules: RuleSet, more: Sequence[ExplainedRule]) -> RuleSet:
    """Return the rules followed by more rules, with the reasons for the latter."""
    checked = [check_rule("an inferred rule", each.rule) for each in more]
    reasons = {source_text(rule.source): each.reason for rule, each in zip(checked, more, strict=True)}
    return RuleSet("KeyMapper", [*rules_of(rules), *checked], base=rules.base, explanations=reasons)


def map_file_text(rules: RuleSet) -> str:
    """Return the map file with these rules, which `KeyMapper.to_file` writes."""
    return map_text(rules_of(rules), rules.explanations, rules.base)


def rules_of(rules: RuleSet) -> list[CheckedRule]:
    """Return all rules, those for names first."""
    return [*rules._names.values(), *rules._patterns]


def rule_match(rules: RuleSet, names: Iterable[str], known: Container[str] | None) -> RuleMatch | None:
    """Return the match of the first rule that matches one of the names.

    Args:
        names: The names of a stored tensor.
        known: Dotted names of everything that may be stored for a module's tensors: TensorFlow's names and the
            module's own. A rule for modules matches only these. None: such a rule matches any name.
    """
    names = tuple(names)
    for name in names:
        rule = rules._names.get(name)
        if rule is not None:
            return rule.match(name, known)
    for rule in rules._patterns:
        for name in names:
            match = rule.match(name, known)
            if match is not None:
                return match
    return None


def _literal(rule: CheckedRule) -> tuple[str, ...]:
    return tuple(targets_of_rule(rule))


def _key_target(rule: CheckedRule, match: RuleMatch) -> KeyTarget:
    targets = match.targets
    return KeyTarget(targets if len(targets) > 1 else targets[0] if targets else None, rule.layout)


def not_inverted(rule: CheckedRule) -> UnimplementedError:
    """Return the error for a rule that does not determine the stored name of a tensor."""
    if rule.name is not None or not rule.sources:
        return UnimplementedError(
            f"{rule.place}, for {quoted(source_text(rule.source))}, splits, fills or adds, so it does not map one "
            f"name to one target. save_model inverts such rules"
        )
    if has_scope(rule):
        return UnimplementedError(
            f"{rule.place}, for {quoted(source_text(rule.source))}, does not determine the scope below which the model "
            f'is stored. To save, give it as `scope`, as in KeyMapper.preset("resnet", scope="resnet_v1_50"); "" is '
            f"for names without a scope, such as Keras's"
        )
    return UnimplementedError(
        f"the pattern {quoted(source_text(rule.source))} of a KeyMapper cannot be inverted: it "
        f"does not determine which name a state_dict key came from. To save, give names in a dictionary"
    )
