"""All tensors of floating point that a graph computes for one sample, to find those that a layer computes, too."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import fx

from torch_tfckpt.comparison.arrangements import arranged, error_of, is_uniform

_SUMS: Final = frozenset({"BiasAdd", "BiasAddV1", "Add", "AddV2", "Sub"})


@dataclass(eq=False)
class ComputedTensor:
    """A tensor of the graph.

    Attributes:
        node: The fx node that computes it.
        value: Its value.
        order: Its position among the computed tensors.
    """

    node: fx.Node
    value: torch.Tensor
    order: int

    @cached_property
    def is_uniform(self) -> bool:
        return is_uniform(self.value)

    @cached_property
    def mean(self) -> float:
        return float(self.value.abs().mean())

    @cached_property
    def largest(self) -> float:
        return float(self.value.abs().max())

    @cached_property
    def in_order(self) -> torch.Tensor:
        return self.value.reshape(-1).sort().values


class _Recording(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: list[ComputedTensor] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op != "get_attr" and isinstance(result, torch.Tensor) and result.is_floating_point() and result.numel():
            self.found.append(ComputedTensor(n, result.detach(), len(self.found)))
        return result


class ComputedTensors:
    """What a module of a graph computes for one sample.

    Args:
        module: The module, made by `ImportedMetaGraph.module`.
        values: Its inputs.
        tolerance: The relative error up to which tensors are equal.

    Cost: the memory of all intermediate results.
    """

    def __init__(self, module: fx.GraphModule, values: Sequence[torch.Tensor], tolerance: float) -> None:
        recording = _Recording(module)
        with torch.no_grad():
            recording.run(*values)
        self.all = recording.found
        self._tolerance = tolerance
        self._from_inputs: set[fx.Node] = set()
        for node in module.graph.nodes:
            if node.op == "placeholder" or any(each in self._from_inputs for each in node.all_input_nodes):
                self._from_inputs.add(node)
        self._by_size: dict[int, list[ComputedTensor]] = defaultdict(list)
        for each in self.all:
            self._by_size[each.value.numel()].append(each)

    def equal_to(self, value: torch.Tensor) -> list[ComputedTensor]:
        """Return the tensors that equal a value in one of the arrangements."""
        return [
            each
            for each in self._near(value)
            if any(error_of(value, turned) <= self._tolerance for turned in arranged(each.value, value.shape))
        ]

    def rearranged(self, value: torch.Tensor) -> list[ComputedTensor]:
        """Return the tensors that have the elements of a value, in any order."""
        near = list(self._near(value))
        if not near:
            return []
        in_order = value.detach().cpu().reshape(-1).sort().values
        return [each for each in near if error_of(in_order, each.in_order) <= self._tolerance]

    def with_bias(self, value: torch.Tensor) -> list[ComputedTensor]:
        """Return what the graph computes by adding a variable or constant to a value."""
        same = {each.node for each in self.equal_to(value)}
        users = {user for node in same for user in node.users if user.meta.get("tensorflow", ("", ""))[1] in _SUMS}
        biased = {
            user
            for user in users - same
            if all(each in same or each not in self._from_inputs for each in user.all_input_nodes)
        }
        return [each for each in self.all if each.node in biased]

    def after(self, tensors: Iterable[ComputedTensor]) -> list[ComputedTensor]:
        """Return what is computed from any of these tensors, in order."""
        seen: set[fx.Node] = set()
        waiting = [each.node for each in tensors]
        while waiting:
            node = waiting.pop()
            new = [user for user in node.users if user not in seen]
            seen.update(new)
            waiting.extend(new)
        return [each for each in self.all if each.node in seen]

    def _near(self, value: torch.Tensor) -> Iterable[ComputedTensor]:
        """Yield tensors of the same size and mean."""
        same = self._by_size.get(value.numel(), ())
        if not same:
            return
        mean = float(value.abs().mean())
        for each in same:
            # The error of a mean is at most the largest error.
            if not each.is_uniform and abs(mean - each.mean) <= 2 * self._tolerance * each.largest:
                yield each
