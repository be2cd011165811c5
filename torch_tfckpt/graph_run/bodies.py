"""torch.fx graphs under construction: the module's own, and those of loops and branches inside it.

A Body is one fx graph. The root has the variables and constants as attributes; the others are pure functions, and get
everything from outside as inputs: `local` adds an input when a value of an enclosing body is used.

Each output of a step becomes a BuiltValue of one kind:

    VALUE      a tensor, an array of strings, a list of tensors, or another object at run time
    INTEGERS   Python integers at run time, with the dtype that they have in TensorFlow
    REFERENCE  a variable, known when the module is built; reading it gives a VALUE
"""

import enum
import functools
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Optional

import torch
from torch import fx

from torch_tfckpt.graph_ops.integers import INTEGER_DTYPES, as_integers, as_tensor, fits
from torch_tfckpt.graph_run.steps import NO_GUARDS, GraphStep, Guard, LoopFrame, Region, Source
from torch_tfckpt.graph_run.tracing import OperationTracer

_NOT_IN_NAMES: Final = re.compile(r"\W+")


class ValueKind(enum.Enum):
    """How a built value exists."""

    VALUE = enum.auto()
    INTEGERS = enum.auto()
    REFERENCE = enum.auto()


NOT_CONSTANT: Final = object()


@dataclass(eq=False, slots=True)
class BuiltValue:
    """One output of a step in an fx graph.

    Attributes:
        body: The body whose graph has `node`; None for constants and variables.
        constant: The value, if it is known: Python integers, a tensor, or an array of strings.
        variable: Of a REFERENCE: the variable's name.
    """

    kind: ValueKind
    node: fx.Node | None = None
    body: Optional["Body"] = None
    dtype: Any = None
    constant: Any = NOT_CONSTANT
    variable: str = ""

    @property
    def is_constant(self) -> bool:
        return self.constant is not NOT_CONSTANT


@dataclass(eq=False, slots=True)
class StepOutputs:
    """The outputs of one step, made when they are used."""

    known: dict[int, BuiltValue] = field(default_factory=dict)
    make: Callable[[int], BuiltValue] | None = None

    def get(self, index: int) -> BuiltValue | None:
        found = self.known.get(index)
        if found is None and self.make is not None:
            found = self.known[index] = self.make(index)
        return found


