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
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from torch_tfckpt.models.findings.symbolic_run import Run, SymbolicRun, run_once
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


def flattened_inputs(model: nn.Module, run: Run | None = None) -> list[FlattenedInput]:
    """Return the Linear layers of a module that multiply a flattened feature map, by the contract above.

    Args:
        run: The symbolic run of the module; None: it is made here.

    Cost: one symbolic run of the forward method, if the module has convolutions and Linear layers.
    """
    return [finding for finding in inputs_of_linear_layers(model, run).values() if finding is not None]


def inputs_of_linear_layers(model: nn.Module, run: Run | None = None) -> dict[int, FlattenedInput | None]:
    """Return the id of each Linear -> what `flattened_inputs` finds on it; None if it multiplies no flattened map.

    Layers are left out if their input is not understood, and nothing suggests a map.
    """
    root = unwrapped(model)
    parts = list(root.modules())
    if not any(isinstance(part, _ConvNd) for part in parts) or not any(isinstance(part, nn.Linear) for part in parts):
        return {}
    seen: dict[int, FlattenedInput | None] = {}
    made = (run or run_once(model))()
    for linear, finding in () if made is None else _linear_layers(made):
        if seen.get(id(linear)) is None:
            seen[id(linear)] = finding
    for finding in () if made is not None and made.is_complete else _by_order(parts):
        seen.setdefault(id(finding.linear), finding)
    return {id(part): seen[id(part)] for part in parts if id(part) in seen}


def _linear_layers(run: SymbolicRun) -> Iterator[tuple[nn.Linear, FlattenedInput | None]]:
    """Yield each Linear whose input is understood, with the finding."""
    for part, graph in run.graphs():
        entering: _State = None if part is run.root else _UNKNOWN
        state: dict[fx.Node, _State] = {}
        for node in graph.nodes:
            states = [state[each] for each in node.all_input_nodes]
            called = run.called(node)
            if called is None:
                state[node] = entering if node.op == "placeholder" else _after_function(node, states)
                continue
            given = states[0] if states else None
            state[node] = _after_module(called, given)
            if isinstance(called, nn.Linear) and not isinstance(given, _Unknown):
                yield called, _finding(called, given)


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
