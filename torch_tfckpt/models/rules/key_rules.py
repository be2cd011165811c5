r"""Rules of a KeyMapper, checked: which stored names a rule is for, and to which names it maps them.

    name      one literal name                     a/kernel                      -> fc.weight
    pattern   all names that match as a whole      layer_(\d+)/kernel            -> layers.\1.weight
    module    names below a matching name          layer_(\d+)/query + /kernel   -> layers.\1.query + .kernel
    join      one pattern for each part, or one pattern for all parts            -> in_proj_weight
    split     one name or pattern, several targets qkv/kernel                    -> q.weight, k.weight, v.weight
    fill      no name                                                            -> norm.weight

Contract: every error in a rule is found when the rule is checked, except errors that depend on a module or a
checkpoint. A name is expanded to at most `_MAX_TARGET` characters.
"""

import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeGuard, cast

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.auxiliary.averages import OUTPUT
from torch_tfckpt.models.layers.layouts import Layout, LayoutLike, layout_of_rule
from torch_tfckpt.models.rules.target_templates import TargetTemplate, as_template
from torch_tfckpt.text import counted, quoted

NameOrPattern = str | re.Pattern[str]
TargetFunction = Callable[[re.Match[str]], str | None]
ROOT_MODULE: Final = "."  # as the target of a rule for modules: the module itself

_MAX_TARGET: Final = 100_000
_MAX_AXIS: Final = 31
_SEPARATORS: Final = re.compile(r"[/.]")


class KeyRule(NamedTuple):
    """Rule for tensors whose whole name matches a pattern. KeyMapper validates the rule.

    Attributes:
        pattern: A regular expression, as a string or compiled. A tuple of patterns: variables that are joined
            into one tensor, in this order; one pattern in a tuple joins all variables that match, in the order of their
            numbers. None for `fill`.
        target: State_dict key, with `\\1` and `\\g<name>` for groups, and `\\g<1-1>` for the number in group 1 less
            one; or a function that returns it for a match. None or "": such tensors are omitted on purpose. A tuple of
            keys: one variable is split into several tensors.
        layout: Name of a layout, "conv1d"; a permutation of the stored axes, (2, 1, 0); a pattern, "width in out -> out
            in width"; a layout with parameters, {"kind": "dense_after_flatten", "height": 5, "width": 5}; or a pair of
            functions, to torch and back. None: the layout that the last part of the stored name implies for the module,
            so that the "kernel" of a Linear is transposed. If the name implies none, and TensorFlow may store the axes
            of the weight in a different order than torch, load_model and save_model raise an error that asks for a
            layout.
        axis: Axis, in torch's order, along which variables are joined or a variable is split: 0 is the output axis of
            a Linear.
        sizes: Lengths of the parts along `axis`. None: the lengths in the module if a variable is split; equal lengths
            to save variables that are joined.
        fill: Value of all elements of the tensors that `target` names, for which no variable is stored.
        add: Constant that TensorFlow adds when it runs the model, and that torch includes in its weights.
        module: The pattern matches the name of a layer, and the target is the name of a module, "." for the model
            itself. The variables below that layer have TensorFlow's names and layouts for modules of that kind.
            A layout in the rule replaces that layout for variables whose axes are not in torch's order.
        literal: The pattern is a name, as in a dictionary.
        optional: Name of a part that not every module has, such as "classifier". If the module has no tensor below
            this name, the tensors that the rule matches are not unexpected: they are ignored, and the report says so.
        alias: The rule is for another name of a variable that a second rule maps to the same target. It is used only to
            load.

    Examples:
        >>> import torch_tfckpt as tfckpt
        >>> rule = tfckpt.KeyRule(r"layer_(\\d+)/kernel", r"layers.\\1.weight", "dense")
        >>> tfckpt.KeyMapper([rule]).find("layer_3/kernel").target
        'layers.3.weight'
        >>> rules = [
        ...     tfckpt.KeyRule(r"bert/encoder/layer_(\\d+)", r"encoder.layer.\\1", module=True),
        ...     tfckpt.KeyRule(("q/kernel", "k/kernel", "v/kernel"), "in_proj_weight", "dense"),
        ...     tfckpt.KeyRule("qkv/bias", ("q.bias", "k.bias", "v.bias")),
        ...     tfckpt.KeyRule((r"embedding/part_\\d+",), "embedding.weight"),
        ...     tfckpt.KeyRule(None, "norm.weight", fill=1.0),
        ...     tfckpt.KeyRule("gate/bias", "gate.bias", add=1.0),
        ... ]
        >>> tfckpt.KeyMapper(rules)
        <KeyMapper of 0 names, 6 patterns>
    """

    pattern: NameOrPattern | Sequence[NameOrPattern] | None
    target: str | TargetFunction | Sequence[str] | None
    layout: LayoutLike | None = None
    axis: int = 0
    sizes: Sequence[int] | None = None
    fill: float | None = None
    add: float = 0.0
    module: bool = False
    literal: bool = False
    optional: str = ""
    alias: bool = False


