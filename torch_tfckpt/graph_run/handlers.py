"""Steps that are not calls of registered operations: constants, identities, variables, assignments."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch

from torch_tfckpt.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, UnimplementedError
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.graph_run.attributes import python_value
from torch_tfckpt.graph_run.bodies import Body, BuiltValue, Kind, StepOutputs, known_integers, known_value
from torch_tfckpt.graph_run.building import Builder, Handler
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
    VARIABLES,
    Step,
)
from torch_tfckpt.text import quoted

# Operations that must be fed if they are needed.
INPUTS: Final = frozenset({"Placeholder", "PlaceholderV2"})


def _constant(builder: Builder, body: Body, step: Step) -> StepOutputs:
    value = step.attributes.get("value")
    if value is None or not value.HasField("tensor"):
        raise DataLossError('attribute "value", a tensor, is missing')
    return StepOutputs({0: known_value(constant_of(value.tensor))})


def _unfed(builder: Builder, body: Body, step: Step) -> StepOutputs:
    raise InvalidArgumentError(f"feed a value for {quoted(step.name + ':0')}")


def _nothing(builder: Builder, body: Body, step: Step) -> StepOutputs:
    return StepOutputs()


def _passed_on(builder: Builder, body: Body, step: Step) -> StepOutputs:
    """The first input, unchanged; a variable stays one."""
    return StepOutputs({0: builder.value(body, step.inputs[0])})


def _read(builder: Builder, body: Body, step: Step) -> StepOutputs:
    return StepOutputs({0: builder.reading(body, builder.value(body, step.inputs[0]))})


def _all_read(builder: Builder, body: Body, step: Step) -> StepOutputs:
    return StepOutputs({index: builder.reading(body, value) for index, value in enumerate(builder.inputs(body, step))})


def _detached(builder: Builder, body: Body, step: Step) -> StepOutputs:
    value = builder.reading(body, builder.value(body, step.inputs[0]))
    if value.kind is Kind.INTEGERS or value.is_constant:
        return StepOutputs({0: value})
    return StepOutputs({0: body.value_of(body.call(detached, body.tensor(value), at=step))})


def detached(value: object) -> object:
    """Return a tensor through which no gradient flows; other values unchanged."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def _switch(builder: Builder, body: Body, step: Step) -> StepOutputs:
    value = builder.value(body, step.inputs[0])
    return StepOutputs({0: value, 1: value})


def _variable(builder: Builder, body: Body, step: Step) -> StepOutputs:
    assert step.node is not None
    names = [step.node.name]
    shared = step.attributes.get("shared_name")
    if shared is not None and shared.s:
        names.append(shared.s.decode("utf-8", "replace"))
    for name in names:
        found = builder.variables.name_of(name)
        if found is not None:
            return StepOutputs({0: BuiltValue(Kind.REFERENCE, variable=found)})
    raise FailedPreconditionError("the variable is not one of imported.variables. Feed its value")


def _is_initialized(builder: Builder, body: Body, step: Step) -> StepOutputs:
    return StepOutputs({0: known_integers(True, torch.bool)})


def _changed(builder: Builder, body: Body, step: Step) -> StepOutputs:
    target, *values = builder.inputs(body, step)
    if target.kind is not Kind.REFERENCE:
        raise UnimplementedError("it assigns to something that is not a variable")
    arguments = [body.tensor(builder.reading(body, value)) for value in values]
    body.call(CHANGES[step.op], builder.variable(body, target.variable), *arguments, at=step)
    return StepOutputs({0: target})


def _checked_shape(builder: Builder, body: Body, step: Step) -> StepOutputs:
    value = builder.reading(body, builder.value(body, step.inputs[0]))
    shape = python_value(step.attributes["shape"]) if "shape" in step.attributes else None
    return StepOutputs({0: body.value_of(body.call(with_shape, body.tensor(value), shape, at=step))})


def with_shape(value: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
    """Return `value`; InvalidArgumentError if it does not have the shape, in which -1 stands for any size."""
    if shape is not None:
        found = tuple(value.shape)
        matches = len(found) == len(shape) and all(
            wanted in (-1, size) for size, wanted in zip(found, shape, strict=True)
        )
        if not matches:
            raise InvalidArgumentError(f"expected the shape {shape_text(shape)}, got {shape_text(found)}")
    return value


def _checked_numbers(builder: Builder, body: Body, step: Step) -> StepOutputs:
    value = builder.reading(body, builder.value(body, step.inputs[0]))
    message = step.attributes["message"].s.decode("utf-8", "replace") if "message" in step.attributes else ""
    return StepOutputs({0: body.value_of(body.call(with_numbers, body.tensor(value), message, at=step))})


def with_numbers(value: torch.Tensor, message: str) -> torch.Tensor:
    """Return `value`; InvalidArgumentError if it contains NaN or infinity. Not checked while a program is traced."""
    if not torch.compiler.is_compiling() and not bool(value.isfinite().all()):
        raise InvalidArgumentError(f"{message}: the tensor contains NaN or infinity".lstrip(": "))
    return value


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
    "StopGradient": _detached,
    "EnsureShape": _checked_shape,
    "CheckNumerics": _checked_numbers,
    "CheckNumericsV2": _checked_numbers,
    "LoopCond": _passed_on,
    "ControlTrigger": _nothing,
    BARRIER: _nothing,
}
_TABLE |= dict.fromkeys(INPUTS | {FED, ARGUMENT}, _unfed)
_TABLE |= dict.fromkeys(("Identity", "RefIdentity", "Snapshot", "PreventGradient"), _read)
_TABLE |= dict.fromkeys(VARIABLES, _variable)
_TABLE |= dict.fromkeys(CHANGES, _changed)
_TABLE |= dict.fromkeys(SWITCHES, _switch)
_TABLE |= dict.fromkeys(ENTERS | NEXT_ITERATIONS, _passed_on)
_TABLE |= dict.fromkeys(MERGES, build_condition)
_TABLE |= dict.fromkeys(EXITS, build_loop)
_TABLE |= dict.fromkeys(CONDITIONS | CASES, build_branches)
_TABLE |= dict.fromkeys(LOOPS, build_while)
HANDLERS: Final[Mapping[str, Handler]] = MappingProxyType(_TABLE)
"""Operation -> what builds its steps."""
