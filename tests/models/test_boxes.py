"""Boxes of sources: any box of a value, made from parts of the stored tensors, equals that box of the whole value."""

import itertools
from collections.abc import Sequence

import pytest
import torch

from torch_tfckpt.format.tensor_slice import Extent, TensorSlice
from torch_tfckpt.models.layers.assembly import Source, SourcePart
from torch_tfckpt.models.layers.boxes import box_of
from torch_tfckpt.models.layers.layouts import (
    CONV2D,
    CONV_TO_DENSE,
    DENSE,
    DENSE_AFTER_FLATTEN,
    DENSE_FROM_HEADS,
    DENSE_TO_HEADS,
    DEPTHWISE,
    GRU_BIAS,
    HEADS,
    LSTM_TF1,
    SAME,
    SQUEEZE,
    VECTOR,
    Layout,
    layout_of_rule,
)
from torch_tfckpt.models.layers.tensor_origins import Bounds

CASES: dict[str, tuple[Layout, Sequence[tuple[int, ...]], int, Bounds | None]] = {
    "same": (SAME, [(4, 3)], 0, None),
    "dense": (DENSE, [(4, 3)], 0, None),
    "1x1 convolution": (DENSE, [(1, 1, 4, 3)], 0, None),
    "to heads": (DENSE_TO_HEADS, [(3, 2, 4)], 0, None),
    "from heads": (DENSE_FROM_HEADS, [(2, 4, 3)], 0, None),
    "bias of heads": (HEADS, [(2, 4)], 0, None),
    "after flatten": (DENSE_AFTER_FLATTEN.with_lengths(height=2, width=3), [(2 * 3 * 4, 5)], 0, None),
    "convolution": (CONV2D, [(3, 2, 4, 5)], 0, None),
    "convolution to dense": (CONV_TO_DENSE, [(2, 3, 2, 3)], 0, None),
    "depthwise": (DEPTHWISE, [(3, 2, 4, 2)], 0, None),
    "vector": (VECTOR, [(1, 1, 5)], 0, None),
    "squeeze": (SQUEEZE, [(1, 3, 4)], 0, None),
    "permutation": (layout_of_rule((2, 0, 1)), [(3, 4, 2)], 0, None),
    "functions": (layout_of_rule((lambda x: x.flip(0), lambda x: x.flip(0))), [(4, 3)], 0, None),
    "gates": (LSTM_TF1, [(3, 8)], 0, None),
    "added": (LSTM_TF1, [(8,)], 0, None),
    "rows of gates": (GRU_BIAS, [(2, 6)], 0, None),
    "joined": (DENSE, [(4, 2), (4, 3), (4, 1)], 0, None),
    "joined along the other axis": (DENSE, [(2, 3), (3, 3)], 1, None),
    "a range": (LSTM_TF1, [(5, 8)], 1, Bounds(2, 5, 5)),
    "a range of a dense": (DENSE, [(5, 8)], 1, Bounds(1, 4, 5)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_boxes_of_a_source(name: str) -> None:
    """All boxes, in all axes; a value that is added at the end is added to boxes too."""
    layout, stored, axis, bounds = CASES[name]
    keys = [f"v{number}" for number in range(len(stored))]
    tensors = {key: torch.randn(shape) for key, shape in zip(keys, stored, strict=True)}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    resolved = layout if layout.functions is not None else layout.resolved(stored[0], None)
    source = Source(tuple(SourcePart(key, resolved) for key in keys), "kernel", axis, bounds, added=0.5)
    whole = source.value(tensors)

    def read(key: str, part: TensorSlice) -> torch.Tensor:
        return tensors[key][part.to_index()]

    ranges = [[(start, stop) for start in range(size) for stop in range(start + 1, size + 1)] for size in whole.shape]
    for box in itertools.islice(itertools.product(*ranges), 0, None, 7 if whole.numel() > 40 else 1):
        part = TensorSlice(tuple(Extent(start, stop - start) for start, stop in box))
        made = box_of(source, keys, part, tuple(whole.shape), shapes, read)
        assert torch.equal(made, whole[part.to_index()]), box


@pytest.mark.parametrize(
    "name", ["same", "dense", "1x1 convolution", "convolution", "permutation", "joined", "squeeze"]
)
def test_moved_axes_read_no_more_than_the_box(name: str) -> None:
    """Half of the first axis of the result costs half of the elements."""
    layout, stored, axis, bounds = CASES[name]
    keys = [f"v{number}" for number in range(len(stored))]
    tensors = {key: torch.randn(shape) for key, shape in zip(keys, stored, strict=True)}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    source = Source(tuple(SourcePart(key, layout.resolved(stored[0], None)) for key in keys), "kernel", axis, bounds)
    whole = source.value(tensors)
    count = 0

    def read(key: str, part: TensorSlice) -> torch.Tensor:
        nonlocal count
        found = tensors[key][part.to_index()]
        count += found.numel()
        return found

    part = TensorSlice((Extent(0, whole.shape[0] // 2), *(Extent(0, size) for size in whole.shape[1:])))
    made = box_of(source, keys, part, tuple(whole.shape), shapes, read)
    assert count == made.numel()
