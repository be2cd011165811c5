"""Make one box of a target from its source, reading only what the box needs: for tensors that are spread over ranks.

    rows 0:3 of Linear.weight [out, in]              columns 0:3 of the kernel [in, out], transposed
    rows 0:8 of a weight of heads [(heads size), in]     the heads that these rows are in, and then the rows
    rows 2:5 of q, k and v, joined                   parts of those of the three kernels that these rows are in

A layout that moves axes maps the box to a box of the stored tensor. Where axes are joined or split, a slightly larger
box may be read: whole heads, or a whole axis. A layout that does more than this (gates of an LSTM, functions of a rule)
needs the whole stored tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch

from torch_tfckpt.format.tensor_slice import Extent, Shape, TensorSlice
from torch_tfckpt.models.layers.assembly import Source
from torch_tfckpt.models.layers.layouts import Layout

Read = Callable[[str, TensorSlice], torch.Tensor]
Range = tuple[int, int]  # start and stop


def box_of(
    source: Source, keys: Sequence[str], part: TensorSlice, shape: Shape, shapes: Mapping[str, Shape], read: Read
) -> torch.Tensor:
    """Return one box of the value that `source.assemble` returns.

    Args:
        keys: Key of the stored tensor to read for each part of the source.
        part: The box.
        shape: Shape of the whole value.
        shapes: Stored shape of each key.
        read: Returns a box of the stored tensor with a key.
    """
    box = [(start, start + length) for start, length in part.resolve(shape).extents]
    if source.axis < len(box) and source.bounds is not None:
        start, stop = box[source.axis]
        box[source.axis] = (start + source.bounds.start, stop + source.bounds.start)
    made: list[torch.Tensor] = []
    offset = 0
    for key, each in zip(keys, source.parts, strict=True):
        inner = list(box)
        if source.axis < len(box):
            size = each.layout.torch_shape(shapes[key])[source.axis]
            start, stop = box[source.axis]
            inner[source.axis] = (max(start - offset, 0), min(stop - offset, size))
            offset += size
            if inner[source.axis][0] >= inner[source.axis][1]:
                continue
        made.append(_box_of_layout(each.layout, key, shapes[key], inner, read))
    joined = made[0] if len(made) == 1 else torch.cat(made, source.axis)
    return joined + source.added if source.added else joined


def _box_of_layout(layout: Layout, key: str, stored: Shape, box: Sequence[Range], read: Read) -> torch.Tensor:
    """Return a box of a stored tensor as torch has it."""
    if not layout.patterns and layout.functions is None:
        return read(key, _slice(box))
    found = None if layout.functions is not None or layout.gates or layout.added else layout.fitting(stored)
    if found is None:
        whole = layout.to_torch(read(key, _slice([(0, size) for size in stored])))
        return whole[_slice(box).to_index()]
    axes, lengths = found
    ranges = {name: (0, length) for name, length in lengths.items()}
    for (start, stop), names in zip(box, axes.held, strict=True):
        if names:
            inner = _inner(names, lengths)
            ranges[names[0]] = (start // inner, -(-stop // inner))
    for names in axes.stored:
        if any(ranges[name] != (0, lengths[name]) for name in names[1:]):  # not one range of the stored axis
            ranges.update({name: (0, lengths[name]) for name in names})
    wanted = []
    for names in axes.stored:
        inner = _inner(names, lengths)
        start, stop = ranges[names[0]] if names else (0, 1)
        wanted.append((start * inner, stop * inner))
    made = axes.apply(read(key, _slice(wanted)), {name: stop - start for name, (start, stop) in ranges.items()})
    for axis, ((start, stop), names) in enumerate(zip(box, axes.held, strict=True)):
        begin = start - ranges[names[0]][0] * _inner(names, lengths) if names else 0
        made = made.narrow(axis, begin, stop - start)
    return made


def _inner(names: Sequence[str], lengths: Mapping[str, int]) -> int:
    """Return how many elements of a joined axis belong to one element of its first part."""
    return prod(lengths[name] for name in names[1:])


def _slice(box: Sequence[Range]) -> TensorSlice:
    return TensorSlice(tuple(Extent(start, stop - start) for start, stop in box))
