"""Short programs of several operations, computed by TensorFlow and by torch_tfckpt.graph_ops.

    program(
        step("TensorListReserve", i([2]), i(3), element_dtype=torch.float32, to="list"),
        step("TensorListLength", "list", to="length"),
        results="length",
    )

For operations whose values are not tensors, so that they cannot be compared one by one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from op_rows import RAISED, Computed, Row, difference, for_tensorflow, gradient_fault, input_of
from tensorflow_process import RawTensor, TensorFlowProcess

from torch_tfckpt.graph_ops.integers import as_integers
from torch_tfckpt.graph_ops.registry import OPS


class Step(NamedTuple):
    """One operation: its inputs are constants, or names of earlier results."""

    op: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any]
    outputs: list[str]


class Program(NamedTuple):
    """Operations in order, and the names of the results to compare."""

    steps: tuple[Step, ...]
    results: list[str]

    def __str__(self) -> str:
        return " ".join(f"{each.op}{list(map(str, each.inputs))}" for each in self.steps)


def step(op: str, *inputs: Any, to: str, **attributes: Any) -> Step:
    """Describe an operation; `to` are the names of its outputs, with spaces in between."""
    return Step(op, inputs, attributes, to.split())


def program(*steps: Step, results: str) -> Program:
    """Describe a program; `results` are names of outputs, with spaces in between."""
    return Program(steps, results.split())


def compute_programs(tensorflow: TensorFlowProcess, programs: Sequence[Program]) -> list[Computed]:
    """Return what TensorFlow computes, in one call."""
    sent = [
        (
            [
                (
                    each.op,
                    [value if isinstance(value, str) else RawTensor.of(value) for value in each.inputs],
                    {name: for_tensorflow(value) for name, value in each.attributes.items()},
                    each.outputs,
                )
                for each in one.steps
            ],
            one.results,
        )
        for one in programs
    ]
    found = tensorflow.call("tensorflow_ops.run_programs", sent)
    return [Computed([], [], each) if isinstance(each, str) else Computed(*each) for each in found]


def program_fault(one: Program, computed: Computed) -> str:
    """Return how our results differ from TensorFlow's; "" if they do not."""
    leaves: list[torch.Tensor | None] = []
    each = Row("", (), {}, True, 1e-5, False)
    try:
        found = _results(one, each, leaves)
    except RAISED as error:
        return "" if computed.error else f"raised {type(error).__name__}: {error}"
    if computed.error:
        return f"TensorFlow refuses it: {computed.error[:300]}"
    tensors = [value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.int32) for value in found]
    for name, output, theirs in zip(one.results, tensors, computed.outputs, strict=True):
        if fault := difference(output, theirs, each.tolerance):
            return f"{name}: {fault}"
    if any(output.is_floating_point() for output in tensors):
        return gradient_fault(each, computed, tensors, leaves)
    return ""


def _results(one: Program, each: Row, leaves: list[torch.Tensor | None]) -> list[Any]:
    known: dict[str, Any] = {}
    for current in one.steps:
        operation = OPS[current.op]
        arguments = []
        for parameter, value in zip(operation.inputs, current.inputs, strict=True):
            given = known[value] if isinstance(value, str) else input_of(value, each, leaves, [])
            if parameter in operation.integers and isinstance(given, torch.Tensor):
                given = as_integers(given)
            arguments.append(given)
        attributes = {name: value for name, value in current.attributes.items() if name in operation.attributes}
        found = operation.function(*arguments, **attributes)
        known.update(zip(current.outputs, found if operation.several else [found], strict=True))
    return [known[name] for name in one.results]
