"""Rules for modules: which stored names they match.

    known_below      every name that such rules may match, below the modules to which they map
    path_below       the name below a module that a rule gives to a stored tensor, known or not

Contract: a rule for a module matches only what may be stored for its tensors, so slots of optimizers and variables of
other programs are treated as if the rule did not exist. Cells that TensorFlow numbers by itself, such as
"multi_rnn_cell/cell_0/basic_lstm_cell", are identified by their order.
"""

from collections.abc import Collection, Sequence

from torch_tfckpt.models.rules.key_rules import CheckedRule
from torch_tfckpt.models.stored_names import dotted, numbered_names
from torch_tfckpt.models.targets import Target


def known_below(
    modules: Sequence[CheckedRule], targets: Sequence[Target], stored: Collection[Sequence[str]]
) -> Collection[str]:
    """Return the dotted names that rules for modules may match.

    These are the names under which the targets may be stored. Cells that TensorFlow numbers by itself are identified by
    their order (see `numbered_names`), so the names that they have in this checkpoint are included.

    Args:
        stored: The names of each stored tensor.
    """
    known = {dotted(name) for target in targets for name in target.possible_names}
    if any(name.endswith("]") for each in known for name in each.split(".")):
        below = [
            (path, path)
            for rule in modules
            for names in stored
            if (path := path_below(rule, names)) is not None and path not in known
        ]
        known.update(path for name, path in numbered_names(list(dict.fromkeys(below))) if name in known)
    return known


def path_below(rule: CheckedRule, names: Sequence[str]) -> str | None:
    """Return the name that a rule for modules gives to a tensor, even if the module does not have it."""
    found = (rule.match(name, None) for name in names)
    return next((match.targets[0] for match in found if match is not None and match.targets), None)
