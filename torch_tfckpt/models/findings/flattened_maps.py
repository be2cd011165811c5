"""Find the Linear layers of a module that multiply a flattened feature map.

    conv -> relu -> pool -> flatten -> fc        fc does: its columns are ordered channels, height, width
    conv -> global average pool -> flatten -> fc fc does not: each channel has one value
    conv -> permute(0, 2, 3, 1) -> flatten -> fc fc does, but in TensorFlow's order, so it is not reported

Contract:

    certain       in a symbolic run of the forward method, only operations that keep the channels in place lead from a
                  convolution to the Linear
    possible      an operation on the way is not known; or the forward method cannot be run, and the Linear is the first
                  one after a convolution in the order of registration, and has several inputs for each channel
    not reported  everything else: one value per channel, axes that were moved, layers that the forward method does not
                  use

The symbolic run uses proxies of torch.fx on a copy of the module, with tensors on the meta device and without hooks:
nothing is computed, and the module does not change. Unlike torch.fx.Tracer it patches no class, so other threads may
run other modules meanwhile. Side effects of a forward method, such as printing, happen once.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from torch_tfckpt.saveables.wrappers import unwrapped

# Modules of torch that keep the order of channels and positions are defined in these files.
_KEEPING_FILES: Final = frozenset(
    f"torch.nn.modules.{name}"
    for name in (
        "activation", "batchnorm", "dropout", "instancenorm", "normalization", "padding", "pooling", "upsampling",
    )
)  # fmt: skip
_GLOBAL_POOLS: Final = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
# Functions and methods that keep the order. Nothing is known about operations that match none of these patterns.
_KEEPING: Final = re.compile(
    r"\w*(?:relu6?|elu|celu|silu|mish|tanh|sigmoid|hardswish|softplus|softsign|softmax|dropout[123]?d?)_?"
    r"|\w+_norm|normalize|[a-z]+_pool[123]d(?:_with_indices)?|interpolate|upsample|pad"
    r"|contiguous|clone|detach|float|half|double|bfloat16|to|type|type_as|cpu|cuda"
    r"|i?(?:add|sub|mul|div|truediv)_?|neg|abs|exp|log|sqrt|rsqrt|square|pow|clamp_?|maximum|minimum"
)
_CONVOLUTION: Final = re.compile(r"conv(?:_transpose)?[123]d")
_REDUCING: Final = ("mean", "sum", "amax", "amin")
_JOINING: Final = ("cat", "concat", "concatenate")
_RESHAPING: Final = ("flatten", "view", "reshape")
# Operations that move axes, or whose result is a number or a product.
_ENDING: Final = (
    "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "H", "mH", "einsum",
    "matmul", "bmm", "mm", "linear", "size", "dim", "numel", "shape", "ndim", "dtype", "device",
)  # fmt: skip
_SPATIAL: Final = 2  # number of the first axis after batch and channels


@dataclass(frozen=True, slots=True)
class FlattenedInput:
    """Linear layer that multiplies, or may multiply, a flattened feature map.

    Attributes:
        linear: The layer.
        channels: Channels of the map; None if not known.
        is_certain: Whether the layer certainly does so, according to the traced forward method.
    """

    linear: nn.Linear
    channels: int | None
    is_certain: bool


@dataclass(frozen=True, slots=True)
class _FeatureMap:
    """Value that comes from a convolution, with its channels before its positions."""

    channels: int | None
    certain: bool = True
    flat: bool = False


class _Unknown:
    """The input of a part of a module, if the part was traced on its own."""


_State = _FeatureMap | _Unknown | None
_UNKNOWN: Final = _Unknown()


def flattened_inputs(model: nn.Module) -> list[FlattenedInput]:
    """Return the Linear layers of a module that multiply a flattened feature map, by the contract above.

    Cost: one symbolic run of the forward method, if the module has convolutions and Linear layers.
    """
    root = unwrapped(model)
    parts = list(root.modules())
    if not any(isinstance(part, _ConvNd) for part in parts) or not any(isinstance(part, nn.Linear) for part in parts):
        return []
    seen: dict[int, FlattenedInput | None] = {}  # id of a Linear whose input is understood -> the finding
    is_complete = False
    try:
        run = _SymbolicRun(_on_meta(root))
    except Exception:  # copying a module may run arbitrary user code
        run = None
    if run is not None:
        originals = dict(zip(map(id, run.parts), parts, strict=True))
        for linear, finding in run.linear_layers():
            original = originals[id(linear)]
            assert isinstance(original, nn.Linear)
            if seen.get(id(original)) is None:
                seen[id(original)] = None if finding is None else replace(finding, linear=original)
        is_complete = run.is_complete
    for finding in () if is_complete else _by_order(parts):
        seen.setdefault(id(finding.linear), finding)
    return [finding for part in parts if (finding := seen.get(id(part))) is not None]


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a copy with tensors on the meta device, and without hooks."""
    memo: dict[int, Any] = {}
    for parameter in (each for each in model.parameters() if not is_lazy(each)):
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in (each for each in model.buffers() if not is_lazy(each)):
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    twin = copy.deepcopy(model, memo)
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return twin


