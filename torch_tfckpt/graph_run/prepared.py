"""Compute what depends only on variables once, and convolutions with what follows them in one step.

For modules that only run. What is computed from variables and constants alone moves into a module of its own, whose
results are buffers. It runs again when a variable has changed, in place or by a restore: torch counts the changes of a
tensor (`_version`).

    Conv2D -> BiasAdd, Add, Sub, Mul, FusedBatchNorm ... -> Relu

A convolution whose filter does not depend on the inputs takes up the steps after it: additions and multiplications of
channels become part of its filter and bias. Its filter is kept in torch's memory layout.

Not for modules that are trained: their parameters must be the graph's variables.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import fx

from torch_tfckpt.graph_ops.activations import relu, relu6
from torch_tfckpt.graph_ops.arithmetic import add, mul, sub
from torch_tfckpt.graph_ops.convolutions import bias_add, conv2d, depthwise_conv2d
from torch_tfckpt.graph_ops.fused import DEPTHWISE, convolution, stored_filter
from torch_tfckpt.graph_ops.integers import as_tensor
from torch_tfckpt.graph_ops.normalization import fused_batch_norm, fused_batch_norm_v3
from torch_tfckpt.graph_ops.registry import OPS

PREPARED: Final = "prepared"
_CONVOLUTIONS: Final[Mapping[Any, str]] = {conv2d: "Conv2D", depthwise_conv2d: DEPTHWISE}
_ACTIVATIONS: Final[Mapping[Any, str]] = {relu: "Relu", relu6: "Relu6"}
_NORMALISATIONS: Final = (fused_batch_norm, fused_batch_norm_v3)
# Operations with integer inputs whose results are not larger than their other inputs.
_NOT_GROWING: Final = frozenset({
    "Reshape", "Transpose", "ExpandDims", "Squeeze", "StridedSlice", "Slice", "ConcatV2", "Concat", "Split", "SplitV",
    "Sum", "Mean", "Max", "Min", "Prod", "Pack", "Unpack", "ReverseV2",
})  # fmt: skip


class Preparation:
    """What a module computes from variables alone.

    Args:
        module: The module; it is changed.
        is_fixed: Whether the graph itself does not change this attribute of the module.

    REQUIRES: the variables have their values, since the shapes of results are needed.
    """

    def __init__(self, module: fx.GraphModule, is_fixed: Callable[[str], bool]) -> None:
        self._module = module
        self._graph = module.graph
        self._known: dict[fx.Node, Any] = {}  # nodes that depend on variables only -> their values
        with torch.no_grad():
            self._find(is_fixed)
            for node in list(self._graph.nodes):
                if node.op == "call_function" and node.target in _CONVOLUTIONS:
                    self._merge(node)
        for node in reversed(list(self._known)):
            # A tuple cannot be a buffer: whoever uses it computes it.
            if not isinstance(self._known[node], torch.Tensor) and any(user not in self._known for user in node.users):
                del self._known[node]
        used = [node for node in self._known if node.op != "get_attr" and any(u not in self._known for u in node.users)]
        self._buffers = torch.nn.Module()
        self._names = [f"value_{number}" for number in range(len(used))]
        self._compute, self._sources = self._moved(used)
        self._versions = [source._version for source in self._sources]
        for name, node in zip(self._names, used, strict=True):
            self._buffers.register_buffer(name, self._known[node], persistent=False)
        if used:
            self._module.add_module(PREPARED, self._buffers)
            self._replace(used)
        self._known = {}

    def refresh(self) -> bool:
        """Compute everything again if a variable has changed; return whether that was so."""
        versions = [source._version for source in self._sources]
        if versions == self._versions:
            return False
        with torch.no_grad():
            self._buffers._buffers.update(zip(self._names, self._compute(), strict=True))
        self._versions = versions
        return True

    def _find(self, is_fixed: Callable[[str], bool]) -> None:
        for node in self._graph.nodes:
            if node.op == "get_attr" and is_fixed(str(node.target)):
                value = operator.attrgetter(str(node.target))(self._module)
                if isinstance(value, torch.Tensor):
                    self._known[node] = value
            elif node.op == "call_function" and node.target in _PURE and node.all_input_nodes:
                self._compute_now(node)

    def _compute_now(self, node: fx.Node) -> None:
        if all(each in self._known for each in node.all_input_nodes):
            try:
                value = node.target(*self._values(node.args), **self._values(node.kwargs))  # type: ignore[operator]
            except (RuntimeError, ValueError, TypeError, IndexError):
                return  # reported when the module runs
            if isinstance(value, torch.Tensor | tuple):
                self._known[node] = value

    def _values(self, arguments: Any) -> Any:
        return fx.node.map_arg(arguments, lambda node: self._known[node])

    def _merge(self, node: fx.Node) -> None:
        """Replace a convolution and the steps after it by one call."""
        weight = node.args[1]
        if node in self._known or not self._is_float(weight, 4) or node.kwargs.get("data_format", "NHWC") != "NHWC":
            return
        kind = _CONVOLUTIONS[node.target]
        shape = self._known[weight].shape  # type: ignore[index]
        channels = shape[2] * shape[3] if kind == DEPTHWISE else shape[3]
        last, steps, operands = node, [], []
        chain = [node]
        while (following := _only_user(last)) is not None:
            found = self._step(following, last, channels)
            if found is None:
                break
            steps.append(found[0])
            operands.append(found[1])
            chain += found[2]
            last = chain[-1]
        activation = ""
        if following is not None and following.target in _ACTIVATIONS:
            activation = _ACTIVATIONS[following.target]
            chain.append(following)
        with self._graph.inserting_after(chain[-1]):
            parts = self._graph.call_function(
                merged_filter, (weight, operands), {"steps": tuple(steps), "operation": kind}
            )
        self._compute_now(parts)
        if parts not in self._known:
            self._graph.erase_node(parts)
            return
        arguments, before = [node.args[0]], parts
        for index in range(2 if steps else 1):  # the filter, and the bias
            with self._graph.inserting_after(before):
                before = self._graph.call_function(operator.getitem, (parts, index))
            self._compute_now(before)
            arguments.append(before)
        with self._graph.inserting_after(before):
            merged = self._graph.create_node(
                "call_function",
                convolution,
                tuple(arguments),
                {**node.kwargs, "operation": kind, "activation": activation},
                name=f"{node.name}_merged",
            )
        merged.meta.update(node.meta)
        chain[-1].replace_all_uses_with(merged)
        for each in reversed(chain):
            self._graph.erase_node(each)

    def _step(self, node: fx.Node, last: fx.Node, channels: int) -> tuple[Any, list[Any], list[fx.Node]] | None:
        """Return what a step after a convolution does to each channel; None if it does something else."""
        if node.target in _NORMALISATIONS:
            return self._normalisation(node, last, channels)
        if node.target is bias_add and node.kwargs.get("data_format", "NHWC") == "NHWC":
            name = "add"
        elif node.target in (add, mul, sub) and not node.kwargs:
            name = {add: "add", mul: "mul", sub: "sub"}[node.target]
        else:
            return None
        first, second = node.args
        other = second if first is last else first
        if first is second or (name == "sub" and first is not last) or not self._is_of_channels(other, channels):
            return None
        return name, [other], [node]

    def _normalisation(
        self, node: fx.Node, last: fx.Node, channels: int
    ) -> tuple[Any, list[Any], list[fx.Node]] | None:
        statistics = list(node.args[1:5])
        y = _only_user(node)
        if (
            node.args[0] is not last
            or node.kwargs.get("is_training") is not False
            or node.kwargs.get("data_format", "NHWC") != "NHWC"
            or y is None
            or y.target is not operator.getitem
            or y.args[1] != 0
            or not all(self._is_of_channels(each, channels) for each in statistics)
        ):
            return None
        return ("norm", node.kwargs.get("epsilon", 0.0001)), statistics, [node, y]

    def _is_float(self, node: Any, rank: int) -> bool:
        value = self._known.get(node) if isinstance(node, fx.Node) else None
        return isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.dim() == rank

    def _is_of_channels(self, node: Any, channels: int) -> bool:
        value = self._known.get(node) if isinstance(node, fx.Node) else None
        return (
            isinstance(value, torch.Tensor)
            and value.dtype == torch.float32
            and value.dim() <= 4
            and value.numel() == channels
            and value.dim() > 0
            and value.shape[-1] == channels
        )

    def _moved(self, used: Sequence[fx.Node]) -> tuple[fx.GraphModule, list[torch.Tensor]]:
        """Return a module that computes the values of some nodes, and the tensors that they are computed from."""
        graph = fx.Graph()
        wanted = set(used)
        for node in reversed(list(self._known)):
            if node in wanted:
                wanted.update(node.all_input_nodes)
        copies: dict[fx.Node, fx.Node] = {}
        attributes: dict[str, Any] = {}
        for node in self._graph.nodes:  # in an order in which inputs come first
            if node in wanted and node in self._known:
                copies[node] = graph.node_copy(node, lambda each: copies[each])
                if node.op == "get_attr":
                    attributes[str(node.target)] = self._known[node]
        graph.output(tuple(copies[node] for node in used))
        sources = [value for value in attributes.values() if isinstance(value, torch.Tensor)]
        return fx.GraphModule(attributes, graph), sources

    def _replace(self, used: Sequence[fx.Node]) -> None:
        """Read buffers instead of computing the nodes, and remove what nobody uses."""
        for name, node in zip(self._names, used, strict=True):
            with self._graph.inserting_before(node):
                read = self._graph.create_node("get_attr", f"{PREPARED}.{name}")
            node.replace_all_uses_with(read)
        for node in reversed(list(self._graph.nodes)):
            if node in self._known and not node.users:
                self._graph.erase_node(node)
        self._module.recompile()


def merged_filter(
    weight: torch.Tensor, operands: Sequence[Sequence[torch.Tensor]], *, steps: Sequence[Any], operation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the filter and bias of a convolution that includes steps after it.

    Args:
        operands: For each step, what it adds to or multiplies each channel with.
        steps: "add", "sub", "mul", or ("norm", epsilon).
    """
    channels = weight.shape[2] * weight.shape[3] if operation == DEPTHWISE else weight.shape[3]
    factor, shift = weight.new_ones(channels), weight.new_zeros(channels)
    for step, values in zip(steps, operands, strict=True):
        flat = [value.reshape(-1) for value in values]
        if step == "add":
            shift = shift + flat[0]
        elif step == "sub":
            shift = shift - flat[0]
        elif step == "mul":
            factor, shift = factor * flat[0], shift * flat[0]
        else:
            scale, offset, mean, variance = flat
            slope = scale * torch.rsqrt(variance + step[1])
            factor, shift = factor * slope, (shift - mean) * slope + offset
    if any(step not in ("add", "sub") for step in steps):
        weight = weight * (factor.reshape(weight.shape[2:]) if operation == DEPTHWISE else factor)
    return stored_filter(weight, operation), shift


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return the only node that uses a result, if that is a call of a function."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if user.op == "call_function" else None


def _pure_functions() -> frozenset[Any]:
    known = {
        each.function for each in OPS.values() if each.is_pure and (not each.integers or each.name in _NOT_GROWING)
    }
    return frozenset(known | {operator.getitem, as_tensor, merged_filter})


_PURE: Final = _pure_functions()
