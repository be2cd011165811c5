"""The two sides of a comparison: an imported graph and a module, run on the same samples."""

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from torch_tfckpt.comparison.graph_tensors import ComputedTensors
from torch_tfckpt.comparison.module_calls import RecordedRun, recorded
from torch_tfckpt.comparison.samples import Sample
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.imported_graph.imported import ImportedMetaGraph
from torch_tfckpt.text import quoted
from torch_tfckpt.values import Value

Axes = tuple[int, ...]


class GraphSide:
    """The graph: values of its outputs, and all its tensors.

    Args:
        tensors: Name of an input or output -> name of the tensor in the graph.
        constants: Values that are fed in all runs.
        inference: Turn off what the graph does only in training.
    """

    def __init__(
        self,
        imported: ImportedMetaGraph,
        tensors: Mapping[str, str],
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Mapping[str, Any],
        inference: bool,
    ) -> None:
        self._imported, self._tensors, self._constants, self._inference = imported, tensors, constants, inference
        self.inputs, self.outputs = inputs, outputs

    @cached_property
    def _module(self) -> fx.GraphModule:
        return self._imported.module(
            [self._tensors[name] for name in self.inputs],
            [self._tensors[name] for name in self.outputs],
            self._constants or None,
            inference=self._inference,
        ).train(mode=False)

    def run(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Return the outputs by the caller's names."""
        if self._inference:
            with torch.no_grad():
                return dict(zip(self.outputs, self._module(*self._values(sample)), strict=True))
        feeds = {self._tensors[name]: value for name, value in sample.items()}
        fetches = {name: self._tensors[name] for name in self.outputs}
        found: dict[str, Value] = self._imported.run(fetches, {**feeds, **self._constants})
        strings = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
        if strings:
            raise InvalidArgumentError(f"{quoted(strings[0])} is a tensor of strings, which modules do not return")
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def computed(self, sample: Sample, tolerance: float) -> ComputedTensors:
        """Return all tensors that the graph computes for a sample. Cost: their memory."""
        return ComputedTensors(self._module, self._values(sample), tolerance)

    def _values(self, sample: Sample) -> list[torch.Tensor]:
        values = []
        for name in self.inputs:
            dtype, _ = self._imported._expected(self._tensors[name])
            values.append(sample[name].to(dtype) if isinstance(dtype, torch.dtype) else sample[name])
        return values


class ModuleSide:
    """The module: from a sample in the graph's layout to its outputs.

    Args:
        inputs: Name of an input -> position or name of the argument.
        outputs: Name of an output -> index, key or attribute of what the module returns; None for all of it.
    """

    def __init__(self, module: nn.Module, inputs: Mapping[str, int | str], outputs: Mapping[str, Any]) -> None:
        self.module, self.inputs, self.outputs = module, inputs, outputs
        first = next(itertools.chain(module.parameters(), module.buffers()), None)
        self._device = torch.device("cpu") if first is None else first.device
        self._dtype = first.dtype if first is not None and first.is_floating_point() else None
        if self._device.type == "meta":
            raise InvalidArgumentError("the module has no values: it is on the meta device. Load its weights first")

    def run(self, sample: Sample, axes: Mapping[str, Axes], **options: Any) -> RecordedRun:
        """Run the module on inputs that are permuted by `axes`; the options are those of `recorded`."""
        positions: dict[int, Any] = {}
        keywords: dict[str, Any] = {}
        for name, argument in self.inputs.items():
            value = sample[name]
            if name in axes:
                value = permuted(value, name, axes[name]).contiguous()
            # A copy: the module may change its inputs.
            value = value.detach().to(self._device, copy=True)
            if self._dtype is not None and value.is_floating_point():
                value = value.to(self._dtype)
            if isinstance(argument, int):
                positions[argument] = value
            else:
                keywords[argument] = value
        if sorted(positions) != list(range(len(positions))):
            raise InvalidArgumentError(f"inputs: the positions of arguments are {sorted(positions)}, not 0, 1, ...")
        arguments = [positions[index] for index in sorted(positions)]
        return recorded(self.module, lambda: self.module(*arguments, **keywords), **options)

    def tensors(self, returned: Any) -> dict[str, torch.Tensor]:
        """Return the tensors among what the module returned, by the graph's names."""
        return {name: _picked(returned, name, key) for name, key in self.outputs.items()}


def permuted(value: torch.Tensor, name: str, axes: Axes) -> torch.Tensor:
    """Return a tensor with its axes in this order; InvalidArgumentError if it has another number of axes."""
    if len(axes) != value.dim():
        shape = shape_text(tuple(value.shape))
        raise InvalidArgumentError(f"axes: {quoted(name)} has the shape {shape}, and {len(axes)} axes are given")
    return value.permute(axes)


def _picked(returned: Any, name: str, key: Any) -> torch.Tensor:
    """Return the tensor that the module returns for an output of the graph."""
    value = returned
    try:
        if isinstance(key, str):
            value = returned[key] if isinstance(returned, Mapping) else getattr(returned, key)
        elif key is not None:
            value = returned if isinstance(returned, torch.Tensor) and key == 0 else returned[key]
        elif isinstance(returned, tuple | list) and len(returned) == 1:
            value = returned[0]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise InvalidArgumentError(f"the module returns no {key!r}, which is to be {quoted(name)}") from error
    if not isinstance(value, torch.Tensor):
        raise InvalidArgumentError(
            f"the module returns a {type(value).__name__} for {quoted(name)}. Name the index, key or attribute of the "
            f'tensor: outputs={{"{name}": 0}}'
        )
    return value.detach().cpu()