class _SymbolicRun(fx.proxy.GraphAppendingTracer):
    """The operations on the values of a module, as a graph.

    Args:
        root: The module; it is changed. Its layers, and its parts whose forward methods cannot be run, become single
            operations.

    Attributes:
        parts: The module and all its parts.
        is_complete: Whether the forward methods of all parts could be run.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__(fx.Graph())
        self.parts = list(root.modules())
        self.is_complete = True
        for number, part in enumerate(self.parts):
            part.forward = self._recorded(number, part)
        for part in self.parts:  # torch.compile, say, would compile the symbolic run
            for name, child in part.named_children():
                part._modules[name] = unwrapped(child)

    def linear_layers(self) -> Iterator[tuple[nn.Linear, FlattenedInput | None]]:
        """Yield each Linear whose input is understood, with the finding."""
        yield from self._linear_layers_of(self.parts[0], None)

    def create_arg(self, a: Any) -> Any:
        """Return an argument in the form stored in a graph. Tensors and objects do not matter here."""
        try:
            return super().create_arg(a)
        except NotImplementedError:
            return repr(type(a))

    def _recorded(self, number: int, part: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not _is_layer(part):
                try:
                    return type(part).forward(part, *args, **kwargs)
                except Exception:  # the method depends on values, or calls functions that torch.fx cannot trace
                    self.is_complete = False
            return self.create_proxy("call_module", f"parts.{number}", args, kwargs)

        return forward

    def _linear_layers_of(
        self, part: nn.Module, entering: "_State"
    ) -> Iterator[tuple[nn.Linear, FlattenedInput | None]]:
        self.graph = fx.Graph()
        unrun = [part]
        try:
            type(part).forward(part, *self._arguments(part))
        except Exception:  # as in `_recorded`
            self.is_complete = False
        else:
            unrun = []
        state: dict[fx.Node, _State] = {}
        for node in self.graph.nodes:
            states = [state[each] for each in node.all_input_nodes]
            if node.op != "call_module":
                state[node] = entering if node.op == "placeholder" else _after_function(node, states)
                continue
            called, given = self.parts[int(str(node.target).rpartition(".")[2])], states[0] if states else None
            state[node] = _after_module(called, given)
            if not _is_layer(called):
                unrun.append(called)
            elif isinstance(called, nn.Linear) and not isinstance(given, _Unknown):
                yield called, _finding(called, given)
        for child in (child for each in unrun for child in each.children() if not _is_layer(child)):
            yield from self._linear_layers_of(child, _UNKNOWN)

    def _arguments(self, part: nn.Module) -> list[fx.Proxy]:
        """Return a value for each argument without a default."""
        parameters = inspect.signature(type(part).forward).parameters.values()
        required = [
            each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty
        ]
        return [self.create_proxy("placeholder", each.name, (), {}) for each in required[1:]]


def _is_layer(part: nn.Module) -> bool:
    """Return whether a module is one operation: a module of torch, or a subclass of its layers."""
    layers = (_ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.RNNBase, nn.Embedding, nn.MultiheadAttention)
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    is_torchs = type(part).__module__.startswith("torch.nn.")
    return isinstance(part, layers) or (is_torchs and not isinstance(part, containers))


def _finding(linear: nn.Linear, given: _State) -> FlattenedInput | None:
    if not isinstance(given, _FeatureMap) or not given.flat or linear.in_features == given.channels:
        return None
    if linear.in_features == 0:  # a lazy layer
        return FlattenedInput(linear, given.channels, is_certain=False)
    # If the width is not a multiple of the number of channels, other values were concatenated with the map.
    fits = given.channels is not None and linear.in_features % given.channels == 0
    return FlattenedInput(linear, given.channels if fits else None, given.certain and fits)


def _after_module(module: nn.Module, given: _State) -> _State:
    """Return what is known of the output of a layer."""
    if isinstance(module, _ConvNd):
        return _FeatureMap(module.out_channels)
    if isinstance(module, nn.Linear | nn.RNNBase | nn.Embedding | nn.MultiheadAttention):
        return None
    if isinstance(module, _GLOBAL_POOLS) and _is_one(module.output_size):
        return None
    if isinstance(given, _FeatureMap) and isinstance(module, nn.Flatten):
        return _flattened(given, module.start_dim, module.end_dim)
    names = {kind.__module__ for kind in type(module).__mro__}
    if isinstance(module, nn.Identity) or (not names.isdisjoint(_KEEPING_FILES) and not isinstance(module, nn.GLU)):
        return given
    last = [part.out_channels for part in module.modules() if isinstance(part, _ConvNd)]
    if last:
        return _FeatureMap(last[-1], certain=False)
    return replace(given, channels=None, certain=False) if isinstance(given, _FeatureMap) else given


def _after_function(node: fx.Node, states: list[_State]) -> _State:
    """Return what is known of the result of a function or method."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = str(node.args[1]) if name == "getattr" else name
    maps = [each for each in states if isinstance(each, _FeatureMap)]
    if _CONVOLUTION.fullmatch(name):
        return _FeatureMap(None, certain=False)
    if not maps:
        return states[0] if states and isinstance(states[0], _Unknown) and name not in _ENDING else None
    given = maps[0]
    if name in _ENDING:
        return None
    if name in _RESHAPING:
        return _reshaped(node, name, given)
    if name in _JOINING:
        return _joined(node, maps, complete=len(maps) == len(states))
    if name.startswith("adaptive_"):
        return None if _is_one(_argument(node, 1, "output_size")) else given
    if name in _REDUCING:
        return None if _removes_order(_argument(node, 1, "dim")) else given
    return given if _KEEPING.fullmatch(name) else replace(given, channels=None, certain=False)


