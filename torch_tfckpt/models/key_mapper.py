"""KeyMapper: rules that map the names in a TensorFlow checkpoint to names in a module's state_dict.

    KeyMapper({"dense/kernel": ("fc.weight", "dense"), "dense/bias": "fc.bias", "unused": None})
    KeyMapper([(r"layer_(\\d+)/kernel", r"layers.\\1.weight"), (r"head/.*", None)])

The direction is always stored key -> state_dict key. In a dictionary, a string is a literal name. In a list, a string
is a regular expression that must match a whole name, and the first match is used. Both also accept compiled regular
expressions.
"""

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeGuard, cast

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.models.layouts import LayoutLike, layout_of_rule
from torch_tfckpt.text import quoted

NameOrPattern = str | re.Pattern[str]
_EXAMPLE: Final = '(r"(.*)/kernel", r"\\1.weight", "dense")'


class KeyRule(NamedTuple):
    """Rule for tensors whose whole name matches a pattern. KeyMapper validates the rule.

    Attributes:
        pattern: A regular expression, as a string or compiled.
        target: State_dict key, with `\\1` and `\\g<name>` for groups; or a function that returns it for a match.
            None or "": such tensors are omitted on purpose.
        layout: Name of a layout, "conv1d"; a permutation of the stored axes, (2, 1, 0); a pattern, "width in out -> out
            in width"; a layout with parameters, {"kind": "dense_after_flatten", "height": 5, "width": 5}; or a pair of
            functions, to torch and back. None: the layout that the last part of the stored name implies for the module,
            so that the "kernel" of a Linear is transposed. If the name implies none, and TensorFlow may store the axes
            of the weight in a different order than torch, load_model and save_model raise an error that asks for a
            layout.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> rule = tfckpt.KeyRule(r"layer_(\\d+)/kernel", r"layers.\\1.weight", "dense")
        >>> tfckpt.KeyMapper([rule]).find("layer_3/kernel").target
        'layers.3.weight'
    """

    pattern: NameOrPattern
    target: "str | TargetFunction | None"
    layout: LayoutLike | None = None


TargetFunction = Callable[[re.Match[str]], str | None]
RuleLike = (
    KeyRule
    | tuple[NameOrPattern, str | TargetFunction | None]
    | tuple[NameOrPattern, str | TargetFunction | None, LayoutLike | None]
)
# Values are checked at run time: mypy infers no useful type for a mix of "fc.bias" and ("fc.weight", "dense").
Rules = Mapping[Any, object] | Iterable[RuleLike]


@dataclass(frozen=True, slots=True)
class KeyTarget:
    """Target of a stored tensor.

    Attributes:
        target: State_dict key; None if the tensor is omitted.
        layout: The layout as the rule gives it; None if no rule gives one.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> tfckpt.KeyMapper({"dense/kernel": ("fc.weight", "dense")}).find("dense/kernel")
        KeyTarget(target='fc.weight', layout='dense')
    """

    target: str | None
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


