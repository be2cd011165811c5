"""Operations on images can be exported with torch.export for any batch size."""

import torch
from op_inputs import Inputs

from torch_tfckpt.graph_ops.blocks import batch_to_space_nd, depth_to_space, space_to_batch_nd, space_to_depth
from torch_tfckpt.graph_ops.convolutions import (
    bias_add,
    conv2d,
    conv2d_backprop_filter,
    conv2d_backprop_input,
    depthwise_conv2d,
)
from torch_tfckpt.graph_ops.images import (
    crop_and_resize,
    extract_image_patches,
    resize_bicubic,
    resize_bilinear,
    resize_nearest_neighbor,
)
from torch_tfckpt.graph_ops.normalization import (
    fused_batch_norm_v3,
    local_response_normalization,
    log_softmax,
    softmax,
)
from torch_tfckpt.graph_ops.pooling import avg_pool, avg_pool_grad, max_pool, max_pool_grad, max_pool_with_argmax
from torch_tfckpt.graph_ops.quantized import fake_quant_args, fake_quant_vars
from torch_tfckpt.graph_ops.values import Tensor

INPUTS = Inputs(10)


class Images(torch.nn.Module):
    """One result of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = torch.nn.Parameter(torch.from_numpy(INPUTS.normal(3, 3, 4, 6)))
        self.depthwise = torch.nn.Parameter(torch.from_numpy(INPUTS.normal(3, 3, 4, 2)))
        self.vector = torch.nn.Parameter(torch.from_numpy(INPUTS.uniform(4, low=0.5)))
        self.boxes = torch.nn.Buffer(torch.tensor([[0.0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9]]))
        self.numbers = torch.nn.Buffer(torch.tensor([0, 1]))

    def forward(self, x: Tensor) -> list[Tensor]:
        batch, vector = x.shape[0], self.vector
        strides, window = (1, 2, 2, 1), (1, 3, 2, 1)
        found: list[Tensor] = []
        for padding in ("SAME", "VALID"):
            y = conv2d(x, self.filter, strides=strides, padding=padding)
            found += [
                y,
                depthwise_conv2d(x, self.depthwise, strides=strides, padding=padding),
                conv2d_backprop_input((batch, 6, 8, 4), self.filter, y, strides=strides, padding=padding),
                conv2d_backprop_filter(x, (3, 3, 4, 6), y, strides=strides, padding=padding),
            ]
            pooled = max_pool(x, ksize=window, strides=strides, padding=padding)
            average = avg_pool(x, ksize=window, strides=strides, padding=padding)
            found += [
                pooled,
                average,
                max_pool_grad(x, pooled, average, ksize=window, strides=strides, padding=padding),
                avg_pool_grad((batch, 6, 8, 4), average, ksize=window, strides=strides, padding=padding),
                *max_pool_with_argmax(x, ksize=window, strides=strides, padding=padding, include_batch_in_index=True),
                extract_image_patches(x, ksizes=window, strides=strides, rates=(1, 1, 1, 1), padding=padding),
            ]
        for is_training in (True, False):
            found += fused_batch_norm_v3(x, vector, vector, vector, vector, is_training=is_training)[:3]
        for resize in (resize_bilinear, resize_bicubic, resize_nearest_neighbor):
            found += [
                resize(x, (5, 3)),
                resize(x, (9, 7), half_pixel_centers=True),
                resize(x, (4, 4), align_corners=True),
            ]
        blocks = torch.relu(space_to_batch_nd(x, (2, 2), ((1, 1), (0, 2))))
        found += [blocks, batch_to_space_nd(blocks, (2, 2), ((1, 1), (0, 2)))]
        found += [space_to_depth(x, block_size=2), depth_to_space(x, block_size=2)]
        found += [bias_add(x, vector), softmax(x), log_softmax(x), local_response_normalization(x)]
        found += [fake_quant_args(x), fake_quant_vars(x, vector.min() - 2, vector.max())]
        found += [crop_and_resize(x, self.boxes, self.numbers, (3, 3))]
        return found


def test_any_batch() -> None:
    """Exported with a batch of 2, run with 5: equal to the functions."""
    module = Images().eval()
    example = torch.from_numpy(INPUTS.normal(2, 6, 8, 4))
    exported = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    x = torch.from_numpy(INPUTS.normal(5, 6, 8, 4))
    for ours, expected in zip(exported.module()(x), module(x), strict=True):
        torch.testing.assert_close(ours, expected)
