"""Operations that pass tensors on: identities, checks, and boundaries of gradients.

Source: tensorflow/core/ops/array_ops.cc.
"""

from typing import Any, NoReturn

import torch

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import AnyTensor, AnyTensors, Ints, Tensor
from torch_tfckpt.text import quoted


@op("Identity", "Snapshot")
def identity(input: AnyTensor) -> AnyTensor:
    return input


@op("IdentityN", list_output=True)
def identity_n(input: AnyTensors) -> tuple[AnyTensor, ...]:
    return tuple(input)


@op("StopGradient")
def stop_gradient(input: AnyTensor) -> AnyTensor:
    return input.detach() if isinstance(input, Tensor) else input


@op("PreventGradient")
def prevent_gradient(input: AnyTensor, *, message: str = "") -> AnyTensor:
    """Pass the tensor on; to compute a gradient raises UnimplementedError."""
    if not isinstance(input, Tensor) or not input.requires_grad:
        return input

    def refuse(slope: Tensor) -> NoReturn:
        raise UnimplementedError(f"the graph forbids gradients at PreventGradient: {quoted(message)}")

    passed = input.view_as(input)
    passed.register_hook(refuse)  # type: ignore[no-untyped-call]
    return passed


@op("CheckNumerics", "CheckNumericsV2")
def check_numerics(tensor: Tensor, *, message: str) -> Tensor:
    """Raise InvalidArgumentError if an element is infinite or NaN. Compiled and exported graphs do not check."""
    if not torch.compiler.is_compiling() and not torch.isfinite(tensor).all():
        found = [name for name, test in (("NaN", torch.isnan), ("Inf", torch.isinf)) if test(tensor).any()]
        raise InvalidArgumentError(f"{message} : the tensor has {' and '.join(found)} values")
    return tensor


@op("EnsureShape")
def ensure_shape(input: AnyTensor, *, shape: Ints | None) -> AnyTensor:
    """Raise InvalidArgumentError if the tensor does not have the shape; -1 is any size, None any shape."""
    sizes: tuple[Any, ...] = tuple(input.shape)
    if shape is None:
        return input
    if len(sizes) != len(shape) or any(given >= 0 and given != size for given, size in zip(shape, sizes, strict=True)):
        wanted = [None if size == -1 else size for size in shape]
        raise InvalidArgumentError(f"the tensor has the shape {list(sizes)}, but the graph requires {wanted}")
    return input
