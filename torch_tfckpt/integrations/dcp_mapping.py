"""Tensors that a KeyMapper makes from stored ones, under the names in a state_dict.

The target of a rule is a name in the state_dict of a module. It is also found below the key that the module's
state_dict has in the state that is loaded: "fc.weight" as "model.fc.weight". A rule without a layout copies the tensor,
unless the stored name is one that TensorFlow's and torch's layers use for weights with different orders of axes.

If a layout only moves axes, the wanted part is found among the stored axes, and only this part is read. For other
layouts, and for tensors that are joined from several or split, each rank reads the whole tensors.
"""

from collections.abc import ItemsView
from dataclasses import dataclass
from functools import cached_property

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.format.tensor_slice import Extent, Shape, TensorSlice, shape_text
from torch_tfckpt.models.layers.assembly import Source, SourcePart
from torch_tfckpt.models.layers.layer_names import AMBIGUOUS, KERNELS
from torch_tfckpt.models.layers.layouts import LAYOUTS, SAME, Layout
from torch_tfckpt.models.layers.tensor_origins import Bounds
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.models.rules.key_rules import RuleMatch
from torch_tfckpt.models.rules.rule_set import rule_match, rules_of
from torch_tfckpt.models.stored_names import names_for_rules, variable_name_of
from torch_tfckpt.text import quoted
from torch_tfckpt.values import value_dtype


@dataclass(frozen=True, slots=True)
class MappedValue:
    """A tensor that is made from stored ones."""

    source: Source
    shape: Shape
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """Key of the first stored tensor."""
        return self.source.key

    def read(self, reader: CheckpointReader, part: TensorSlice) -> torch.Tensor:
        """Return a part of the tensor."""
        source = self.source
        moved = _moved_part(source, reader.shape(source.key), part) if source.is_one_variable else None
        if moved is None:
            return source.value(reader.get_tensors(source.read_keys))[part.to_index()]
        stored = reader.read_slice(source.key, moved)
        value = source.layout.to_torch(stored)
        return value + source.added if source.added else value


