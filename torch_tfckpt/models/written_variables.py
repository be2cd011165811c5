"""The variables that save_model writes for the tensors of a module: names, layouts, and how they are put together.

With TensorFlow's names, each layer is written in the first of its variants (see `layer_names`): a tensor that is joined
from several variables is cut into them, and tensors that are ranges of one variable are joined to form it. Rules of
a mapper do the same where they determine the names. This is the inverse of what load_model does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn.parameter import is_lazy

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.models.implied_sources import implied_layout, part_layout, shared_origin
from torch_tfckpt.models.layers.layouts import SAME, Layout, layout_of_rule
from torch_tfckpt.models.layers.tensor_origins import Bounds, TensorOrigin
from torch_tfckpt.models.rules.base_module import mapper_for
from torch_tfckpt.models.rules.inverted_rules import InvertedRules, WrittenAs, layout_given
from torch_tfckpt.models.rules.rule_set import RuleSet
from torch_tfckpt.models.targets import LayerOrigin, Target
from torch_tfckpt.saveables.module_tensors import ModuleTensor
from torch_tfckpt.saveables.stored_keys import SHARED
from torch_tfckpt.text import quoted
from torch_tfckpt.values import WritableValue


@dataclass(slots=True)
class _WrittenVariables:
    """The variables collected so far, and the parts that are still to be joined.

    `of_slots`: the values are slots of the variables, without the amounts that are added to a variable.
    """

    of_slots: bool = False
    values: dict[str, WritableValue] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # key -> name of the tensor in it
    aliases: dict[str, str] = field(default_factory=dict)  # another key of a tensor -> the key it is stored under
    ranges: dict[str, tuple[TensorOrigin, Layout, dict[int, torch.Tensor]]] = field(default_factory=dict)
    added: dict[str, torch.Tensor] = field(default_factory=dict)  # key -> amount to add to its value
    whole: dict[str, tuple[str, Layout]] = field(default_factory=dict)  # name of a tensor that is one variable -> where

    def put(self, key: str, name: str, layout: Layout, value: torch.Tensor) -> None:
        self._claim(key, name)
        self.values[key] = self._stored(layout, value)
        self.whole[name] = (key, layout)

    def add(self, key: str, layout: Layout, value: torch.Tensor) -> None:
        """Add a tensor to a variable that has this layout."""
        # What the layout adds, such as the bias of a forget gate, is in the other tensor.
        self.added[key] = replace(layout, added=()).to_stored(value)

    def put_range(self, key: str, name: str, origin: TensorOrigin, layout: Layout, value: torch.Tensor) -> None:
        assert origin.bounds is not None
        if key not in self.ranges:
            self._claim(key, name)
        _, _, found = self.ranges.setdefault(key, (origin, layout, {}))
        found[origin.bounds.start] = value

    def put_alias(self, key: str, name: str, stored: str) -> None:
        self._claim(key, name)
        self.aliases[key] = stored

    def all(self) -> dict[str, WritableValue]:
        for key, (origin, layout, found) in self.ranges.items():
            joined = torch.cat([found[start] for start in sorted(found)], origin.axis)
            self.values[key] = self._stored(layout, joined)
        for key, amount in self.added.items():
            value = self.values[key]
            assert isinstance(value, torch.Tensor)
            self.values[key] = value + amount
        if self.aliases:
            self.values[SHARED] = json.dumps(self.aliases)
        return self.values

    def without(self, added: float, value: torch.Tensor) -> torch.Tensor:
        """Return a value without the amount that a rule adds when it is loaded."""
        return value - added if added and not self.of_slots else value

    def _stored(self, layout: Layout, value: torch.Tensor) -> torch.Tensor:
        return (replace(layout, added=()) if self.of_slots else layout).to_stored(value)

    def _claim(self, key: str, name: str) -> None:
        other = self.names.setdefault(key, name)
        if other != name:
            raise InvalidArgumentError(
                f"{quoted(other)} and {quoted(name)} are both stored as {quoted(key)}. Map one of them to another name"
            )


def written_variables(
    targets: Sequence[Target], naming: str, mapper: RuleSet | None, *, of_slots: bool = False
) -> dict[str, WritableValue]:
    """Return key -> value for all tensors of a module.

    Args:
        naming: "torch" or "tf".
        mapper: Rules that take precedence.
        of_slots: Whether the values are slots of the module's tensors: then nothing is added, summed, or compared.

    Raises:
        InvalidArgumentError: two tensors with one key; a mapped name that the module does not have; a layout that does
            not fit, or that neither the rule nor the name gives; a lazy parameter; values that differ
            from the value that a rule fills in, unless TensorFlow stores their sum with another tensor.
        UnimplementedError: a rule does not determine the name under which a tensor is stored.
    """
    rules = InvertedRules(mapper_for(mapper or RuleSet("KeyMapper", ()), targets), targets)
    variables = _WrittenVariables(of_slots)
    by_rules = {place.name: rules.of(target, place.name) for target in targets for place in target.places}
    ranges = _ranges(targets, by_rules)
    filled: list[tuple[Target, ModuleTensor]] = []
    for target in targets:
        if is_lazy(target.tensor):
            raise InvalidArgumentError(f"{quoted(target.name)} has no shape yet. Run the model once before saving it")
        kept: dict[Layout, str] = {}  # layouts in which the tensor is stored, and their keys
        for place in target.places:
            if place.name in rules.filled:
                filled.append((target, place))
                continue
            by_rule = by_rules[place.name]
            if by_rule is not None and by_rule.is_several:
                _put_by_rule(variables, target, place, by_rule, rules)
                continue
            if place.name in ranges:
                variables.put_range(*ranges[place.name], target.tensor.detach())
                continue
            below = naming == "tf" or _is_below_module(target, place, rules)
            if by_rule is None and below and _put_by_origin(variables, target, place, rules):
                continue
            key, layout = _stored_as(target, place, by_rule, rules, below=below)
            # An alias is read with the layout that the name of the stored tensor implies.
            same = (
                at
                for each, at in kept.items()
                if (implied := implied_layout(target, place.name, at) or SAME) == each
                or not (implied.changes_values or each.changes_values)
            )
            first = None if by_rule is not None else next(same, None)
            if first is not None:
                variables.put_alias(key, place.name, first)
            else:
                kept[layout] = key
                with error_context(f"{quoted(place.name)}, stored as {quoted(key)}"):
                    added = 0.0 if by_rule is None else by_rule.rule.add
                    variables.put(key, place.name, layout, variables.without(added, target.tensor.detach()))
    for target, place in filled if not of_slots else ():
        _put_filled(variables, target, place, rules.filled[place.name])
    rules.check_used()
    return variables.all()


def written_names(target: Target) -> list[str]:
    """Return TensorFlow's names of the variables in which a tensor is written."""
    names = []
    for place in target.places:
        written = _written(target, place.name)
        leaves = [] if written is None else [next(iter(each)) for each in written.origin.variables]
        base = "" if written is None else written.base
        names += [_key(base, leaf) for leaf in leaves] or [place.name.replace(".", "/")]
    return names