class Body:
    """One fx graph under construction.

    Args:
        parent: The body around it; None for the root.
        frame: The loop that it is in.
        guards: The predicates that are decided when it runs.
        region: What it builds. Steps of another region than the parent's are never looked for in the parent.
    """

    def __init__(
        self,
        parent: Optional["Body"],
        region: Region,
        frame: LoopFrame | None = None,
        guards: frozenset[Guard] = NO_GUARDS,
    ) -> None:
        self.parent, self.region, self.frame, self.guards = parent, region, frame, guards
        self.root: Body = self if parent is None else parent.root
        self.graph = fx.Graph(tracer_cls=OperationTracer)
        self.values: dict[GraphStep, StepOutputs] = {}
        self.modules: dict[str, torch.nn.Module] = {}
        self.names = AttributeNames()
        self._captured: dict[fx.Node, fx.Node] = {}  # a node of the parent -> the placeholder for it
        self._as_tensor: dict[fx.Node, fx.Node] = {}
        self._as_integers: dict[fx.Node, fx.Node] = {}
        self._last_input: fx.Node | None = None
        self._last_own: fx.Node | None = None
        self._chain: list[Body] = [self]  # from the region's first body to this one
        if parent is not None and parent.region is region:
            self._chain = [*parent._chain, self]
        # Of the root: its attributes.
        self.attributes: dict[str, Any] = {}
        self._constants: dict[Any, fx.Node] = {}

    # Where steps are computed.

    def home(self, step: GraphStep) -> Optional["Body"]:
        """Return the outermost body in which a step can run; None if it needs a deeper one than this."""
        guards, frame = step.guards, step.frame
        if frame is None and not guards:
            return self._chain[0]
        for body in self._chain:
            if guards <= body.guards and (frame is None or frame.encloses(body.frame)):
                return body
        return None

    def found(self, source: Source) -> BuiltValue | None:
        """Return the value of an output, if its step was built in this body or around it."""
        step, index = source
        for body in reversed(self._chain):
            outputs = body.values.get(step)
            if outputs is not None:
                return outputs.get(index)
        return None

    def is_built(self, step: GraphStep) -> bool:
        return any(step in body.values for body in self._chain)

    # Nodes.

    def input(self, name: str) -> fx.Node:
        """Add an input of the graph."""
        last = self._last_input
        with self.graph.inserting_before(None) if last is None else self.graph.inserting_after(last):
            node = self.graph.create_node("placeholder", node_name(name), name=node_name(name))
        node.target = node.name
        self._last_input = node
        return node

    def call(self, function: Callable[..., Any], *args: Any, at: GraphStep | None = None, **kwargs: Any) -> fx.Node:
        """Add a call of a function."""
        name = node_name(at.name) if at is not None else None
        node = self.graph.create_node("call_function", function, args, kwargs, name=name)
        if at is not None:
            node.meta["tensorflow"] = (at.name, at.op)
        return node

    def call_module(self, name: str, module: torch.nn.Module, args: Sequence[Any], at: GraphStep) -> fx.Node:
        """Add a module, and a call of it."""
        unique = self.names.module(name)
        self.modules[unique] = module
        node = self.graph.create_node("call_module", unique, tuple(args), {}, name=node_name(at.name))
        node.meta["tensorflow"] = (at.name, at.op)
        return node

    def attribute(self, name: str, value: Any) -> fx.Node:
        """Add an attribute of the root, and return the node that reads it."""
        assert self.root is self, "only the root has attributes"
        self.attributes[name] = value
        return self.graph.create_node("get_attr", name)

    def arrange(self, outer: Sequence[fx.Node]) -> None:
        """Make these nodes of the parent the inputs, in this order, after the inputs that are not captures."""
        last = self._last_own
        for each in outer:
            inner = self._captured.get(each)
            if inner is None:
                assert self.parent is not None
                inner = self.captured(each, self.parent)
            if last is None:
                next(iter(self.graph.nodes)).prepend(inner)
            else:
                last.append(inner)
            last = inner

    def own_input(self, name: str) -> fx.Node:
        """Add an input that is not a capture; these come first."""
        self._last_own = self.input(name)
        return self._last_own

    def finish(self, results: Any) -> fx.GraphModule:
        """Set the results of the graph, and return its module."""
        self.graph.output(results)
        module = fx.GraphModule(tree_of({**self.attributes, **self.modules}), self.graph)
        constants = module._modules.get(CONSTANTS)
        if constants is not None:
            constants._non_persistent_buffers_set.update(constants._buffers)
        return module

    # Values as arguments.

    def value_of(self, node: fx.Node) -> BuiltValue:
        return BuiltValue(ValueKind.VALUE, node, self)

    def integers_of(self, node: fx.Node, dtype: Any) -> BuiltValue:
        return BuiltValue(ValueKind.INTEGERS, node, self, dtype)

    def local(self, value: BuiltValue) -> fx.Node:
        """Return the node of a value in this graph; a value of a body around it becomes an input."""
        assert value.node is not None
        assert value.body is not None
        return self.captured(value.node, value.body)

    def captured(self, node: fx.Node, owner: "Body") -> fx.Node:
        """Return a node of a body around this one as an input of this one, and of those between."""
        between = []
        body: Body = self
        while body is not owner:
            between.append(body)
            assert body.parent is not None, "a value is used outside of the body that computes it"
            body = body.parent
        for body in reversed(between):
            inner = body._captured.get(node)
            if inner is None:
                inner = body._captured[node] = body.input(node.name)
            node = inner
        return node

    def captures(self) -> list[fx.Node]:
        """Return the nodes of the parent that are inputs, in order."""
        return list(self._captured)

    def operand(self, value: BuiltValue) -> Any:
        """Return a value as the argument of a call, as it is: integers stay integers."""
        if value.kind is ValueKind.INTEGERS:
            return value.constant if value.is_constant else self.local(value)
        return self.tensor(value)

    def tensor(self, value: BuiltValue) -> fx.Node:
        """Return a value as an argument that is not Python integers."""
        if value.kind is ValueKind.INTEGERS:
            if value.is_constant:
                return self.constant_integers(value.constant, value.dtype)
            node = self.local(value)
            found = self._as_tensor.get(node)
            if found is None:
                found = self._as_tensor[node] = self.call(as_tensor, node, value.dtype)
            return found
        if value.is_constant:
            return self.constant(value.constant)
        return self.local(value)

    def integers(self, value: BuiltValue) -> Any:
        """Return a value as Python integers."""
        if value.kind is ValueKind.INTEGERS:
            return self.operand(value)
        if value.is_constant and isinstance(value.constant, torch.Tensor):
            return as_integers(value.constant)
        node = self.tensor(value)
        found = self._as_integers.get(node)
        if found is None:
            found = self._as_integers[node] = self.call(as_integers, node)
        return found

    def constant(self, value: Any) -> fx.Node:
        """Return a tensor or array of strings as an attribute of the root, which is an input of this body."""
        return self._constant(id(value), lambda: value)

    def constant_integers(self, value: Any, dtype: torch.dtype) -> fx.Node:
        """Return known integers as a tensor that is made once."""
        return self._constant((value, dtype), lambda: as_tensor(value, dtype))

    def _constant(self, key: Any, make: Callable[[], Any]) -> fx.Node:
        root = self.root
        node = root._constants.get(key)
        if node is None:
            node = root._constants[key] = root.attribute(f"{CONSTANTS}.c{len(root._constants)}", make())
        return self.captured(node, root)