class MappedTensors:
    """The tensors that a mapper makes from those of a checkpoint.

    Attributes:
        keys: The keys of stored tensors that rules match.

    Raises:
        UnimplementedError: a rule for modules, or one that fills a tensor.
        InvalidArgumentError: two stored tensors are mapped to one name; a layout does not fit, or is needed and not
            given.
    """

    def __init__(self, reader: CheckpointReader, mapper: KeyMapper) -> None:
        self._reader, self._base = reader, mapper.base
        self.keys: set[str] = set()
        self._matches: dict[str, list[tuple[str, RuleMatch]]] = {}  # target -> keys
        self._below: dict[str, str] = {}  # target -> the key in the state below which it was asked for
        for rule in rules_of(mapper):
            if rule.is_module or rule.fill is not None:
                what = "is for a module" if rule.is_module else "fills a tensor that is not stored"
                raise UnimplementedError(
                    f"{rule.place} {what}, which needs the module. Use load_model, or rules for single tensors, as "
                    f"KeyMapper.infer returns them"
                )
        names_of = names_for_rules(reader)
        for key in reader.keys():
            match = rule_match(mapper, names_of(key), None)
            if match is not None:
                self.keys.add(key)
                for target in match.targets:
                    self._matches.setdefault(target, []).append((key, match))
        self._values: dict[str, MappedValue] = {}
        for target, matches in self._matches.items():
            if len(matches) > 1 and not matches[0][1].rule.is_join:
                raise InvalidArgumentError(
                    f"{quoted(matches[0][0])} and {quoted(matches[1][0])} are both mapped to {quoted(target)}. Map one "
                    f"of them to None"
                )
            with error_context(f"{reader.path}: {quoted(target)}"):
                self._values[target] = self._made(target)

    def items(self) -> ItemsView[str, MappedValue]:
        """Return the targets and their values."""
        return self._values.items()

    def find(self, name: str) -> MappedValue | None:
        """Return the tensor with a name in the state that is loaded; None if no rule makes it.

        Raises:
            InvalidArgumentError: two values of the state would get the same tensor.
        """
        target, below = name, ""
        if not self._has(name):
            below, _, target = name.partition(".")
            if not self._has(target):
                return None
        if self._below.setdefault(target, below) != below:
            raise InvalidArgumentError(
                f"{quoted(name)} and {quoted(f'{self._below[target]}.{target}'.lstrip('.'))} would both be loaded from "
                f"what the mapper maps to {quoted(target)}. Write the whole name into the rule"
            )
        return self._values[target if target in self._matches else f"{self._base}.{target}"]

    def _has(self, target: str) -> bool:
        return target in self._matches or (bool(self._base) and f"{self._base}.{target}" in self._matches)

    @cached_property
    def _shapes(self) -> dict[str, Shape]:
        return {key: self._reader.shape(key) for key in self.keys}

    def _made(self, target: str) -> MappedValue:
        matches = self._matches[target]
        key, match = matches[0]
        rule = match.rule
        if rule.is_join:
            matches.sort(key=lambda each: each[1].part)
            parts = tuple(SourcePart(each, self._layout(each, of)) for each, of in matches)
            if len(rule.sources) > 1 and [of.part for _, of in matches] != list(range(len(rule.sources))):
                raise InvalidArgumentError(f"{rule.place} joins {len(rule.sources)} tensors, but not all are stored")
            source = Source(parts, variable_name_of(key), rule.axis, added=rule.add)
        else:
            part = SourcePart(key, self._layout(key, match))
            bounds = self._bounds(part, target, match) if len(match.targets) > 1 else None
            axis = rule.axis if bounds is not None else 0
            source = Source((part,), variable_name_of(key), axis, bounds, rule.add)
        return MappedValue(source, source.shape(self._shapes), value_dtype(key, self._reader.dtype(key)))

    def _layout(self, key: str, match: RuleMatch) -> Layout:
        layout = match.rule.given_layout
        if layout is not None:
            return layout
        name, shape = variable_name_of(match.name), self._shapes[key]
        if len(shape) > 1 and (name in KERNELS or name in AMBIGUOUS or name.endswith("_kernel")):
            raise InvalidArgumentError(
                f"the order of the axes of {quoted(key)}, {shape_text(shape)}, is not known without the module. Give "
                f"the rule a layout, such as {', '.join(map(quoted, list(LAYOUTS)[:2]))}; KeyMapper.infer finds them"
            )
        return SAME

    def _bounds(self, part: SourcePart, target: str, match: RuleMatch) -> Bounds:
        """Return the range of one of the tensors into which a rule splits a stored one."""
        rule, held = match.rule, part.layout.torch_shape(self._shapes[part.key])
        if rule.axis >= len(held):
            raise InvalidArgumentError(f"{shape_text(held)} has no axis {rule.axis}")
        count = len(match.targets)
        if rule.sizes is None and held[rule.axis] % count:
            raise InvalidArgumentError(
                f"{shape_text(held)} cannot be split into {count} equal parts along axis {rule.axis}. Give sizes"
            )
        sizes = rule.sizes or (held[rule.axis] // count,) * count
        number = match.targets.index(target)
        start = sum(sizes[:number])
        return Bounds(start, start + sizes[number], sum(sizes))


def _moved_part(source: Source, stored: Shape, part: TensorSlice) -> TensorSlice | None:
    """Return the part of the stored tensor from which a part of the tensor is made; None if it is not one box."""
    layout = source.layout
    if layout.functions is not None or layout.gates or layout.added:
        return None
    if not layout.patterns:
        return part
    fitting = layout.fitting(stored)
    if fitting is None:
        return None
    pattern, _ = fitting
    if any(len(axis) > 1 for axis in (*pattern.stored, *pattern.held)):
        return None
    wanted = {axis[0]: extent for axis, extent in zip(pattern.held, part.extents, strict=True) if axis}
    return TensorSlice(tuple(wanted[axis[0]] if axis else Extent(0, 1) for axis in pattern.stored))
