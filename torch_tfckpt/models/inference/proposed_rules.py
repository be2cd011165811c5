r"""Rules for matched layers: one per variable, or a pattern for names that differ only in numbers.

    bert/encoder/layer_0/output/dense/kernel -> encoder.layer.0.output.dense.weight, and 11 more like it
    become    bert/encoder/layer_(\d+)/output/dense/kernel -> encoder.layer.\1.output.dense.weight

Contract: every rule gives its layout, so that the rules convert a checkpoint without the module. A pattern replaces
names only if it matches these variables and no other name in the checkpoint, and maps each of them to its target.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.layers.axis_patterns import AxisPattern
from torch_tfckpt.models.layers.layouts import LAYOUTS, Layout, LayoutLike, layout_of_rule
from torch_tfckpt.models.layers.tensor_origins import Bounds
from torch_tfckpt.models.rules.key_rules import KeyRule

_DIGITS: Final = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class ExplainedRule:
    """A rule with the reason for it."""

    rule: KeyRule
    reason: str


@dataclass(frozen=True, slots=True)
class PlainRule:
    """A rule for variables that are given by name.

    Attributes:
        names: The variables, several if they are joined.
        targets: Tensors of the module, several if a variable is split.
    """

    names: tuple[str, ...]
    targets: tuple[str, ...]
    layout: LayoutLike | None
    axis: int
    sizes: tuple[int, ...] | None
    reason: str

    def rule(self) -> KeyRule:
        """Return the rule with these names."""
        target = self.targets if len(self.targets) > 1 else self.targets[0]
        if len(self.names) > 1:
            return KeyRule(tuple(map(re.escape, self.names)), self.targets[0], self.layout, self.axis)
        return KeyRule(self.names[0], target, self.layout, self.axis, self.sizes, literal=True)


def plain_rules(
    sources: Mapping[str, Source], shapes: Mapping[str, Shape], explicit: bool, reason: str
) -> list[PlainRule]:
    """Return the rules for the tensors of one module.

    Args:
        sources: Name of a tensor -> its source.
        shapes: Key -> stored shape.
        explicit: Give layouts even where nothing is rearranged.
    """
    ranges: dict[str, list[tuple[Bounds, str, Source]]] = {}
    found: list[PlainRule] = []
    for target, source in sources.items():
        if source.bounds is not None:
            ranges.setdefault(source.key, []).append((source.bounds, target, source))
            continue
        layout = layout_for_rule(source.layout, shapes[source.key], explicit=explicit)
        keys = tuple(map(short_key, source.keys))
        found.append(PlainRule(keys, (target,), layout, source.axis if len(keys) > 1 else 0, None, reason))
    for key, parts in ranges.items():
        parts.sort(key=lambda part: part[0].start)
        source = parts[0][2]
        sizes = tuple(bounds.stop - bounds.start for bounds, _, _ in parts)
        targets = tuple(target for _, target, _ in parts)
        layout = layout_for_rule(source.layout, shapes[key], explicit=True)
        found.append(PlainRule((short_key(key),), targets, layout, source.axis, sizes, reason))
    return found


def layout_for_rule(layout: Layout, stored: Shape, *, explicit: bool) -> LayoutLike | None:
    """Return what a rule needs as its layout, to load and to save; None for an unchanged vector."""
    given = _layout_to_load(layout, stored, explicit=explicit)
    fitting = layout.fitting(stored)
    if given is None or fitting is None or layout.gates or layout.added or _is_restored(layout_of_rule(given), stored):
        return given
    pattern, lengths = fitting
    joined = [axis[:-1] for axis in pattern.held if len(axis) > 1]
    more = {name: lengths[name] for names in joined for name in names}
    return {"kind": str(pattern), **more} if more else str(pattern)


def _is_restored(layout: Layout, stored: Shape) -> bool:
    """Return whether a tensor that is loaded with this layout is saved with the shape that it had."""
    try:
        return layout.stored_shape(layout.torch_shape(stored)) == tuple(stored)
    except InvalidArgumentError:
        return True  # the module gives the missing lengths, or nothing does


def _layout_to_load(layout: Layout, stored: Shape, *, explicit: bool) -> LayoutLike | None:
    fitting = _pattern_for(layout, stored)
    if layout.functions is None and not layout.gates and not layout.added and (fitting is None or _is_same(fitting)):
        return "same" if explicit or len(stored) > 1 else None
    known = LAYOUTS.get(layout.name)
    lengths = {name: length for name, length in layout.known if fitting is not None and name in fitting.names}
    if known is not None and known.gates == layout.gates:
        if _pattern_for(known, stored) == fitting:
            name: LayoutLike = layout.name
        elif _pattern_for(known.with_lengths(**lengths), stored) == fitting:
            name = {"kind": layout.name, **lengths}
        else:
            return str(fitting)
        if known.added == layout.added or len(stored) > 1:
            return name
        return {"kind": layout.name, "forget_bias": layout.added[1] if layout.added else 0.0}
    return str(fitting)


def _pattern_for(layout: Layout, stored: Shape) -> AxisPattern | None:
    fitting = layout.fitting(stored)
    return None if fitting is None else fitting[0]


def effect(layout: Layout, stored: Shape) -> tuple[object, ...]:
    """Return a value that is equal for layouts that convert tensors of this shape in the same way."""
    fitting = layout.fitting(stored)
    if fitting is None or _is_same(fitting[0]):
        axes: object = "same"
    else:
        pattern, lengths = fitting
        numbers = {name: at for at, name in enumerate(pattern.names)}
        sides = (
            tuple(tuple((numbers[part], lengths[part]) for part in axis) for axis in side)
            for side in (pattern.stored, pattern.held)
        )
        axes = tuple(sides)
    return (axes, layout.gates, layout.added if len(stored) == 1 else ())


def _is_same(pattern: AxisPattern) -> bool:
    return pattern.stored == pattern.held


def compressed(rules: Sequence[PlainRule], all_names: Iterable[Sequence[str]]) -> list[ExplainedRule]:
    """Return the rules, with a pattern in place of rules that differ only in numbers.

    Args:
        all_names: The names of each stored tensor.
    """
    groups: dict[tuple[object, ...], list[PlainRule]] = {}
    for each in rules:
        skeleton = (*(_DIGITS.sub("#", name) for name in each.names), "", *(_DIGITS.sub("#", t) for t in each.targets))
        layout = tuple(each.layout.items()) if isinstance(each.layout, Mapping) else each.layout
        groups.setdefault((skeleton, layout, each.axis, each.sizes), []).append(each)
    names = [tuple(dict.fromkeys(each)) for each in all_names]
    place = {id(each): at for at, each in enumerate(rules)}
    found: list[tuple[int, ExplainedRule]] = []
    for group in groups.values():
        pattern = _pattern(group) if len(group) > 1 else None
        if pattern is not None and _matches_only(pattern, group, names):
            found.append((place[id(group[0])], ExplainedRule(pattern, group[0].reason)))
        else:
            found += [(place[id(each)], ExplainedRule(each.rule(), each.reason)) for each in group]
    return [each for _, each in sorted(found, key=lambda item: item[0])]


def _pattern(group: Sequence[PlainRule]) -> KeyRule | None:
    """Return one rule for all rules of a group; None if numbers in names and targets do not correspond."""
    first = group[0]
    of_names = [[_DIGITS.findall(name) for name in each.names] for each in group]
    if any(numbers != of_rule[0] for of_rule in of_names for numbers in of_rule):
        return None  # several patterns must have the same groups
    vectors = [of_rule[0] for of_rule in of_names]
    varying = [at for at in range(len(vectors[0])) if len({vector[at] for vector in vectors}) > 1]
    used: set[int] = set()
    templates: list[str] = []
    for number in range(len(first.targets)):
        pieces = _DIGITS.split(first.targets[number])
        columns = [_DIGITS.findall(each.targets[number]) for each in group]
        for slot in range(len(columns[0])):
            values = [column[slot] for column in columns]
            if len(set(values)) == 1:
                continue
            at = next((at for at in varying if [vector[at] for vector in vectors] == values), None)
            if at is None:
                return None
            used.add(at)
            pieces[2 * slot + 1] = f"\\g<{varying.index(at) + 1}>"
        templates.append(_short("".join(pieces)))
    if used != set(varying):
        return None
    patterns = tuple(_regex(name, varying) for name in first.names)
    target = tuple(templates) if len(templates) > 1 else templates[0]
    source = patterns if len(patterns) > 1 else patterns[0]
    return KeyRule(source, target, first.layout, first.axis, first.sizes)


def _short(template: str) -> str:
    """Return a template with \\1 instead of \\g<1> where no digit follows."""
    return re.sub(r"\\g<(\d)>(?!\d)", r"\\\1", template)


def _regex(name: str, varying: Sequence[int]) -> str:
    pieces = _DIGITS.split(name)
    return "".join(
        (r"(\d+)" if (at - 1) // 2 in varying else piece) if at % 2 else escaped_name(piece)
        for at, piece in enumerate(pieces)
    )


def escaped_name(name: str) -> str:
    """Return a pattern for exactly this name, which stays readable: "-" and "_" are not escaped."""
    return re.sub(r"([.^$*+?{}\[\]\\|()])", r"\\\1", name)


def _matches_only(rule: KeyRule, group: Sequence[PlainRule], all_names: Sequence[Sequence[str]]) -> bool:
    """Return whether a pattern matches the names of a group, with the right targets, and no other tensor."""
    sources = rule.pattern if isinstance(rule.pattern, tuple) else (rule.pattern,)
    targets = rule.target if isinstance(rule.target, tuple) else (rule.target,)
    for number, source in enumerate(sources):
        compiled = re.compile(str(source))
        expected = {each.names[number]: each.targets for each in group}
        for names in all_names:
            matches = [match for match in map(compiled.fullmatch, names) if match is not None]
            for match in matches:
                if expected.get(match[0]) != tuple(match.expand(str(target)) for target in targets):
                    return False
    return True
