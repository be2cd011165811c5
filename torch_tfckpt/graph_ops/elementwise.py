"""Operations on each element, with broadcasting.

Source: tensorflow/core/ops/math_ops.cc.
"""

import torch

from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Tensor


@op("Add", "AddV2", outputs=("z",))
def add(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(x, y)
