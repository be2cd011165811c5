"""Symbolic run of a module's forward method: which operations and layers its values pass through.

    run = symbolic_run(model)
    for part, graph in run.graphs():
        for node in graph.nodes:
            layer = run.called(node)           # the module of `model` that this node calls, or None

The symbolic run uses proxies of torch.fx on a copy of the module, with tensors on the meta device and without hooks:
nothing is computed, and the module does not change. Unlike torch.fx.Tracer it patches no class, so other threads may
run other modules meanwhile. Side effects of a forward method, such as printing, happen once.
"""

import copy
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from itertools import takewhile
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from torch_tfckpt.distributed.shards import is_dtensor
from torch_tfckpt.saveables.state_dicts import class_of
from torch_tfckpt.saveables.wrappers import unwrapped

_HOOKS: Final = re.compile("_hooks(_with_kwargs|_always_called)?$")  # attributes of a module
Run = Callable[[], "SymbolicRun | None"]
"""Returns the symbolic run of a module; None if the module cannot be copied."""


def run_once(model: nn.Module) -> Run:
    """Return a function that runs a module, without wrappers around it, at its first call."""
    return cache(partial(symbolic_run, unwrapped(model)))


def symbolic_run(model: nn.Module) -> "SymbolicRun | None":
    """Prepare a symbolic run of a module, without wrappers around it; None if it cannot be copied.

    Cost: a copy of the module without values.
    """
    try:
        return SymbolicRun(model, _on_meta(model))
    except Exception:  # copying a module may run arbitrary user code
        return None


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a copy with tensors on the meta device, and without hooks."""
    memo: dict[int, Any] = {}
    for parameter in (each for each in model.parameters() if not is_lazy(each)):
        memo[id(parameter)] = nn.Parameter(_empty(parameter), parameter.requires_grad)
    for buffer in (each for each in model.buffers() if not is_lazy(each)):
        memo[id(buffer)] = _empty(buffer)
    if any(map(is_dtensor, model.parameters())):
        _copy_spread(model, memo)
    twin = copy.deepcopy(model, memo)
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return twin


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    if is_dtensor(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta")


def _copy_spread(model: nn.Module, memo: dict[int, Any]) -> None:
    """Add copies of modules as they were before fully_shard and parallelize_module, which forbid copies.

    What these functions added are hooks, and a class.
    """
    for part in reversed(list(model.modules())):  # parts of a module before the module
        kind: Any = class_of(part)
        hooks = {name: value for name, value in vars(part).items() if _HOOKS.search(name)}
        if kind is not type(part) or any(hooks.values()):
            twin = memo[id(part)] = kind.__new__(kind)
            others = {name: value for name, value in vars(part).items() if name not in hooks}
            vars(twin).update({name: copy.deepcopy(value, memo) for name, value in others.items()})
            vars(twin).update({name: OrderedDict() for name in hooks})


class SymbolicRun(fx.proxy.GraphAppendingTracer):
    """The operations on the values of a module, as graphs.

    Args:
        root: The module.
        twin: A copy of it, which is changed. Its layers, and its parts whose forward methods cannot be run, become
            single operations.

    Attributes:
        root: The module.
        is_complete: Whether the forward methods of all parts could be run, so far as the graphs were made.
        doubtful: Operations of forward methods that failed later. Their values may have uses that are not in the graph.
    """

    def __init__(self, root: nn.Module, twin: nn.Module) -> None:
        super().__init__(fx.Graph())
        self.root = root
        self.is_complete = True
        self.doubtful: set[fx.Node] = set()
        self._originals, self._parts = list(root.modules()), list(twin.modules())
        for number, part in enumerate(self._parts):
            part.forward = self._recorded(number, part)
        for part in self._parts:  # torch.compile, say, would compile the symbolic run
            for name, child in part.named_children():
                part._modules[name] = unwrapped(child)

    def graphs(self) -> Iterator[tuple[nn.Module, fx.Graph]]:
        """Yield the module and its graph, then each part of it that is a single operation in a graph, with its own.

        A part whose forward method fails has an incomplete graph; its parts have graphs, too.
        """
        yield from self._graphs

    @cached_property
    def _graphs(self) -> list[tuple[nn.Module, fx.Graph]]:
        return list(self._graphs_of(0))

    def called(self, node: fx.Node) -> nn.Module | None:
        """Return the part of the module that an operation calls; None for other operations."""
        return self._originals[_number(node)] if node.op == "call_module" else None

    def create_arg(self, a: Any) -> Any:
        """Return an argument in the form stored in a graph. Tensors and objects do not matter here."""
        try:
            return super().create_arg(a)
        except NotImplementedError:
            return repr(type(a))

    def _recorded(self, number: int, part: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not _is_layer(part):
                before = next(reversed(self.graph.nodes), None)
                try:
                    return type(part).forward(part, *args, **kwargs)
                except Exception:  # the method depends on values, or calls functions that torch.fx cannot trace
                    self.is_complete = False
                    self.doubtful.update(takewhile(lambda node: node is not before, reversed(self.graph.nodes)))
            return self.create_proxy("call_module", f"parts.{number}", args, kwargs)

        return forward

    def _graphs_of(self, number: int) -> Iterator[tuple[nn.Module, fx.Graph]]:
        part = self._parts[number]
        graph = self.graph = fx.Graph()
        unrun = [part]
        try:
            type(part).forward(part, *self._arguments(part))
        except Exception:  # as in `_recorded`
            self.is_complete = False
            self.doubtful.update(graph.nodes)
        else:
            unrun = []
        yield self._originals[number], graph
        called = [self._parts[_number(node)] for node in graph.nodes if node.op == "call_module"]
        unrun += [each for each in called if not _is_layer(each)]
        numbers = {id(each): at for at, each in reversed([*enumerate(self._parts)])}
        for child in (child for each in unrun for child in each.children() if not _is_layer(child)):
            if id(child) in numbers:
                yield from self._graphs_of(numbers[id(child)])

    def _arguments(self, part: nn.Module) -> list[fx.Proxy]:
        """Return a value for each argument without a default."""
        parameters = inspect.signature(type(part).forward).parameters.values()
        required = [
            each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty
        ]
        return [self.create_proxy("placeholder", each.name, (), {}) for each in required[1:]]


def _number(node: fx.Node) -> int:
    return int(str(node.target).rpartition(".")[2])


def _is_layer(part: nn.Module) -> bool:
    """Return whether a module is one operation: a module of torch, or a subclass of its layers."""
    layers = (_ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.RNNBase, nn.Embedding, nn.MultiheadAttention)
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    is_torchs = type(part).__module__.startswith("torch.nn.")
    return isinstance(part, layers) or (is_torchs and not isinstance(part, containers))
