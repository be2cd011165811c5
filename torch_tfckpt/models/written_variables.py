"""The variables that save_model writes for the tensors of a module: names, layouts, and how they are put together.

With TensorFlow's names, each layer is written in the first of its variants (see `layer_names`): a tensor that is joined
from several variables is cut into them, and tensors that are ranges of one variable are joined to it. This is the
inverse of what load_model does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.parameter import is_lazy

from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.models.layouts import SAME, Layout, LayoutLike, layout_of_rule
from torch_tfckpt.models.mapped_sources import implied_layout
from torch_tfckpt.models.targets import LayerOrigin, Target
from torch_tfckpt.models.tensor_origins import TensorOrigin
from torch_tfckpt.saveables.module_tensors import ModuleTensor
from torch_tfckpt.saveables.stored_keys import SHARED
from torch_tfckpt.text import did_you_mean, quoted
from torch_tfckpt.values import WritableValue

KeysAndLayouts = Mapping[str, tuple[str, LayoutLike | None]]
"""State_dict key -> stored key and layout."""


@dataclass(slots=True)
class _WrittenVariables:
    """The variables so far, and what is still to be put together."""

    values: dict[str, WritableValue] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # key -> name of the tensor in it
    aliases: dict[str, str] = field(default_factory=dict)  # another key of a tensor -> the key it is stored under
    ranges: dict[str, tuple[TensorOrigin, Layout, dict[int, torch.Tensor]]] = field(default_factory=dict)
    added: dict[str, torch.Tensor] = field(default_factory=dict)  # key -> amount to add to its value

    def put(self, key: str, name: str, value: torch.Tensor) -> None:
        self._claim(key, name)
        self.values[key] = value

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
            self.values[key] = layout.to_stored(joined)
        for key, amount in self.added.items():
            value = self.values[key]
            assert isinstance(value, torch.Tensor)
            self.values[key] = value + amount
        if self.aliases:
            self.values[SHARED] = json.dumps(self.aliases)
        return self.values

    def _claim(self, key: str, name: str) -> None:
        other = self.names.setdefault(key, name)
        if other != name:
            raise InvalidArgumentError(
                f"{quoted(other)} and {quoted(name)} are both stored as {quoted(key)}. Map one of them to another name"
            )


def written_variables(targets: Sequence[Target], naming: str, mapped: KeysAndLayouts) -> dict[str, WritableValue]:
    """Return key -> value for all tensors of a module.

    Args:
        naming: "torch" or "tf".
        mapped: Names and layouts that take precedence.

    Raises:
        InvalidArgumentError: two tensors with one key; a mapped name that the module does not have; a layout that does
            not fit, or that neither the rule nor the name gives; a lazy parameter.
    """
    _check_mapped(targets, mapped)
    variables = _WrittenVariables()
    for target in targets:
        if is_lazy(target.tensor):
            raise InvalidArgumentError(f"{quoted(target.name)} has no shape yet. Run the model once before saving it")
        kept: dict[Layout, str] = {}  # layouts in which the tensor is stored, and their keys
        for place in target.places:
            if place.name not in mapped and naming == "tf" and _put_by_origin(variables, target, place):
                continue
            key, layout = _stored_as(target, place, naming, mapped)
            # An alias is read with the layout that the name of the stored tensor implies.
            same = (at for each, at in kept.items() if each == (implied_layout(target, place.name, at) or SAME))
            first = None if place.name in mapped else next(same, None)
            if first is not None:
                variables.put_alias(key, place.name, first)
            else:
                kept[layout] = key
                with error_context(f"{quoted(place.name)}, stored as {quoted(key)}"):
                    variables.put(key, place.name, layout.to_stored(target.tensor.detach()))
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


def _put_by_origin(variables: _WrittenVariables, target: Target, place: ModuleTensor) -> bool:
    """Add a tensor that is not one whole variable; return whether it is such a tensor."""
    written = _written(target, place.name)
    if written is None or (len(written.origin.variables) == 1 and written.origin.bounds is None):
        return False
    origin, value = written.origin, target.tensor.detach()
    keys = [
        (_key(written.base, leaf), layout) for leaf, layout in (next(iter(each.items())) for each in origin.variables)
    ]
    if not keys:
        if origin.summed_with is not None and bool(value.count_nonzero()):
            [leaves] = written.variant[origin.summed_with].variables
            variables.added[_key(written.base, next(iter(leaves)))] = value
        return True
    if origin.bounds is not None:
        [(key, layout)] = keys
        variables.put_range(key, f"{written.base}{origin.bounds.size}", origin, layout, value)
        return True
    for (key, layout), part in zip(keys, value.chunk(len(keys), origin.axis), strict=True):
        variables.put(key, place.name, layout.to_stored(part))
    return True


def _written(target: Target, name: str) -> LayerOrigin | None:
    """Return how a tensor is written: by the first variant of the outermost layer that has it."""
    first = [each for each in target.origins if each.name == name and each.order == 0]
    return min(first, key=lambda each: len(each.base), default=None)


def _stored_as(target: Target, place: ModuleTensor, naming: str, mapped: KeysAndLayouts) -> tuple[str, Layout]:
    if place.name in mapped:
        key, given = mapped[place.name]
        with error_context(f"{quoted(place.name)}, stored as {quoted(key)}"):
            if given is not None:
                return key, layout_of_rule(given)
            implied = implied_layout(target, place.name, key, must_be_known=True)
            return key, implied or SAME
    written = _written(target, place.name)
    if naming == "torch" or written is None:
        return place.name if naming == "torch" else place.name.replace(".", "/"), SAME
    leaf, layout = next(iter(written.origin.variables[0].items()))
    return _key(written.base, leaf), layout


def _key(base: str, leaf: str) -> str:
    return (base + leaf).replace(".", "/")


def _check_mapped(targets: Sequence[Target], mapped: KeysAndLayouts) -> None:
    """Raise InvalidArgumentError if a mapper names tensors that the module does not have."""
    known = [name for target in targets for name in target.names]
    for name in sorted(mapped.keys() - set(known)):
        raise InvalidArgumentError(
            f"the mapper maps {quoted(mapped[name][0])} to {quoted(name)}, which the module does not have. "
            f"{did_you_mean(name, known)}".rstrip()
        )
