"""Rows of a table of operations: inputs and attributes, computed by TensorFlow and by torch_tfckpt.graph_ops.

    ROWS = [row("AddV2", x, y), row("Sum", x, np.int32([0, 1]), keep_dims=True)]

    @pytest.fixture(scope="module")
    def results(tensorflow):
        return compute(tensorflow, ROWS)

    @pytest.mark.parametrize("name", operations(ROWS))
    def test_operation(name, results):
        check(name, results)

Inputs are numpy arrays, torch tensors (for bfloat16), lists of them, and object arrays of bytes.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from loss_weights import weights
from tensorflow_process import RawTensor, TensorFlowProcess

from torch_tfckpt.errors import CheckpointError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.graph_ops.integers import INTEGER_OPS, as_integers, fits
from torch_tfckpt.graph_ops.registry import find

RAISED = (CheckpointError, RuntimeError, ValueError, IndexError, TypeError)


class Row(NamedTuple):
    """One call of one operation."""

    op: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any]
    gradients: bool
    tolerance: float
    view: bool
    undefined: tuple[int, ...] = ()

    def __str__(self) -> str:
        shapes = [
            [np.shape(each) for each in value] if isinstance(value, list) else np.shape(value) for value in self.inputs
        ]
        return f"{self.op}{shapes} {dict(self.attributes)}"


class Computed(NamedTuple):
    """What TensorFlow computed, or the text of its error."""

    outputs: list[RawTensor]
    gradients: list[RawTensor | None]
    error: str = ""


def row(
    op: str, *inputs: Any, gradients: bool | None = None, tolerance: float = 1e-5, view: bool = False, **attributes: Any
) -> Row:
    """Describe a call.

    Args:
        gradients: Whether to compare gradients; default: if an input is float32 or float64.
        tolerance: Largest difference relative to the largest value; ten times as much for gradients.
        view: Pass tensors that are not contiguous to the function.
    """
    if gradients is None:
        flat = [each for value in inputs for each in (value if isinstance(value, list) else [value])]
        gradients = any(getattr(each, "dtype", None) in (np.float32, np.float64) for each in flat)
    return Row(op, inputs, attributes, gradients, tolerance, view)


def undefined(each: Row, *outputs: int) -> Row:
    """Return the row without a comparison of the values of `outputs`, which TensorFlow leaves uninitialised."""
    return each._replace(undefined=outputs)


def operations(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(each.op for each in rows))


def compute(tensorflow: TensorFlowProcess, rows: Sequence[Row]) -> dict[str, list[tuple[Row, Computed]]]:
    """Return operation -> its rows, with what TensorFlow computed, in one call."""
    sent = [
        (
            each.op,
            [
                [RawTensor.of(part) for part in value] if isinstance(value, list) else RawTensor.of(value)
                for value in each.inputs
            ],
            {name: for_tensorflow(value) for name, value in each.attributes.items()},
            each.gradients,
        )
        for each in rows
    ]
    found: dict[str, list[tuple[Row, Computed]]] = {}
    for each, result in zip(rows, tensorflow.call("tensorflow_ops.run_rows", sent), strict=True):
        computed = Computed([], [], result) if isinstance(result, str) else Computed(*result)
        found.setdefault(each.op, []).append((each, computed))
    return found


def check(name: str, results: Mapping[str, Sequence[tuple[Row, Computed]]]) -> None:
    """Compare values, dtypes, shapes and gradients of all rows; a row that TensorFlow refuses must raise.

    If there is a version for Python integers, it is compared for the rows whose inputs are integers, too.
    """
    _report(results[name], lambda each, computed: _fault(each, computed) or _integers_fault(each, computed))


def check_integers(name: str, results: Mapping[str, Sequence[tuple[Row, Computed]]]) -> None:
    """Compare only the version for Python integers. Every row must be one that it is used for."""
    other = [str(each) for each, computed in results[name] if not _fits(each, computed)]
    assert not other, f"the version for integers is not used for {other}"
    _report(results[name], _integers_fault)


def _report(rows: Sequence[tuple[Row, Computed]], fault_of: Callable[[Row, Computed], str]) -> None:
    faults = [f"{each}: {fault}" for each, computed in rows if (fault := fault_of(each, computed))]
    assert not faults, "\n".join([f"{len(faults)} of {len(rows)} rows differ", *faults[:10]])


def _fits(each: Row, computed: Computed) -> bool:
    parts = [RawTensor.of(part) for value in each.inputs for part in (value if isinstance(value, list) else [value])]
    tensors = [torch_of(raw) for raw in (*parts, *computed.outputs) if raw.dtype != "string"]
    are_numbers = len(tensors) == len(parts) + len(computed.outputs)
    return each.op in INTEGER_OPS and are_numbers and all(fits(tensor.dtype, tensor.shape) for tensor in tensors)


def _integers_fault(each: Row, computed: Computed) -> str:
    """Compare the version for Python integers, if there is one that is used for the row."""
    if not _fits(each, computed):
        return ""
    operation = INTEGER_OPS[each.op]
    tensors = [
        [torch_of(RawTensor.of(part)) for part in (value if isinstance(value, list) else [value])]
        for value in each.inputs
    ]
    arguments = [
        [as_integers(part) for part in parts] if name in operation.lists else as_integers(parts[0])
        for name, parts in zip(operation.inputs, tensors, strict=True)
    ]
    attributes = {
        name: each.attributes.get(name, tensors[0][0].dtype if default is inspect.Parameter.empty else default)
        for name, default in operation.attributes.items()
    }
    try:
        found = operation.function(*arguments, **attributes)
    except RAISED as error:
        return "" if computed.error else f"integers: raised {type(error).__name__}: {error}"
    if computed.error:
        return f"integers: TensorFlow refuses it: {computed.error[:200]}"
    expected = [(raw.dtype, as_integers(torch_of(raw))) for raw in computed.outputs]
    outputs = list(found) if operation.several else [found]
    if repr(outputs) != repr([value for _, value in expected]):
        return f"integers: {outputs}, expected {expected}"
    return ""


def _fault(each: Row, computed: Computed) -> str:
    operation = find(each.op)
    if operation is None:
        return "not registered"
    tensors: list[torch.Tensor] = []  # all float inputs, as leaves of the gradients
    leaves: list[torch.Tensor | None] = []
    arguments: list[Any] = []
    for parameter, value in zip(operation.inputs, each.inputs, strict=True):
        is_list = parameter in operation.lists
        converted = [input_of(part, each, leaves, tensors) for part in (value if is_list else [value])]
        if parameter in operation.integers:
            converted = [as_integers(part) for part in converted]
        arguments.append(converted if is_list else converted[0])
    attributes = {name: _python(value) for name, value in each.attributes.items() if name in operation.attributes}
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        found = operation.function(*arguments, **attributes)
    except RAISED as error:
        return "" if computed.error else f"raised {type(error).__name__}: {error}"
    if computed.error:
        return f"TensorFlow refuses it: {computed.error[:200]}"
    listed = list(found) if operation.several else [found]
    outputs = [part for each in listed for part in (each if isinstance(each, tuple | list) else [each])]
    if operation.gives_integers:
        outputs = listed
    if len(outputs) != len(computed.outputs):
        return f"{len(outputs)} outputs, expected {len(computed.outputs)}"
    for number, (output, theirs) in enumerate(zip(outputs, computed.outputs, strict=True)):
        if number in each.undefined:
            theirs = RawTensor.of(torch.zeros_like(torch_of(theirs)))
            output = torch.zeros_like(output)
        ours = torch.tensor(output, dtype=torch_of(theirs).dtype) if operation.gives_integers else output
        if fault := difference(ours, theirs, each.tolerance):
            return f"output {number}: {fault}"
    if not all(_same(tensor.detach(), old) for tensor, old in zip(tensors, before, strict=True)):
        return "an input was changed"
    return gradient_fault(each, computed, outputs, leaves) if each.gradients else ""


def gradient_fault(each: Row, computed: Computed, outputs: list[Any], leaves: list[torch.Tensor | None]) -> str:
    summed = [
        (output.double() * torch.from_numpy(weights(output.shape))).sum()
        for output in outputs
        if isinstance(output, torch.Tensor) and output.is_floating_point()
    ]
    loss = torch.stack(summed).sum()
    known = [leaf for leaf in leaves if leaf is not None]
    unused = [None] * len(known)
    slopes = iter(torch.autograd.grad(loss, known, allow_unused=True) if known and loss.requires_grad else unused)
    for number, (leaf, theirs) in enumerate(zip(leaves, computed.gradients, strict=True)):
        if leaf is None:
            continue
        ours = next(slopes)
        expected = torch.zeros_like(leaf) if theirs is None else torch_of(theirs)
        if fault := difference(torch.zeros_like(leaf) if ours is None else ours, expected, 10 * each.tolerance):
            return f"gradient of input {number}: {fault}"
    return ""


def input_of(value: Any, each: Row, leaves: list[torch.Tensor | None], tensors: list[torch.Tensor]) -> Any:
    raw = RawTensor.of(value)
    if raw.dtype == "string":
        leaves.append(None)
        return np.array([*raw.strings(), None], dtype=object)[:-1].reshape(raw.shape)
    tensor = torch_of(raw)
    if each.view and tensor.dim():
        wide = torch.stack([tensor, torch.zeros_like(tensor)], -1).transpose(0, -2).contiguous().transpose(0, -2)
        tensor = wide[..., 0]
    is_leaf = each.gradients and tensor.is_floating_point()
    tensors.append(tensor.requires_grad_(is_leaf))
    leaves.append(tensor if is_leaf else None)
    return tensor


def _same(value: torch.Tensor, other: torch.Tensor) -> bool:
    # Not contiguous(): it keeps the strides of a single element.
    value, other = (each.clone(memory_format=torch.contiguous_format).view(-1) for each in (value, other))
    return value.view(torch.uint8).equal(other.view(torch.uint8))


def torch_of(raw: RawTensor) -> torch.Tensor:
    dtype = getattr(torch, {"half": "float16"}.get(raw.dtype, raw.dtype))
    if not raw.data:
        return torch.zeros(raw.shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw.data), dtype=dtype).reshape(raw.shape)


def _python(value: Any) -> Any:
    """Return an attribute as functions get it: names of types as types, lists as tuples."""
    if isinstance(value, list):
        return tuple(-1 if each is None else _python(each) for each in value)
    if value == "string":
        return DataType.DT_STRING
    return getattr(torch, value) if value in ("int32", "int64", "float32") else value


def for_tensorflow(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, DataType):
        return value.name.removeprefix("DT_").lower()
    if isinstance(value, tuple | list):
        return [for_tensorflow(each) for each in value]
    return value


def difference(ours: Any, expected: RawTensor | torch.Tensor, tolerance: float) -> str:
    if isinstance(expected, RawTensor) and expected.dtype == "string":
        if not isinstance(ours, np.ndarray) or ours.shape != expected.shape or list(ours.flat) != expected.strings():
            return f"{ours!r}, expected {expected.strings()} of shape {expected.shape}"
        return ""
    theirs = torch_of(expected) if isinstance(expected, RawTensor) else expected
    if not isinstance(ours, torch.Tensor) or ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        found = f"{ours.dtype}{list(ours.shape)}" if isinstance(ours, torch.Tensor) else type(ours).__name__
        return f"{found}, expected {theirs.dtype}{list(theirs.shape)}"
    ours = ours.detach()
    if not (theirs.is_floating_point() or theirs.is_complex()):
        return "" if torch.equal(ours, theirs) else f"{_first(ours)}, expected {_first(theirs)}"
    wide = torch.complex128 if theirs.is_complex() else torch.float64
    ours, theirs = ours.to(wide), theirs.to(wide)
    if not torch.equal(ours.isnan(), theirs.isnan()):
        return f"NaN at other places: {_first(ours)}, expected {_first(theirs)}"
    equal = (ours == theirs) | ours.isnan()
    finite = theirs[theirs.isfinite()].abs()
    scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
    error = torch.where(equal, 0, (ours - theirs).abs())
    worst = float(error.max()) / scale if error.numel() else 0.0
    return "" if worst <= tolerance else f"differs by {worst:.2g}: {_first(ours)}, expected {_first(theirs)}"


def _first(tensor: torch.Tensor) -> list[Any]:
    return list(tensor.flatten()[:8].tolist())
