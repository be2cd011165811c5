"""The tensors of a module that can be loaded: parameters and persistent buffers, each once.

A tensor with several names, such as a tied weight, is one target; a checkpoint may store it under any of the names.
Extra state, and tensors that the module's state_dict omits, are not targets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from torch_tfckpt.distributed.shards import is_dtensor, local_shard
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape, TensorSlice
from torch_tfckpt.models.layers.layer_names import variants_of
from torch_tfckpt.models.layers.layouts import Layout
from torch_tfckpt.models.layers.tensor_origins import TensorOrigin, Variant
from torch_tfckpt.saveables.module_tensors import ModuleTensor, group_shared, module_tensors
from torch_tfckpt.saveables.spread_state import spread
from torch_tfckpt.saveables.state_dicts import loads_state_dict, outermost
from torch_tfckpt.saveables.tensor_saveable import VariableSaveable
from torch_tfckpt.saveables.wrappers import ModuleNames
from torch_tfckpt.text import quoted

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# What torch, transformers and timm call the number of heads of an attention.
_HEADS: Final = ("num_attention_heads", "num_heads", "n_heads")


@dataclass(frozen=True, slots=True)
class LayerOrigin:
    """One way in which a tensor of a module may be made from TensorFlow's variables of a layer.

    Attributes:
        name: Name of the tensor.
        base: Name of the layer, with which the names of its tensors and variables begin: "encoder.layer.0.".
        variant: The tensors of the layer in this variant, by attribute.
        order: Number of the variant in `variants_of`.
        origin: How the tensor is made.
    """

    name: str
    base: str
    variant: Variant
    order: int
    origin: TensorOrigin

    def siblings(self) -> Iterator[tuple[str, TensorOrigin]]:
        """Yield the names and origins of all tensors of the layer, this one included."""
        return ((self.base + attribute, origin) for attribute, origin in self.variant.items())


@dataclass(frozen=True, slots=True)
class Target:
    """Tensor of a module with all its names.

    Attributes:
        is_loaded: Whether it is in a module that is restored by load_state_dict, which may change its shape.
        origins: How it may be made from TensorFlow's variables.
        heads: Number of heads of the attention that it belongs to; None if it is unknown.
    """

    places: Sequence[ModuleTensor]
    is_loaded: bool = False
    origins: Sequence[LayerOrigin] = ()
    heads: int | None = None

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor, from the first place where it is registered."""
        return self.places[0].tensor

    @property
    def name(self) -> str:
        """The first of its names in the state_dict."""
        return self.places[0].name

    @property
    def names(self) -> list[str]:
        """All its names, in the order of the state_dict."""
        return [place.name for place in self.places]

    @property
    def possible_names(self) -> list[str]:
        """The names under which it, or a part of it, may be stored, its own first."""
        of_layers = (each.base + leaf for each in self.origins for leaf in each.origin.leaves())
        return list(dict.fromkeys([*self.names, *of_layers]))

    @property
    def shape(self) -> Shape | None:
        """Its shape; None if it takes any shape: a lazy tensor, or one that load_state_dict may resize."""
        return None if self.is_loaded or is_lazy(self.tensor) else tuple(self.tensor.shape)

    @property
    def layouts(self) -> list[Layout]:
        """The layouts in which TensorFlow stores it, or a part of it, each once."""
        return list(dict.fromkeys(layout for each in self.origins for layout in each.origin.layouts()))

    def other_layout(self, shape: Shape) -> Layout | None:
        """Return a layout of the layer that would move axes but keep this stored shape; None if there is none.

        If there is such a layout, the shape does not show whether the stored axes are in TensorFlow's order.
        """
        for layout in self.layouts:
            other = layout.resolved(shape, self.shape)
            if (
                layout.functions is None
                and not layout.is_same
                and len(shape) > 1
                and other.fits(shape)
                and other.torch_shape(shape) == self.shape == shape
            ):
                return layout
        return None

    @property
    def is_wrappers(self) -> bool:
        """Whether this is n_averaged of an AveragedModel, which is not stored for the model itself."""
        return self.places[0].is_wrappers

    @property
    def is_counter(self) -> bool:
        """Whether this is not a weight but a counter that TensorFlow does not have."""
        return self.counts_batches or self.is_wrappers

    @property
    def counts_batches(self) -> bool:
        """Whether this is num_batches_tracked of a BatchNorm, which TensorFlow does not have."""
        place = self.places[0]
        return place.attribute == "num_batches_tracked" and isinstance(place.module, nn.modules.batchnorm._BatchNorm)

    @property
    def spread(self) -> "DTensor | None":
        """The tensor, if it is a DTensor of which this rank does not have everything."""
        tensor = self.tensor
        if not is_dtensor(tensor):
            return None
        shard = local_shard(self.name, tensor)
        return tensor if shard is None or shard.part != TensorSlice.full(tensor.ndim) else None

    def check_fillable(self) -> None:
        """Raise InvalidArgumentError if the tensor cannot be filled in place."""
        if self.tensor.device.type == "meta":
            raise InvalidArgumentError(
                f"{quoted(self.name)} is on the meta device and has no memory to load into. Pass assign=True, or "
                f"materialize the module first, for instance by model.to_empty(device=...)"
            )
        if not is_lazy(self.tensor):
            VariableSaveable(self.tensor, "", self.name).check([tuple(self.tensor.shape)])

    def fill(self, value: torch.Tensor) -> None:
        """Copy a value of the same shape and dtype into the tensor; a lazy tensor gets its shape first.

        The value for a DTensor is this rank's part, or the whole.
        """
        if isinstance(self.tensor, UninitializedParameter | UninitializedBuffer):
            self.tensor.materialize(tuple(value.shape))
        VariableSaveable(self.tensor, "", self.name).restore([value], None)

    def replace(self, value: torch.Tensor) -> None:
        """Replace the tensor, wherever it is registered, with one of the same shape and dtype.

        A parameter is replaced by a Parameter of the same class, with its requires_grad and its attributes. If one
        place is a parameter and another a buffer, the buffer shares the memory of the parameter. The value for a
        DTensor is this rank's part, or the whole.
        """
        if is_dtensor(self.tensor):
            self._replace_spread(spread(self.tensor, self.name, value))
            return
        parameter = next((place.tensor for place in self.places if place.is_parameter), None)
        new = value
        if parameter is not None:
            kind = nn.Parameter if is_lazy(parameter) else type(parameter)
            new = torch.Tensor._make_subclass(kind, value, parameter.requires_grad)
            vars(new).update(vars(parameter))
        for place in self.places:
            place.replace(new if place.is_parameter else value)

    def _replace_spread(self, value: "DTensor") -> None:
        """Replace a DTensor. The modules' load_state_dict does it, whose hooks tell FSDP2 about the new tensor."""
        parameter = next((place.tensor for place in self.places if place.is_parameter), None)
        new = value if parameter is None else nn.Parameter(value, parameter.requires_grad)
        for place in self.places:
            given = new if place.is_parameter else value
            place.module.load_state_dict({place.attribute: given}, strict=False, assign=True)

    def set_count(self, count: int) -> None:
        """Set n_averaged of an AveragedModel; on the meta device it is replaced by a tensor on the CPU."""
        value = torch.full(self.tensor.shape, count, dtype=self.tensor.dtype, device="cpu")
        if self.tensor.device.type == "meta":
            self.replace(value)
        else:
            self.fill(value)

    def start_counting(self) -> None:
        """Replace num_batches_tracked on the meta device by a zero on the CPU."""
        if self.tensor.device.type == "meta":
            self.replace(torch.zeros(self.tensor.shape, dtype=self.tensor.dtype, device="cpu"))


