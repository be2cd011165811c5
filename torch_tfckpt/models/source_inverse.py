"""Invert the sources of a load: the stored variables from which a module's tensors would be loaded, made from them.

    weight_ih_l0 from cell/kernel, layout gru       -> cell/kernel
    in_proj_weight from three kernels, joined       -> three kernels, split
    bias_ih_l0, bias_hh_l0 from ranges of cell/bias -> cell/bias, joined
    bias_hh_l0 filled with 0 when it is loaded      -> added to the bias that TensorFlow stores

Contract: loading the variables gives the tensors again, except for the second bias of a recurrent layer, which becomes
a part of the first. Where tensors do not determine the variable, as two tensors of one variable that differ, an error
is raised. Values are computed when they are asked for, one variable at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.targets import Target
from torch_tfckpt.text import quoted

Compute = Callable[[], torch.Tensor]


@dataclass(slots=True)
class _Load:
    """One tensor and the variables that it is loaded from."""

    target: Target
    source: Source
    more: list[torch.Tensor] = field(default_factory=list)  # tensors that are added to it

    def value(self) -> torch.Tensor:
        held = self.target.tensor.detach()
        for each in self.more:
            held = held + each
        return held - self.source.added if self.source.added else held


def inverse_of(
    loads: Sequence[tuple[Target, Source]], filled: Sequence[tuple[Target, float]], shapes: Mapping[str, Shape]
) -> dict[str, Compute]:
    """Return key -> function that computes the value of the variable, in TensorFlow's layout.

    Args:
        loads: Tensors and their sources, which fit.
        filled: Tensors for which nothing is stored, and the value that they get when they are loaded.
        shapes: Shape of each variable.

    Raises:
        InvalidArgumentError: values would be lost, or tensors do not determine a variable.
    """
    given = [_Load(target, source) for target, source in loads]
    by_name = {name: load for load in given for name in load.target.names}
    for target, number in filled:
        _add_filled(target, number, by_name)
    makers: dict[tuple[str, ...], list[_Load]] = {}
    for load in given:
        makers.setdefault(tuple(load.source.keys), []).append(load)
    result: dict[str, Compute] = {}
    for keys, of_keys in makers.items():
        _check_determined(keys, of_keys)
        for number, key in enumerate(keys):
            if key in result:
                raise InvalidArgumentError(
                    f"several rules or names map {quoted(key)} to different parts of the module, also to "
                    f"{quoted(of_keys[0].target.name)}. Map it once"
                )
            result[key] = _computation(of_keys, number, shapes)
    return result


def _add_filled(target: Target, number: float, by_name: Mapping[str, _Load]) -> None:
    """Add a tensor for which nothing is stored to the one that TensorFlow stores their sum with."""
    value = target.tensor.detach()
    if not bool((value != number).any()):
        return
    sums = (each.base + each.origin.summed_with for each in target.origins if each.origin.summed_with is not None)
    load = next((by_name[name] for name in sums if name in by_name), None)
    if load is None or number:
        raise InvalidArgumentError(
            f"{quoted(target.name)} has values other than {number:g}, but the Keras layer has no variable for it. Give "
            f"the layer one, or set the values to {number:g}"
        )
    load.more.append(value)


def _check_determined(keys: Sequence[str], loads: Sequence[_Load]) -> None:
    """Raise InvalidArgumentError unless the tensors determine the variables."""
    first = loads[0]
    bounds = first.source.bounds
    names = ", ".join(quoted(load.target.name) for load in loads)
    if bounds is None:
        for other in loads[1:]:
            if other.source != first.source or not torch.equal(other.value(), first.value()):
                raise InvalidArgumentError(
                    f"{names} are all stored as {quoted(keys[0])}, but their values differ. Tie them, or map one"
                )
        return
    end = 0
    for load in _in_order(loads):
        own = load.source.bounds
        if own is None or own.start != end or own.size != bounds.size or load.source.axis != first.source.axis:
            break
        end = own.stop
    if end != bounds.size:
        raise InvalidArgumentError(
            f"{quoted(keys[0])} has more parts than {names}. The module must have a tensor for each of its parts"
        )


def _in_order(loads: Sequence[_Load]) -> list[_Load]:
    return sorted(loads, key=lambda load: 0 if load.source.bounds is None else load.source.bounds.start)


def _computation(loads: Sequence[_Load], number: int, shapes: Mapping[str, Shape]) -> Compute:
    source = loads[0].source

    def compute() -> torch.Tensor:
        pieces = [load.value() for load in (_in_order(loads) if source.bounds is not None else loads[:1])]
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces, source.axis)
        if len(source.parts) > 1:
            made = [part.layout.torch_shape(shapes[part.key]) for part in source.parts]
            joined = torch.split(joined, [shape[source.axis] for shape in made], source.axis)[number]
        return source.parts[number].layout.to_stored(joined)

    return compute
