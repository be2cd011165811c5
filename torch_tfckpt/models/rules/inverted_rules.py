"""Invert the rules of a KeyMapper: find the variables in which the tensors of a module are stored.

A rule is used only if it determines the stored name, and if the mapper maps that name back to the tensor. If several
rules meet this condition, those whose layout or stored name fits the module that has the tensor are preferred. If the
name is still ambiguous, or if the target of a rule is a function, which has no inverse, an error is raised: no name is
guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn.parameter import is_lazy

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.implied_sources import implied_layout
from torch_tfckpt.models.layers.layouts import OF_HEADS, Layout, LayoutLike
from torch_tfckpt.models.rules.key_rules import ROOT_MODULE, CheckedRule, source_text, targets_of_rule
from torch_tfckpt.models.rules.rule_inverse import RuleInverse, may_be_target, rule_inverse
from torch_tfckpt.models.rules.rule_set import RuleSet, not_inverted, rule_match, rules_of
from torch_tfckpt.models.stored_names import dotted
from torch_tfckpt.models.targets import Target
from torch_tfckpt.text import did_you_mean, quoted


@dataclass(frozen=True, slots=True)
class WrittenAs:
    """The variables of one tensor.

    Attributes:
        keys: Keys of the variables; several if they are joined to form the tensor.
        targets: All tensors that one variable is split into.
        number: Index of this tensor in `targets`.
    """

    rule: CheckedRule
    keys: tuple[str, ...]
    targets: tuple[str, ...]
    number: int

    @property
    def is_several(self) -> bool:
        """Whether several variables are joined, or one variable is split."""
        return len(self.keys) > 1 or len(self.targets) > 1


class InvertedRules:
    """The inverse of a mapper for the tensors of one module.

    Raises:
        InvalidArgumentError: a rule for a name has a target that the module does not have.
    """

    def __init__(self, mapper: RuleSet, targets: Sequence[Target]) -> None:
        self._mapper = mapper
        self._is_used = False
        self._shapes: dict[str, Shape] = {}
        for target in targets:
            shape = () if is_lazy(target.tensor) else tuple(target.tensor.shape)
            self._shapes.update(dict.fromkeys(target.names, shape))
        rules = [rule for rule in rules_of(mapper) if not rule.is_alias]
        modules = [rule for rule in rules if rule.is_module and rule.targets]
        self._known = {dotted(name) for target in targets for name in target.possible_names} if modules else frozenset()
        self._modules = [(rule, rule_inverse(rule.sources, rule.targets[0])) for rule in modules]
        self._tensors = [
            (rule, number, rule_inverse(rule.sources, target))
            for rule in rules
            if rule.sources and rule.name is None and not rule.is_module
            for number, target in enumerate(rule.targets)
        ]
        self._named = {
            target: WrittenAs(rule, (rule.name,), tuple(targets_of_rule(rule)), number)
            for rule in rules
            if rule.name is not None
            for number, target in enumerate(targets_of_rule(rule))
        }
        self.filled = {name: rule.fill for rule in rules if rule.fill is not None for name in targets_of_rule(rule)}
        for rule in rules:
            for name in targets_of_rule(rule) if not rule.is_needless(self._shapes) else ():
                if name not in self._shapes:
                    raise InvalidArgumentError(
                        f"the mapper maps {quoted(source_text(rule.source))} to {quoted(name)}, which the module does "
                        f"not have. {did_you_mean(name, self._shapes)}".rstrip()
                    )

    def of(self, target: Target, name: str) -> WrittenAs | None:
        """Return how a tensor is written; None if no rule applies to it. Rules for names come first.

        Raises:
            UnimplementedError: a rule may apply, but does not determine a stored name; or several rules apply.
        """
        if name in self._named:
            self._is_used = True
            return self._named[name]
        found: list[WrittenAs] = []
        unknown: CheckedRule | None = None
        for rule, number, inverse in self._tensors:
            names = self._names_of(rule, number, inverse, name)
            if names is None or len(names) > 1:
                unknown = unknown or rule
            found += names if names is not None and len(names) == 1 else []
        if len(found) > 1:
            found = [each for each in found if _fits(target, name, each)] or found
        if unknown is not None:
            raise not_inverted(unknown)
        if len(found) > 1:
            raise UnimplementedError(
                f"rules of the KeyMapper map both {quoted(found[0].keys[0])} and {quoted(found[1].keys[0])} to "
                f"{quoted(name)}. To save, map one of them by name, in a dictionary"
            )
        self._is_used = self._is_used or bool(found)
        return found[0] if found else None

    def check_used(self) -> None:
        """Raise InvalidArgumentError if the rules are a preset's, and none of them applied to a tensor."""
        preset = [rule for rule in rules_of(self._mapper) if rule.is_of_preset and rule.targets]
        if preset and not self._is_used:
            place = preset[0].place.partition(": rule ")[0]
            raise InvalidArgumentError(
                f"no rule of {place} matches a tensor of the module, so {place} would have no effect. It may be for "
                f"another model, or for the module of another library"
            )

    def below_module(self, path: str) -> tuple[str, LayoutLike | None] | None:
        """Return the key of a TensorFlow variable of the module, and the layout of the rule that gives it.

        Args:
            path: Name of a module and of its variable: "encoder.query.kernel".

        Returns:
            The result of the first rule for modules that applies; None if none applies.

        Raises:
            UnimplementedError: as `of`.
        """
        path = dotted(path)
        ends = [at for at in range(len(path)) if path[at] == "."] if self._modules else []
        # The outermost module first: names of modules below it are then spelled with "/", as in TensorFlow.
        inner = [(path[:at], path[at + 1 :]) for at in ends]
        for rule, inverse in self._modules:
            found: dict[str, str] = {}  # keys by their dotted spelling, in which "/" and "." are equal
            for module, rest in [(ROOT_MODULE, path)] if rule.targets[0] == ROOT_MODULE else inner:
                names = None if inverse is None else inverse.find(module)
                if names is None:
                    if may_be_target(rule.source, rule.targets[0], module):
                        raise not_inverted(rule)
                    continue
                for [name] in names:
                    key = f"{name}/{rest.replace('.', '/')}"
                    match = rule_match(self._mapper, (key,), self._known)
                    if match is not None and match.rule is rule and match.targets == (path,):
                        found.setdefault(dotted(key), key)
            if len(found) > 1:
                raise not_inverted(rule)
            for key in found.values():
                self._is_used = True
                return key, rule.layout
        return None

    def sizes_along(self, axis: int, names: Sequence[str]) -> tuple[int, ...]:
        """Return the lengths of tensors along an axis.

        Raises:
            InvalidArgumentError: the module lacks one of the tensors, or a tensor has no such axis.
        """
        for name in names:
            if name not in self._shapes or axis >= len(self._shapes[name]):
                raise InvalidArgumentError(
                    f"the module has no tensor {quoted(name)} with axis {axis}, which the rule requires"
                )
        return tuple(self._shapes[name][axis] for name in names)

    def _names_of(
        self, rule: CheckedRule, number: int, inverse: RuleInverse | None, name: str
    ) -> list[WrittenAs] | None:
        """Return how a rule may write a tensor; None if the rule does not determine it."""
        if inverse is None or (rule.is_join and len(rule.sources) == 1):
            return None if may_be_target(rule.source, rule.targets[number], name) else []
        names = inverse.find(name)
        if names is None:
            return None
        found = (self._leading_back(rule, each, number, name) for each in names)
        return [each for each in found if each is not None]

    def _leading_back(self, rule: CheckedRule, names: tuple[str, ...], number: int, name: str) -> WrittenAs | None:
        targets: tuple[str, ...] = ()
        for part, stored in enumerate(names):
            match = rule_match(self._mapper, (stored,), self._known)
            if match is None or match.rule is not rule or match.part != part or match.targets[number] != name:
                return None
            targets = match.targets
        return WrittenAs(rule, names, targets, number)


def layout_given(rule: CheckedRule, target: Target, name: str) -> Layout | None:
    """Return the layout that a rule gives, with the lengths that follow from the module; None if it gives none.

    The shape of a depthwise convolution, for instance, does not show its multiplier, nor that of a Linear its heads.
    """
    given = rule.given_layout
    if given is None or given.known:
        return given
    if given.name in OF_HEADS and target.heads is not None:
        return given.with_axis("heads").with_lengths(heads=target.heads)
    layouts = (each for origin in target.origins if origin.name == name for each in origin.origin.layouts())
    same = next((each for each in layouts if each.name == given.name), None)
    return given if same is None else given.with_lengths(**dict(same.known))


def _fits(target: Target, name: str, written: WrittenAs) -> bool:
    """Return whether the layout that the rule gives, or that the stored name implies, fits the tensor."""
    given = layout_given(written.rule, target, name)
    if given is None:
        return implied_layout(target, name, written.keys[0]) is not None
    try:
        given.stored_shape(tuple(target.tensor.shape))
    except InvalidArgumentError:
        return False
    return True