def _reshaped(node: fx.Node, name: str, given: _FeatureMap) -> _State:
    if name == "flatten":
        return _flattened(given, _argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1))
    shape = node.args[1:] if len(node.args) != 2 or not isinstance(node.args[1], tuple | list) else node.args[1]
    assert isinstance(shape, tuple | list)
    if len(shape) == 2:  # batch, everything else
        return replace(given, flat=True)
    return _FeatureMap(None, certain=False)


def _flattened(given: _FeatureMap, start: object, end: object) -> _State:
    if (start, end) == (1, -1):
        return replace(given, flat=True)
    return given if start == _SPATIAL else replace(given, channels=None, certain=False, flat=True)


def _joined(node: fx.Node, maps: list[_FeatureMap], *, complete: bool) -> _State:
    """Return what is known about the concatenation of maps and, possibly, other values."""
    flat = any(each.flat for each in maps)
    channels = [each.channels for each in maps if each.channels is not None]
    if complete and not flat and _argument(node, 1, "dim", 0) in (1, -3) and len(channels) == len(maps):
        return _FeatureMap(sum(channels), all(each.certain for each in maps))
    return _FeatureMap(None, certain=False, flat=flat)


def _argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _is_one(size: object) -> bool:
    return size == 1 or (isinstance(size, tuple | list) and set(size) == {1})


def _removes_order(dim: object) -> bool:
    """Return whether the reduced axes are the channels, or all positions, of a map."""
    axes = set(dim) if isinstance(dim, tuple | list) else {dim}
    return 1 in axes or axes in ({2, 3}, {-1, -2}, {2, 3, 4}, {-1, -2, -3})


def _by_order(parts: list[nn.Module]) -> Iterator[FlattenedInput]:
    """Yield the first Linear after a convolution in the order of registration, if it has several inputs per channel."""
    channels: int | None = None
    for part in parts:
        if isinstance(part, _ConvNd):
            channels = part.out_channels
        elif isinstance(part, _GLOBAL_POOLS) and _is_one(part.output_size):
            channels = None
        elif isinstance(part, nn.Linear):
            if channels is not None and part.in_features > channels and part.in_features % channels == 0:
                yield FlattenedInput(part, channels, is_certain=False)
            channels = None
