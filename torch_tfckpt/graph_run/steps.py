"""The nodes that a request needs, with function calls inlined: records that flattening, analysis and building share.

A GraphStep is one node in one call of its function; the nodes of the graph are the steps outside of calls. A Region is
what runs together: the graph, or the body of a function that a loop or a condition runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Optional

from torch_tfckpt._proto.attr_value_pb2 import AttrValue
from torch_tfckpt.format.graph_def import Node
from torch_tfckpt.graph_run.state import CHANGES
from torch_tfckpt.text import quoted

Source = tuple["GraphStep", int]  # an output of a step
Guard = tuple[Source, int]  # a predicate and the branch in which something runs: 0 false, 1 true
NO_GUARDS: Final[frozenset[Guard]] = frozenset()

FED: Final = "(fed)"  # a step whose value the caller of the module gives
ARGUMENT: Final = "(argument)"  # an argument of a region's function
BARRIER: Final = "(before the call)"  # what must run before a function's body

IDENTITIES: Final = frozenset({"Identity", "RefIdentity", "Snapshot", "PreventGradient", "StopGradient"})
MERGES: Final = frozenset({"Merge", "RefMerge"})
SWITCHES: Final = frozenset({"Switch", "RefSwitch"})
ENTERS: Final = frozenset({"Enter", "RefEnter"})
EXITS: Final = frozenset({"Exit", "RefExit"})
NEXT_ITERATIONS: Final = frozenset({"NextIteration", "RefNextIteration"})
CONDITIONS: Final = frozenset({"If", "StatelessIf"})
CASES: Final = frozenset({"Case", "StatelessCase"})
LOOPS: Final = frozenset({"While", "StatelessWhile"})
CALLS: Final = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
VARIABLES: Final = frozenset({"Variable", "VariableV2", "VarHandleOp"})
ASSIGNMENTS: Final = frozenset(CHANGES)
SIZES: Final = frozenset({"Shape", "ShapeN", "Size", "Rank"})
# Least numbers of data inputs of the operations that are not calls of functions.
LEAST_INPUTS: Final[Mapping[str, int]] = {
    **dict.fromkeys(IDENTITIES | MERGES | ENTERS | EXITS | NEXT_ITERATIONS | CONDITIONS | CASES, 1),
    **dict.fromkeys(("PlaceholderWithDefault", "ReadVariableOp", "Print", "LoopCond"), 1),
    **dict.fromkeys(SWITCHES, 2),
    **dict.fromkeys(ASSIGNMENTS, 2),
    **dict.fromkeys((name for name in ASSIGNMENTS if "Scatter" in name), 3),
}
# Operation that gives a lookup table -> whether the table may change after it was filled.
TABLES: Final[Mapping[str, bool]] = {
    "HashTable": False,
    "HashTableV2": False,
    "MutableHashTable": True,
    "MutableHashTableV2": True,
    "MutableHashTableOfTensors": True,
    "MutableHashTableOfTensorsV2": True,
    "MutableDenseHashTable": True,
    "MutableDenseHashTableV2": True,
}
TABLE_CHANGES: Final = frozenset({
    "InitializeTable", "InitializeTableV2", "InitializeTableFromTextFile", "InitializeTableFromTextFileV2",
    "LookupTableImport", "LookupTableImportV2", "LookupTableInsert", "LookupTableInsertV2", "LookupTableRemoveV2",
})  # fmt: skip


@dataclass(eq=False, slots=True)
class LoopFrame:
    """One loop of TensorFlow 1, or None for what is outside of all loops."""

    name: str
    parent: Optional["LoopFrame"]

    def encloses(self, other: Optional["LoopFrame"]) -> bool:
        """Return whether `other` is this loop or inside it."""
        while other is not None and other is not self:
            other = other.parent
        return other is self


@dataclass(eq=False, slots=True)
class GraphStep:
    """One node in one call of its function.

    Attributes:
        name: For messages: the names of the calls and of the node.
        op: The node's operation, or FED, ARGUMENT, BARRIER.
        inputs: Data inputs.
        after: Steps that must run before.
        constants: The outputs, if they are known small integers.
        value: Of a fed constant: its value.
        functions: Of a condition or loop of TensorFlow 2: the bodies.
        index: Of an argument: its number.
        frame, guards, dead, effectful: See `structure`.
        alias: The step gives only this value: a Merge of which one branch never runs.
        predicate: Of a Merge: the value that decides.
        branches: Of a Merge: the inputs for false and true.
        fault: Why the step cannot be built, if it is needed.
    """

    name: str
    op: str
    node: Node | None = None
    inputs: list[Source] = field(default_factory=list)
    after: list["GraphStep"] = field(default_factory=list)
    attributes: Mapping[str, AttrValue] = field(default_factory=dict)
    constants: tuple[Any, ...] | None = None
    value: Any = None
    functions: "list[Region]" = field(default_factory=list)
    index: int = 0
    frame: LoopFrame | None = None
    guards: frozenset[Guard] = NO_GUARDS
    dead: bool = False
    effectful: bool = False
    alias: Source | None = None
    predicate: Source | None = None
    branches: tuple[Source, Source] | None = None
    fault: str = ""

    def __repr__(self) -> str:
        return f"node {quoted(self.name)} ({self.op})"

    def is_loop_merge(self) -> bool:
        """Return whether this is the beginning of a loop variable."""
        return self.op in MERGES and any(step.op in NEXT_ITERATIONS for step, _ in self.inputs)

    def is_condition_switch(self) -> bool:
        """Return whether this sends a value into one of two branches, and not out of a loop."""
        return self.op in SWITCHES and without_identities(self.inputs[1])[0].op != "LoopCond"


@dataclass(eq=False, slots=True)
class Region:
    """What runs together.

    Attributes:
        steps: All steps in an order in which inputs come first, except those that close loops.
        results: The wanted outputs; None for an unused result of a function.
        targets: Steps that must run although no result may need them.
        arguments: Of a function's body: the steps that are its arguments.
        ancestry: The functions inside of which this one runs.
        live: The steps that must be built.
        in_loop: Loop of TensorFlow 1, or None -> the needed steps directly inside it.
        exits: Loop of TensorFlow 1 -> the needed steps that leave it.
        turned_off: What was changed for inference, a line each.
        conditions: See `control_flow_v1.condition_merges`.
    """

    name: str
    steps: list[GraphStep]
    results: "list[Source | None]"
    targets: list[GraphStep]
    arguments: list[GraphStep] = field(default_factory=list)
    ancestry: tuple[str, ...] = ()
    live: set[GraphStep] = field(default_factory=set)
    in_loop: dict[LoopFrame | None, list[GraphStep]] = field(default_factory=dict)
    exits: dict[LoopFrame | None, list[GraphStep]] = field(default_factory=dict)
    turned_off: list[str] = field(default_factory=list)
    conditions: dict[GraphStep, list[GraphStep]] = field(default_factory=dict)

    def drop_results(self, used: "set[int]") -> None:
        """Drop the results that are not used."""
        self.results = [source if index in used else None for index, source in enumerate(self.results)]

    def wanted(self) -> "list[Source]":
        """Return the results that are used."""
        return [source for source in self.results if source is not None]


def without_identities(source: Source) -> Source:
    """Return the value that a chain of Identity nodes passes on."""
    while source[0].op in IDENTITIES and source[0].inputs:
        source = source[0].inputs[0]
    return source


def known_constant(source: Source) -> Any:
    """Return the value of an output as Python integers; None if it is not known before the graph runs."""
    step, index = source
    return step.constants[index] if step.constants is not None and index < len(step.constants) else None


def needed(step: GraphStep) -> Sequence[GraphStep]:
    """Return the steps that must run before a step, or in the same loop: data first, then what has effects."""
    found: list[GraphStep] = []
    if step.constants is None:
        found += [source for source, _ in ((step.alias,) if step.alias is not None else step.inputs)]
    if step.predicate is not None:
        found.append(step.predicate[0])
    found += [each for each in step.after if each.effectful]
    return found
