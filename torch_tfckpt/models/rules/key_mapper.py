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
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Self, TypeGuard

from torch import nn

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.models.inference.infer import infer_rules
from torch_tfckpt.models.layers.layouts import LayoutLike
from torch_tfckpt.models.presets import preset_text
from torch_tfckpt.models.rules.key_rules import (
    CheckedRule,
    KeyRule,
    NameOrPattern,
    TargetFunction,
    check_rule,
    source_text,
)
from torch_tfckpt.models.rules.map_file import MapFile, parse_map_file, read_map_file, write_map_file
from torch_tfckpt.models.rules.rule_scopes import with_scope
from torch_tfckpt.models.rules.rule_set import RuleSet, extended, rule_match, rules_of
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


class KeyMapper(RuleSet):
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
        super().__init__("KeyMapper", checked, base=base.rstrip("."))

    @classmethod
    def from_file(cls, path: AnyPath, *, scope: str | None = None) -> Self:
        r"""Read rules from a TOML file.

        Args:
            path: File with one table `[[rule]]` for each rule: docs/conversion/names.md describes them.
            scope: The first part of the stored names, for patterns with a group "scope", as for `preset`.

        Raises:
            InvalidArgumentError: the file is not TOML, is too large, or a rule is not valid; the message contains
                the number of the rule, counted from 1. Or no rule is for the scope.
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
            scope: The first part of the stored names, such as "resnet_v1_50", if the preset requires one to save; ""
                for Keras names, which have no scope. None: all names that the preset is for, which is enough for
                loading.

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
        write_map_file(path, rules_of(self), self.explanations, self.base)

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
            rules: Rules for what names and shapes do not determine, or for what is to be omitted. They become part of
                the mapper.
            storage: Where files are stored. None: chosen according to the path.

        Returns:
            A mapper with a layout in every rule that needs one. `explanations` has the reason for each rule.

        Raises:
            InvalidArgumentError: several layers fit several modules, or the order of axes is unknown: the message
                contains the candidates and rules that resolve the choice. Or stored weights are not used although
                others in their scope are; or a rule in `rules` matches nothing.
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
        given = as_key_mapper(rules)
        found = extended(given, infer_rules(path, module, given, storage))
        return cls._of("KeyMapper", rules_of(found), found.base, found.explanations)

    def renames(self, path: AnyPath) -> list[tuple[str, str]]:
        """Return the `rename` argument with which `convert` applies these rules to a checkpoint.

        This is for rules whose targets are names of TensorFlow, such as the preset "tf-rnn-1.0".

        Args:
            path: As for CheckpointReader.

        Raises:
            UnimplementedError: a rule that applies does more than rename: it omits, joins, splits, adds a constant or
                has a layout.

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
        rules = file.rules if scope is None else with_scope(file.place, file.rules, scope)
        return cls._of(file.place, rules, file.base)

    @classmethod
    def _of(
        cls, place: str, rules: Iterable[CheckedRule], base: str, explanations: Mapping[str, str] | None = None
    ) -> Self:
        mapper = cls((), base=base)
        mapper._set_rules(place, rules, explanations)
        return mapper


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
    return isinstance(rule, KeyRule) or (isinstance(rule, tuple) and 2 <= len(rule) <= 3)


def _target_and_layout(place: str, target: object) -> tuple[Any, Any]:
    """Split the value of a dictionary item into target and layout."""
    if target is None or isinstance(target, str | list):
        return target, None
    if isinstance(target, tuple) and len(target) == 2:
        return target
    raise InvalidArgumentError(
        f'{place}: {target!r} is not a target. Write "fc.weight", ("fc.weight", "dense") or None'
    )
