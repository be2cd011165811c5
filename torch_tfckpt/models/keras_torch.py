"""Keras models on Keras's torch backend, which are torch modules: their tensors are found by Keras's paths.

    _torch_params.fc1/kernel      the variable fc1/kernel, in the same layout: [in, out]

The module has each of them twice if the model contains a functional one: also as _functional._torch_params.fc1/kernel.
States of random numbers are not stored in Keras's files, and stay as they are.
"""

from collections.abc import Sequence
from typing import Final

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.models.rules.key_rules import KeyRule, check_rule
from torch_tfckpt.models.rules.rule_set import RuleSet, rules_of
from torch_tfckpt.models.targets import Target

_PARAMETERS: Final = "_torch_params."
_SEED: Final = "seed_generator_state"


def without_seeds(targets: Sequence[Target]) -> list[Target]:
    """Return the targets without the states of random numbers of a Keras model."""
    return [target for target in targets if not (path_of(target) or "").endswith(_SEED)]


def path_of(target: Target) -> str | None:
    """Return the path that Keras gives a variable of a model on its torch backend; None for other tensors."""
    for name in target.names:
        start, found, path = name.rpartition(_PARAMETERS)
        if found and (not start or start.endswith(".")) and "/" in path:
            return path
    return None


def with_paths(mapper: RuleSet | None, reader: CheckpointReader, targets: Sequence[Target]) -> RuleSet | None:
    """Return the mapper with a rule, after its own, for each variable that is stored under Keras's path."""
    rules = []
    for target in targets:
        path = path_of(target)
        if path is not None and _is_stored(reader, path):
            rules.append(check_rule("the paths of Keras", KeyRule(path, target.name, "same", literal=True)))
    if not rules:
        return mapper
    own = [] if mapper is None else rules_of(mapper)
    taken = {rule.source for rule in own}
    more = [rule for rule in rules if rule.source not in taken]
    return RuleSet("KeyMapper", [*own, *more], base="" if mapper is None else mapper.base)


def _is_stored(reader: CheckpointReader, path: str) -> bool:
    try:
        reader.resolve(path)
    except CheckpointError:
        return False
    return True
