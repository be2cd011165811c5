r"""KeyMapper: rules that map the names in a TensorFlow checkpoint to names in a module's state_dict.

    KeyMapper({"dense/kernel": ("fc.weight", "dense"), "dense/bias": "fc.bias", "unused": None})
    KeyMapper([(r"layer_(\d+)/kernel", r"layers.\1.weight"), (r"head/.*", None)])
    KeyMapper([KeyRule(("q/kernel", "k/kernel", "v/kernel"), "in_proj_weight", "dense")])
    KeyMapper.from_file("map.toml")

The direction is always stored key -> state_dict key. In a dictionary, a string is a literal name. In a list, a string
is a regular expression that must match a whole name, and the first match is used. Both also accept compiled regular
expressions.
"""

import re
import reprlib
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Final, NamedTuple, Self, TypeGuard

from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.models.infer_rules import ExplainedRule
from torch_tfckpt.models.key_rules import (
    CheckedRule,
    KeyRule,
    NameOrPattern,
    RuleMatch,
    TargetFunction,
    check_rule,
    source_text,
    targets_of_rule,
)
from torch_tfckpt.models.layouts import LayoutLike
from torch_tfckpt.models.map_file import MapFile, map_text, parse_map_file, read_map_file, write_map_file
from torch_tfckpt.models.presets import preset_text
from torch_tfckpt.models.rule_scopes import has_scope, with_scope
from torch_tfckpt.models.stored_names import names_for_rules
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.text import quoted

_EXAMPLE: Final = '(r"(.*)/kernel", r"\\1.weight", "dense")'

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