def _ranges(
    targets: Sequence[Target], by_rules: Mapping[str, WrittenAs | None]
) -> dict[str, tuple[str, str, TensorOrigin, Layout]]:
    """Return the arguments of `put_range` for tensors that are ranges of a variable that a rule names.

    If several tensors are made from one variable, a rule for one of them also applies to the others.
    """
    found: dict[str, tuple[str, str, TensorOrigin, Layout]] = {}
    for target in targets:
        for place in target.places:
            by_rule = by_rules[place.name]
            if by_rule is None or by_rule.is_several:
                continue
            [key] = by_rule.keys
            given = by_rule.rule.given_layout
            shared = shared_origin(target, place.name, key, given)
            layout = given or (implied_layout(target, place.name, key) if shared is not None else None)
            if shared is None or layout is None or by_rule.rule.add:
                continue
            parts = [
                (other, origin)
                for other, origin in shared.siblings()
                if origin.bounds is not None and origin.variables == shared.origin.variables
            ]
            if all((of_part := by_rules.get(other)) is None or of_part.keys == (key,) for other, _ in parts):
                for other, origin in parts:
                    found.setdefault(other, (key, f"{shared.base}{key}", origin, layout))
    return found


def _put_filled(variables: _WrittenVariables, target: Target, place: ModuleTensor, number: float) -> None:
    """Add the difference from the value that a rule fills in to the tensor with which TensorFlow stores the sum.

    Raises InvalidArgumentError if there is a difference, but no such tensor.
    """
    value = target.tensor.detach()
    if not bool((value != number).any()):
        return
    sums = (
        variables.whole.get(each.base + each.origin.summed_with)
        for each in target.origins
        if each.name == place.name and each.origin.summed_with is not None
    )
    found = next((each for each in sums if each is not None), None)
    if found is None:
        raise InvalidArgumentError(
            f"{quoted(place.name)} has values other than {number:g}, which a rule fills in when the tensor is loaded: "
            f"these values would be lost. Omit the rule to store them"
        )
    variables.add(*found, value - number)