class RuleMatch(NamedTuple):
    """How a rule matches a stored tensor."""

    rule: "CheckedRule"
    name: str  # which of the tensor's names matched
    targets: tuple[str, ...]  # empty: the tensor is omitted
    part: int = 0  # number of the pattern, if variables are joined


@dataclass(frozen=True, slots=True)
class CheckedRule:
    """A rule without errors.

    Attributes:
        place: The rule in messages: "rule 3 of the KeyMapper".
        sources: Literal names are strings. Empty: nothing is stored.
        targets: Empty: matching tensors are omitted.
        is_of_preset: Whether a preset contains the rule. Presets have rules for the names of several programs, so it is
            not reported if some match nothing.
    """

    place: str
    sources: tuple[NameOrPattern, ...]
    targets: tuple[str | TargetFunction, ...]
    layout: LayoutLike | None = None
    axis: int = 0
    sizes: tuple[int, ...] | None = None
    fill: float | None = None
    add: float = 0.0
    is_module: bool = False
    is_join: bool = False
    optional: str = ""
    is_alias: bool = False
    is_of_preset: bool = False

    @property
    def given_layout(self) -> Layout | None:
        """The layout that the rule gives; None if it gives none."""
        return None if self.layout is None else layout_of_rule(self.layout)

    @property
    def name(self) -> str | None:
        """The name, if the rule is for a literal name."""
        return self.sources[0] if self.sources and isinstance(self.sources[0], str) else None

    @property
    def source(self) -> NameOrPattern:
        """The first name or pattern, or the name of a tensor that is filled."""
        if self.sources:
            return self.sources[0]
        assert isinstance(self.targets[0], str)
        return self.targets[0]

    def is_needless(self, names: Iterable[str]) -> bool:
        """Return whether the rule is for a part that a module with these tensors does not have."""
        below = f"{self.optional}."
        return bool(self.optional) and not any(name == self.optional or name.startswith(below) for name in names)

    @property
    def identity(self) -> tuple[object, ...]:
        """A value that is the same for equal rules."""
        sources = tuple(each if isinstance(each, str) else (pattern_text(each),) for each in self.sources)
        layout = dict(self.layout) if isinstance(self.layout, Mapping) else self.layout
        more = (self.axis, self.sizes, self.fill, self.add, self.is_module, self.is_join, self.optional, self.is_alias)
        return (sources, self.targets, layout, *more)

    def match(self, name: str, known: Container[str] | None) -> RuleMatch | None:
        """Return how the rule matches a stored name; None if it does not. See `rule_match`."""
        if self.is_module:
            return self._match_module(name, known)
        for part, source in enumerate(self.sources):
            if isinstance(source, str):
                if source == name:
                    return RuleMatch(self, name, tuple(each for each in self.targets if isinstance(each, str)))
                continue
            match = source.fullmatch(name)
            if match is not None:
                expanded = [expand(match, target) for target in self.targets]
                if _is_untranslated(expanded, self.targets):
                    continue
                if len(expanded) > 1 and not all(expanded):
                    raise InvalidArgumentError(f"{self.place}: a target of {quoted(name)} is empty. Name every part")
                return RuleMatch(self, name, tuple(each for each in expanded if each), part)
        return None

    def _match_module(self, name: str, known: Container[str] | None) -> RuleMatch | None:
        [pattern] = self.sources
        assert isinstance(pattern, re.Pattern)
        bare = name.removesuffix(OUTPUT)
        for at in reversed([each.start() for each in _SEPARATORS.finditer(bare)]):
            match = pattern.fullmatch(bare, 0, at)
            if match is None:
                continue
            target = expand(match, self.targets[0]) if self.targets else None
            if _is_untranslated([target], self.targets):
                continue
            if not target:
                return RuleMatch(self, name, ())
            path = below_module(target, bare[at + 1 :])
            if known is None or path in known:
                return RuleMatch(self, name, (path,))
        return None


