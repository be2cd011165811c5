"""Run a module on one sample, record what its layers compute, and replace the output of one layer.

A call is one run of a submodule. Calls are numbered in the order in which they end: a block comes after its layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

_DEPTH: Final = 4  # of tuples and dictionaries in an output


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One run of a layer or block.

    Attributes:
        name: Of the submodule, such as "features.0".
        layer: The submodule.
        inputs: Copies of its inputs of floating point.
        sources: For each input: the call that returned it; None if it comes from elsewhere.
        outputs: Place in the output -> a copy, of the outputs of floating point.
    """

    name: str
    layer: nn.Module
    inputs: Sequence[torch.Tensor]
    sources: Sequence[int | None]
    outputs: Mapping["Place", torch.Tensor]

    @property
    def has_weights(self) -> bool:
        """Whether the layer itself has parameters, without those of its own layers."""
        return any(True for _ in self.layer.parameters(recurse=False))

    @property
    def only_pads(self) -> bool:
        """Whether the layer is one of torch's that pad: TensorFlow's convolutions do this themselves."""
        return type(self.layer).__module__ == "torch.nn.modules.padding"


# Indices and keys from the output to a tensor in it; LAST_STEP at the end is the last time step of that tensor.
Place = tuple[Any, ...]
LAST_STEP: Final = "last time step"


@dataclass(frozen=True, slots=True)
class Replacement:
    """Another value for an output of one call."""

    call: int
    place: Place
    value: torch.Tensor


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """Outcome of a run.

    Attributes:
        outputs: What the module returned; None if it failed.
        error: How it failed.
        calls: The calls that ended.
    """

    outputs: Any
    error: Exception | None
    calls: Sequence[LayerCall]


def recorded(
    module: nn.Module, call: Callable[[], Any], *, keep: bool = True, replacement: Replacement | None = None
) -> RecordedRun:
    """Run a module, and record the calls of its submodules.

    Args:
        call: Calls the module.
        keep: Whether to copy inputs and outputs of the layers.
        replacement: An output to replace.
    """
    calls: list[LayerCall] = []
    started: list[tuple[list[torch.Tensor], list[int | None]]] = []
    made_by: dict[int, tuple[torch.Tensor, int]] = {}  # keeps the tensor, so that its id stays its own

    def before(layer: nn.Module, args: Any, kwargs: Any) -> None:
        given = [each for _, each in _tensors((args, kwargs))] if keep else []
        sources = [made_by[id(each)][1] if id(each) in made_by else None for each in given]
        started.append(([each.detach().clone() for each in given], sources))

    def after(name: str, layer: nn.Module, output: Any) -> Any:
        inputs, sources = started.pop()
        number = len(calls)
        result = output
        if replacement is not None and replacement.call == number:
            result = _replaced(output, replacement.place, replacement.value)
        copies: dict[Place, torch.Tensor] = {}
        for place, tensor in _tensors(output) if keep else ():
            copies[place] = tensor.detach().clone()
            if isinstance(layer, nn.RNNBase) and tensor.dim() == 3 and place in ((), (0,)):
                copies[(*place, LAST_STEP)] = _last_step(layer, copies[place])
        calls.append(LayerCall(name, layer, inputs, sources, copies))
        for _, tensor in _tensors(result) if keep else ():
            made_by[id(tensor)] = tensor, number
        return result

    handles = []
    try:
        for name, layer in module.named_modules():
            if layer is not module:
                handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(
                    layer.register_forward_hook(lambda layer, args, output, name=name: after(name, layer, output))
                )
        with torch.no_grad():
            return RecordedRun(call(), None, calls)
    except Exception as error:  # of the caller's module: it is part of the result
        return RecordedRun(None, error, calls)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and its submodules into evaluation mode, and restore their modes afterwards."""
    modes = [(each, each.training) for each in module.modules()]
    module.train(mode=False)
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def _tensors(value: Any, place: Place = ()) -> Iterator[tuple[Place, torch.Tensor]]:
    """Yield the tensors of floating point in tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.numel():
            yield place, value
    elif len(place) < _DEPTH and isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors(each, (*place, key))
    elif len(place) < _DEPTH and isinstance(value, tuple | list):
        for index, each in enumerate(value):
            yield from _tensors(each, (*place, index))


def _last_step(layer: nn.RNNBase, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, -1] if layer.batch_first else tensor[-1]


def _replaced(output: Any, place: Place, value: torch.Tensor) -> Any:
    if not place:
        return value.to(output.dtype).to(output.device)
    first, *others = place
    if first == LAST_STEP:
        changed = output.clone()
        # The layout of time is that of the last step: it was taken from either [:, -1] or [-1].
        (changed[:, -1] if changed[:, -1].shape == value.shape else changed[-1]).copy_(value)
        return changed
    new = _replaced(output[first], tuple(others), value)
    if isinstance(output, Mapping):
        return type(output)({**output, first: new})  # type: ignore[call-arg]
    items = [new if index == first else each for index, each in enumerate(output)]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
