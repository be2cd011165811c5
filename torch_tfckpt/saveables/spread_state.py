"""How the tensors of a state are spread over ranks, found before they are read: each rank reads only its part.

A file does not store how a tensor was spread; it may be read by any number of ranks. A tensor of a stored state becomes
a DTensor if it belongs to one:

    optimizer   state of the shape of its parameter is spread like the parameter, before the first step too; state of
                another shape like what is at the same place now
    others      like the DTensor of the same shape that is at the same place in the current state
    modules     entries of a state_dict like the current entry of that name

Everything else is plain, and read by every rank.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from torch_tfckpt.distributed.reading import part_of
from torch_tfckpt.distributed.shards import is_dtensor, like_dtensor, local_tensor
from torch_tfckpt.saveables.optimizer_loading import with_strides_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Layouts = Mapping[int, "DTensor"]  # id of a tensor -> a DTensor that is spread as it is to be
_MAX_DEPTH = 100


@runtime_checkable
class KnowsLayouts(Protocol):
    """State that knows more about its layouts than what is at the same place now."""

    def layouts(self, stored: object) -> Layouts:
        """Return the layouts of the tensors in a stored value."""


def layouts_like(stored: object, present: object, depth: int = 0) -> dict[int, "DTensor"]:
    """Return the layouts of the tensors in `stored`, from the DTensors at the same places in `present`."""
    if depth > _MAX_DEPTH:
        return {}
    if isinstance(stored, torch.Tensor):
        return {id(stored): present} if is_dtensor(present) and present.shape == stored.shape else {}
    pairs: list[tuple[object, object]] = []
    if isinstance(stored, Mapping) and isinstance(present, Mapping):
        pairs = [(item, present.get(key)) for key, item in stored.items()]
    elif isinstance(stored, list | tuple) and isinstance(present, list | tuple) and len(stored) == len(present):
        pairs = list(zip(stored, present, strict=True))
    found: dict[int, DTensor] = {}
    for item, other in pairs:
        found.update(layouts_like(item, other, depth + 1))
    return found


def layouts_of_slots(parameter: torch.Tensor, stored: object, present: object) -> dict[int, "DTensor"]:
    """Return the layouts of the tensors in the stored state of one parameter of an optimizer."""
    found = layouts_like(stored, present)
    if is_dtensor(parameter):
        found.update((id(each), parameter) for each in _tensors(stored, 0) if each.shape == parameter.shape)
    return found


def spread_like(parameter: torch.Tensor, name: str, state: Any) -> Any:
    """Return the state of a parameter, with whole tensors of the shape of a DTensor spread like it."""
    if not is_dtensor(parameter):
        return state
    if isinstance(state, torch.Tensor):
        whole = state.shape == parameter.shape and not is_dtensor(state)
        return spread(parameter, name, state) if whole else state
    if type(state) is dict:
        return {key: spread_like(parameter, name, item) for key, item in state.items()}
    return state


def spread(template: "DTensor", name: str, value: torch.Tensor) -> "DTensor":
    """Return a value as a DTensor like another one, with the local strides of that one.

    Args:
        value: This rank's part, or the whole.
    """
    part = part_of(name, value, template)
    if part.numel() < value.numel():
        part = part.clone()  # the whole is not kept in memory
    return like_dtensor(template, with_strides_of(local_tensor(name, template), part))


def _tensors(value: object, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple) and depth < _MAX_DEPTH:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item, depth + 1)
