"""What a comparison of a module with a graph found."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch_tfckpt.text import counted, quoted


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """What `compare_model` found. `print(report)` shows it.

    Attributes:
        outputs: Name of a tensor of the graph -> the largest error of the module's output, relative to the largest
            value of the tensor. Infinite if the module failed, the shapes differ, or only one of them is NaN or
            infinite.
        first_difference: The name of the first layer of the module that differs; None if all outputs are equal, or if
            it cannot be told.
        explanation: Why this layer; or what is known instead.
        samples: The number of samples.
        tolerance: The largest error of equal outputs.
        remarks: What else was noticed, such as an output that is the same for all inputs.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> graph = tfckpt.GraphDef()
        >>> node = graph.node.add(name="x", op="Placeholder")
        >>> node.attr["dtype"].type = tfckpt.DataType.DT_FLOAT
        >>> node = graph.node.add(name="y", op="Tanh", input=["x"])
        >>> imported = tfckpt.import_graph_def(graph)
        >>> where = {"inputs": ["x:0"], "outputs": ["y:0"], "shapes": {"x:0": (2, 3)}}
        >>> report = tfckpt.compare_model(torch.nn.Tanh(), imported, **where)
        >>> report.ok, report.outputs, report.first_difference
        (True, {'y:0': 0.0}, None)
    """

    outputs: Mapping[str, float]
    first_difference: str | None
    explanation: str
    samples: int
    tolerance: float
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all outputs are equal, within the tolerance."""
        return all(error <= self.tolerance for error in self.outputs.values())

    def __str__(self) -> str:
        lines = [
            f"{quoted(name)}: {'equal' if error <= self.tolerance else 'different'}, largest error {error:.2g} of the "
            f"largest value"
            for name, error in self.outputs.items()
        ]
        lines += self.remarks
        counts = f"{counted(len(self.outputs), 'output')}, {counted(self.samples, 'sample')}"
        if self.ok:
            return "\n".join([*lines, f"equal within {self.tolerance:g}: {counts}"])
        lines.append(f"different: {counts}, tolerance {self.tolerance:g}")
        if self.first_difference is not None:
            lines.append(f"first difference: {quoted(self.first_difference)}: {self.explanation}")
        elif self.explanation:
            lines.append(f"first difference: {self.explanation}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the report for JSON; an infinite error is the string "Infinity"."""
        return {
            "ok": self.ok,
            "outputs": {name: "Infinity" if math.isinf(error) else error for name, error in self.outputs.items()},
            "first_difference": self.first_difference,
            "explanation": self.explanation,
            "samples": self.samples,
            "tolerance": self.tolerance,
            "remarks": list(self.remarks),
        }
