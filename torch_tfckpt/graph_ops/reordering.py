"""Roll and ReverseSequence: the same elements at other places.

Source: tensorflow/core/ops/manip_ops.cc, array_ops.cc, tensorflow/core/kernels/reverse_sequence_op.cc.
"""

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.integers import axis_of
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.unsigned import wrapping
from torch_tfckpt.graph_ops.values import Axes, Tensor


@op("Roll")
def roll(input: Tensor, shift: Axes, axis: Axes) -> Tensor:
    """Shift elements along axes; what leaves at the end comes back at the beginning."""
    shifts = (shift,) if isinstance(shift, int) else shift
    places = (axis,) if isinstance(axis, int) else axis
    if len(shifts) != len(places) or isinstance(shift, int) != isinstance(axis, int):
        raise InvalidArgumentError(f"the shifts {shift} do not match the axes {axis}")
    if not input.dim():
        raise InvalidArgumentError("a scalar has no axis to shift along")
    dims = tuple(axis_of(each, input.dim()) for each in places)
    return torch.roll(input, shifts, dims) if dims else input


@op("ReverseSequence")
@wrapping
def reverse_sequence(input: Tensor, seq_lengths: Tensor, *, seq_dim: int, batch_dim: int = 0) -> Tensor:
    """Reverse the first `seq_lengths[i]` elements along `seq_dim` of each entry i of `batch_dim`."""
    rank = input.dim()
    along, batch = axis_of(seq_dim, rank), axis_of(batch_dim, rank)
    if along == batch:
        raise InvalidArgumentError(f"seq_dim and batch_dim are the same axis, {along}")
    if seq_lengths.dim() != 1 or seq_lengths.shape[0] != input.shape[batch]:
        raise InvalidArgumentError(
            f"seq_lengths must be a vector of {input.shape[batch]} elements, not of shape {list(seq_lengths.shape)}"
        )
    lengths = seq_lengths.to(torch.int64).reshape([-1 if axis == batch else 1 for axis in range(rank)])
    size = input.shape[along]
    place = torch.arange(size, device=input.device).reshape([-1 if axis == along else 1 for axis in range(rank)])
    source = torch.where(place < lengths, lengths - 1 - place, place)
    source = torch.where(lengths < 0, lengths, source)  # gather refuses negative places
    return torch.gather(input, along, source.expand(input.shape))
