"""Errors of KeyMapper.infer: what is missing or ambiguous, and the rules that resolve it.

Contract: every proposed rule is complete and can be pasted into a map file; lists are truncated, so that a message
has at most a few dozen lines, however large the model is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError, NotFoundError
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.models.inference.proposed_rules import layout_for_rule
from torch_tfckpt.models.inference.units import ModuleUnit, StoredLayer
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.rules.key_rules import KeyRule, check_rule
from torch_tfckpt.models.rules.map_file import rule_text
from torch_tfckpt.text import and_more, counted, first_lines, listed, quoted

_LISTED: Final = 6
_HOW: Final = (
    "Pass the rules to KeyMapper.infer; or write them to a file, pass it to `tfckpt map --rules`, and the map that "
    "this command writes to `tfckpt convert --map`"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Layers and modules that the evidence does not distinguish, and a rule that matches one pair."""

    layers: Sequence[str]
    units: Sequence[str]
    rule: KeyRule | None


def ambiguous(path: str, choices: Sequence[Choice]) -> InvalidArgumentError:
    """Return the error for layers that cannot be told apart."""
    lines = []
    for number, each in enumerate(choices, 1):
        lines.append(f"{number}. stored {listed(each.layers, _LISTED)} may be {listed(each.units, _LISTED)}")
        if each.rule is not None:
            lines += _indented(each.rule)
    return InvalidArgumentError(
        f"{path}: some layers have the same kind and shapes, and neither their names nor their numbers show which is "
        f"which, so nothing is guessed. Each rule below resolves one choice if its name and target belong together; "
        f"if not, change the target:\n" + "\n".join(lines) + f"\n{_HOW}"
    )


def layouts_unknown(
    path: str, unknown: Sequence[tuple[str, Sequence[Source]]], shapes: Mapping[str, Shape]
) -> InvalidArgumentError:
    """Return the error for tensors whose order of axes is unknown."""
    lines = []
    for name, sources in unknown[:_LISTED]:
        key = sources[0].key
        choices = [layout_for_rule(each.layout, shapes[key], explicit=True) for each in sources]
        named = " or ".join(quoted(str(each)) for each in choices)
        lines.append(f"{quoted(short_key(key))} {shape_text(shapes[key])}, for {quoted(name)}: layout {named}")
        lines += _indented(KeyRule(short_key(key), name, choices[-1], literal=True))
    rest = and_more(len(unknown), _LISTED).strip()
    return InvalidArgumentError(
        f"{path}: neither names nor shapes determine the order of the axes. Choose the layout in these rules:\n"
        + "\n".join(filter(None, [*lines, rest]))
        + f"\n{_HOW}"
    )


def missing(
    path: str,
    short: Sequence[tuple[Sequence[ModuleUnit], Sequence[StoredLayer]]],
    unmatched: Sequence[tuple[str, Shape]],
) -> NotFoundError:
    """Return the error for modules that no stored layer fits.

    Args:
        short: Groups of modules, each with the layers that fit, which are too few.
        unmatched: Keys and shapes of variables that fit no module.
    """
    lines = []
    for units, layers in short:
        tensors = [
            f"{target.name} {shape_text(target.shape or ())}" for unit in units for target in unit.tensors.values()
        ]
        names = [layer.names[0] for layer in layers]
        fitting = f"only {listed(names, _LISTED)} fit {counted(len(units), 'module')}" if names else "nothing fits"
        lines.append(f"{listed(tensors, _LISTED, str)}: {fitting}")
    stored = [f"{short_key(key)} {shape_text(shape)}" for key, shape in unmatched]
    unused_text = f"Stored variables that fit no module: {listed(stored, _LISTED, str)}" if stored else ""
    return NotFoundError(
        f"{path}: the module has tensors that no stored layer fits:\n"
        + "\n".join(filter(None, [*first_lines(lines, _LISTED), unused_text]))
        + f"\nBuild the module with the sizes of the checkpoint, or map these tensors with rules, such as "
        f'KeyRule(None, "fc.bias", fill=0.0) for a tensor that is not stored. {_HOW}'
    )


def unused(path: str, keys: Sequence[str]) -> InvalidArgumentError:
    """Return the error for stored weights that are not used, although others in their scope are."""
    names = [short_key(key) for key in keys]
    lines = [line for name in names[:_LISTED] for line in _indented(KeyRule(name, None, literal=True))]
    return InvalidArgumentError(
        f"{path}: stored weights have no place in the module, although others in the same scope do: "
        f"{listed(names, _LISTED)}. The module may lack layers, or be a different model. To omit them on purpose:\n"
        + "\n".join(lines)
        + f"\n{_HOW}"
    )


def _indented(rule: KeyRule) -> list[str]:
    return [f"  {line}" for line in rule_text(check_rule("a proposed rule", rule)).splitlines()]
