r"""Build a module from rules alone, to convert a checkpoint for a model whose code is not available.

    'bert/encoder/layer_(\d+)/output' -> 'encoder.layer.\1.output', layout "dense"
    becomes a module "encoder.layer.0.output" with a weight and a bias, for each layer that is stored

Contract:

    tensors         one for every target of a rule that matches a stored weight; they have no shapes, since the stored
                    shapes are used
    layouts         given by rules, unless the name of the variable implies the layout (`leaf_names`). If a layout is
                    missing, or fits a shape in several ways, an error lists the rules to add
    rules           rules for modules match only variables whose names are known. Patterns match weights only: slots and
                    averages are not weights, even if a pattern matches their names
    fills           possible only next to the statistics of a BatchNorm, which determine the shape
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.models.auxiliary.averages import StoredAverages
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.auxiliary.recognition import kinds
from torch_tfckpt.models.layers.layouts import LAYOUTS, Layout
from torch_tfckpt.models.leaf_names import is_of_several, known_leaves, layer_with, needs_layout
from torch_tfckpt.models.rules.key_rules import CheckedRule, RuleMatch, targets_of_rule
from torch_tfckpt.models.rules.map_file import rule_text
from torch_tfckpt.models.rules.rule_set import RuleSet, rule_match, rules_of
from torch_tfckpt.models.stored_names import names_for_rules, variable_name_of
from torch_tfckpt.text import counted, quoted
from torch_tfckpt.values import value_dtype

_PROPOSED: Final = 200  # rules in a message
_USUAL: Final = {1: "same", 2: "dense", 3: "conv1d", 4: "conv2d", 5: "conv3d"}  # rank -> layout to propose
_CHECK: Final = (
    "Pass check=pkg.mod:factory, the module that the target is for, which determines the layouts. Or complete the "
    "rules with layouts"
)


class _KnownVariables:
    """The dotted names that rules for modules may match: their last part names a variable of a layer."""

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and path.rpartition(".")[2] in known_leaves()


@dataclass(frozen=True, slots=True)
class _Matched:
    """A stored tensor and the rule that matches it."""

    key: str
    shape: Shape
    dtype: torch.dtype
    match: RuleMatch

    @property
    def rule(self) -> CheckedRule:
        return self.match.rule

    @property
    def variable_name(self) -> str:
        return variable_name_of(self.match.name)

    @property
    def targets(self) -> Sequence[str]:
        """The names of the tensors that are made from it."""
        if not self.rule.is_module:
            return self.match.targets
        parent, _, leaf = self.match.targets[0].rpartition(".")
        return [f"{parent}.{known_leaves()[leaf].attribute}" if parent else known_leaves()[leaf].attribute]

    @property
    def layout(self) -> Layout | None:
        """The layout that the rule gives for this variable."""
        leaf = known_leaves().get(self.variable_name)
        if self.rule.is_module and (leaf is None or not leaf.is_turned or len(self.shape) < 2):
            return None
        return self.rule.given_layout


def module_of_rules(reader: CheckpointReader, mapper: RuleSet, averages: StoredAverages) -> nn.Module:
    """Return the module that the rules of a mapper describe.

    Args:
        averages: The averages of the checkpoint.

    Raises:
        InvalidArgumentError: the layout of a variable is unknown or ambiguous; the message lists the missing rules.
            Or one target is both a tensor and a module; or the shape of a tensor that a rule fills is unknown.
        DataLossError: the object graph or the entry of a tensor is damaged.
    """
    matched = list(_matched(reader, mapper, averages))
    _check_layouts(reader.path, matched)
    leaves: dict[str, list[str]] = {}
    for each in matched:
        for target in each.targets:
            leaves.setdefault(target.rpartition(".")[0], []).append(each.variable_name)
    root = layer_with(leaves.get("", ()))
    for each in matched:
        for target in each.targets:
            _add(root, target, _placeholder(each.dtype), leaves)
    shapes = {target: each.shape for each in matched for target in each.targets}
    for rule in rules_of(mapper):
        for target in targets_of_rule(rule) if rule.fill is not None else ():
            _add(root, target, torch.empty(_shape_of_fill(target, shapes), device="meta"), leaves)
    return root


def _matched(reader: CheckpointReader, mapper: RuleSet, averages: StoredAverages) -> Iterator[_Matched]:
    names_of = names_for_rules(reader)
    known = _KnownVariables()
    stored = kinds(reader, averages).of
    for key in dict.fromkeys((*reader.keys(), *averages.of)):
        match = rule_match(mapper, names_of(key), known)
        if match is None or not match.targets:
            continue
        if match.rule.name is None and stored.get(key, VariableKind.WEIGHT) is not VariableKind.WEIGHT:
            continue
        read_key = key if key in reader else averages.of[key]
        yield _Matched(key, reader.shape(read_key), value_dtype(read_key, reader.dtype(read_key)), match)


def _check_layouts(path: str, matched: Sequence[_Matched]) -> None:
    unknown = []
    for each in matched:
        layout = each.layout
        if layout is None:
            several = next((target for target in each.targets if is_of_several(target.rpartition(".")[2])), None)
            if several is not None:
                raise InvalidArgumentError(
                    f"{path}: {quoted(each.key)} is mapped to {quoted(several)}. Only the module determines how "
                    f"such a tensor is made, and the order of its gates. Pass check=pkg.mod:factory, the module that "
                    f"the target is for; or give the layout in the rule, such as "
                    f'"lstm_tf1", "gru", "weight_norm" or "same"'
                )
            if needs_layout(each.variable_name, each.shape):
                unknown.append(each)
            continue
        leaf = known_leaves().get(each.variable_name)
        own = set() if leaf is None or not each.rule.is_module else {known.name for known in leaf.layouts}
        if own and layout.name in LAYOUTS and (layout.name not in own or not layout.fits(each.shape)):
            unknown.append(each)  # the layout is for other variables, such as "conv2d" for a depthwise kernel
            continue
        patterns = [known for known in layout.patterns if known.lengths(each.shape, dict(layout.known)) is not None]
        if len(patterns) > 1:
            shown = " or ".join(quoted(str(pattern)) for pattern in patterns)
            raise InvalidArgumentError(
                f"{path}: {quoted(each.key)} {shape_text(each.shape)}: the layout {quoted(layout.name)} fits in "
                f"{len(patterns)} ways. Give the intended one as the layout in the rule: {shown}; or pass "
                f"check=pkg.mod:factory, the module that the target is for"
            )
    if unknown:
        first = unknown[0]
        count = counted(len(unknown), "variable")
        raise InvalidArgumentError(
            f"{path}: rules map {count} to torch's names without a layout, and neither the names nor the shapes "
            f"determine the order of the axes. The first is {quoted(first.key)} {shape_text(first.shape)}, mapped to "
            f"{quoted(first.targets[0])}. {_CHECK}; below are the usual layouts, check them:\n{_completed(unknown)}"
        )


def _completed(unknown: Sequence[_Matched]) -> str:
    """Return the rules that lack a layout, with the usual layout for the shape, as the text of a map file."""
    groups: dict[int, list[_Matched]] = {}
    for each in unknown:
        groups.setdefault(id(each.rule), []).append(each)
    texts: list[str] = []
    for those in groups.values():
        ranks = {(len(each.shape), _usual(each)) for each in those}
        is_literal = len(ranks) > 1 or those[0].rule.layout is not None
        for each in those if is_literal else those[:1]:
            rule = replace(each.rule, layout=_usual(each))
            if is_literal:
                rule = replace(rule, sources=(each.match.name,), targets=tuple(each.targets), is_module=False)
            try:
                text = rule_text(rule)
            except UnimplementedError:  # the target is a function
                text = rule_text(replace(rule, sources=(each.match.name,), targets=tuple(each.targets)))
            fitting = [name for name, layout in LAYOUTS.items() if layout.fits(each.shape) and name != _usual(each)]
            comment = f"# such as {quoted(each.key)} {shape_text(each.shape)}"
            comment += f"; also fitting: {', '.join(fitting)}" if fitting else ""
            texts.append(f"{comment}\n{text}")
    more = len(texts) - _PROPOSED
    return "\n".join(texts[:_PROPOSED]) + (f"# and {more} more" if more > 0 else "")


def _usual(each: _Matched) -> str:
    if "depthwise" in each.variable_name:
        return "depthwise"
    return _USUAL.get(len(each.shape), "same")


def _placeholder(dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor that takes any shape."""
    if dtype.is_floating_point or dtype.is_complex:
        return UninitializedParameter(dtype=dtype, device="meta")  # type: ignore[call-arg]
    return UninitializedBuffer(dtype=dtype, device="meta")  # type: ignore[call-arg]


