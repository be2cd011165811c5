"""What of a module takes stored values: its parameters and persistent buffers, each once.

A tensor that has several names, as tied weights have, is one target; which of its names the checkpoint knows it by does
not matter. Extra state, and buffers that are not persistent, are none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.text import quoted


class Place(NamedTuple):
    """Where a module has a tensor."""

    name: str  # in the state_dict of the whole
    module: nn.Module
    leaf: str  # its attribute


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of a module, in all its places."""

    tensor: torch.Tensor
    places: Sequence[Place]

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.places[0].name

    @property
    def names(self) -> list[str]:
        """All of them, in the order of the state_dict."""
        return [place.name for place in self.places]

    @property
    def shape(self) -> Shape | None:
        """None of a lazy tensor, which takes any."""
        return None if is_lazy(self.tensor) else tuple(self.tensor.shape)

    @property
    def counts_batches(self) -> bool:
        """Whether it is BatchNorm's num_batches_tracked, which TensorFlow does not have."""
        place = self.places[0]
        return place.leaf == "num_batches_tracked" and isinstance(place.module, nn.modules.batchnorm._BatchNorm)

    def check_fillable(self) -> None:
        """InvalidArgumentError where it cannot be filled in place."""
        if self.tensor.device.type == "meta":
            raise InvalidArgumentError(
                f"{quoted(self.name)} is on the meta device and has no memory to load into. Pass assign=True, or "
                f"materialize the module first, for instance by model.to_empty(device=...)"
            )
        if not is_lazy(self.tensor):
            VariableSaveable(self.tensor, "", self.name).check([tuple(self.tensor.shape)])

    def fill(self, value: torch.Tensor) -> None:
        """Copies a value of its shape and dtype into its memory; a lazy tensor gets its shape first."""
        if isinstance(self.tensor, UninitializedParameter | UninitializedBuffer):
            self.tensor.materialize(tuple(value.shape))
        VariableSaveable(self.tensor, "", self.name).restore([value], None)

    def replace(self, value: torch.Tensor) -> None:
        """Puts a tensor of its shape and dtype in its place, everywhere.

        A Parameter of the same class takes a parameter's place, with its requires_grad and its attributes.
        """
        new = value
        if isinstance(self.tensor, nn.Parameter):
            kind = nn.Parameter if is_lazy(self.tensor) else type(self.tensor)
            new = torch.Tensor._make_subclass(kind, value, self.tensor.requires_grad)
            vars(new).update(vars(self.tensor))
        for place in self.places:
            parameters, buffers = place.module._parameters, place.module._buffers
            if place.leaf in parameters:
                assert isinstance(new, nn.Parameter)
                parameters[place.leaf] = new
            else:
                buffers[place.leaf] = new

    def start_counting(self) -> None:
        """Gives num_batches_tracked without memory a zero, on the CPU, where its module's statistics now are."""
        if self.tensor.device.type == "meta":
            self.replace(torch.zeros(self.tensor.shape, dtype=self.tensor.dtype, device="cpu"))


def targets_of(model: nn.Module) -> list[Target]:
    """The targets of a module, in the order of its state_dict."""
    found: dict[Identity, tuple[torch.Tensor, list[Place]]] = {}
    for place, tensor in _places(model):
        found.setdefault(identity_of(tensor), (tensor, []))[1].append(place)
    return [Target(tensor, places) for tensor, places in found.values()]


def _places(model: nn.Module) -> Iterator[tuple[Place, torch.Tensor]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        passing = module._non_persistent_buffers_set
        buffers = {leaf: buffer for leaf, buffer in module._buffers.items() if leaf not in passing}
        for leaf, tensor in (*module._parameters.items(), *buffers.items()):
            if tensor is not None:
                yield Place(f"{prefix}.{leaf}" if prefix else leaf, module, leaf), tensor
