"""Build torch.fx graphs from the steps of a region.

A body is built with an explicit stack: a step's inputs come first, in the outermost body in which they can run, so that
what does not depend on a loop is computed before it. Loops and conditions become modules with bodies of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import fx

from torch_tfckpt.errors import CheckpointError, UnimplementedError, located
from torch_tfckpt.graph_run.bodies import (
    Body,
    BuiltValue,
    StepOutputs,
    ValueKind,
    known_integers,
)
from torch_tfckpt.graph_run.declarations import Declarations
from torch_tfckpt.graph_run.folding import integer_dtype
from torch_tfckpt.graph_run.steps import (
    EXITS,
    FED,
    MERGES,
    GraphStep,
    Source,
    needed,
)
from torch_tfckpt.graph_run.tables import LookupTables
from torch_tfckpt.graph_run.variable_source import VariableSource

Handler = Callable[["ModuleBuilder", Body, GraphStep], StepOutputs]
MAX_LOOPS: Final = 100_000  # that are built, counting those that are built again inside a loop that is


class ModuleBuilder:
    """Builds the bodies of one module.

    Args:
        variables: Binds variables to tensors.
        declarations: Of the graph's operations.
        tables: The lookup tables of the graph.
        handlers: Operation -> function that builds its steps; other operations are calls of registered functions.

    Attributes:
        assigned: Names of the variables that the request changes: reading one makes a copy. None: all may change.
        set: Names of the variables that are set in each run, before what is built next.
    """

    def __init__(
        self,
        variables: VariableSource,
        declarations: Declarations,
        tables: LookupTables,
        handlers: Mapping[str, Handler],
        default: Handler,
    ) -> None:
        self.variables, self.declarations, self.tables = variables, declarations, tables
        self._handlers, self._default = handlers, default
        self.used_tables: dict[str, None] = {}  # their names
        self.read: dict[str, None] = {}  # names of the variables whose values are used
        self.assigned: set[str] | None = set()
        self.set: dict[str, None] = {}
        self._loops = 0
        self.parameter: Callable[[str], Any] = variables.value_of
        self._variables: dict[str, fx.Node] = {}  # the nodes that read them

    def build(self, body: Body, steps: Sequence[GraphStep]) -> None:
        """Build steps and everything they need, unless they were built before."""
        stack: list[tuple[Body, GraphStep, bool]] = [(body, step, False) for step in reversed(steps)]
        while stack:
            here, step, is_ready = stack.pop()
            if here.is_built(step):
                continue
            home = here.home(step)
            if home is None:
                raise UnimplementedError(f"{step} is used outside of the loop or condition that computes it")
            if is_ready:
                self._build_step(home, step)
                continue
            stack.append((home, step, True))
            stack.extend((home, each, False) for each in reversed(self._before(home, step)))

    def count_loop(self, step: GraphStep) -> None:
        """Raise UnimplementedError if loops inside each other are built again and again."""
        self._loops += 1
        if self._loops > MAX_LOOPS:
            raise UnimplementedError(f"{step}: too many loops inside each other")

    def value(self, body: Body, source: Source) -> BuiltValue:
        """Return the value of an output whose step was built."""
        found = body.found(source)
        if found is None:
            step, index = source
            self.build(body, [step])
            found = body.found(source)
            if found is None:
                raise UnimplementedError(f"{step} has no output {index}")
        return found

    def inputs(self, body: Body, step: GraphStep) -> list[BuiltValue]:
        return [self.value(body, source) for source in step.inputs]

    def _before(self, body: Body, step: GraphStep) -> Sequence[GraphStep]:
        """Return the steps that must be built before a step in a body."""
        if step.constants is not None or step.alias is not None:
            return needed(step)
        if step.op in EXITS:
            return outside_of(body, body.region.exits.get(step.inputs[0][0].frame, []))
        if step.op in MERGES and step.predicate is not None:
            return outside_of(body, [step])
        if step.is_condition_switch():
            # The branches decide when the value is used, so that the predicate is not needed here.
            return [step.inputs[0][0], *(each for each in step.after if each.effectful)]
        return needed(step)

    def _build_step(self, body: Body, step: GraphStep) -> None:
        if step.constants is not None:
            dtype = step.value.dtype if step.op == FED else integer_dtype(step.op, step.attributes)
            found = {index: known_integers(value, dtype) for index, value in enumerate(step.constants)}
            body.values[step] = StepOutputs(found)
            return
        if step.alias is not None:
            value = self.value(body, step.alias)
            known = {0: value}
            if step.op in MERGES:
                known[1] = known_integers(step.inputs.index(step.alias), torch.int32)
            body.values[step] = StepOutputs(known)
            return
        handler = self._handlers.get(step.op, self._default)
        try:
            outputs = handler(self, body, step)
        except CheckpointError as error:
            raise error if str(error).startswith("node ") else located(error, repr(step)) from error.__cause__
        if step not in body.values:
            body.values[step] = outputs

    # Variables.

    def reading(self, body: Body, value: BuiltValue) -> BuiltValue:
        """Return the value of a variable at this point of the program; other values unchanged."""
        if value.kind is not ValueKind.REFERENCE:
            return value
        name = value.variable
        if name not in self.set:
            self.read[name] = None
        node = self.variable(body, name)
        if self.assigned is None or name in self.assigned:
            node = body.call(torch.clone, node)
        return body.value_of(node)

    def variable(self, body: Body, name: str) -> fx.Node:
        """Return the node of a variable's tensor."""
        root = body.root
        node = self._variables.get(name)
        if node is None:
            node = self._variables[name] = root.attribute(root.names.tensor(name), self.parameter(name))
        return body.captured(node, root)

    def attribute_names(self) -> dict[str, str]:
        """Return variable -> attribute of the module, for the variables that are used."""
        return {name: str(node.target) for name, node in self._variables.items()}


def outside_of(body: Body, inner: Sequence[GraphStep]) -> list[GraphStep]:
    """Return the steps that a loop or condition needs and that can run in `body`, before it."""
    found: dict[GraphStep, None] = {}
    seen = set(inner)
    stack = [each for step in reversed(inner) for each in reversed(needed(step))]
    while stack:
        each = stack.pop()
        if each in seen:
            continue
        seen.add(each)
        if body.home(each) is not None:
            found[each] = None
        else:
            stack.extend(reversed(needed(each)))
    return list(found)
