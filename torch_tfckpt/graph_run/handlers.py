"""Steps that are not calls of registered operations: constants, identities, variables, assignments, tables."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch

from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError
from torch_tfckpt.graph_run.attributes import constant_attribute, python_value
from torch_tfckpt.graph_run.bodies import Body, BuiltValue, StepOutputs, ValueKind, known_integers, known_value
from torch_tfckpt.graph_run.building import Handler, ModuleBuilder
from torch_tfckpt.graph_run.calls import call_operation
from torch_tfckpt.graph_run.constants import constant_of
from torch_tfckpt.graph_run.control_flow_v1 import build_condition, build_loop
from torch_tfckpt.graph_run.control_flow_v2 import build_branches, build_while
from torch_tfckpt.graph_run.state import CHANGES
from torch_tfckpt.graph_run.steps import (
    ARGUMENT,
    BARRIER,
    CASES,
    CONDITIONS,
    ENTERS,
    EXITS,
    FED,
    LOOPS,
    MERGES,
    NEXT_ITERATIONS,
    SWITCHES,
    TABLES,
    VARIABLES,
    GraphStep,
)
from torch_tfckpt.graph_run.tables import initialize_from_file
from torch_tfckpt.graph_run.variable_source import variable_name
from torch_tfckpt.text import quoted

# Operations that must be fed if they are needed.
INPUTS: Final = frozenset({"Placeholder", "PlaceholderV2"})
_OF_FILES: Final = frozenset({"key_index", "value_index", "vocab_size", "delimiter", "offset"})


def _constant(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    return StepOutputs({0: known_value(constant_of(constant_attribute(step.attributes)))})


def _unfed(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    raise InvalidArgumentError(f"feed a value for {quoted(step.name + ':0')}")


def _nothing(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    return StepOutputs()


def _passed_on(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    """The first input, unchanged; a variable stays one."""
    return StepOutputs({0: builder.value(body, step.inputs[0])})


def _read(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    return StepOutputs({0: builder.reading(body, builder.value(body, step.inputs[0]))})


def _all_read(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    return StepOutputs({index: builder.reading(body, value) for index, value in enumerate(builder.inputs(body, step))})


def _numbers_read(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    """An operation that matters only to tensors: integers and constants are passed on."""
    value = builder.reading(body, builder.value(body, step.inputs[0]))
    if value.kind is ValueKind.INTEGERS or value.is_constant:
        return StepOutputs({0: value})
    return call_operation(builder, body, step)


def _switch(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    value = builder.value(body, step.inputs[0])
    return StepOutputs({0: value, 1: value})


def _variable(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    name = variable_name(builder.variables, step)
    if name is None:
        raise FailedPreconditionError("the variable is not one of imported.variables. Feed its value")
    return StepOutputs({0: BuiltValue(ValueKind.REFERENCE, variable=name)})


def _is_initialized(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    return StepOutputs({0: known_integers(True, torch.bool)})


def _changed(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    target, *values = builder.inputs(body, step)
    if target.kind is not ValueKind.REFERENCE:
        raise UnimplementedError("it assigns to something that is not a variable")
    arguments = [body.tensor(builder.reading(body, value)) for value in values]
    name = target.variable
    if step.op not in ("Assign", "AssignVariableOp"):
        if name not in builder.set:
            builder.read[name] = None
    elif body is body.root:
        builder.set[name] = None
    body.call(CHANGES[step.op], builder.variable(body, name), *arguments, at=step)
    return StepOutputs({0: target})


def _table(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    table = builder.tables.of(step)
    builder.used_tables[table.name] = None
    return StepOutputs({0: BuiltValue(ValueKind.VALUE, constant=table)})


def _initialized_from_file(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    table, filename = (body.tensor(builder.reading(body, value)) for value in builder.inputs(body, step))
    attributes = {name: python_value(value, name) for name, value in step.attributes.items() if name in _OF_FILES}
    body.call(initialize_from_file, table, filename, body.constant(builder.tables.sources.read), at=step, **attributes)
    return StepOutputs()


_TABLE: dict[str, Handler] = {
    "Const": _constant,
    "PlaceholderWithDefault": _read,
    "NoOp": _nothing,
    "Assert": _nothing,
    "Print": _read,
    "PrintV2": _nothing,
    "ReadVariableOp": _read,
    "VarIsInitializedOp": _is_initialized,
    "IsVariableInitialized": _is_initialized,
    "IdentityN": _all_read,
    "StopGradient": _numbers_read,
    "PreventGradient": _numbers_read,
    "LoopCond": _passed_on,
    "ControlTrigger": _nothing,
    BARRIER: _nothing,
}
_TABLE |= dict.fromkeys(INPUTS | {FED, ARGUMENT}, _unfed)
_TABLE |= dict.fromkeys(("Identity", "RefIdentity", "Snapshot"), _read)
_TABLE |= dict.fromkeys(VARIABLES, _variable)
_TABLE |= dict.fromkeys(CHANGES, _changed)
_TABLE |= dict.fromkeys(TABLES, _table)
_TABLE |= dict.fromkeys(("InitializeTableFromTextFile", "InitializeTableFromTextFileV2"), _initialized_from_file)
_TABLE |= dict.fromkeys(SWITCHES, _switch)
_TABLE |= dict.fromkeys(ENTERS | NEXT_ITERATIONS, _passed_on)
_TABLE |= dict.fromkeys(MERGES, build_condition)
_TABLE |= dict.fromkeys(EXITS, build_loop)
_TABLE |= dict.fromkeys(CONDITIONS | CASES, build_branches)
_TABLE |= dict.fromkeys(LOOPS, build_while)
HANDLERS: Final[Mapping[str, Handler]] = MappingProxyType(_TABLE)
"""Operation -> what builds its steps."""