CONSTANTS: Final = "constants_of_graph"


def known_integers(value: Any, dtype: Any) -> BuiltValue:
    """Return Python integers that are known when the module is built."""
    return BuiltValue(ValueKind.INTEGERS, dtype=dtype, constant=value)


def known_value(value: Any) -> BuiltValue:
    """Return a constant: small integers as Python integers, everything else as an attribute of the module."""
    if isinstance(value, torch.Tensor) and value.dtype in INTEGER_DTYPES and fits(value.dtype, value.shape):
        return known_integers(as_integers(value), value.dtype)
    return BuiltValue(ValueKind.VALUE, constant=value)


class AttributeNames:
    """Names of a module's attributes: no name of a tensor is also the name of a module."""

    def __init__(self) -> None:
        self._tensors: set[str] = set()
        self._modules: set[str] = {CONSTANTS}

    def module(self, name: str) -> str:
        """Return a free name of a module."""
        first = attribute_name(name)
        unique, number = first, 0
        while unique in self._tensors or unique in self._modules:
            number += 1
            unique = f"{first}_{number}"
        self._modules.add(unique)
        return unique

    def tensor(self, name: str) -> str:
        """Return a free name of a tensor: TensorFlow's, with dots instead of slashes."""
        *scopes, last = map(attribute_name, name.split("/"))
        path = ""
        for part in scopes:
            while f"{path}{part}" in self._tensors:
                part += "_"
            path = f"{path}{part}."
            self._modules.add(path[:-1])
        while f"{path}{last}" in self._tensors or f"{path}{last}" in self._modules:
            last += "_"
        self._tensors.add(f"{path}{last}")
        return f"{path}{last}"


@functools.lru_cache(1 << 14)
def node_name(name: str) -> str:
    """Return a TensorFlow name as the name of an fx node."""
    found = _NOT_IN_NAMES.sub("_", name) or "node"
    return f"n{found}" if not found[0].isalpha() and found[0] != "_" else found


@functools.lru_cache(1 << 12)
def attribute_name(name: str) -> str:
    """Return one part of a TensorFlow name as the name of a module's attribute."""
    found = _NOT_IN_NAMES.sub("_", name) or "_"
    if keyword.iskeyword(found) or hasattr(fx.GraphModule, found) or found in _TAKEN:
        found += "_"
    return found


_TAKEN: Final = frozenset({*vars(torch.nn.Module()), "graph", "code", "meta", "shape_env", CONSTANTS})


def tree_of(attributes: Mapping[str, Any]) -> torch.nn.Module:
    """Return modules with attributes at names with dots; tensors of constants are not part of the state_dict."""
    root = torch.nn.Module()
    for name, value in attributes.items():
        *parts, last = name.split(".")
        module = root
        for part in parts:
            inner = module._modules.get(part)
            if inner is None:
                inner = torch.nn.Module()
                module.add_module(part, inner)
            module = inner
        if isinstance(value, torch.nn.Parameter):
            module.register_parameter(last, value)
        elif isinstance(value, torch.Tensor):
            module.register_buffer(last, value, persistent=not name.startswith(f"{CONSTANTS}."))
        else:
            setattr(module, last, value)
    return root
