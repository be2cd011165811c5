"""The objects of a torch module as Keras names them, for tf.train.Checkpoint: names, layouts, and paths.

    torch                     a Keras model
    fc1.weight                fc1/_kernel, and fc1/kernel, as Keras 2 calls it
    lstm.weight_ih_l0         lstm/cell/kernel
    attend.in_proj_weight     attend/_query_dense/_kernel, [in, heads, size], and so on

Keras finds the layers of a subclassed model under the names of their attributes, but those of a functional or
Sequential model by number, so each layer has several paths:

    fc1                                      by attribute
    _operations/1, _functional/_operations/1 Keras 3, functional and Sequential. Number 0 is the input
    layer_with_weights-0                     Keras 2, which counts layers without weights separately, as layer-N

The numbers are those of the submodules of a module, in the order in which they are registered; a submodule without
tensors, such as nn.ReLU, counts as a layer. tf.train.Checkpoint expects a node for each object of the program, also for
layers without variables; these get nodes without values.

Contract: each variable of a layer is written once. What Keras cannot have (stacked recurrent layers, projections,
weight normalization) is refused, not omitted; counters of batches and statistics of an InstanceNorm are omitted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from torch_tfckpt.dtypes import data_type
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError, error_context
from torch_tfckpt.format.object_graph import VARIABLE_VALUE, checkpoint_key
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.models.layers.layer_names import variants_of
from torch_tfckpt.models.layers.layouts import DENSE_FROM_HEADS, DENSE_TO_HEADS, HEADS, SAME, Layout
from torch_tfckpt.objects.trackables.trackable import ChildrenOf, RestoredValues, SavedValues, StoredNode, Trackable
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.module_tensors import own_tensors, registered_tensors
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.wrappers import unwrapped
from torch_tfckpt.text import quoted
from torch_tfckpt.transfer.host_bytes import copy_slice
from torch_tfckpt.values import Value, WritableValue

_MORE: Final = 8  # layers without weights at the end of a model, for which nodes without values are written
OPTIMIZER: Final[Mapping[str, Any]] = {"_iterations": {}, "_learning_rate": {}, "_variables": {"0": {}, "1": {}}}


class ObjectWithoutValues(Trackable):
    """An object of a Keras program that has nothing to restore, such as an activation layer.

    Args:
        place: Its owner and its name, which identify it.
        below: Name -> object in it; a mapping stands for a further object without values.
    """

    is_part = True

    def __init__(self, place: Identity, below: Mapping[str, Any]) -> None:
        super().__init__(None)
        self._place, self._below = place, below

    @cached_property
    def identity(self) -> Identity:
        return ("without values", self._place)

    def children(self) -> Iterator[tuple[str, object]]:
        for name, below in self._below.items():
            is_node = isinstance(below, Trackable)
            yield name, below if is_node else ObjectWithoutValues((self._place, name), below)


@dataclass(frozen=True, slots=True)
class _KerasValue:
    """One variable of a Keras layer.

    Attributes:
        layout: Its layout, with the lengths of all axes.
        pieces: The tensors, or parts of them, that are joined along `axis`, in torch's order of axes.
        added: Tensor that is added when it is saved, and set to zero when it is restored.
    """

    layout: Layout
    pieces: tuple[torch.Tensor, ...]
    axis: int = 0
    added: torch.Tensor | None = None

    def value(self) -> torch.Tensor:
        held = self.pieces[0].detach() if len(self.pieces) == 1 else torch.cat([*self.pieces], self.axis).detach()
        return self.layout.to_stored(held if self.added is None else held + self.added.detach())

    @property
    def shape(self) -> Shape:
        shape = list(self.pieces[0].shape)
        if len(self.pieces) > 1:
            shape[self.axis] = sum(each.shape[self.axis] for each in self.pieces)
        return self.layout.stored_shape(tuple(shape))


class KerasVariable(Trackable):
    """A variable of a Keras layer as a node."""

    holds_values = True
    is_part = True

    def __init__(self, owner: nn.Module, name: str, variable: _KerasValue) -> None:
        super().__init__(owner)
        self._name, self._variable = name, variable

    @cached_property
    def identity(self) -> Identity:
        return ("Keras variable", identity_of(self.target), self._name)

    def to_save(self, path: str) -> SavedValues:
        key = checkpoint_key(path, VARIABLE_VALUE)
        return SavedValues({VARIABLE_VALUE: key}, [_KerasSaveable(self._variable, key)])

    def to_restore(self, stored: StoredNode) -> RestoredValues:
        return stored.restored(VARIABLE_VALUE, lambda key: _KerasSaveable(self._variable, key))


class _KerasSaveable(SaveableObject):
    """Saves a variable in Keras's layout; a restore fills the tensors that it consists of."""

    def __init__(self, variable: _KerasValue, key: str) -> None:
        first = variable.pieces[0]
        spec = SaveSpec(variable.value, "", key, data_type(first.dtype, key), first.device)
        super().__init__(None, [spec], key)
        self._variable = variable

    def check(self, shapes: Sequence[Shape], restored_shapes: Sequence[Shape] | None = None) -> None:
        if tuple(shapes[0]) != self._variable.shape:
            raise InvalidArgumentError(
                f"{quoted(self.name)} is {shape_text(tuple(shapes[0]))}, but this module has "
                f"{shape_text(self._variable.shape)} there, in Keras's layout. Create the module with the same sizes"
            )

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        (value,) = restored_tensors
        pieces = self._variable.pieces
        if not isinstance(value, torch.Tensor) or value.dtype != pieces[0].dtype:
            found = value.dtype if isinstance(value, torch.Tensor) else "string"
            raise InvalidArgumentError(f"{quoted(self.name)} is {found}, but the module's tensor is {pieces[0].dtype}")
        self.check([tuple(value.shape)])
        held = self._variable.layout.to_torch(value)
        sizes = [each.shape[self._variable.axis] for each in pieces] if len(pieces) > 1 else []
        with torch.no_grad():
            for piece, part in zip(
                pieces, torch.split(held, sizes, self._variable.axis) if sizes else [held], strict=True
            ):
                copy_slice(piece, (), part)
            if self._variable.added is not None:
                self._variable.added.zero_()