def _shape_of_fill(target: str, shapes: Mapping[str, Shape]) -> Shape:
    parent = target.rpartition(".")[0]
    shape = shapes.get(f"{parent}.running_mean" if parent else "running_mean")
    if shape is None:
        raise InvalidArgumentError(
            f"a rule fills {quoted(target)}, but only the module determines its shape. Pass check=pkg.mod:factory, the "
            f"module that the target is for"
        )
    return (max(shape, default=1),)  # also for a stored [1, 1, 1, channels]


def _add(root: nn.Module, name: str, tensor: torch.Tensor, leaves: Mapping[str, Collection[str]]) -> None:
    """Register a tensor, and the modules above it.

    Args:
        leaves: Name of a module -> the last parts of the names of its variables.
    """
    *parents, attribute = name.split(".")
    here, path = root, ""
    for part in parents:
        path = f"{path}.{part}" if path else part
        if part not in here._modules:
            here._modules[part] = layer_with(leaves.get(path, ()))
        if part in here._parameters or part in here._buffers:
            raise _exclude_each_other(path, name)
        below = here._modules[part]
        assert below is not None
        here = below
    if attribute in here._modules:
        raise _exclude_each_other(name, f"{name}.{next(iter(here._modules))}")
    if isinstance(tensor, nn.Parameter):
        here._parameters[attribute] = tensor
    else:
        here._buffers[attribute] = tensor


def _exclude_each_other(tensor: str, other: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"rules name one tensor {quoted(tensor)} and a second tensor {quoted(other)}. In a state_dict, "
        f"{quoted(tensor)} is then a module and cannot be a tensor. Change one of the rules"
    )
