"""Follow a request back from its outputs to what is fed, and inline the functions that are called on the way.

Uses an explicit stack, since graphs are thousands of nodes deep. Each node is visited once per call:

    enter       its inputs are visited first
    arguments   of a call: they are known; the function's results are visited
    leave       its inputs are known, and it becomes a GraphStep; small integers are computed

The input of a Merge that closes a loop (NextIteration) is visited afterwards, so that a loop is not a cycle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from torch_tfckpt.errors import CheckpointError, DataLossError, InvalidArgumentError, UnimplementedError, located
from torch_tfckpt.format.graph_def import Function, Graph, Node
from torch_tfckpt.graph_run.attributes import function_name
from torch_tfckpt.graph_run.declarations import Declarations
from torch_tfckpt.graph_run.folding import constant_outputs
from torch_tfckpt.graph_run.steps import (
    ARGUMENT,
    ASSIGNMENTS,
    BARRIER,
    CALLS,
    CASES,
    CONDITIONS,
    LEAST_INPUTS,
    MERGES,
    NEXT_ITERATIONS,
    TABLE_CHANGES,
    GraphStep,
    Region,
    Source,
    known_constant,
)
from torch_tfckpt.graph_run.structure import known_branch
from torch_tfckpt.text import did_you_mean, quoted

# Nodes of a request, counting those of each call, besides ten for each node of the file: functions that call each other
# twice would double them at each level.
MAX_INLINED: Final = 100_000
MAX_DEPTH: Final = 200  # of calls
TensorName = tuple[str, int]


class _Inlined(NamedTuple):
    """A call whose function became part of the region: its results, and the steps that run in every call."""

    results: list[Source]
    after: list[GraphStep]


@dataclass(eq=False, slots=True)
class _FunctionCall:
    """One call of a function, or the graph."""

    nodes: Mapping[str, Node]
    path: str
    function: Function | None = None
    arguments: Mapping[str, Source] = field(default_factory=dict)
    barrier: GraphStep | None = None
    names: tuple[str, ...] = ()  # functions that are being called
    visited: dict[str, GraphStep | _Inlined] = field(default_factory=dict)
    entered: set[str] = field(default_factory=set)


_ENTER, _INSIDE, _LEAVE = range(3)


class Flattener:
    """Turns requests into regions.

    Args:
        graph: The nodes and functions.
        declarations: Of the graph's operations.
    """

    def __init__(self, graph: Graph, declarations: Declarations) -> None:
        self._graph, self._declarations = graph, declarations
        self._count = 0
        functions = sum(len(each.nodes) for each in graph.functions.values())
        self._limit = MAX_INLINED + 10 * (len(graph.nodes) + functions)

    def graph_region(
        self, outputs: Sequence[TensorName], targets: Sequence[str], fed: Mapping[TensorName, GraphStep]
    ) -> Region:
        """Return what computes outputs of the graph's nodes and runs the nodes `targets`.

        Args:
            fed: Outputs that are given instead of computed.
        """
        call = _FunctionCall(self._graph.nodes, "")
        for name in [*(name for name, _ in outputs), *(name for name, _ in fed), *targets]:
            if name not in call.nodes:
                raise InvalidArgumentError(
                    f"the graph has no node {quoted(name)}. {did_you_mean(name, call.nodes)}".rstrip()
                )
        walk = _RegionWalk(self, call, fed)
        walk.visit([*(each[0] for each in outputs if each not in fed), *targets], call)
        results = [walk.source(call, f"{name}:{index}") for name, index in outputs]
        wanted = [step for name in targets for step in walk.control(call, name)]
        return Region("", [*fed.values(), *walk.steps], [*results], wanted)

    def function_region(self, name: str, place: GraphStep, ancestry: tuple[str, ...]) -> Region:
        """Return the body of a function that a condition or loop runs."""
        function = self.function(name, place)
        if name in ancestry:
            raise UnimplementedError(f"{place}: function {quoted(name)} runs inside of itself")
        if len(ancestry) >= MAX_DEPTH // 4:
            raise UnimplementedError(f"{place}: more than {MAX_DEPTH // 4} conditions and loops inside each other")
        arguments = [
            GraphStep(f"{place.name}/{argument}", ARGUMENT, index=index)
            for index, argument in enumerate(function.arguments)
        ]
        given = {argument: (step, 0) for argument, step in zip(function.arguments, arguments, strict=True)}
        call = _FunctionCall(function.nodes, f"{place.name}/", function, given, None, (*ancestry, name))
        walk = _RegionWalk(self, call, {})
        walk.visit(walk.wanted(call), call)
        results, after = walk.results(call)
        return Region(place.name, [*arguments, *walk.steps], [*results], after, arguments, (*ancestry, name))

    def function(self, name: str, place: GraphStep) -> Function:
        found = self._graph.functions.get(name)
        if found is None:
            raise DataLossError(f"{place}: the graph has no function {quoted(name)}")
        return found

    def counted(self) -> None:
        self._count += 1
        if self._count > self._limit:
            raise UnimplementedError(f"the request needs more than {self._limit:,} nodes, counting those of each call")


class _RegionWalk:
    """One walk over a region."""

    def __init__(self, flattener: Flattener, base: _FunctionCall, fed: Mapping[TensorName, GraphStep]) -> None:
        self._flattener, self._base, self._fed = flattener, base, fed
        self._functions = flattener._graph.functions
        self._declarations = flattener._declarations
        self._inside: dict[tuple[_FunctionCall, str], _FunctionCall] = {}
        self._late: list[tuple[_FunctionCall, str]] = []  # nodes that close loops
        self._open: list[tuple[GraphStep, _FunctionCall, Node]] = []  # Merges that wait for them
        self.steps: list[GraphStep] = []

    def visit(self, names: Sequence[str], call: _FunctionCall) -> None:
        """Visit nodes, and everything before them."""
        stack = [(call, name, _ENTER) for name in reversed(names)]
        while stack:
            while stack:
                here, name, phase = stack.pop()
                try:
                    stack.extend(self._visited(here, name, phase))
                except CheckpointError as error:
                    if getattr(error, "_is_placed", False):
                        raise
                    node = here.nodes.get(name)
                    place = f"node {quoted(here.path + name)}" + (f" ({node.op})" if node is not None else "")
                    placed = error if str(error).startswith("node ") else located(error, place)
                    placed._is_placed = True  # type: ignore[attr-defined]
                    raise placed from error.__cause__
            stack.extend((here, name, _ENTER) for here, name in self._late)
            self._late = []
        for merge, here, node in self._open:
            merge.inputs = [self.source(here, each) for each in node.inputs if not each.startswith("^")]
        self._open = []

    def _visited(self, call: _FunctionCall, name: str, phase: int) -> list[tuple[_FunctionCall, str, int]]:
        """Do one phase of a visit; return what must be visited next, the last one first."""
        if phase == _ENTER:
            if name in call.visited:
                return []
            if name in call.entered:
                raise DataLossError("the node depends on itself: the graph has a cycle outside of loops")
            return self._entered(call, name)
        node = call.nodes[name]
        if phase == _INSIDE:
            inside = self._call(call, node)
            if inside is None:
                return self._visited(call, name, _LEAVE)
            self._inside[call, name] = inside
            return [(call, name, _LEAVE), *((inside, each, _ENTER) for each in self.wanted(inside))]
        inside = self._inside.pop((call, name), None)
        if inside is not None:
            call.visited[name] = _Inlined(*self.results(inside))
        else:
            call.visited[name] = self._step(call, node)
        return []

    def _entered(self, call: _FunctionCall, name: str) -> list[tuple[_FunctionCall, str, int]]:
        node = call.nodes.get(name)
        if node is None:
            raise DataLossError("the graph has no such node, but it is an input of another one")
        call.entered.add(name)
        count = sum(not each.startswith("^") for each in node.inputs)
        if count < LEAST_INPUTS.get(node.op, 0):
            raise DataLossError(f"it has {count} inputs, expected {LEAST_INPUTS[node.op]}")
        self._flattener.counted()
        found: list[tuple[_FunctionCall, str, int]] = []
        for each in node.inputs:
            source, is_control, index = _parsed(each)
            if source in call.arguments and (call.function is not None):
                continue
            if not is_control and call is self._base and (source, index) in self._fed:
                continue
            if node.op in MERGES and source in call.nodes and call.nodes[source].op in NEXT_ITERATIONS:
                self._late.append((call, source))
                continue
            if source not in call.visited:
                if source not in call.nodes:
                    raise DataLossError(f"its input {quoted(each)} is not a node of the graph")
                if source in call.entered:
                    raise DataLossError(
                        f"its input {quoted(each)} depends on it: the graph has a cycle outside of loops"
                    )
                found.append((call, source, _ENTER))
        return [(call, name, _INSIDE if self._may_call(node) else _LEAVE), *reversed(found)]

    def _may_call(self, node: Node) -> bool:
        return node.op in CALLS or node.op in CONDITIONS or node.op in CASES or node.op in self._functions

    def _call(self, call: _FunctionCall, node: Node) -> _FunctionCall | None:
        """Return the call of a function whose body becomes part of the region; None if it is not one."""
        data = [each for each in node.inputs if not each.startswith("^")]
        attributes = node.attributes()
        if node.op in CALLS:
            name = function_name(attributes, "f")
        elif node.op in self._functions:
            name = node.op
        else:
            index = self._known_branch(call, node)
            if index is None:
                return None
            data = data[1:]
            if node.op in CONDITIONS:
                name = function_name(attributes, "then_branch" if index else "else_branch")
            else:
                branches = attributes["branches"].list.func if "branches" in attributes else []
                if not branches:
                    raise DataLossError("it has no branches")
                name = branches[index if 0 <= index < len(branches) else -1].name
        function = self._functions.get(name)
        if function is None:
            raise DataLossError(f"the graph has no function {quoted(name)}")
        if name in call.names:
            raise UnimplementedError(f"function {quoted(name)} calls itself")
        if len(call.names) >= MAX_DEPTH:
            raise UnimplementedError(f"more than {MAX_DEPTH} calls inside each other")
        if len(data) != len(function.arguments):
            raise DataLossError(
                f"it passes {len(data)} inputs to function {quoted(name)}, which has {len(function.arguments)}"
            )
        given = {argument: self.source(call, each) for argument, each in zip(function.arguments, data, strict=True)}
        path = f"{call.path}{node.name}/"
        before = [step for each in node.inputs if each.startswith("^") for step in self.control(call, each[1:])]
        if call.barrier is not None:
            before.append(call.barrier)
        barrier = None
        if before:
            barrier = GraphStep(path, BARRIER, after=before)
            self.steps.append(barrier)
        return _FunctionCall(function.nodes, path, function, given, barrier, (*call.names, name))

    def _known_branch(self, call: _FunctionCall, node: Node) -> int | None:
        """Return which branch of a condition runs, if that is known already."""
        selector = self.source(call, node.inputs[0])
        known = known_constant(selector)
        if node.op in CASES and known is not None and not isinstance(known, tuple):
            return int(known)
        return known_branch(selector)

    def wanted(self, call: _FunctionCall) -> list[str]:
        """Return the nodes of a function that a call needs."""
        assert call.function is not None
        names = [_parsed(call.function.results.get(output, ""))[0] for output in call.function.outputs]
        return [each for each in [*self._always(call), *names] if each not in call.arguments]

    def _always(self, call: _FunctionCall) -> list[str]:
        """Return the nodes that run in every call of a function."""
        assert call.function is not None
        found = [each for each in call.function.control_results if each in call.nodes]
        return found or [
            node.name for node in call.nodes.values() if node.op in ASSIGNMENTS or node.op in TABLE_CHANGES
        ]

    def results(self, call: _FunctionCall) -> tuple[list[Source], list[GraphStep]]:
        """Return the results of a function whose nodes were visited, and the steps that run in every call."""
        assert call.function is not None
        results = []
        for output in call.function.outputs:
            if output not in call.function.results:
                raise DataLossError(f"function {quoted(call.function.name)} gives no result {quoted(output)}")
            results.append(self.source(call, call.function.results[output]))
        after = [step for name in self._always(call) for step in self.control(call, name)]
        return results, after

    def source(self, call: _FunctionCall, text: str) -> Source:
        """Return the output that an input names; its node was visited."""
        name, _, index = _parsed(text)
        if call.function is not None and name in call.arguments:
            return call.arguments[name]
        if call is self._base and (name, index) in self._fed:
            return self._fed[name, index], 0
        found = call.visited[name]
        parts = text.split(":")
        if isinstance(found, _Inlined):
            node = call.nodes[name]
            if len(parts) == 3 and node.op in self._functions:
                outputs = self._functions[node.op].outputs
                index = outputs.index(parts[1]) if parts[1] in outputs else len(outputs)
            if not 0 <= index < len(found.results):
                raise DataLossError(f"its input {quoted(text)} is not among the {len(found.results)} results")
            return found.results[index]
        if len(parts) == 3:
            index = self._declarations.output_index(found.op, parts[1], index, found.attributes)
        return found, index

    def control(self, call: _FunctionCall, name: str) -> list[GraphStep]:
        """Return the steps that have run when the node `name` has."""
        if name in call.arguments:
            return []
        found = call.visited[name]
        return found.after + [step for step, _ in found.results] if isinstance(found, _Inlined) else [found]

    def _step(self, call: _FunctionCall, node: Node) -> GraphStep:
        attributes = node.attributes()
        step = GraphStep(f"{call.path}{node.name}", node.op, node, attributes=attributes)
        is_open = False
        for each in node.inputs:
            if each.startswith("^"):
                step.after.extend(self.control(call, each[1:]))
                continue
            name = _parsed(each)[0]
            if node.op in MERGES and name in call.nodes and name not in call.visited:
                is_open = True
                continue
            step.inputs.append(self.source(call, each))
        if is_open:
            self._open.append((step, call, node))
        if call.barrier is not None:
            step.after.append(call.barrier)
        step.constants = constant_outputs(step)
        self.steps.append(step)
        return step


def _parsed(text: str) -> tuple[str, bool, int]:
    """Return the node, whether it is a control input, and the last number of "node:2" or "node:argument:2"."""
    if text.startswith("^"):
        return text[1:], True, 0
    name, *rest = text.split(":")
    if not rest:
        return name, False, 0
    if not rest[-1].isdigit() or len(rest) > 2 or len(rest[-1]) > 9:
        raise DataLossError(f"an input is named {quoted(text)}, expected node, node:0 or node:argument:0")
    return name, False, int(rest[-1])
