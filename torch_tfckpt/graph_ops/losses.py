"""Cross entropies of logits. The second output is the derivative with respect to the logits.

Source: tensorflow/core/ops/nn_ops.cc, tensorflow/core/kernels/xent_op.cc, tensorflow/python/ops/nn_grad.py.
"""

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import is_empty
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Tensor


@op("SoftmaxCrossEntropyWithLogits", outputs=("loss", "backprop"))
def softmax_cross_entropy(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each row against the probabilities in `labels`."""
    if max(features.dim(), labels.dim()) != 2:
        raise InvalidArgumentError(
            f"logits and labels must be matrices, not of shape {list(features.shape)} and {list(labels.shape)}"
        )
    features, labels = torch.broadcast_tensors(features, labels)  # type: ignore[no-untyped-call]
    if is_empty(features.shape[1:]):
        return features.sum(-1), features.detach().clone()
    logarithms = torch.log_softmax(features, -1)
    loss = -(labels * logarithms).sum(-1)
    if torch.is_grad_enabled() and features.requires_grad:
        # The derivative is softmax - labels even if the labels do not add up to 1. This term adds the difference to
        # the derivative, and 0 to the loss.
        missing = (1 - labels.sum(-1)).detach() * torch.logsumexp(features, -1)
        loss = loss + (missing - missing.detach())
    return loss, torch.exp(logarithms) - labels.detach()  # TensorFlow has no derivative of it by the labels


@op("SparseSoftmaxCrossEntropyWithLogits", outputs=("loss", "backprop"))
def sparse_softmax_cross_entropy(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each row against the class in `labels`."""
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise InvalidArgumentError(
            f"logits must be a matrix and labels a vector of its rows, not of shape {list(features.shape)} and "
            f"{list(labels.shape)}"
        )
    if is_empty(features.shape[1:]):
        raise InvalidArgumentError(f"logits must have at least one class, not the shape {list(features.shape)}")
    logarithms = torch.log_softmax(features, -1)
    place = labels.to(torch.int64)[:, None]
    loss = -logarithms.gather(1, place).squeeze(1)
    return loss, torch.exp(logarithms) - torch.zeros_like(features).scatter(1, place, 1)
