"""Find the parameters that the positions in the state_dict of an optimizer refer to.

torch numbers parameters in the order in which they were passed to the optimizer, and its state_dict has no names. The
model's state_dict has names in the order of model.parameters(), but it also contains buffers and does not mark them.

Contract of `match_positions`: an assignment is possible if each group has parameters in the order of the model, no
parameter has two positions, and the shapes of the state fit. If exactly one is possible, it is returned; otherwise an
error reports why. Nothing is guessed: two layers of the same shape could swap their moments, and nobody would notice.

Source: torch/optim/optimizer.py (state_dict, add_param_group); torch/nn/modules/module.py (parameters, state_dict).
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.text import counted

MAX_STEPS: Final = 1_000_000  # per search, about 2 s; 100,000 parameters in one group take 200,000 steps
STATISTICS: Final = frozenset({"running_mean", "running_var"})  # buffers of torch's BatchNorm and InstanceNorm


class AmbiguousPositionsError(InvalidArgumentError):
    """Several assignments of positions to parameters are possible."""


class ModelTensor(NamedTuple):
    """One entry of the state_dict of a model."""

    shape: Shape
    dtype: torch.dtype

    @property
    def has_gradients(self) -> bool:
        """Whether the tensor can have gradients, so that an optimizer may have state for it."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    @property
    def may_be_parameter(self) -> bool:
        """Whether the tensor may be a parameter: one that can have gradients, or a frozen quantized weight."""
        return self.has_gradients or self.dtype in (torch.int8, torch.uint8)


def match_positions(
    groups: Sequence[Sequence[Shape | None]], entries: Mapping[str, ModelTensor], max_steps: int = MAX_STEPS
) -> list[list[str]]:
    """Return the names of the parameters of each group, following the contract of this module.

    Args:
        groups: The shape of the state at each position of each group; None if it is unknown.
        entries: The entries of the state_dict of the model, in its order.
        max_steps: Number of search steps after which AmbiguousPositionsError is raised.

    Raises:
        InvalidArgumentError: no assignment is possible.
        AmbiguousPositionsError: several assignments are possible, or there are too many to search.
    """
    buffers = _known_buffers(entries)
    candidates = {name: entry for name, entry in entries.items() if name not in buffers}
    total = sum(map(len, groups))
    if total > len(candidates):
        raise InvalidArgumentError(f"it has {counted(total, 'parameter')}, but the model has {len(candidates)}")
    # For each entry: how many positions of each group are assigned after it -> how many were assigned before it, and
    # the group that got the entry. Only one predecessor is kept, since it is used only if the assignment is unique.
    layers: list[dict[tuple[int, ...], tuple[tuple[int, ...], int | None]]] = []
    ways: dict[tuple[int, ...], int] = {(0,) * len(groups): 1}
    steps = 0
    for done, entry in enumerate(candidates.values()):
        layer: dict[tuple[int, ...], tuple[tuple[int, ...], int | None]] = {}
        after: dict[tuple[int, ...], int] = {}
        left = len(candidates) - done - 1
        for assigned, count in ways.items():
            choices: list[int | None] = [group for group in range(len(groups)) if _fits(groups, assigned, group, entry)]
            steps += len(groups) + 1
            for group in [*choices, None]:
                following = tuple(number + (each == group) for each, number in enumerate(assigned))
                if total - sum(following) <= left:
                    layer.setdefault(following, (assigned, group))
                    after[following] = min(2, after.get(following, 0) + count)
        if steps > max_steps:
            raise _ambiguous(total, len(candidates), len(groups))
        layers.append(layer)
        ways = after
    end = tuple(map(len, groups))
    if not ways.get(end):
        raise InvalidArgumentError("the shapes of its state do not match the parameters in the order of the model")
    if ways[end] > 1:
        raise _ambiguous(total, len(candidates), len(groups))
    names: list[list[str]] = [[] for _ in groups]
    for name, layer in zip(reversed(candidates), reversed(layers), strict=True):
        end, taken = layer[end]
        if taken is not None:
            names[taken].append(name)
    return [of_group[::-1] for of_group in names]


def _fits(groups: Sequence[Sequence[Shape | None]], assigned: tuple[int, ...], group: int, entry: ModelTensor) -> bool:
    if assigned[group] == len(groups[group]):
        return False
    shape = groups[group][assigned[group]]
    return shape is None or (entry.has_gradients and shape == entry.shape)


def _known_buffers(entries: Mapping[str, ModelTensor]) -> set[str]:
    """Return the entries that are not parameters: known by dtype, or buffers of torch's own classes."""
    found = {name for name, entry in entries.items() if not entry.may_be_parameter}
    for name, entry in entries.items():
        prefix = name[: name.rfind(".") + 1]
        statistics = [entries.get(prefix + each) for each in STATISTICS]
        if name[len(prefix) :] in STATISTICS and statistics == [entry, entry]:
            found.add(name)
    return found


def _ambiguous(total: int, known: int, groups: int) -> AmbiguousPositionsError:
    return AmbiguousPositionsError(
        f"its {counted(total, 'position')} in {counted(groups, 'group')} cannot be assigned to parameters: "
        f"{counted(known, 'entry')} of the model may be parameters or buffers, and several assignments fit"
    )