class KeyMapper:
    """Rules for the names and layouts of stored tensors.

    Args:
        rules: A dictionary name -> target, or name -> (target, layout); or a list of KeyRules or equivalent tuples.
            A target of None or "" omits the tensor.

    Names are tried before patterns, and patterns in order; the first match is used. In an object-based checkpoint
    each tensor is tried under its key without "/.ATTRIBUTES/VARIABLE_VALUE", then under the whole key, then under the
    path of its object ("model.fc.kernel") and the full name of the variable ("fc/kernel").

    Raises:
        InvalidArgumentError: an invalid pattern, group, target or layout (the message has the number of the rule); two
            names are mapped to one target.

    Thread safety: may be used from several threads; a mapper does not change. A slow pattern is not
    interrupted.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"dense/kernel": torch.ones(3, 2), "dense/bias": torch.zeros(2)}, "model.ckpt-1")
        >>> mapper = tfckpt.KeyMapper({"dense/kernel": ("fc.weight", "dense"), "dense/bias": "fc.bias"})
        >>> model = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 2)})
        >>> tfckpt.load_model(model, path, mapper=mapper).sources
        {'fc.weight': 'dense/kernel', 'fc.bias': 'dense/bias'}
    """

    def __init__(self, rules: Rules) -> None:
        _check_rules(rules)
        self._names: dict[str, KeyTarget] = {}
        self._patterns: list[tuple[re.Pattern[str], str | TargetFunction | None, LayoutLike | None]] = []
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

    def __repr__(self) -> str:
        return f"<KeyMapper of {len(self._names)} names, {len(self._patterns)} patterns>"

    @property
    def names(self) -> dict[str, KeyTarget]:
        """The rules for single names."""
        return dict(self._names)

    @property
    def sources(self) -> list[NameOrPattern]:
        """The left sides of all rules: names, then patterns."""
        return [*self._names, *(pattern for pattern, _, _ in self._patterns)]

    def find(self, *names: str) -> KeyTarget | None:
        """Return the target of a stored tensor with these names; None if no rule matches."""
        found = self.match(*names)
        return None if found is None else found.mapped

    def match(self, *names: str) -> KeyMatch | None:
        """Return the target, the rule that matched and the name that it matched; None if no rule matches."""
        for name in names:
            if name in self._names:
                return KeyMatch(name, name, self._names[name])
        for pattern, target, layout in self._patterns:
            for name in names:
                match = pattern.fullmatch(name)
                if match is not None:
                    return KeyMatch(name, pattern, KeyTarget(_expanded(match, target), layout))
        return None

    def inverse(self) -> dict[str, tuple[str, LayoutLike | None]]:
        """Return state_dict key -> (stored key, layout), the form in which `save_model` needs the rules.

        Raises:
            UnimplementedError: the mapper has patterns, which may map many names to one target.

        Examples:
            >>> import torch_tfckpt as tfckpt
            >>> tfckpt.KeyMapper({"dense/kernel": ("fc.weight", "dense")}).inverse()
            {'fc.weight': ('dense/kernel', 'dense')}
        """
        if self._patterns:
            raise UnimplementedError(
                f"the pattern {quoted(self._patterns[0][0].pattern)} of a KeyMapper cannot be inverted: it "
                f"does not determine which name a state_dict key came from. To save, give names in a dictionary"
            )
        return {mapped.target: (name, mapped.layout) for name, mapped in self._names.items() if mapped.target}

    def _add(self, place: str, source: object, target: object, layout: LayoutLike | None, *, is_name: bool) -> None:
        if target is not None and not isinstance(target, str) and (is_name or not callable(target)):
            raise InvalidArgumentError(
                f"{place}: a target must be a state_dict key, or None to omit a tensor, not {target!r}"
            )
        if layout is not None:
            try:
                layout_of_rule(layout)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"{place}: {error}") from None
        if is_name:
            assert isinstance(source, str) and (target is None or isinstance(target, str))
            self._names[source] = KeyTarget(target or None, layout)
            return
        pattern = _compiled(place, source)
        if target is None or isinstance(target, str):
            _check_template(place, pattern, target or "")
            self._patterns.append((pattern, target or None, layout))
        else:
            self._patterns.append((pattern, cast(TargetFunction, target), layout))

    def _check_targets(self) -> None:
        seen: dict[str, str] = {}
        for name, mapped in self._names.items():
            if mapped.target is not None and seen.setdefault(mapped.target, name) != name:
                raise InvalidArgumentError(
                    f"KeyMapper: {quoted(seen[mapped.target])} and {quoted(name)} are both mapped to "
                    f"{quoted(mapped.target)}. Map one of them to None"
                )


def as_key_mapper(mapper: KeyMapper | Rules) -> KeyMapper:
    """Return `mapper` itself, or a KeyMapper with these rules."""
    return mapper if isinstance(mapper, KeyMapper) else KeyMapper(mapper)


def _check_rules(rules: object) -> None:
    if isinstance(rules, str | bytes) or not isinstance(rules, Mapping | Iterable):
        raise InvalidArgumentError(
            f"KeyMapper: {reprlib.repr(rules)} is not a set of rules. Give a dictionary of names, or a list of tuples "
            f"such as {_EXAMPLE}"
        )


def _is_rule(rule: object) -> TypeGuard[RuleLike]:
    return isinstance(rule, tuple) and 2 <= len(rule) <= 3


def _expanded(match: re.Match[str], target: str | TargetFunction | None) -> str | None:
    """Return the state_dict key for a match; None if the tensor is omitted."""
    if target is None or isinstance(target, str):
        return None if target is None else match.expand(target) or None
    found = target(match)
    if found is not None and not isinstance(found, str):
        raise InvalidArgumentError(
            f"the function for {quoted(match.re.pattern)} of a KeyMapper returned {found!r} for {quoted(match[0])}. "
            f"Return a state_dict key, or None to omit the tensor"
        )
    return found or None


def _target_and_layout(place: str, target: object) -> tuple[str | None, LayoutLike | None]:
    """Split the value of a dictionary item into target and layout."""
    if target is None or isinstance(target, str):
        return target, None
    if isinstance(target, tuple) and len(target) == 2:
        return target
    raise InvalidArgumentError(
        f'{place}: {target!r} is not a target. Write "fc.weight", ("fc.weight", "dense") or None'
    )


def _compiled(place: str, source: object) -> re.Pattern[str]:
    if isinstance(source, re.Pattern) and isinstance(source.pattern, str):
        return source
    if not isinstance(source, str):
        raise InvalidArgumentError(f"{place}: {source!r} is neither a name nor a regular expression for strings")
    try:
        return re.compile(source)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidArgumentError(f"{place}: {quoted(source)} is not a regular expression: {error}") from error


def _check_template(place: str, pattern: re.Pattern[str], target: str) -> None:
    """Raise InvalidArgumentError if a target names a group that the pattern lacks."""
    # A pattern with the same groups that matches the empty string.
    names = {number: name for name, number in pattern.groupindex.items()}
    groups = (f"(?P<{names[number]}>)" if number in names else "()" for number in range(1, pattern.groups + 1))
    empty = re.compile("".join(groups)).fullmatch("")
    assert empty is not None
    try:
        empty.expand(target)
    except (re.error, IndexError) as error:
        raise InvalidArgumentError(f"{place}: target {quoted(target)} of {quoted(pattern.pattern)}: {error}") from error
