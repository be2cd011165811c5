"""Rules of a mapper for a model with heads, applied to its base model alone.

    base = "bert"            BertForMaskedLM has "bert.pooler.dense.weight", BertModel has "pooler.dense.weight"

A mapper with a base has targets for a model that contains the base model under this name. If a module has no tensor
below the name, it is treated as the base model itself, and the name is removed from the targets.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from torch_tfckpt.models.rules.key_rules import ROOT_MODULE, CheckedRule, TargetFunction, expand
from torch_tfckpt.models.rules.rule_set import RuleSet, rules_of
from torch_tfckpt.models.rules.target_templates import TargetTemplate, as_template
from torch_tfckpt.models.targets import Target


def mapper_for(mapper: RuleSet, targets: Iterable[Target]) -> RuleSet:
    """Return the mapper for a module with these tensors; targets omit the base if the module lacks it."""
    below = f"{mapper.base}."
    if not mapper.base or any(name.startswith(below) for target in targets for name in target.names):
        return mapper
    return RuleSet("KeyMapper", [_without(rule, mapper.base) for rule in rules_of(mapper)])


def _without(rule: CheckedRule, base: str) -> CheckedRule:
    targets = tuple(_stripped(target, base) for target in rule.targets)
    return replace(rule, targets=targets, optional=rule.optional.removeprefix(f"{base}."))


def _stripped(target: str | TargetFunction, base: str) -> str | TargetFunction:
    if isinstance(target, str):
        return ROOT_MODULE if target == base else target.removeprefix(f"{base}.")
    if isinstance(target, TargetTemplate):  # stays a template, which can be inverted
        return as_template(target.text.removeprefix(f"{base}."), target.tables)

    def stripped(match: re.Match[str]) -> str | None:
        name = expand(match, target)
        return None if name is None else name.removeprefix(f"{base}.")

    return stripped
