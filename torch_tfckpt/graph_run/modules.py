"""From a graph and a request to a torch.fx.GraphModule.

program = GraphProgram(graph, declarations, variables)
built = program.build(GraphRequest(outputs=(("logits", 0),), inputs=(("x", 0),)))
built.module(x)                                # a tuple of outputs
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from torch_tfckpt._proto.op_def_pb2 import OpDef
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.graph_def import Graph
from torch_tfckpt.graph_ops.integers import as_integers, fits
from torch_tfckpt.graph_run.bodies import Body, BuiltValue, StepOutputs, ValueKind, known_integers, known_value
from torch_tfckpt.graph_run.building import ModuleBuilder
from torch_tfckpt.graph_run.calls import call_operation
from torch_tfckpt.graph_run.carried import agreed_results
from torch_tfckpt.graph_run.declarations import Declarations
from torch_tfckpt.graph_run.flattening import Flattener, TensorName
from torch_tfckpt.graph_run.handlers import HANDLERS
from torch_tfckpt.graph_run.inference import check_inference, turn_off_training
from torch_tfckpt.graph_run.requests import Requirements, assigned_variables, check, regions_of, requirements_of
from torch_tfckpt.graph_run.runtime import TrainingBranches, require_branch
from torch_tfckpt.graph_run.steps import FED, NO_GUARDS, GraphStep, Region
from torch_tfckpt.graph_run.structure import guards_of
from torch_tfckpt.graph_run.tables import LookupTables, TableSources, asset_feeds, changes_of, stored_tables
from torch_tfckpt.graph_run.variable_source import VariableSource, variable_name
from torch_tfckpt.values import Value


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """What to compute.

    Attributes:
        outputs: The wanted tensors.
        inputs: The tensors that each call gives, in order.
        constants: Tensors that have a known value.
        when_training, when_evaluating: Constants of a module in training, and of one in evaluation.
        targets: Nodes to run for their effects.
        inference: Turn off what the graph does only in training.
        filled_tables: Of the steps that `targets` need, run only those that fill these tables.
        names: Names of the module's inputs; default: from the tensors' names.
    """

    outputs: tuple[TensorName, ...]
    inputs: tuple[TensorName, ...] = ()
    constants: Mapping[TensorName, Value] = field(default_factory=dict)
    when_training: Mapping[TensorName, Value] = field(default_factory=dict)
    when_evaluating: Mapping[TensorName, Value] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    filled_tables: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    inference: bool = False


@dataclass(frozen=True, slots=True)
class Built:
    """A module that computes a request.

    Attributes:
        module: Takes the inputs, returns a tuple of the outputs.
        read: Names of the variables whose values it reads.
        assigned: Names of the variables that it sets to values that are not computed from them.
        turned_off: What `inference` has changed in the graph, a line each.
        changed: The attributes of the variables that it changes; None if they are not known.
        tables: Names of the lookup tables that it uses.
    """

    module: fx.GraphModule
    read: tuple[str, ...]
    assigned: tuple[str, ...]
    changed: frozenset[str] | None
    turned_off: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    def is_fixed(self, attribute: str) -> bool:
        """Return whether the module does not change an attribute."""
        return self.changed is not None and attribute not in self.changed


class GraphProgram:
    """A graph from which modules are built.

    Args:
        graph: Its nodes and functions.
        ops: The declarations of its operations, if the file has them.
        variables: Binds the nodes of variables to tensors.
        tables: Where lookup tables get their contents.
    """

    def __init__(
        self, graph: Graph, ops: Iterable[OpDef], variables: VariableSource, tables: TableSources | None = None
    ) -> None:
        self.graph, self.variables = graph, variables
        self.declarations = Declarations(ops)
        self.tables = LookupTables(tables or TableSources())

    def stored_tables(self) -> Mapping[str, tuple[str, str]]:
        """Return name of a table -> keys in the checkpoint of its keys and values."""
        restore = self.tables.sources.restore
        if restore not in self.graph.nodes:
            return {}
        flattener = Flattener(self.graph, self.declarations)
        return stored_tables(flattener.graph_region((), (restore,), {}))

    def asset_feeds(self) -> Mapping[TensorName, Any]:
        """Return tensor -> path of an asset to feed when tables are filled."""
        return asset_feeds(self.graph.nodes, self.tables.sources.paths)

    def requirements(self, request: GraphRequest) -> Requirements:
        """Return what a request needs, besides its inputs and constants."""
        return requirements_of(self._regions(request, request.constants)[1])

    def build(self, request: GraphRequest, *, as_parameters: bool = False, allow_changes: bool = True) -> Built:
        """Return the module for a request.

        Args:
            as_parameters: Make variables parameters and buffers that share memory with the variables' tensors. By
                default the module has the tensors themselves.
            allow_changes: If False, refuse to build a module that changes variables.

        Raises:
            UnimplementedError: an operation is not supported.
            InvalidArgumentError: an input is not fed.
            DataLossError: the graph is damaged.
        """
        switched = bool(request.when_training or request.when_evaluating)
        choices: list[Mapping[TensorName, Value]] = [request.constants]
        if switched:
            # In the order of TrainingBranches.
            choices = [{**request.constants, **each} for each in (request.when_training, request.when_evaluating)]
        prepared = [self._regions(request, constants) for constants in choices]
        builder = ModuleBuilder(self.variables, self.declarations, self.tables, HANDLERS, call_operation)
        changing: set[str] | None = set()
        for _, regions in prepared:
            check(regions, requirements_of(regions))
            changing = _joined(changing, self._assigned(regions))
        if changing != set() and not allow_changes:
            names = "variables" if changing is None else ", ".join(sorted(changing)[:5])
            raise UnimplementedError(
                f"the outputs change {names} each time they are computed. Use run, or pass allow_assign=True"
            )
        builder.assigned = changing
        if as_parameters:
            builder.parameter = self._parameter
        return self._built(builder, request, prepared, switched)

    def _built(
        self,
        builder: ModuleBuilder,
        request: GraphRequest,
        prepared: Sequence[tuple[Mapping[TensorName, GraphStep], list[Region]]],
        switched: bool,
    ) -> Built:
        root = Body(None, Region("", [], [], []) if switched else prepared[0][1][0])
        names = request.names or tuple(name if not index else f"{name}_{index}" for name, index in request.inputs)
        inputs = [root.value_of(root.own_input(name)) for name in names]
        bodies, values = [], []
        for fed, regions in prepared:
            body = Body(root, regions[0]) if switched else root
            for name, value in zip(request.inputs, inputs, strict=True):
                body.values[fed[name]] = StepOutputs({0: value})
            for step in fed.values():
                if step not in body.values:
                    body.values[step] = StepOutputs({0: _given(step)})
            values.append(_results(builder, body, regions[0]))
            bodies.append(body)
        if switched:
            found = agreed_results(
                builder,
                root,
                bodies,
                values,
                lambda modules: TrainingBranches(*modules),
                None,
                GraphStep("modes", FED),
            )
        else:
            found = values[0]
        results = tuple(root.tensor(builder.reading(root, value)) for value in found)
        module = root.finish(results)
        changed = None
        if builder.assigned is not None:
            attributes = builder.attribute_names()
            changed = frozenset(attributes[name] for name in builder.assigned if name in attributes)
        turned_off = dict.fromkeys(line for _, regions in prepared for line in regions[0].turned_off)
        return Built(
            module,
            tuple(name for name in builder.read if name not in builder.set),
            tuple(builder.set),
            changed,
            tuple(turned_off),
            tuple(builder.used_tables),
        )

    def _regions(
        self, request: GraphRequest, constants: Mapping[TensorName, Value]
    ) -> tuple[Mapping[TensorName, GraphStep], list[Region]]:
        fed: dict[TensorName, GraphStep] = {}
        for name in request.inputs:
            if name in fed:
                raise InvalidArgumentError(f"{name[0]}:{name[1]} is an input twice")
            fed[name] = GraphStep(f"{name[0]}:{name[1]}", FED)
        for name, value in constants.items():
            if name in fed:
                raise InvalidArgumentError(f"{name[0]}:{name[1]} is an input and a constant")
            known = None
            if isinstance(value, torch.Tensor) and fits(value.dtype, value.shape):
                known = (as_integers(value),)
            fed[name] = GraphStep(f"{name[0]}:{name[1]}", FED, value=value, constants=known)
        flattener = Flattener(self.graph, self.declarations)
        region = flattener.graph_region(request.outputs, request.targets, fed)
        changes: list[tuple[Region, GraphStep, str]] = []

        def turn_off(each: Region) -> None:
            changes.extend((each, step, line) for step, line in turn_off_training(each, self.graph.nodes))

        if request.filled_tables:
            region.targets = changes_of(region, request.filled_tables)
        regions = regions_of(flattener, region, turn_off if request.inference else None)
        if request.inference:
            check_inference(regions)
        region.turned_off = [line for each, step, line in changes if step in each.live]
        return fed, regions

    def _assigned(self, regions: Sequence[Region]) -> set[str] | None:
        steps = assigned_variables(regions)
        if steps is None:
            return None
        names = (variable_name(self.variables, step) for step in steps)
        return {name for name in names if name is not None}

    def _parameter(self, name: str) -> Any:
        value = self.variables.value_of(name)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and self.variables.is_trainable(name):
            return torch.nn.Parameter(value)
        return value.detach() if isinstance(value, torch.Tensor) else value


def _given(step: GraphStep) -> BuiltValue:
    if step.constants is not None:
        return known_integers(step.constants[0], step.value.dtype)
    return known_value(step.value)


def _results(builder: ModuleBuilder, body: Body, region: Region) -> list[BuiltValue]:
    """Build the results of the graph's region."""
    guards = NO_GUARDS
    for source in region.wanted():
        found, dead = guards_of(source)
        if dead:
            raise InvalidArgumentError(f"{source[0]} is in a branch of a condition that never runs")
        guards |= found
    for each in region.targets:
        if each in region.live:
            guards |= each.guards
    for predicate, branch in sorted(guards, key=lambda guard: len(guard[0][0].guards)):
        # A wanted value is inside a branch: the predicate must choose it.
        builder.build(body, [predicate[0]])
        value = builder.reading(body, builder.value(body, predicate))
        node = body.call(require_branch, body.operand(value), branch)
        node.meta["tensorflow"] = (predicate[0].name, predicate[0].op)
        body.guards |= {(predicate, branch)}
    builder.build(body, [each for each in region.targets if each in region.live])
    builder.build(body, [source for source, _ in region.wanted()])
    values = [builder.value(body, source) for source in region.wanted()]
    if any(value.kind is ValueKind.REFERENCE for value in values):
        values = [builder.reading(body, value) for value in values]
    return values


def _joined(names: set[str] | None, more: set[str] | None) -> set[str] | None:
    return None if names is None or more is None else names | more