def targets_of(model: nn.Module) -> list[Target]:
    """Return the targets of a module, in the order of its state_dict."""
    loaded = {id(each) for _, part in outermost(model, loads_state_dict) for each in part.modules()}
    groups = group_shared(each for each in module_tensors(model) if each.persistent)
    origins: dict[str, list[LayerOrigin]] = {}
    owners = ModuleNames(model).owners()
    heads = _heads_near(owners)
    for base, module in owners.items():
        for order, variant in enumerate(variants_of(module)):
            for attribute, origin in variant.items():
                name = base + attribute
                origins.setdefault(name, []).append(LayerOrigin(name, base, variant, order, origin))
    return [
        Target(
            places,
            any(id(place.module) in loaded for place in places),
            [each for place in places for each in origins.get(place.name, ())],
            _nearest(heads, places[0].name),
        )
        for places in groups
    ]


def _heads_near(owners: Mapping[str, nn.Module]) -> dict[str, set[int]]:
    """Return the numbers of heads of the modules with these names, and of the modules directly in them."""
    found: dict[str, set[int]] = {}
    for base, module in owners.items():
        number = next((held for name in _HEADS if isinstance(held := getattr(module, name, None), int)), None)
        if number is not None:
            for near in {base, _parent(base)}:
                found.setdefault(near, set()).add(number)
    return found


def _nearest(heads: Mapping[str, set[int]], name: str) -> int | None:
    """Return the number of heads for a tensor: of the innermost module around it that has one, or is next to one."""
    base = _parent(f"{name}.") if heads else ""
    while base and base not in heads:
        base = _parent(base)
    numbers = heads.get(base, set())
    return next(iter(numbers)) if len(numbers) == 1 else None


def _parent(base: str) -> str:
    """Return "encoder." for "encoder.layer.", and "" for "encoder."."""
    return base[: base.rfind(".", 0, -1) + 1]