def _put_by_rule(
    variables: _WrittenVariables, target: Target, place: ModuleTensor, by_rule: WrittenAs, rules: InvertedRules
) -> None:
    """Add a tensor that a rule joins from several variables, or that is a part of one."""
    rule, keys = by_rule.rule, by_rule.keys
    value = variables.without(rule.add, target.tensor.detach())
    with error_context(f"{quoted(place.name)}, stored as {quoted(keys[0])}{' and others' if len(keys) > 1 else ''}"):
        if rule.axis >= value.dim():
            raise InvalidArgumentError(f"the tensor has no axis {rule.axis}. Give another axis in the rule")
        if len(keys) == 1:
            implied = rule.given_layout or implied_layout(target, place.name, keys[0], must_be_known=True)
            layout = implied or SAME
            sizes = rule.sizes or rules.sizes_along(rule.axis, by_rule.targets)
            start = sum(sizes[: by_rule.number])
            length, wanted = value.shape[rule.axis], sizes[by_rule.number]
            if length != wanted:
                raise InvalidArgumentError(f"axis {rule.axis} has length {length}, but the rule requires {wanted}")
            origin = TensorOrigin(axis=rule.axis, bounds=Bounds(start, start + wanted, sum(sizes)))
            variables.put_range(keys[0], " and ".join(by_rule.targets), origin, layout, value)
            return
        length = value.shape[rule.axis]
        if rule.sizes is None and length % len(keys):
            raise UnimplementedError(
                f"axis {rule.axis} of length {length} cannot be split into {len(keys)} equal parts. "
                f"Give sizes in the rule"
            )
        sizes = rule.sizes or (length // len(keys),) * len(keys)
        if sum(sizes) != length:
            raise InvalidArgumentError(
                f"axis {rule.axis} has length {length}, but the sizes of the rule add up to {sum(sizes)}"
            )
        for number, (key, part) in enumerate(zip(keys, torch.split(value, list(sizes), rule.axis), strict=True)):
            layout = rule.given_layout or part_layout(target, place.name, key, number, len(keys))
            variables.put(key, place.name, layout, part)


def _is_below_module(target: Target, place: ModuleTensor, rules: InvertedRules) -> bool:
    """Return whether a rule for modules gives the names of a tensor's variables."""
    written = _written(target, place.name)
    if written is None:
        return rules.below_module(place.name) is not None
    origins = [written.origin, *(origin for _, origin in written.siblings())]
    leaf = next(leaf for origin in origins for leaf in origin.leaves())
    return rules.below_module(written.base + leaf) is not None


def _put_by_origin(variables: _WrittenVariables, target: Target, place: ModuleTensor, rules: InvertedRules) -> bool:
    """Add a tensor unless it is one whole variable; return False if it is."""
    written = _written(target, place.name)
    if written is None or (len(written.origin.variables) == 1 and written.origin.bounds is None):
        return False
    origin, value = written.origin, target.tensor.detach()
    keys = [_spelled(written.base, *next(iter(each.items())), rules) for each in origin.variables]
    if not keys:
        if origin.summed_with is not None and not variables.of_slots and bool(value.count_nonzero()):
            [leaves] = written.variant[origin.summed_with].variables
            variables.add(*_spelled(written.base, *next(iter(leaves.items())), rules), value)
        return True
    if origin.bounds is not None:
        [(key, layout)] = keys
        variables.put_range(key, f"{written.base}{origin.bounds.size}", origin, layout, value)
        return True
    for (key, layout), part in zip(keys, value.chunk(len(keys), origin.axis), strict=True):
        variables.put(key, place.name, layout, part)
    return True


def _written(target: Target, name: str) -> LayerOrigin | None:
    """Return how a tensor is written: by the first variant of the outermost layer that has it."""
    first = [each for each in target.origins if each.name == name and each.order == 0]
    return min(first, key=lambda each: len(each.base), default=None)


def _stored_as(
    target: Target, place: ModuleTensor, by_rule: WrittenAs | None, rules: InvertedRules, *, below: bool
) -> tuple[str, Layout]:
    """Return the key and the layout of a tensor that is stored as one variable.

    Args:
        below: Whether it has TensorFlow's name, because of `naming` or a rule for its module.
    """
    if by_rule is not None:
        [key] = by_rule.keys
        with error_context(f"{quoted(place.name)}, stored as {quoted(key)}"):
            given = layout_given(by_rule.rule, target, place.name)
            return key, given or implied_layout(target, place.name, key, must_be_known=True) or SAME
    written = _written(target, place.name)
    if not below:
        return place.name, SAME
    if written is None:
        return _spelled("", place.name, SAME, rules)
    return _spelled(written.base, *next(iter(written.origin.variables[0].items())), rules)


def _spelled(base: str, leaf: str, layout: Layout, rules: InvertedRules) -> tuple[str, Layout]:
    """Return the key and the layout of a variable that has TensorFlow's name."""
    found = rules.below_module(base + leaf)
    if found is None:
        return _key(base, leaf), layout
    key, given = found
    return key, layout if given is None or not layout.changes_values else layout_of_rule(given)


def _key(base: str, leaf: str) -> str:
    return (base + leaf).replace(".", "/")
