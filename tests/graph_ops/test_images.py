"""Operations on images and boxes equal TensorFlow's: values, dtypes, shapes, gradients."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from op_inputs import Array, Inputs, Results, float32, int32
from op_rows import Row, check, operations, row

from torch_tfckpt.graph_ops.blocks import depth_to_space, space_to_batch_nd, space_to_depth
from torch_tfckpt.graph_ops.images import extract_image_patches, resize_bilinear

INPUTS = Inputs(6)
floats, bfloats, integers = INPUTS.normal, INPUTS.bfloat16, INPUTS.integers
MODES: list[dict[str, Any]] = [{}, {"align_corners": True}, {"half_pixel_centers": True}]


def resize_rows() -> list[Row]:
    rows = []
    for name, mode, size in product(
        ["ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic"],
        MODES,
        [(7, 9), (3, 2), (5, 4), (1, 1), (10, 8), (4, 1)],
    ):
        rows.append(row(name, floats(2, 5, 4, 3), int32(size), **mode))
    for name, mode in product(["ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic"], MODES):
        rows += [
            row(name, integers(1, 3, 4, 2, dtype="uint8", low=0, high=255), int32([5, 5]), **mode),
            row(name, integers(1, 3, 4, 2), int32([5, 3]), **mode),
            row(name, floats(1, 3, 4, 2, dtype="float16"), int32([5, 3]), **mode, gradients=False),
            row(name, bfloats(1, 3, 4, 2), int32([5, 3]), **mode, gradients=False),
            row(name, floats(1, 3, 4, 2, dtype="float64"), int32([5, 3]), **mode, gradients=False),
            row(name, floats(1, 1, 1, 2), int32([3, 2]), **mode),
            row(name, floats(2, 5, 4, 3), int32([8, 3]), **mode, view=True),
        ]
    for name in ["ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic"]:
        rows += [
            row(name, floats(2, 5, 4, 3), int32([7, 7]), align_corners=True, half_pixel_centers=True),
            row(name, floats(2, 5, 4, 3), int32([7, 0])),
            row(name, floats(2, 5, 4, 3), int32([7])),
            row(name, floats(5, 4, 3), int32([7, 7])),
            row(name, floats(2, 0, 4, 3), int32([7, 7])),
        ]
    return rows


def block_rows() -> list[Row]:
    cases: list[tuple[Array, list[int], list[list[int]]]] = [
        (floats(2, 4, 6, 3), [2, 3], [[0, 0], [0, 0]]),
        (floats(2, 4, 6, 3), [2, 2], [[1, 1], [2, 0]]),
        (floats(2, 5, 7, 3), [3, 4], [[0, 1], [1, 0]]),
        (floats(2, 5), [3], [[1, 0]]),
        (floats(2, 3, 4, 5), [2], [[0, 1]]),
        (floats(1, 4, 4, 2, 3), [2, 2, 2], [[0, 0], [1, 1], [0, 0]]),
        (floats(2, 4, 6, 3), [1, 1], [[0, 0], [1, 1]]),
        (integers(2, 4, 6), [2, 3], [[0, 0], [0, 0]]),
        (floats(0, 4, 6, 3), [2, 3], [[0, 0], [0, 0]]),
        (floats(2, 4, 6, 3), [2, 4], [[0, 0], [0, 0]]),
        (floats(2, 4, 6, 3), [0, 2], [[0, 0], [0, 0]]),
        (floats(2, 4, 6, 3), [2, 2], [[0, 0], [-2, 0]]),
        (floats(2, 4, 6, 3), [2, 2], [[0, 0]]),
    ]
    rows = [row("SpaceToBatchND", x, int32(block), int32(paddings)) for x, block, paddings in cases]
    rows += [
        row("SpaceToBatchND", floats(2, 4, 6, 3), np.array([2, 3]), np.array([[0, 0], [0, 0]]), view=True),
        row("BatchToSpaceND", floats(12, 2, 3, 3), int32([2, 3]), int32([[0, 0], [0, 0]])),
        row("BatchToSpaceND", floats(12, 2, 3, 3), int32([2, 3]), int32([[1, 0], [2, 3]])),
        row("BatchToSpaceND", floats(6, 2), int32([3]), int32([[1, 0]])),
        row("BatchToSpaceND", floats(6, 2, 3, 4), int32([2]), int32([[0, 1]])),
        row("BatchToSpaceND", floats(8, 2, 2, 1, 3), int32([2, 2, 2]), int32([[0, 0], [1, 1], [0, 0]])),
        row("BatchToSpaceND", integers(4, 2, 3), int32([2, 2]), int32([[0, 0], [0, 0]])),
        row("BatchToSpaceND", floats(12, 2, 3, 3), int32([2, 3]), int32([[1, 0], [2, 3]]), view=True),
        row("BatchToSpaceND", floats(4, 2, 3, 3), int32([1, 1]), int32([[1, 0], [0, 1]])),
        row("BatchToSpaceND", floats(12, 2, 3, 3), int32([2, 5]), int32([[0, 0], [0, 0]])),
        row("BatchToSpaceND", floats(12, 2, 3, 3), int32([2, 3]), int32([[3, 2], [0, 0]])),
        row("BatchToSpaceND", floats(12, 2, 3, 3), int32([2, 3]), int32([[-1, 0], [0, 0]])),
        row("SpaceToBatch", floats(2, 4, 6, 3), int32([[0, 0], [0, 0]]), block_size=2),
        row("SpaceToBatch", floats(2, 4, 5, 3), int32([[1, 1], [0, 1]]), block_size=3),
        row("SpaceToBatch", floats(2, 4, 6, 3), int32([[0, 0], [0, 0]]), block_size=1),
        row("SpaceToBatch", floats(2, 4, 6), int32([[0, 0], [0, 0]]), block_size=2),
        row("BatchToSpace", floats(8, 2, 3, 3), int32([[0, 0], [0, 0]]), block_size=2),
        row("BatchToSpace", floats(9, 2, 3, 3), int32([[1, 2], [0, 3]]), block_size=3),
        row("BatchToSpace", floats(9, 2, 3, 3), int32([[0, 0], [0, 0]]), block_size=2),
    ]
    for name, x in product(
        ["SpaceToDepth", "DepthToSpace"], [floats(2, 4, 6, 8), floats(0, 4, 4, 4), floats(1, 2, 2, 4)]
    ):
        rows.append(row(name, x, block_size=2))
    rows += [
        row("SpaceToDepth", floats(2, 6, 3, 1), block_size=3, view=True),
        row("SpaceToDepth", floats(2, 6, 3, 2, dtype="float64"), block_size=3),
        row("SpaceToDepth", integers(2, 6, 3, 1), block_size=3),
        row("SpaceToDepth", floats(2, 6, 3, 1), block_size=2),
        row("SpaceToDepth", floats(2, 6, 4, 1), block_size=1),
        row("SpaceToDepth", floats(6, 4, 1), block_size=2),
        row("DepthToSpace", floats(2, 2, 3, 18), block_size=3, view=True),
        row("DepthToSpace", integers(2, 2, 3, 9), block_size=3),
        row("DepthToSpace", floats(2, 2, 3, 8), block_size=3),
    ]
    return rows


def crop_rows() -> list[Row]:
    boxes = float32([[0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], [0.8, 0.9, 0.1, 0.2], [-0.3, 0.2, 0.6, 1.4], [0.5] * 4])
    numbers = int32([0, 1, 1, 0, 1])
    rows = []
    for size in [(3, 4), (1, 1), (1, 5), (7, 6)]:
        rows += [
            row("CropAndResize", floats(2, 5, 6, 3), boxes[:4], numbers[:4], int32(size)),
            row("CropAndResize", floats(2, 5, 6, 3), boxes, numbers, int32(size), gradients=False),
            row("CropAndResize", floats(2, 5, 6, 3), boxes, numbers, int32(size), method="nearest", gradients=False),
        ]
    image = floats(2, 5, 6, 3)
    rows += [
        row("CropAndResize", image, boxes, numbers, int32([3, 4]), extrapolation_value=-7.5, gradients=False),
        row(
            "CropAndResize", integers(2, 5, 6, 3, dtype="uint8", low=0), boxes, numbers, int32([3, 4]), gradients=False
        ),
        row("CropAndResize", floats(2, 5, 6, 3, dtype="float64"), boxes, numbers, int32([3, 4]), gradients=False),
        row("CropAndResize", image, boxes[:4], numbers[:4], int32([3, 4]), view=True),
        row("CropAndResize", image, boxes[:0], numbers[:0], int32([3, 4]), gradients=False),
        row("CropAndResize", floats(1, 1, 1, 2), boxes[:1], numbers[:1], int32([2, 2]), gradients=False),
        row("CropAndResize", image, boxes, int32([0, 1, 2, 0, 1]), int32([3, 4])),
        row("CropAndResize", image, boxes, int32([0, 1, -1, 0, 1]), int32([3, 4])),
        row("CropAndResize", image, boxes, numbers[:4], int32([3, 4])),
        row("CropAndResize", image, boxes[:, :3], numbers, int32([3, 4])),
        row("CropAndResize", image, boxes, numbers, int32([0, 4])),
        row("CropAndResize", image, boxes, numbers, int32([3, 4]), method="bicubic"),
    ]
    return rows


def patch_rows() -> list[Row]:
    rows = []
    for padding, (kernel, strides, rates) in product(
        ["SAME", "VALID"], [([2, 3], [1, 1], [1, 1]), ([3, 3], [2, 3], [1, 1]), ([2, 2], [1, 2], [2, 3])]
    ):
        settings: dict[str, Any] = {
            "ksizes": [1, *kernel, 1],
            "strides": [1, *strides, 1],
            "rates": [1, *rates, 1],
            "padding": padding,
        }
        rows.append(row("ExtractImagePatches", floats(2, 6, 7, 3), **settings))
        rows.append(row("ExtractImagePatches", integers(2, 6, 7, 3), **settings))
    rows += [
        row("ExtractImagePatches", floats(2, 6, 7, 3), **settings, view=True),
        row("ExtractImagePatches", floats(0, 6, 7, 3), **settings, gradients=False),
        row("ExtractImagePatches", floats(6, 7, 3), **settings),
        row("ExtractImagePatches", floats(2, 6, 7, 3), **{**settings, "ksizes": [1, 2, 2, 2]}),
        row("ExtractImagePatches", floats(2, 6, 7, 3), **{**settings, "rates": [1, 0, 2, 1]}),
    ]
    return rows


def colour_rows() -> list[Row]:
    def colours(*shape: int, dtype: str = "float32") -> Array:
        return INPUTS.uniform(*shape, 3, dtype=dtype)

    greys = float32([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 0]])
    rows = [
        row("AdjustContrastv2", floats(2, 4, 5, 3), float32(1.7), gradients=False),
        row("AdjustContrastv2", floats(4, 5, 1), float32(0), gradients=False),
        row("AdjustContrastv2", floats(2, 3, 4, 5, 2), float32(-1), gradients=False, view=True),
        row("AdjustContrastv2", floats(4, 5), float32(1), gradients=False),
        row("AdjustContrastv2", floats(4, 5, 1), float32([1]), gradients=False),
    ]
    for name in ["RGBToHSV", "HSVToRGB"]:
        rows += [
            row(name, colours(2, 5), gradients=False),
            row(name, greys, gradients=False),
            row(name, colours(4, 5, dtype="float64"), gradients=False),
            row(name, colours(0), gradients=False),
            row(name, colours(2, 5), gradients=False, view=True),
            row(name, floats(2, 4), gradients=False),
        ]
    for name in ["AdjustSaturation", "AdjustHue"]:
        rows += [
            row(name, colours(2, 5, 4), float32(0.3), gradients=False),
            row(name, colours(5, 4), float32(-0.4 if name == "AdjustHue" else 2.5), gradients=False),
            row(name, greys.reshape(2, 4, 3), float32(0.7), gradients=False),
            row(name, floats(2, 4, 4), float32(0.3), gradients=False),
        ]
    return rows


ROWS = [*resize_rows(), *block_rows(), *crop_rows(), *patch_rows(), *colour_rows()]


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


def test_channels_first() -> None:
    """NCHW, which TensorFlow's CPU kernels refuse, is NHWC with the axes exchanged."""
    x = torch.from_numpy(floats(2, 4, 6, 8))
    first = x.movedim(-1, 1)
    for function in (space_to_depth, depth_to_space):
        found = function(first, block_size=2, data_format="NCHW").movedim(1, -1)
        torch.testing.assert_close(found, function(x, block_size=2))


def test_a_large_size_in_a_small_graph_is_refused() -> None:
    """Sizes and paddings are numbers of the file."""
    huge, x = 1 << 20, torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="limit"):
        resize_bilinear(x, (huge, huge))
    with pytest.raises(ValueError, match="limit"):
        space_to_batch_nd(x, (1, 1), ((huge, huge), (huge, huge)))
    ones = (1, 1, 1, 1)
    with pytest.raises(ValueError, match="limit"):
        extract_image_patches(x, ksizes=(1, huge, huge, 1), strides=ones, rates=ones, padding="SAME")