def check_rule(place: str, given: KeyRule) -> CheckedRule:
    """Return the checked rule. Raises InvalidArgumentError, with `place` first, if it is not valid."""
    if _is_list(given.target) and len(given.target) == 1:
        given = given._replace(target=given.target[0])  # type: ignore[arg-type]
    is_join = _is_list(given.pattern)
    is_split = _is_list(given.target)
    sources = _sources(place, given, is_join=is_join)
    targets = _targets(place, given, is_split=is_split)
    layout = given.layout
    if layout is not None:
        try:
            layout_of_rule(layout)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{place}: {error}") from None
        if _is_list(layout) and not callable(layout[0]):
            layout = tuple(cast("Sequence[int]", layout))
    for source in sources:
        for target in targets:
            if isinstance(source, re.Pattern) and isinstance(target, str | TargetTemplate):
                _check_template(place, source, target if isinstance(target, str) else target.plain)
    parts = len(targets) if is_split else len(sources) if is_join else 0
    _check_numbers(place, given, parts, is_split=is_split)
    if is_join and is_split:
        raise InvalidArgumentError(f"{place} joins and splits. Write several patterns or several targets, not both")
    if is_join and not targets:
        raise InvalidArgumentError(f"{place} joins variables without a target. To omit them, write a rule for each")
    if given.module and (is_join or is_split or given.add or given.literal):
        raise InvalidArgumentError(
            f"{place} is for modules, and cannot join, split or add. Write a rule for the variable, which takes "
            f"precedence if it comes first"
        )
    if given.fill is not None and (layout is not None or given.add):
        raise InvalidArgumentError(f"{place}: a rule with fill cannot have a layout or add")
    sizes = None if given.sizes is None else tuple(given.sizes)
    fill = None if given.fill is None else float(given.fill)
    return CheckedRule(
        place,
        sources,
        targets,
        layout,
        given.axis,
        sizes,
        fill,
        float(given.add),
        given.module,
        is_join,
        given.optional,
        given.alias,
    )


def expand(match: re.Match[str], target: str | TargetFunction) -> str | None:
    """Return the state_dict key for a match; None if the tensor is omitted."""
    if isinstance(target, str):
        found: object = match.expand(target)
    else:
        found = target(match)
    if found is not None and not isinstance(found, str):
        raise InvalidArgumentError(
            f"the function for {quoted(match.re.pattern)} of a KeyMapper returned {found!r} for {quoted(match[0])}. "
            f"Return a state_dict key, or None to omit the tensor"
        )
    if found and len(found) > _MAX_TARGET:
        raise InvalidArgumentError(
            f"the target of {quoted(match.re.pattern)} of a KeyMapper for {quoted(match[0])} has {len(found)} "
            f"characters. Shorten it"
        )
    return found or None


def _is_untranslated(expanded: Sequence[str | None], targets: Sequence[str | TargetFunction]) -> bool:
    """Return whether a target cannot be made, for instance because a table lacks what a group matched."""
    pairs = zip(expanded, targets, strict=False)
    return any(text is None and isinstance(target, TargetTemplate) for text, target in pairs)


def below_module(module: str, stored: str) -> str:
    """Return the dotted name of what is stored below a module: "fc" and "a/kernel" give "fc.a.kernel"."""
    path = stored if module == ROOT_MODULE else f"{module}.{stored}"
    return path.replace("/", ".")


def pattern_text(pattern: re.Pattern[str]) -> str:
    """Return a string that compiles to an equal pattern; it includes the pattern's flags."""
    missing = pattern.flags & ~re.compile(pattern.pattern).flags
    letters = "".join(letter for letter in "aimsx" if missing & re.RegexFlag[letter.upper()])
    return f"(?{letters}){pattern.pattern}" if letters else pattern.pattern