class KerasModule(Trackable):
    """A module as a Keras layer or model.

    Args:
        module: The module, or a wrapper around it, such as torch.compile.
        name: Its name in errors; without a name, it is the whole model.
    """

    def __init__(self, module: nn.Module, name: str = "") -> None:
        self.module = unwrapped(module)
        super().__init__(self.module)
        self._name = name

    def children(self) -> Iterator[tuple[str, object]]:
        with error_context(f"module {quoted(self._name)}" if self._name else "the model"):
            contents = _contents(self.module)
        if contents is not None:
            yield from _children(self.module, "", contents)
            return
        layers: list[tuple[str, KerasModule]] = []
        for each in own_tensors(self.module):
            if each.persistent:
                yield each.attribute, KerasVariable(self.module, each.attribute, _KerasValue(SAME, (each.tensor,)))
        for name, child in self.module._modules.items():
            if child is not None:
                layers.append((name, KerasModule(child, f"{self._name}.{name}" if self._name else name)))
        yield from layers
        if layers:
            yield from self._by_number([layer for _, layer in layers])

    def _by_number(self, layers: Sequence["KerasModule"]) -> Iterator[tuple[str, object]]:
        place = ("by number", identity_of(self.module))
        taken = self.module._modules
        with_weights = [layer for layer in layers if _tensors(layer.module)]
        numbered: dict[str, Any] = {str(number): {} for number in range(len(layers) + 1 + _MORE)}
        numbered |= {str(number): layer for number, layer in enumerate(layers, 1)}
        operations = ObjectWithoutValues((place, "_operations"), numbered)
        functional = ObjectWithoutValues((place, "_functional"), {"_operations": operations})
        own: dict[str, object] = {"_operations": operations, "_functional": functional}
        own |= {f"layer_with_weights-{number}": layer for number, layer in enumerate(with_weights)}
        for number in range(len(layers) + 1 + _MORE):
            own[f"layer-{number}"] = ObjectWithoutValues((place, f"layer-{number}"), {})
        if not self._name:
            own["optimizer"] = ObjectWithoutValues((place, "optimizer"), OPTIMIZER)
        yield from ((name, value) for name, value in own.items() if name not in taken)


class _Value(Trackable):
    """A further value of a checkpoint, such as a step."""

    holds_values = True

    def __init__(self, name: str, value: WritableValue) -> None:
        super().__init__(value)
        self._name = name

    @cached_property
    def identity(self) -> Identity:
        return ("value", self._name)

    def to_save(self, path: str) -> SavedValues:
        key = checkpoint_key(path, VARIABLE_VALUE)
        spec = SaveSpec(self.target, "", key)  # type: ignore[arg-type]
        return SavedValues({VARIABLE_VALUE: key}, [SaveableObject(None, [spec], key)])


def keras_root(model: nn.Module, values: Mapping[str, WritableValue]) -> Trackable:
    """Return the root of a checkpoint of a model, as tf.train.Checkpoint(model=model, **values) in a Keras program."""
    return model_root(KerasModule(model), values)


def model_root(model: Trackable, values: Mapping[str, WritableValue]) -> Trackable:
    """Return the root of a checkpoint of a model that is given as a node. As `keras_root`."""
    objects: dict[str, object] = {"model": model}
    objects |= {name: _Value(name, value) for name, value in values.items()}
    # tf.train.Checkpoint.restore looks for a counter, `read` does not. A counter without a value satisfies both, but
    # `restore` only finds it later if there are values below it.
    objects.setdefault("save_counter", ObjectWithoutValues(("save_counter",), {"model": objects["model"]}))
    return ChildrenOf(Trackable(None), list(objects.items()))


class _Group(Trackable):
    """A part of a layer, such as the cell of an LSTM: variables and further parts by path."""

    is_part = True

    def __init__(self, owner: nn.Module, path: str, contents: "_Contents") -> None:
        super().__init__(owner)
        self._path, self._contents = path, contents

    @cached_property
    def identity(self) -> Identity:
        return ("Keras layer", identity_of(self.target), self._path)

    def children(self) -> Iterator[tuple[str, object]]:
        return _children(self.target, self._path, self._contents)


