"""Activation functions of each element, and the operations for their derivatives that training graphs contain.

The derivative at a kink is TensorFlow's: 0 at 0 for Relu, 1 for Elu.

Source: tensorflow/core/ops/nn_ops.cc, tensorflow/core/kernels/relu_op_functor.h, softplus_op.h, cwise_ops_gradients.h.
"""

from typing import Final

import torch

from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.unsigned import ordered
from torch_tfckpt.graph_ops.values import Tensor

_SELU_SCALE: Final = 1.0507009873554804934193349852946
_SELU_ALPHA: Final = 1.6732632423543772848170429916717
_SOFTPLUS_LINEAR: Final = 40.0  # from here on softplus(x) is x, to the last digit of float64


@op("Sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@op("Softplus")
def softplus(features: Tensor) -> Tensor:
    return torch.nn.functional.softplus(features, threshold=_SOFTPLUS_LINEAR)


@op("Softsign")
def softsign(features: Tensor) -> Tensor:
    return torch.nn.functional.softsign(features)


@op("Relu")
@ordered
def relu(features: Tensor) -> Tensor:
    return torch.relu(features)


@op("Relu6")
@ordered
def relu6(features: Tensor) -> Tensor:
    if features.is_floating_point():
        return torch.nn.functional.relu6(features)
    return torch.clamp(features, 0, 6)


@op("LeakyRelu")
def leaky_relu(features: Tensor, *, alpha: float = 0.2) -> Tensor:
    return torch.nn.functional.leaky_relu(features, alpha)


@op("Elu")
def elu(features: Tensor) -> Tensor:
    return torch.nn.functional.elu(features)


@op("Selu")
def selu(features: Tensor) -> Tensor:
    # torch.selu has another derivative at 0.
    negative = features < 0
    curved = _SELU_SCALE * _SELU_ALPHA * torch.expm1(torch.where(negative, features, 0))
    return torch.where(negative, curved, _SELU_SCALE * features)


@op("SigmoidGrad")
def sigmoid_grad(y: Tensor, dy: Tensor) -> Tensor:
    return dy * y * (1 - y)


@op("TanhGrad")
def tanh_grad(y: Tensor, dy: Tensor) -> Tensor:
    return dy * (1 - y * y)


@op("SqrtGrad")
def sqrt_grad(y: Tensor, dy: Tensor) -> Tensor:
    return dy * 0.5 / y.conj()


@op("RsqrtGrad")
def rsqrt_grad(y: Tensor, dy: Tensor) -> Tensor:
    y = y.conj()
    return dy * -0.5 * y * y * y


@op("InvGrad", "ReciprocalGrad")
def reciprocal_grad(y: Tensor, dy: Tensor) -> Tensor:
    y = y.conj()
    return -dy * y * y


@op("SoftplusGrad")
def softplus_grad(gradients: Tensor, features: Tensor) -> Tensor:
    return gradients * torch.sigmoid(features)


@op("SoftsignGrad")
def softsign_grad(gradients: Tensor, features: Tensor) -> Tensor:
    return gradients / torch.square(1 + torch.abs(features))


@op("ReluGrad")
def relu_grad(gradients: Tensor, features: Tensor) -> Tensor:
    return torch.where(features > 0, gradients, 0)


@op("Relu6Grad")
def relu6_grad(gradients: Tensor, features: Tensor) -> Tensor:
    return torch.where((features > 0) & (features < 6), gradients, 0)


@op("LeakyReluGrad")
def leaky_relu_grad(gradients: Tensor, features: Tensor, *, alpha: float = 0.2) -> Tensor:
    return torch.where(features > 0, gradients, alpha * gradients)


@op("EluGrad")
def elu_grad(gradients: Tensor, outputs: Tensor) -> Tensor:
    return torch.where(outputs < 0, (outputs + 1) * gradients, gradients)


@op("SeluGrad")
def selu_grad(gradients: Tensor, outputs: Tensor) -> Tensor:
    curved = (outputs + _SELU_SCALE * _SELU_ALPHA) * gradients
    return torch.where(outputs < 0, curved, _SELU_SCALE * gradients)