def source_text(source: NameOrPattern) -> str:
    """Return the left side of a rule, for messages and reports."""
    return source if isinstance(source, str) else source.pattern


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _sources(place: str, given: KeyRule, *, is_join: bool) -> tuple[NameOrPattern, ...]:
    if given.pattern is None or given.fill is not None:
        if given.pattern is not None or given.fill is None:
            raise InvalidArgumentError(
                f"{place}: give either a pattern or fill, not both or neither. With fill: KeyRule(None, "
                f'"norm.weight", fill=1.0)'
            )
        return ()
    if given.literal:
        if not isinstance(given.pattern, str):
            raise InvalidArgumentError(f"{place}: {given.pattern!r} is not a name. Write one string, or omit literal")
        return (given.pattern,)
    if not is_join:
        return (_compiled(place, given.pattern),)
    patterns = tuple(_compiled(place, each) for each in given.pattern)  # type: ignore[union-attr]
    if not patterns:
        raise InvalidArgumentError(f'{place} joins no variables. List them: ("q/kernel", "k/kernel", "v/kernel")')
    for each in patterns[1:]:
        if (each.groups, dict(each.groupindex)) != (patterns[0].groups, dict(patterns[0].groupindex)):
            raise InvalidArgumentError(
                f"{place}: {quoted(patterns[0].pattern)} and {quoted(each.pattern)} are joined, but do not have the "
                f'same groups. Write the same groups in each, as in (r"layer_(\\d+)/q", r"layer_(\\d+)/k")'
            )
    return patterns


def _targets(place: str, given: KeyRule, *, is_split: bool) -> tuple[str | TargetFunction, ...]:
    if is_split:
        targets = tuple(_template(place, given, each) for each in given.target)  # type: ignore[union-attr]
        if not targets or not all(isinstance(each, str | TargetTemplate) and each for each in targets):
            raise InvalidArgumentError(f"{place}: {given.target!r} is not a list of state_dict keys")
        if any(each in targets[:at] for at, each in enumerate(targets)):
            raise InvalidArgumentError(f"{place}: {given.target!r} has a state_dict key twice. Name each part once")
        return targets
    if given.target is None or given.target == "":
        if given.fill is not None or given.add:
            what = "fill" if given.fill is not None else "add"
            raise InvalidArgumentError(f"{place}: {what} has no effect on a tensor that is omitted. Give a target")
        return ()
    if not isinstance(given.target, str) and (given.literal or given.fill is not None or not callable(given.target)):
        raise InvalidArgumentError(
            f"{place}: a target must be a state_dict key, or None to omit a tensor, not {given.target!r}"
        )
    return (_template(place, given, given.target),)


def _template(place: str, given: KeyRule, target: Any) -> Any:
    """Return a target; as a template if it translates numbers. Targets of literal names are unchanged."""
    if not isinstance(target, str) or given.literal or given.fill is not None:
        return target
    try:
        return as_template(target, {})
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{place}: {error}") from None


def _check_numbers(place: str, given: KeyRule, parts: int, *, is_split: bool) -> None:
    if not _is_int(given.axis) or not 0 <= given.axis <= _MAX_AXIS:
        raise InvalidArgumentError(f"{place}: invalid axis {given.axis!r}. Count from 0, in torch's order")
    for what, number in (("fill", given.fill), ("add", given.add)):
        if number is not None and not (_is_number(number) and math.isfinite(number)):
            raise InvalidArgumentError(f"{place}: {what} {number!r} is not a finite number, such as 1.0")
    if not all(isinstance(each, bool) for each in (given.module, given.literal, given.alias)):
        raise InvalidArgumentError(f"{place}: module, literal and alias must be True or False")
    if not isinstance(given.optional, str):
        raise InvalidArgumentError(
            f'{place}: optional is {given.optional!r}. Name the part that the module may lack, such as "classifier"'
        )
    if parts and given.fill is None:
        if given.sizes is None:
            return
        lengths = given.sizes
        if not _is_list(lengths) or not all(_is_int(each) and each > 0 for each in lengths):
            raise InvalidArgumentError(f"{place}: sizes {given.sizes!r} is not a list of lengths, such as [64, 64, 8]")
        if len(lengths) != parts or parts == 1:
            what = "target" if is_split else "pattern"
            raise InvalidArgumentError(
                f"{place} has {counted(len(lengths), 'size')} for {counted(parts, what)}. Give "
                f"one size for each of at least two {what}s"
            )
    elif given.axis or given.sizes is not None:
        raise InvalidArgumentError(f"{place} neither joins nor splits, so it cannot have axis or sizes")


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    # Integers of 2**64 or more are rejected: the largest ones do not fit into a float.
    return isinstance(value, float) or (_is_int(value) and abs(value) < 2**64)


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


def targets_of_rule(rule: CheckedRule) -> Iterator[str]:
    """Yield the targets that are literal names."""
    if rule.name is not None or not rule.sources:
        yield from (target for target in rule.targets if isinstance(target, str))