_Contents = Mapping[str, _KerasValue | None]
"""Path below a layer -> variable; None for an object without values."""


def _children(owner: Any, path: str, contents: _Contents) -> Iterator[tuple[str, object]]:
    """Yield the objects directly in a layer, or in the part of it at `path`, which ends with a slash."""
    inner: dict[str, dict[str, _KerasValue | None]] = {}
    for each, variable in contents.items():
        name, _, rest = each.partition("/")
        if rest:
            inner.setdefault(name, {})[rest] = variable
        elif variable is None:
            yield name, ObjectWithoutValues((identity_of(owner), path + name), {})
        else:
            node = KerasVariable(owner, path + name, variable)
            yield name, node
            yield from ((other, node) for other in _other_names(owner, name))
    for name, below in inner.items():
        yield name, _Group(owner, f"{path}{name}/", below)


def _other_names(module: nn.Module, name: str) -> Sequence[str]:
    """Return the names that other versions of Keras use for a variable."""
    if isinstance(module, nn.RMSNorm):
        return ("scale",)
    return (f"_{name}",) if name in ("kernel", "embeddings") else ()


def _contents(module: nn.Module) -> _Contents | None:
    """Return the variables of a module that is one Keras layer; None if it is not a layer that Keras has.

    Raises:
        UnimplementedError: Keras has no variables for some of its tensors.
        InvalidArgumentError: a lazy tensor.
    """
    variants = variants_of(module)
    if not variants:
        return None
    _check_supported(module)
    held = {name: tensor for name, tensor in _tensors(module).items() if name not in _omitted(module)}
    lost = held.keys() - variants[0].keys()
    if lost:
        raise UnimplementedError(f"Keras has no variable for {', '.join(map(quoted, sorted(lost)))}")
    found: dict[str, _KerasValue | None] = {}
    for attribute, origin in variants[0].items():
        tensor = held.get(attribute)
        if tensor is not None and is_lazy(tensor):
            raise InvalidArgumentError(f"{quoted(attribute)} has no shape yet. Run the model once before saving it")
        if tensor is None or not origin.variables:
            continue
        added = next((held.get(other) for other, each in variants[0].items() if each.summed_with == attribute), None)
        for leaves, part in zip(
            origin.variables, tensor.detach().chunk(len(origin.variables), origin.axis), strict=True
        ):
            leaf, layout = next(iter(leaves.items()))
            path = _path(module, leaf)
            before = found.get(path)
            if before is not None:  # a range of the same variable
                found[path] = replace(before, pieces=(*before.pieces, part))
            else:
                found[path] = _KerasValue(_layout(module, path, layout, part), (part,), origin.axis, added)
    if isinstance(module, nn.MultiheadAttention):
        found |= dict.fromkeys(("_softmax", "_dropout_layer"))
    return found


def _check_supported(module: Any) -> None:
    """Raise UnimplementedError if Keras has no such layer, or tf.train.Checkpoint does not store it."""
    fault = ""
    if parametrize.is_parametrized(module) or "weight_v" in module._parameters:
        fault = "a parametrized weight. Remove the parametrization first"
    elif getattr(module, "num_layers", 1) > 1:
        fault = (
            "several recurrent layers in one module: Keras's checkpoints omit stacked cells. Use one module for each "
            "layer, and a Keras layer for each"
        )
    elif getattr(module, "proj_size", 0):
        fault = "a projection, which Keras's LSTM lacks"
    if fault:
        raise UnimplementedError(f"this {type(module).__name__} has {fault}")


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {each.name: each.tensor for each in registered_tensors(module) if each.persistent}


def _omitted(module: nn.Module) -> Sequence[str]:
    """Return the tensors of a layer that Keras does not have, and does not need."""
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return ("running_mean", "running_var", "num_batches_tracked")
    return ("num_batches_tracked",)


def _path(module: nn.Module, leaf: str) -> str:
    """Return the path of a variable in Keras's layer."""
    start, slash, name = leaf.rpartition("/")
    if isinstance(module, nn.MultiheadAttention):
        return f"_{'output' if start == 'attention_output' else start}_dense/{name}"
    return f"{start}{slash}cell/{name}" if isinstance(module, nn.RNNBase) else leaf


def _layout(module: nn.Module, path: str, layout: Layout, tensor: torch.Tensor) -> Layout:
    """Return the layout of a variable, with the one pattern of axes that Keras uses."""
    if isinstance(module, nn.MultiheadAttention):
        is_output = path.startswith("_output")
        if path.endswith("/kernel"):
            layout = DENSE_FROM_HEADS if is_output else DENSE_TO_HEADS
        elif not is_output:
            layout = HEADS
        if not layout.is_same:  # the last pattern is the one with heads
            return replace(layout, patterns=layout.patterns[-1:]).with_lengths(heads=module.num_heads)
        return SAME
    try:
        layout.stored_shape(tuple(tensor.shape))
    except InvalidArgumentError:
        return layout if layout.otherwise is None else layout.otherwise
    return layout