class KeyMapper:
    """Rules for the names and layouts of stored tensors.

    Args:
        rules: A dictionary name -> target, or name -> (target, layout); or a list of KeyRules or equivalent tuples.
            A target of None or "" omits the tensor; a list of targets splits it.
        base: Name of the base model in the targets: with base="bert", targets such as "bert.pooler.dense.weight" also
            fit a module that is the base model itself, which has "pooler.dense.weight".

    Names are tried before patterns, and patterns in order; the first match is used. In an object-based checkpoint
    each tensor is tried under its key without "/.ATTRIBUTES/VARIABLE_VALUE", then under the whole key, then under the
    path of its object ("model.fc.kernel") and the full name of the variable ("fc/kernel").

    Raises:
        InvalidArgumentError: an invalid pattern, group, target or layout (the message contains the number of the
            rule); two names are mapped to one target.

    Mappers with equal rules and the same base are equal. `KeyRule` describes rules for whole modules, for variables
    that are joined or split, and for constants.

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

    def __init__(self, rules: Rules, *, base: str = "") -> None:
        _check_rules(rules)
        if not isinstance(base, str):
            raise InvalidArgumentError(f'KeyMapper: base={base!r} is not a name. Give one such as "bert"')
        self._base = base.rstrip(".")
        checked: list[CheckedRule] = []
        if isinstance(rules, Mapping):
            for number, (source, target) in enumerate(rules.items()):
                place = f"rule {number} of the KeyMapper"
                literal = isinstance(source, str)
                checked.append(check_rule(place, KeyRule(source, *_target_and_layout(place, target), literal=literal)))
        else:
            for number, rule in enumerate(rules):
                place = f"rule {number} of the KeyMapper"
                if not _is_rule(rule):
                    raise InvalidArgumentError(f"{place} is {rule!r}. Write a tuple such as {_EXAMPLE}")
                checked.append(check_rule(place, KeyRule(*rule)))
        self._set_rules("KeyMapper", checked)

    @classmethod
    def from_file(cls, path: AnyPath, *, scope: str | None = None) -> Self:
        r"""Read rules from a TOML file.

        Args:
            path: File with one table `[[rule]]` for each rule: docs/conversion/names.md describes them.
            scope: The first part of the stored names, for patterns with a group "scope", as for `preset`.

        Raises:
            InvalidArgumentError: the file is not TOML, is too large, or a rule is not valid; the message contains
                the number of the rule, from 1. No rule is for the scope.
            NotFoundError: there is no such file.

        Examples:
            >>> import pathlib, torch_tfckpt as tfckpt
            >>> text = "[[rule]]\nmodule = 'bert/encoder/layer_(\\d+)'\nto = 'encoder.layer.\\1'\n"
            >>> size = pathlib.Path("map.toml").write_text(text)
            >>> tfckpt.KeyMapper.from_file("map.toml").find("bert/encoder/layer_3/output/kernel").target
            'encoder.layer.3.output.kernel'
        """
        return cls._of_file(read_map_file(path), scope)

    @classmethod
    def preset(cls, name: str, *, scope: str | None = None) -> Self:
        """Return the rules for a family of models, which map the names of the original TensorFlow code.

        Args:
            name: Such as "bert"; docs/conversion/presets.md lists all, with the classes that they are for.
            scope: The first part of the stored names, such as "resnet_v1_50", if the preset asks for one to save; ""
                for the names of Keras, which have none. None: all names that the preset is for, to load.

        Raises:
            NotFoundError: there is no preset of this name; the message lists the names.
            InvalidArgumentError: the preset has no rule for the scope.

        Examples:
            >>> import torch_tfckpt as tfckpt
            >>> mapper = tfckpt.KeyMapper.preset("bert")
            >>> mapper.find("bert/encoder/layer_3/attention/self/query/kernel").target
            'bert.encoder.layer.3.attention.self.query.weight'
        """
        file = parse_map_file(f"the preset {quoted(name)}", preset_text(name).encode())
        return cls._of_file(file._replace(rules=[replace(rule, is_of_preset=True) for rule in file.rules]), scope)

    def to_file(self, path: AnyPath) -> None:
        """Write the rules to a TOML file that `from_file` reads back as an equal mapper.

        Names come before patterns, which keep their order. An existing file is replaced.

        Raises:
            UnimplementedError: a target or a layout is a function; the message names it.
            InvalidArgumentError: a name that cannot be written as UTF-8, or that is too long.
            IncompleteSaveError: a file operation failed.

        Examples:
            >>> import pathlib, torch_tfckpt as tfckpt
            >>> mapper = tfckpt.KeyMapper({"dense/kernel": ("fc.weight", "dense")})
            >>> mapper.to_file("map.toml")
            >>> tfckpt.KeyMapper.from_file("map.toml") == mapper
            True
            >>> print(pathlib.Path("map.toml").read_text().strip())
            [[rule]]
            name = "dense/kernel"
            to = "fc.weight"
            layout = "dense"
        """
        write_map_file(path, rules_of(self), self._explanations, self._base)

    @classmethod
    def infer(
        cls, path: AnyPath, module: nn.Module, *, rules: "KeyMapper | Rules" = (), storage: Storage | None = None
    ) -> Self:
        """Find the rules that load a checkpoint into a module whose names are different.

        Layers of the checkpoint are matched with modules by the kinds and shapes of their variables, words and numbers
        in their names, and the layers around them; docs/conversion/inference.md describes the evidence. If it leaves a
        choice, nothing is guessed.

        Args:
            path: As for CheckpointReader.
            module: Every parameter and persistent buffer gets a rule. May be on the meta device.
            rules: Rules for what the names and shapes do not tell, or for what is to be omitted. They become part of
                the mapper.
            storage: Where files are stored. None: chosen according to the path.

        Returns:
            A mapper with a layout in every rule that needs one. `explanations` has the reason for each rule.

        Raises:
            InvalidArgumentError: several layers fit several modules, or the order of axes is unknown: the message
                contains the candidates and rules that settle the choice. Stored weights are not used although others
                in their scope are; a rule in `rules` fits nothing.
            NotFoundError: there is no such checkpoint; no stored layer fits a module.
            DataLossError: the index or the object graph is damaged.

        Stored weights in scopes of their own that the module does not have, such as a head, are omitted by rules, and
        logged as a warning. Optimizer state, averages and counters are ignored.
        Cost: reads names and shapes, no values; seconds for thousands of layers.

        Examples:
            >>> import torch, torch_tfckpt as tfckpt
            >>> stored = {"net/dense/kernel": torch.ones(3, 4), "net/dense/bias": torch.zeros(4)}
            >>> path = tfckpt.save_file(stored, "model.ckpt-1")
            >>> model = torch.nn.ModuleDict({"classifier": torch.nn.Linear(3, 4)})
            >>> mapper = tfckpt.KeyMapper.infer(path, model)
            >>> mapper.find("net/dense/kernel")
            KeyTarget(target='classifier.weight', layout='dense')
            >>> mapper.explanations["net/dense/kernel"]
            'the only layer of this kind and shape'
        """
        # Imported by name: what finds rules applies them, and what applies rules needs this module.
        inference = import_module("torch_tfckpt.models.inference")
        given = as_key_mapper(rules)
        mapper = cls(())
        _extend(mapper, given, inference.infer_rules(path, module, given, storage))
        return mapper

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
        return f"<KeyMapper of {len(self._names)} names, {len(self._patterns)} patterns>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyMapper):
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

    def renames(self, path: AnyPath) -> list[tuple[str, str]]:
        """Return what `convert` takes as `rename`, to give the tensors of a checkpoint the names of these rules.

        This is for rules whose targets are names of TensorFlow, such as the preset "tf-rnn-1.0".

        Args:
            path: As for CheckpointReader.

        Raises:
            UnimplementedError: a rule that applies does more than rename: it omits, joins or splits, has a layout or
                adds.

        Examples:
            >>> import torch, torch_tfckpt as tfckpt
            >>> path = tfckpt.save_file({"rnn/lstm_cell/weights": torch.ones(5, 8)}, "old.ckpt-1")
            >>> renames = tfckpt.KeyMapper.preset("tf-rnn-1.0").renames(path)
            >>> report = tfckpt.convert(path, "new.ckpt-1", to="tf", rename=renames)
            >>> tfckpt.list_variables("new.ckpt-1")
            [('rnn/lstm_cell/kernel', [5, 8])]
        """
        found: list[tuple[str, str]] = []
        with CheckpointReader(path) as reader:
            names_of = names_for_rules(reader)
            for key in reader.keys():
                match = rule_match(self, names_of(key), None)
                if match is None:
                    continue
                rule = match.rule
                if len(match.targets) != 1 or rule.is_join or rule.is_module or rule.add or rule.layout is not None:
                    raise UnimplementedError(
                        f"{rule.place}, for {quoted(source_text(rule.source))}, does more than rename {quoted(key)}. "
                        f"Load the checkpoint with load_model(mapper=) instead"
                    )
                if match.targets[0] != key:
                    found.append((rf"\A{re.escape(key)}\Z", match.targets[0].replace("\\", r"\\")))
        return found

    @classmethod
    def _of_file(cls, file: MapFile, scope: str | None) -> Self:
        mapper = cls((), base=file.base)
        mapper._set_rules(file.place, file.rules if scope is None else with_scope(file.place, file.rules, scope))
        return mapper

    def _set_rules(self, place: str, rules: Iterable[CheckedRule]) -> None:
        self._explanations: dict[str, str] = {}
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


def as_key_mapper(mapper: KeyMapper | Rules) -> KeyMapper:
    """Return `mapper` itself, or a KeyMapper with these rules."""
    return mapper if isinstance(mapper, KeyMapper) else KeyMapper(mapper)


def mapper_of(place: str, rules: Iterable[CheckedRule], base: str = "") -> KeyMapper:
    """Return a mapper with these rules; `place` is its name for messages."""
    mapper = KeyMapper((), base=base)
    mapper._set_rules(place, rules)
    return mapper


def without_names(mapper: KeyMapper | None, names: Collection[str]) -> KeyMapper | None:
    """Return a mapper that omits these keys before any other rule; the mapper itself if there are none."""
    if not names:
        return mapper
    omitted = [CheckedRule("the names to omit", (name,), ()) for name in names]
    rest = [] if mapper is None else [rule for rule in rules_of(mapper) if rule.name not in names]
    return mapper_of("the rules", [*omitted, *rest], "" if mapper is None else mapper.base)


def map_file_text(mapper: KeyMapper) -> str:
    """Return what `KeyMapper.to_file` writes."""
    return map_text(rules_of(mapper), mapper._explanations, mapper.base)


def extended(mapper: KeyMapper, rules: Sequence[ExplainedRule]) -> KeyMapper:
    """Return a mapper with the rules of another one and, after them, these rules and the reasons for them."""
    result = KeyMapper((), base=mapper.base)
    _extend(result, mapper, rules)
    return result


def _extend(result: KeyMapper, mapper: KeyMapper, rules: Sequence[ExplainedRule]) -> None:
    checked = [check_rule("an inferred rule", each.rule) for each in rules]
    result._set_rules("KeyMapper", [*rules_of(mapper), *checked])
    result._explanations.update(
        (source_text(rule.source), each.reason) for rule, each in zip(checked, rules, strict=True)
    )


def rules_of(mapper: KeyMapper) -> list[CheckedRule]:
    """Return all rules of a mapper, those for names first."""
    return [*mapper._names.values(), *mapper._patterns]


def rule_match(mapper: KeyMapper, names: Iterable[str], known: Container[str] | None) -> RuleMatch | None:
    """Return the match of the first rule of a mapper that matches one of the names.

    Args:
        names: The names of a stored tensor.
        known: Dotted names of everything that may be stored for a module's tensors: TensorFlow's names and the
            module's own. A rule for modules matches only these. None: such a rule matches any name.
    """
    names = tuple(names)
    for name in names:
        rule = mapper._names.get(name)
        if rule is not None:
            return rule.match(name, known)
    for rule in mapper._patterns:
        for name in names:
            match = rule.match(name, known)
            if match is not None:
                return match
    return None


def _check_rules(rules: object) -> None:
    if isinstance(rules, str | bytes) or not isinstance(rules, Mapping | Iterable):
        raise InvalidArgumentError(
            f"KeyMapper: {reprlib.repr(rules)} is not a set of rules. Give a dictionary of names, or a list of tuples "
            f"such as {_EXAMPLE}"
        )


def _is_rule(rule: object) -> TypeGuard[RuleLike]:
    return isinstance(rule, KeyRule) or (isinstance(rule, tuple) and 2 <= len(rule) <= 3)


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


def _target_and_layout(place: str, target: object) -> tuple[Any, Any]:
    """Split the value of a dictionary item into target and layout."""
    if target is None or isinstance(target, str | list):
        return target, None
    if isinstance(target, tuple) and len(target) == 2:
        return target
    raise InvalidArgumentError(
        f'{place}: {target!r} is not a target. Write "fc.weight", ("fc.weight", "dense") or None'
    )
