"""Random numbers from torch's generator, which `torch.manual_seed` sets.

The `seed` attributes are ignored, and the numbers are not TensorFlow's: only shape, dtype and distribution are.
See `stateless_random` for operations that compute their numbers from a seed among the inputs.

Source: tensorflow/core/ops/random_ops.cc.
"""

import math
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Ints, Tensor

# Distribution of the normal distribution at -2 and 2, where TruncatedNormal ends.
_LOW: Final = (1 + math.erf(-2 / math.sqrt(2))) / 2
_HIGH: Final = 1 - _LOW


@op("RandomUniform", pure=False)
def random_uniform(shape: Ints, *, dtype: torch.dtype) -> Tensor:
    check_size(shape)
    return torch.rand(shape, dtype=dtype)


@op("RandomStandardNormal", pure=False)
def random_standard_normal(shape: Ints, *, dtype: torch.dtype) -> Tensor:
    check_size(shape)
    return torch.randn(shape, dtype=dtype)


@op("TruncatedNormal", pure=False)
def truncated_normal(shape: Ints, *, dtype: torch.dtype) -> Tensor:
    check_size(shape)
    part = _LOW + (_HIGH - _LOW) * torch.rand(shape, dtype=torch.float64)
    found: Tensor = torch.special.ndtri(part)
    return found.to(dtype)


@op("RandomUniformInt", pure=False)
def random_uniform_int(shape: Ints, minval: int, maxval: int, *, Tout: torch.dtype) -> Tensor:
    check_size(shape)
    if minval >= maxval:
        raise InvalidArgumentError(f"minval is {minval}, which must be less than maxval, {maxval}")
    return torch.randint(minval, maxval, shape, dtype=Tout)


@op("RandomShuffle", pure=False)
def random_shuffle(value: Tensor) -> Tensor:
    if value.dim() == 0 or value.shape[0] < 2:
        return value
    return value.index_select(0, torch.randperm(value.shape[0], device=value.device))


@op("Multinomial", pure=False)
def multinomial(logits: Tensor, num_samples: int, *, output_dtype: torch.dtype = torch.int64) -> Tensor:
    if logits.dim() != 2 or 0 in logits.shape[1:]:
        raise InvalidArgumentError(f"logits must have the shape [batch, classes], found {list(logits.shape)}")
    check_size((logits.shape[0], num_samples))
    if num_samples == 0 or logits.shape[0] == 0:
        return torch.zeros((logits.shape[0], num_samples), dtype=output_dtype)
    chances = torch.softmax(logits.detach().double(), 1)
    return torch.multinomial(chances, num_samples, replacement=True).to(output_dtype)
