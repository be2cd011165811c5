"""Steps that are calls of registered operations: inputs and attributes become arguments.

If all inputs are Python integers and the operation has a version for them, the result is integers, too. Otherwise
integers become tensors, and tensors become integers where the function's annotations ask for them.
"""

import operator
from typing import Any, Final

import torch
from torch import fx

from torch_tfckpt.errors import DataLossError, UnimplementedError
from torch_tfckpt.graph_ops.integers import GROWING, INTEGER_DTYPES, INTEGER_OPS, as_tensor
from torch_tfckpt.graph_ops.registry import Op, find
from torch_tfckpt.graph_run.bodies import Body, BuiltValue, StepOutputs, ValueKind, known_value
from torch_tfckpt.graph_run.building import ModuleBuilder
from torch_tfckpt.graph_run.folding import arguments_of, grouped, in_lists, integer_dtype
from torch_tfckpt.graph_run.steps import GraphStep

_FOLDED: Final = 1 << 12  # elements of a result that is computed when the module is built


def call_operation(builder: ModuleBuilder, body: Body, step: GraphStep) -> StepOutputs:
    """Build the call of a registered operation.

    Raises:
        UnimplementedError: it is not registered.
        DataLossError: the node has another number of inputs, or lacks an attribute.
    """
    values = [builder.reading(body, value) for value in builder.inputs(body, step)]
    integers = _call_of_integers(body, step, values)
    if integers is not None:
        return integers
    operation = find(step.op)
    if operation is None:
        raise UnimplementedError("the operation is not supported")
    arguments = _grouped(builder, operation, step, values)
    attributes = arguments_of(operation, step)
    folded = _folded(operation, arguments, attributes)
    if folded is not None:
        return folded
    made: list[Any] = []
    for name, value in zip(operation.inputs, arguments, strict=True):
        convert = body.tensor
        if name in operation.integers:
            convert = body.integers
        elif name in operation.scalars:
            convert = body.operand
        made.append([convert(each) for each in value] if name in operation.lists else convert(value))
    node = body.call(operation.function, *made, at=step, **_storable(body, attributes))
    dtype = (integer_dtype(step.op, step.attributes) or torch.int32) if operation.gives_integers else None
    return outputs_of(body, node, operation.several, dtype, _positions(builder, operation, step))


def outputs_of(
    body: Body, node: fx.Node, several: bool, dtype: Any = None, positions: list[tuple[int, int]] | None = None
) -> StepOutputs:
    """Return the results of a call: one, or the elements of a tuple.

    Args:
        dtype: Of results that are integers.
        positions: Output number -> position in a tuple of lists; None for a tuple without lists.
    """

    def element(index: int) -> BuiltValue:
        if not several:
            if index:
                raise DataLossError(f"the operation has one output, but output {index} is used")
            chosen = node
        elif positions is None:
            chosen = body.call(operator.getitem, node, index)
        else:
            if index >= len(positions):
                raise DataLossError(f"the operation has {len(positions)} outputs, but output {index} is used")
            argument, within = positions[index]
            chosen = body.call(operator.getitem, node, argument)
            if within >= 0:
                chosen = body.call(operator.getitem, chosen, within)
        return body.value_of(chosen) if dtype is None else body.integers_of(chosen, dtype)

    return StepOutputs({}, element)


def _call_of_integers(body: Body, step: GraphStep, values: list[BuiltValue]) -> StepOutputs | None:
    operation = INTEGER_OPS.get(step.op)
    if operation is None or not values or any(value.kind is not ValueKind.INTEGERS for value in values):
        return None
    if step.op in GROWING:
        return None
    dtype = integer_dtype(step.op, step.attributes)
    if dtype not in INTEGER_DTYPES:
        return None
    arguments = grouped(operation, values)
    if arguments is None:
        return None
    made = [
        [body.operand(each) for each in value] if isinstance(value, list) else body.operand(value)
        for value in arguments
    ]
    node = body.call(operation.function, *made, at=step, **arguments_of(operation, step))
    return outputs_of(body, node, operation.several, dtype)


def _grouped(builder: ModuleBuilder, operation: Op, step: GraphStep, values: list[BuiltValue]) -> list[Any]:
    """Return inputs as arguments; the number of tensors in each list is declared, or the same for all."""
    if len(operation.lists) > 1:
        sizes = builder.declarations.input_sizes(step.op, step.attributes)
        if sizes is not None and len(sizes) == len(operation.inputs) and sum(sizes) == len(values):
            return in_lists(operation, values, list(sizes))
    arguments = grouped(operation, values)
    if arguments is None:
        raise DataLossError(f"the node has {len(values)} inputs, but the operation takes {', '.join(operation.inputs)}")
    return arguments


def _positions(builder: ModuleBuilder, operation: Op, step: GraphStep) -> list[tuple[int, int]] | None:
    """Return where each output is in a tuple of results some of which are lists."""
    if len(operation.outputs) < 2:
        return None
    sizes = builder.declarations.output_sizes(step.op, step.attributes)
    is_list = builder.declarations.output_lists(step.op)
    if sizes is None or is_list is None or not any(is_list) or len(sizes) != len(operation.outputs):
        return None
    return [
        (argument, within if is_list[argument] else -1)
        for argument, size in enumerate(sizes)
        for within in range(size if is_list[argument] else 1)
    ]


def _storable(body: Body, attributes: dict[str, Any]) -> dict[str, Any]:
    """Return attributes as arguments of an fx node: tensors become attributes of the module."""
    return {
        name: body.constant(value) if isinstance(value, torch.Tensor) or hasattr(value, "__array__") else value
        for name, value in attributes.items()
    }


def _folded(operation: Op, arguments: list[Any], attributes: dict[str, Any]) -> StepOutputs | None:
    """Compute a result of small constants now; None if it must be computed in each call."""
    if not operation.is_pure or operation.several or operation.integers or operation.gives_integers:
        return None
    size = 1
    tensors: list[Any] = []
    for value in arguments:
        if isinstance(value, list) or not value.is_constant:
            return None
        if value.kind is ValueKind.INTEGERS:
            tensors.append(as_tensor(value.constant, value.dtype))
        elif isinstance(value.constant, torch.Tensor):
            tensors.append(value.constant)
        else:
            return None
        size *= max(1, tensors[-1].numel())
    if not tensors or size > _FOLDED:
        return None
    try:
        with torch.no_grad():
            found = operation.function(*tensors, **attributes)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # reported when the module runs, if it does
    if not isinstance(found, torch.Tensor):
        return None
    return StepOutputs({0: known_value(found)})
